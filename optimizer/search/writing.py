"""The output of a fit: the only part that writes or removes recipes in the study's folder."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from optimizer.analysis import Simplified, simplify_fit
from optimizer.errors import InputError, RecipeError, StudyError
from optimizer.recipes import Recipe, load_recipe, save_recipe
from optimizer.search.results import Candidate
from optimizer.similarity import Measured
from optimizer.studies import Study

__all__ = ["check_written", "remove_simple", "write_best", "write_candidates", "write_simple"]


def check_written(study: Study, candidates: int) -> None:
    """Raise StudyError if a fit with this number of candidates would replace the study's recipe."""
    outputs = study.outputs
    written = (outputs.best, outputs.simple, *map(outputs.candidate, range(2, candidates + 1)))
    if taken := [path for path in written if path.resolve() == study.recipe_path.resolve()]:
        raise StudyError(f"{taken[0]}: is the study's recipe, which the result would replace; rename the recipe")


def write_best(study: Study, recipe: Recipe) -> None:
    """Write best.yaml."""
    save_recipe(recipe, study.outputs.best)


def write_candidates(study: Study, candidates: Sequence[Candidate]) -> None:
    """Write the next best recipes, and remove further ones of an earlier fit.

    Args:
        study: The study.
        candidates: The recipes, numbered from 2 without gaps.

    Raises:
        StudyError: A file of an earlier fit cannot be removed.

    """
    for candidate in candidates:
        save_recipe(candidate.recipe, study.outputs.candidate(candidate.number))
    last = len(candidates) + 1
    for number, path in study.outputs.candidates().items():
        if number > last and path.resolve() != study.recipe_path.resolve():
            try:
                path.unlink()
            except OSError as error:
                raise StudyError(f"{path}: from an earlier fit, cannot be removed: {error.strerror}") from error


def write_simple(study: Study, recipe: Recipe, measured: Measured, warn: Callable[[str], None]) -> Simplified | None:
    """Write best.simple.yaml, the best recipe with rounded numbers.

    If the recipe cannot be simplified, the file of an earlier fit is removed.

    Args:
        study: The study.
        recipe: The best recipe.
        measured: The statistics of the checkpoints.
        warn: Called with one line if the recipe cannot be simplified.

    Returns:
        The simplified recipe; None if it cannot be simplified.

    """
    try:
        return simplify_fit(study, recipe, measured, study.outputs.simple)
    except RecipeError as error:
        # This file is optional: the fit is done.
        warn(f"{study.outputs.simple.name}: not written: {'; '.join(error.problems)}")
        remove_simple(study)
        return None


def remove_simple(study: Study) -> None:
    """Remove best.simple.yaml of an earlier fit, unless its contents were replaced by something else."""
    path = study.outputs.simple
    with suppress(InputError, OSError):
        if load_recipe(path).noted.simplified is not None:
            path.unlink()
