"""A candidate's attention logits Q K' from its coefficients, by the cheapest way there is.

Queries and keys are linear in the coefficients, so the logits are a quadratic form of them:

    Q K' = sum_k sum_l c_k c_l Q_k K_l'

Along a line of coefficients, c = start + a * direction, that is a quadratic in the one number a,

    Q K' = S0 + a * S1 + a^2 * S2

A search of one free alpha per block moves every block along such a line, and three matrices, made once, are all that
it needs. Off the line, the terms Q_k K_l' are added up where there is memory to keep them, and where there is not, one
product is computed for each candidate.

Logits are given in units of log 2, as powers of 2 need them. The factor goes into the coefficients while they are still
float64, so that it rounds nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch

from optimizer.similarity.lines import Line, find_line

__all__ = ["LOG2_E", "Lined", "LogitSource", "Logits", "Products", "Stack", "Sum", "Terms", "Whole"]

LOG2_E = 1 / math.log(2)

# Up to so many terms are added up sooner than the calls for a product are made, however narrow the block is.
_FEW_TERMS = 400


# --- Projections ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """One of to_q, to_k, to_v of the sources that hold it, projected: float32 [holders, ...].

    `row` is its group in coefficients.
    """

    row: int
    holders: tuple[int, ...]
    projected: torch.Tensor

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The holders' coefficients, float64 [n, holders], of all coefficients [n, groups, sources]."""
        return coefficients[:, self.row, self._positions]

    @cached_property
    def _positions(self) -> torch.Tensor:
        return torch.tensor(self.holders, dtype=torch.long)

    def combine(self, points: torch.Tensor) -> torch.Tensor:
        """The projections of candidates at `points` [n, holders]: float32 [n, ...]."""
        flat = points.to(self.projected.device, torch.float32) @ self.projected.flatten(1)
        return flat.view(len(points), *self.projected.shape[1:])


# --- Logits of several candidates -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sum:
    """Logits [n, d, d] that are not computed yet: `weights` float32 [n, m] times `matrices` float32 [m, d * d]."""

    weights: torch.Tensor
    matrices: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, matrices: torch.Tensor) -> "Sum":
        """The logits in units of log 2, by float64 `weights` and matrices that are not."""
        return cls((weights * LOG2_E).to(matrices.device, torch.float32), matrices)

    def rows(self, candidates: slice, rows: slice, buffer: torch.Tensor) -> torch.Tensor:
        """Some rows for some candidates, [candidates, rows, d], in `buffer`, float32 [at least as many numbers]."""
        width = math.isqrt(self.matrices.shape[1])
        weights = self.weights[candidates]
        matrices = self.matrices.view(-1, width, width)[:, rows].flatten(1)
        logits = buffer[: len(weights) * matrices.shape[1]].view(len(weights), -1)
        return torch.mm(weights, matrices, out=logits).view(len(weights), -1, width)


@dataclass(frozen=True)
class Whole:
    """Logits [n, d, d] that are there."""

    logits: torch.Tensor

    def rows(self, candidates: slice, rows: slice, buffer: torch.Tensor) -> torch.Tensor:
        """Some rows for some candidates, [candidates, rows, d]: not a copy."""
        return self.logits[candidates, rows]


Logits = Sum | Whole


# --- Where logits come from -------------------------------------------------------------------------------------------


class LogitSource(Protocol):
    """Logits anywhere, and the three matrices of a line; points [n, k] are what the logits depend on."""

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The points, float64 [n, k], of coefficients float64 [n, groups, sources]."""
        ...

    def logits(self, points: torch.Tensor, batch: int) -> Iterator[Logits]:
        """The logits at `points`, in order, no more than `batch` candidates' at a time if they are computed here."""
        ...

    def write_line(self, line: Line, out: torch.Tensor) -> None:
        """Write S0, S1 and S2 into `out`, float32 [3, d * d]."""
        ...


