"""The duration of trials, and an estimate of the time left."""

from collections.abc import Sequence
from itertools import pairwise

from optimizer.search.trials.trial import Trial

__all__ = ["seconds_left", "seconds_per_trial"]

# The number of latest trials that give the rate.
_LATEST = 20
# A gap longer than this many times the median gap is a pause between two runs.
_PAUSE = 10
# Seconds in a hundred years: a longer estimate comes from wrong clocks or a faulty file.
_LONGEST = 100 * 366 * 86400.0


def seconds_per_trial(done: Sequence[Trial]) -> float | None:
    """Return the mean duration of completed trials in seconds; None without any."""
    spent = [max(trial.seconds, 0.0) for trial in done if trial.seconds is not None]
    return sum(spent) / len(spent) if spent else None


def seconds_left(done: Sequence[Trial], budget: int) -> float | None:
    """Estimate the seconds left for a budget from the rate of the latest completed trials, all workers together.

    Args:
        done: The completed trials.
        budget: The number of completed trials to reach.

    Returns:
        The estimate in seconds; None for too few trials, or beyond a hundred years.

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
