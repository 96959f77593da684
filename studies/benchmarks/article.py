"""The article's eight output steps, as the benchmarks merge and fit them, and how far found coefficients are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from make_checkpoints import FINETUNES

from optimizer.recipes import Algebra, Group, Model, Recipe, load_recipe

__all__ = ["Errors", "article_recipe", "coefficients", "differences", "largest"]

OUTPUT = "FINAL_OUTPUTS"
BASE = "v1-5-pruned-emaonly"  # the article's; all other models are finetunes in the order of appearance

Errors = dict[str, dict[str, float]]


def article_recipe(path: Path) -> Recipe:
    """The article's output steps from a recipe of all its steps, its models called base, one, two and so on."""
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
    """What each source contributes, {block: {source: coefficient}}, where all sources hold all tensors."""
    sources = tuple(recipe.models)
    algebra = Algebra(recipe, [Group(block, tuple(range(len(sources)))) for block in blocks], sources)
    rows = algebra.coefficients(algebra.starting_alphas())[0].tolist()
    return {block: dict(zip(sources, row, strict=True)) for block, row in zip(blocks, rows, strict=True)}


def differences(found: Mapping[str, Mapping[str, float]], planted: Errors) -> Errors:
    """How far the found coefficients are from the planted ones, for the blocks that are there."""
    return {
        block: {source: abs(value - planted[block][source]) for source, value in row.items()}
        for block, row in found.items()
    }


def largest(errors: Errors) -> float:
    """The largest error of all blocks and sources."""
    return max(error for row in errors.values() for error in row.values())