@dataclass(frozen=True)
class Products:
    """One block's logits, as a product for each candidate. A point is the queries' coefficients and the keys'."""

    query: Stack
    key: Stack

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The points, float64 [n, k], of coefficients float64 [n, groups, sources]."""
        return torch.cat([self.query.points(coefficients), self.key.points(coefficients)], dim=1)

    def logits(self, points: torch.Tensor, batch: int) -> Iterator[Logits]:
        """The logits at `points`, `batch` at a time."""
        for start in range(0, len(points), batch):
            queries, keys = self._combine(points[start : start + batch], LOG2_E)
            yield Whole(queries @ keys.transpose(1, 2))

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
    """One block's logits, from their terms: Q_k K_k', and for k < l the sum Q_k K_l' + Q_l K_k'.

    Terms that no candidate has needed yet are zeros, which take no memory until they are written. A candidate's value
    does not depend on who came before it: terms that others needed have the coefficient 0 for it.
    """

    def __init__(self, query: Stack, key: Stack) -> None:
        """Of stacks with the same holders, whose coefficients then are the same; the terms are [pairs, d * d]."""
        self._query, self._key = query, key
        self._first, self._second = torch.triu_indices(len(query.holders), len(query.holders))
        self._terms = torch.zeros(len(self._first), query.projected[0].numel())
        self._unknown = set(range(len(self._first)))

    @staticmethod
    def pay(query: Stack) -> bool:
        """Whether a candidate's logits are sooner added up from the terms than computed as a product.

        The terms are as many as pairs of sources: of 25 sources they are as good in a block of width 320, of 500 they
        take a hundred times as long.
        """
        count, width = query.projected.shape[:2]
        return count * (count + 1) // 2 <= max(_FEW_TERMS, 2 * count + width)

    @staticmethod
    def bytes(query: Stack) -> int:
        """How much memory the terms take at most."""
        count = len(query.holders)
        return 4 * query.projected[0].numel() * count * (count + 1) // 2

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The points, float64 [n, holders], of coefficients float64 [n, groups, sources]."""
        return self._query.points(coefficients)

    def logits(self, points: torch.Tensor, batch: int) -> Iterator[Logits]:
        """The logits at `points`, all at once."""
        weights = points[:, self._first] * points[:, self._second]
        self._know(weights)
        yield Sum.of(weights, self._terms)

    def write_line(self, line: Line, out: torch.Tensor) -> None:
        """Write S0, S1 and S2 into `out`, float32 [3, d * d]."""
        start, direction = line.start, line.direction
        mixed = start[self._first] * direction[self._second] + direction[self._first] * start[self._second]
        mixed[self._first == self._second] = 2 * start * direction
        constant, quadratic = (each[self._first] * each[self._second] for each in (start, direction))
        weights = torch.stack([constant, mixed, quadratic])
        self._know(weights)
        torch.mm(weights.to(torch.float32), self._terms, out=out)

    def _know(self, weights: torch.Tensor) -> None:
        """Compute the terms that have one of these weights [n, pairs] and are not known yet."""
        for index in self._unknown & set(weights.any(dim=0).nonzero()[:, 0].tolist()):
            self._compute(index)

    def _compute(self, index: int) -> None:
        queries, keys = self._query.projected, self._key.projected
        one, other = int(self._first[index]), int(self._second[index])
        term = self._terms[index].view(queries.shape[1:])
        torch.mm(queries[one], keys[other].T, out=term)
        if one != other:
            term.addmm_(queries[other], keys[one].T)
        self._unknown.remove(index)
        if not self._unknown:
            # The terms hold all that the projections did.
            nothing = torch.empty(0)
            self._query, self._key = replace(self._query, projected=nothing), replace(self._key, projected=nothing)


class Lined:
    """The logits of a source, and those on one line of coefficients from three matrices."""

    def __init__(self, source: LogitSource, matrices: torch.Tensor | None) -> None:
        """`matrices`, float32 [3, d * d], is where the line's are kept; without it there is no line."""
        self._source = source
        self._matrices = matrices
        self._line: Line | None = None

    @staticmethod
    def bytes(width: int) -> int:
        """How much memory the matrices take."""
        return 3 * 4 * width * width

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Take the line that these [n, groups, sources] lie on, three at least, in place of the one before; or none."""
        # Not the new one's before its matrices are there: writing them may be interrupted.
        self._line = None
        line = find_line(self._source.points(coefficients))
        if line is not None and self._matrices is not None:
            self._source.write_line(line, self._matrices)
            self._line = line

    def logits(self, coefficients: torch.Tensor, batch: int) -> Iterator[tuple[torch.Tensor, Logits]]:
        """Logits of coefficients [n, groups, sources], with the positions int64 of the candidates that they are of.

        Valid until the next call.
        """
        points = self._source.points(coefficients)
        on_line = torch.zeros(len(points), dtype=torch.bool) if self._line is None else self._line.holds(points)
        if (on := on_line.nonzero()[:, 0]).numel():
            assert self._line is not None
            assert self._matrices is not None
            positions = self._line.positions(points[on])
            weights = torch.stack([torch.ones_like(positions), positions, positions.square()], dim=1)
            yield on, Sum.of(weights, self._matrices)
        if (off := (~on_line).nonzero()[:, 0]).numel():
            done = 0
            for logits in self._source.logits(points[off], batch):
                count = len(logits.weights if isinstance(logits, Sum) else logits.logits)
                yield off[done : done + count], logits
                done += count
