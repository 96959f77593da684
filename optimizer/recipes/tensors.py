"""Plan the tensors that merge: their blocks, their shapes and the sources that hold them."""

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
    """The sources, by position, that can count in the results of a recipe; see `coefficients.Contributors`."""

    @property
    def first(self) -> Collection[int]:
        """The positions of the sources that results begin with."""
        ...

    def of(self, block: str | None, holders: Sequence[int]) -> Collection[int]:
        """Return the sources whose coefficient may differ from 0 in tensors of `block` that `holders` hold."""
        ...


@dataclass(frozen=True)
class Part:
    """A tensor that merges, or a range of its input channels that all holders share.

    Only the input convolution of inpainting models is split, into the channels of every model and the others.

    Attributes:
        name: The canonical name of the tensor.
        block: The block whose alphas apply; None if the recipe's mapping applies no alpha.
        shape: The shape of the part.
        holders: The positions of the sources that hold the part.
        scored: Whether the part counts in similarities.
        channels: The range of input channels, (start, stop); None for the whole tensor.
        other_shapes: The positions of sources that hold the tensor in another shape. Their coefficient is 0 for all
            values of the free alphas.
    """

    name: str
    block: str | None
    shape: tuple[int, ...]
    holders: tuple[int, ...]
    scored: bool
    channels: tuple[int, int] | None = None
    other_shapes: tuple[int, ...] = ()

    def read(self, checkpoint: TensorSource) -> torch.Tensor:
        """Return the part of a checkpoint in the dtype stored, of shape `shape`."""
        tensor = checkpoint.tensor(self.name)
        return tensor if self.channels is None else tensor[:, self.channels[0] : self.channels[1]]

    def held_by(self, checkpoint: TensorSource) -> bool:
        """Return whether a checkpoint holds the part as floating-point numbers of the right shape."""
        info = checkpoint.tensors.get(self.name)
        if info is None or not info.dtype.is_floating_point:
            return False
        if self.channels is None:
            return info.shape == self.shape
        return len(info.shape) > 1 and info.shape[1] >= self.channels[1]


def plan_parts(
    layout: Layout, mapping: str, sources: Sequence[TensorSource], contributing: Contributing | None = None
) -> tuple[Part, ...]:
    """Return the parts that a merge computes.

    Args:
        layout: The model family.
        mapping: The mapping of tensors to blocks.
        sources: The sources.
        contributing: The sources whose shape decides where shapes differ. Default: all.

    Returns:
        The parts, in the order in which the sources store them.

    Raises:
        CheckpointError: The deciding sources have different shapes; one line for each tensor, with two files and the
            block. The input convolution of an inpainting model may have more channels.
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
        differing = next((position for position in counting if counting[position] != shape), None)
        if differing is None:
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
                f"{sources[differing].label}: tensor {name!r} of {block or 'no block'} has shape "
                f"{list(held[differing])}, but {list(shape)} in {sources[first].label}; only equal shapes merge"
                + (f", and with alphas of 0 on {block} it would take no part" if block and contributing else "")
            )
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise CheckpointError(problems[:_MOST_PROBLEMS] + ([f"... and {more} more tensors"] if more > 0 else []))
    return tuple(parts)


def _counting(
    held: Mapping[int, tuple[int, ...]], block: str | None, contributing: Contributing | None, *, with_first: bool
) -> dict[int, tuple[int, ...]]:
    """Return the shapes of the sources that count, at least one; `with_first` includes those of `first`."""
    if contributing is None:
        return dict(held)
    positions = {*contributing.of(block, tuple(held)), *(contributing.first if with_first else ())}
    counting = {position: shape for position, shape in held.items() if position in positions}
    return counting or dict([next(iter(held.items()))])


def _by_shape(
    held: Mapping[int, tuple[int, ...]], shapes: Collection[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the positions of the sources that hold a tensor in one of `shapes`, and of the others."""
    fitting = tuple(position for position, shape in held.items() if shape in shapes)
    return fitting, tuple(position for position in held if position not in fitting)


def finite(part: Part, checkpoint: TensorSource, purpose: str) -> torch.Tensor:
    """Return a part of a checkpoint in float32, and refuse NaN and Inf.

    Args:
        part: The part.
        checkpoint: The checkpoint.
        purpose: The use of the part, for the message: "merge" or "comparison".

    Returns:
        float32, of the part's shape.

    Raises:
        CheckpointError: The part contains NaN or Inf.
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
    """Refuse steps that add a checkpoint with more input channels to input a.

    Args:
        recipe: The recipe.
        outputs: The steps; the steps that they need are checked.
        parts: The parts of the merge.
        sources: The labels of the sources by name, in the order of the parts' holders.

    Raises:
        CheckpointError: One line for each such step.
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
