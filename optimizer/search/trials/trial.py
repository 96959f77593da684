"""Records of trials, independent of the storage."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

__all__ = ["Scores", "Trial", "TrialState"]


class TrialState(StrEnum):
    """State of a trial; the values appear in trials.csv and in the logs."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAIL"
    LOST = "LOST"
    """The worker died before the trial was scored. It does not count, and its point is tried again."""


@dataclass(frozen=True)
class Scores:
    """The scores of a point.

    Attributes:
        similarity: The total similarity, in [-1, 1].
        blocks: The similarity of each scored block, in [-1, 1].
        distance: |merged - target| in units of |base - target|.

    """

    similarity: float
    blocks: Mapping[str, float]
    distance: float

    @property
    def lowest(self) -> float:
        """Similarity of the worst block; the total if no block is scored."""
        return min(self.blocks.values(), default=self.similarity)


@dataclass(frozen=True)
class Trial:
    """A point of a search, with its scores.

        best = fit(study).searches[0].best
        print(best.number, best.alphas["TEMP1.OUT03"], f"{best.similarity:.4%}")

    Attributes:
        number: The number of the trial, from 0 within the search.
        state: The state: running, complete, failed or lost.
        alphas: The point, {name of a free alpha: value}.
        similarity: The total similarity in [-1, 1]; None unless complete.
        block_scores: The similarity of each scored block in [-1, 1]; empty unless complete.
        distance: |merged - target| in units of |base - target|; None if not measured.
        origin: The sampler that proposed the point, `exact METRIC`, or `incumbent`; "" if unknown.
        worker: The name of the process that claimed it; None for a fit that worked alone.
        error: The reason of a failure; None unless failed.
        started: The start in local time, without a time zone.
        finished: The end in local time; None while running.
        fixed: The names of alphas with a single possible value.

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
        """Whether the trial has ended."""
        return self.state != TrialState.RUNNING

    @property
    def total(self) -> float:
        """Total similarity; NaN unless complete."""
        return math.nan if self.similarity is None else self.similarity

    @property
    def lowest(self) -> float | None:
        """Similarity of the worst block; the total if no block is scored; None unless complete."""
        return min(self.block_scores.values(), default=self.similarity)

    @property
    def seconds(self) -> float | None:
        """Duration in seconds; None while running."""
        if self.started is None or self.finished is None:
            return None
        return (self.finished - self.started).total_seconds()
