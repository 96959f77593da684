"""Gram matrices: all that the weight-space metrics need to know of the checkpoints, from one pass over them.

A merge is reference + sum_k c_k * (source_k - reference), because its coefficients sum to 1. So every inner product of
a candidate with the target, or with itself, follows from those of the vectors

    [reference, source_1 - reference, ..., source_K - reference, target - reference]

Finetunes agree with their base to 3-5 digits: products of the raw tensors would cancel away what is to be fitted.

A tensor that is the reference's, rounded to a narrower dtype, counts as the reference's: what rounding has done to it
is no difference that a merge could explain, and no direction that it could go.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.checkpoints import TensorSource, check_unchanged, is_zero
from optimizer.errors import CheckpointError
from optimizer.recipes import Part, PartReader, finite
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.memory import where_it_fits
from optimizer.similarity.statistics_on_card import grams_on_card

__all__ = ["Statistics", "measure_statistics", "warn_of_zeros"]

Matrix = NDArray[np.float64]

# Tensors are cut into pieces of this many elements, so that each product is small enough for a library of linear
# algebra to compute in the thread that asks for it: the cores are taken by the threads here. All in float64:
# differences of half-precision numbers lie on a grid, so that float32 sums of their products round down more often than
# up (7e-8 in all, measured, however short they are).
PIECE = 512
# Pieces that are multiplied at a time: few enough to stay in a processor's cache, enough to be worth a call.
_PIECES = 64
# Elements of each file that are read at a time, and what a thread takes on next.
_SEGMENT = 1 << 17
_LARGEST_ITEM = 8  # bytes: float64
# A tensor may be the reference's, rounded, if its squared distance from it is below this many squared roundings.
_ROUNDED = 64
# Squared lengths below this share of the longest may be what rounding leaves of 0.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Statistics:
    """Gram matrices per scored part, float64 [parts, K + 2, K + 2]: reference, K source differences, target difference.

    `group` [parts] is each part's row in coefficients; `blocks` its block; `referenced` whether the reference holds it
    (where not, the differences are the tensors themselves and a difference from the base is not defined). A source that
    lacks a part has zeros there.
    """

    names: tuple[str, ...]
    blocks: tuple[str, ...]
    group: torch.Tensor
    referenced: torch.Tensor
    gram: torch.Tensor


def measure_statistics(comparison: Comparison, blocks: Sequence[str], *, threads: int | None = None) -> Statistics:
    """Read every scored tensor of `blocks` once and take its Gram matrix.

    `threads` (default: one for each core) work at a time, which does not change any bit of the result. Raises
    CheckpointError naming file and tensor where a tensor holds NaN or Inf, and naming files that were changed, replaced
    or deleted since they were opened. Gives a BlockfitWarning for files whose tensors are zeros where others' are not.
    """
    parts = comparison.scored_parts(blocks)
    grams = measure_grams(comparison, parts, threads=threads)
    for part, gram in zip(parts, grams, strict=True):
        if not bool(torch.isfinite(gram).all()):
            refuse_not_finite(part, comparison)
    warn_of_zeros(parts, grams, comparison)
    return Statistics(
        names=tuple(part.name for part in parts),
        blocks=tuple(part.block for part in parts if part.block is not None),
        group=torch.tensor([comparison.group_of(part) for part in parts], dtype=torch.long),
        referenced=torch.tensor([part.held_by(comparison.reference) for part in parts], dtype=torch.bool),
        gram=grams,
    )


def measure_grams(comparison: Comparison, parts: Sequence[Part], *, threads: int | None = None) -> torch.Tensor:
    """The Gram matrix of each of `parts`, float64 [parts, K + 2, K + 2], from one pass.

    It is not finite where a tensor holds NaN or Inf. Raises CheckpointError if a file was changed, replaced or deleted
    since it was opened.

    `threads` as for `measure_statistics`; all have ended when this returns or raises. Where a card's memory does not
    suffice the pass begins anew on the processor, with exactly its results.
    """

    def on(device: torch.device) -> torch.Tensor:
        if device.type == "cpu":
            return _grams_on_processor(comparison, parts, threads)
        return grams_on_card(comparison, parts, device, threads=threads)

    grams = where_it_fits(on, comparison.device, "the inner products of the checkpoints")
    for part, gram in zip(parts, grams, strict=True):
        _level_rounding(comparison, part, gram)
    check_unchanged([*comparison.sources.values(), comparison.target, comparison.reference])
    return grams


def _level_rounding(comparison: Comparison, part: Part, gram: torch.Tensor) -> None:
    """Set the differences to 0, in `gram`, of checkpoints whose tensor is the reference's but for its rounding."""
    reference = comparison.reference
    if not part.held_by(reference):
        return
    precision = torch.finfo(reference.tensors[part.name].dtype).eps
    for row, checkpoint in enumerate([*comparison.sources.values(), comparison.target], start=1):
        if not part.held_by(checkpoint):
            continue
        dtype = checkpoint.tensors[part.name].dtype
        rounding = torch.finfo(dtype).eps
        near = 0 < float(gram[row, row]) <= _ROUNDED * rounding**2 * float(gram[0, 0])
        if rounding > precision and near and torch.equal(part.read(reference).to(dtype), part.read(checkpoint)):
            gram[row], gram[:, row] = 0, 0


