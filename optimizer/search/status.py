"""The progress of a study, read from the storage of its trials; no checkpoint is needed."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from optimizer.search.trials import (
    SearchTrials,
    TrialState,
    Worker,
    best_of,
    completed,
    search_trials,
    seconds_left,
    seconds_per_trial,
)
from optimizer.studies import Study

__all__ = ["SearchStatus", "StudyStatus", "study_status"]


@dataclass(frozen=True)
class SearchStatus:
    """One search: its trials by outcome, its budget of completed ones, the best similarity, seconds per trial.

    `budget` is that of the fits that are under way, or of the last one; see `budgets.budget_of`. `lost` are trials
    whose workers died; they do not count. `seconds_per_trial` is the mean of completed trials, `seconds_left` an
    estimate at the current rate of all workers; None if unknown.
    """

    search: str
    step: str
    metric: str
    completed: int
    running: int
    failed: int
    lost: int
    budget: int
    best: float | None
    best_trial: int | None
    seconds_per_trial: float | None
    seconds_left: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class StudyStatus:
    """The searches of a study in the order in which they run, and the workers that are at them now.

    `seconds_left` estimates the time for all searches, None if no worker runs or it is unknown; `ends` is the end that
    follows from it, in local time. `notes` are lines on trials that do not count.
    """

    searches: tuple[SearchStatus, ...]
    workers: tuple[Worker, ...]
    seconds_left: float | None
    ends: datetime | None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return {
            "searches": [search.as_dict() for search in self.searches],
            "workers": [asdict(worker) for worker in self.workers],
            "seconds_left": self.seconds_left,
            "ends": None if self.ends is None else self.ends.astimezone().isoformat(timespec="seconds"),
            "notes": list(self.notes),
        }


def study_status(study: Study, storage: str | None = None) -> StudyStatus:
    """Return the state of every search that the study will run, in the generation that was searched last.

        for search in study_status(load_study("my-study", with_files=False)).searches:
            print(search.search, search.completed, search.budget)

    Raises StudyError if the storage, by default the file in the study's folder, cannot be read.
    """
    searched, living = search_trials(study, storage)
    searches = [_status(one) for one in searched]
    left = [search.seconds_left for search in searches]
    known = [seconds for seconds in left if seconds is not None]
    seconds = sum(known) if living and len(known) == len(left) else None
    ends = None if seconds is None else datetime.now() + timedelta(seconds=seconds)
    notes = tuple(note for one in searched for note in one.notes)
    return StudyStatus(tuple(searches), living, seconds, ends, notes)


def _status(search: SearchTrials) -> SearchStatus:
    trials, stage = search.trials, search.stage
    done = completed(trials)
    best = best_of(done)
    return SearchStatus(
        search=search.name,
        step=search.step,
        metric=stage.metric,
        completed=len(done),
        running=sum(not trial.is_finished for trial in trials),
        failed=sum(trial.state == TrialState.FAILED for trial in trials),
        lost=sum(trial.state == TrialState.LOST for trial in trials),
        budget=stage.trials,
        best=None if best is None else best.similarity,
        best_trial=None if best is None else best.number,
        seconds_per_trial=seconds_per_trial(done),
        seconds_left=seconds_left(done, stage.trials),
    )
