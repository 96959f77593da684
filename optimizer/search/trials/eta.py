"""The time that trials take, and an estimate for those that are left."""

from collections.abc import Sequence
from itertools import pairwise

from optimizer.search.trials.trial import Trial

__all__ = ["seconds_left", "seconds_per_trial"]

# The latest trials that the pace is taken from.
_LATEST = 20
# A gap between two trials of more than so many times the middle one was a pause between two runs.
_PAUSE = 10
# Seconds, a hundred years: more is what clocks that were wrong, or a stranger, have written down.
_LONGEST = 100 * 366 * 86400.0


def seconds_per_trial(done: Sequence[Trial]) -> float | None:
    """Return the mean time of completed trials in seconds, from start to end; None if there are none."""
    spent = [max(trial.seconds, 0.0) for trial in done if trial.seconds is not None]
    return sum(spent) / len(spent) if spent else None


def seconds_left(done: Sequence[Trial], budget: int) -> float | None:
    """Estimate the seconds left for a budget from the rate of the latest completed trials, all workers together.

    None if there are too few of `done`, the completed trials.
    """
    if len(done) >= budget:
        return 0.0
    ends = sorted(trial.finished for trial in done if trial.finished is not None)[-_LATEST:]
    gaps = sorted((later - earlier).total_seconds() for earlier, later in pairwise(ends))
    if not gaps:
        each = seconds_per_trial(done)
    else:
        longest = _PAUSE * gaps[len(gaps) // 2]
        each = sum(min(gap, longest) for gap in gaps) / len(gaps)
    left = None if each is None else each * (budget - len(done))
    return None if left is None or left > _LONGEST else left
