"""Tensors of nothing but zeros: what a download that was broken off leaves where a program made room for the whole."""

import torch

from optimizer.checkpoints.reading import Checkpoint

__all__ = ["is_zero", "zeros_at_end"]

_FIRST = 64  # elements; of a tensor that means something they are hardly ever all zero


def is_zero(tensor: torch.Tensor) -> bool:
    """Whether a tensor has elements and all of them are 0. Of others it reads a few elements only."""
    if tensor.numel() == 0:
        return False
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:  # torch has no comparisons for float8
        tensor = tensor.to(torch.float32)
    flat = tensor.reshape(-1)
    return not bool(flat[:_FIRST].any()) and not bool(flat.any())


def zeros_at_end(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The tensors, from the last in the file backwards, that hold nothing but zeros, if there is a matrix among them.

    Floating-point ones that belong to a part of the layout. One tensor more than these is read.
    """
    found: list[str] = []
    for name in reversed(tuple(checkpoint.tensors)):
        info = checkpoint.tensors[name]
        if not info.dtype.is_floating_point or (checkpoint.layout is not None and not checkpoint.layout.merges(name)):
            continue
        if not is_zero(checkpoint.tensor(name)):
            break
        found.append(name)
    return tuple(found) if any(len(checkpoint.tensors[name].shape) > 1 for name in found) else ()
