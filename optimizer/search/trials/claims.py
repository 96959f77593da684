"""The trials of one search: how this process comes to a new one, and how what it scored is kept.

Working alone a trial is proposed in memory and written once, finished: killed in its midst it never was, and the next
run proposes the same again. With others it is written as it is claimed, so that they propose elsewhere and the budget
is shared out exactly; one whose worker died is marked as lost and put forward again as it was.
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
from optuna.trial import FrozenTrial, TrialState, create_trial

from optimizer.errors import InputError, StudyError
from optimizer.search.trials.best import completed
from optimizer.search.trials.budgets import budget_of
from optimizer.search.trials.checked_storage import BrokenStorage
from optimizer.search.trials.checked_trials import (
    ERROR,
    LOST,
    NOT_MEASURED,
    ORIGIN,
    WORKER,
    CheckedTrials,
    LeftOut,
    told_of,
)
from optimizer.search.trials.sampler_state import check_sampler_state
from optimizer.search.trials.storage import PATIENCE, FileWatch, StorageAddress, StorageLost, persist
from optimizer.search.trials.workers import Worker, Workers
from optimizer.studies import Stage

__all__ = ["Claim", "SharedStorage", "Trials", "is_lost"]

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
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.storage = storage
        self.address = address
        self.workers = workers
        self._patience = patience
        self.said = said
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
            with suppress(Exception):
                self._noted = self.storage.get_study_user_attrs(study_id)
            self._noted_of, self._noted_at = study_id, time.monotonic()
        return max(stage.trials, budget_of(stage, [self._noted], [one.name for one in self._lately_living()]))

    def _lately_living(self) -> tuple[Worker, ...]:
        if self.own is not None and time.monotonic() > self._counted + _COUNTING:
            # Good to know, and no more: what is wrong with the storage shows elsewhere.
            with suppress(Exception):
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
            return persist(action, self.address, patience=self._patience, said=self.said)
        except BrokenStorage as error:
            if not self._proved:
                raise
            raise StorageLost(f"{error}; it was sound when this fit began") from error

    def prove(self) -> None:
        """Take note that the storage has taken a trial: from now on it is no bad input."""
        self._proved = True

    def in_turn(self, action: Callable[[], _Given]) -> _Given:
        """The same, while no other worker does so."""

        def when_it_is_our_turn() -> _Given:
            with nullcontext() if self.own is None else self.workers.turn():
                return action()

        return self.do(when_it_is_our_turn)


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to score: `trial` as samplers see it, in the study in memory that they see."""

    memory: optuna.Study
    trial: FrozenTrial


