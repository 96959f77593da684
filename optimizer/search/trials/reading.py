"""The trials of a study's searches, read from where they are while others may be writing."""

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
from optimizer.search.trials.storage import StorageAddress, is_begun, open_storage, persist, storage_address
from optimizer.search.trials.storage_files import check_storage_files
from optimizer.search.trials.trial import Trial
from optimizer.search.trials.workers import Worker, Workers, workers_at
from optimizer.studies import Stage, Study

__all__ = ["OpenTrials", "SearchTrials", "open_trials", "search_trials"]

# Seconds that a storage may be away while it is looked at.
_READING = 5.0


@dataclass(frozen=True)
class SearchTrials:
    """One search of a study and all its trials, running and lost ones too; `step` is scored in pass `number`.

    The budget of `stage` is what is aimed at, see `budget_of`. `notes` are lines on trials that do not count.
    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    number: int
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()


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
            own = tuple(map(trial_of, checked.of(found.get(name, []))))
            notes = describe_left_out(checked.left_out, address, name)
            most = most_of(attributes)
            budgeted = replace(stage, trials=budget_of(stage, noted, names, most))
            searches.append(SearchTrials(name, budgeted, step, parameters, number, own, notes))
    return tuple(searches), living


def _active(study: Study, trials: BaseStorage, address: StorageAddress) -> dict[str, ActiveStudy]:
    names = {name for _, _, name, _, _ in _searches(study)}
    return active_studies(trials, address, name_prefix(study, address), names)


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
