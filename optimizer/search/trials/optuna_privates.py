"""The private names of Optuna that blockfit uses; its version is pinned for them alone."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage as CachedStorage
from optuna.storages._rdb import models
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

__all__ = [
    "CachedStorage",
    "FrozenStudy",
    "contains",
    "engine_of",
    "id_of_study",
    "id_of_trial",
    "models",
    "storage_of",
]


def id_of_study(study: optuna.Study | FrozenStudy) -> int:
    """Return the id of a study in its storage."""
    return study._study_id


def id_of_trial(trial: FrozenTrial) -> int:
    """Return the id of a trial, unique in its storage."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage of a study."""
    return study._storage


def engine_of(storage: BaseStorage) -> Any:
    """Return the SQLAlchemy engine of a database storage; None for a journal."""
    return getattr(getattr(storage, "_backend", storage), "engine", None)


def contains(distribution: BaseDistribution, value: float) -> bool:
    """Return whether a range contains a value."""
    return distribution._contains(value)
