"""Which of a search's trials is the best, and how they are ranked."""

import math
from collections.abc import Iterable

from optimizer.search.trials.trial import Trial, TrialState

__all__ = ["best_of", "completed", "ranked"]

# Similarities, and distances, that differ by no more than this are equal: rounding must not choose between recipes.
_EQUAL = 1e-9


def completed(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return those of `trials` that have a similarity."""
    return tuple(trial for trial in trials if trial.state == TrialState.COMPLETE)


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """Return the best of completed trials; None if there is none.

    Of trials whose similarities are within 1e-9 of the highest, that of the smallest |merged - target|, and of those
    that are equal in this, too, the first. A similarity may not see how far a merge goes, or differ by rounding alone.
    """
    listed = list(trials)
    highest = max(map(_similarity, listed), default=-math.inf)
    near = [trial for trial in listed if _similarity(trial) >= highest - _EQUAL]
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


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return completed trials, the best first, in the order that `best_of` has for each alone."""
    left, found = sorted(trials, key=lambda trial: (-_similarity(trial), trial.number)), []
    while left:
        # Only the first ones can be as good as the first.
        worst = _similarity(left[0]) - _EQUAL
        near = next((place for place, trial in enumerate(left) if _similarity(trial) < worst), len(left))
        best = best_of(left[:near])
        assert best is not None
        left.remove(best)
        found.append(best)
    return found


def _similarity(trial: Trial) -> float:
    return -math.inf if trial.similarity is None else trial.similarity


def _distance(trial: Trial) -> float | None:
    return trial.distance if trial.distance is not None and math.isfinite(trial.distance) else None
