"""What a recipe notes of the fit that found it."""

from collections.abc import Sequence
from pathlib import Path

from optimizer.recipes.recipe import Recipe

__all__ = ["folders_of"]


def folders_of(recipe: Recipe, path: Path, folders: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Where the files of the recipe in `path` may be: beside it, beside the recipe it was fitted from, in `folders`."""
    origin = (recipe.fitted or {}).get("recipe")
    beside = () if not isinstance(origin, str) else ((path.parent / origin).parent,)
    return (path.parent, *beside, *folders)
