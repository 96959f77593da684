"""Which tensors of a set of sources merge, in which block, and which sources hold them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from optimizer.checkpoints import TensorSource
from optimizer.errors import CheckpointError
from optimizer.families import Layout
from optimizer.recipes.recipe import Recipe

__all__ = ["Contributing", "Part", "check_channels", "finite", "plan_parts"]

_MOST_PROBLEMS = 8


class Contributing(Protocol):
    """Which sources, by their positions, can count in what a recipe makes; see `coefficients.Contributors`."""

    @property
    def first(self) -> Collection[int]:
        """The sources that results begin with."""
        ...

    def of(self, block: str | None, holders: Sequence[int]) -> Collection[int]:
        """Those whose coefficient may differ from 0 in tensors of `block` that `holders` hold."""
        ...


@dataclass(frozen=True)
class Part:
    """A tensor that merges, or the range of its input channels that all `holders` share.

    Only the input convolution of inpainting models is split: the channels that every model has, and the others.
    `holders` are the positions of the sources that hold the part; `block` is where its alphas come from, None where the
    recipe's mapping moves it by none. `scored` is whether it counts in similarities. `other_shapes` are the positions
    of sources that hold the tensor in another shape, and whose coefficient for it is 0 whatever the free alphas are.
    """

    name: str
    block: str | None
    shape: tuple[int, ...]
    holders: tuple[int, ...]
    scored: bool
    channels: tuple[int, int] | None = None
    other_shapes: tuple[int, ...] = ()

    def read(self, checkpoint: TensorSource) -> torch.Tensor:
        """This part of `checkpoint` as stored, of shape `shape`."""
        tensor = checkpoint.tensor(self.name)
        return tensor if self.channels is None else tensor[:, self.channels[0] : self.channels[1]]

    def held_by(self, checkpoint: TensorSource) -> bool:
        """Whether `checkpoint`, a source or not, holds this part as floating-point numbers of the right shape."""
        info = checkpoint.tensors.get(self.name)
        if info is None or not info.dtype.is_floating_point:
            return False
        if self.channels is None:
            return info.shape == self.shape
        return len(info.shape) > 1 and info.shape[1] >= self.channels[1]


def plan_parts(
    layout: Layout, mapping: str, sources: Sequence[TensorSource], contributing: Contributing | None = None
) -> tuple[Part, ...]:
    """The parts that a merge of `sources` computes, in the order in which the sources store them.

    Of tensors whose shapes differ, those sources count that are `contributing` (default: all): their shape is the
    part's. Raises CheckpointError with a line for each tensor of which they have several, naming both files, the tensor
    and its block; the input convolution of an inpainting model, which has more channels, excepted.
    """
    shapes: dict[str, dict[int, tuple[int, ...]]] = {}
    for position, source in enumerate(sources):
        for name, info in source.tensors.items():
            if layout.merges(name) and info.dtype.is_floating_point:
                shapes.setdefault(name, {})[position] = info.shape
    parts: list[Part] = []
    problems: list[str] = []
    for name, held in shapes.items():
        block = layout.block_of(name, mapping)
        scored = layout.scores(name) and block is not None
        if len(set(held.values())) == 1:
            parts.append(Part(name, block, next(iter(held.values())), tuple(held), scored))
            continue
        inpainting = layout.inpainting if layout.inpainting and layout.inpainting.tensor == name else None
        counting = _counting(held, block, contributing, with_first=inpainting is not None)
        first, shape = next(iter(counting.items()))
        other = next((position for position in counting if counting[position] != shape), None)
        if other is None:
            holders, others = _by_shape(held, {shape})
            parts.append(Part(name, block, shape, holders, scored, other_shapes=others))
        elif inpainting is not None and _differ_in_channels(counting.values(), inpainting.channels):
            few, many = min(s[1] for s in counting.values()), max(s[1] for s in counting.values())
            holders, others = _by_shape(held, set(counting.values()))
            wide = tuple(position for position in counting if counting[position][1] == many)
            narrow = Part(name, block, (shape[0], few, *shape[2:]), holders, scored, (0, few), others)
            parts.append(narrow)
            parts.append(Part(name, block, (shape[0], many - few, *shape[2:]), wide, scored, (few, many)))
        else:
            problems.append(
                f"{sources[other].label}: tensor {name!r} of {block or 'no block'} has shape {list(held[other])}, but "
                f"{list(shape)} in {sources[first].label}; only equal shapes merge"
                + (f", and with alphas of 0 on {block} it would take no part" if block and contributing else "")
            )
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise CheckpointError(problems[:_MOST_PROBLEMS] + ([f"... and {more} more tensors"] if more > 0 else []))
    return tuple(parts)


def _counting(
    held: Mapping[int, tuple[int, ...]], block: str | None, contributing: Contributing | None, *, with_first: bool
) -> dict[int, tuple[int, ...]]:
    """The shapes of the sources that count, one at least; `with_first`: those that results begin with do."""
    if contributing is None:
        return dict(held)
    positions = {*contributing.of(block, tuple(held)), *(contributing.first if with_first else ())}
    counting = {position: shape for position, shape in held.items() if position in positions}
    return counting or dict([next(iter(held.items()))])


def _by_shape(
    held: Mapping[int, tuple[int, ...]], shapes: Collection[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions of the sources that hold a tensor in one of these shapes, and of the others."""
    fitting = tuple(position for position, shape in held.items() if shape in shapes)
    return fitting, tuple(position for position in held if position not in fitting)


def finite(part: Part, checkpoint: TensorSource, purpose: str) -> torch.Tensor:
    """This part of `checkpoint` in float32. Raises CheckpointError, naming both, if it holds NaN or Inf.

    `purpose` is what the part is needed for: "merge", "comparison".
    """
    tensor = part.read(checkpoint).to(torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{checkpoint.label}: tensor {part.name!r} holds NaN or Inf and takes part in the {purpose}; "
            "use a copy of the model without them"
        )
    return tensor


def check_channels(
    recipe: Recipe, outputs: str | Iterable[str], parts: Sequence[Part], sources: Mapping[str, str]
) -> None:
    """Refuse a step in which a checkpoint with more input channels than A is added to A, among those `outputs` need.

    `sources` are their labels by name, in the order that the parts' holders count. Raises CheckpointError, a line for
    each such step.
    """
    problems: list[str] = []
    names, inpainting = list(sources), recipe.layout.inpainting
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
                made_for = None if inpainting is None else inpainting.variants.get(part.channels[1])
                problems.append(
                    f"{sources[wide[beside]]}: tensor {part.name!r} has {part.channels[1]} input channels"
                    f"{f', as {made_for} models have' if made_for else ''}, but {part.channels[0]} in "
                    f"{sources[narrow]}; steps.{step.name} takes a model with more channels only as a"
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
