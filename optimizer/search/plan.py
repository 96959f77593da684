"""The plan of a fit: the searches in their order, with their identities and starting values.

These functions are pure: they read no file, no storage and no tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.recipes import Alpha, Parameter, Recipe
from optimizer.search.trials import binding_of
from optimizer.similarity import METRICS, Options
from optimizer.studies import Stage, Study

__all__ = ["Plan", "PlannedSearch", "earlier_alphas", "plan_searches", "starting_from"]


@dataclass(frozen=True)
class PlannedSearch:
    """One Optuna study that a fit will run, unless an earlier pass over the stage gains too little.

    Attributes:
        name: The name of the search.
        stage: Its stage.
        step: The step that it scores.
        parameters: The free alphas that it searches.
        number: The pass over the stage's steps, from 1.
        binding: Everything that a point's score depends on, except the alphas of other searches.

    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    number: int
    binding: Mapping[str, Any]

    def starting_from(self, recipe: Recipe) -> "PlannedSearch":
        """Return the search with the starting values of its pass; further passes start at the alphas of `recipe`."""
        return self if self.number == 1 else replace(self, parameters=starting_from(self.parameters, recipe))


@dataclass(frozen=True)
class Plan:
    """All searches of a fit in their order, and the recipe of an earlier fit.

    Attributes:
        study: The study to fit.
        searches: The searches of every pass of every stage.
        earlier: The best recipe of an earlier fit; None without one, or for a fresh start.

    """

    study: Study
    searches: tuple[PlannedSearch, ...]
    earlier: Recipe | None = None

    @property
    def bindings(self) -> dict[str, Mapping[str, Any]]:
        """Bindings of the searches, {name of the search: binding}."""
        return {search.name: search.binding for search in self.searches}

    def passes(self, stage: Stage) -> tuple[tuple[PlannedSearch, ...], ...]:
        """Return the searches of each pass over a stage."""
        of_stage = [search for search in self.searches if search.stage.name == stage.name]
        return tuple(
            tuple(search for search in of_stage if search.number == number) for number in range(1, stage.passes + 1)
        )

    def is_moved_later(self, stage: Stage) -> bool:
        """Return whether a later stage changes the scores of `stage`, which is then scored after all stages."""
        later = self.study.stages[self.study.stages.index(stage) + 1 :]
        return any(self.study.affects(mover, stage) for mover in later)

    def has_candidates(self, stage: Stage) -> bool:
        """Return whether the next best trials of a stage may become recipes: no other stage scores its alphas."""
        return not any(self.study.affects(stage, other) for other in self.study.stages if other != stage)

    def candidate_base(self, stage: Stage) -> str | None:
        """Return the base if all metrics of the stage ignore the distance of a merge from it, else None."""
        return self.study.base if all(METRICS[name].scale_free for name, _ in stage.measured) else None

    def kept(self, recipe: Recipe) -> Recipe:
        """Return `recipe` with its remaining free alphas set to the values of the earlier fit."""
        return recipe if self.earlier is None else recipe.with_alphas(earlier_alphas(recipe, self.earlier))


def plan_searches(
    study: Study,
    fingerprints: Mapping[str, str],
    options: Mapping[str, Options],
    earlier: Recipe | None = None,
) -> Plan:
    """Return the plan of a fit of `study`.

    Args:
        study: The study.
        fingerprints: The fingerprints of the sources and of the target by name, from `OpenStudy.fingerprints`.
        options: The options of each stage's metrics with all defaults filled in, {stage: options}, from
            `OpenStudy.options`. A stage that is missing keeps its options from study.yaml.
        earlier: The best recipe of an earlier fit.

    Returns:
        The plan.

    """
    searches = tuple(
        PlannedSearch(
            name,
            stage,
            step,
            parameters,
            number,
            binding_of(study, stage, step, parameters, fingerprints, options.get(stage.name)),
        )
        for stage in study.stages
        for number in range(1, stage.passes + 1)
        for name, step, parameters in stage.searches(number)
    )
    return Plan(study, searches, earlier)


def earlier_alphas(recipe: Recipe, earlier: Recipe) -> dict[tuple[str, str], dict[str, float]]:
    """Return the values in `earlier` of the free alphas of `recipe`, {(step, alpha): {block: value}}, if in range."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for step in recipe.steps:
        for name, alpha in step.alphas.items():
            before: Alpha = getattr(earlier.step(step.name), name)
            for free in alpha.free:
                numbers = {block: before.at(block) for block in free.blocks}
                if all(free.low <= number <= free.high for number in numbers.values()):
                    found.setdefault((step.name, name), {}).update(numbers)
    return found


def starting_from(parameters: Sequence[Parameter], recipe: Recipe) -> tuple[Parameter, ...]:
    """Return the same free alphas, with the values in `recipe` as their starting values."""
    found = []
    for parameter in parameters:
        start = getattr(recipe.step(parameter.step), parameter.alpha).at(parameter.blocks[0])
        found.append(replace(parameter, free=replace(parameter.free, start=start)))
    return tuple(found)
