"""What a study has found, read from where its trials are and from best.yaml; no checkpoint is needed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from optimizer.checkpoints import HashCache
from optimizer.errors import InputError, StudyError
from optimizer.printable import quoted
from optimizer.recipes import Recipe
from optimizer.search.asking import is_lost
from optimizer.search.binding import ActiveStudy, active_studies, distributions_of
from optimizer.search.budgets import budget_of, most_of
from optimizer.search.ceiling import Ceiling, study_ceilings
from optimizer.search.checked_trials import CheckedTrials, told_of
from optimizer.search.notes import best_recipe
from optimizer.search.results import FitResult, SearchResult, StepScores, standing
from optimizer.search.space import Parameter, filled_alphas
from optimizer.search.storage import StorageAddress, is_begun, open_storage, persist, storage_address
from optimizer.search.study import Stage, Study, load_study
from optimizer.search.study_files import check_storage_files
from optimizer.search.workers import Worker, Workers, workers_at
from optimizer.similarity import METRICS, STATISTICS

__all__ = [
    "Found",
    "NotedSpread",
    "OpenTrials",
    "SearchTrials",
    "found_ceilings",
    "found_result",
    "open_trials",
    "search_trials",
    "shown_storage",
]

# Seconds that a storage may be away while it is looked at.
_READING = 5.0


@dataclass(frozen=True)
class SearchTrials:
    """One search of a study and all its trials, running and lost ones too; `step` is scored in pass `number`.

    The budget of `stage` is that of the fits that are under way, or of the last one. `notes` are lines on trials that
    do not count.
    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    number: int
    trials: tuple[FrozenTrial, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotedSpread:
    """The total similarity by `metric` of a stage's last step on random inputs that were not fitted on, for each seed.

    `fitted` is that on those that were; None if the recipe does not note it.
    """

    stage: str
    step: str
    metric: str
    fitted: float | None
    seeds: tuple[int, ...]
    totals: tuple[float, ...]


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
            tuple(trial for trial in one.trials if trial.state.is_finished() and not is_lost(trial)),
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
    for search in standing(results):
        if search.best is not None:
            filled = filled_alphas(search.parameters, search.best.params)
            by_trials = by_trials.with_alphas(filled)
            # A later stage may have searched the same alphas again.
            found_by |= {
                (*place, block): (number, search.name)
                for place, numbers in filled.items()
                for block, number in numbers.items()
            }
    moved_on = () if recipe is None else _moved_on(recipe, found_by)
    shown = by_trials.started() if recipe is None else recipe
    scores = () if recipe is None else tuple(_scores(study, recipe))
    complete = recipe is not None and (recipe.fitted or {}).get("complete") is True
    result = FitResult(study, shown, results, scores, interrupted=not complete)
    spread = () if recipe is None else tuple(_spread(study, recipe, scores))
    notes = tuple(note for one in searched for note in one.notes)
    return Found(result, recipe is not None, moved_on, living, spread, notes)


def found_ceilings(
    path: Path | str,
    folders: Sequence[Path | str] = (),
    *,
    device: torch.device | str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    hashes: HashCache | None = None,
) -> tuple[tuple[Ceiling, ...], tuple[str, ...]]:
    """What the study in `path` can reach, and, where that cannot be said, why not, a line for each reason.

        ceilings, problems = found_ceilings("my-study")

    By the statistics that a fit has left in its folder; without them by its checkpoints, looked for in `folders` too.
    """
    try:
        study = load_study(path, with_files=False)
        if (study.folder / STATISTICS).exists():
            with suppress(StudyError):
                return study_ceilings(study.without_files(), device=device, progress=progress), ()
        study = load_study(path, folders, hashes=hashes, progress=progress)
        return study_ceilings(study, device=device, progress=progress, hashes=hashes), ()
    except InputError as error:
        return (), error.problems


def shown_storage(study: Study, storage: str | None) -> str | None:
    """What others may be told to give to `--storage`; None if the trials are in the study's folder.

    Without passwords, and of a file that lies elsewhere on this machine only its name.
    """
    return None if storage is None else storage_address(storage, study.folder).option


def search_trials(study: Study, storage: str | None = None) -> tuple[tuple[SearchTrials, ...], tuple[Worker, ...]]:
    """Every search that `study` will run, or has run, with its trials, and the workers that are at it now.

    Whichever generation of a search was opened last. Raises StudyError if the storage cannot be read, StorageLost if it
    is away.
    """
    address = storage_address(storage, study.folder)
    check_storage_files(address, study.folder)
    found: dict[str, list[FrozenTrial]] = {}
    active: dict[str, ActiveStudy] = {}
    living: tuple[Worker, ...] = ()
    if is_begun(address):
        with _opened(address, study.name) as (trials, _, living):
            active = persist(lambda: _active(study, trials, address), address, patience=_READING)
            for name, one in active.items():
                found[name] = persist(partial(_all_trials, trials, one.label), address, patience=_READING)
    noted = [one.attributes for one in sorted(active.values(), key=lambda one: one.opened)]
    names = [worker.name for worker in living]
    searches: list[SearchTrials] = []
    for stage, number, name, step, parameters in _searches(study):
        begun = max((active[first].opened for first, _, _ in stage.searches() if first in active), default="")
        # Whether there is a further pass is known when the one before is done; and an earlier fit may have had more.
        if number == 1 or (name in active and active[name].opened > begun):
            attributes = active[name].attributes if name in active else {}
            checked = CheckedTrials(distributions_of(parameters), stage.blocks, attributes, some=True)
            own = tuple(checked.of(found.get(name, [])))
            notes = told_of(checked.left_out, address, name)
            most = most_of(attributes)
            budgeted = replace(stage, trials=budget_of(stage, noted, names, most))
            searches.append(SearchTrials(name, budgeted, step, parameters, number, own, notes))
    return tuple(searches), living


def _active(study: Study, trials: BaseStorage, address: StorageAddress) -> dict[str, ActiveStudy]:
    names = {name for _, _, name, _, _ in _searches(study)}
    return active_studies(trials, address, study.prefix(address), names)


def _all_trials(trials: BaseStorage, label: str) -> list[FrozenTrial]:
    return trials.get_all_trials(trials.get_study_id_from_name(label), deepcopy=False)


@dataclass(frozen=True)
class OpenTrials:
    """A study's storage, open for reading, and what Optuna calls each of its searches, {search: label}.

    `checks` has for each search what tells which of its trials count.
    """

    study: Study
    address: StorageAddress
    storage: BaseStorage
    labels: Mapping[str, str]
    checks: Mapping[str, CheckedTrials]
    workers: Workers

    def budgets(self, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Return the budget of each search by its label, see `budget_of`; `attributes` are user attributes by label."""
        labels = set(self.labels.values())
        noted = [ActiveStudy.of(label, found) for label, found in attributes.items() if label in labels]
        noted.sort(key=lambda one: one.opened)
        living = [worker.name for worker in self.workers.living()]
        return {
            self.labels[name]: budget_of(
                stage, [one.attributes for one in noted], living, most_of(attributes.get(self.labels[name], {}))
            )
            for stage, _, name, _, _ in _searches(self.study)
            if name in self.labels
        }


@contextmanager
def open_trials(study: Study, storage: str | None = None) -> Iterator[OpenTrials]:
    """Give a study's trials, open for reading: whichever generation of each search was opened last.

    Raises StudyError if there are no trials yet, or the storage cannot be read, StorageLost if it is away.
    """
    address = storage_address(storage, study.folder)
    check_storage_files(address, study.folder)
    missing = StudyError(f"{address}: holds no trials of {study.name!r} yet; `blockfit fit` makes them")
    if not is_begun(address):
        raise missing
    with _opened(address, study.name) as (trials, workers, _):
        active = persist(lambda: _active(study, trials, address), address, patience=_READING)
        labels = {name: one.label for name, one in active.items()}
        if not labels:
            raise missing
        checks = {
            name: CheckedTrials(distributions_of(parameters), stage.blocks, active[name].attributes, some=True)
            for stage, _, name, _, parameters in _searches(study)
            if name in labels
        }
        yield OpenTrials(study, address, trials, labels, checks, workers)


def _searches(study: Study) -> Iterator[tuple[Stage, int, str, str, tuple[Parameter, ...]]]:
    """Yield (stage, number of the pass, search, step, parameters) of all that `study` may search, in order."""
    for stage in study.stages:
        for number in range(1, stage.passes + 1):
            for name, step, parameters in stage.searches(number):
                yield stage, number, name, step, parameters


@contextmanager
def _opened(address: StorageAddress, scope: str) -> Iterator[tuple[BaseStorage, Workers, tuple[Worker, ...]]]:
    """The storage, opened for reading while no worker does so, and who is alive."""
    workers = workers_at(address, scope)
    living: tuple[Worker, ...] = ()
    with ExitStack() as stack:
        stack.callback(workers.close)
        with ExitStack() as turn:
            # A folder that only others can write to tells nothing of who is at work there.
            with suppress(OSError, Timeout):
                turn.enter_context(workers.turn())
                living = workers.living()
            storage = stack.enter_context(open_storage(address, patience=_READING, read_only=True))
        yield storage, workers, living


def _moved_on(recipe: Recipe, found_by: Mapping[tuple[str, str, str], tuple[float, str]]) -> tuple[str, ...]:
    """The searches that have found other numbers {(step, alpha, block): (number, search)} than the recipe holds."""
    names = [
        name
        for (step, alpha, block), (number, name) in found_by.items()
        if not math.isclose(recipe.step(step).alphas[alpha].at(block), number, rel_tol=1e-12, abs_tol=1e-12)
    ]
    return tuple(dict.fromkeys(names))


def _scores(study: Study, recipe: Recipe) -> Iterator[StepScores]:
    """The similarities that the recipe notes, by stage, step and metric; the stage's own metric first."""
    for stage in study.stages:
        for name in stage.steps:
            step = recipe.step(name)
            noted = step.similarity or {}
            for metric in sorted(noted, key=lambda metric: (metric != stage.metric, list(noted).index(metric))):
                after = _noted(recipe, name, metric, stage.blocks)
                entry = _mapping(noted[metric])
                blocks = _mapping(entry.get("blocks"))
                unchanged = tuple(block for block in stage.blocks if block in blocks and blocks[block] is None)
                # Of a metric that another stage fits this step by there may be nothing on these blocks.
                if len(after) + len(unchanged) == len(stage.blocks):
                    before = _noted(recipe, name, metric, stage.blocks, within="before")
                    if not before and step.a not in recipe.models:
                        before = _noted(recipe, step.a, metric, stage.blocks)
                    before = before if len(before) == len(after) else {}
                    pooled = _number(entry.get("pooled"))
                    yield StepScores(stage.name, name, metric, before, after, unchanged, pooled)


def _noted(
    recipe: Recipe, step: str, metric: str, blocks: Sequence[str], *, within: str | None = None
) -> dict[str, float]:
    """The similarities of these blocks that a step notes by a metric, as far as it does."""
    entry = _mapping((recipe.step(step).similarity or {}).get(metric))
    if within is not None:
        entry = _mapping(entry.get(within))
    scores = _mapping(entry.get("blocks"))
    numbers = {block: _number(scores.get(block)) for block in blocks}
    return {block: number for block, number in numbers.items() if number is not None}


def _spread(study: Study, recipe: Recipe, scores: Sequence[StepScores]) -> Iterator[NotedSpread]:
    noted = (recipe.fitted or {}).get("other_random_inputs")
    stages = {stage.name: stage for stage in study.stages}
    for entry in map(_mapping, noted if isinstance(noted, list) else []):
        stage, metric = stages.get(str(entry.get("stage"))), str(entry.get("metric"))
        seeds, totals = entry.get("seeds"), entry.get("totals")
        if stage is None or metric not in METRICS or not isinstance(seeds, list) or not isinstance(totals, list):
            continue
        numbers = [number for total in totals if (number := _number(total)) is not None]
        if not numbers or len(numbers) != len(seeds) or not all(isinstance(seed, int) for seed in seeds):
            continue
        step = stage.steps[-1]
        blocks = next((blocks for name, blocks in stage.measured if name == metric), ())
        of_stage = [
            one.after for one in scores if (one.stage, one.step, one.metric) == (stage.name, step, stage.metric)
        ]
        own = [after[block] for after in of_stage for block in blocks if block in after]
        fitted = math.fsum(own) / len(own) if own else None
        yield NotedSpread(stage.name, step, metric, fitted, tuple(seeds), tuple(numbers))


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A similarity, None for what is no such number: recipes may have been edited."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
        return None
    return float(value)
