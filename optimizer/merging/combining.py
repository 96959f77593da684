"""Computing merged tensors: weighted sums of what lies in the sources, by several threads, a chunk at a time.

A merge computes little for each byte that it reads, so it is as fast as bytes move. Each thread takes whole tensors and
goes through them in chunks that the processor's cache holds: a chunk of every source is read into one buffer, added up,
rounded, checked for NaN and Inf and written before the next one begins, so that numbers cross the main memory only in
and out of the system's file cache. Reading into a buffer costs less than the page faults of a mapped file.
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

# Elements. Smaller chunks have the threads wait for the interpreter, larger ones leave the cache; between 2^18 and 2^20
# times differ by less than they vary.
CHUNK = 1 << 18
_LARGEST_ITEM = 8  # bytes: float64

# What `add_` itself converts to float32 on the way, without a pass of its own. It would add float64 in float64.
_ADDED_AS_FLOAT32 = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class WeightedSum:
    """A part of the result: the sum of `weights[position]` x that part of the source at `position`.

    Sources that are not in `weights` are not read. The sum is taken in float32, in the order of `weights`.
    """

    part: Part
    weights: Mapping[int, float]


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the result: one sum, or several that follow each other along dimension 1."""

    name: str
    sums: tuple[WeightedSum, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
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

    `threads` tensors are worked on at a time, which does not change any bit of them. `progress` is called in the
    caller's thread after each tensor. `zeros` notes which of what is read holds nothing but zeros. All threads have
    ended when this returns or raises.

    Raises CheckpointError for a source that cannot be read on, for NaN or Inf in what takes part, and for values beyond
    the range of `dtype`: for the first tensor of which that is true. What `progress` raises passes through, as
    KeyboardInterrupt does.
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
                    # torch keeps this number for each thread by itself, and once more for those yet to come.
                    torch.set_num_threads(of_caller)
                elif report is _Report.ENDED:
                    running -= 1
                elif isinstance(report, MergedTensor):
                    progress(report)
    finally:
        torch.set_num_threads(of_caller)
    queue.raise_failure()


class _Report(Enum):
    """What a thread tells besides the tensors that it has written."""

    STARTED = auto()
    ENDED = auto()


class _Queue:
    """Hands tensors out in order. After a failure those before the failed one are still finished, and none after it.

    So the failure that is reported is that of the first tensor that fails, however many threads there are.
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
                if not self.wants(index):
                    return
                self._next += 1
            yield index, self._tensors[index]

    def wants(self, index: int) -> bool:
        """Whether the tensor at `index` is still to be worked on."""
        return index < self._end

    def fail(self, index: int, failure: BaseException) -> None:
        """Note that the tensor at `index` failed."""
        with self._lock:
            if self.wants(index):
                self._end, self._failure = index, failure

    def close(self) -> None:
        """Want nothing any more."""
        with self._lock:
            self._end = 0

    def raise_failure(self) -> None:
        """Raise the failure, if there was one."""
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
    index = 0
    try:
        # The cores are taken by the other threads. A thread that torch has not met takes over the process's number at
        # its first operation, whatever was set before: so let torch meet it first.
        torch.get_num_threads()
        torch.set_num_threads(1)
        reports.put(_Report.STARTED)
        with _Adder(sources, dtype, zeros) as adder:
            for index, tensor in queue:
                for start, chunk in adder.chunks(tensor):
                    if not queue.wants(index):
                        return
                    file.write(tensor.name, chunk, start)
                reports.put(tensor)
    except BaseException as failure:  # whatever it is, it is the caller's thread that has to learn of it
        queue.fail(index, failure)
    finally:
        reports.put(_Report.ENDED)


class _Adder:
    """Adds up sums chunk by chunk, in files and buffers of its own: for one thread."""

    def __init__(self, sources: Sequence[TensorSource], dtype: torch.dtype, zeros: ZeroTensors) -> None:
        buffer = torch.empty(CHUNK * _LARGEST_ITEM, dtype=torch.uint8)
        self._readers = [PartReader(source, buffer) for source in sources]
        self._dtype = dtype
        self._zeros = zeros
        # The sources of which nothing but zeros has been read of the tensor that is worked on.
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
        """The elements of `tensor` in order: (number of the first, elements [n]), valid until the next are asked for.

        Raises CheckpointError as `write_merged` does.
        """
        if len(tensor.sums) == 1:
            yield from self._chunks(tensor.sums[0])
        else:
            yield 0, torch.cat([self._whole(each) for each in tensor.sums], dim=1).reshape(-1)

    def _whole(self, what: WeightedSum) -> torch.Tensor:
        values = torch.empty(math.prod(what.part.shape), dtype=self._dtype)
        for start, chunk in self._chunks(what):
            values[start : start + chunk.numel()] = chunk
        return values.reshape(what.part.shape)

    def _chunks(self, what: WeightedSum) -> Iterator[tuple[int, torch.Tensor]]:
        size = math.prod(what.part.shape)
        self._still_zero = set(what.weights)
        for start in range(0, size, CHUNK):
            chunk = self._chunk(what, start, min(start + CHUNK, size))
            low, high = torch.aminmax(chunk)  # NaN if there is one; ten times as fast as isfinite
            if not (math.isfinite(low) and math.isfinite(high)):
                self._refuse(what)
            yield start, chunk
        # The channels that only an inpainting model has begin as zeros.
        if size and (what.part.channels is None or what.part.channels[0] == 0):
            for position in what.weights:
                checkpoint = self._readers[position].source
                self._zeros.note(what.part.name, checkpoint, zero=position in self._still_zero)

    def _chunk(self, what: WeightedSum, start: int, stop: int) -> torch.Tensor:
        total, rounded = self._total[: stop - start], self._rounded[: stop - start]
        if list(what.weights.values()) == [1.0]:
            (position,) = what.weights
            values = self._read(what.part, position, start, stop)
            if values.dtype == self._dtype:
                return values
            total.copy_(values)
        else:
            total.zero_()
            for position, weight in what.weights.items():
                values = self._read(what.part, position, start, stop)
                if values.dtype not in _ADDED_AS_FLOAT32:
                    values = values.to(torch.float32)
                total.add_(values, alpha=weight)
        return total if self._dtype == torch.float32 else rounded.copy_(total)

    def _read(self, part: Part, position: int, start: int, stop: int) -> torch.Tensor:
        values = self._readers[position].read(part, start, stop)
        # Hardly ever more than a few elements of a tensor's first chunk are looked at.
        if position in self._still_zero and not is_zero(values):
            self._still_zero.discard(position)
        return values

    def _refuse(self, what: WeightedSum) -> NoReturn:
        total = torch.zeros(what.part.shape, dtype=torch.float32)
        for position, weight in what.weights.items():
            total.add_(finite(what.part, self._readers[position].source, "merge"), alpha=weight)
        name = str(self._dtype).removeprefix("torch.")
        raise CheckpointError(
            f"tensor {what.part.name!r}: the merge reaches {total.abs().max():.6g}, but {name} ends at "
            f"{torch.finfo(self._dtype).max:.6g}; use `dtype` bf16 or fp32"
        )
