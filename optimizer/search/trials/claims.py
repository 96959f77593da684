"""The trials of one search: claim the next one for this process, and store its scores.

A single worker proposes trials in memory and stores each one only when it has finished. If the process is killed, the
trial was never stored and the next run proposes the same point. Several workers store a trial when they claim it, so
that other workers propose other points and the budget is met exactly. A trial whose worker died is marked as lost, and
its point is claimed again.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from optimizer.errors import InputError, StudyError
from optimizer.events import LOGGED
from optimizer.search.trials.attributes import (
    ERROR,
    LOST,
    NOT_MEASURED,
    ORIGIN,
    WORKER,
    attributes_of,
    is_lost,
    trial_of,
)
from optimizer.search.trials.budgets import budget_of
from optimizer.search.trials.checked_storage import BrokenStorage
from optimizer.search.trials.checked_trials import CheckedTrials, LeftOut, describe_left_out
from optimizer.search.trials.database_errors import storage_errors
from optimizer.search.trials.optuna_privates import id_of_study, id_of_trial, storage_of
from optimizer.search.trials.sampler_state import check_sampler_state
from optimizer.search.trials.storage import PATIENCE, FileWatch, StorageAddress, StorageLost, persist
from optimizer.search.trials.trial import Scores, Trial
from optimizer.search.trials.workers import Worker, Workers
from optimizer.studies import Stage

__all__ = ["Claim", "SharedStorage", "Trials"]

# The number of dead workers after which a point counts as failed.
_LOSSES = 3
# Seconds between counts of the workers.
_COUNT_INTERVAL = 2.0

_Given = TypeVar("_Given")


class SharedStorage:
    """An open storage of trials, shared with other workers.

    Args:
        storage: The storage.
        address: Its address.
        workers: The workers at it.
        patience: Seconds to wait for an unavailable storage.
        warn: Called with warnings of one line.

    """

    def __init__(
        self,
        storage: BaseStorage,
        address: StorageAddress,
        workers: Workers,
        *,
        patience: float = PATIENCE,
        warn: Callable[[str], None] = LOGGED.warn,
    ) -> None:
        self.storage = storage
        self.address = address
        self.workers = workers
        self._patience = patience
        self.warn = warn
        self._watch = FileWatch(address)
        self._sound = False
        self._living: tuple[Worker, ...] = ()
        self._counted_at = -math.inf
        self._budgets: Mapping[str, Any] = {}
        self._budgets_of, self._budgets_at = -1, -math.inf

    @property
    def worker_name(self) -> str | None:
        """Name of this process among the workers; None if it works alone."""
        mine = self.workers.mine
        return None if mine is None or mine.alone else mine.name

    @property
    def count(self) -> int:
        """Number of workers, at most 2 s old."""
        return max(len(self._lately_living()), 1)

    def budget(self, stage: Stage, study_id: int) -> int:
        """Return the number of completed trials that the workers will reach, at most 2 s old.

        The worker with the largest budget runs the last trials.

        Args:
            stage: The stage, with the budget of this process.
            study_id: The id of the Optuna study.

        Returns:
            The largest budget of the living workers.

        """
        if self.worker_name is None:
            return stage.trials
        if study_id != self._budgets_of or time.monotonic() > self._budgets_at + _COUNT_INTERVAL:
            # This number is for information only; a faulty storage raises elsewhere.
            with suppress(*storage_errors(), StudyError):
                self._budgets = self.storage.get_study_user_attrs(study_id)
            self._budgets_of, self._budgets_at = study_id, time.monotonic()
        names = [worker.name for worker in self._lately_living()]
        return max(stage.trials, budget_of(stage, [self._budgets], names))

    def _lately_living(self) -> tuple[Worker, ...]:
        if self.worker_name is not None and time.monotonic() > self._counted_at + _COUNT_INTERVAL:
            # This number is for information only; a faulty storage raises elsewhere.
            with suppress(*storage_errors(), StudyError):
                self._living = self.workers.living()
            self._counted_at = time.monotonic()
        return self._living

    def do(self, action: Callable[[], _Given]) -> _Given:
        """Run an action on the storage, again if the storage is unavailable.

        Args:
            action: The action; it must be idempotent.

        Returns:
            The result of the action.

        Raises:
            StorageLost: The storage stays unavailable, was replaced, or broke after this fit had stored a trial in it.
            BrokenStorage: The storage was broken from the start, so that the user's input is at fault.

        """
        self._watch.check()
        try:
            return persist(action, self.address, patience=self._patience, warn=self.warn)
        except BrokenStorage as error:
            if not self._sound:
                raise
            raise StorageLost(f"{error}; the storage was sound when this fit started") from error

    def mark_sound(self) -> None:
        """Record that the storage has accepted a trial; later faults are no longer bad input."""
        self._sound = True

    def locked(self, action: Callable[[], _Given]) -> _Given:
        """Run an action as `do`, while no other worker runs one."""

        def with_lock() -> _Given:
            with nullcontext() if self.worker_name is None else self.workers.turn():
                return action()

        return self.do(with_lock)


@dataclass(frozen=True)
class Claim:
    """A trial for this process to score.

    Attributes:
        memory: The in-memory study that samplers see.
        trial: The trial in that study.

    """

    memory: optuna.Study
    trial: FrozenTrial

    @property
    def alphas(self) -> Mapping[str, float]:
        """Point to score, {name of a free alpha: value}."""
        return self.trial.params


class Trials:
    """The trials of one search, as last read from the storage; lost trials are marked at once.

    Samplers see an in-memory copy without lost trials, renumbered without gaps, so a lost trial does not change later
    proposals. All methods raise StorageLost if the storage stays unavailable, and BrokenStorage if it is broken.
    """

    def __init__(
        self,
        stored: optuna.Study,
        shared: SharedStorage,
        distributions: Mapping[str, BaseDistribution],
        blocks: Collection[str],
    ) -> None:
        """Read the trials; trials that do not count are left out, with a warning.

        Args:
            stored: The Optuna study.
            shared: Its storage.
            distributions: The free alphas of the search, {name: range}.
            blocks: The scored blocks.

        """
        self._shared = shared
        self._counting = CheckedTrials(distributions, blocks, shared.do(lambda: stored.user_attrs))
        self._described: set[LeftOut] = set()
        self._name = stored.study_name
        self._storage = shared.storage
        self.study_id = id_of_study(stored)
        self._memory = _study_in_memory(())
        # The trials of the in-memory study, in its order.
        self._known: list[FrozenTrial] = []
        self._lost: list[FrozenTrial] = []
        # Ids of trials whose sampler state was checked: samplers may unpickle the state of trials that others wrote.
        self._checked: set[int] = set()
        # Ids of the trials that this process has claimed.
        self._mine: set[int] = set()
        # Records of finished trials by id; they no longer change.
        self._records: dict[int, Trial] = {}
        self.refresh()

    @property
    def finished(self) -> tuple[Trial, ...]:
        """Complete and failed trials by number, without lost ones."""
        return tuple(self._record(trial) for trial in self._known if trial.state.is_finished())

    def _record(self, trial: FrozenTrial) -> Trial:
        trial_id = id_of_trial(trial)
        if trial_id not in self._records:
            self._records[trial_id] = trial_of(trial)
        return self._records[trial_id]

    def refresh(self) -> None:
        """Read the trials that other workers have finished, and mark trials of dead workers as lost."""
        self._shared.locked(self._refresh)

    def leave_out(self, trial: Trial) -> None:
        """Leave out a trial whose stored scores are wrong, in this and later fits."""
        stored = next(known for known in self._known if known.number == trial.number)

        def record() -> None:
            self._storage.set_study_user_attr(self.study_id, NOT_MEASURED, self._counting.leave_out(stored))
            self._record_others()

        self._shared.locked(record)

    def claim(self, budget: int, propose: Callable[[optuna.Study], FrozenTrial]) -> Claim | None:
        """Claim a trial for this process.

        Args:
            budget: The number of complete trials to reach.
            propose: Creates the next trial in the in-memory study and returns it, running.

        Returns:
            The trial; None if the budget is met, or if other workers score all remaining trials.

        """
        return self._shared.locked(lambda: self._claim(budget, propose))

    def finish(self, claim: Claim, scores: Scores) -> None:
        """Store a claimed trial as complete, with its scores."""
        self._finish(claim, attributes_of(scores), OptunaState.COMPLETE, [scores.similarity])

    def fail(self, claim: Claim, error: str) -> None:
        """Store a claimed trial as failed, with its error."""
        self._finish(claim, {ERROR: error}, OptunaState.FAIL, None)

    def _finish(
        self, claim: Claim, attributes: Mapping[str, Any], state: OptunaState, values: Sequence[float] | None
    ) -> None:
        if self._shared.worker_name is not None:
            trial_id = id_of_trial(self._known[claim.trial.number])
            self._shared.do(lambda: self._tell(trial_id, attributes, state, values))
            self._shared.do(self._record_others)
            # A trial scored here must count here; otherwise the search would never end.
            assert any(id_of_trial(trial) == trial_id for trial in (*self._known, *self._lost)), self._counting.left_out
        else:
            inner, inner_id = storage_of(claim.memory), id_of_trial(claim.trial)
            for key, content in attributes.items():
                inner.set_trial_user_attr(inner_id, key, content)
            inner.set_trial_state_values(inner_id, state, values)
            done, before = inner.get_trial(inner_id), len(self._known) + len(self._lost)
            attempts = iter((False,))
            self._known.append(self._shared.do(lambda: self._add(done, before, again=next(attempts, True))))
            self._mine.add(id_of_trial(self._known[-1]))
        self._shared.mark_sound()

    def _refresh(self) -> None:
        found = self._read()
        if self._mark_lost(found):
            found = self._read()
        self._record_others(found)

    def _record_others(self, found: Sequence[FrozenTrial] | None = None) -> None:
        """Update the in-memory study from the storage."""
        found = self._read() if found is None else found
        unchecked = [trial for trial in found if id_of_trial(trial) not in self._checked]
        check_sampler_state(unchecked, str(self._shared.address))
        self._checked |= set(map(id_of_trial, unchecked))
        known = [trial for trial in found if not is_lost(trial)]
        self._lost = [trial for trial in found if is_lost(trial)]
        inner, inner_trials = storage_of(self._memory), self._memory.get_trials(deepcopy=False)
        before = list(map(id_of_trial, self._known))
        if len(inner_trials) != len(before) or list(map(id_of_trial, known[: len(before)])) != before:
            # Trials were lost, or a proposed trial was never stored.
            self._memory = _study_in_memory(known)
        else:
            for copied, stored in zip(inner_trials, known, strict=False):
                if not copied.state.is_finished() and stored.state.is_finished():
                    for key, content in stored.user_attrs.items():
                        inner.set_trial_user_attr(id_of_trial(copied), key, content)
                    inner.set_trial_state_values(id_of_trial(copied), stored.state, stored.values)
            self._memory.add_trials(known[len(before) :])
        self._known = known

    def _read(self) -> list[FrozenTrial]:
        found = self._counting.of(self._storage.get_all_trials(self.study_id, deepcopy=False))
        new = [left_out for left_out in self._counting.left_out if left_out not in self._described]
        for line in describe_left_out(new, self._shared.address, self._name):
            self._shared.warn(line)
        self._described.update(new)
        return found

    def _mark_lost(self, trials: Sequence[FrozenTrial]) -> bool:
        """Mark unfinished trials without a living worker as lost or failed; return whether any were marked."""
        mine = self._shared.worker_name
        unfinished = [
            trial
            for trial in trials
            if not trial.state.is_finished() and (mine is None or trial.user_attrs.get(WORKER) != mine)
        ]
        if not unfinished:
            return False
        living = set() if mine is None else {worker.name for worker in self._shared.workers.living()}
        dead = [trial for trial in unfinished if trial.user_attrs.get(WORKER) not in living]
        for trial in dead:
            losses = 1 + sum(earlier.params == trial.params for earlier in trials if is_lost(earlier))
            if losses < _LOSSES:
                self._give_up(trial, LOST, True)
            else:
                self._give_up(trial, ERROR, f"its worker ended during the scoring, {losses} times")
        return bool(dead)

    def _give_up(self, trial: FrozenTrial, key: str, reason: object) -> None:
        # If the worker finished this trial after it was read, the trial counts.
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(id_of_trial(trial), key, reason)
            self._storage.set_trial_state_values(id_of_trial(trial), OptunaState.FAIL)

    def _claim(self, budget: int, propose: Callable[[optuna.Study], FrozenTrial]) -> Claim | None:
        mine = self._shared.worker_name
        if mine is not None:
            self._refresh()
        running = [trial for trial in self._known if not trial.state.is_finished()]
        complete = sum(trial.state == OptunaState.COMPLETE for trial in self._known)
        left = budget - complete - len(running)
        for trial in running:
            if mine is not None and trial.user_attrs.get(WORKER) == mine:
                # An earlier attempt stored this claim, but its connection broke before the reply.
                if left >= 0:
                    return Claim(self._memory, self._memory.get_trials(deepcopy=False)[self._known.index(trial)])
                # The turn of that attempt ended early, with its connection, and another worker took the last trial.
                self._give_up(trial, LOST, True)
                return None
        if left <= 0:
            return None
        tried = [trial.params for trial in self._known]
        lost = next((trial for trial in self._lost if trial.params and trial.params not in tried), None)
        trial = self._proposed(propose) if lost is None else _proposed_again(self._memory, lost)
        if mine is not None:
            template = create_trial(
                state=OptunaState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, WORKER: mine},
                system_attrs=trial.system_attrs,
            )
            self._known.append(self._storage.get_trial(self._storage.create_new_trial(self.study_id, template)))
            self._mine.add(id_of_trial(self._known[-1]))
        return Claim(self._memory, trial)

    def _proposed(self, propose: Callable[[optuna.Study], FrozenTrial]) -> FrozenTrial:
        try:
            return propose(self._memory)
        except InputError:
            raise
        except Exception as error:
            if all(id_of_trial(trial) in self._mine for trial in self._known):
                raise
            # A stored sampler state can be valid in form and still have unusable numbers.
            raise StudyError(
                f"{self._shared.address}: {self._name!r}: no trial can be proposed from the stored trials "
                f"({type(error).__name__}: {error})"
            ) from error

    def _add(self, done: FrozenTrial, before: int, *, again: bool) -> FrozenTrial:
        for found in self._read()[before:] if again else ():
            if (found.params, found.values, found.user_attrs) == (done.params, done.values, done.user_attrs):
                return found
        return self._storage.get_trial(self._storage.create_new_trial(self.study_id, done))

    def _tell(
        self, trial_id: int, attributes: Mapping[str, Any], state: OptunaState, values: Sequence[float] | None
    ) -> None:
        try:
            for key, content in attributes.items():
                self._storage.set_trial_user_attr(trial_id, key, content)
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            # An earlier attempt stored the trial, or other workers took this process for dead and restarted it.
            return


def _study_in_memory(trials: Sequence[FrozenTrial]) -> optuna.Study:
    # The proposer replaces this sampler.
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=InMemoryStorage(), direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study


def _proposed_again(memory: optuna.Study, lost: FrozenTrial) -> FrozenTrial:
    """Add a lost trial to the in-memory study as it was when claimed, with its sampler state, and return it."""
    kept = {key: value for key, value in lost.user_attrs.items() if key == ORIGIN}
    template = create_trial(
        state=OptunaState.RUNNING,
        params=lost.params,
        distributions=lost.distributions,
        user_attrs=kept,
        system_attrs=lost.system_attrs,
    )
    memory.add_trial(template)
    return memory.get_trials(deepcopy=False)[-1]
