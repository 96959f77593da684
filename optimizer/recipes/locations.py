"""Where a recipe's files are: beside the recipe, then in the folders of checkpoints that the user names."""

import os
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path

from optimizer.checkpoints import CHECKPOINT_SUFFIXES
from optimizer.errors import CheckpointError
from optimizer.recipes.recipe import Recipe

__all__ = ["folders_of", "locate", "locate_models", "seen_from"]


def locate(file: str, beside: Path, folders: Sequence[Path] = ()) -> Path | None:
    """The path of `file`: in `beside`, then in each of `folders` and below it; the extension may be left out.

    None if it is nowhere. Among several of one name below a folder, the first in sorted order.
    """
    wanted = Path(file.replace("\\", "/"))
    if wanted.name in ("", ".."):
        return None
    for folder in (beside, *folders):
        for candidate in _spellings(folder / wanted):
            if _is_file(candidate):
                return candidate
    for folder in folders if len(wanted.parts) == 1 else ():
        for spelling in _spellings(wanted):
            if (found := _below(folder, spelling.name)) is not None:
                return found
    return None


def _below(folder: Path, name: str) -> Path | None:
    try:
        return next((path for path in sorted(folder.rglob(escape(name))) if path.is_file()), None)
    except OSError:  # as `_is_file`
        return None


def locate_models(
    files: Mapping[str, str], beside: Path, folders: Sequence[Path] = (), *, named_in: Path | str = "recipe"
) -> dict[str, Path]:
    """The paths of all `files` ({name: file}). Raises CheckpointError with one line for each that is missing."""
    found = {name: locate(file, beside, folders) for name, file in files.items()}
    looked = ", ".join(str(folder) for folder in (beside, *folders))
    problems = [
        f"{named_in}: models.{name}.file: {files[name]!r} not found; looked in {looked}"
        + ("" if folders else "; --models DIR names more folders")
        for name, path in found.items()
        if path is None
    ]
    if problems:
        raise CheckpointError(problems)
    return {name: path for name, path in found.items() if path is not None}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system has, a folder that may not be looked into
        return False


def _spellings(path: Path) -> Iterable[Path]:
    yield path
    for suffix in CHECKPOINT_SUFFIXES:
        yield path.with_name(path.name + suffix)


def folders_of(recipe: Recipe, path: Path, folders: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Where the files of the recipe in `path` may be: beside it, beside the recipe it was fitted from, in `folders`."""
    origin = (recipe.fitted or {}).get("recipe")
    beside = () if not isinstance(origin, str) else ((path.parent / origin).parent,)
    return (path.parent, *beside, *folders)


def seen_from(folder: Path, path: Path) -> str:
    """`path` relative to `folder`, with forward slashes, so that who reads what lies there finds it."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()
