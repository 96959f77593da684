"""Compute merged tensors, weighted sums of the sources' tensors, in several threads and in chunks.

A merge computes little for each byte that it reads, so memory bandwidth limits its speed. Each thread takes whole
tensors and works through them in chunks that fit the CPU cache. A chunk of every source is read into one buffer, added
up, rounded, checked for NaN and Inf, and written before the next chunk begins. So numbers cross the main memory only on
their way in and out of the system's file cache. Reading into a buffer costs less than the page faults of a mapped file.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import Enum, auto
from queue import SimpleQueue
from threading import Lock
from typing import NoReturn

import torch

from optimizer.checkpoints import SafetensorsWriter, TensorSource, ZeroTensors, is_zero
from optimizer.errors import CheckpointError
from optimizer.recipes import Part, PartReader, finite

__all__ = ["CHUNK", "MergedTensor", "WeightedSum", "write_merged"]

# Elements. Smaller chunks make the threads wait for the interpreter; larger ones do not fit the cache. Between 2^18 and
# 2^20 the times differ by less than their noise.
CHUNK = 1 << 18
_LARGEST_ITEM = 8  # bytes: float64

# `add_` converts these to float32 without a separate pass. It would add float64 in float64.
_ADDED_AS_FLOAT32 = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class WeightedSum:
    """A part of the result: the sum over sources of weight x the source's part.

    Attributes:
        part: The part of a tensor.
        weights: The weights by the position of the source. Other sources are not read. The sum is taken in float32, in
            this order.

    """

    part: Part
    weights: Mapping[int, float]


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the result: one sum, or several sums concatenated along dimension 1."""

    name: str
    sums: tuple[WeightedSum, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        first = self.sums[0].part.shape
        if len(self.sums) == 1:
            return first
        return (first[0], sum(each.part.shape[1] for each in self.sums), *first[2:])


def write_merged(
    file: SafetensorsWriter,
    tensors: Sequence[MergedTensor],
    sources: Sequence[TensorSource],
    dtype: torch.dtype,
    *,
    threads: int,
    progress: Callable[[MergedTensor], None],
    zeros: ZeroTensors | None = None,
) -> None:
    """Compute `tensors` from `sources` in float32, round them once to `dtype`, and write them to `file`.

    All threads have ended when this returns or raises. A CheckpointError reports the first tensor that fails: because
    its source can no longer be read, contains NaN or Inf, or gives values beyond the range of `dtype`. Errors from
    `progress`, and KeyboardInterrupt, pass through.

    Args:
        file: The open output.
        tensors: The tensors to compute, in the order of the file.
        sources: The open sources; weights refer to their positions.
        dtype: The dtype of the result.
        threads: The number of tensors that are computed at a time. It does not change any bit of the result.
        progress: Called in the caller's thread after each tensor.
        zeros: Notes the tensors read that contain only zeros.

    """
    threads = max(1, min(threads, len(tensors)))
    zeros = zeros or ZeroTensors()
    queue = _Queue(tensors)
    reports: SimpleQueue[MergedTensor | _Report] = SimpleQueue()
    of_caller = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="merging") as pool, closing(queue):
            for _ in range(threads):
                pool.submit(_work, queue, reports, file, sources, dtype, zeros)
            running = threads
            while running:
                report = reports.get()
                if report is _Report.STARTED:
                    # torch keeps this number for each thread, and once more for threads to come.
                    torch.set_num_threads(of_caller)
                elif report is _Report.ENDED:
                    running -= 1
                elif isinstance(report, MergedTensor):
                    progress(report)
    finally:
        torch.set_num_threads(of_caller)
    queue.raise_failure()


class _Report(Enum):
    """A report of a thread, besides the tensors that it has written."""

    STARTED = auto()
    ENDED = auto()


class _Queue:
    """A queue that hands out tensors in order.

    After a failure the tensors before the failed one are still finished, and none after it. So the reported failure is
    that of the first tensor that fails, with any number of threads.
    """

    def __init__(self, tensors: Sequence[MergedTensor]) -> None:
        self._tensors = tensors
        self._next = 0
        self._end = len(tensors)
        self._failure: BaseException | None = None
        self._lock = Lock()

    def __iter__(self) -> Iterator[tuple[int, MergedTensor]]:
        while True:
            with self._lock:
                index = self._next
                if not self.is_pending(index):
                    return
                self._next += 1
            yield index, self._tensors[index]

    def is_pending(self, index: int) -> bool:
        """Return whether the tensor at `index` is still to be computed."""
        return index < self._end

    def fail(self, index: int, failure: BaseException) -> None:
        """Record the failure of the tensor at `index`, and drop all tensors after it."""
        with self._lock:
            if self.is_pending(index):
                self._end, self._failure = index, failure

    def close(self) -> None:
        """Drop all tensors that remain."""
        with self._lock:
            self._end = 0

    def raise_failure(self) -> None:
        """Raise the recorded failure, if any."""
        if self._failure is not None:
            raise self._failure


