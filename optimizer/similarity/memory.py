"""What to do when a card's memory does not suffice: fewer candidates at a time, then the processor."""

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from optimizer.errors import BlockfitWarning

if TYPE_CHECKING:
    from optimizer.similarity.metric import Metric

__all__ = ["MovableMetric", "free_memory", "in_batches", "out_of_memory", "where_it_fits"]

_Computed = TypeVar("_Computed")

_PROCESSOR = torch.device("cpu")
# How cuda's own libraries say it, in errors that torch gives no class of their own.
_OTHER_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this error says that a card's memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OTHER_WORDS)


def free_memory(device: torch.device) -> int:
    """Return how many bytes torch can still have on a card: free ones, and those that it keeps without using them.

    Of a processor more than anything takes: its memory is the system's to give.
    """
    if device.type == "cpu":
        return sys.maxsize
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def in_batches(compute: Callable[[torch.Tensor], torch.Tensor], candidates: torch.Tensor, size: int) -> torch.Tensor:
    """`compute` of `candidates` [n, ...], n at least 1, by `size` of them at a time: results [n, ...] in their order.

    Where memory does not suffice for `size` of them, half as many are taken from there on. Raises what `compute` does,
    if one candidate alone is too much: torch.OutOfMemoryError, or a RuntimeError that means the same.
    """
    results: list[torch.Tensor] = []
    done = 0
    while done < len(candidates):
        batch = candidates[done : done + size]
        result = None
        try:
            result = compute(batch)
        except RuntimeError as error:
            if len(batch) == 1 or not out_of_memory(error):
                raise
        if result is not None:
            results.append(result)
            done += len(batch)
        else:
            # Only here is the error gone, and with it what its traceback kept of the failed attempt.
            _free_what_is_cached()
            size = len(batch) // 2
    return results[0] if len(results) == 1 else torch.cat(results)


def where_it_fits(compute: Callable[[torch.device], _Computed], device: torch.device, what: str) -> _Computed:
    """What `compute` gives on `device`, or on the processor if that is a card whose memory does not suffice.

    Then a BlockfitWarning says that `what`, such as "the attention metric", is computed there.
    """
    if device.type == "cpu":
        return compute(device)
    try:
        return compute(device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    _free_what_is_cached()
    _warn(what)
    return compute(_PROCESSOR)


class MovableMetric:
    """A metric on a card, which is made anew on the processor as soon as the card's memory does not suffice.

    The scores are then what they would have been there from the start.
    """

    def __init__(self, build: Callable[[torch.device], "Metric"], device: torch.device, what: str) -> None:
        """`build` makes the metric, and must be able to for as long as it scores; `what` it is called in a warning."""
        self._build = build
        self._what = what
        self._device = device
        self._line: torch.Tensor | None = None

        def built(device: torch.device) -> "Metric":
            self._device = device
            return build(device)

        self._metric = where_it_fits(built, device, what)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that are scored."""
        return self._metric.blocks

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The blocks that are not scored because the target took them over unchanged."""
        return self._metric.unchanged

    def prepare(self, coefficients: torch.Tensor) -> None:
        """As the metric does."""
        self._line = coefficients
        self._moving(lambda metric: metric.prepare(coefficients))

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        return self._moving(lambda metric: metric.score(coefficients))

    def _moving(self, compute: Callable[["Metric"], _Computed]) -> _Computed:
        def on(device: torch.device) -> _Computed:
            if device != self._device:
                metric = self._build(device)
                if self._line is not None:
                    metric.prepare(self._line)
                self._metric, self._device = metric, device
                # Now that nothing of it is in use: other programs may wait for the card's memory.
                _free_what_is_cached()
            return compute(self._metric)

        return where_it_fits(on, self._device, self._what)


def _free_what_is_cached() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _warn(what: str) -> None:
    warnings.warn(
        f"the card has too little free memory for {what}: it is computed on the processor from here on, which is "
        "slower; to use the card, end other programs that use it and run again (`device='cpu'` does without it from "
        "the start)",
        BlockfitWarning,
        stacklevel=3,
    )
