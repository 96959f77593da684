"""The whole names of a recipe's files, for other tools."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from optimizer.errors import CheckpointError
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.library import HashCache, Progress, locate, name_without_hash, slashed
from optimizer.recipes import Recipe

__all__ = ["with_whole_names"]


def with_whole_names(
    recipe: Recipe,
    beside: Path,
    folders: Sequence[Path] = (),
    *,
    hashes: HashCache | None = None,
    progress: Progress | None = None,
) -> Recipe:
    """Return the recipe with the extension of each file that is called without, or by its hash, and can be found.

    For other tools, which need the whole name.
    """
    models = dict(recipe.models)
    for name, model in recipe.models.items():
        called = PurePosixPath(slashed(name_without_hash(model.file)))
        if called.suffix.lower() not in CHECKPOINT_SUFFIXES:
            with suppress(CheckpointError):  # several of this name, or one with another hash
                found = locate(model.file, beside, folders, hashes=hashes, progress=progress)
                if found is not None:
                    models[name] = replace(model, file=str(called.parent / found.name))
    return replace(recipe, models=models)
