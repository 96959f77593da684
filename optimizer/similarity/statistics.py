"""Gram matrices, from one pass over the checkpoints: all input of the metrics in weight space.

A merge is reference + sum_k c_k * (source_k - reference), because its coefficients sum to 1. Every inner product of a
candidate with the target or with itself therefore follows from those of the vectors

    [reference, source_1 - reference, ..., source_K - reference, target - reference]

Finetunes agree with their base to 3-5 digits, so products of the raw tensors would cancel away the differences that are
to be fitted.

A tensor equal to the reference's after rounding to a narrower dtype counts as the reference's: a rounding error is
neither a difference that a merge could explain nor a direction that it could take.
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
from optimizer.similarity.memory import on_first_device_that_fits
from optimizer.similarity.statistics_on_gpu import grams_on_gpu

__all__ = ["Statistics", "measure_statistics", "warn_of_zeros"]

Matrix = NDArray[np.float64]

# Elements of a piece. Each product is then small enough for the linear algebra library to compute in the calling
# thread, since the threads here use all cores. All products are float64: differences of half-precision numbers lie on a
# grid, so float32 sums of their products are rounded down more often than up (7e-8 in all, measured, at any length).
PIECE = 512
# Pieces multiplied at a time: few enough for the CPU's cache, enough to be worth a call.
_PIECES = 64
# Elements of each file read at a time: the unit of work of a thread.
_SEGMENT = 1 << 17
_LARGEST_ITEM = 8  # bytes, of float64
# A tensor may be the rounded reference's if its squared distance from it is below this many squared rounding errors.
_ROUNDED = 64
# Squared lengths below this share (0 to 1) of the longest may be rounding errors of 0.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Statistics:
    """Gram matrices per scored part, of the reference, K source differences and the target difference.

    A source that lacks a part has zeros there. If the reference lacks it, the differences are the tensors themselves,
    and a difference from the base is not defined.

    Attributes:
        names: Names of the parts.
        blocks: Block of each part.
        group: Row of coefficients of each part, int64 [parts].
        referenced: Whether the reference holds each part, bool [parts].
        gram: Gram matrices, float64 [parts, K + 2, K + 2].
    """

    names: tuple[str, ...]
    blocks: tuple[str, ...]
    group: torch.Tensor
    referenced: torch.Tensor
    gram: torch.Tensor


def measure_statistics(comparison: Comparison, blocks: Sequence[str], *, threads: int | None = None) -> Statistics:
    """Read every scored tensor of some blocks once, and return the Gram matrices.

    Gives a BlockfitWarning for files whose tensors are zeros where those of others are not.

    Raises CheckpointError if a tensor contains NaN or Inf, or a file was changed, replaced or deleted since it was
    opened. The message names the file.

    Args:
        comparison: The open sources and target.
        blocks: Names of the blocks.
        threads: Number of threads. Default: one for each core. It changes no bit of the result.

    Returns:
        The statistics.
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
    """Return the Gram matrix of each part, from one pass over the files.

    If the memory of a GPU does not suffice, the pass starts again on the CPU, with exactly its results. All threads
    have ended when the function returns or raises.

    Raises CheckpointError if a file was changed, replaced or deleted since it was opened.

    Args:
        comparison: The open sources and target.
        parts: The parts to measure.
        threads: Number of threads. Default: one for each core. It changes no bit of the result.

    Returns:
        Matrices, float64 [parts, K + 2, K + 2], not finite where a tensor contains NaN or Inf.
    """

    def on(device: torch.device) -> torch.Tensor:
        if device.type == "cpu":
            return _grams_on_cpu(comparison, parts, threads)
        return grams_on_gpu(comparison, parts, device, threads=threads)

    grams = on_first_device_that_fits(on, comparison.device, "the inner products of the checkpoints")
    for part, gram in zip(parts, grams, strict=True):
        _level_rounding(comparison, part, gram)
    check_unchanged([*comparison.sources.values(), comparison.target, comparison.reference])
    return grams


def _level_rounding(comparison: Comparison, part: Part, gram: torch.Tensor) -> None:
    """Set the differences in `gram` to 0 for checkpoints whose tensor is the reference's up to rounding."""
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
    """Raise CheckpointError, naming the first file that contains NaN or Inf in `part`."""
    for checkpoint in [*comparison.sources.values(), comparison.target, comparison.reference]:
        if part.held_by(checkpoint):
            finite(part, checkpoint, "comparison")
    raise CheckpointError(f"tensor {part.name!r}: its inner products are not finite")


