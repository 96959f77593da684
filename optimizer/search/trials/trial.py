"""A trial as everything above the storage sees it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

__all__ = ["Scores", "Trial", "TrialState"]


class TrialState(StrEnum):
    """How a trial stands; the values are the words of trials.csv and of the logs."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAIL"
    LOST = "LOST"
    """Its worker died before it was scored; it does not count, and another worker scores its point again."""


@dataclass(frozen=True)
class Scores:
    """The result of scoring a point: the total `similarity`, that of each block, and |merged - target|.

    Similarities lie in [-1, 1]; `distance` has |base - target| as its unit.
    """

    similarity: float
    blocks: Mapping[str, float]
    distance: float

    @property
    def lowest(self) -> float:
        """The similarity of the worst block; the total where no block is scored."""
        return min(self.blocks.values(), default=self.similarity)


@dataclass(frozen=True)
class Trial:
    """A point that a search tried, and its scores.

        best = fit(study).searches[0].best
        print(best.number, best.alphas["TEMP1.OUT03"], f"{best.similarity:.4%}")

    Attributes:
        number: Counted from 0 within the search.
        state: Whether it runs, is complete, failed or was lost.
        alphas: The point, {name of a parameter: value}.
        similarity: The total in [-1, 1]; None unless it is complete.
        block_scores: The similarity of each scored block in [-1, 1]; empty unless it is complete.
        distance: |merged - target| in units of |base - target|; None if it was not measured.
        origin: The sampler that proposed the point, or `exact METRIC`, or `incumbent`; "" if unknown.
        worker: The name of the process that claimed it; None if a fit worked alone.
        error: Why it failed; None if it did not.
        started: Local time, without a time zone.
        finished: Local time; None while it runs.
        fixed: The names of alphas that had one value to take.

    """

    number: int
    state: TrialState
    alphas: Mapping[str, float]
    similarity: float | None = None
    block_scores: Mapping[str, float] = field(default_factory=dict)
    distance: float | None = None
    origin: str = ""
    worker: str | None = None
    error: str | None = None
    started: datetime | None = None
    finished: datetime | None = None
    fixed: frozenset[str] = frozenset()

    @property
    def is_finished(self) -> bool:
        """Whether no worker is at it any more."""
        return self.state != TrialState.RUNNING

    @property
    def total(self) -> float:
        """The similarity; NaN without one."""
        return math.nan if self.similarity is None else self.similarity

    @property
    def lowest(self) -> float | None:
        """The similarity of the worst block; the total where no block is scored, None without one."""
        return min(self.block_scores.values(), default=self.similarity)

    @property
    def seconds(self) -> float | None:
        """The time from start to end; None while it runs."""
        if self.started is None or self.finished is None:
            return None
        return (self.finished - self.started).total_seconds()
