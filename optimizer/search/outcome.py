"""The results of a study, read from the storage of its trials and from best.yaml; no checkpoint is needed."""

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
    """What a study has found so far.

    The recipe of `result` is that of best.yaml, or, with `written` false, what the best trials so far amount to, its
    similarities not known. `moved_on` names the searches that have found better alphas than best.yaml holds.
    `living` are the workers that are at it. Spreads and candidates are not part of `result`. `notes` are lines on
    trials that do not count.
    """

    result: FitResult
    written: bool
    moved_on: tuple[str, ...]
    living: tuple[Worker, ...]
    spread: tuple[NotedSpread, ...]
    notes: tuple[str, ...] = ()


def found_result(study: Study, storage: str | None = None) -> Found:
    """What `study` has found, whichever generation of each of its searches was opened last.

        found_result(load_study("my-study", with_files=False)).result.similarity

    Raises InputError if nothing was found yet, if the storage, by default the file in the study's folder, cannot be
    read, and if best.yaml cannot be or is of another recipe.
    """
    recipe = best_recipe(study)
    searched, living = search_trials(study, storage)
    stages = {one.stage.name: one.stage for one in searched}
    study = replace(study, stages=tuple(stages[stage.name] for stage in study.stages))
    results = tuple(
        SearchResult(
            one.name,
            one.stage,
            one.step,
            one.parameters,
            tuple(trial for trial in one.trials if trial.is_finished and trial.state != TrialState.LOST),
            {},
            one.number,
        )
        for one in searched
        if one.trials
    )
    if recipe is None and not any(result.best for result in results):
        raise StudyError(f"{study.folder}: not fitted yet; fit it first: blockfit fit {quoted(study.folder)}")
    by_trials = study.recipe
    found_by: dict[tuple[str, str, str], tuple[float, str]] = {}
    for search in deciding_searches(results):
        if search.best is not None:
            filled = filled_alphas(search.parameters, search.best.alphas)
            by_trials = by_trials.with_alphas(filled)
            # A later stage may have searched the same alphas again.
            found_by |= {
                (*place, block): (number, search.name)
                for place, numbers in filled.items()
                for block, number in numbers.items()
            }
    moved_on = () if recipe is None else _moved_on(recipe, found_by)
    shown = by_trials.with_start_values() if recipe is None else recipe
    scores = () if recipe is None else tuple(noted_step_scores(study, recipe))
    complete = recipe is not None and recipe.noted.complete is True
    result = FitResult(study, shown, results, scores, interrupted=not complete)
    spread = () if recipe is None else tuple(noted_spreads(study, recipe, scores))
    notes = tuple(note for one in searched for note in one.notes)
    return Found(result, recipe is not None, moved_on, living, spread, notes)


def shown_storage(study: Study, storage: str | None) -> str | None:
    """What others may be told to give as `storage`; None if the trials are in the study's folder.

    Without passwords, and of a file that lies elsewhere on this machine only its name.
    """
    return None if storage is None else storage_address(storage, study.folder).option


def _moved_on(recipe: Recipe, found_by: Mapping[tuple[str, str, str], tuple[float, str]]) -> tuple[str, ...]:
    """The searches that have found other numbers {(step, alpha, block): (number, search)} than the recipe holds."""
    names = [
        name
        for (step, alpha, block), (number, name) in found_by.items()
        if not math.isclose(recipe.step(step).alphas[alpha].at(block), number, rel_tol=1e-12, abs_tol=1e-12)
    ]
    return tuple(dict.fromkeys(names))
