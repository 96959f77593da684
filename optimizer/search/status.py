"""The progress of a study, read from the storage of its trials, without its checkpoints."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from optimizer.errors import InputError
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
from optimizer.studies import Study, best_recipe

__all__ = ["SearchStatus", "StudyStatus", "study_status"]


@dataclass(frozen=True)
class SearchStatus:
    """The progress of one search.

    Attributes:
        search: The name of the search.
        step: The step that it scores.
        metric: The metric of its stage.
        completed: The number of completed trials.
        running: The number of running trials.
        failed: The number of failed trials.
        lost: The number of trials whose workers died; they do not count.
        budget: The number of completed trials to reach in the running fits, or in the last one; see `budget_of`.
        best: The best similarity, in [-1, 1]; None without a completed trial.
        best_trial: The number of the best trial.
        seconds_per_trial: The mean of completed trials; None without any.
        seconds_left: An estimate at the current rate of all workers; None if unknown.

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
    """The progress of a study.

    Attributes:
        searches: The searches in the order in which they run.
        workers: The workers that search now.
        seconds_left: An estimate for all searches; None if no worker runs or if unknown.
        ends: The expected end in local time, from `seconds_left`.
        notes: One line for each reason why trials do not count.
        verdict: The verdict that the last fit noted in best.yaml; None without one.

    """

    searches: tuple[SearchStatus, ...]
    workers: tuple[Worker, ...]
    seconds_left: float | None
    ends: datetime | None
    notes: tuple[str, ...] = ()
    verdict: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return {
            "verdict": None if self.verdict is None else {"text": self.verdict},
            "searches": [search.as_dict() for search in self.searches],
            "workers": [asdict(worker) for worker in self.workers],
            "seconds_left": self.seconds_left,
            "ends": None if self.ends is None else self.ends.astimezone().isoformat(timespec="seconds"),
            "notes": list(self.notes),
        }


def study_status(study: Study, storage: str | None = None) -> StudyStatus:
    """Return the progress of every search of the study, in its latest generation.

        for search in study_status(load_study("my-study", with_files=False)).searches:
            print(search.search, search.completed, search.budget)

    StudyError passes through if the storage cannot be read.

    Args:
        study: The study; its checkpoints may be missing.
        storage: The storage of the trials; by default the file in the study's folder.

    Returns:
        The progress.

    """
    searched, living = search_trials(study, storage)
    searches = [_status(search) for search in searched]
    left = [search.seconds_left for search in searches]
    known = [seconds for seconds in left if seconds is not None]
    seconds = sum(known) if living and len(known) == len(left) else None
    ends = None if seconds is None else datetime.now() + timedelta(seconds=seconds)
    notes = tuple(note for search in searched for note in search.notes)
    return StudyStatus(tuple(searches), living, seconds, ends, notes, _noted_verdict(study))


def _noted_verdict(study: Study) -> str | None:
    try:
        recipe = best_recipe(study)
    except InputError:
        return None  # the progress is known without it
    return None if recipe is None else recipe.noted.verdict


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
