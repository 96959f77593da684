"""Which tensors of a set of sources merge, in which block, and which sources hold them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from optimizer.checkpoints import Checkpoint
from optimizer.checkpoints.layout import Layout
from optimizer.errors import CheckpointError
from optimizer.recipes.recipe import Recipe

__all__ = ["Part", "check_channels", "finite", "plan_parts"]


@dataclass(frozen=True)
class Part:
    """A tensor that merges, or the range of its input channels that all `holders` share.

    Only the input convolution of inpainting models is split: channels 0-3, which every model has, and 4-8. `holders`
    are the positions of the sources that hold the part; `block` is where its alphas come from, None where the recipe's
    mapping moves it by none. `scored` is whether it counts in similarities.
    """

    name: str
    block: str | None
    shape: tuple[int, ...]
    holders: tuple[int, ...]
    scored: bool
    channels: tuple[int, int] | None = None

    def read(self, checkpoint: Checkpoint) -> torch.Tensor:
        """This part of `checkpoint` as stored, of shape `shape`."""
        tensor = checkpoint.tensor(self.name)
        return tensor if self.channels is None else tensor[:, self.channels[0] : self.channels[1]]

    def held_by(self, checkpoint: Checkpoint) -> bool:
        """Whether `checkpoint`, a source or not, holds this part as floating-point numbers of the right shape."""
        info = checkpoint.tensors.get(self.name)
        if info is None or not info.dtype.is_floating_point:
            return False
        if self.channels is None:
            return info.shape == self.shape
        return len(info.shape) > 1 and info.shape[1] >= self.channels[1]


def plan_parts(layout: Layout, mapping: str, sources: Sequence[Checkpoint]) -> tuple[Part, ...]:
    """The parts that a merge of `sources` computes, in the order in which the sources store them.

    Raises CheckpointError with a line for each tensor whose shapes differ, naming both files and the tensor; the input
    convolution of an inpainting model, which has more channels, excepted.
    """
    shapes: dict[str, dict[int, tuple[int, ...]]] = {}
    for position, source in enumerate(sources):
        for name, info in source.tensors.items():
            if layout.merges(name) and info.dtype.is_floating_point:
                shapes.setdefault(name, {})[position] = info.shape
    parts: list[Part] = []
    problems: list[str] = []
    for name, held in shapes.items():
        block, scored = layout.block_of(name, mapping), layout.scores(name)
        first, shape = next(iter(held.items()))
        other = next((position for position in held if held[position] != shape), None)
        if other is None:
            parts.append(Part(name, block, shape, tuple(held), scored))
        elif name == layout.inpainting_tensor and _differ_in_channels(held.values(), layout.inpainting_channels):
            few, many = min(s[1] for s in held.values()), max(s[1] for s in held.values())
            wide = tuple(position for position in held if held[position][1] == many)
            parts.append(Part(name, block, (shape[0], few, *shape[2:]), tuple(held), scored, (0, few)))
            parts.append(Part(name, block, (shape[0], many - few, *shape[2:]), wide, scored, (few, many)))
        else:
            problems.append(
                f"{sources[other].path}: tensor {name!r} has shape {list(held[other])}, "
                f"but {list(shape)} in {sources[first].path}; only checkpoints of equal shapes merge"
            )
    if problems:
        raise CheckpointError(problems[:8] + ([f"... and {len(problems) - 8} more tensors"] if problems[8:] else []))
    return tuple(parts)


def finite(part: Part, checkpoint: Checkpoint, purpose: str) -> torch.Tensor:
    """This part of `checkpoint` in float32. Raises CheckpointError, naming both, if it holds NaN or Inf.

    `purpose` is what the part is needed for: "merge", "comparison".
    """
    tensor = part.read(checkpoint).to(torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{checkpoint.path}: tensor {part.name!r} holds NaN or Inf and takes part in the {purpose}; "
            "use a copy of the model without them"
        )
    return tensor


def check_channels(
    recipe: Recipe, outputs: str | Iterable[str], parts: Sequence[Part], sources: Mapping[str, Path]
) -> None:
    """Refuse a step in which a checkpoint with more input channels than A is added to A, among those `outputs` need.

    `sources` are their files, in the order that the parts' holders count. Raises CheckpointError, a line for each such
    step.
    """
    problems: list[str] = []
    names = list(sources)
    results = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    for part in (part for part in parts if part.channels is not None and part.channels[0] > 0):
        assert part.channels is not None
        wide = {names[position]: names[position] for position in part.holders}
        for step in recipe.ancestors(*results):
            if step.a in wide:
                wide[step.name] = wide[step.a]
            elif beside := next((name for name in step.inputs.values() if name in wide), None):
                wide[step.name] = wide[beside]
                narrow = next((name for name in _leaves(recipe, step.a) if name in sources), step.a)
                problems.append(
                    f"{sources[wide[beside]]}: tensor {part.name!r} has {part.channels[1]} input channels, but "
                    f"{part.channels[0]} in {sources[narrow]}; "
                    f"steps.{step.name} takes an inpainting model only as a"
                )
    if problems:
        raise CheckpointError(problems)


def _leaves(recipe: Recipe, name: str) -> tuple[str, ...]:
    return (name,) if name in recipe.models else recipe.sources(name)


def _differ_in_channels(shapes: Iterable[tuple[int, ...]], channels: int) -> bool:
    distinct = set(shapes)
    return (
        len(distinct) == 2
        and all(len(shape) > 1 for shape in distinct)
        and min(shape[1] for shape in distinct) == channels
        and len({(shape[0], *shape[2:]) for shape in distinct}) == 1
    )
