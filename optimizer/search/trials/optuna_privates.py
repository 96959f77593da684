"""What blockfit needs of Optuna that Optuna does not make public; its version is pinned for these names alone."""

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
    """Return the id by which a storage knows a study."""
    return study._study_id


def id_of_trial(trial: FrozenTrial) -> int:
    """Return the id by which a storage knows a trial, in all its studies."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage that a study lies in."""
    return study._storage


def engine_of(storage: BaseStorage) -> Any:
    """Return SQLAlchemy's engine of a storage in a database; None for a journal."""
    return getattr(getattr(storage, "_backend", storage), "engine", None)


def contains(distribution: BaseDistribution, value: float) -> bool:
    """Return whether a range holds a value."""
    return distribution._contains(value)
