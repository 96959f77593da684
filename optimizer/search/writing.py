"""Writing what a fit has chosen: the only part of a fit that writes or removes recipes in the study's folder."""

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
    """Raise StudyError if a fit that writes so many candidates would replace the study's own recipe."""
    outputs = study.outputs
    written = (outputs.best, outputs.simple, *map(outputs.candidate, range(2, candidates + 1)))
    if taken := [path for path in written if path.resolve() == study.recipe_path.resolve()]:
        raise StudyError(
            f"{taken[0]}: is the study's recipe, which the result would replace; name the recipe otherwise"
        )


def write_best(study: Study, recipe: Recipe) -> None:
    """Write best.yaml."""
    save_recipe(recipe, study.outputs.best)


def write_candidates(study: Study, candidates: Sequence[Candidate]) -> None:
    """Write the next best recipes beside the best one, and remove those that an earlier fit wrote and this does not.

    Raises StudyError for a file that cannot be removed.
    """
    for candidate in candidates:
        save_recipe(candidate.recipe, study.outputs.candidate(candidate.number))
    last = len(candidates) + 1
    for number, path in study.outputs.candidates().items():
        if number > last and path.resolve() != study.recipe_path.resolve():
            try:
                path.unlink()
            except OSError as error:
                raise StudyError(f"{path}: of an earlier fit, cannot be removed: {error.strerror}") from error


def write_simple(study: Study, recipe: Recipe, measured: Measured, warn: Callable[[str], None]) -> Simplified | None:
    """Write best.simple.yaml, the best recipe with numbers as people choose them.

    Returns None, with a warning, if there is no such recipe; that of an earlier fit is removed then.
    """
    try:
        return simplify_fit(study, recipe, measured, study.outputs.simple)
    except RecipeError as error:
        # The fit is done; this is good to have beside it, and no more.
        warn(f"{study.outputs.simple.name}: not written: {'; '.join(error.problems)}")
        remove_simple(study)
        return None


def remove_simple(study: Study) -> None:
    """Remove best.simple.yaml of an earlier fit, unless the file is something else by now."""
    path = study.outputs.simple
    with suppress(InputError, OSError):
        if load_recipe(path).noted.simplified is not None:
            path.unlink()
