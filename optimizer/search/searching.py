"""One search: what its Optuna study is bound to, which points it tries, and how it scores them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from optimizer.analysis import exact_optimum, keeping_point
from optimizer.recipes import Space
from optimizer.samplers import make_sampler, trial_seed
from optimizer.search.results import SearchResult
from optimizer.search.trials import (
    DISTANCE,
    ERROR,
    ORIGIN,
    SCORES,
    Budgets,
    SharedStorage,
    Trials,
    best_of,
    completed,
    distributions_of,
    found_upstream,
    open_search,
    seconds_left,
    seconds_per_trial,
    whole_trial,
)
from optimizer.similarity import AttentionOptions, ExplainedMetric, Metric, QuadraticMetric, total_similarity
from optimizer.studies import Stage, Study

__all__ = ["FitEvents", "Search", "SearchProgress", "TrialsFailed"]

# Failed trials in a row after which a search gives up: the same thing fails again and again.
_FAILURES = 10
# Seconds between looks at what other workers have done, when nothing is left to claim.
_LOOK = 0.1
# What similarities of a block may differ by from one machine to another: products are rounded, on cards with tf32 more.
_MEASURED, _TF32 = 1e-4, 1e-2


class TrialsFailed(RuntimeError):
    """A search gave up because its trials kept failing."""


@dataclass(frozen=True)
class SearchProgress:
    """How a search stands: completed trials of its budget, the best similarity so far, the time that trials take.

    `step` is the step that is scored, by `metric`; `best_blocks` has the best trial's similarity {block: value}, in the
    order of the scores. `workers` are alive at the moment, this process included.
    """

    search: str
    step: str
    metric: str
    done: int
    budget: int
    best: float | None
    best_blocks: Mapping[str, float]
    seconds_per_trial: float | None
    seconds_left: float | None
    workers: int


@dataclass(frozen=True)
class FitEvents:
    """What a fit tells its caller while it runs; every callback may be left out.

    `progress(what, done, total)` while files are read; `opened(progress)` as a search begins; `finished(progress,
    trial)` after every trial, of other workers too; `warned(text)` of what the user should know at once.
    """

    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    opened: Callable[[SearchProgress], None] = lambda progress: None
    finished: Callable[[SearchProgress, FrozenTrial], None] = lambda progress, trial: None
    warned: Callable[[str], None] = lambda text: None


class Search:
    """One Optuna study: proposes points, scores them, keeps each finished trial."""

    def __init__(
        self,
        study: Study,
        stage: Stage,
        name: str,
        step: str,
        space: Space,
        metric: Metric,
        exact: Mapping[str, QuadraticMetric],
        explained: ExplainedMetric,
        *,
        number: int = 1,
    ) -> None:
        """Of pass `number`; in further passes the first trial is where the space starts, so that nothing is lost.

        The exact optima of `exact` come first. `explained`, over all blocks of the stage, tells how far candidates are
        from the target. Alphas that only move blocks which the target has unchanged are not searched: they keep those.
        """
        self._number = number
        self._study = study
        self._seed = study.seed
        self._stage = stage
        describe = study.recipe.layout.describe_blocks
        self._facts = {
            "target": study.target_file,
            "step": step,
            "metric": ", ".join(f"{metric} on {describe(blocks)}" for metric, blocks in stage.measured),
            "strategy": stage.strategy,
            "sampler": stage.sampler,
        }
        self._name = name
        self._step = step
        self._space = space
        self._metric = metric
        if all(len(names) < 2 for names in space.parameters_by_block(metric.blocks).values()):
            metric.prepare(space.coefficients(space.diagonal))
        self._explained = explained
        kept = keeping_point(space, explained, metric.unchanged)
        optima = {label: exact_optimum(space, quadratic, seed=study.seed) for label, quadratic in exact.items()}
        self._exact = {label: replace(one, point={**one.point, **kept}) for label, one in optima.items()}
        names = [parameter.name for parameter in space.parameters]
        start = {**dict(zip(names, space.start, strict=True)), **kept}
        self._first = [("incumbent", start)] if number > 1 else []
        self._first += [(f"exact {label}", optimum.point) for label, optimum in self._exact.items()]
        self._distributions: dict[str, BaseDistribution] = {
            **distributions_of(space.parameters),
            **{name: FloatDistribution(value, value) for name, value in kept.items()},
        }
        # Where nothing is left to search, one trial says it all.
        self._most = None if set(names) - set(kept) else 1
        self._budget = stage.trials if self._most is None else min(stage.trials, self._most)
        self._trials: Trials | None = None

    @property
    def result(self) -> SearchResult:
        """What its trials amount to so far."""
        trials = () if self._trials is None else self._trials.finished
        return SearchResult(
            self._name, self._stage, self._step, self._space.parameters, trials, dict(self._exact), self._number
        )

    def look_again(self) -> None:
        """Take note of what other workers have done."""
        if self._trials is not None:
            self._trials.refresh()

    def run(
        self,
        shared: SharedStorage,
        binding: Mapping[str, Any],
        events: FitEvents,
        *,
        prefix: str = "",
        wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[SearchResult]:
        """Run trials until the budget of completed ones is met, or none is `wanted`; yields what they amount to.

        First what was there already, then after every trial. The Optuna study is bound to `binding`, and its name
        begins with `prefix`. Raises TrialsFailed, StorageLost, and KeyboardInterrupt when a trial is finished.
        """
        upstream = found_upstream(self._space.algebra, self._space.parameters, self._metric.blocks)
        label = prefix + self._name
        budgets = Budgets.of(self._study, shared.workers, self._most)
        stored = shared.in_turn(
            lambda: open_search(shared.storage, label, binding, upstream, shared.address, self._facts, budgets)
        )
        trials = self._trials = Trials(stored, shared, self._distributions, self._metric.blocks)
        budget, failures = self._budget, 0
        self._leave_out_better_than_measured(trials)
        events.opened(self._progress(trials, shared))
        yield self.result
        told = {trial._trial_id for trial in trials.finished}
        while wanted():
            with whole_trial():
                claim = trials.claim(budget, self._propose)
                if claim is not None:
                    attributes, value = self._scored(claim.trial)
                    trials.finish(claim, attributes, value)
                    failures = failures + 1 if value is None else 0
                for trial in trials.finished:
                    if trial._trial_id not in told:
                        told.add(trial._trial_id)
                        events.finished(self._progress(trials, shared), trial)
                yield self.result
            if failures >= _FAILURES:
                raise TrialsFailed(
                    f"{self._name}: {failures} trials failed in a row, the last with: {attributes[ERROR]}"
                )
            if claim is None:
                if len(completed(trials.finished)) >= budget:
                    return
                time.sleep(_LOOK)

    def _leave_out_better_than_measured(self, trials: Trials) -> None:
        """Leave out best trials whose points do not score what was stored of them: a stranger may have written it."""
        tolerance = _TF32 if self._stage.options.of(AttentionOptions).tf32 else _MEASURED
        while (best := best_of(completed(trials.finished))) is not None:
            attributes, value = self._scored(best)
            if value is None:
                return  # it cannot be scored here, as where the memory does not suffice; told when a trial is
            stored = best.user_attrs[SCORES]
            if all(abs(score - stored[block]) <= tolerance for block, score in attributes[SCORES].items()):
                return
            trials.leave_out(best)

    def _progress(self, trials: Trials, shared: SharedStorage) -> SearchProgress:
        done = completed(trials.finished)
        best = best_of(done)
        budget = self._budget if self._most is not None else shared.budget(self._stage, trials.study_id)
        return SearchProgress(
            self._name,
            self._step,
            self._stage.metric,
            len(done),
            budget,
            None if best is None else best.values[0],
            {} if best is None else best.user_attrs[SCORES],
            seconds_per_trial(done),
            seconds_left(done, budget),
            shared.count,
        )

    def _propose(self, memory: optuna.Study) -> FrozenTrial:
        trials = memory.get_trials(deepcopy=False)
        seed = trial_seed(self._seed, self._name, len(trials))
        blocks = self._space.parameters_by_block(self._metric.blocks)
        memory.sampler = make_sampler(
            self._stage.sampler, seed, blocks, others=any(not trial.state.is_finished() for trial in trials)
        )
        origin = self._stage.sampler
        tried = [trial.params for trial in trials]
        known = next(((label, point) for label, point in self._first if point not in tried), None)
        if known is not None:
            origin, point = known
            memory.enqueue_trial(point)
        trial = memory.ask(self._distributions)
        trial.set_user_attr(ORIGIN, origin)
        return memory.get_trials(deepcopy=False)[trial.number]

    def _scored(self, trial: FrozenTrial) -> tuple[dict[str, Any], float | None]:
        """User attributes for a trial, with the value that it is told; None if it failed."""
        try:
            coefficients = self._coefficients(trial.params)
            scores = self._scores(coefficients)
            distance = float(self._explained.distance(coefficients)[0])
        except Exception as error:
            return {ERROR: f"{type(error).__name__}: {error}"}, None
        # Where the target has all blocks unchanged there is nothing to be told apart by.
        total = total_similarity(scores) if scores else 1.0
        # A number by itself, for dashboards cannot plot a mapping.
        return {SCORES: scores, "lowest": min(scores.values(), default=total), DISTANCE: distance}, total

    def _coefficients(self, point: Mapping[str, float]) -> torch.Tensor:
        values = [point[parameter.name] for parameter in self._space.parameters]
        return self._space.coefficients(torch.tensor([values], dtype=torch.float64))

    def _scores(self, coefficients: torch.Tensor) -> dict[str, float]:
        scores = self._metric.score(coefficients)[0].tolist()
        if not all(map(math.isfinite, scores)):
            broken = [
                block for block, score in zip(self._metric.blocks, scores, strict=True) if not math.isfinite(score)
            ]
            raise ArithmeticError(f"the similarity of {', '.join(broken)} is not a finite number")
        return dict(zip(self._metric.blocks, scores, strict=True))
