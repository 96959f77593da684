"""The plan of a fit: what is searched in which order, what each search is bound to, and where it starts.

Nothing here reads a file, a storage or a tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.recipes import Alpha, Parameter, Recipe
from optimizer.search.trials import bound_to
from optimizer.similarity import METRICS, Options
from optimizer.studies import Stage, Study

__all__ = ["Plan", "PlannedSearch", "plan_searches", "started_at", "still_free"]


@dataclass(frozen=True)
class PlannedSearch:
    """One Optuna study that a fit will run, unless an earlier pass over the stage gains too little.

    Attributes:
        name: What the search is called.
        stage: The stage that it belongs to.
        step: The step that it scores.
        parameters: The alphas that it searches.
        number: The pass over the stage's steps, from 1 up.
        binding: All that decides what a point scores, but for the alphas of other searches.

    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    number: int
    binding: Mapping[str, Any]

    def started_at(self, recipe: Recipe) -> "PlannedSearch":
        """Return the search as its pass starts it: a further pass goes on from the alphas of `recipe`."""
        return self if self.number == 1 else replace(self, parameters=started_at(self.parameters, recipe))


@dataclass(frozen=True)
class Plan:
    """All searches of a fit in their order, and what an earlier fit found.

    Attributes:
        study: The study that is fitted.
        searches: Every pass of every stage.
        earlier: The recipe in best.yaml of an earlier fit; None if there is none or a fresh start is asked for.

    """

    study: Study
    searches: tuple[PlannedSearch, ...]
    earlier: Recipe | None = None

    @property
    def bindings(self) -> dict[str, Mapping[str, Any]]:
        """What each search is bound to, by its name."""
        return {search.name: search.binding for search in self.searches}

    def passes(self, stage: Stage) -> tuple[tuple[PlannedSearch, ...], ...]:
        """Return the searches of each pass over a stage."""
        of_stage = [search for search in self.searches if search.stage.name == stage.name]
        return tuple(
            tuple(search for search in of_stage if search.number == number) for number in range(1, stage.passes + 1)
        )

    def is_moved_later(self, stage: Stage) -> bool:
        """Return whether a later stage moves what `stage` scores, which is then scored when all stages are done."""
        later = self.study.stages[self.study.stages.index(stage) + 1 :]
        return any(self.study.affects(other, stage) for other in later)

    def has_candidates(self, stage: Stage) -> bool:
        """Return whether the next best trials of a stage make recipes: not if another stage scores what it moves."""
        return not any(self.study.affects(stage, other) for other in self.study.stages if other != stage)

    def candidate_base(self, stage: Stage) -> str | None:
        """Return the base if the stage's metrics do not see how far a merge goes from it, else None."""
        return self.study.base if all(METRICS[name].scale_free for name, _ in stage.measured) else None

    def kept(self, recipe: Recipe) -> Recipe:
        """Return `recipe` with the alphas of the earlier fit where it still has free ones."""
        return recipe if self.earlier is None else recipe.with_alphas(still_free(recipe, self.earlier))


def plan_searches(
    study: Study,
    fingerprints: Mapping[str, str],
    options: Mapping[str, Options],
    earlier: Recipe | None = None,
) -> Plan:
    """Return what a fit of `study` searches.

    Args:
        study: The study.
        fingerprints: Of the sources by name and of the target, as `OpenStudy.fingerprints` has them.
        options: The options of each stage's metrics with all defaults filled in, {stage: options}, as
            `OpenStudy.options` has them; by default the stage's own.
        earlier: The recipe that an earlier fit wrote.

    """
    searches = tuple(
        PlannedSearch(
            name,
            stage,
            step,
            parameters,
            number,
            bound_to(study, stage, step, parameters, fingerprints, options.get(stage.name)),
        )
        for stage in study.stages
        for number in range(1, stage.passes + 1)
        for name, step, parameters in stage.searches(number)
    )
    return Plan(study, searches, earlier)


def still_free(recipe: Recipe, earlier: Recipe) -> dict[tuple[str, str], dict[str, float]]:
    """Return the numbers of `earlier` for the free alphas of `recipe`, where these allow them."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for step in recipe.steps:
        for name, alpha in step.alphas.items():
            before: Alpha = getattr(earlier.step(step.name), name)
            for free in alpha.free:
                numbers = {block: before.at(block) for block in free.blocks}
                if all(free.low <= number <= free.high for number in numbers.values()):
                    found.setdefault((step.name, name), {}).update(numbers)
    return found


def started_at(parameters: Sequence[Parameter], recipe: Recipe) -> tuple[Parameter, ...]:
    """Return the same parameters, starting at the numbers that `recipe` has for them."""
    found = []
    for parameter in parameters:
        now = getattr(recipe.step(parameter.step), parameter.alpha).at(parameter.blocks[0])
        found.append(replace(parameter, free=replace(parameter.free, start=now)))
    return tuple(found)
