"""Lines of coefficients: a search of one free alpha per block moves each block along a line."""

from dataclasses import dataclass

import torch

__all__ = ["ON_LINE", "Line", "find_line"]

# Largest distance from a line of coefficients that counts as on the line. It moves no logit by more than 2e-9 of a
# source's own logits, a fraction of float32 rounding.
ON_LINE = 1e-9
# Points nearer to each other than this give no direction.
_LEAST_DISTANCE = 1e-6


@dataclass(frozen=True)
class Line:
    """The points start + a * direction, float64 [k] both.

    `start` is the point of the line nearest to zero, and the largest entry of `direction` is 1. The matrices of a point
    are then never differences of much larger ones, for any points that the line was found from.
    """

    start: torch.Tensor
    direction: torch.Tensor

    @classmethod
    def through(cls, first: torch.Tensor, second: torch.Tensor) -> "Line":
        """Return the line through two distinct points."""
        direction = second - first
        direction = direction / direction[direction.abs().argmax()]
        return cls(first - (first @ direction) / (direction @ direction) * direction, direction)

    def positions(self, points: torch.Tensor) -> torch.Tensor:
        """Return the a of each point's nearest point on the line: float64 [n] of [n, k]."""
        return (points - self.start) @ self.direction / (self.direction @ self.direction)

    def holds(self, points: torch.Tensor) -> torch.Tensor:
        """Return which points lie on the line: bool [n] of [n, k]."""
        nearest = self.start + self.positions(points)[:, None] * self.direction
        return _distances(points, nearest) <= ON_LINE


def find_line(points: torch.Tensor) -> Line | None:
    """Return the line through the first two distinct of `points` [n, k] if a third point lies on it, else None."""
    differs = _distances(points, points[:1]) > _LEAST_DISTANCE
    if not differs.any():
        return None
    second = points[differs][0]
    line = Line.through(points[0], second)
    third = line.holds(points) & differs & (_distances(points, second) > _LEAST_DISTANCE)
    return line if third.any() else None


def _distances(points: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (points - others).abs().amax(dim=1)
