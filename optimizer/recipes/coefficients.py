"""Coefficients: what each source contributes to a merge, as a function of the alphas.

Merges are linear. However deeply steps are nested, a merged tensor is one weighted sum of the sources' tensors, and
the weights depend only on the tensor's *group*: its block, whose alphas apply, and which of the sources hold it. So a
recipe is compiled once into an `Algebra` that maps alphas to coefficients; nothing is merged to score a candidate.

A step's result for a group that an input lacks (presence rules):
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
    """Tensors that share their coefficients: those of one block that the same sources hold (positions, ascending).

    `block` is None for tensors that no alpha moves: theirs count as 0 in every step. `other_shapes` are sources that
    hold them too, but in a shape that does not fit, and whose coefficient is 0 whatever the alphas are.
    """

    block: str | None
    holders: tuple[int, ...]
    other_shapes: tuple[int, ...] = ()

    @staticmethod
    def of_part(part: Part) -> "Group":
        """The group of one part."""
        return Group(part.block, part.holders, part.other_shapes)

    @staticmethod
    def of(parts: Iterable[Part]) -> tuple["Group", ...]:
        """The groups of these parts, each once, in the order of first appearance."""
        return tuple(dict.fromkeys(map(Group.of_part, parts)))


class Algebra:
    """A recipe up to `output`, compiled for groups of tensors: alphas in, coefficients out.

    `further` are other steps and models whose coefficients are wanted too, see `each`.
    `sources` are the model names in the order of the coefficients' last axis; it must hold all that the output needs.
    `alphas` are the (step, "alpha") pairs, the second axis of the alphas taken; steps come in order of evaluation.

        algebra = Algebra(recipe, groups, sources=("base", "bra", "evt"), output="TEMP2")
        c = algebra.coefficients(algebra.starting_alphas())        # float64 [1, groups, sources]
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
        """Bool [groups]: whether the output holds the group's tensors at all."""
        return self._presence[self.output]

    @property
    def presences(self) -> dict[str, torch.Tensor]:
        """Bool [groups] for the output and each of `further`: whether it holds the group's tensors at all."""
        return {name: self._presence[name] for name in self._outputs}

    def starting_alphas(self) -> torch.Tensor:
        """Float64 [1, alphas, blocks]: the recipe's numbers, free ones at their starting values."""
        rows = [[alpha.at(block) for block in self.blocks] for step in self._steps for alpha in step.alphas.values()]
        return torch.tensor(rows, dtype=torch.float64).reshape(1, len(self.alphas), len(self.blocks))

    def coefficients(self, alphas: torch.Tensor) -> torch.Tensor:
        """What each source contributes, float64 [n, groups, sources], for alphas float64 [n, alphas, blocks].

        Differentiable (autograd) and vectorised over the n candidates. Every row sums to 1, or to 0 where the output
        lacks the group.
        """
        return next(found for name, found in self.each(alphas) if name == self.output)

    def each(self, alphas: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, coefficients) of the output and each of `further`, as `coefficients` gives them, in one pass.

        They come in the order of evaluation, models first. Results that nothing needs any more are let go, so a chain
        of any length takes the memory of a few steps.
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
        """Coefficients [groups, sources] and their derivatives [alphas, groups, sources], for alphas [alphas, blocks].

        The derivative is by the alpha of the group's own block; groups do not depend on other blocks' alphas. Exact:
        the modes are affine in each alpha, so the derivative by one is the difference between their results at 1 and
        0; and linear in their inputs, so it counts in the output by one factor for each group. Those factors are passed
        from the output back to the inputs, which keeps one number for each step and group in memory.
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
            own = {name: rows[step.name, name] for name in step.alphas}
            holding = {place: self._presence[name][:, None] for place, name in step.inputs.items()}
            every = torch.stack(list(holding.values())).all(dim=0)
            for name in step.alphas:
                slope = mode.combine(inputs, {**own, name: one}) - mode.combine(inputs, {**own, name: zero})
                derivatives[places[step.name, name]] = counts * every * slope
            passed_on = {"a": holding["a"], "b": ~holding["a"]}
            for place, name in step.inputs.items():
                factor = mode.combine({other: one if other == place else zero for other in inputs}, own)
                factor = torch.where(every, factor, passed_on[place].to(torch.float64) if place in passed_on else zero)
                counting[name] = counting.get(name, zero) + counts * factor
        moved = self._column < len(self.blocks)
        return values[self.output][0], derivatives * moved[:, None]

    def by_group(self, values: torch.Tensor) -> torch.Tensor:
        """Values [..., blocks] as each group has them, [..., groups]: those of its block, 0 if no alpha moves it."""
        return torch.nn.functional.pad(values, (0, 1))[..., self._column]

    def _source(self, name: str, count: int) -> torch.Tensor:
        """The coefficients [count, groups, sources] of a source by itself, the same for all candidates."""
        position = self._position[name]
        alone = torch.zeros(len(self.groups), len(self.sources), dtype=torch.float64)
        alone[:, position] = self._held[:, position].to(torch.float64)
        return alone.expand(count, -1, -1)

    def _made_by(
        self, step: Step, values: Mapping[str, torch.Tensor], rows: Mapping[tuple[str, str], torch.Tensor]
    ) -> torch.Tensor:
        """The coefficients of a step's result, from its inputs' in `values` and its alphas by group in `rows`."""
        inputs = {place: values[name] for place, name in step.inputs.items()}
        result = MODES[step.mode].combine(inputs, {name: rows[step.name, name] for name in step.alphas})
        return self._apply_presence(step.inputs, inputs, result)

    def _apply_presence(
        self, names: dict[str, str], inputs: dict[str, torch.Tensor], result: torch.Tensor
    ) -> torch.Tensor:
        holding = {place: self._presence[name] for place, name in names.items()}
        every = torch.stack(list(holding.values())).all(dim=0)
        if bool(every.all()):
            return result
        otherwise = torch.where(holding["a"][:, None], inputs["a"], inputs["b"])
        return torch.where(every[:, None], result, otherwise)

    def _propagate(self) -> dict[str, torch.Tensor]:
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
    """Which sources can count in what steps of a recipe make of a tensor, whatever values the free alphas take.

    `sources` are the model names in the order of the holders' positions, `outputs` the steps, one at least.
    """

    def __init__(self, recipe: Recipe, sources: Sequence[str], outputs: Sequence[str]) -> None:
        self._recipe = recipe
        self._sources = tuple(sources)
        self._outputs = tuple(outputs)
        self._found: dict[Group, frozenset[int]] = {}

    @cached_property
    def first(self) -> frozenset[int]:
        """The sources that the outputs begin with."""
        return frozenset(self._sources.index(self._recipe.first_model(output)) for output in self._outputs)

    def of(self, block: str | None, holders: Sequence[int]) -> frozenset[int]:
        """The sources whose coefficient may differ from 0 in tensors of `block` that `holders` hold."""
        group = Group(block, tuple(holders))
        if group not in self._found:
            algebra = Algebra(self._recipe, [group], self._sources, self._outputs[0], self._outputs[1:])
            # A coefficient is a polynomial in the free alphas: if it is not 0 everywhere, then nearly everywhere.
            counts = [found[:, 0] != 0 for _, found in algebra.each(self._drawn(algebra))]
            self._found[group] = frozenset(torch.stack(counts).any(dim=0).any(dim=0).nonzero()[:, 0].tolist())
        return self._found[group]

    def _drawn(self, algebra: Algebra) -> torch.Tensor:
        """The recipe's alphas, float64 [n, alphas, blocks]: free ones at their starting values, and at random."""
        alphas = algebra.starting_alphas().repeat(3, 1, 1)
        random = torch.Generator().manual_seed(0)
        columns = {block: column for column, block in enumerate(algebra.blocks)}
        for row, (step, name) in enumerate(algebra.alphas):
            for hole in self._recipe.step(step).alphas[name].free:
                at = torch.rand(2, len(hole.blocks), generator=random, dtype=torch.float64)
                alphas[1:, row, [columns[block] for block in hole.blocks]] = hole.low + at * (hole.high - hole.low)
        return alphas


def block_coefficients(recipe: Recipe, step: str | None = None) -> dict[str, dict[str, float]]:
    """What each source contributes to each block of `step` (default: the recipe's output), {source: {block: number}}.

        block_coefficients(result.recipe)["bra"]["OUT03"]

    Of tensors that all sources hold; free alphas stand at their starting values. A block's coefficients sum to 1.
    Raises RecipeError if there is no such step.
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
