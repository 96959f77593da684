"""The space of a recipe's free alphas: named parameters, and the conversion of points to alphas."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from optimizer.families import Layout
from optimizer.recipes.coefficients import Algebra
from optimizer.recipes.recipe import Free, Recipe

__all__ = ["Parameter", "Space", "described_alphas", "filled_alphas", "parameters_of"]


@dataclass(frozen=True)
class Parameter:
    """One number to search: a free alpha of one block, or a tied one of several blocks.

    Attributes:
        name: "STEP.OUT06" for the alpha of one block, "STEP.alpha" for a tied one.
        step: The name of the step.
        alpha: "alpha" or "beta".
        blocks: The blocks.
        free: The bounds, the grid and the start value.
    """

    name: str
    step: str
    alpha: str
    blocks: tuple[str, ...]
    free: Free


def parameters_of(recipe: Recipe, steps: Iterable[str]) -> tuple[Parameter, ...]:
    """Return the parameters of the steps' free alphas, in the order of `steps`, then of the layout's blocks."""
    found: list[Parameter] = []
    for name in steps:
        step = recipe.step(name)
        for alpha_name, alpha in step.alphas.items():
            tied = sum(free.tie for free in alpha.free)
            prefix = name if alpha_name == "alpha" else f"{name}.{alpha_name}"
            for free in alpha.free:
                if free.tie:
                    label = f"{name}.{alpha_name}"
                    if tied > 1:
                        label += f".{recipe.layout.describe_blocks(free.blocks)}"
                    found.append(Parameter(label, name, alpha_name, free.blocks, free))
                else:
                    found += [Parameter(f"{prefix}.{block}", name, alpha_name, (block,), free) for block in free.blocks]
    return tuple(found)


def described_alphas(names: Iterable[str], layout: Layout) -> tuple[str, ...]:
    """Return names of parameters with blocks joined to ranges: T1.OUT03, T1.OUT04 become T1.OUT03-OUT04.

    Args:
        names: The names of the parameters.
        layout: The layout of the recipe.

    Returns:
        The joined names, in the order of the first parameter of each.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        alpha, _, block = name.rpartition(".")
        key, blocks = (f"{alpha}.", [block]) if alpha and block in layout.blocks else (name, [])
        found.setdefault(key, []).extend(blocks)
    return tuple(alpha + layout.describe_blocks(blocks) for alpha, blocks in found.items())


class Space:
    """The space of points [n, parameters] of an algebra's free alphas; other alphas keep the recipe's number."""

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
        """The start value of each parameter."""
        return [parameter.free.starting_value for parameter in self.parameters]

    def alphas(self, points: torch.Tensor) -> torch.Tensor:
        """Return the alphas, float64 [n, alphas, blocks], of points [n, parameters]; differentiable."""
        filled = self._fixed.expand(len(points), -1, -1).clone()
        filled[:, self._row, self._column] = points[:, self._parameter].to(torch.float64)
        return filled

    def coefficients(self, points: torch.Tensor) -> torch.Tensor:
        """Return the coefficients, float64 [n, groups, sources], of points [n, parameters]."""
        return self.algebra.coefficients(self.alphas(points))

    @property
    def diagonal(self) -> torch.Tensor:
        """The low corner, the centre and the high corner of the space, float64 [3, parameters].

        In a block with one alpha, the coefficients of every point lie on the line through those of these three.
        """
        low, high = (
            torch.tensor([getattr(entry.free, end) for entry in self.parameters], dtype=torch.float64)
            for end in ("low", "high")
        )
        return torch.stack([low, (low + high) / 2, high])

    def parameters_by_block(self, blocks: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the names of the parameters that move each block, {block: names}, perhaps none."""
        return {
            block: tuple(parameter.name for parameter in self.parameters if block in parameter.blocks)
            for block in blocks
        }

    def moves(self) -> torch.Tensor:
        """Return 1 where a parameter is a group's alpha, else 0, as float64 [parameters, alphas, groups]."""
        by_block = torch.zeros(len(self.parameters), *self._fixed.shape, dtype=torch.float64)
        by_block[self._parameter, self._row, self._column] = 1
        return self.algebra.by_group(by_block)


def filled_alphas(
    parameters: Iterable[Parameter], point: Mapping[str, float]
) -> dict[tuple[str, str], dict[str, float]]:
    """Return the alphas {(step, alpha): {block: number}} of a point {parameter name: number}."""
    filled: dict[tuple[str, str], dict[str, float]] = {}
    for parameter in parameters:
        numbers = dict.fromkeys(parameter.blocks, float(point[parameter.name]))
        filled.setdefault((parameter.step, parameter.alpha), {}).update(numbers)
    return filled
