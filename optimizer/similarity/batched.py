"""The attention metric in the form that is fast on a GPU: blocks of equal width together, in few large operations.

Starting an operation takes about 5 microseconds at any size, and so does fetching a result. No step here
therefore depends on a number that is on the GPU: the host decides in float64 which candidates lie on the prepared line,
sends the weights of a call in one copy, and fetches all similarities in one copy.

Blocks of one width whose queries, keys and values come from the same sources form a `Family`. The first axis of its
tensors counts its `units`, the blocks under each random input. The logits of m candidates are float32 [m, units, d, d],
one product of small weights with one of these:

    lines   [units, 3, d * d]       S0, S1 and S2 of the prepared line (see `logits`). A block that the line does not
                                    move has a line of one point, with S1 and S2 zero
    terms   [units, pairs, d * d]   Q_k K_l' + Q_l K_k', off the line, if they are few and fit into memory
    Q, K    [units, sources, d * d] off the line otherwise: added up and multiplied for each candidate

Logits cross the GPU's memory seven times: they are written, read and written by the softmax and by the product with the
values, read for the norms of the rows, and read for the products with the target's rows. They are exponents of e,
as torch's softmax expects; its denominators cancel in a cosine.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.similarity.lines import ON_LINE, find_line
from optimizer.similarity.memory import free_memory, in_batches, out_of_memory

__all__ = ["BatchedAttention", "Family", "Member"]

# Shares (0 to 1) of a GPU's free memory: of one batch of candidates, and of all lines and terms together.
_BATCH_SHARE, _KEPT_SHARE = 0.5, 0.25
# Number of logits of one batch: 1 GiB in float32. The start of an operation costs nothing beside so many.
_MOST_LOGITS = 1 << 28
# Up to this many logits (64 MiB) are scored without asking for the GPU's free memory, which takes as long as scoring
# them.
_FEW_LOGITS = 1 << 24
# Terms are kept if there are at most d / _FEW_TERMS pairs of sources. They take one multiplication for each pair and
# logit, and are read once a batch; a product takes d multiplications for each logit.
_FEW_TERMS = 4
# Slices of a buffer begin at multiples of this many numbers: products read fastest from aligned memory.
_ALIGNMENT = 64
# From this many bytes on, a copy from pinned memory saves more time than pinning costs.
_WORTH_PINNING = 1 << 16

_TINY = torch.finfo(torch.float32).tiny

# The host's work for one candidate is small, and numpy starts an operation several times as fast as torch.
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """A block of a family: its position among the scored blocks, its width, and rows and holders of its q, k and v."""

    column: int
    width: int
    rows: tuple[int, int, int]
    holders: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Family:
    """Blocks of one width d with the same holders, under each of `seeds` random inputs: units = seeds * blocks.

    The unit of block b under input s is s * blocks + b. The caller fills the tensors, then calls `settle`.

    Attributes:
        queries: Projected queries of the sources, float32 [units, holders, d * d] on the device; `keys` likewise.
        values: Projected and summed values of the sources, float32 [units, holders, d].
        targets: Outputs of the target, float32 [units, d, d], each row divided by its norm.
        columns: Positions of the blocks among those scored.
    """

    def __init__(self, members: Sequence[Member], seeds: int, device: torch.device) -> None:
        first, *others = members
        assert all((first.width, first.holders) == (other.width, other.holders) for other in others)
        self.members, self.seeds, self.width, self.holders = tuple(members), seeds, first.width, first.holders
        self.units = seeds * len(self.members)
        of_query, of_key, of_value = map(len, self.holders)
        square = self.width**2
        self.queries = torch.empty(self.units, of_query, square, device=device)
        self.keys = torch.empty(self.units, of_key, square, device=device)
        self.values = torch.empty(self.units, of_value, self.width, device=device)
        self.targets = torch.empty(self.units, self.width, self.width, device=device)
        self.terms: torch.Tensor | None = None
        self.lines: torch.Tensor | None = None
        self._first, self._second = np.triu_indices(of_query)
        self._taken = [np.array(held) for held in self.holders]
        self.columns = np.array([member.column for member in self.members])

    def settle(self, spare: int, *, keep_terms: bool) -> int:
        """Allocate the lines, and compute the terms if they are few, within `spare` bytes.

        Terms replace queries and keys, which are freed. A tensor that does not fit into the GPU's memory is left out.

        Args:
            spare: Memory that lines and terms may take, in bytes.
            keep_terms: Whether terms may be kept.

        Returns:
            The rest of `spare`, in bytes.
        """
        square, pairs = self.width**2, len(self._first)
        if (size := 4 * 3 * self.units * square) <= spare:
            self.lines = _if_it_fits(lambda: torch.empty(self.units, 3, square, device=self.targets.device))
            spare -= size if self.lines is not None else 0
        of_query, of_key, _ = self.holders
        few = of_query == of_key and pairs * _FEW_TERMS <= max(self.width, _FEW_TERMS)
        if keep_terms and few and (size := 4 * pairs * self.units * square) <= spare:
            self.terms = _if_it_fits(self._computed_terms)
            if self.terms is not None:
                self.queries = self.keys = torch.empty(0, device=self.targets.device)
                spare -= size
        return spare

    def write_lines(self, start: _Array, direction: _Array) -> None:
        """Write S0, S1 and S2 of the lines start + a * direction, both [blocks, 2, sources], into `lines`."""
        assert self.lines is not None
        if self.terms is not None:
            starts, steps = (self._of_units(each[:, 0][:, self._taken[0]]) for each in (start, direction))
            first, last = self._pair_weights(starts), self._pair_weights(steps)
            middle = self._pair_weights(starts + steps) - first - last
            torch.bmm(self._on_device(np.stack([first, middle, last], axis=1)), self.terms, out=self.lines)
            return
        points = np.stack([start, direction], axis=1)
        queries, keys = (
            self._combined(self._on_device(self._of_units(points[:, :, which][..., self._taken[which]])), which)
            for which in (0, 1)
        )
        constant, mixed, quadratic = (self.lines[:, place].view_as(self.targets) for place in range(3))
        of_start, of_direction = (each.transpose(-1, -2) for each in keys)
        torch.bmm(queries[0], of_start, out=constant)
        torch.bmm(queries[0], of_direction, out=mixed)
        mixed.baddbmm_(queries[1], of_start)
        torch.bmm(queries[1], of_direction, out=quadratic)

    def weights(self, points: _Array, positions: _Array | None) -> list[_Array]:
        """Return the weights of m candidates, [units, m, ...]: those of the logits, then those of the values.

        Args:
            points: Coefficients, [m, blocks, 3, sources].
            positions: Positions on the prepared lines, [m, blocks]; None to compute without the lines.

        Returns:
            Weights of lines or terms, or of queries and of keys; the last are those of the values.
        """
        by_block = points.transpose(1, 2, 0, 3)
        query, key, value = (self._of_units(by_block[:, which][..., held]) for which, held in enumerate(self._taken))
        if positions is not None:
            places = self._of_units(positions.T)
            return [np.stack([np.ones_like(places), places, places**2], axis=-1), value]
        return [self._pair_weights(query), value] if self.terms is not None else [query, key, value]

    def similarities(self, weights: Sequence[torch.Tensor], *, on_lines: bool) -> torch.Tensor:
        """Return the mean cosines, float64 [m, units], of candidates with these `weights`, float32 on the device."""
        count, width = weights[0].shape[1], self.width
        kept = self.lines if on_lines else self.terms
        if kept is not None:
            logits = torch.empty(count, self.units, width**2, device=kept.device)
            torch.bmm(weights[0], kept, out=logits.transpose(0, 1))
        else:
            queries, keys = (self._combined(weights[which], which).flatten(0, 1) for which in (0, 1))
            logits = torch.bmm(queries, keys.transpose(1, 2))
            del queries, keys
        outputs = torch.softmax(logits.view(count, -1, width), dim=-1)
        del logits
        values = torch.bmm(weights[-1], self.values).transpose(0, 1)
        outputs.view(count, self.units, width, width).mul_(values[:, :, None])
        norms = torch.linalg.vector_norm(outputs, dim=-1).clamp_min_(_TINY)
        # Row by row, for all candidates at once: [units * d, m, d] times [units * d, d, 1], without a copy of either.
        products = torch.bmm(outputs.transpose(0, 1), self.targets.view(-1, width, 1))[:, :, 0].T
        cosines: torch.Tensor = (products / norms).view(count, self.units, width)
        return cosines.mean(dim=-1, dtype=torch.float64)

    def batch(self, count: int, *, on_lines: bool) -> int:
        """Return how many of `count` candidates to score at a time, by the free memory and the gain."""
        if count * self.units * self.width**2 <= _FEW_LOGITS:
            return count
        # Logits and their softmax; or queries, keys and logits.
        matrices = 2 if on_lines or self.terms is not None else 3
        logits = self.units * self.width**2
        room = int(free_memory(self.targets.device) * _BATCH_SHARE) // (4 * matrices * logits)
        return max(1, min(room, _MOST_LOGITS // logits))

    def _computed_terms(self) -> torch.Tensor:
        shape = self.targets.shape
        terms = torch.empty(self.units, len(self._first), self.width**2, device=self.targets.device)
        for place, (first, second) in enumerate(zip(self._first.tolist(), self._second.tolist(), strict=True)):
            term = terms[:, place].view(shape)
            queries, keys = ([each[:, k].view(shape) for k in (first, second)] for each in (self.queries, self.keys))
            torch.bmm(queries[0], keys[1].transpose(1, 2), out=term)
            if first != second:
                term.baddbmm_(queries[1], keys[0].transpose(1, 2))
        return terms

    def _pair_weights(self, points: _Array) -> _Array:
        found: _Array = points[..., self._first] * points[..., self._second]
        return found

    def _of_units(self, of_blocks: _Array) -> _Array:
        """Repeat [blocks, ...] for each random input: [units, ...]."""
        return of_blocks if self.seeds == 1 else np.concatenate([of_blocks] * self.seeds)

    def _on_device(self, weights: _Array) -> torch.Tensor:
        return torch.from_numpy(weights.astype(np.float32)).to(self.targets.device)

    def _combined(self, weights: torch.Tensor, which: int) -> torch.Tensor:
        """Return queries (0) or keys (1), float32 [m, units, d, d], by `weights` float32 [units, m, holders]."""
        combined = torch.empty(weights.shape[1], self.units, self.width**2, device=self.targets.device)
        torch.bmm(weights, (self.queries, self.keys)[which], out=combined.transpose(0, 1))
        return combined.view(*combined.shape[:2], self.width, self.width)


def _if_it_fits(make: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """Return the result of `make`, or None if the memory of a GPU does not suffice."""
    try:
        return make()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    return None


@dataclass
class _Task:
    """Candidates of a call that a family scores in one way.

    `chosen` are their positions in the call, `places` the starts and shapes of their weights in the buffer.
    """

    family: Family
    chosen: NDArray[np.intp]
    on_lines: bool
    places: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class BatchedAttention:
    """Scorer of candidates by several families of blocks."""

    def __init__(
        self, families: Sequence[Family], sources: int, device: torch.device, *, keep_terms: bool = True
    ) -> None:
        """Settle the families, which the caller has filled.

        Args:
            families: Filled families; together they hold every scored block once.
            sources: Number of coefficients of a row.
            device: Device of the families.
            keep_terms: Whether terms may be kept. Without them each candidate off the lines takes a product.
        """
        self._families = tuple(families)
        self._device = device
        members = sorted((member for family in families for member in family.members), key=lambda each: each.column)
        self._rows = np.array([member.rows for member in members])
        self._held = np.zeros((len(members), 3, sources))
        for place, member in enumerate(members):
            for which, held in enumerate(member.holders):
                self._held[place, which, list(held)] = 1
        self._lines = _Lines.none(self._held)
        spare = int(free_memory(device) * _KEPT_SHARE)
        for family in sorted(families, key=lambda each: each.width):
            spare = family.settle(spare, keep_terms=keep_terms)

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Prepare each block's line through these coefficients [n, groups, sources], n at least 3."""
        points = self._points(coefficients)[:, :, :2]
        # No lines until their matrices are written: writing may fail.
        self._lines, lines = _Lines.none(self._held), _Lines.through(points)
        for family in self._families:
            columns = family.columns
            if family.lines is None:
                lines.known[columns] = False
            elif lines.known[columns].all():
                shape = (len(columns), 2, -1)
                family.write_lines(lines.start[columns].reshape(shape), lines.direction[columns].reshape(shape))
        self._lines = lines

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the similarities of several candidates, the means over the random inputs.

        The host waits for the GPU once.

        Args:
            coefficients: Coefficients on the host, float64 [n, groups, sources].

        Returns:
            Similarities in [-1, 1] on the host, float64 [n, blocks].
        """
        points = self._points(coefficients)
        positions, on_lines = self._lines.places(points[:, :, :2])
        tasks: list[_Task] = []
        pieces: list[_Array] = []
        length = 0
        for family in self._families:
            on = on_lines[:, family.columns].all(axis=1)
            for lined, mask in ((True, on), (False, ~on)):
                if not mask.any():
                    continue
                task = _Task(family, np.flatnonzero(mask), lined)
                tasks.append(task)
                where = np.ix_(task.chosen, family.columns)
                for weights in family.weights(points[where], positions[where] if lined else None):
                    task.places.append((length, weights.shape))
                    pieces.append(weights)
                    length += -(-weights.size // _ALIGNMENT) * _ALIGNMENT
        scores = np.zeros((len(coefficients), len(self._rows)))
        if not tasks:
            return torch.from_numpy(scores)
        buffer = np.zeros(length, dtype=np.float32)
        places = [place for task in tasks for place in task.places]
        for (start, _), piece in zip(places, pieces, strict=True):
            buffer[start : start + piece.size] = piece.reshape(-1)
        on_device = self._moved(torch.from_numpy(buffer))
        found = torch.cat([self._of_task(task, on_device).reshape(-1) for task in tasks]).cpu().numpy()
        first = 0
        for task in tasks:
            last = first + len(task.chosen) * task.family.units
            by_seed = found[first:last].reshape(len(task.chosen), task.family.seeds, -1).clip(-1, 1)
            scores[np.ix_(task.chosen, task.family.columns)] = by_seed.mean(axis=1)
            first = last
        return torch.from_numpy(scores)

    def _of_task(self, task: _Task, buffer: torch.Tensor) -> torch.Tensor:
        """Return the task's similarities, float64 [m, units] on the device, in batches that fit into memory."""
        family = task.family
        weights = [buffer[start : start + math.prod(shape)].view(shape) for start, shape in task.places]

        def scored(some: torch.Tensor) -> torch.Tensor:
            first, last = int(some[0]), int(some[-1])
            return family.similarities([each[:, first : last + 1] for each in weights], on_lines=task.on_lines)

        count = len(task.chosen)
        return in_batches(scored, torch.arange(count), family.batch(count, on_lines=task.on_lines))

    def _points(self, coefficients: torch.Tensor) -> _Array:
        """Return each block's coefficients of q, k and v, [n, blocks, 3, sources]; 0 for sources that lack one."""
        found: _Array = coefficients.numpy()[:, self._rows] * self._held
        return found

    def _moved(self, buffer: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return buffer
        if 4 * buffer.numel() >= _WORTH_PINNING:
            # Some systems refuse to pin memory.
            with suppress(RuntimeError):
                buffer = buffer.pin_memory()
        return buffer.to(self._device, non_blocking=True)


@dataclass(frozen=True)
class _Lines:
    """A line start + a * direction for each block, [blocks, k] both; `known` bool [blocks] marks valid lines.

    A line of one point has the direction 0.
    """

    start: _Array
    direction: _Array
    known: NDArray[np.bool_]

    @classmethod
    def none(cls, held: _Array) -> "_Lines":
        """Return lines of which none is known."""
        shape = (len(held), 2 * held.shape[-1])
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(len(held), dtype=np.bool_))

    @classmethod
    def through(cls, points: _Array) -> "_Lines":
        """Return the lines through points [n, blocks, 2, sources]; none is known if n is below 3."""
        flat = torch.from_numpy(points.reshape(*points.shape[:2], 2 * points.shape[3]))
        lines = cls.none(np.zeros(points.shape[1:]))
        for block in range(flat.shape[1]) if len(flat) > 2 else ():
            of_block = flat[:, block]
            if (found := find_line(of_block)) is not None:
                lines.start[block], lines.direction[block] = found.start.numpy(), found.direction.numpy()
            elif bool(((of_block - of_block[:1]).abs() <= ON_LINE).all()):
                lines.start[block] = of_block[0].numpy()
            else:
                continue
            lines.known[block] = True
        return lines

    def places(self, points: _Array) -> tuple[_Array, NDArray[np.bool_]]:
        """Return each point's position a on its block's line, [n, blocks], and whether it lies on the line."""
        away = points.reshape(*points.shape[:2], 2 * points.shape[3]) - self.start
        length = (self.direction**2).sum(axis=-1)
        positions = (away * self.direction).sum(axis=-1) / np.where(length > 0, length, 1.0)
        distances = np.abs(away - positions[..., None] * self.direction).max(axis=-1)
        return positions, (distances <= ON_LINE) & self.known
