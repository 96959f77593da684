"""Cosines of attention outputs, row by row: a few rows of all candidates at a time, by several threads.

What has to be done to a logit is little, so on a processor it is as fast as numbers move. Rows are therefore taken in
tiles that stay in a core's own cache from the logits to the cosine, and what they are made of is read once for all
candidates. (`batched` is what a card is fast at.)

Logits come in units of log 2, because exp2 takes less than half the time of exp; and where exp underflows, which takes
it ten times as long as else, exp2 is nearly as fast as anywhere.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Barrier

import torch

from optimizer.similarity.logits import Logits

__all__ = ["Candidates", "Workers", "cosines", "outputs"]

# Numbers in a tile: 512 KiB, half of the second-level cache of common cores; the matrices that it is made of stream by.
_TILE = 1 << 17
# Candidates in a tile: with more of them its rows get too few for the matrices' sake, and nothing is gained.
_CANDIDATES = 16

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Candidates:
    """n candidates for one block of width d under one random input.

    `logits` are in units of log 2. `values` float32 [n, d] are the sums of the value projections, `target` float32
    [d, d] the target's outputs, each row divided by its norm. `cosines` float32 [n, d] is what is computed.
    """

    logits: Logits
    values: torch.Tensor
    target: torch.Tensor
    cosines: torch.Tensor

    @property
    def similarities(self) -> torch.Tensor:
        """The means over the rows of the cosines computed, float64 [n], on the processor."""
        return self.cosines.to(torch.float64).mean(dim=-1).clamp(-1, 1).cpu()


@dataclass(frozen=True)
class _Strip:
    """Some rows of the logits, for all candidates, `together` candidates at a time."""

    candidates: Candidates
    rows: slice
    together: int

    def compute(self, buffer: torch.Tensor) -> None:
        """Write these rows' cosines; `buffer` holds `together` times the strip."""
        what = self.candidates
        for start in range(0, len(what.values), self.together):
            some = slice(start, start + self.together)
            logits = what.logits.rows(some, self.rows, buffer)
            what.cosines[some, self.rows] = cosines(logits, what.values[some, None], what.target[self.rows])


def outputs(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """2 ^ (logits - their row's maximum) * values: attention outputs up to a factor for each row. Overwrites logits."""
    return logits.sub_(logits.amax(dim=-1, keepdim=True)).exp2_().mul_(values)


def cosines(logits: torch.Tensor, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cosines [..., rows] of the outputs and the target's rows of norm 1, both [..., rows, d]. Overwrites logits."""
    found = outputs(logits, values)
    norms = torch.linalg.vector_norm(found, dim=-1)
    return found.mul_(target).sum(dim=-1).div_(norms.clamp_min_(_TINY))


class Workers:
    """Threads that compute strips, as many as torch uses in the thread that makes this; none if that is one.

    They end with this object.
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
            # torch keeps this number for each thread by itself, and once more for those yet to come.
            torch.set_num_threads(self._count)

    def compute(self, work: Sequence[Candidates]) -> None:
        """Compute the cosines of all of them, on the processor."""
        strips: SimpleQueue[_Strip] = SimpleQueue()
        for strip in _strips(work):
            strips.put(strip)
        if self._pool is None or strips.qsize() == 1:
            _compute(strips)
            return
        for done in [self._pool.submit(_compute, strips) for _ in range(self._count)]:
            done.result()


def _begin(started: Barrier) -> None:
    # The cores are taken by the other threads. A thread that torch has not met takes over the process's number at its
    # first operation, whatever was set before: so let torch meet it first.
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