def refuse_not_finite(part: Part, comparison: Comparison) -> None:
    """Raise CheckpointError, naming the first file that holds NaN or Inf in `part`."""
    for checkpoint in [*comparison.sources.values(), comparison.target, comparison.reference]:
        if part.held_by(checkpoint):
            finite(part, checkpoint, "comparison")
    raise CheckpointError(f"tensor {part.name!r}: its inner products are not finite")


def _grams_on_processor(comparison: Comparison, parts: Sequence[Part], threads: int | None) -> torch.Tensor:
    segments = [segment for row, part in enumerate(parts) for segment in _segments(row, part)]
    count = len(comparison.sources) + 2
    grams = torch.zeros(len(parts), count, count, dtype=torch.float64)
    total, done = sum(segment.stop - segment.start for segment in segments), 0
    own = threading.local()
    of_caller = torch.get_num_threads()
    opened: list[_Pass] = []

    def begin() -> None:
        # A thread that torch has not met takes over the process's number at its first operation, whatever was set
        # before: so let torch meet it first.
        torch.get_num_threads()
        torch.set_num_threads(1)
        own.work = _Pass(comparison)
        opened.append(own.work)

    def measure(segment: _Segment) -> torch.Tensor:
        gram: torch.Tensor = own.work.gram(segment)
        return gram

    try:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1, "measuring", initializer=begin) as pool:
            try:
                # In the segments' own order, whichever thread was first: sums do not depend on the threads.
                for segment, gram in zip(segments, pool.map(measure, segments), strict=True):
                    grams[segment.row] += gram
                    done += segment.stop - segment.start
                    comparison.progress("reading the checkpoints", done, total)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        # torch keeps this number for each thread by itself, and once more for those yet to come.
        torch.set_num_threads(of_caller)
        for work in opened:
            work.close()
    return grams


def warn_of_zeros(parts: Sequence[Part], grams: torch.Tensor, comparison: Comparison) -> None:
    """Give a BlockfitWarning for each file that holds nothing but zeros in some of `parts` where another does not.

    `grams` are their Gram matrices: the squared length of a tensor is that of the reference plus its difference. Only
    tensors that are next to nothing beside the others are read once more.
    """
    rows = [*comparison.sources.values(), comparison.target]
    own = torch.diagonal(grams[:, 1:, 1:], dim1=-2, dim2=-1)
    reference = grams[:, :1, 0]
    lengths = torch.cat([reference, reference + 2 * grams[:, 0, 1:] + own], dim=1)
    for part, row in zip(parts, lengths.tolist(), strict=True):
        held = [(rows[position], row[1 + position]) for position in (*part.holders, len(rows) - 1)]
        if part.held_by(comparison.reference):
            held.append((comparison.reference, row[0]))
        longest = max(length for _, length in held)
        for checkpoint, length in held if longest > 0 else ():
            zero = length <= _NOTHING * longest and is_zero(part.read(checkpoint))
            comparison.zeros.note(part.name, checkpoint, zero=zero)
    comparison.zeros.warn()


@dataclass(frozen=True)
class _Segment:
    """Elements `start` to `stop` of a part, whose Gram matrix is at `row`."""

    row: int
    part: Part
    start: int
    stop: int


def _segments(row: int, part: Part) -> Iterator[_Segment]:
    size = torch.Size(part.shape).numel()
    for start in range(0, size, _SEGMENT):
        yield _Segment(row, part, start, min(start + _SEGMENT, size))


