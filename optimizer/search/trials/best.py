"""The best trial of a search, and the ranking of trials."""

import math
from collections.abc import Iterable

from optimizer.search.trials.trial import Trial, TrialState

__all__ = ["best_of", "completed", "ranked"]

# Similarities, or distances, within this difference count as equal, so that rounding does not choose a recipe.
_EQUAL = 1e-9


def completed(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return the trials that have a similarity."""
    return tuple(trial for trial in trials if trial.state == TrialState.COMPLETE)


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """Return the best of completed trials.

    Similarities within 1e-9 of the highest count as equal. Among these trials the smallest |merged - target| wins,
    then the lowest number. A similarity may ignore the length of a difference, and may differ by rounding alone.

    Args:
        trials: The completed trials.

    Returns:
        The best trial; None for no trials.

    """
    listed = list(trials)
    highest = max(map(_similarity, listed), default=-math.inf)
    near = [trial for trial in listed if _similarity(trial) >= highest - _EQUAL]
    distances = [_distance(trial) for trial in near]
    # Earlier versions did not measure distances; the number alone decides then.
    if None not in distances:
        least = min((distance for distance in distances if distance is not None), default=0.0)
        near = [
            trial
            for trial, distance in zip(near, distances, strict=True)
            if distance is not None and distance <= least + _EQUAL
        ]
    return min(near, key=lambda trial: trial.number, default=None)


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return completed trials, the best first: each is the `best_of` those that remain."""
    left, found = sorted(trials, key=lambda trial: (-_similarity(trial), trial.number)), []
    while left:
        # Only trials with a similarity near the first one's compete for the next place.
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
