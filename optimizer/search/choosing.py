"""The choice of the recipes that a fit writes, from its findings.

These functions are pure: they read no file, no storage and no tensor.
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
    """The recipes and scores that a fit ends with.

    Attributes:
        best: The best recipe.
        candidates: The next best recipes that differ.
        scores: The scores of all stages, in the study's order.
        spread: The scores on random inputs that were not fitted on, in the same order.

    """

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
    """Return the recipes of a fit, ready to be written.

    Args:
        plan: The plan that was run.
        found: Its findings.
        hashed: The known SHA-256 of each source by name; "" is the target.
        complete: Whether all searches and scores are done.
        interrupted: Whether the fit was stopped. Free alphas that it did not reach then keep the values of an earlier
            fit, and no candidates are chosen.
        candidates: The requested number of recipes, the best one included.

    Returns:
        The best recipe, the candidates, and the scores.

    """
    recipe = (plan.kept(found.recipe) if interrupted else found.recipe).with_start_values()
    order = [stage.name for stage in plan.study.stages]
    scores = tuple(sorted(found.scores, key=lambda scored: order.index(scored.stage)))
    spread = tuple(sorted(found.spread, key=lambda scored: order.index(scored.stage)))
    searches = [(search, search.best) for search in deciding_searches(found.results)]
    best = finished_recipe(plan.study, recipe, scores, searches, spread, hashed, complete=complete)
    chosen = Chosen(best, (), scores, spread)
    if interrupted:
        return chosen
    ordered = sorted(found.choices, key=lambda each: (each[0].loss, each[0].trial.number))
    runners_up = tuple(
        _candidate(plan, found, replace(chosen, best=recipe), number, choice, of_stage, hashed)
        for number, (choice, of_stage) in enumerate(ordered[: candidates - 1], start=2)
    )
    return replace(chosen, candidates=runners_up)


def _candidate(
    plan: Plan,
    found: Findings,
    best: Chosen,
    number: int,
    choice: Choice,
    scores: tuple[StepScores, ...],
    hashed: Mapping[str, str],
) -> Candidate:
    """Return the best recipe with the alphas of one trial; `scores` are those of its stage under them."""
    search = choice.search
    other_scores = [scored for scored in best.scores if scored.stage != search.stage.name]
    searches = [
        (result, choice.trial if result.name == search.name else result.best)
        for result in deciding_searches(found.results)
    ]
    spread = [scored for scored in best.spread if scored.stage != search.stage.name]
    recipe = best.best.with_alphas(choice.alphas)
    finished = finished_recipe(plan.study, recipe, [*other_scores, *scores], searches, spread, hashed, complete=True)
    finished = replace(finished, fitted=finished.noted.noting(candidate=number))
    return Candidate(
        number, finished, search.name, choice.trial.number, choice.similarity, choice.loss, choice.distance
    )
