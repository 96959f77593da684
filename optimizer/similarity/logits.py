"""A candidate's attention logits Q K' from its coefficients, computed in the cheapest way.

Queries and keys are linear in the coefficients, so the logits are a quadratic form of them:

    Q K' = sum_k sum_l c_k c_l Q_k K_l'

Along a line of coefficients, c = start + a * direction, that is a quadratic in the one number a,

    Q K' = S0 + a * S1 + a^2 * S2

A search of one free alpha per block moves every block along such a line, and needs only three matrices, which are made
once. Off the line, the terms Q_k K_l' are added up if there is memory to keep them. Otherwise one product is computed
for each candidate.

Logits are in units of log 2, for powers of 2. The factor multiplies the coefficients while they are still float64, so
it rounds nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch

from optimizer.similarity.lines import Line, find_line

__all__ = ["LOG2_E", "AlongLine", "Dense", "LogitSource", "Logits", "Products", "Stack", "Terms", "WeightedSum"]

LOG2_E = 1 / math.log(2)

# Up to this many terms, their sum is faster than the calls of a product, however narrow the block is.
_FEW_TERMS = 400


# --- Projections ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Projections by to_q, to_k or to_v of the sources that hold it: float32 [holders, ...].

    `row` is its group's row of coefficients.
    """

    row: int
    holders: tuple[int, ...]
    projected: torch.Tensor

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the holders' coefficients, float64 [n, holders], of all coefficients [n, groups, sources]."""
        return coefficients[:, self.row, self._positions]

    @cached_property
    def _positions(self) -> torch.Tensor:
        return torch.tensor(self.holders, dtype=torch.long)

    def combine(self, points: torch.Tensor) -> torch.Tensor:
        """Return the projections of candidates at `points` [n, holders]: float32 [n, ...]."""
        flat = points.to(self.projected.device, torch.float32) @ self.projected.flatten(1)
        return flat.view(len(points), *self.projected.shape[1:])


# --- Logits of several candidates -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightedSum:
    """Logits [n, d, d] not computed yet: `weights` float32 [n, m] times `matrices` float32 [m, d * d]."""

    weights: torch.Tensor
    matrices: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, matrices: torch.Tensor) -> "WeightedSum":
        """Return the logits in units of log 2 by float64 `weights`, of matrices in units of 1."""
        return cls((weights * LOG2_E).to(matrices.device, torch.float32), matrices)

    def rows(self, candidates: slice, rows: slice, buffer: torch.Tensor) -> torch.Tensor:
        """Return some rows of the logits of some candidates, computed into a buffer.

        Args:
            candidates: The candidates.
            rows: The rows.
            buffer: Memory for the result, float32, at least as many numbers.

        Returns:
            Logits, float32 [candidates, rows, d], a view of `buffer`.
        """
        width = math.isqrt(self.matrices.shape[1])
        weights = self.weights[candidates]
        matrices = self.matrices.view(-1, width, width)[:, rows].flatten(1)
        logits = buffer[: len(weights) * matrices.shape[1]].view(len(weights), -1)
        return torch.mm(weights, matrices, out=logits).view(len(weights), -1, width)


@dataclass(frozen=True)
class Dense:
    """Materialised logits [n, d, d]."""

    logits: torch.Tensor

    def rows(self, candidates: slice, rows: slice, buffer: torch.Tensor) -> torch.Tensor:
        """Return some rows of the logits of some candidates, [candidates, rows, d], as a view."""
        return self.logits[candidates, rows]


Logits = WeightedSum | Dense


# --- Sources of logits ------------------------------------------------------------------------------------------------


