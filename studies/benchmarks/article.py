"""The article's eight output steps, as the benchmarks merge and fit them, and the errors of fitted coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from make_checkpoints import FINETUNES

from optimizer.recipes import Algebra, Group, Model, Recipe, load_recipe

__all__ = ["Errors", "article_recipe", "coefficients", "differences", "largest"]

OUTPUT = "FINAL_OUTPUTS"
BASE = "v1-5-pruned-emaonly"  # the article's base; its other models are numbered in order of appearance

Errors = dict[str, dict[str, float]]


def article_recipe(path: Path) -> Recipe:
    """Return the article's output steps from the recipe of all its steps, with models renamed base, one, two, ..."""
    whole = load_recipe(path)
    used = whole.sources(OUTPUT)
    names = {BASE: "base"} | dict(zip((name for name in used if name != BASE), FINETUNES, strict=False))
    steps = tuple(
        replace(
            step,
            **{place: names.get(name, name) for place, name in step.inputs.items()},
            expect=None,
        )
        for step in whole.ancestors(OUTPUT)
    )
    models = {name: Model(f"{name}.safetensors") for name in ("base", *FINETUNES) if name in names.values()}
    return Recipe(path.stem, whole.layout, models, steps, OUTPUT, whole.mapping)


def coefficients(recipe: Recipe, blocks: Sequence[str]) -> Errors:
    """Return {block: {source: coefficient}} of a recipe whose sources all hold all tensors."""
    sources = tuple(recipe.models)
    algebra = Algebra(recipe, [Group(block, tuple(range(len(sources)))) for block in blocks], sources)
    rows = algebra.coefficients(algebra.starting_alphas())[0].tolist()
    return {block: dict(zip(sources, row, strict=True)) for block, row in zip(blocks, rows, strict=True)}


def differences(found: Mapping[str, Mapping[str, float]], planted: Errors) -> Errors:
    """Return the absolute errors of the found coefficients, {block: {source: error}}, for the blocks in `found`."""
    return {
        block: {source: abs(value - planted[block][source]) for source, value in row.items()}
        for block, row in found.items()
    }


def largest(errors: Errors) -> float:
    """Return the largest error over all blocks and sources."""
    return max(error for row in errors.values() for error in row.values())
