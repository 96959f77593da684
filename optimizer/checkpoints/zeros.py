"""Zero tensors: traces of a broken download into a file that was allocated in full."""

import torch

from optimizer.checkpoints.source import TensorSource

__all__ = ["is_zero", "zeros_at_end"]

_FIRST = 64  # elements; in a meaningful tensor these are hardly ever all zero


def is_zero(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has elements and all are zero. Of most other tensors only a few elements are read."""
    if tensor.numel() == 0:
        return False
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:  # torch has no comparisons for float8
        tensor = tensor.to(torch.float32)
    flat = tensor.reshape(-1)
    return not bool(flat[:_FIRST].any()) and not bool(flat.any())


def zeros_at_end(source: TensorSource) -> tuple[str, ...]:
    """Return the zero tensors at the end of the file, if one of them is a matrix.

    Only floating-point tensors of the layout count. One more tensor than those returned is read.

    Args:
        source: The source.

    Returns:
        Names, from the last in the file backwards; empty for a source without a file.
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
