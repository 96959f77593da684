"""The trials of one search: how this process claims the next one, and how its scores are stored.

A single worker proposes trials in memory and stores each one only when it has finished. If the process is killed, the
trial was never stored and the next run proposes the same point. Several workers store a trial as they claim it, so that
the others propose elsewhere and share the budget exactly; a trial whose worker died is marked as lost, and its point
is claimed again.
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
from optimizer.search.trials.database_errors import AWAY
from optimizer.search.trials.optuna_privates import id_of_study, id_of_trial, storage_of
from optimizer.search.trials.sampler_state import check_sampler_state
from optimizer.search.trials.storage import PATIENCE, FileWatch, StorageAddress, StorageLost, persist
from optimizer.search.trials.trial import Scores, Trial
from optimizer.search.trials.workers import Worker, Workers
from optimizer.studies import Stage

__all__ = ["Claim", "SharedStorage", "Trials"]

# So many workers may die of a point before it counts as one that cannot be scored.
_LOSSES = 3
# Seconds for which it does not matter that a worker has come or gone.
_COUNTING = 2.0

_Given = TypeVar("_Given")


class SharedStorage:
    """A storage of trials, open, with who works there besides this process and how long it may be away."""

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
        self._proved = False
        self._living: tuple[Worker, ...] = ()
        self._counted = -math.inf
        self._noted: Mapping[str, Any] = {}
        self._noted_of, self._noted_at = -1, -math.inf

    @property
    def own(self) -> str | None:
        """The name of this process among others; None if there are none."""
        own = self.workers.own
        return None if own is None or own.alone else own.name

    @property
    def count(self) -> int:
        """How many workers there are, as of the last seconds."""
        return max(len(self._lately_living()), 1)

    def budget(self, stage: Stage, study_id: int) -> int:
        """Return up to how many completed trials of an Optuna study the workers run, as of the last seconds.

        Of several workers with different budgets the one with the largest runs the last trials.
        """
        if self.own is None:
            return stage.trials
        if study_id != self._noted_of or time.monotonic() > self._noted_at + _COUNTING:
            # Good to know, and no more: what is wrong with the storage shows elsewhere.
            with suppress(*AWAY, StudyError):
                self._noted = self.storage.get_study_user_attrs(study_id)
            self._noted_of, self._noted_at = study_id, time.monotonic()
        return max(stage.trials, budget_of(stage, [self._noted], [one.name for one in self._lately_living()]))

    def _lately_living(self) -> tuple[Worker, ...]:
        if self.own is not None and time.monotonic() > self._counted + _COUNTING:
            # Good to know, and no more: what is wrong with the storage shows elsewhere.
            with suppress(*AWAY, StudyError):
                self._living = self.workers.living()
            self._counted = time.monotonic()
        return self._living

    def do(self, action: Callable[[], _Given]) -> _Given:
        """Return what `action` gives, which may be done twice.

        Raises StorageLost if the storage stays away or is gone; BrokenStorage, in its place, if it holds what cannot be
        read, as long as nothing was stored in it: what a user gave is at fault then.
        """
        self._watch.check()
        try:
            return persist(action, self.address, patience=self._patience, warn=self.warn)
        except BrokenStorage as error:
            if not self._proved:
                raise
            raise StorageLost(f"{error}; it was sound when this fit began") from error

    def prove(self) -> None:
        """Take note that the storage has taken a trial: from now on it is no bad input."""
        self._proved = True

    def locked(self, action: Callable[[], _Given]) -> _Given:
        """Do the same while no other worker does."""

        def with_lock() -> _Given:
            with nullcontext() if self.own is None else self.workers.turn():
                return action()

        return self.do(with_lock)


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to score: `trial` as samplers see it, in the study in memory that they see."""

    memory: optuna.Study
    trial: FrozenTrial

    @property
    def alphas(self) -> Mapping[str, float]:
        """The point to be scored, {name of a parameter: value}."""
        return self.trial.params


