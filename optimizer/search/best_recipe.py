"""What a recipe notes of the fit that found it: similarities of its steps, the searches, the files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial

from optimizer.library import seen_from
from optimizer.recipes import Fitted, FittedSearch, FittedSpread, FittedTarget, Recipe
from optimizer.search.results import SearchResult, SeedSpread
from optimizer.studies import StepScores, Study, noted_scores
from optimizer.version import __version__

__all__ = ["finished_recipe"]


def finished_recipe(
    study: Study,
    recipe: Recipe,
    scored: Iterable[StepScores],
    searches: Iterable[tuple[SearchResult, FrozenTrial | None]],
    spread: Sequence[SeedSpread],
    hashed: Mapping[str, str],
    *,
    complete: bool,
) -> Recipe:
    """A recipe without holes, with all that is to be known of it as it will lie in the study's folder.

    `scored` are its steps' similarities, `searches` those that its alphas come from with the trials that had them,
    `hashed` the sha256 of its sources by name and of the target as "", as far as they are known. A step's similarity
    by a metric has that of its input a beside it, as `before`, unless that is a step that notes the same itself.
    """
    models = {name: replace(model, sha256=hashed.get(name, model.sha256)) for name, model in recipe.models.items()}
    before: dict[tuple[str, str], dict[str, float]] = {}
    after: dict[tuple[str, str], dict[str, float]] = {}
    unchanged: dict[tuple[str, str], dict[str, None]] = {}
    pooled: dict[tuple[str, str], float | None] = {}
    for scores in scored:
        key = scores.step, scores.metric
        # Of several stages' blocks together nobody knows the pooled share.
        pooled[key] = scores.pooled if key not in after else None
        before.setdefault(key, {}).update(scores.before)
        after.setdefault(key, {}).update(scores.after)
        unchanged.setdefault(key, {}).update(dict.fromkeys(scores.unchanged))
    similarity: dict[str, dict[str, dict[str, Any]]] = {}
    for (step, metric), own in after.items():
        earlier = before[step, metric]
        noted = after.get((recipe.step(step).a, metric), {}).items() >= earlier.items()
        entry = {
            **noted_scores(
                own,
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


def _noted_search(result: SearchResult, best: FrozenTrial | None) -> FittedSearch:
    stage = result.stage
    options = {key: value for one, used in stage.used_options if used for key, value in one.noted().items()}
    return FittedSearch(
        name=result.name,
        step=result.step,
        metric=stage.metric,
        strategy=stage.strategy,
        blocks=",".join(stage.blocks),
    ).noting(
        **options,
        trials=len(result.completed),
        best_trial=None if best is None else best.number,
        similarity=None if best is None else round(best.values[0], 9),
    )
