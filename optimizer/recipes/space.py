"""The space that a recipe's free alphas span: named parameters, and how a point in it becomes alphas."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from optimizer.families import Layout
from optimizer.recipes.coefficients import Algebra
from optimizer.recipes.recipe import Free, Recipe

__all__ = ["Parameter", "Space", "described_alphas", "filled_alphas", "parameters_of"]


@dataclass(frozen=True)
class Parameter:
    """One number to search for: the alpha of `step` on `blocks` (several blocks where it is tied).

    `name` is `STEP.OUT06` for a block's own alpha, `STEP.alpha` for a tied one.
    """

    name: str
    step: str
    alpha: str
    blocks: tuple[str, ...]
    free: Free


def parameters_of(recipe: Recipe, steps: Iterable[str]) -> tuple[Parameter, ...]:
    """The parameters of these steps' free alphas, in the order of `steps` and, within one, of the layout's blocks."""
    found: list[Parameter] = []
    for name in steps:
        step = recipe.step(name)
        for alpha_name, alpha in step.alphas.items():
            tied = sum(hole.tie for hole in alpha.free)
            prefix = name if alpha_name == "alpha" else f"{name}.{alpha_name}"
            for hole in alpha.free:
                if hole.tie:
                    label = f"{name}.{alpha_name}"
                    if tied > 1:
                        label += f".{recipe.layout.describe_blocks(hole.blocks)}"
                    found.append(Parameter(label, name, alpha_name, hole.blocks, hole))
                else:
                    found += [Parameter(f"{prefix}.{block}", name, alpha_name, (block,), hole) for block in hole.blocks]
    return tuple(found)


def described_alphas(names: Iterable[str], layout: Layout) -> tuple[str, ...]:
    """Return names of parameters, those that differ in the block alone as one: T1.OUT03, T1.OUT04 as T1.OUT03-OUT04.

    They stand in the order of the first of each.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        alpha, _, block = name.rpartition(".")
        key, blocks = (f"{alpha}.", [block]) if alpha and block in layout.blocks else (name, [])
        found.setdefault(key, []).extend(blocks)
    return tuple(alpha + layout.describe_blocks(blocks) for alpha, blocks in found.items())


class Space:
    """Points x [n, parameters] of an algebra's free alphas; every other alpha stays at the recipe's number."""

    def __init__(self, algebra: Algebra, parameters: Sequence[Parameter]) -> None:
        self.algebra = algebra
        self.parameters = tuple(parameters)
        self._fixed = algebra.starting_alphas()[0]
        position = {pair: row for row, pair in enumerate(algebra.alphas)}
        column = {block: index for index, block in enumerate(algebra.blocks)}
        places = [
            (index, position[parameter.step, parameter.alpha], column[block])
            for index, parameter in enumerate(self.parameters)
            for block in parameter.blocks
        ]
        self._parameter, self._row, self._column = (
            torch.tensor([place[axis] for place in places], dtype=torch.long) for axis in range(3)
        )

    @property
    def start(self) -> list[float]:
        """Each parameter's starting value."""
        return [parameter.free.starting_value for parameter in self.parameters]

    def alphas(self, points: torch.Tensor) -> torch.Tensor:
        """Float64 [n, alphas, blocks] for points [n, parameters]; differentiable."""
        filled = self._fixed.expand(len(points), -1, -1).clone()
        filled[:, self._row, self._column] = points[:, self._parameter].to(torch.float64)
        return filled

    def coefficients(self, points: torch.Tensor) -> torch.Tensor:
        """Float64 [n, groups, sources] for points [n, parameters]."""
        return self.algebra.coefficients(self.alphas(points))

    @property
    def diagonal(self) -> torch.Tensor:
        """The low corner, the middle and the high corner, float64 [3, parameters].

        Where a block has one alpha, all points of the space are on one line with these as far as the block can tell.
        """
        low, high = (
            torch.tensor([getattr(one.free, end) for one in self.parameters], dtype=torch.float64)
            for end in ("low", "high")
        )
        return torch.stack([low, (low + high) / 2, high])

    def parameters_by_block(self, blocks: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The names of the parameters that move each of these blocks, {block: names}; none for a block that stays."""
        return {
            block: tuple(parameter.name for parameter in self.parameters if block in parameter.blocks)
            for block in blocks
        }

    def moves(self) -> torch.Tensor:
        """1 where a parameter is a group's alpha, else 0: float64 [parameters, alphas, groups]."""
        by_block = torch.zeros(len(self.parameters), *self._fixed.shape, dtype=torch.float64)
        by_block[self._parameter, self._row, self._column] = 1
        return self.algebra.by_group(by_block)


def filled_alphas(
    parameters: Iterable[Parameter], point: Mapping[str, float]
) -> dict[tuple[str, str], dict[str, float]]:
    """The numbers {(step, alpha): {block: number}} that `point`, {parameter name: number}, stands for."""
    filled: dict[tuple[str, str], dict[str, float]] = {}
    for parameter in parameters:
        numbers = dict.fromkeys(parameter.blocks, float(point[parameter.name]))
        filled.setdefault((parameter.step, parameter.alpha), {}).update(numbers)
    return filled
