"""Trials in a storage that several workers share: where they are, whose they are, which count and which is best."""

from optimizer.search.trials.best import DISTANCE, best_of, completed, ranked
from optimizer.search.trials.budgets import Budgets
from optimizer.search.trials.checked_storage import CheckedStorage
from optimizer.search.trials.checked_trials import ERROR, ORIGIN, SCORES, CheckedTrials, told_of
from optimizer.search.trials.claims import SharedStorage, Trials, is_lost
from optimizer.search.trials.eta import seconds_left, seconds_per_trial
from optimizer.search.trials.identity import (
    bound_to,
    check_bindings,
    check_place,
    distributions_of,
    found_upstream,
    name_prefix,
    open_search,
)
from optimizer.search.trials.interrupts import AtOnce, interruptible, whole_trial
from optimizer.search.trials.reading import OpenTrials, SearchTrials, open_trials, search_trials
from optimizer.search.trials.storage import (
    PATIENCE,
    StorageAddress,
    StorageLost,
    open_storage,
    set_aside,
    storage_address,
)
from optimizer.search.trials.storage_files import check_storage_files
from optimizer.search.trials.worker_processes import WorkerProcesses, leave_interrupts, still_wanted
from optimizer.search.trials.workers import Worker, workers_at

__all__ = [
    "DISTANCE",
    "ERROR",
    "ORIGIN",
    "PATIENCE",
    "SCORES",
    "AtOnce",
    "Budgets",
    "CheckedStorage",
    "CheckedTrials",
    "OpenTrials",
    "SearchTrials",
    "SharedStorage",
    "StorageAddress",
    "StorageLost",
    "Trials",
    "Worker",
    "WorkerProcesses",
    "best_of",
    "bound_to",
    "check_bindings",
    "check_place",
    "check_storage_files",
    "completed",
    "distributions_of",
    "found_upstream",
    "interruptible",
    "is_lost",
    "leave_interrupts",
    "name_prefix",
    "open_search",
    "open_storage",
    "open_trials",
    "ranked",
    "search_trials",
    "seconds_left",
    "seconds_per_trial",
    "set_aside",
    "still_wanted",
    "storage_address",
    "told_of",
    "whole_trial",
    "workers_at",
]
