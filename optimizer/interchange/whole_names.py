"""Complete the file names of a recipe for other tools."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from optimizer.errors import CheckpointError
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.library import Library, name_without_hash, slashed
from optimizer.recipes import Recipe

__all__ = ["with_whole_names"]


def with_whole_names(recipe: Recipe, beside: Path, library: Library | None = None) -> Recipe:
    """Return the recipe with whole file names, extensions included, which other tools need.

    Files named without extension, or by their hash, are looked for; names of files that are not found stay as they are.

    Args:
        recipe: The recipe.
        beside: The folder that its files are named from.
        library: The library to look in next.

    Returns:
        The recipe with the names of the files found.

    """
    library, models = library or Library(), dict(recipe.models)
    for name, model in recipe.models.items():
        written = PurePosixPath(slashed(name_without_hash(model.file)))
        if written.suffix.lower() not in CHECKPOINT_SUFFIXES:
            with suppress(CheckpointError):  # several files have this name, or its hash differs
                found = library.find(model.file, beside)
                if found is not None:
                    models[name] = replace(model, file=str(written.parent / found.name))
    return replace(recipe, models=models)
