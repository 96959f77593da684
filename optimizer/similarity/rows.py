"""Cosines of attention outputs, row by row: a few rows of all candidates at a time, in several threads.

The work per logit is small, so on a CPU it is limited by memory bandwidth. Rows are therefore computed in tiles that
stay in a core's cache from the logits to the cosine, and the matrices are read once for all candidates. (`batched` is
the form for a GPU.)

Logits are in units of log 2, because exp2 takes less than half the time of exp. Where exp underflows, it takes ten
times as long as elsewhere; exp2 hardly slows down.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Barrier

import torch

from optimizer.similarity.logits import Logits

__all__ = ["Candidates", "Workers", "cosines", "outputs"]

# Numbers of a tile: 512 KiB, half of the second-level cache of common cores. The matrices stream past it.
_TILE = 1 << 17
# Most candidates of a tile: with more, a tile has too few rows of each matrix.
_CANDIDATES = 16

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Candidates:
    """n candidates for one block of width d under one random input.

    Attributes:
        logits: Logits in units of log 2.
        values: Sums of the value projections, float32 [n, d].
        target: The target's outputs, float32 [d, d], each row divided by its norm.
        cosines: The result, float32 [n, d].
    """

    logits: Logits
    values: torch.Tensor
    target: torch.Tensor
    cosines: torch.Tensor

    @property
    def similarities(self) -> torch.Tensor:
        """Means over the rows of the computed cosines, float64 [n], on the CPU."""
        return self.cosines.to(torch.float64).mean(dim=-1).clamp(-1, 1).cpu()


@dataclass(frozen=True)
class _Strip:
    """Some rows of the logits of all candidates, `together` candidates at a time."""

    candidates: Candidates
    rows: slice
    together: int

    def compute(self, buffer: torch.Tensor) -> None:
        """Write the cosines of these rows; `buffer` has room for `together` times the strip."""
        candidates = self.candidates
        for start in range(0, len(candidates.values), self.together):
            some = slice(start, start + self.together)
            logits = candidates.logits.rows(some, self.rows, buffer)
            candidates.cosines[some, self.rows] = cosines(
                logits, candidates.values[some, None], candidates.target[self.rows]
            )


def outputs(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return 2 ^ (logits - maximum of their row) * values, the outputs up to a factor per row. Overwrites logits."""
    return logits.sub_(logits.amax(dim=-1, keepdim=True)).exp2_().mul_(values)


def cosines(logits: torch.Tensor, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return cosines [..., rows] of the outputs with the target's normalized rows [..., rows, d]. Overwrites logits."""
    found = outputs(logits, values)
    norms = torch.linalg.vector_norm(found, dim=-1)
    return found.mul_(target).sum(dim=-1).div_(norms.clamp_min_(_TINY))


class Workers:
    """Threads that compute strips, as many as torch uses in the thread that creates this object.

    They end with this object. If torch uses one thread, the caller's thread computes.
    """

    def __init__(self) -> None:
        self._count = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        if self._count > 1:
            started = Barrier(self._count + 1)
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="attention")
            for _ in range(self._count):
                self._pool.submit(_begin, started)
            started.wait()
            # torch keeps this number per thread, and once more for later threads.
            torch.set_num_threads(self._count)

    def compute(self, work: Sequence[Candidates]) -> None:
        """Compute the cosines of all candidates on the CPU."""
        strips: SimpleQueue[_Strip] = SimpleQueue()
        for strip in _strips(work):
            strips.put(strip)
        if self._pool is None or strips.qsize() == 1:
            _compute(strips)
            return
        for done in [self._pool.submit(_compute, strips) for _ in range(self._count)]:
            done.result()


def _begin(started: Barrier) -> None:
    # Each thread computes alone: the other threads use the other cores. A thread new to torch adopts the process's
    # number at its first operation, regardless of earlier settings, so this call comes first.
    torch.get_num_threads()
    torch.set_num_threads(1)
    started.wait()


def _strips(work: Sequence[Candidates]) -> Iterator[_Strip]:
    for candidates in work:
        count, width = candidates.cosines.shape
        together = max(1, min(count, _CANDIDATES, _TILE // width))
        height = max(1, _TILE // (together * width))
        for start in range(0, width, height):
            yield _Strip(candidates, slice(start, min(start + height, width)), together)


def _compute(strips: "SimpleQueue[_Strip]") -> None:
    buffer = torch.empty(0)
    try:
        while True:
            strip = strips.get_nowait()
            height, width = strip.rows.stop - strip.rows.start, strip.candidates.target.shape[1]
            if buffer.numel() < strip.together * height * width:
                buffer = torch.empty(max(_TILE, strip.together * height * width))
            strip.compute(buffer)
    except Empty:
        return
