"""What notebooks and scripts look at, as pandas tables: alphas, coefficients, similarities, what a study can reach."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from optimizer.analysis import Ceiling
from optimizer.recipes import Recipe, block_coefficients
from optimizer.search import FitResult
from optimizer.similarity import total_similarity

__all__ = ["alphas_frame", "ceiling_frame", "coefficients_frame", "similarity_frame", "sources_frame"]

_TOTAL = "total"


def alphas_frame(recipe: Recipe, steps: Sequence[str] | None = None) -> pd.DataFrame:
    """The alphas of `steps` (default: all), a row for each block of the layout, a column for each step.

        alphas_frame(result.recipe).loc["OUT03":].round(3)

    A beta has a column of its own, STEP.beta. Free alphas stand at their starting values.
    """
    columns = {}
    for step in recipe.steps if steps is None else [recipe.step(name) for name in steps]:
        for name, alpha in step.alphas.items():
            label = step.name if name == "alpha" else f"{step.name}.{name}"
            columns[label] = [alpha.at(block) for block in recipe.layout.blocks]
    return pd.DataFrame(columns, index=pd.Index(recipe.layout.blocks, name="block"))


def coefficients_frame(recipe: Recipe, step: str | None = None) -> pd.DataFrame:
    """What each source contributes to each block, a row for each block of the layout, a column for each source.

        coefficients_frame(result.recipe)["bold"].mean()

    Of `step`, by default the recipe's output; of tensors that all sources hold. Rows sum to 1. Free alphas stand at
    their starting values.
    """
    found = block_coefficients(recipe, step)
    return pd.DataFrame(found, index=pd.Index(recipe.layout.blocks, name="block"))


def similarity_frame(result: FitResult) -> pd.DataFrame:
    """The similarities of every stage's steps under the final alphas, in [-1, 1]; a row for each, a column per block.

        similarity_frame(result).xs("after", level="when")["total"]

    Rows are stage, step, metric and `when`: before (of the step's input A) or after. The first column is the total; a
    block that a stage does not score is NaN.
    """
    scored = {block for scores in result.scores for block in scores.after}
    blocks = [block for block in result.recipe.layout.blocks if block in scored]
    rows = {
        (scores.stage, scores.step, scores.metric, when): {_TOTAL: total_similarity(values), **values}
        for scores in result.scores
        for when, values in (("before", scores.before), ("after", scores.after))
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["stage", "step", "metric", "when"])
    return pd.DataFrame(list(rows.values()), index=index, columns=[_TOTAL, *blocks])


def ceiling_frame(found: Ceiling) -> pd.DataFrame:
    """What a study can reach, a row for each scored block and one for the total.

        explained, *cosines = study_ceilings(study)
        ceiling_frame(explained)[["recipe", "ceiling"]]

    The columns are those of `BlockCeiling` and `not_in_sources`, similarities in [-1, 1] and scales; None (NaN) where
    there is no best recipe yet. Scales have no total.
    """
    rows = {block: {**asdict(one), "not_in_sources": one.not_in_sources} for block, one in found.blocks.items()}
    total = found.total
    left = None if total["ceiling"] is None else 1 - total["ceiling"]
    table = pd.DataFrame.from_dict({**rows, _TOTAL: {**total, "not_in_sources": left}}, orient="index", dtype=float)
    return table.rename_axis("block")


def sources_frame(found: Ceiling) -> pd.DataFrame:
    """How much of each source is in the target, a row for each: coefficient and weighed one, with their errors.

        explained, *cosines = study_ceilings(study)
        sources_frame(explained).sort_values("loss")

    `loss` is what the ceiling loses without the source. See `SourceShare`.
    """
    shares = {name: share.as_dict() for name, share in found.sources.items()}
    rows = {name: {key: value for key, value in share.items() if key != "blocks"} for name, share in shares.items()}
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("source")
