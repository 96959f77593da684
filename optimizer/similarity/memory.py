"""Fallbacks for a GPU whose memory does not suffice: fewer candidates at a time, then the CPU."""

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from optimizer.errors import BlockfitWarning

if TYPE_CHECKING:
    from optimizer.similarity.metric import Metric

__all__ = ["MovableMetric", "free_memory", "in_batches", "on_first_device_that_fits", "out_of_memory"]

_Computed = TypeVar("_Computed")

_CPU = torch.device("cpu")
# Texts of CUDA's own libraries, in errors that torch has no class for.
_CUDA_TEXTS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether this error means that a GPU's memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _CUDA_TEXTS)


def free_memory(device: torch.device) -> int:
    """Return how many bytes torch can still allocate: a GPU's free bytes, and those that torch keeps unused.

    On the CPU, whose memory the system manages, the number is larger than any request.

    Args:
        device: The device.

    Returns:
        Bytes.
    """
    if device.type == "cpu":
        return sys.maxsize
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def in_batches(compute: Callable[[torch.Tensor], torch.Tensor], candidates: torch.Tensor, size: int) -> torch.Tensor:
    """Return the results of `compute` for all candidates, computed batch by batch.

    If the memory does not suffice for a batch, half as many are computed at a time from there on.

    Args:
        compute: Function of some of the candidates, [m, ...] to [m, ...].
        candidates: Candidates, [n, ...], n at least 1.
        size: Number of candidates of a batch.

    Returns:
        Results in the order of the candidates, [n, ...].

    Raises:
        RuntimeError: The memory does not suffice for one candidate (torch.OutOfMemoryError, or an error of that
            meaning), or `compute` failed for another reason.
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
            # Outside of the except clause, the error and the tensors that its traceback holds are freed.
            _empty_cache()
            size = len(batch) // 2
    return results[0] if len(results) == 1 else torch.cat(results)


def on_first_device_that_fits(
    compute: Callable[[torch.device], _Computed], device: torch.device, what: str
) -> _Computed:
    """Return the result of `compute` on a device, or on the CPU if the memory of a GPU does not suffice.

    The CPU is used with a BlockfitWarning.

    Args:
        compute: Function of the device.
        device: The device to try first.
        what: Name of the computation in the warning, for example "the attention metric".

    Returns:
        The result of `compute`.

    Raises:
        RuntimeError: `compute` failed for another reason than memory.
    """
    if device.type == "cpu":
        return compute(device)
    try:
        return compute(device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    _empty_cache()
    _warn(what)
    return compute(_CPU)


class MovableMetric:
    """Metric on a GPU that is built again on the CPU as soon as the GPU's memory does not suffice.

    Its scores are then those of a metric that was on the CPU from the start.
    """

    def __init__(self, build: Callable[[torch.device], "Metric"], device: torch.device, what: str) -> None:
        """Build the metric on `device`.

        Args:
            build: Function that builds the metric on a device; it is called again to move.
            device: The device to try first.
            what: Name of the metric in the warning.
        """
        self._build = build
        self._what = what
        self._device = device
        self._line: torch.Tensor | None = None

        def built(device: torch.device) -> "Metric":
            self._device = device
            return build(device)

        self._metric = on_first_device_that_fits(built, device, what)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that are scored."""
        return self._metric.blocks

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Blocks that are not scored because the target took them over unchanged."""
        return self._metric.unchanged

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Prepare the metric for candidates on the lines through these coefficients [n, groups, sources]."""
        self._line = coefficients
        self._run(lambda metric: metric.prepare(coefficients))

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        return self._run(lambda metric: metric.score(coefficients))

    def _run(self, compute: Callable[["Metric"], _Computed]) -> _Computed:
        def on(device: torch.device) -> _Computed:
            if device != self._device:
                metric = self._build(device)
                if self._line is not None:
                    metric.prepare(self._line)
                self._metric, self._device = metric, device
                # Free the GPU's memory for other programs, now that nothing uses it.
                _empty_cache()
            return compute(self._metric)

        return on_first_device_that_fits(on, self._device, self._what)


def _empty_cache() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _warn(what: str) -> None:
    warnings.warn(
        f"the GPU has too little free memory for {what}: the CPU computes it from here on, which is "
        "slower; to use the GPU, end other programs that use it and run again (`device='cpu'` uses the CPU from "
        "the start)",
        BlockfitWarning,
        stacklevel=3,
    )
