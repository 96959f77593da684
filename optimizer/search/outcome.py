"""The results of a study, read from its trials and from best.yaml, without its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from optimizer.errors import StudyError
from optimizer.printable import quoted
from optimizer.recipes import Recipe, filled_alphas
from optimizer.search.results import FitResult, SearchResult, deciding_searches
from optimizer.search.trials import TrialState, Worker, search_trials, storage_address
from optimizer.studies import (
    NotedSpread,
    Study,
    best_recipe,
    noted_spreads,
    noted_step_scores,
)

__all__ = ["Found", "found_result", "shown_storage"]


@dataclass(frozen=True)
class Found:
    """The results of a study so far.

    Attributes:
        result: The result, without spreads and candidates. Its recipe is that of best.yaml; before the first best.yaml
            it has the alphas of the best trials so far, and no similarities.
        written: Whether the recipe is that of best.yaml.
        moved_on: The searches that have found better alphas than those in best.yaml.
        living: The workers that search now.
        spread: The recorded scores on random inputs that were not fitted on.
        notes: One line for each reason why trials do not count.

    """

    result: FitResult
    written: bool
    moved_on: tuple[str, ...]
    living: tuple[Worker, ...]
    spread: tuple[NotedSpread, ...]
    notes: tuple[str, ...] = ()


def found_result(study: Study, storage: str | None = None) -> Found:
    """Return the results of `study` so far, from the latest generation of each search.

        found_result(load_study("my-study", with_files=False)).result.similarity

    InputError passes through if the storage cannot be read, or if best.yaml cannot be read or is of another recipe.

    Args:
        study: The study; its checkpoints may be missing.
        storage: The storage of the trials; by default the file in the study's folder.

    Returns:
        The results.

    Raises:
        StudyError: The study was not fitted yet.

    """
    recipe = best_recipe(study)
    searched, living = search_trials(study, storage)
    stages = {search.stage.name: search.stage for search in searched}
    study = replace(study, stages=tuple(stages[stage.name] for stage in study.stages))
    results = tuple(
        SearchResult(
            search.name,
            search.stage,
            search.step,
            search.parameters,
            tuple(trial for trial in search.trials if trial.is_finished and trial.state != TrialState.LOST),
            {},
            search.number,
        )
        for search in searched
        if search.trials
    )
    if recipe is None and not any(result.best for result in results):
        raise StudyError(f"{study.folder}: not fitted yet; fit it first: blockfit fit {quoted(study.argument)}")
    by_trials = study.recipe
    found_by: dict[tuple[str, str, str], tuple[float, str]] = {}
    for deciding in deciding_searches(results):
        if deciding.best is not None:
            filled = filled_alphas(deciding.parameters, deciding.best.alphas)
            by_trials = by_trials.with_alphas(filled)
            # A later stage may have searched the same alphas again.
            found_by |= {
                (*place, block): (number, deciding.name)
                for place, numbers in filled.items()
                for block, number in numbers.items()
            }
    moved_on = () if recipe is None else _moved_on(recipe, found_by)
    shown = by_trials.with_start_values() if recipe is None else recipe
    scores = () if recipe is None else tuple(noted_step_scores(study, recipe))
    complete = recipe is not None and recipe.noted.complete is True
    result = FitResult(study, shown, results, scores, interrupted=not complete)
    spread = () if recipe is None else tuple(noted_spreads(study, recipe, scores))
    notes = tuple(note for search in searched for note in search.notes)
    return Found(result, recipe is not None, moved_on, living, spread, notes)


def shown_storage(study: Study, storage: str | None) -> str | None:
    """Return the storage in the form in which it may be shown to others.

    Args:
        study: The study.
        storage: The storage of the trials; None for the file in the study's folder.

    Returns:
        The value for `storage`, without passwords; only the name of a file with an absolute path. None if the trials
        are in the study's folder.

    """
    return None if storage is None else storage_address(storage, study.folder).option


def _moved_on(recipe: Recipe, found_by: Mapping[tuple[str, str, str], tuple[float, str]]) -> tuple[str, ...]:
    """Return the searches whose numbers {(step, alpha, block): (number, search)} differ from the recipe's."""
    names = [
        name
        for (step, alpha, block), (number, name) in found_by.items()
        if not math.isclose(recipe.step(step).alphas[alpha].at(block), number, rel_tol=1e-12, abs_tol=1e-12)
    ]
    return tuple(dict.fromkeys(names))
