"""Choose the VAE of a first recipe: that of the source whose VAE the target has."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from optimizer.checkpoints import TensorSource, open_checkpoint
from optimizer.errors import InputError
from optimizer.families import Layout

__all__ = ["MERGED", "FirstVae", "chosen_vae"]

MERGED = "merge"  # in place of a model's name: the VAE merges as the mapping says
_FIRST = 1 << 10  # elements of each tensor that are compared first: VAEs may share whole encoders
_CHUNK = 1 << 20  # elements compared at a time


@dataclass(frozen=True)
class FirstVae:
    """The VAE of a first recipe.

    Attributes:
        model: The model whose VAE the recipe copies; None if VAEs merge, or there is none to copy.
        note: A sentence on the choice; "" if there was none.
        comment: The choice in a comment above the recipe's field.
    """

    model: str | None
    note: str = ""
    comment: str = ""


def chosen_vae(target: Path, models: Mapping[str, Path], layout: Layout, given: str | None = None) -> FirstVae:
    """Return the first model whose VAE the target has bit for bit; if none has it, the first with a VAE.

    Values are compared in the target's dtype: a source in float32 whose VAE the target holds in float16 has it.

    Args:
        target: The target.
        models: The checkpoint of each model by its name in the recipe, in the order of the steps, the base first.
        layout: The layout of all of them.
        given: The name of the model to take, or `MERGED`. Default: as above.

    Returns:
        The choice; without a model if the target or all models lack a VAE.

    Raises:
        InputError: The model that was given has no VAE.
    """
    if given == MERGED:
        return FirstVae(None)
    with open_checkpoint(target, layout=layout) as wanted:
        names = _names(wanted, layout)
        holding = {name: path for name, path in models.items() if _holds(path, layout)}
        if given is not None and given not in holding:
            raise InputError(f"received {given!r}; {models[given]} has no VAE", field="vae")
        if given is not None:
            return FirstVae(given, comment=f"The VAE is that of {given}, unchanged.")
        if not names or not holding:
            return FirstVae(None)
        for name, path in holding.items():
            with open_checkpoint(path, layout=layout) as source:
                if _names(source, layout) == names and _equal(wanted, source, names):
                    return FirstVae(
                        name,
                        f"vae: {path.name}, whose VAE the target has; `vae` names another",
                        f"The VAE is that of {name}, as in the target. Without this line VAEs merge.",
                    )
    name, path = next(iter(holding.items()))
    return FirstVae(
        name,
        f"vae: {path.name}, a guess: no source has the target's VAE; `vae` names another, and `vae='{MERGED}'` merges "
        "the VAEs",
        f"The VAE is that of {name}, a guess: no model here has the target's. Without this line VAEs merge.",
    )


def _names(checkpoint: TensorSource, layout: Layout) -> frozenset[str]:
    """Return the names of a checkpoint's VAE."""
    vae = layout.vae
    return frozenset(name for name in checkpoint.tensors if vae is not None and vae.holds(name))


def _holds(path: Path, layout: Layout) -> bool:
    with open_checkpoint(path, layout=layout) as checkpoint:
        return bool(_names(checkpoint, layout))


def _equal(target: TensorSource, source: TensorSource, names: frozenset[str]) -> bool:
    """Return whether the source's tensors have the target's bits after rounding to its dtypes."""
    if any(target.tensors[name].shape != source.tensors[name].shape for name in names):
        return False
    return all(
        torch.equal(_bits(target.read(name, start, stop)), _bits(source.read(name, start, stop).to(dtype)))
        for name, start, stop in _ranges(target, names)
        for dtype in [target.tensors[name].dtype]
    )


def _ranges(target: TensorSource, names: frozenset[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the ranges of elements to compare, (name, start, stop): the first of every tensor, then the others."""
    sizes = {name: math.prod(target.tensors[name].shape) for name in sorted(names)}
    yield from ((name, 0, min(size, _FIRST)) for name, size in sizes.items())
    for name, size in sizes.items():
        yield from ((name, start, min(start + _CHUNK, size)) for start in range(_FIRST, size, _CHUNK))


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)
