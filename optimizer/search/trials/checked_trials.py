"""The check of the trials in an Optuna study: only trials that this search can have made count.

Other programs can add trials to a study (Optuna's dashboard, for example), and a study.db may come from anywhere. A
trial counts if it has the search's parameters within their ranges and, once completed, one similarity that is the mean
of its blocks' similarities. All others are left out, with a reason.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from optimizer.search.trials.attributes import (
    BLOCK_SCORES,
    DISTANCE,
    ERROR,
    LOST,
    NOT_MEASURED,
    ORIGIN,
    WORKER,
    trial_of,
)
from optimizer.search.trials.best import best_of, completed
from optimizer.search.trials.optuna_privates import contains, id_of_trial
from optimizer.similarity import total_similarity

__all__ = ["CheckedTrials", "LeftOut", "describe_left_out"]

_TEXTS = (ORIGIN, ERROR, WORKER)
_LONGEST_TEXT = 100_000
_LARGEST = 1e300
# Tolerance for rounding: similarities may exceed [-1, 1], or differ from their blocks' mean, by this much.
_ROUNDING = 1e-6
# The number of trials that a message lists.
_NAMED = 5


@dataclass(frozen=True)
class LeftOut:
    """The number of a trial that does not count, and the reason."""

    number: int
    reason: str


class CheckedTrials:
    """The check of the trials of one search. Each finished trial is checked once.

    Points that were enqueued and never tried are neither counted nor left out.

    Args:
        distributions: The parameters, {name: range}.
        blocks: The scored blocks.
        attributes: The user attributes of the Optuna study, which may list trials that do not count.
        some: Whether trials may be scored on a part of `blocks`, all on the same part. A block that the target left
            unchanged has no similarity, and without the checkpoints these blocks are unknown. The blocks of most
            trials are then taken as right.

    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        blocks: Collection[str],
        attributes: Mapping[str, Any],
        *,
        some: bool = False,
    ) -> None:
        self._distributions = dict(distributions)
        self._blocks: frozenset[str] | None = None if some else frozenset(blocks)
        self._possible = frozenset(blocks)
        listed = attributes.get(NOT_MEASURED)
        self._not_measured = {number for number in listed if type(number) is int} if isinstance(listed, list) else set()
        self._finished: dict[int, FrozenTrial | None] = {}
        self._left_out: dict[int, LeftOut] = {}

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Trials that do not count, by number."""
        return tuple(sorted(self._left_out.values(), key=lambda left_out: left_out.number))

    def leave_out(self, trial: FrozenTrial) -> list[int]:
        """Leave out a trial whose stored scores are wrong; return the numbers of all such trials (`NOT_MEASURED`)."""
        self._not_measured.add(trial.number)
        self._finished.pop(id_of_trial(trial), None)
        return sorted(self._not_measured)

    def best(self, found: Iterable[FrozenTrial]) -> FrozenTrial | None:
        """Return the best of the trials that `of` returned, by `best_of`; None if none is completed."""
        by_number = {trial.number: trial for trial in found}
        best = best_of(completed(map(trial_of, by_number.values())))
        return None if best is None else by_number[best.number]

    def of(self, found: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that count.

        Args:
            found: All trials of the Optuna study.

        Returns:
            The trials that count, in the order of their creation, without unknown or invalid attributes.

        """
        found = sorted(found, key=id_of_trial)
        if self._blocks is None:
            self._blocks = self._usual_blocks(found)
        counting = []
        for trial in found:
            trial_id = id_of_trial(trial)
            if trial_id not in self._finished:
                checked = self._checked(trial)
                if not trial.state.is_finished():
                    if checked is not None:
                        counting.append(checked)
                    continue
                self._finished[trial_id] = checked
            if (known := self._finished[trial_id]) is not None:
                counting.append(known)
        return counting

    def _usual_blocks(self, found: Sequence[FrozenTrial]) -> frozenset[str] | None:
        """Return the blocks that most of the completed trials are scored on; None without a completed trial."""
        scored = (trial.user_attrs.get(BLOCK_SCORES) for trial in found if trial.state == TrialState.COMPLETE)
        usual = Counter(frozenset(scores) for scores in scored if isinstance(scores, Mapping))
        return next((blocks for blocks, _ in usual.most_common() if blocks <= self._possible), None)

    def _checked(self, trial: FrozenTrial) -> FrozenTrial | None:
        self._left_out.pop(id_of_trial(trial), None)
        if trial.state == TrialState.WAITING or (not trial.params and not trial.state.is_finished()):
            return None
        try:
            reason = next(self._faults(trial), None)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A journal's values may be of any type.
            reason = f"it is not a trial ({type(error).__name__}: {error})"
        if reason is not None:
            self._left_out[id_of_trial(trial)] = LeftOut(trial.number, reason)
            return None
        return FrozenTrial(
            number=trial.number,
            state=trial.state,
            value=None,
            values=trial.values if trial.state.is_finished() else None,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete if trial.state.is_finished() else None,
            params={name: trial.params[name] for name in self._distributions},
            distributions={name: trial.distributions[name] for name in self._distributions},
            user_attrs=_known(trial.user_attrs),
            system_attrs=_of_samplers(trial.system_attrs),
            intermediate_values={},
            trial_id=id_of_trial(trial),
        )

    def _faults(self, trial: FrozenTrial) -> Iterator[str]:
        """Yield the faults of a trial."""
        if set(trial.params) != set(self._distributions):
            yield "its parameters are not those of this search"
            return
        for name, distribution in self._distributions.items():
            stored = trial.distributions.get(name)
            if stored is None or not (stored == distribution or _is_fixed_within(stored, distribution)):
                yield f"{name} has another range than in this search"
            elif not _is_number(trial.params[name]) or not contains(stored, float(trial.params[name])):
                yield f"{name} is not a number in its range"
        if trial.state == TrialState.PRUNED:
            yield "it was pruned; blockfit prunes no trials"
        if not isinstance(trial.datetime_start, datetime):
            yield "it has no start time"
        # A database is read in several steps: a trial that finishes in between can have the old state and a new value.
        # The rest is checked when the trial has finished.
        if not trial.state.is_finished():
            return
        if not isinstance(trial.datetime_complete, datetime):
            yield "it has no end time"
        if trial.state == TrialState.COMPLETE:
            if trial.number in self._not_measured:
                yield "its point was scored again, and its stored similarity is wrong"
            yield from self._wrong_scores(trial)
        elif trial.values is not None:
            yield "it has a value, but is not completed"

    def _wrong_scores(self, trial: FrozenTrial) -> Iterator[str]:
        values, scores = trial.values, trial.user_attrs.get(BLOCK_SCORES)
        if not isinstance(values, list | tuple) or len(values) != 1 or not _is_similarity(values[0]):
            yield "its value is not one similarity in [-1, 1]"
        elif not isinstance(scores, Mapping) or frozenset(scores) != self._blocks:
            yield "its similarities are not those of this search's blocks"
        elif not all(map(_is_similarity, scores.values())):
            yield "a block's similarity is not a number in [-1, 1]"
        # Without a scored block the target is reached.
        elif abs((total_similarity(scores) if scores else 1.0) - values[0]) > _ROUNDING:
            yield "its value is not the mean of its blocks' similarities"


