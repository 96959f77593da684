"""Reading the trials of a study's searches, while workers may be writing."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from filelock import Timeout
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from optimizer.errors import StudyError
from optimizer.recipes import Parameter
from optimizer.search.trials.attributes import trial_of
from optimizer.search.trials.budgets import budget_of, most_of
from optimizer.search.trials.checked_trials import CheckedTrials, describe_left_out
from optimizer.search.trials.identity import ActiveStudy, active_studies, distributions_of, name_prefix
from optimizer.search.trials.storage import StorageAddress, may_hold_trials, open_storage, persist, storage_address
from optimizer.search.trials.storage_files import check_storage_files
from optimizer.search.trials.trial import Trial
from optimizer.search.trials.workers import Worker, Workers, workers_at
from optimizer.studies import Stage, Study

__all__ = ["OpenTrials", "SearchTrials", "open_trials", "search_trials"]

# Seconds to wait for an unavailable storage.
_READING = 5.0


@dataclass(frozen=True)
class SearchTrials:
    """One search of a study with all its trials.

    Attributes:
        name: The name of the search.
        stage: Its stage, with the current budget from `budget_of`.
        step: The step that it scores.
        parameters: Its free alphas.
        number: The pass over the stage's steps, from 1.
        trials: Its trials, running and lost ones included.
        notes: One line for each reason why trials do not count.

    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    number: int
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()


def search_trials(study: Study, storage: str | None = None) -> tuple[tuple[SearchTrials, ...], tuple[Worker, ...]]:
    """Read the trials of all searches of a study, from the generation of each search that was opened last.

    StudyError passes through if the storage cannot be read, StorageLost if it is unavailable.

    Args:
        study: The study; its checkpoints may be missing.
        storage: The storage of the trials; by default the file in the study's folder.

    Returns:
        The searches that the study will run or has run, with their trials, and the workers that search now.

    """
    address = storage_address(storage, study.folder)
    check_storage_files(address, study.folder)
    found: dict[str, list[FrozenTrial]] = {}
    active: dict[str, ActiveStudy] = {}
    living: tuple[Worker, ...] = ()
    if may_hold_trials(address):
        with _opened(address, study.name) as (trials, _, living):
            active = persist(lambda: _active(study, trials, address), address, patience=_READING)
            for name, latest in active.items():
                found[name] = persist(partial(_all_trials, trials, latest.label), address, patience=_READING)
    noted = [latest.attributes for latest in sorted(active.values(), key=lambda latest: latest.opened)]
    names = [worker.name for worker in living]
    searches: list[SearchTrials] = []
    for stage, number, name, step, parameters in _searches(study):
        start = max((active[first].opened for first, _, _ in stage.searches() if first in active), default="")
        # A further pass counts only if it was opened after the latest first pass; an earlier fit may have run more.
        if number == 1 or (name in active and active[name].opened > start):
            attributes = active[name].attributes if name in active else {}
            checked = CheckedTrials(distributions_of(parameters), stage.blocks, attributes, some=True)
            counting = tuple(map(trial_of, checked.of(found.get(name, []))))
            notes = describe_left_out(checked.left_out, address, name)
            most = most_of(attributes)
            budgeted = replace(stage, trials=budget_of(stage, noted, names, most))
            searches.append(SearchTrials(name, budgeted, step, parameters, number, counting, notes))
    return tuple(searches), living


def _active(study: Study, trials: BaseStorage, address: StorageAddress) -> dict[str, ActiveStudy]:
    names = {name for _, _, name, _, _ in _searches(study)}
    return active_studies(trials, address, name_prefix(study, address), names)


def _all_trials(trials: BaseStorage, label: str) -> list[FrozenTrial]:
    return trials.get_all_trials(trials.get_study_id_from_name(label), deepcopy=False)


@dataclass(frozen=True)
class OpenTrials:
    """The storage of a study's trials, open for reading.

    Attributes:
        study: The study.
        address: The address of the storage.
        storage: The storage.
        labels: The name in Optuna of each search, {search: label}.
        checks: The check of each search's trials, {search: check}.
        workers: The workers at the storage.

    """

    study: Study
    address: StorageAddress
    storage: BaseStorage
    labels: Mapping[str, str]
    checks: Mapping[str, CheckedTrials]
    workers: Workers

    def budgets(self, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Return the budget of each search by label, from the user attributes by label; see `budget_of`."""
        labels = set(self.labels.values())
        noted = [ActiveStudy.of(label, found) for label, found in attributes.items() if label in labels]
        noted.sort(key=lambda latest: latest.opened)
        living = [worker.name for worker in self.workers.living()]
        return {
            self.labels[name]: budget_of(
                stage, [latest.attributes for latest in noted], living, most_of(attributes.get(self.labels[name], {}))
            )
            for stage, _, name, _, _ in _searches(self.study)
            if name in self.labels
        }


@contextmanager
def open_trials(study: Study, storage: str | None = None) -> Iterator[OpenTrials]:
    """Open a study's trials for reading, in the generation of each search that was opened last.

    StorageLost passes through if the storage is unavailable.

    Args:
        study: The study; its checkpoints may be missing.
        storage: The storage of the trials; by default the file in the study's folder.

    Yields:
        The storage with the searches in it.

    Raises:
        StudyError: The storage has no trials of the study yet, or cannot be read.

    """
    address = storage_address(storage, study.folder)
    check_storage_files(address, study.folder)
    missing = f"{address}: contains no trials of {study.name!r} yet; run `blockfit fit` first"
    if not may_hold_trials(address):
        raise StudyError(missing)
    with _opened(address, study.name) as (trials, workers, _):
        active = persist(lambda: _active(study, trials, address), address, patience=_READING)
        labels = {name: latest.label for name, latest in active.items()}
        if not labels:
            raise StudyError(missing)
        checks = {
            name: CheckedTrials(distributions_of(parameters), stage.blocks, active[name].attributes, some=True)
            for stage, _, name, _, parameters in _searches(study)
            if name in labels
        }
        yield OpenTrials(study, address, trials, labels, checks, workers)


def _searches(study: Study) -> Iterator[tuple[Stage, int, str, str, tuple[Parameter, ...]]]:
    """Yield (stage, number of the pass, search, step, parameters) of all possible searches of `study`, in order."""
    for stage in study.stages:
        for number in range(1, stage.passes + 1):
            for name, step, parameters in stage.searches(number):
                yield stage, number, name, step, parameters


@contextmanager
def _opened(address: StorageAddress, scope: str) -> Iterator[tuple[BaseStorage, Workers, tuple[Worker, ...]]]:
    """Open the storage for reading, in a turn of its own if possible; yield it, its workers and the living ones."""
    workers = workers_at(address, scope)
    living: tuple[Worker, ...] = ()
    with ExitStack() as stack:
        stack.callback(workers.close)
        with ExitStack() as turn:
            # In a folder without write access the workers stay unknown.
            with suppress(OSError, Timeout):
                turn.enter_context(workers.turn())
                living = workers.living()
            storage = stack.enter_context(open_storage(address, patience=_READING, read_only=True))
        yield storage, workers, living
