"""Tensors of checkpoints on a card: moved as they are stored, converted and checked there.

A float16 tensor is half as many bytes to move as its float32 copy, and a card converts and checks it sooner than a
processor would. Memory that is pinned lets the copy run while the next tensor is read; a system may refuse to pin it
(WSL, limits on locked memory), and then the copy is an ordinary one.
"""

import math
from collections.abc import Sequence
from contextlib import suppress

import torch

from optimizer.checkpoints import TensorSource, ZeroTensors
from optimizer.recipes import Part, finite

__all__ = ["Loader", "staging"]


def staging(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return host memory, [shape], to fill and copy to `device`: pinned for a card if the system allows it.

    After a copy with `non_blocking` torch reuses pinned memory only when that copy has ended.
    """
    if device.type == "cuda":
        with suppress(RuntimeError):
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
    return torch.empty(tuple(shape), dtype=dtype)


class Loader:
    """Loads parts of checkpoints to `device` in float32, and checks at the end that they were finite.

    Which of them hold nothing but zeros it notes in `zeros`. Checking each tensor at once would have the host wait for
    the card each time.
    """

    def __init__(self, device: torch.device, zeros: ZeroTensors) -> None:
        self._device, self._zeros = device, zeros
        self._loaded: list[tuple[Part, TensorSource]] = []
        self._finite: list[torch.Tensor] = []
        self._zero: list[torch.Tensor] = []

    def load(self, part: Part, checkpoints: Sequence[TensorSource]) -> torch.Tensor:
        """Return `part` of each checkpoint, float32 [checkpoints, *part.shape]: one copy if all store one dtype."""
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
        """Raise CheckpointError, naming file and tensor, for the first tensor loaded that holds NaN or Inf."""
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
