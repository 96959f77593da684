"""How long trials take, and how long those that are left will."""

from collections.abc import Sequence
from itertools import pairwise

from optuna.trial import FrozenTrial

__all__ = ["seconds_left", "seconds_per_trial"]

# The latest trials that the pace is taken from.
_LATEST = 20
# A gap between two trials of more than so many times the middle one was a pause between two runs.
_PAUSE = 10
# Seconds, a hundred years: more is what clocks that were wrong, or a stranger, have written down.
_LONGEST = 100 * 366 * 86400.0


def seconds_per_trial(done: Sequence[FrozenTrial]) -> float | None:
    """What a completed trial has taken on average, from its start to its end; None if there are none."""
    spent = [max(trial.duration.total_seconds(), 0.0) for trial in done if trial.duration is not None]
    return sum(spent) / len(spent) if spent else None


def seconds_left(done: Sequence[FrozenTrial], budget: int) -> float | None:
    """What the rest of a budget takes at the pace at which the latest trials were completed, by whatever workers.

    None if too few of `done`, the completed trials, are there to say.
    """
    if len(done) >= budget:
        return 0.0
    ends = sorted(trial.datetime_complete for trial in done if trial.datetime_complete is not None)[-_LATEST:]
    gaps = sorted((later - earlier).total_seconds() for earlier, later in pairwise(ends))
    if not gaps:
        each = seconds_per_trial(done)
    else:
        longest = _PAUSE * gaps[len(gaps) // 2]
        each = sum(min(gap, longest) for gap in gaps) / len(gaps)
    left = None if each is None else each * (budget - len(done))
    return None if left is None or left > _LONGEST else left
