"""Loading of checkpoints' tensors to a GPU: moved as they are stored, converted and checked there.

A float16 tensor has half the bytes of its float32 copy, and a GPU converts and checks it faster than a CPU. From pinned
memory the copy runs while the next tensor is read. If the system refuses to pin memory (WSL, limits on locked memory),
the copy is an ordinary one.
"""

import math
from collections.abc import Sequence
from contextlib import suppress

import torch

from optimizer.checkpoints import TensorSource, ZeroTensors
from optimizer.recipes import Part, finite

__all__ = ["Loader", "staging"]


def staging(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return host memory of a shape to fill and copy to `device`, pinned for a GPU if the system allows it.

    After a copy with `non_blocking` torch reuses pinned memory only when that copy has ended.

    Args:
        shape: Shape of the tensor.
        dtype: Type of its elements.
        device: Device that it will be copied to.

    Returns:
        An uninitialised tensor on the host.
    """
    if device.type == "cuda":
        with suppress(RuntimeError):
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
    return torch.empty(tuple(shape), dtype=dtype)


class Loader:
    """Loader of checkpoints' parts to `device` in float32, which checks at the end that all were finite.

    It records in `zeros` which parts contain zeros only. A check of each tensor at once would make the host wait for
    the GPU each time.
    """

    def __init__(self, device: torch.device, zeros: ZeroTensors) -> None:
        self._device, self._zeros = device, zeros
        self._loaded: list[tuple[Part, TensorSource]] = []
        self._finite: list[torch.Tensor] = []
        self._zero: list[torch.Tensor] = []

    def load(self, part: Part, checkpoints: Sequence[TensorSource]) -> torch.Tensor:
        """Return `part` of each checkpoint, float32 [checkpoints, *part.shape], in one copy if all store one dtype."""
        stored = [part.read(checkpoint) for checkpoint in checkpoints]
        dtypes = {tensor.dtype for tensor in stored}
        if len(dtypes) == 1:
            loaded = self._moved(stored, dtypes.pop())
        else:
            loaded = torch.cat([self._moved([tensor], tensor.dtype) for tensor in stored])
        self._loaded += [(part, checkpoint) for checkpoint in checkpoints]
        flat = loaded.flatten(1)
        self._finite.append(torch.isfinite(flat).all(dim=1))
        self._zero.append((flat == 0).all(dim=1))
        return loaded

    def check(self) -> None:
        """Raise CheckpointError, naming file and tensor, for the first loaded tensor that contains NaN or Inf."""
        if not self._finite:
            return
        found, zero = torch.stack([torch.cat(self._finite), torch.cat(self._zero)]).cpu()
        for (part, checkpoint), nothing in zip(self._loaded, zero.tolist(), strict=True):
            self._zeros.note(part.name, checkpoint, zero=nothing)
        if not bool(found.all()):
            part, checkpoint = self._loaded[int(found.logical_not().nonzero()[0])]
            finite(part, checkpoint, "comparison")

    def _moved(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        shape = (len(stored), *stored[0].shape)
        if self._device.type == "cpu" and len(stored) == 1:
            return stored[0][None].to(torch.float32)
        gathered = staging(shape, dtype, self._device) if math.prod(shape) else torch.empty(shape, dtype=dtype)
        for place, tensor in enumerate(stored):
            gathered[place].copy_(tensor)
        return gathered.to(self._device, non_blocking=True).to(torch.float32)