class LogitSource(Protocol):
    """Logits at any points [n, k], the numbers they depend on; and the three matrices of a line."""

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the points, float64 [n, k], of coefficients float64 [n, groups, sources]."""
        ...

    def logits(self, points: torch.Tensor, batch: int) -> Iterator[Logits]:
        """Yield the logits at `points`, in order; at most `batch` candidates at a time if they are computed here."""
        ...

    def write_line(self, line: Line, out: torch.Tensor) -> None:
        """Write S0, S1 and S2 into `out`, float32 [3, d * d]."""
        ...


@dataclass(frozen=True)
class Products:
    """Logits of one block by one product for each candidate. A point is the queries' and the keys' coefficients."""

    query: Stack
    key: Stack

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the points, float64 [n, k], of coefficients float64 [n, groups, sources]."""
        return torch.cat([self.query.points(coefficients), self.key.points(coefficients)], dim=1)

    def logits(self, points: torch.Tensor, batch: int) -> Iterator[Logits]:
        """Yield the logits at `points`, `batch` candidates at a time."""
        for start in range(0, len(points), batch):
            queries, keys = self._combine(points[start : start + batch], LOG2_E)
            yield Dense(queries @ keys.transpose(1, 2))

    def write_line(self, line: Line, out: torch.Tensor) -> None:
        """Write S0, S1 and S2 into `out`, float32 [3, d * d]."""
        queries, keys = self._combine(torch.stack([line.start, line.direction]))
        matrices = out.view(3, *queries.shape[1:])
        torch.mm(queries[0], keys[0].T, out=matrices[0])
        torch.mm(queries[0], keys[1].T, out=matrices[1]).addmm_(queries[1], keys[0].T)
        torch.mm(queries[1], keys[1].T, out=matrices[2])

    def _combine(self, points: torch.Tensor, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(self.query.holders)
        return self.query.combine(points[:, :count] * factor), self.key.combine(points[:, count:])


class Terms:
    """Logits of one block as a sum of terms: Q_k K_k', and Q_k K_l' + Q_l K_k' for k < l.

    Terms that no candidate has needed yet are zeros, which take no memory until they are written. Earlier candidates do
    not change a candidate's value: the terms that only they needed have the weight 0 in it.
    """

    def __init__(self, query: Stack, key: Stack) -> None:
        """Create terms [pairs, d * d] of stacks with the same holders, hence with the same coefficients."""
        self._query, self._key = query, key
        self._first, self._second = torch.triu_indices(len(query.holders), len(query.holders))
        self._terms = torch.zeros(len(self._first), query.projected[0].numel())
        self._unknown = set(range(len(self._first)))

    @staticmethod
    def is_cheaper(query: Stack) -> bool:
        """Return whether adding up the terms is cheaper than computing a product for each candidate.

        There is a term for each pair of sources. In a block of width 320, the terms of 25 sources take as long as a
        product, and those of 500 sources a hundred times as long.

        Args:
            query: Projected queries of the block.

        Returns:
            Whether to use terms.
        """
        count, width = query.projected.shape[:2]
        return count * (count + 1) // 2 <= max(_FEW_TERMS, 2 * count + width)

    @staticmethod
    def bytes(query: Stack) -> int:
        """Return how many bytes the terms take at most."""
        count = len(query.holders)
        return 4 * query.projected[0].numel() * count * (count + 1) // 2

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the points, float64 [n, holders], of coefficients float64 [n, groups, sources]."""
        return self._query.points(coefficients)

    def logits(self, points: torch.Tensor, batch: int) -> Iterator[Logits]:
        """Yield the logits at `points`, all at once."""
        weights = points[:, self._first] * points[:, self._second]
        self._compute_missing(weights)
        yield WeightedSum.of(weights, self._terms)

    def write_line(self, line: Line, out: torch.Tensor) -> None:
        """Write S0, S1 and S2 into `out`, float32 [3, d * d]."""
        start, direction = line.start, line.direction
        mixed = start[self._first] * direction[self._second] + direction[self._first] * start[self._second]
        mixed[self._first == self._second] = 2 * start * direction
        constant, quadratic = (each[self._first] * each[self._second] for each in (start, direction))
        weights = torch.stack([constant, mixed, quadratic])
        self._compute_missing(weights)
        torch.mm(weights.to(torch.float32), self._terms, out=out)

    def _compute_missing(self, weights: torch.Tensor) -> None:
        """Compute the unknown terms that have a non-zero weight in `weights` [n, pairs]."""
        for index in self._unknown & set(weights.any(dim=0).nonzero()[:, 0].tolist()):
            self._compute(index)

    def _compute(self, index: int) -> None:
        queries, keys = self._query.projected, self._key.projected
        first, second = int(self._first[index]), int(self._second[index])
        term = self._terms[index].view(queries.shape[1:])
        torch.mm(queries[first], keys[second].T, out=term)
        if first != second:
            term.addmm_(queries[second], keys[first].T)
        self._unknown.remove(index)
        if not self._unknown:
            # The terms replace the projections.
            nothing = torch.empty(0)
            self._query, self._key = replace(self._query, projected=nothing), replace(self._key, projected=nothing)


class AlongLine:
    """The logits of a source, computed on one line of coefficients from three matrices."""

    def __init__(self, source: LogitSource, matrices: torch.Tensor | None) -> None:
        """Use `matrices`, float32 [3, d * d], as memory of the line's matrices; with None there is no line."""
        self._source = source
        self._matrices = matrices
        self._line: Line | None = None

    @staticmethod
    def bytes(width: int) -> int:
        """Return how many bytes the matrices take."""
        return 3 * 4 * width * width

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Replace the line by the one through these coefficients [n, groups, sources], n at least 3, or by none."""
        # No line until its matrices are written: writing may be interrupted.
        self._line = None
        line = find_line(self._source.points(coefficients))
        if line is not None and self._matrices is not None:
            self._source.write_line(line, self._matrices)
            self._line = line

    def logits(self, coefficients: torch.Tensor, batch: int) -> Iterator[tuple[torch.Tensor, Logits]]:
        """Yield the logits of candidates; valid until the next call.

        Args:
            coefficients: Coefficients, float64 [n, groups, sources].
            batch: Most candidates of dense logits.

        Yields:
            Positions of some candidates, int64 [m], and their logits.
        """
        points = self._source.points(coefficients)
        on_line = torch.zeros(len(points), dtype=torch.bool) if self._line is None else self._line.holds(points)
        if (on := on_line.nonzero()[:, 0]).numel():
            assert self._line is not None
            assert self._matrices is not None
            positions = self._line.positions(points[on])
            weights = torch.stack([torch.ones_like(positions), positions, positions.square()], dim=1)
            yield on, WeightedSum.of(weights, self._matrices)
        if (off := (~on_line).nonzero()[:, 0]).numel():
            done = 0
            for logits in self._source.logits(points[off], batch):
                count = len(logits.weights if isinstance(logits, WeightedSum) else logits.logits)
                yield off[done : done + count], logits
                done += count
