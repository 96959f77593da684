"""User attributes of Optuna's trials, and their conversion to `Trial` records."""

from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from optimizer.samplers import BLOCK_SCORES
from optimizer.search.trials.trial import Scores, Trial, TrialState

__all__ = [
    "BLOCK_SCORES",
    "DISTANCE",
    "ERROR",
    "LOST",
    "NOT_MEASURED",
    "ORIGIN",
    "WORKER",
    "attributes_of",
    "is_lost",
    "trial_of",
]

# User attributes of trials: the origin of the point; the reason of a failure; the mark of a dead worker; the name of
# the worker; |merged - target| in units of |base - target|. Samplers read `BLOCK_SCORES`, the similarities by block.
ORIGIN, ERROR, LOST, WORKER, DISTANCE = "origin", "error", "lost", "worker", "distance"
# The similarity of the worst block, as a number of its own because dashboards cannot plot a mapping.
_LOWEST = "lowest"
# User attribute of Optuna studies: the numbers of trials whose stored scores were wrong when scored again.
NOT_MEASURED = "blockfit:not_as_measured"


def attributes_of(scores: Scores) -> dict[str, Any]:
    """Return the user attributes of a trial with these scores."""
    return {BLOCK_SCORES: dict(scores.blocks), _LOWEST: scores.lowest, DISTANCE: scores.distance}


def is_lost(trial: FrozenTrial) -> bool:
    """Return whether a trial's worker died before it was scored; a completed trial is never lost."""
    return trial.state == OptunaState.FAIL and bool(trial.user_attrs.get(LOST))


def trial_of(trial: FrozenTrial) -> Trial:
    """Return the record of a trial that `CheckedTrials` has accepted."""
    known, complete = trial.user_attrs, trial.state == OptunaState.COMPLETE
    return Trial(
        number=trial.number,
        state=_state_of(trial),
        alphas=dict(trial.params),
        similarity=float(trial.values[0]) if complete else None,
        block_scores=dict(known[BLOCK_SCORES]) if complete else {},
        distance=known.get(DISTANCE),
        origin=known.get(ORIGIN, ""),
        worker=known.get(WORKER),
        error=known.get(ERROR),
        started=trial.datetime_start,
        finished=trial.datetime_complete,
        fixed=frozenset(name for name, values in trial.distributions.items() if values.single()),
    )


def _state_of(trial: FrozenTrial) -> TrialState:
    if not trial.state.is_finished():
        return TrialState.RUNNING
    if trial.state == OptunaState.COMPLETE:
        return TrialState.COMPLETE
    return TrialState.LOST if is_lost(trial) else TrialState.FAILED
