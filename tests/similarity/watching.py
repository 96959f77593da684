"""A stand-in for a GPU: torch's meta device, with every operation on it counted."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["META", "Watching"]

META = torch.device("meta")
# Operations that start nothing on a GPU: views of the same numbers, and memory without content.
_NOTHING = {
    "alias", "as_strided", "detach", "empty", "empty_strided", "expand", "lift_fresh", "new_empty", "permute", "select",
    "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip


class Watching(TorchDispatchMode):
    """Counter of a GPU's operations, with the meta device in place of the GPU.

    `operations` counts by name, without views; `to_gpu` and `to_host` count copies. Copies to the host are ones. Fails
    if numbers of the host and the GPU meet in one operation, or if the host asks for a number on the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.to_gpu = self.to_host = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        name = function.overloadpacket.__name__
        tensors = [each for each in tree_iter((arguments, named)) if isinstance(each, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if name in ("_to_copy", "copy_") and (devices == {"cpu", "meta"} or named.get("device") is not None):
            target = tensors[0].device if name == "copy_" else torch.device(named["device"])
            (source,) = {tensor.device.type for tensor in tensors[1 if name == "copy_" else 0 :]}
            if source == "meta" and target.type == "cpu":
                self.to_host += 1
                like = tensors[1] if name == "copy_" else tensors[0]
                return torch.ones(like.shape, dtype=named.get("dtype") or like.dtype)
            if source == "cpu" and target.type == "meta":
                self.to_gpu += 1
            return function(*arguments, **named)
        if "meta" in devices:
            numbers = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.dim() > 0]
            assert not numbers, f"{name}: numbers of the host and the GPU in one operation"
            assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), f"{name} waits for the GPU"
            if name not in _NOTHING:
                self.operations[name] += 1
        return function(*arguments, **named)
