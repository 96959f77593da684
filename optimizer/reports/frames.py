"""Results as pandas data frames for notebooks and scripts: alphas, coefficients, similarities, ceilings."""

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
    """Return the alphas of a recipe by block and step.

        alphas_frame(result.recipe).loc["OUT03":].round(3)

    Args:
        recipe: The recipe; a free alpha counts with its start value.
        steps: The steps to include; None for all.

    Returns:
        One row per block of the layout. One column per step, and another one, STEP.beta, for a step with a beta.
    """
    columns = {}
    for step in recipe.steps if steps is None else [recipe.step(name) for name in steps]:
        for name, alpha in step.alphas.items():
            label = step.name if name == "alpha" else f"{step.name}.{name}"
            columns[label] = [alpha.at(block) for block in recipe.layout.blocks]
    return pd.DataFrame(columns, index=pd.Index(recipe.layout.blocks, name="block"))


def coefficients_frame(recipe: Recipe, step: str | None = None) -> pd.DataFrame:
    """Return the coefficient of every source in every block of a merge.

        coefficients_frame(result.recipe)["bold"].mean()

    The coefficients hold for tensors that all sources contain.

    Args:
        recipe: The recipe; a free alpha counts with its start value.
        step: The step to describe; None for the recipe's output.

    Returns:
        One row per block of the layout and one column per source. Rows sum to 1.
    """
    found = block_coefficients(recipe, step)
    return pd.DataFrame(found, index=pd.Index(recipe.layout.blocks, name="block"))


def similarity_frame(result: FitResult) -> pd.DataFrame:
    """Return the similarities of every stage's steps with the final alphas.

        similarity_frame(result).xs("after", level="when")["total"]

    Args:
        result: The fit.

    Returns:
        Similarities in [-1, 1], by rows (stage, step, metric, when) with `when` "before" (the step's input A) or
        "after". Columns are the total and the blocks; a block that the stage does not score is NaN.
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
    """Return the similarities that a study can reach by one metric.

        explained, *cosines = study_ceilings(study)
        ceiling_frame(explained)[["recipe", "ceiling"]]

    Args:
        found: The ceilings of one metric.

    Returns:
        One row per scored block and one for the total. The columns are the fields of `BlockCeiling` and
        `not_in_sources`: similarities in [-1, 1] and scales. Columns of the recipe are NaN without a best recipe.
        Scales have no total.
    """
    rows = {block: {**asdict(entry), "not_in_sources": entry.not_in_sources} for block, entry in found.blocks.items()}
    total = found.total
    left = None if total["ceiling"] is None else 1 - total["ceiling"]
    table = pd.DataFrame.from_dict({**rows, _TOTAL: {**total, "not_in_sources": left}}, orient="index", dtype=float)
    return table.rename_axis("block")


def sources_frame(found: Ceiling) -> pd.DataFrame:
    """Return the share of every source in the target.

        explained, *cosines = study_ceilings(study)
        sources_frame(explained).sort_values("loss")

    Args:
        found: The ceilings of one metric.

    Returns:
        One row per source, with the columns of `SourceShare`: the coefficient and the weighed coefficient with their
        errors, and `loss`, the similarity that the ceiling loses without the source.
    """
    shares = {name: share.as_dict() for name, share in found.sources.items()}
    rows = {name: {key: value for key, value in share.items() if key != "blocks"} for name, share in shares.items()}
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("source")
