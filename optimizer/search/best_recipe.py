"""The record of a fit in the recipe that it found: similarities of the steps, searches, files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optimizer.library import seen_from
from optimizer.recipes import Fitted, FittedSearch, FittedSpread, FittedTarget, Recipe
from optimizer.search.results import SearchResult, SeedSpread
from optimizer.search.trials import Trial
from optimizer.studies import StepScores, Study, noted_scores
from optimizer.version import __version__

__all__ = ["finished_recipe"]


def finished_recipe(
    study: Study,
    recipe: Recipe,
    scored: Iterable[StepScores],
    searches: Iterable[tuple[SearchResult, Trial | None]],
    spread: Sequence[SeedSpread],
    hashed: Mapping[str, str],
    *,
    complete: bool,
) -> Recipe:
    """Return a recipe with the record of its fit, ready to be written into the study's folder.

    A step's similarities are recorded with those of its input a, as `before`. They are omitted if a is itself a step
    with the same record.

    Args:
        study: The fitted study.
        recipe: The recipe, without free alphas.
        scored: The similarities of its steps.
        searches: Each search that its alphas come from, with the trial whose alphas were taken.
        spread: The similarities on random inputs that were not fitted on.
        hashed: The known SHA-256 of each source by name; "" is the target.
        complete: Whether all searches and scores are done.

    Returns:
        The recipe with `sha256` of its models, `similarity` of its steps, and `fitted`.

    """
    models = {name: replace(model, sha256=hashed.get(name, model.sha256)) for name, model in recipe.models.items()}
    before: dict[tuple[str, str], dict[str, float]] = {}
    after: dict[tuple[str, str], dict[str, float]] = {}
    unchanged: dict[tuple[str, str], dict[str, None]] = {}
    pooled: dict[tuple[str, str], float | None] = {}
    for scores in scored:
        key = scores.step, scores.metric
        # The pooled share of several stages' blocks together is not measured.
        pooled[key] = scores.pooled if key not in after else None
        before.setdefault(key, {}).update(scores.before)
        after.setdefault(key, {}).update(scores.after)
        unchanged.setdefault(key, {}).update(dict.fromkeys(scores.unchanged))
    similarity: dict[str, dict[str, dict[str, Any]]] = {}
    for (step, metric), scores_after in after.items():
        earlier = before[step, metric]
        noted = after.get((recipe.step(step).a, metric), {}).items() >= earlier.items()
        entry = {
            **noted_scores(
                scores_after,
                unchanged=tuple(unchanged[step, metric]),
                pooled=pooled[step, metric],
                order=recipe.layout.blocks,
            ),
            **({} if noted or not earlier else {"before": noted_scores(earlier)}),
        }
        similarity.setdefault(step, {})[metric] = entry
    steps = tuple(replace(step, similarity=similarity.get(step.name)) for step in recipe.steps)
    fitted = Fitted(
        by="blockfit",
        version=__version__,
        recipe=seen_from(study.folder, study.recipe_path),
        target=FittedTarget(file=study.target_file, sha256=hashed.get("")),
        base=study.base,
        complete=complete,
        searches=tuple(_noted_search(result, best) for result, best in searches),
        other_random_inputs=tuple(map(_noted_spread, spread)) or None,
    )
    return replace(recipe, models=models, steps=steps, fitted=fitted)


def _noted_spread(spread: SeedSpread) -> FittedSpread:
    return FittedSpread(
        stage=spread.stage,
        step=spread.step,
        metric=spread.metric,
        seeds=spread.seeds,
        totals=tuple(round(total, 9) for total in spread.totals),
    )


def _noted_search(result: SearchResult, best: Trial | None) -> FittedSearch:
    stage = result.stage
    options = {key: value for group, used in stage.used_options if used for key, value in group.noted().items()}
    return FittedSearch(
        name=result.name,
        step=result.step,
        metric=stage.metric,
        strategy=stage.strategy,
        blocks=",".join(stage.blocks),
    ).noting(
        **options,
        trials=len(result.completed),
        best_trial=None if best is None or best.similarity is None else best.number,
        similarity=None if best is None or best.similarity is None else round(best.similarity, 9),
    )