def _work(
    queue: _Queue,
    reports: "SimpleQueue[MergedTensor | _Report]",
    file: SafetensorsWriter,
    sources: Sequence[TensorSource],
    dtype: torch.dtype,
    zeros: ZeroTensors,
) -> None:
    """Compute and write tensors from the queue until it is empty: the body of a thread."""
    index = 0
    try:
        # The other threads use the other cores, so torch gets one. A new thread takes over the process's number at its
        # first call of torch, even if it was set before. So call torch once, then set it.
        torch.get_num_threads()
        torch.set_num_threads(1)
        reports.put(_Report.STARTED)
        with _Adder(sources, dtype, zeros) as adder:
            for index, tensor in queue:
                for start, chunk in adder.chunks(tensor):
                    if not queue.is_pending(index):
                        return
                    file.write(tensor.name, chunk, start)
                reports.put(tensor)
    except BaseException as failure:  # any failure must reach the caller's thread
        queue.fail(index, failure)
    finally:
        reports.put(_Report.ENDED)


class _Adder:
    """The files and buffers with which one thread computes sums, chunk by chunk."""

    def __init__(self, sources: Sequence[TensorSource], dtype: torch.dtype, zeros: ZeroTensors) -> None:
        buffer = torch.empty(CHUNK * _LARGEST_ITEM, dtype=torch.uint8)
        self._readers = [PartReader(source, buffer) for source in sources]
        self._dtype = dtype
        self._zeros = zeros
        # The sources whose part of the current tensor has had only zeros so far.
        self._still_zero: set[int] = set()
        self._total = torch.empty(CHUNK, dtype=torch.float32)
        self._rounded = self._total if dtype == torch.float32 else torch.empty(CHUNK, dtype=dtype)

    def __enter__(self) -> "_Adder":
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for reader in self._readers:
                stack.callback(reader.close)

    def chunks(self, tensor: MergedTensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the elements of a tensor in order.

        A CheckpointError is raised as in `write_merged`.

        Args:
            tensor: The tensor.

        Yields:
            The number of the chunk's first element, and the elements [n], valid until the next chunk.

        """
        if len(tensor.sums) == 1:
            yield from self._chunks(tensor.sums[0])
        else:
            yield 0, torch.cat([self._whole(each) for each in tensor.sums], dim=1).reshape(-1)

    def _whole(self, weighted: WeightedSum) -> torch.Tensor:
        """Return all elements of a sum, in the part's shape."""
        values = torch.empty(math.prod(weighted.part.shape), dtype=self._dtype)
        for start, chunk in self._chunks(weighted):
            values[start : start + chunk.numel()] = chunk
        return values.reshape(weighted.part.shape)

    def _chunks(self, weighted: WeightedSum) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the elements of a sum, checked and rounded: the number of the chunk's first, and the chunk [n]."""
        size = math.prod(weighted.part.shape)
        self._still_zero = set(weighted.weights)
        for start in range(0, size, CHUNK):
            chunk = self._chunk(weighted, start, min(start + CHUNK, size))
            low, high = torch.aminmax(chunk)  # NaN if the chunk contains NaN; ten times as fast as isfinite
            if not (math.isfinite(low) and math.isfinite(high)):
                self._refuse(weighted)
            yield start, chunk
        # The channels that only an inpainting model has begin as zeros.
        if size and (weighted.part.channels is None or weighted.part.channels[0] == 0):
            for position in weighted.weights:
                checkpoint = self._readers[position].source
                self._zeros.note(weighted.part.name, checkpoint, zero=position in self._still_zero)

    def _chunk(self, weighted: WeightedSum, start: int, stop: int) -> torch.Tensor:
        """Return the rounded elements `start` to `stop` of a sum, in a buffer that the next call reuses."""
        total, rounded = self._total[: stop - start], self._rounded[: stop - start]
        if list(weighted.weights.values()) == [1.0]:
            (position,) = weighted.weights
            values = self._read(weighted.part, position, start, stop)
            if values.dtype == self._dtype:
                return values
            total.copy_(values)
        else:
            total.zero_()
            for position, weight in weighted.weights.items():
                values = self._read(weighted.part, position, start, stop)
                if values.dtype not in _ADDED_AS_FLOAT32:
                    values = values.to(torch.float32)
                total.add_(values, alpha=weight)
        return total if self._dtype == torch.float32 else rounded.copy_(total)

    def _read(self, part: Part, position: int, start: int, stop: int) -> torch.Tensor:
        """Return elements of a source's part, and note whether all are zeros."""
        values = self._readers[position].read(part, start, stop)
        # `is_zero` rarely reads beyond a few elements of a tensor's first chunk.
        if position in self._still_zero and not is_zero(values):
            self._still_zero.discard(position)
        return values

    def _refuse(self, weighted: WeightedSum) -> NoReturn:
        """Raise CheckpointError for NaN or Inf in a source, or else for values beyond the range of the dtype."""
        total = torch.zeros(weighted.part.shape, dtype=torch.float32)
        for position, weight in weighted.weights.items():
            total.add_(finite(weighted.part, self._readers[position].source, "merge"), alpha=weight)
        name = str(self._dtype).removeprefix("torch.")
        raise CheckpointError(
            f"tensor {weighted.part.name!r}: the merge reaches {total.abs().max():.6g}; must be at most "
            f"{torch.finfo(self._dtype).max:.6g}, the largest {name} number; use `dtype` bf16 or fp32"
        )