class Trials:
    """The trials of the Optuna study `stored`, as far as this process knows them; makes out at once which are lost.

    Samplers see them, but for lost ones, in a study in memory, numbered without gaps: after a loss they propose what
    they would have proposed without it. Raises StorageLost, as all its methods do, if the storage stays away, and
    BrokenStorage if it holds what cannot be read.
    """

    def __init__(
        self,
        stored: optuna.Study,
        shared: SharedStorage,
        distributions: Mapping[str, BaseDistribution],
        blocks: Collection[str],
    ) -> None:
        """Of a search of parameters {name: range} that scores `blocks`; what else there is, is left out and said."""
        self._shared = shared
        self._counting = CheckedTrials(distributions, blocks, shared.do(lambda: stored.user_attrs))
        self._told: set[LeftOut] = set()
        self._name = stored.study_name
        self._storage = shared.storage
        self.study_id = stored._study_id
        self._memory = _study_in_memory(())
        # The trials that the study in memory holds, in its order.
        self._known: list[FrozenTrial] = []
        self._lost: list[FrozenTrial] = []
        # Of trials that others wrote, samplers may unpickle what they find in them: those that were looked at.
        self._checked: set[int] = set()
        # The trials that this process has scored.
        self._own: set[int] = set()
        self.refresh()

    @property
    def finished(self) -> tuple[FrozenTrial, ...]:
        """The trials that were scored, or failed to be, by number; lost ones are not among them."""
        return tuple(trial for trial in self._known if trial.state.is_finished())

    def refresh(self) -> None:
        """Look what others have done, and which of them have died."""
        self._shared.in_turn(self._refresh)

    def leave_out(self, trial: FrozenTrial) -> None:
        """Leave out a trial of others whose point was scored again and is not as good as it says, now and later."""

        def note() -> None:
            self._storage.set_study_user_attr(self.study_id, NOT_MEASURED, self._counting.leave_out(trial))
            self._take_note()

        self._shared.in_turn(note)

    def claim(self, budget: int, propose: Callable[[optuna.Study], FrozenTrial]) -> Claim | None:
        """A trial for this process to score; None if `budget` are completed or others are at all that is left.

        `propose` makes the next trial in a study in memory and gives it, running.
        """
        return self._shared.in_turn(lambda: self._claim(budget, propose))

    def finish(self, claim: Claim, attributes: Mapping[str, Any], value: float | None) -> None:
        """Keep what came of a claimed trial: its value, or None if it failed, and more of its user attributes."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        values = None if value is None else [value]
        if self._shared.own is not None:
            trial_id = self._known[claim.trial.number]._trial_id
            self._shared.do(lambda: self._tell(trial_id, attributes, state, values))
            self._shared.do(self._take_note)
            # What is scored here counts here: otherwise there would be no end.
            assert any(trial._trial_id == trial_id for trial in (*self._known, *self._lost)), self._counting.left_out
        else:
            inner, inner_id = claim.memory._storage, claim.trial._trial_id
            for key, content in attributes.items():
                inner.set_trial_user_attr(inner_id, key, content)
            inner.set_trial_state_values(inner_id, state, values)
            done, before = inner.get_trial(inner_id), len(self._known) + len(self._lost)
            attempts = iter((False,))
            self._known.append(self._shared.do(lambda: self._add(done, before, again=next(attempts, True))))
            self._own.add(self._known[-1]._trial_id)
        self._shared.prove()

    def _refresh(self) -> None:
        found = self._read()
        if self._mark_lost(found):
            found = self._read()
        self._take_note(found)

    def _take_note(self, found: Sequence[FrozenTrial] | None = None) -> None:
        """Bring the study in memory to what is stored."""
        found = self._read() if found is None else found
        unchecked = [trial for trial in found if trial._trial_id not in self._checked]
        check_sampler_state(unchecked, str(self._shared.address))
        self._checked |= {trial._trial_id for trial in unchecked}
        known = [trial for trial in found if not is_lost(trial)]
        self._lost = [trial for trial in found if is_lost(trial)]
        inner, inner_trials = self._memory._storage, self._memory.get_trials(deepcopy=False)
        before = [trial._trial_id for trial in self._known]
        if len(inner_trials) != len(before) or [trial._trial_id for trial in known[: len(before)]] != before:
            # Some were lost, or one that was proposed never came to be stored.
            self._memory = _study_in_memory(known)
        else:
            for one, other in zip(inner_trials, known, strict=False):
                if not one.state.is_finished() and other.state.is_finished():
                    for key, content in other.user_attrs.items():
                        inner.set_trial_user_attr(one._trial_id, key, content)
                    inner.set_trial_state_values(one._trial_id, other.state, other.values)
            self._memory.add_trials(known[len(before) :])
        self._known = known

    def _read(self) -> list[FrozenTrial]:
        found = self._counting.of(self._storage.get_all_trials(self.study_id, deepcopy=False))
        new = [one for one in self._counting.left_out if one not in self._told]
        for line in told_of(new, self._shared.address, self._name):
            self._shared.said(line)
        self._told.update(new)
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
            self._storage.set_trial_user_attr(trial._trial_id, key, reason)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _claim(self, budget: int, propose: Callable[[optuna.Study], FrozenTrial]) -> Claim | None:
        own = self._shared.own
        if own is not None:
            self._refresh()
        running = [trial for trial in self._known if not trial.state.is_finished()]
        left = budget - len(completed(self._known)) - len(running)
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
                state=TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, WORKER: own},
                system_attrs=trial.system_attrs,
            )
            self._known.append(self._storage.get_trial(self._storage.create_new_trial(self.study_id, template)))
            self._own.add(self._known[-1]._trial_id)
        return Claim(self._memory, trial)

    def _proposed(self, propose: Callable[[optuna.Study], FrozenTrial]) -> FrozenTrial:
        try:
            return propose(self._memory)
        except InputError:
            raise
        except Exception as error:
            if all(trial._trial_id in self._own for trial in self._known):
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
        self, trial_id: int, attributes: Mapping[str, Any], state: TrialState, values: Sequence[float] | None
    ) -> None:
        try:
            for key, content in attributes.items():
                self._storage.set_trial_user_attr(trial_id, key, content)
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            # An attempt before has told it; or others took this process to be dead and have begun it again.
            return


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial's worker died before it was scored; one that was scored while it was given up is not lost."""
    return trial.state == TrialState.FAIL and bool(trial.user_attrs.get(LOST))


def _study_in_memory(trials: Sequence[FrozenTrial]) -> optuna.Study:
    # Whoever proposes brings a sampler of its own.
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=InMemoryStorage(), direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study


def _put_forward(memory: optuna.Study, lost: FrozenTrial) -> FrozenTrial:
    """A new trial in memory that is as the lost one was when it was claimed, state of the sampler included."""
    kept = {key: value for key, value in lost.user_attrs.items() if key == ORIGIN}
    template = create_trial(
        state=TrialState.RUNNING,
        params=lost.params,
        distributions=lost.distributions,
        user_attrs=kept,
        system_attrs=lost.system_attrs,
    )
    memory.add_trial(template)
    return memory.get_trials(deepcopy=False)[-1]
