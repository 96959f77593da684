"""What a fit reports while it runs."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from optimizer.events import CallbackEvents, Events
from optimizer.search.trials import Trial

__all__ = ["FitEvents", "SearchEvents", "SearchProgress"]

_logger = logging.getLogger("blockfit.search")


@dataclass(frozen=True)
class SearchProgress:
    """The state of a search while it runs.

    Attributes:
        search: The name of the search.
        step: The step that is scored.
        metric: The metric that scores it.
        done: Complete trials.
        budget: Complete trials that are aimed at.
        best: The best similarity so far, in [-1, 1]; None before there is one.
        best_blocks: The best trial's similarity of each block, in the order of the scores.
        seconds_per_trial: Mean of the complete trials; None if there are none.
        seconds_left: Estimate at the current rate of all workers; None if unknown.
        workers: Processes that search at the moment, this one included.

    """

    search: str
    step: str
    metric: str
    done: int
    budget: int
    best: float | None
    best_blocks: Mapping[str, float]
    seconds_per_trial: float | None
    seconds_left: float | None
    workers: int


class SearchEvents(Events, Protocol):
    """Receiver of all that a fit reports."""

    def opened(self, progress: SearchProgress, /) -> None:
        """Report that a search begins, or goes on."""
        ...

    def finished(self, progress: SearchProgress, trial: Trial, /) -> None:
        """Report that a trial is complete or has failed, of this process or of another worker."""
        ...


def _log_opened(progress: SearchProgress) -> None:
    _logger.info("%s: %d of %d trials done", progress.search, progress.done, progress.budget)


def _log_finished(progress: SearchProgress, trial: Trial) -> None:
    scored = trial.error if trial.similarity is None else f"{trial.similarity:.8f}"
    _logger.info("%s: trial %d (%s) %s %s", progress.search, trial.number, trial.origin, trial.state, scored)


@dataclass(frozen=True)
class FitEvents(CallbackEvents):
    """Callbacks of a fit; those that are left out go to Python's log, under the name `blockfit`.

        fit(study, events=FitEvents(finished=lambda progress, trial: print(trial.number, trial.similarity)))

    Attributes:
        progress: Called with (what, done, total) while files are read.
        warn: Called with a line on what the user should know though the work goes on.
        opened: Called with a SearchProgress as a search begins.
        finished: Called with a SearchProgress and a Trial after every trial, of other workers too.

    """

    opened: Callable[[SearchProgress], None] = _log_opened
    finished: Callable[[SearchProgress, Trial], None] = _log_finished
