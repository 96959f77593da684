"""The attention metric as a card is fast at it: blocks of equal width together, in few and large operations.

Starting an operation takes some 5 microseconds, whatever its size, and so does every look at a result. So nothing
here depends on a number that is on the card: the host decides in float64 which candidates lie on the prepared line,
sends the weights of a call in one copy, and fetches all similarities in one.

Blocks of one width, whose queries, keys and values come from the same sources, are a `Family`. Its tensors have a first
axis of `units`, its blocks under each random input. For m candidates the logits are float32 [m, units, d, d], made by
one product of small weights with one of these:

    lines   [units, 3, d * d]       S0, S1 and S2 of the prepared line (see `logits`); of a block that the line does not
                                    move, a line of one point, S1 and S2 being 0
    terms   [units, pairs, d * d]   Q_k K_l' + Q_l K_k', off the line, where they are few and there is room
    Q, K    [units, sources, d * d] off the line otherwise: added up and multiplied for each candidate

Logits cross the card's memory seven times: written, read and written by the softmax and by the product with the values,
and read for the norms of the rows and for the products with the target's rows. They are in units of e, as torch's
softmax wants them; its denominators cancel in a cosine.
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

# Share of a card's free memory that one batch of candidates may take, and that the lines and terms may take in all.
_BATCH_SHARE, _KEPT_SHARE = 0.5, 0.25
# Logits of one batch: 1 GiB. Starting the operations costs nothing beside so many, and more would gain nothing.
_MOST_LOGITS = 1 << 28
# So few logits, 64 MiB, are tried without asking for the card's free memory: that takes as long as scoring them.
_FEW_LOGITS = 1 << 24
# Terms are added up where there are at most d / _FEW_TERMS pairs of sources: they take a multiplication for each pair
# and logit, and reading them once a batch; a product takes d multiplications for each logit.
_FEW_TERMS = 4
# Numbers that slices of a buffer begin at a multiple of: what a product reads is best aligned to 16 bytes and more.
_ALIGNMENT = 64
# Bytes from which on pinning what is copied to the card gains more than asking for pinned memory costs.
_WORTH_PINNING = 1 << 16

_TINY = torch.finfo(torch.float32).tiny

# What the host computes for one candidate is little: numpy starts on it several times as fast as torch.
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """A block: its position among those scored, its width, and of queries, keys and values the row and the holders."""

    column: int
    width: int
    rows: tuple[int, int, int]
    holders: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Family:
    """Blocks of one width d with the same holders, under each of `seeds` random inputs: units = seeds * blocks.

    On the device, float32: `queries`, `keys` [units, holders, d * d], `values` [units, holders, d], and `targets`
    [units, d, d], each row divided by its norm. The unit of block b under input s is s * blocks + b. The caller fills
    them; `settle` then prepares what candidates are scored from. `columns` are the positions of its blocks.
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
        """Make the lines, and the terms if they may be kept and are few, within `spare` bytes; return what is left.

        Terms replace queries and keys, which are freed. If the card has no room for either after all, it does without.
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
        """Write S0, S1 and S2 of the lines start + a * direction, [blocks, 2, sources] both, into `lines`."""
        assert self.lines is not None
        if self.terms is not None:
            one, other = (self._of_units(each[:, 0][:, self._taken[0]]) for each in (start, direction))
            first, last = self._pair_weights(one), self._pair_weights(other)
            middle = self._pair_weights(one + other) - first - last
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
        """Return the weights of m candidates: those of the logits, then those of the values; [units, m, ...].

        `points` are their coefficients, [m, blocks, 3, sources]; `positions` [m, blocks] their places on the prepared
        lines, None to compute them without.
        """
        by_block = points.transpose(1, 2, 0, 3)
        query, key, value = (self._of_units(by_block[:, which][..., held]) for which, held in enumerate(self._taken))
        if positions is not None:
            places = self._of_units(positions.T)
            return [np.stack([np.ones_like(places), places, places**2], axis=-1), value]
        return [self._pair_weights(query), value] if self.terms is not None else [query, key, value]

    def similarities(self, weights: Sequence[torch.Tensor], *, on_lines: bool) -> torch.Tensor:
        """Return the mean cosines, float64 [m, units], of candidates with such `weights`, float32 on the device."""
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
        # Row by row, for all candidates at once: [units * d, m, d] times [units * d, d, 1], neither of them copied.
        products = torch.bmm(outputs.transpose(0, 1), self.targets.view(-1, width, 1))[:, :, 0].T
        cosines: torch.Tensor = (products / norms).view(count, self.units, width)
        return cosines.mean(dim=-1, dtype=torch.float64)

    def batch(self, count: int, *, on_lines: bool) -> int:
        """Return how many of `count` candidates to score at a time: as there is probably room for, and as pay."""
        if count * self.units * self.width**2 <= _FEW_LOGITS:
            return count
        # Logits and the softmax of them; or queries, keys and logits.
        matrices = 2 if on_lines or self.terms is not None else 3
        logits = self.units * self.width**2
        room = int(free_memory(self.targets.device) * _BATCH_SHARE) // (4 * matrices * logits)
        return max(1, min(room, _MOST_LOGITS // logits))

    def _computed_terms(self) -> torch.Tensor:
        shape = self.targets.shape
        terms = torch.empty(self.units, len(self._first), self.width**2, device=self.targets.device)
        for place, (one, other) in enumerate(zip(self._first.tolist(), self._second.tolist(), strict=True)):
            term = terms[:, place].view(shape)
            queries, keys = ([each[:, k].view(shape) for k in (one, other)] for each in (self.queries, self.keys))
            torch.bmm(queries[0], keys[1].transpose(1, 2), out=term)
            if one != other:
                term.baddbmm_(queries[1], keys[0].transpose(1, 2))
        return terms

    def _pair_weights(self, points: _Array) -> _Array:
        found: _Array = points[..., self._first] * points[..., self._second]
        return found

    def _of_units(self, of_blocks: _Array) -> _Array:
        """Return [blocks, ...] as [units, ...]: the same under each random input."""
        return of_blocks if self.seeds == 1 else np.concatenate([of_blocks] * self.seeds)

    def _on_device(self, weights: _Array) -> torch.Tensor:
        return torch.from_numpy(weights.astype(np.float32)).to(self.targets.device)

    def _combined(self, weights: torch.Tensor, which: int) -> torch.Tensor:
        """Queries (0) or keys (1), float32 [m, units, d, d], of `weights` float32 [units, m, holders]."""
        combined = torch.empty(weights.shape[1], self.units, self.width**2, device=self.targets.device)
        torch.bmm(weights, (self.queries, self.keys)[which], out=combined.transpose(0, 1))
        return combined.view(*combined.shape[:2], self.width, self.width)


def _if_it_fits(make: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """Return what `make` makes, or None where a card's memory does not suffice."""
    try:
        return make()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    return None


