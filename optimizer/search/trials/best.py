"""Which of a search's trials is the best, and how they are ranked."""

import math
from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

__all__ = ["DISTANCE", "best_of", "completed", "ranked"]

DISTANCE = "distance"
"""The user attribute of a trial that holds |merged - target|, in units of |base - target|."""

# Similarities, and distances, that differ by no more than this are equal: rounding must not choose between recipes.
_EQUAL = 1e-9


def completed(trials: Iterable[FrozenTrial]) -> tuple[FrozenTrial, ...]:
    """Those of `trials` that have a value."""
    return tuple(trial for trial in trials if trial.state == TrialState.COMPLETE)


def best_of(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the best of completed trials; None if there is none.

    Of trials whose similarities are within 1e-9 of the highest, that of the smallest |merged - target|, and of those
    that are equal in this, too, the first. A similarity may not see how far a merge goes, or differ by rounding alone.
    """
    listed = list(trials)
    highest = max((trial.values[0] for trial in listed), default=-math.inf)
    near = [trial for trial in listed if trial.values[0] >= highest - _EQUAL]
    distances = [_distance(trial) for trial in near]
    # Trials of versions that did not measure it are told apart by their numbers.
    if None not in distances:
        least = min((distance for distance in distances if distance is not None), default=0.0)
        near = [
            trial
            for trial, distance in zip(near, distances, strict=True)
            if distance is not None and distance <= least + _EQUAL
        ]
    return min(near, key=lambda trial: trial.number, default=None)


def ranked(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return completed trials, the best first, in the order that `best_of` has for each alone."""
    left, found = sorted(trials, key=lambda trial: (-trial.values[0], trial.number)), []
    while left:
        # Only the first ones can be as good as the first.
        near = next((place for place, one in enumerate(left) if one.values[0] < left[0].values[0] - _EQUAL), len(left))
        best = best_of(left[:near])
        assert best is not None
        left.remove(best)
        found.append(best)
    return found


def _distance(trial: FrozenTrial) -> float | None:
    distance = trial.user_attrs.get(DISTANCE)
    if not isinstance(distance, int | float) or isinstance(distance, bool) or not math.isfinite(distance):
        return None
    return float(distance)