def _grams_on_cpu(comparison: Comparison, parts: Sequence[Part], threads: int | None) -> torch.Tensor:
    segments = [segment for row, part in enumerate(parts) for segment in _segments(row, part)]
    count = len(comparison.sources) + 2
    grams = torch.zeros(len(parts), count, count, dtype=torch.float64)
    widths = [comparison.number_bytes(part) for part in parts]
    total, done = sum((segment.stop - segment.start) * widths[segment.row] for segment in segments), 0
    local = threading.local()
    of_caller = torch.get_num_threads()
    opened: list[_Pass] = []

    def begin() -> None:
        # A thread new to torch adopts the process's number at its first operation, regardless of earlier
        # settings, so this call comes first.
        torch.get_num_threads()
        torch.set_num_threads(1)
        local.work = _Pass(comparison)
        opened.append(local.work)

    def measure(segment: _Segment) -> torch.Tensor:
        gram: torch.Tensor = local.work.gram(segment)
        return gram

    try:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1, "measuring", initializer=begin) as pool:
            try:
                # In the order of the segments, not of the threads, so that sums do not depend on the threads.
                for segment, gram in zip(segments, pool.map(measure, segments), strict=True):
                    grams[segment.row] += gram
                    done += (segment.stop - segment.start) * widths[segment.row]
                    comparison.events.progress("reading the checkpoints", done, total)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        # torch keeps this number per thread, and once more for later threads.
        torch.set_num_threads(of_caller)
        for work in opened:
            work.close()
    return grams


def warn_of_zeros(parts: Sequence[Part], grams: torch.Tensor, comparison: Comparison) -> None:
    """Give a BlockfitWarning for each file that contains only zeros in some parts where another file does not.

    The squared length of a tensor follows from the Gram matrices: it is that of the reference plus its difference. Only
    tensors much shorter than the longest are read once more.

    Args:
        parts: The parts.
        grams: Their Gram matrices, float64 [parts, K + 2, K + 2].
        comparison: The open sources and target.
    """
    rows = [*comparison.sources.values(), comparison.target]
    differences = torch.diagonal(grams[:, 1:, 1:], dim1=-2, dim2=-1)
    reference = grams[:, :1, 0]
    lengths = torch.cat([reference, reference + 2 * grams[:, 0, 1:] + differences], dim=1)
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
    """Reader and multiplier of segments for one thread, with files and buffers of its own."""

    def __init__(self, comparison: Comparison) -> None:
        self._reference = comparison.reference
        self._rows = [*comparison.sources.values(), comparison.target]
        buffer = torch.empty(_SEGMENT * _LARGEST_ITEM, dtype=torch.uint8)
        self._readers = {each: PartReader(each, buffer) for each in (self._reference, *self._rows)}
        self._stages = {dtype: _Stage(_SEGMENT, dtype) for dtype in (torch.float32, torch.float64)}

    def gram(self, segment: _Segment) -> torch.Tensor:
        """Return the Gram matrix of one segment, float64 [K + 2, K + 2]."""
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
    """Buffer that takes a reference, then tensors of up to `length` elements, and multiplies their differences.

    `dtype` represents the tensors exactly: float32 for every type except float64. Conversion through float32 to float64
    is twice as fast as direct conversion.
    """

    def __init__(self, length: int, dtype: torch.dtype) -> None:
        self._places: list[int] = []
        self._length = length
        self._capacity = -(-length // PIECE) * PIECE
        self._rows = torch.empty(0, self._capacity, dtype=dtype)
        self._double = torch.empty(0, dtype=torch.float64)

    def begin(self, length: int) -> None:
        """Forget all tensors; the next ones have `length` elements."""
        self._places, self._length = [], length

    def add(self, place: int, values: torch.Tensor | None) -> None:
        """Take the tensor of row `place` of the Gram matrix; the reference comes first, None if it lacks the part."""
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
        """Return the products of all tensors, at their places in float64 [size, size]; zeros elsewhere."""
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
        # Values that are not finite are found in the products, not by a warning.
        with np.errstate(all="ignore"):
            for start in range(0, length, _PIECES * PIECE):
                chunk = rows[:, start : start + _PIECES * PIECE].view(count, -1, PIECE).transpose(0, 1)
                pieces = self._double[: chunk.numel()].view(chunk.shape).copy_(chunk)
                pieces[:, 1:].sub_(pieces[:, :1])
                _add_products(gram, pieces.numpy())
        return torch.from_numpy(gram)


def _add_products(gram: Matrix, pieces: Matrix) -> None:
    """Add the products of rows, summed over `pieces` [pieces, rows, PIECE], to `gram` [rows, rows]."""
    # Not a matrix times its own transpose: numpy's special routine for that is slow for so few rows.
    products = np.matmul(pieces, pieces[:, 1:].transpose(0, 2, 1)).sum(axis=0)
    gram[:, 1:] += products
    gram[1:, 0] += products[0]
    gram[0, 0] += np.matmul(pieces[:, :1], pieces[:, :1].transpose(0, 2, 1)).sum()
