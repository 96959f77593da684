"""The reports of a running fit."""

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
        done: The number of complete trials.
        budget: The number of complete trials to reach.
        best: The best similarity so far, in [-1, 1]; None before the first complete trial.
        best_blocks: The best trial's similarity of each block, in the order of the scores.
        seconds_per_trial: Mean of the complete trials; None without any.
        seconds_left: Estimate at the current rate of all workers; None if unknown.
        workers: The number of processes that search now, this one included.

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
    """Receiver of all reports of a fit."""

    def opened(self, progress: SearchProgress, /) -> None:
        """Report that a search begins or continues."""
        ...

    def finished(self, progress: SearchProgress, trial: Trial, /) -> None:
        """Report a complete or failed trial of this process or of another worker."""
        ...


def _log_opened(progress: SearchProgress) -> None:
    _logger.info("%s: %d of %d trials done", progress.search, progress.done, progress.budget)


def _log_finished(progress: SearchProgress, trial: Trial) -> None:
    scored = trial.error if trial.similarity is None else f"{trial.similarity:.8f}"
    _logger.info("%s: trial %d (%s) %s %s", progress.search, trial.number, trial.origin, trial.state, scored)


@dataclass(frozen=True)
class FitEvents(CallbackEvents):
    """Callbacks of a fit; a report without a callback goes to Python's log, under the name `blockfit`.

        fit(study, events=FitEvents(finished=lambda progress, trial: print(trial.number, trial.similarity)))

    Attributes:
        progress: Called with (activity, done, total) while files are read.
        warn: Called with a warning of one line; the work goes on.
        opened: Called with a SearchProgress when a search begins.
        finished: Called with a SearchProgress and a Trial after every trial, including those of other workers.

    """

    opened: Callable[[SearchProgress], None] = _log_opened
    finished: Callable[[SearchProgress, Trial], None] = _log_finished