@dataclass
class _Task:
    """Candidates `chosen` of a call that a family scores in one way; `places` are their weights' in the buffer."""

    family: Family
    chosen: NDArray[np.intp]
    on_lines: bool
    places: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class BatchedAttention:
    """Scores candidates by several families of blocks; `sources` is how many coefficients a row has."""

    def __init__(
        self, families: Sequence[Family], sources: int, device: torch.device, *, keep_terms: bool = True
    ) -> None:
        """Of families that are filled. `keep_terms` False computes a product for each candidate off the lines."""
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
        """Prepare the lines that these coefficients [n, groups, sources], n at least 3, lie on block by block."""
        points = self._points(coefficients)[:, :, :2]
        # Not the new ones before their matrices are there: writing them may fail.
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
        """Return similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources], both on the host.

        A similarity is the mean over the random inputs. The host waits for the card once.
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
        """Return its similarities, float64 [m, units] on the device, computed in batches that find room."""
        family = task.family
        weights = [buffer[start : start + math.prod(shape)].view(shape) for start, shape in task.places]

        def scored(some: torch.Tensor) -> torch.Tensor:
            first, last = int(some[0]), int(some[-1])
            return family.similarities([each[:, first : last + 1] for each in weights], on_lines=task.on_lines)

        count = len(task.chosen)
        return in_batches(scored, torch.arange(count), family.batch(count, on_lines=task.on_lines))

    def _points(self, coefficients: torch.Tensor) -> _Array:
        """Return each block's coefficients of queries, keys and values, [n, blocks, 3, sources]; 0 of who lacks one."""
        found: _Array = coefficients.numpy()[:, self._rows] * self._held
        return found

    def _moved(self, buffer: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return buffer
        if 4 * buffer.numel() >= _WORTH_PINNING:
            # A system may refuse to pin memory.
            with suppress(RuntimeError):
                buffer = buffer.pin_memory()
        return buffer.to(self._device, non_blocking=True)


@dataclass(frozen=True)
class _Lines:
    """A line start + a * direction for each block, [blocks, k] both; `known` bool [blocks] where there is one.

    A line of one point has the direction 0.
    """

    start: _Array
    direction: _Array
    known: NDArray[np.bool_]

    @classmethod
    def none(cls, held: _Array) -> "_Lines":
        """No line in any block."""
        shape = (len(held), 2 * held.shape[-1])
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(len(held), dtype=np.bool_))

    @classmethod
    def through(cls, points: _Array) -> "_Lines":
        """Return the lines through points [n, blocks, 2, sources]; n is at least 3, or there are none."""
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
        """Return each point's place a on its block's line, [n, blocks], and whether it lies there at all."""
        away = points.reshape(*points.shape[:2], 2 * points.shape[3]) - self.start
        length = (self.direction**2).sum(axis=-1)
        positions = (away * self.direction).sum(axis=-1) / np.where(length > 0, length, 1.0)
        distances = np.abs(away - positions[..., None] * self.direction).max(axis=-1)
        return positions, (distances <= ON_LINE) & self.known
