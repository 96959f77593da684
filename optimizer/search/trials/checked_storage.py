"""A storage of trials from any source: every fault in it raises an error of one line."""

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select

from optimizer.errors import StudyError
from optimizer.search.trials.database_errors import is_unavailable, reason_of, storage_errors
from optimizer.search.trials.optuna_privates import CachedStorage, FrozenStudy, engine_of, models

__all__ = ["BrokenStorage", "CheckedStorage"]

_Given = TypeVar("_Given")
# The largest id that leaves room for later trials; SQLite numbers them in order.
_LARGEST_ID = 1 << 62


class BrokenStorage(StudyError):
    """A storage has contents that are not trials, or rejects new trials."""


class CheckedStorage(BaseStorage):
    """A storage whose faults raise BrokenStorage.

    Errors of the database and errors of Optuna about its contents raise BrokenStorage. Errors of an unavailable
    database pass through unchanged. A read-only storage raises BrokenStorage for every change, without asking the
    database.

    Args:
        inner: The storage.
        where: Its name in messages.
        fresh: Whether a fit could start anew there, so that messages propose it.
        read_only: Whether to refuse changes.

    """

    def __init__(self, inner: BaseStorage, where: str, *, fresh: bool, read_only: bool = False) -> None:
        self._inner = inner
        self._where = where
        self._again = "; `fresh=True` starts anew" if fresh else ""
        self._read_only = read_only
        self._numbered: set[int] = set()

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all Optuna studies with their attributes."""
        found = self._read(self._inner.get_all_studies, "its Optuna studies")
        if unnamed := [study for study in found if not isinstance(study.study_name, str)]:
            raise self._broken("its Optuna studies", f"a study has the name {unnamed[0].study_name!r}")
        return found

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study; raise KeyError for an unknown name."""
        return self._read(self._inner.get_study_id_from_name, f"the Optuna study {study_name!r}", study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study; raise KeyError for an unknown id."""
        return self._read(self._inner.get_study_name_from_id, "the name of an Optuna study", study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study's values; raise KeyError for an unknown id."""
        return self._read(self._inner.get_study_directions, self._attributes(study_id), study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's user attributes; raise KeyError for an unknown id."""
        return self._read(self._inner.get_study_user_attrs, self._attributes(study_id), study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's system attributes; raise KeyError for an unknown id."""
        return self._read(self._inner.get_study_system_attrs, self._attributes(study_id), study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial by its id."""
        return self._read(self._inner.get_trial, f"the trial with the id {trial_id}", trial_id, missing=False)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials in the order of their numbers.

        Args:
            study_id: The id of the study.
            deepcopy: Whether to return copies.
            states: The states of the trials to return; None for all.

        Returns:
            The trials.

        Raises:
            BrokenStorage: A trial cannot be read, or the trials are not numbered from 0 without gaps.

        """
        part = f"the trials of {self._called(study_id)}"
        if study_id not in self._numbered:
            self._read(lambda: self._check_numbers(study_id, part), part, missing=False)
            self._numbered.add(study_id)
        try:
            found = self._read(
                lambda: self._inner.get_all_trials(study_id, deepcopy=False, states=states), part, missing=False
            )
        except BrokenStorage as broken:
            self._find_broken(study_id)
            raise broken
        for trial in found:
            if not isinstance(trial.user_attrs, dict) or not isinstance(trial.system_attrs, dict):
                raise self._broken(f"trial {trial.number} of {self._called(study_id)}", "its attributes are no mapping")
        return copy.deepcopy(found) if deepcopy else found

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best of a study's trials; raise ValueError if none is completed."""
        return self._read(self._inner.get_best_trial, f"the trials of {self._called(study_id)}", study_id)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study and return its id."""
        return self._write(self._inner.create_new_study, directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Delete a study and its trials."""
        self._write(self._inner.delete_study, study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a study's user attribute."""
        self._write(self._inner.set_study_user_attr, study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a study's system attribute."""
        self._write(self._inner.set_study_system_attr, study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial and return its id."""
        return self._write(self._inner.create_new_trial, study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a trial's parameter."""
        self._write(self._inner.set_trial_param, trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state and values."""
        return self._write(self._inner.set_trial_state_values, trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set the value that a trial reported at a step."""
        self._write(self._inner.set_trial_intermediate_value, trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a trial's user attribute."""
        self._write(self._inner.set_trial_user_attr, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a trial's system attribute."""
        self._write(self._inner.set_trial_system_attr, trial_id, key, value)

    def remove_session(self) -> None:
        """Close this thread's connection."""
        self._inner.remove_session()

    def _read(self, ask: Callable[..., _Given], part: str, *given: Any, missing: bool = True) -> _Given:
        """Return the result of `ask`; let KeyError pass if it can mean a `missing` entry."""
        try:
            return ask(*given)
        except BrokenStorage:
            raise
        except Exception as error:
            if is_unavailable(error) or (missing and isinstance(error, KeyError)):
                raise
            raise self._broken(part, _in_words(error)) from error

    def _write(self, change: Callable[..., _Given], *given: Any) -> _Given:
        if self._read_only:
            raise BrokenStorage(f"{self._where}: opened for reading only; it cannot be changed")
        try:
            return change(*given)
        except (DuplicatedStudyError, UpdateFinishedTrialError):
            raise
        except Exception as error:
            # A TypeError concerns the caller's value, not the storage.
            if is_unavailable(error) or isinstance(error, TypeError):
                raise
            raise BrokenStorage(f"{self._where}: cannot store trials: {_in_words(error)}{self._again}") from error

    def _broken(self, part: str, reason: str) -> BrokenStorage:
        return BrokenStorage(f"{self._where}: {part} cannot be read: {reason}{self._again}")

    def _called(self, study_id: int) -> str:
        try:
            return repr(self._inner.get_study_name_from_id(study_id))
        except Exception:  # the caller is about to report a more important error
            return f"the Optuna study with the id {study_id}"

    def _attributes(self, study_id: int) -> str:
        return f"the attributes of {self._called(study_id)}"

    def _find_broken(self, study_id: int) -> None:
        """Raise BrokenStorage for the first trial of a study that cannot be read by itself, if any."""
        for number, trial_id in sorted(self._numbers(study_id)) if isinstance(self._inner, CachedStorage) else ():
            self._read(self._inner.get_trial, f"trial {number} of {self._called(study_id)}", trial_id, missing=False)

    def _numbers(self, study_id: int) -> list[tuple[Any, Any]]:
        """Return (number, id) of a study's trials, of any type."""
        assert isinstance(self._inner, CachedStorage)
        trials = models.TrialModel
        with engine_of(self._inner).connect() as connection:
            asked = select(trials.number, trials.trial_id).where(trials.study_id == study_id)
            return [(number, trial_id) for number, trial_id in connection.execute(asked)]

    def _check_numbers(self, study_id: int, part: str) -> None:
        """Raise BrokenStorage unless a study's trials are numbered from 0 without gaps.

        Optuna numbers a new trial by the count of trials, and would hide one of two trials with the same number.
        """
        if not isinstance(self._inner, CachedStorage):
            return
        rows = self._numbers(study_id)
        for _, trial_id in rows:
            if not isinstance(trial_id, int) or not 0 < trial_id < _LARGEST_ID:
                raise self._broken(part, f"a trial has the id {trial_id!r}")
        numbers = [number for number, _ in rows]
        if unusual := set(numbers) ^ set(range(len(numbers))):
            shown = next(iter(sorted(unusual, key=str)))
            problem = "is missing" if shown not in numbers else "is not a number from Optuna"
            raise self._broken(part, f"they are not numbered from 0 to {len(numbers) - 1}: {str(shown)[:40]} {problem}")


def _in_words(error: Exception) -> str:
    """Return the reason of an error; for an error of the reading code with its type, as the text alone is unclear."""
    if isinstance(error, storage_errors()) or not str(error).strip():
        return reason_of(error)
    return f"{type(error).__name__}: {reason_of(error)}"
