"""Coefficients: the weight of each source in a merge, as a function of the alphas.

Merges are linear. At any depth of nested steps, a merged tensor is one weighted sum of the sources' tensors. The
weights depend only on the tensor's *group*: its block, whose alphas apply, and the sources that hold it. A recipe is
therefore compiled once into an `Algebra` that maps alphas to coefficients. No candidate is merged to be scored.

The result of a step for a group that an input lacks (presence rules):
    a lacks it, b holds it    b is carried over
    b or c lacks it           a passes through
    only c holds it           the result lacks it
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from optimizer.errors import RecipeError
from optimizer.recipes.modes import MODES
from optimizer.recipes.recipe import Recipe, Step
from optimizer.recipes.tensors import Part

__all__ = ["Algebra", "Contributors", "Group", "block_coefficients"]


@dataclass(frozen=True)
class Group:
    """Tensors that share their coefficients: those of one block that the same sources hold.

    Attributes:
        block: The block; None for tensors that no alpha moves, whose alphas count as 0 in every step.
        holders: The positions of the sources that hold the tensors, ascending.
        other_shapes: The positions of sources that hold them in a shape that does not fit. The coefficient of these
            sources is 0 for all alphas.
    """

    block: str | None
    holders: tuple[int, ...]
    other_shapes: tuple[int, ...] = ()

    @staticmethod
    def of_part(part: Part) -> "Group":
        """Return the group of a part."""
        return Group(part.block, part.holders, part.other_shapes)

    @staticmethod
    def of(parts: Iterable[Part]) -> tuple["Group", ...]:
        """Return the groups of `parts`, each once, in the order of first appearance."""
        return tuple(dict.fromkeys(map(Group.of_part, parts)))


class Algebra:
    """A recipe up to one output, compiled for groups of tensors: a function from alphas to coefficients.

        algebra = Algebra(recipe, groups, sources=("base", "bra", "evt"), output="TEMP2")
        c = algebra.coefficients(algebra.starting_alphas())        # float64 [1, groups, sources]

    Args:
        recipe: The recipe.
        groups: The groups, in the order of the coefficients' second axis.
        sources: The model names, in the order of the coefficients' last axis; all that the output needs.
        output: The step or model to compute. Default: the recipe's output.
        further: Other steps and models that `each` computes too.

    Attributes:
        alphas: The (step, "alpha") pairs, in the order of the second axis of alphas. The steps are in the order of
            evaluation.
        blocks: The layout's blocks, in the order of the last axis of alphas.

    Raises:
        RecipeError: A step needs a model that is not among the sources.
    """

    def __init__(
        self,
        recipe: Recipe,
        groups: Sequence[Group],
        sources: Sequence[str],
        output: str | None = None,
        further: Iterable[str] = (),
    ) -> None:
        self.recipe = recipe
        self.groups = tuple(groups)
        self.sources = tuple(sources)
        self.output = output or recipe.output
        self.blocks = recipe.layout.blocks
        self._outputs = dict.fromkeys((self.output, *further))
        made = [name for name in self._outputs if name not in recipe.models]
        self._steps = recipe.ancestors(*made) if made else ()
        self.alphas = tuple((step.name, name) for step in self._steps for name in step.alphas)
        columns = {None: len(self.blocks)} | {block: column for column, block in enumerate(self.blocks)}
        self._column = torch.tensor([columns[group.block] for group in self.groups], dtype=torch.long)
        held = torch.zeros(len(self.groups), len(self.sources), dtype=torch.bool)
        for row, group in enumerate(self.groups):
            held[row, [*group.holders, *group.other_shapes]] = True
        self._held = held
        self._position = {name: position for position, name in enumerate(self.sources)}
        self._presence = self._propagate()

    @property
    def present(self) -> torch.Tensor:
        """Whether the output holds the group's tensors, bool [groups]."""
        return self._presence[self.output]

    @property
    def presences(self) -> dict[str, torch.Tensor]:
        """Whether the output and each of `further` hold the group's tensors, {name: bool [groups]}."""
        return {name: self._presence[name] for name in self._outputs}

    def starting_alphas(self) -> torch.Tensor:
        """Return the recipe's alphas, free ones at their start values, float64 [1, alphas, blocks]."""
        rows = [[alpha.at(block) for block in self.blocks] for step in self._steps for alpha in step.alphas.values()]
        return torch.tensor(rows, dtype=torch.float64).reshape(1, len(self.alphas), len(self.blocks))

    def coefficients(self, alphas: torch.Tensor) -> torch.Tensor:
        """Return the weight of each source in the output.

        The function is differentiable by autograd and vectorised over the n candidates.

        Args:
            alphas: float64 [n, alphas, blocks].

        Returns:
            float64 [n, groups, sources]. Each row sums to 1, or to 0 where the output lacks the group.
        """
        return next(found for name, found in self.each(alphas) if name == self.output)

    def each(self, alphas: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the coefficients of the output and each of `further`, in one pass.

        Results are released after their last use, so that a chain of any length takes the memory of a few steps.

        Args:
            alphas: float64 [n, alphas, blocks].

        Yields:
            (name, float64 [n, groups, sources]) in the order of evaluation, models first.

        Raises:
            ValueError: `alphas` has another shape.
        """
        if alphas.shape[1:] != (len(self.alphas), len(self.blocks)):
            raise ValueError(
                f"alphas: received shape {list(alphas.shape)}; must be [n, {len(self.alphas)}, {len(self.blocks)}]"
            )
        local = self.by_group(alphas)[..., None]
        rows = {pair: local[:, index] for index, pair in enumerate(self.alphas)}
        yield from ((name, self._source(name, alphas.shape[0])) for name in self._outputs if name in self._position)
        values: dict[str, torch.Tensor] = {}
        last = {name: place for place, step in enumerate(self._steps) for name in step.inputs.values()}
        for place, step in enumerate(self._steps):
            for name in step.inputs.values():
                if name not in values:
                    values[name] = self._source(name, alphas.shape[0])
            values[step.name] = self._made_by(step, values, rows)
            if step.name in self._outputs:
                yield step.name, values[step.name]
            for name in {*step.inputs.values(), step.name}:
                if last.get(name, place) == place:
                    del values[name]

    def jacobian(self, alphas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the coefficients and their exact derivatives by the alphas.

        Derivatives are by the alpha of the group's block; groups do not depend on the alphas of other blocks. Modes are
        affine in each alpha, so the derivative by an alpha is the difference between their results at 1 and at 0. Modes
        are linear in their inputs, so this derivative counts in the output by one factor for each group. The factors
        are passed from the output back to the inputs, which takes one number in memory for each step and group.

        Args:
            alphas: float64 [alphas, blocks].

        Returns:
            Coefficients, float64 [groups, sources], and derivatives, float64 [alphas, groups, sources].
        """
        rows = dict(zip(self.alphas, self.by_group(alphas.to(torch.float64))[..., None], strict=True))
        values = {name: self._source(name, 1) for name in self.sources}
        for step in self._steps:
            values[step.name] = self._made_by(step, values, rows)
        derivatives = torch.zeros(len(self.alphas), len(self.groups), len(self.sources), dtype=torch.float64)
        places = {pair: row for row, pair in enumerate(self.alphas)}
        one, zero = (torch.full((len(self.groups), 1), number, dtype=torch.float64) for number in (1.0, 0.0))
        counting = {self.output: one}
        for step in reversed(self._steps):
            mode, counts = MODES[step.mode], counting.pop(step.name)
            inputs = {place: values[name][0] for place, name in step.inputs.items()}
            numbers = {name: rows[step.name, name] for name in step.alphas}
            holding = {place: self._presence[name][:, None] for place, name in step.inputs.items()}
            every = torch.stack(list(holding.values())).all(dim=0)
            for name in step.alphas:
                slope = mode.combine(inputs, {**numbers, name: one}) - mode.combine(inputs, {**numbers, name: zero})
                derivatives[places[step.name, name]] = counts * every * slope
            passed_on = {"a": holding["a"], "b": ~holding["a"]}
            for place, name in step.inputs.items():
                factor = mode.combine({each: one if each == place else zero for each in inputs}, numbers)
                factor = torch.where(every, factor, passed_on[place].to(torch.float64) if place in passed_on else zero)
                counting[name] = counting.get(name, zero) + counts * factor
        moved = self._column < len(self.blocks)
        return values[self.output][0], derivatives * moved[:, None]

    def by_group(self, values: torch.Tensor) -> torch.Tensor:
        """Return block values [..., blocks] for each group, [..., groups]; 0 for groups that no alpha moves."""
        return torch.nn.functional.pad(values, (0, 1))[..., self._column]

    def _source(self, name: str, count: int) -> torch.Tensor:
        """Return the coefficients of an unmerged source, the same for all candidates, [count, groups, sources]."""
        position = self._position[name]
        alone = torch.zeros(len(self.groups), len(self.sources), dtype=torch.float64)
        alone[:, position] = self._held[:, position].to(torch.float64)
        return alone.expand(count, -1, -1)

    def _made_by(
        self, step: Step, values: Mapping[str, torch.Tensor], rows: Mapping[tuple[str, str], torch.Tensor]
    ) -> torch.Tensor:
        """Return the coefficients of a step's result from those of its inputs and its alphas by group."""
        inputs = {place: values[name] for place, name in step.inputs.items()}
        result = MODES[step.mode].combine(inputs, {name: rows[step.name, name] for name in step.alphas})
        return self._apply_presence(step.inputs, inputs, result)

    def _apply_presence(
        self, names: dict[str, str], inputs: dict[str, torch.Tensor], result: torch.Tensor
    ) -> torch.Tensor:
        """Return the result, replaced by input a or b in groups that an input lacks."""
        holding = {place: self._presence[name] for place, name in names.items()}
        every = torch.stack(list(holding.values())).all(dim=0)
        if bool(every.all()):
            return result
        otherwise = torch.where(holding["a"][:, None], inputs["a"], inputs["b"])
        return torch.where(every[:, None], result, otherwise)

    def _propagate(self) -> dict[str, torch.Tensor]:
        """Return whether each source and step holds each group, {name: bool [groups]}."""
        presence = {name: self._held[:, position] for position, name in enumerate(self.sources)}
        for step in self._steps:
            for name in step.inputs.values():
                if name not in presence:
                    raise RecipeError(
                        f"steps.{step.name}: needs {name!r}, which is not among {', '.join(self.sources)}"
                    )
            presence[step.name] = presence[step.a] | presence[step.b]
        return presence


class Contributors:
    """The sources that can count in the results of steps, for any values of the free alphas.

    Args:
        recipe: The recipe.
        sources: The model names, in the order of the holders' positions.
        outputs: The steps, at least one.
    """

    def __init__(self, recipe: Recipe, sources: Sequence[str], outputs: Sequence[str]) -> None:
        self._recipe = recipe
        self._sources = tuple(sources)
        self._outputs = tuple(outputs)
        self._found: dict[Group, frozenset[int]] = {}

    @cached_property
    def first(self) -> frozenset[int]:
        """The positions of the sources that the outputs begin with."""
        return frozenset(self._sources.index(self._recipe.first_model(output)) for output in self._outputs)

    def of(self, block: str | None, holders: Sequence[int]) -> frozenset[int]:
        """Return the sources whose coefficient may differ from 0 in tensors of `block` that `holders` hold."""
        group = Group(block, tuple(holders))
        if group not in self._found:
            algebra = Algebra(self._recipe, [group], self._sources, self._outputs[0], self._outputs[1:])
            # A coefficient is a polynomial in the free alphas: unless it is 0 everywhere, random alphas show it.
            counts = [found[:, 0] != 0 for _, found in algebra.each(self._sampled_alphas(algebra))]
            self._found[group] = frozenset(torch.stack(counts).any(dim=0).any(dim=0).nonzero()[:, 0].tolist())
        return self._found[group]

    def _sampled_alphas(self, algebra: Algebra) -> torch.Tensor:
        """Return alphas with free ones at their start values and at random values, float64 [3, alphas, blocks]."""
        alphas = algebra.starting_alphas().repeat(3, 1, 1)
        random = torch.Generator().manual_seed(0)
        columns = {block: column for column, block in enumerate(algebra.blocks)}
        for row, (step, name) in enumerate(algebra.alphas):
            for free in self._recipe.step(step).alphas[name].free:
                at = torch.rand(2, len(free.blocks), generator=random, dtype=torch.float64)
                alphas[1:, row, [columns[block] for block in free.blocks]] = free.low + at * (free.high - free.low)
        return alphas


def block_coefficients(recipe: Recipe, step: str | None = None) -> dict[str, dict[str, float]]:
    """Return the weight of each source in each block of a step's result.

        block_coefficients(result.recipe)["bra"]["OUT03"]

    The weights are those of tensors that all sources hold. Free alphas have their start values. Raises RecipeError for
    an unknown step.

    Args:
        recipe: The recipe.
        step: The name of the step. Default: the recipe's output.

    Returns:
        {source: {block: weight}}. The weights of a block sum to 1.
    """
    output = recipe.step(step or recipe.output).name
    sources = recipe.sources(output)
    groups = [Group(block, tuple(range(len(sources)))) for block in recipe.layout.blocks]
    algebra = Algebra(recipe, groups, sources, output)
    rows = algebra.coefficients(algebra.starting_alphas())[0]
    return {
        source: {block: float(rows[row, column]) for row, block in enumerate(recipe.layout.blocks)}
        for column, source in enumerate(sources)
    }
