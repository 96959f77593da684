"""Long work from Python with a display of its progress, and with the commands' cache of hashes and folders."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from optimizer import analysis, merging, similarity
from optimizer.environment import folders_of_environment
from optimizer.errors import BlockfitWarning, InputError
from optimizer.interactive.progress import showing_progress
from optimizer.library import check_folders

__all__ = ["compare", "merge", "model_folders", "simplify_file", "study_ceilings", "verify"]

compare = showing_progress(similarity.compare)
merge = showing_progress(merging.merge)
simplify_file = showing_progress(analysis.simplify_file)
study_ceilings = showing_progress(analysis.study_ceilings)
verify = showing_progress(analysis.verify)


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
