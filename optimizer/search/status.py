"""What a study has done so far, read from its database; no checkpoint is needed."""

from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from optimizer.search.results import best_of, completed
from optimizer.search.storage import DATABASE, close_storage, open_storage
from optimizer.search.study import Study

__all__ = ["SearchStatus", "study_status"]


@dataclass(frozen=True)
class SearchStatus:
    """One Optuna study: trials by outcome, its budget of completed ones, the best similarity, seconds per trial."""

    search: str
    metric: str
    completed: int
    failed: int
    budget: int
    best: float | None
    best_trial: int | None
    seconds_per_trial: float | None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def study_status(study: Study) -> list[SearchStatus]:
    """The state of every search that the study will run, in order; of one begun anew, the newest generation's.

    Raises StudyError if the database cannot be read.
    """
    found: dict[str, list[optuna.trial.FrozenTrial]] = {}
    if (study.folder / DATABASE).exists():
        storage = open_storage(study.folder)
        try:
            for name in optuna.get_all_study_names(storage):
                found[name] = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
        finally:
            close_storage(storage)
    # Whether there is a further pass is known when the one before is done.
    expected = [
        (name, stage)
        for stage in study.stages
        for number in range(1, stage.passes + 1)
        for name, _, _ in stage.searches(number)
        if number == 1 or name in found
    ]
    return [_status(name, stage.metric, stage.trials, _newest(found, name)) for name, stage in expected]


def _newest(found: dict[str, list[optuna.trial.FrozenTrial]], name: str) -> list[optuna.trial.FrozenTrial]:
    generation = 2
    trials = found.get(name, [])
    while f"{name}@{generation}" in found:
        trials = found[f"{name}@{generation}"]
        generation += 1
    return trials


def _status(search: str, metric: str, budget: int, trials: list[optuna.trial.FrozenTrial]) -> SearchStatus:
    done = completed(trials)
    best = best_of(done)
    spent = [trial.duration.total_seconds() for trial in done if trial.duration is not None]
    return SearchStatus(
        search=search,
        metric=metric,
        completed=len(done),
        failed=sum(trial.state == TrialState.FAIL for trial in trials),
        budget=budget,
        best=None if best is None else best.values[0],
        best_trial=None if best is None else best.number,
        seconds_per_trial=sum(spent) / len(spent) if spent else None,
    )
