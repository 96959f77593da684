"""The recipes that a fit ends with, chosen from its findings.

Nothing here reads a file, a storage or a tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optimizer.recipes import Recipe
from optimizer.search.best_recipe import finished_recipe
from optimizer.search.candidates import Choice
from optimizer.search.findings import Findings
from optimizer.search.plan import Plan
from optimizer.search.results import Candidate, SeedSpread, deciding_searches
from optimizer.studies import StepScores

__all__ = ["Chosen", "choose"]


@dataclass(frozen=True)
class Chosen:
    """The best recipe, the candidates beside it, and the scores of all stages in the study's order."""

    best: Recipe
    candidates: tuple[Candidate, ...]
    scores: tuple[StepScores, ...]
    spread: tuple[SeedSpread, ...]


def choose(
    plan: Plan,
    found: Findings,
    hashed: Mapping[str, str],
    *,
    complete: bool = True,
    interrupted: bool = False,
    candidates: int = 1,
) -> Chosen:
    """Return the recipes of a fit, as they are to be written.

    Args:
        plan: The plan that was run.
        found: Its findings.
        hashed: The known sha256 of the sources by name, and of the target as "".
        complete: Whether all searches and scores are done.
        interrupted: Whether anything stopped the fit: free alphas that it did not reach are then as an earlier fit
            found them, and there are no candidates.
        candidates: The number of recipes asked for, the best one included.

    """
    recipe = (plan.kept(found.recipe) if interrupted else found.recipe).with_start_values()
    order = [stage.name for stage in plan.study.stages]
    scores = tuple(sorted(found.scores, key=lambda one: order.index(one.stage)))
    spread = tuple(sorted(found.spread, key=lambda one: order.index(one.stage)))
    searches = [(search, search.best) for search in deciding_searches(found.results)]
    best = finished_recipe(plan.study, recipe, scores, searches, spread, hashed, complete=complete)
    chosen = Chosen(best, (), scores, spread)
    if interrupted:
        return chosen
    ordered = sorted(found.choices, key=lambda each: (each[0].loss, each[0].trial.number))
    others = tuple(
        _candidate(plan, found, replace(chosen, best=recipe), number, choice, of_stage, hashed)
        for number, (choice, of_stage) in enumerate(ordered[: candidates - 1], start=2)
    )
    return replace(chosen, candidates=others)


def _candidate(
    plan: Plan,
    found: Findings,
    best: Chosen,
    number: int,
    choice: Choice,
    scores: tuple[StepScores, ...],
    hashed: Mapping[str, str],
) -> Candidate:
    """Return the recipe that differs from the best one by the alphas of one trial; `scores` are its stage's."""
    search = choice.search
    others = [one for one in best.scores if one.stage != search.stage.name]
    searches = [
        (one, choice.trial if one.name == search.name else one.best) for one in deciding_searches(found.results)
    ]
    spread = [one for one in best.spread if one.stage != search.stage.name]
    recipe = best.best.with_alphas(choice.alphas)
    finished = finished_recipe(plan.study, recipe, [*others, *scores], searches, spread, hashed, complete=True)
    finished = replace(finished, fitted=finished.noted.noting(candidate=number))
    return Candidate(
        number, finished, search.name, choice.trial.number, choice.similarity, choice.loss, choice.distance
    )
