"""A storage of trials that may be a stranger's: what cannot be read in it is told in a line, whatever it is."""

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select

from optimizer.errors import StudyError
from optimizer.search.trials.database_errors import AWAY, is_away, reason_of

__all__ = ["BrokenStorage", "CheckedStorage"]

_Given = TypeVar("_Given")
# Ids that leave room for those of later trials, which SQLite gives in order.
_LARGEST_ID = 1 << 62


class BrokenStorage(StudyError):
    """A storage holds what cannot be read as trials, or takes none."""


class CheckedStorage(BaseStorage):
    """The storage `inner`, which messages call `where`; `fresh` is whether a fit could start anew there.

    What its database does not let through, or what Optuna cannot make sense of in it, raises BrokenStorage; a database
    that is away raises what it raised. With `read_only` every change raises BrokenStorage, and nothing is asked of the
    database.
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
            raise self._broken("its Optuna studies", f"a study is called {unnamed[0].study_name!r}")
        return found

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study. Raises KeyError if there is none."""
        return self._read(self._inner.get_study_id_from_name, f"the Optuna study {study_name!r}", study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study. Raises KeyError if there is none."""
        return self._read(self._inner.get_study_name_from_id, "the name of an Optuna study", study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return what a study's values are to become. Raises KeyError if there is none."""
        return self._read(self._inner.get_study_directions, self._attributes(study_id), study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's user attributes. Raises KeyError if there is none."""
        return self._read(self._inner.get_study_user_attrs, self._attributes(study_id), study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's system attributes. Raises KeyError if there is none."""
        return self._read(self._inner.get_study_system_attrs, self._attributes(study_id), study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial by its id."""
        return self._read(self._inner.get_trial, f"the trial with the id {trial_id}", trial_id, missing=False)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials in the order of their numbers."""
        what = f"the trials of {self._called(study_id)}"
        if study_id not in self._numbered:
            self._read(lambda: self._check_numbers(study_id, what), what, missing=False)
            self._numbered.add(study_id)
        try:
            found = self._read(
                lambda: self._inner.get_all_trials(study_id, deepcopy=False, states=states), what, missing=False
            )
        except BrokenStorage as broken:
            self._find_broken(study_id)
            raise broken
        for trial in found:
            if not isinstance(trial.user_attrs, dict) or not isinstance(trial.system_attrs, dict):
                raise self._broken(f"trial {trial.number} of {self._called(study_id)}", "its attributes are no mapping")
        return copy.deepcopy(found) if deepcopy else found

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best of a study's trials. Raises ValueError if none is completed."""
        return self._read(self._inner.get_best_trial, f"the trials of {self._called(study_id)}", study_id)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Make a study, and return its id."""
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
        """Make a trial, and return its id."""
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
        """Set what a trial reported at a step."""
        self._write(self._inner.set_trial_intermediate_value, trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a trial's user attribute."""
        self._write(self._inner.set_trial_user_attr, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a trial's system attribute."""
        self._write(self._inner.set_trial_system_attr, trial_id, key, value)

    def remove_session(self) -> None:
        """Let go of this thread's connection."""
        self._inner.remove_session()

    def _read(self, ask: Callable[..., _Given], what: str, *given: Any, missing: bool = True) -> _Given:
        """Return what `ask` gives. KeyError passes if it can mean that something is `missing`."""
        try:
            return ask(*given)
        except BrokenStorage:
            raise
        except Exception as error:
            if is_away(error) or (missing and isinstance(error, KeyError)):
                raise
            raise self._broken(what, _in_words(error)) from error

    def _write(self, change: Callable[..., _Given], *given: Any) -> _Given:
        if self._read_only:
            raise BrokenStorage(f"{self._where}: is opened for reading; nothing in it can be changed")
        try:
            return change(*given)
        except (DuplicatedStudyError, UpdateFinishedTrialError):
            raise
        except Exception as error:
            # A TypeError is about what was given, which is not the storage's fault.
            if is_away(error) or isinstance(error, TypeError):
                raise
            raise BrokenStorage(f"{self._where}: takes no trials: {_in_words(error)}{self._again}") from error

    def _broken(self, what: str, reason: str) -> BrokenStorage:
        return BrokenStorage(f"{self._where}: {what} cannot be read: {reason}{self._again}")

    def _called(self, study_id: int) -> str:
        try:
            return repr(self._inner.get_study_name_from_id(study_id))
        except Exception:  # of two things that are wrong the other one is told
            return f"the Optuna study with the id {study_id}"

    def _attributes(self, study_id: int) -> str:
        return f"the attributes of {self._called(study_id)}"

    def _find_broken(self, study_id: int) -> None:
        """Raise BrokenStorage for the first trial of a study that cannot be read by itself, if that can be told."""
        for number, trial_id in sorted(self._numbers(study_id)) if isinstance(self._inner, _CachedStorage) else ():
            self._read(self._inner.get_trial, f"trial {number} of {self._called(study_id)}", trial_id, missing=False)

    def _numbers(self, study_id: int) -> list[tuple[Any, Any]]:
        """Return (number, id) of a study's trials, whatever these are."""
        assert isinstance(self._inner, _CachedStorage)
        trials = models.TrialModel
        with self._inner._backend.engine.connect() as connection:
            asked = select(trials.number, trials.trial_id).where(trials.study_id == study_id)
            return [(number, trial_id) for number, trial_id in connection.execute(asked)]

    def _check_numbers(self, study_id: int, what: str) -> None:
        """Raise BrokenStorage unless a study's trials are numbered from 0 up: Optuna counts them to number new ones.

        Of two with the same number it would show one.
        """
        if not isinstance(self._inner, _CachedStorage):
            return
        rows = self._numbers(study_id)
        for _, trial_id in rows:
            if not isinstance(trial_id, int) or not 0 < trial_id < _LARGEST_ID:
                raise self._broken(what, f"one of them has the id {trial_id!r}")
        numbers = [number for number, _ in rows]
        if unusual := set(numbers) ^ set(range(len(numbers))):
            shown = next(iter(sorted(unusual, key=str)))
            problem = "is missing" if shown not in numbers else "is no number that Optuna gave"
            raise self._broken(what, f"they are not numbered from 0 to {len(numbers) - 1}: {str(shown)[:40]} {problem}")


def _in_words(error: Exception) -> str:
    """Return what went wrong; of an error in the code that reads, its kind as well, for its text alone says little."""
    if isinstance(error, AWAY) or not str(error).strip():
        return reason_of(error)
    return f"{type(error).__name__}: {reason_of(error)}"