class _Pass:
    """Reads and multiplies segments, with files and buffers of its own: for one thread."""

    def __init__(self, comparison: Comparison) -> None:
        self._reference = comparison.reference
        self._rows = [*comparison.sources.values(), comparison.target]
        buffer = torch.empty(_SEGMENT * _LARGEST_ITEM, dtype=torch.uint8)
        self._readers = {each: PartReader(each, buffer) for each in (self._reference, *self._rows)}
        self._stages = {dtype: _Stage(_SEGMENT, dtype) for dtype in (torch.float32, torch.float64)}

    def gram(self, segment: _Segment) -> torch.Tensor:
        """The Gram matrix of one segment, float64 [K + 2, K + 2]."""
        part = segment.part
        referenced = part.held_by(self._reference)
        held = {
            row: checkpoint
            for row, checkpoint in enumerate(self._rows, start=1)
            if (row - 1 in part.holders or row == len(self._rows))
            and not (referenced and checkpoint is self._reference)
        }
        needed = [*held.values(), *([self._reference] if referenced else [])]
        wide = any(checkpoint.tensors[part.name].dtype == torch.float64 for checkpoint in needed)
        stage = self._stages[torch.float64 if wide else torch.float32]
        stage.begin(segment.stop - segment.start)
        stage.add(0, self._read(self._reference, segment) if referenced else None)
        for row, checkpoint in held.items():
            stage.add(row, self._read(checkpoint, segment))
        return stage.gram(1 + len(self._rows))

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()

    def _read(self, checkpoint: TensorSource, segment: _Segment) -> torch.Tensor:
        return self._readers[checkpoint].read(segment.part, segment.start, segment.stop)


class _Stage:
    """Takes a reference and tensors one after another, up to `length` elements each, and multiplies their differences.

    `dtype` holds the tensors exactly: float32 for every type but float64. By way of it, in two steps, numbers become
    float64 twice as fast as in one.
    """

    def __init__(self, length: int, dtype: torch.dtype) -> None:
        self._places: list[int] = []
        self._length = length
        self._capacity = -(-length // PIECE) * PIECE
        self._rows = torch.empty(0, self._capacity, dtype=dtype)
        self._double = torch.empty(0, dtype=torch.float64)

    def begin(self, length: int) -> None:
        """Forget what was added; what comes has this many elements."""
        self._places, self._length = [], length

    def add(self, place: int, values: torch.Tensor | None) -> None:
        """Take the tensor for row `place` of the Gram matrix; the reference first, None if there is none."""
        row = len(self._places)
        self._places.append(place)
        if row == len(self._rows):
            more = self._rows.new_zeros(max(2 * row, 8), self._capacity)
            more[:row] = self._rows
            self._rows = more
        end = -(-self._length // PIECE) * PIECE
        if values is None:
            self._rows[row, :end] = 0
        else:
            self._rows[row, : self._length].copy_(values)
            self._rows[row, self._length : end] = 0

    def gram(self, size: int) -> torch.Tensor:
        """The products of what was added, at its places in float64 [size, size]; zeros elsewhere."""
        end = -(-self._length // PIECE) * PIECE
        products = self._multiplied(self._rows[: len(self._places), :end])
        gram = torch.zeros(size, size, dtype=torch.float64)
        places = torch.tensor(self._places)
        gram[places[:, None], places] = products
        return gram

    def _multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        count, length = rows.shape
        gram = np.zeros((count, count))
        if self._double.numel() < count * _PIECES * PIECE:
            self._double = torch.empty(count * _PIECES * PIECE, dtype=torch.float64)
        # What is not finite is told from its products, not by a warning.
        with np.errstate(all="ignore"):
            for start in range(0, length, _PIECES * PIECE):
                chunk = rows[:, start : start + _PIECES * PIECE].view(count, -1, PIECE).transpose(0, 1)
                pieces = self._double[: chunk.numel()].view(chunk.shape).copy_(chunk)
                pieces[:, 1:].sub_(pieces[:, :1])
                _add_products(gram, pieces.numpy())
        return torch.from_numpy(gram)


def _add_products(gram: Matrix, pieces: Matrix) -> None:
    """Add the products of rows, summed over `pieces` [pieces, rows, PIECE], to `gram` [rows, rows]."""
    # Not a matrix times its own transpose: numpy has a routine of its own for that, which is slow for so few rows.
    products = np.matmul(pieces, pieces[:, 1:].transpose(0, 2, 1)).sum(axis=0)
    gram[:, 1:] += products
    gram[1:, 0] += products[0]
    gram[0, 0] += np.matmul(pieces[:, :1], pieces[:, :1].transpose(0, 2, 1)).sum()