def describe_left_out(left_out: Sequence[LeftOut], where: object, search: str) -> tuple[str, ...]:
    """Return one line for each reason why trials of a search in the storage `where` do not count."""
    by_reason: dict[str, list[int]] = {}
    for trial in left_out:
        by_reason.setdefault(trial.reason, []).append(trial.number)
    lines = []
    for reason, numbers in by_reason.items():
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        which = f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers[:_NAMED]))}{more}"
        lines.append(f"{where}: {search!r}: left out: {which}: {reason}")
    return tuple(lines)


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user attributes without invalid ones."""
    kept = {}
    for key, value in attributes.items():
        valid = True
        if key in _TEXTS:
            valid = isinstance(value, str) and len(value) <= _LONGEST_TEXT
        elif key == LOST:
            valid = value is True
        elif key == BLOCK_SCORES:
            valid = isinstance(value, Mapping)
        elif key == DISTANCE:
            valid = _is_number(value) and value >= 0
        if valid:
            kept[key] = value
    return kept


def _of_samplers(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the system attributes that CMA-ES reads again; `check_sampler_state` checks its state."""
    return {
        key: value
        for key, value in attributes.items()
        if key.startswith("cma:") and (key != "cma:generation" or (type(value) is int and value >= 0))
    }


def _is_fixed_within(stored: BaseDistribution, distribution: BaseDistribution) -> bool:
    """Return whether the stored range is a single number within another range, as for an alpha without effect."""
    return (
        type(stored) is FloatDistribution
        and isinstance(distribution, FloatDistribution)
        and stored.low == stored.high
        and distribution.low <= stored.low <= distribution.high
    )


def _is_number(value: object) -> bool:
    # An integer may have thousands of digits: it can be compared, but not converted to float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_similarity(value: object) -> bool:
    return _is_number(value) and abs(value) <= 1 + _ROUNDING  # type: ignore[arg-type]