class Trials:
    """The trials of the Optuna study `stored` as this process knows them; lost ones are marked at once.

    Samplers see an in-memory copy without lost trials, renumbered without gaps, so a lost trial does not change later
    proposals. Raises StorageLost, as all its methods do, if the storage stays away, and
    BrokenStorage if it holds what cannot be read.
    """

    def __init__(
        self,
        stored: optuna.Study,
        shared: SharedStorage,
        distributions: Mapping[str, BaseDistribution],
        blocks: Collection[str],
    ) -> None:
        """Of a search of parameters {name: range} that scores `blocks`; other trials are left out, with a warning."""
        self._shared = shared
        self._counting = CheckedTrials(distributions, blocks, shared.do(lambda: stored.user_attrs))
        self._described: set[LeftOut] = set()
        self._name = stored.study_name
        self._storage = shared.storage
        self.study_id = id_of_study(stored)
        self._memory = _study_in_memory(())
        # The trials that the study in memory holds, in its order.
        self._known: list[FrozenTrial] = []
        self._lost: list[FrozenTrial] = []
        # Of trials that others wrote, samplers may unpickle what they find in them: those that were looked at.
        self._checked: set[int] = set()
        # The trials that this process has scored.
        self._own: set[int] = set()
        # Of finished trials, by their ids: they do not change any more.
        self._records: dict[int, Trial] = {}
        self.refresh()

    @property
    def finished(self) -> tuple[Trial, ...]:
        """The complete and the failed trials, by number; lost ones are not among them."""
        return tuple(self._record(trial) for trial in self._known if trial.state.is_finished())

    def _record(self, trial: FrozenTrial) -> Trial:
        trial_id = id_of_trial(trial)
        if trial_id not in self._records:
            self._records[trial_id] = trial_of(trial)
        return self._records[trial_id]

    def refresh(self) -> None:
        """Take in the trials that others have finished, and mark those whose workers have died as lost."""
        self._shared.locked(self._refresh)

    def leave_out(self, trial: Trial) -> None:
        """Leave out a stored trial whose point was scored again and is not as good as it says, now and later."""
        stored = next(one for one in self._known if one.number == trial.number)

        def note() -> None:
            self._storage.set_study_user_attr(self.study_id, NOT_MEASURED, self._counting.leave_out(stored))
            self._record_others()

        self._shared.locked(note)

    def claim(self, budget: int, propose: Callable[[optuna.Study], FrozenTrial]) -> Claim | None:
        """Return a trial for this process to score; None if `budget` are complete or others score all that is left.

        `propose` makes the next trial in an Optuna study in memory and returns it, running.
        """
        return self._shared.locked(lambda: self._claim(budget, propose))

    def finish(self, claim: Claim, scores: Scores) -> None:
        """Store a claimed trial as complete, with its scores."""
        self._finish(claim, attributes_of(scores), OptunaState.COMPLETE, [scores.similarity])

    def fail(self, claim: Claim, error: str) -> None:
        """Store a claimed trial as failed, with the reason."""
        self._finish(claim, {ERROR: error}, OptunaState.FAIL, None)

    def _finish(
        self, claim: Claim, attributes: Mapping[str, Any], state: OptunaState, values: Sequence[float] | None
    ) -> None:
        if self._shared.own is not None:
            trial_id = id_of_trial(self._known[claim.trial.number])
            self._shared.do(lambda: self._tell(trial_id, attributes, state, values))
            self._shared.do(self._record_others)
            # What is scored here counts here: otherwise there would be no end.
            assert any(id_of_trial(trial) == trial_id for trial in (*self._known, *self._lost)), self._counting.left_out
        else:
            inner, inner_id = storage_of(claim.memory), id_of_trial(claim.trial)
            for key, content in attributes.items():
                inner.set_trial_user_attr(inner_id, key, content)
            inner.set_trial_state_values(inner_id, state, values)
            done, before = inner.get_trial(inner_id), len(self._known) + len(self._lost)
            attempts = iter((False,))
            self._known.append(self._shared.do(lambda: self._add(done, before, again=next(attempts, True))))
            self._own.add(id_of_trial(self._known[-1]))
        self._shared.prove()

    def _refresh(self) -> None:
        found = self._read()
        if self._mark_lost(found):
            found = self._read()
        self._record_others(found)

    def _record_others(self, found: Sequence[FrozenTrial] | None = None) -> None:
        """Bring the study in memory to what is stored."""
        found = self._read() if found is None else found
        unchecked = [trial for trial in found if id_of_trial(trial) not in self._checked]
        check_sampler_state(unchecked, str(self._shared.address))
        self._checked |= set(map(id_of_trial, unchecked))
        known = [trial for trial in found if not is_lost(trial)]
        self._lost = [trial for trial in found if is_lost(trial)]
        inner, inner_trials = storage_of(self._memory), self._memory.get_trials(deepcopy=False)
        before = list(map(id_of_trial, self._known))
        if len(inner_trials) != len(before) or list(map(id_of_trial, known[: len(before)])) != before:
            # Some were lost, or one that was proposed never came to be stored.
            self._memory = _study_in_memory(known)
        else:
            for one, other in zip(inner_trials, known, strict=False):
                if not one.state.is_finished() and other.state.is_finished():
                    for key, content in other.user_attrs.items():
                        inner.set_trial_user_attr(id_of_trial(one), key, content)
                    inner.set_trial_state_values(id_of_trial(one), other.state, other.values)
            self._memory.add_trials(known[len(before) :])
        self._known = known

    def _read(self) -> list[FrozenTrial]:
        found = self._counting.of(self._storage.get_all_trials(self.study_id, deepcopy=False))
        new = [one for one in self._counting.left_out if one not in self._described]
        for line in describe_left_out(new, self._shared.address, self._name):
            self._shared.warn(line)
        self._described.update(new)
        return found

    def _mark_lost(self, trials: Sequence[FrozenTrial]) -> bool:
        """Fail the trials that nobody is at any more; whether there were any."""
        own = self._shared.own
        unfinished = [
            trial
            for trial in trials
            if not trial.state.is_finished() and (own is None or trial.user_attrs.get(WORKER) != own)
        ]
        if not unfinished:
            return False
        living = set() if own is None else {worker.name for worker in self._shared.workers.living()}
        dead = [trial for trial in unfinished if trial.user_attrs.get(WORKER) not in living]
        for trial in dead:
            losses = 1 + sum(other.params == trial.params for other in trials if is_lost(other))
            if losses < _LOSSES:
                self._give_up(trial, LOST, True)
            else:
                self._give_up(trial, ERROR, f"its worker ended while it was scored, {losses} times")
        return bool(dead)

    def _give_up(self, trial: FrozenTrial, key: str, reason: object) -> None:
        # A worker that has finished its trial and left since that was read is not dead.
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(id_of_trial(trial), key, reason)
            self._storage.set_trial_state_values(id_of_trial(trial), OptunaState.FAIL)

    def _claim(self, budget: int, propose: Callable[[optuna.Study], FrozenTrial]) -> Claim | None:
        own = self._shared.own
        if own is not None:
            self._refresh()
        running = [trial for trial in self._known if not trial.state.is_finished()]
        complete = sum(trial.state == OptunaState.COMPLETE for trial in self._known)
        left = budget - complete - len(running)
        for trial in running:
            if own is not None and trial.user_attrs.get(WORKER) == own:
                # Claimed by an attempt that did not come to know of it.
                if left >= 0:
                    return Claim(self._memory, self._memory.get_trials(deepcopy=False)[self._known.index(trial)])
                # Its turn ended before it should, as with a connection, and another worker came in between.
                self._give_up(trial, LOST, True)
                return None
        if left <= 0:
            return None
        tried = [trial.params for trial in self._known]
        lost = next((trial for trial in self._lost if trial.params and trial.params not in tried), None)
        trial = self._proposed(propose) if lost is None else _put_forward(self._memory, lost)
        if own is not None:
            template = create_trial(
                state=OptunaState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, WORKER: own},
                system_attrs=trial.system_attrs,
            )
            self._known.append(self._storage.get_trial(self._storage.create_new_trial(self.study_id, template)))
            self._own.add(id_of_trial(self._known[-1]))
        return Claim(self._memory, trial)

    def _proposed(self, propose: Callable[[optuna.Study], FrozenTrial]) -> FrozenTrial:
        try:
            return propose(self._memory)
        except InputError:
            raise
        except Exception as error:
            if all(id_of_trial(trial) in self._own for trial in self._known):
                raise
            # A sampler's state may be one by its form, and hold numbers that nothing can be made of.
            raise StudyError(
                f"{self._shared.address}: {self._name!r}: no trial can be proposed from those that are stored "
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
            # An earlier attempt has stored it; or others took this process to be dead and have begun it again.
            return


def _study_in_memory(trials: Sequence[FrozenTrial]) -> optuna.Study:
    # A proposer sets its own sampler.
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=InMemoryStorage(), direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study


def _put_forward(memory: optuna.Study, lost: FrozenTrial) -> FrozenTrial:
    """A new trial in memory that is as the lost one was when it was claimed, state of the sampler included."""
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
