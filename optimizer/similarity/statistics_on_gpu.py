"""Gram matrices on a GPU: tensors are read into pinned memory, then converted and multiplied on the GPU.

Each thread reads a segment of every checkpoint, as stored, into one of its buffers while the GPU still copies the
previous one. In a stream of the thread the GPU converts the segment to float64, subtracts and multiplies. The products
of all segments stay on the GPU and come back in one copy. A pass is then as fast as the files can be read. Eight
sources and a target of Stable Diffusion 1.x are 15.5 GB of float16: at least 1 s from memory, while a data-centre GPU
copies them in 0.6 s (PCIe 4) or 0.3 s and multiplies them in 0.2 s.

All numbers are float64, as on the CPU and for the same reasons (see `statistics`). Consumer GPUs compute float64 at
1/64 of their float32 rate: 172 GFLOP for the ten rows of those 860 million numbers take 0.13 s at 1.3 TFLOP/s, and
perhaps ten times as long in the tiles that a library uses for so few rows. That is no more than reading the files
takes.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle

import torch

from optimizer.checkpoints import TensorSource
from optimizer.recipes import Part, PartReader
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.loading import staging

__all__ = ["grams_on_gpu"]

# Most elements of each file read at a time, and most bytes of all files together.
_SEGMENT, _SEGMENT_BYTES = 1 << 20, 32 << 20
# Elements of a piece. A segment is multiplied in pieces side by side: a single product of so few rows would occupy only
# one of the GPU's multiprocessors.
_PIECE = 4096
# Most threads that read: as many saturate any GPU's link to the host, and each has buffers of its own.
_MOST_THREADS = 8
# Buffers of a thread: one is filled while the other is copied.
_BUFFERS = 2
_ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class _Segment:
    """Elements `start` to `stop` of a part, whose Gram matrix is at `row`; `number` counts the segments."""

    number: int
    row: int
    part: Part
    start: int
    stop: int


@dataclass(frozen=True)
class _Buffer:
    """Pinned bytes, and the event that marks the end of their copy to the GPU."""

    bytes: torch.Tensor
    copied: "torch.cuda.Event | None"

    @classmethod
    def of(cls, size: int, device: torch.device) -> "_Buffer":
        """Return a buffer of `size` bytes, pinned for a GPU."""
        event = torch.cuda.Event(blocking=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        return cls(staging((size,), torch.uint8, device), event)


def grams_on_gpu(
    comparison: Comparison, parts: Sequence[Part], device: torch.device, *, threads: int | None = None
) -> torch.Tensor:
    """Return the Gram matrix of each part, as `statistics.measure_grams` does.

    If the memory of the GPU does not suffice, torch's error is raised: torch.OutOfMemoryError, or a RuntimeError of
    that meaning.

    Args:
        comparison: The open sources and target.
        parts: The parts to measure.
        device: Device that multiplies.
        threads: Number of threads. Default: one for each core, at most eight. It changes no bit of the result.

    Returns:
        Matrices, float64 [parts, K + 2, K + 2], on the CPU.
    """
    plan = _Plan(comparison, parts)
    segments = list(plan.segments(parts))
    size = len(plan.rows)
    products = torch.empty(len(segments), size * size, dtype=torch.float64, device=device)
    widths = [comparison.number_bytes(part) for part in parts]
    total, done = sum((segment.stop - segment.start) * widths[segment.row] for segment in segments), 0
    local = threading.local()
    passes: list[_Pass] = []

    def multiply(segment: _Segment) -> list[int]:
        # Not as the pool's initializer: after an error there, the pool reports only that it is broken, not that memory
        # is short.
        if not hasattr(local, "work"):
            local.work = _Pass(plan, device)
            passes.append(local.work)
        places: list[int] = local.work.multiply(segment, products[segment.number])
        return places

    grams = torch.zeros(len(parts), size, size, dtype=torch.float64)
    try:
        count = threads or min(os.cpu_count() or 1, _MOST_THREADS)
        with ThreadPoolExecutor(count, "measuring") as pool:
            try:
                places = []
                for segment, rows in zip(segments, pool.map(multiply, segments), strict=True):
                    places.append(torch.tensor(rows))
                    done += (segment.stop - segment.start) * widths[segment.row]
                    comparison.events.progress("reading the checkpoints", done, total)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        for work in passes:
            work.close()
    found = products.cpu()
    # In the order of the segments, not of the threads, so that sums do not depend on the threads.
    for segment, place, gram in zip(segments, places, found, strict=True):
        grams[segment.row][place[:, None], place] += gram[: len(place) ** 2].view(len(place), -1)
    return grams


class _Plan:
    """The checkpoints of the rows of a Gram matrix, and the number of elements read at a time."""

    def __init__(self, comparison: Comparison, parts: Sequence[Part]) -> None:
        self.reference = comparison.reference
        self.rows: list[TensorSource] = [self.reference, *comparison.sources.values(), comparison.target]
        widest = max((self._bytes(part) for part in parts), default=1)
        pieces = max(1, _SEGMENT_BYTES // (widest * _PIECE))
        self.length = min(_SEGMENT, pieces * _PIECE)
        self.capacity = widest * self.length + len(self.rows) * _ALIGNMENT

    def _bytes(self, part: Part) -> int:
        """Return the bytes of one element in all checkpoints."""
        return sum(each.tensors[part.name].dtype.itemsize for each in self.rows if part.held_by(each))

    def segments(self, parts: Sequence[Part]) -> Iterator[_Segment]:
        """Yield the segments of the parts, in order."""
        number = 0
        for row, part in enumerate(parts):
            size = torch.Size(part.shape).numel()
            for start in range(0, size, self.length):
                yield _Segment(number, row, part, start, min(start + self.length, size))
                number += 1

    def held(self, part: Part) -> list[int]:
        """Return the rows to read of a part: the reference's first if it holds the part, then each dtype together.

        The reference's dtype comes first. Rows of the same file as the reference are left out.
        """
        referenced = part.held_by(self.reference)
        last = len(self.rows) - 1
        found = [
            row
            for row, checkpoint in enumerate(self.rows[1:], start=1)
            if (row - 1 in part.holders or row == last) and not (referenced and checkpoint is self.reference)
        ]
        rows = [0, *found] if referenced else found
        dtypes = list(dict.fromkeys(self.rows[row].tensors[part.name].dtype for row in rows))
        return sorted(rows, key=lambda row: dtypes.index(self.rows[row].tensors[part.name].dtype))


class _Pass:
    """Reader and multiplier of segments, with files, buffers and a stream for the thread that creates it."""

    def __init__(self, plan: _Plan, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        nothing = torch.empty(0, dtype=torch.uint8)
        self._readers = {each: PartReader(each, nothing) for each in plan.rows}
        buffers = [_Buffer.of(plan.capacity, device) for _ in range(_BUFFERS)]
        self._turn = cycle(buffers)
        length = -(-plan.length // _PIECE) * _PIECE
        with self._streaming():
            self._double = torch.empty(len(plan.rows), length, dtype=torch.float64, device=device)

    def multiply(self, segment: _Segment, out: torch.Tensor) -> list[int]:
        """Write the products of a segment's rows to `out` [rows * rows]; return their rows of the Gram matrix."""
        rows = self._plan.held(segment.part)
        buffer = next(self._turn)
        if buffer.copied is not None:
            buffer.copied.synchronize()
        stacks = list(self._read(segment, rows, buffer.bytes))
        length, used = segment.stop - segment.start, stacks[-1][1]
        padded = -(-length // _PIECE) * _PIECE
        with self._streaming():
            moved = buffer.bytes[:used].to(self._device, non_blocking=True)
            if buffer.copied is not None:
                buffer.copied.record(self._stream)
            double = self._double[: len(rows), :padded]
            double[:, length:].zero_()
            first = 0
            for start, stop, dtype in stacks:
                stack = moved[start:stop].view(dtype).view(-1, length)
                double[first : first + len(stack), :length].copy_(stack)
                first += len(stack)
            if rows[0] == 0:
                double[1:].sub_(double[:1])
            pieces = double.view(len(rows), -1, _PIECE).transpose(0, 1)
            products = torch.bmm(pieces, pieces.transpose(1, 2))
            torch.sum(products, dim=0, out=out[: len(rows) ** 2].view(len(rows), -1))
        return rows

    def close(self) -> None:
        """Close the files when the GPU has finished."""
        if self._stream is not None:
            self._stream.synchronize()
        for reader in self._readers.values():
            reader.close()

    def _read(
        self, segment: _Segment, rows: Sequence[int], bytes_: torch.Tensor
    ) -> Iterator[tuple[int, int, torch.dtype]]:
        """Read `rows` of a segment; yield start, stop (bytes in the buffer) and dtype of each run of one dtype."""
        length, end = segment.stop - segment.start, 0
        start, before = 0, None
        for row in rows:
            checkpoint = self._plan.rows[row]
            dtype = checkpoint.tensors[segment.part.name].dtype
            if before is not None and dtype != before:
                yield start, end, before
                start = end = -(-end // _ALIGNMENT) * _ALIGNMENT
            before, stop = dtype, end + length * dtype.itemsize
            self._readers[checkpoint].read_into(segment.part, segment.start, segment.stop, bytes_[end:stop].view(dtype))
            end = stop
        assert before is not None
        yield start, end, before

    def _streaming(self) -> "torch.cuda.StreamContext | nullcontext[None]":
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
