"""Lines of coefficients: what a search of one free alpha per block moves a block along."""

from dataclasses import dataclass

import torch

__all__ = ["ON_LINE", "Line", "find_line"]

# How far a point of coefficients may be from a line that it is said to be on. It moves no logit by more than 2e-9 of
# what a source's own are, a fraction of float32's rounding.
ON_LINE = 1e-9
# Points nearer to each other than this are no direction.
_APART = 1e-6


@dataclass(frozen=True)
class Line:
    """The points start + a * direction, float64 [k] both.

    `start` is the line's nearest point to zero and the largest entry of `direction` is 1, so that no point's matrices
    are differences of much larger ones, however far apart the points were that the line was found from.
    """

    start: torch.Tensor
    direction: torch.Tensor

    @classmethod
    def through(cls, one: torch.Tensor, other: torch.Tensor) -> "Line":
        """The line through two points that differ."""
        direction = other - one
        direction = direction / direction[direction.abs().argmax()]
        return cls(one - (one @ direction) / (direction @ direction) * direction, direction)

    def positions(self, points: torch.Tensor) -> torch.Tensor:
        """The a of each point's nearest point on the line: float64 [n] of [n, k]."""
        return (points - self.start) @ self.direction / (self.direction @ self.direction)

    def holds(self, points: torch.Tensor) -> torch.Tensor:
        """Which points lie on the line: bool [n] of [n, k]."""
        nearest = self.start + self.positions(points)[:, None] * self.direction
        return _distances(points, nearest) <= ON_LINE


def find_line(points: torch.Tensor) -> Line | None:
    """The line through the first two distinct of `points` [n, k], if a third one lies on it."""
    differs = _distances(points, points[:1]) > _APART
    if not differs.any():
        return None
    second = points[differs][0]
    line = Line.through(points[0], second)
    third = line.holds(points) & differs & (_distances(points, second) > _APART)
    return line if third.any() else None


def _distances(points: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (points - others).abs().amax(dim=1)
