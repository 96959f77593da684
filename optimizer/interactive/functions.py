"""Public functions with the defaults of the commands: progress is shown, hashes are kept, folders are searched."""

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from optimizer import analysis, merging, similarity
from optimizer.environment import folders_of_environment
from optimizer.errors import BlockfitWarning, InputError
from optimizer.interactive.progress import shown_progress
from optimizer.library import HashCache, check_folders
from optimizer.studies import load_study as read
from optimizer.studies import new_study as write

__all__ = [
    "as_commands",
    "compare",
    "found_ceilings",
    "load_study",
    "merge",
    "model_folders",
    "new_study",
    "simplify_file",
    "study_ceilings",
    "verify",
]

P = ParamSpec("P")
R = TypeVar("R")


def as_commands(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function with the defaults of the commands for those of the parameters below that it has.

    * `progress`: None shows the progress in a notebook or on a terminal.
    * `hashes`: None stands for the cache that all commands share.
    * `folders`: the folders of BLOCKFIT_MODELS follow those that the caller names.

    Args:
        function: The function.

    Returns:
        The function under the same name, with the same signature.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def adapted(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises the error with the function's name
        given = bound.arguments
        if "hashes" in signature.parameters and given.get("hashes") is None:
            given["hashes"] = HashCache.of_user()
        if "folders" in signature.parameters:
            given["folders"] = model_folders(given.get("folders", ()))
        shows = "progress" in signature.parameters and given.get("progress") is None
        with shown_progress(wanted=shows) as display:
            if display is not None:
                given["progress"] = display.progress
            return function(*bound.args, **bound.kwargs)

    return adapted


def model_folders(folders: Sequence[Path | str]) -> list[Path]:
    """Return folders of checkpoints, then those of BLOCKFIT_MODELS; a missing one of these is a BlockfitWarning.

    Args:
        folders: The folders that the caller named; a missing one is an InputError.

    Returns:
        The folders, in the order of search.
    """
    found = [Path(folder) for folder in folders]
    check_folders(found)
    for folder in folders_of_environment():
        try:
            check_folders([folder])
        except InputError as error:
            warnings.warn(f"BLOCKFIT_MODELS: {error.problems[0]}", BlockfitWarning, stacklevel=3)
        else:
            found.append(folder)
    return found


compare = as_commands(similarity.compare)
found_ceilings = as_commands(analysis.found_ceilings)
load_study = as_commands(read)
merge = as_commands(merging.merge)
new_study = as_commands(write)
simplify_file = as_commands(analysis.simplify_file)
study_ceilings = as_commands(analysis.study_ceilings)
verify = as_commands(analysis.verify)
