"""Tensors of nothing but zeros: what a download that was broken off leaves where a program made room for the whole."""

import torch

from optimizer.checkpoints.source import TensorSource

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


def zeros_at_end(source: TensorSource) -> tuple[str, ...]:
    """Return the tensors, from the last in the file backwards, that hold nothing but zeros, if one of them is a matrix.

    Floating-point ones that belong to a part of the layout. One tensor more than these is read. A source that is in no
    file has no end.
    """
    found: list[str] = []
    for name in reversed(tuple(source.tensors)) if source.path is not None else ():
        info = source.tensors[name]
        if not info.dtype.is_floating_point or (source.layout is not None and not source.layout.merges(name)):
            continue
        if not is_zero(source.tensor(name)):
            break
        found.append(name)
    return tuple(found) if any(len(source.tensors[name].shape) > 1 for name in found) else ()
