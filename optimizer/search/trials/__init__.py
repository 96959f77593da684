"""Trials in a storage that several workers share: addresses, access, identity, claims, checks and ranking."""

from optimizer.search.trials.best import best_of, completed, ranked
from optimizer.search.trials.budgets import Budgets
from optimizer.search.trials.checked_storage import CheckedStorage
from optimizer.search.trials.checked_trials import CheckedTrials, describe_left_out
from optimizer.search.trials.claims import Claim, SharedStorage, Trials
from optimizer.search.trials.eta import seconds_left, seconds_per_trial
from optimizer.search.trials.identity import (
    binding_of,
    check_bindings,
    check_place,
    distributions_of,
    name_prefix,
    open_search,
    upstream_alphas,
)
from optimizer.search.trials.interrupts import AtOnce, interruptible, whole_trial
from optimizer.search.trials.optuna_log import quiet_optuna
from optimizer.search.trials.optuna_privates import FrozenStudy, id_of_study
from optimizer.search.trials.proposals import Proposer
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
from optimizer.search.trials.trial import Scores, Trial, TrialState
from optimizer.search.trials.worker_processes import WorkerProcesses, ignore_interrupts, should_go_on
from optimizer.search.trials.workers import Worker, workers_at

__all__ = [
    "PATIENCE",
    "AtOnce",
    "Budgets",
    "CheckedStorage",
    "CheckedTrials",
    "Claim",
    "FrozenStudy",
    "OpenTrials",
    "Proposer",
    "Scores",
    "SearchTrials",
    "SharedStorage",
    "StorageAddress",
    "StorageLost",
    "Trial",
    "TrialState",
    "Trials",
    "Worker",
    "WorkerProcesses",
    "best_of",
    "binding_of",
    "check_bindings",
    "check_place",
    "check_storage_files",
    "completed",
    "describe_left_out",
    "distributions_of",
    "id_of_study",
    "ignore_interrupts",
    "interruptible",
    "name_prefix",
    "open_search",
    "open_storage",
    "open_trials",
    "quiet_optuna",
    "ranked",
    "search_trials",
    "seconds_left",
    "seconds_per_trial",
    "set_aside",
    "should_go_on",
    "storage_address",
    "upstream_alphas",
    "whole_trial",
    "workers_at",
]
