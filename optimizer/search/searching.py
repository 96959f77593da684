"""One search: which points its Optuna study tries, and how it scores them."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from optimizer.analysis import exact_optimum, keeping_point
from optimizer.errors import CheckpointError
from optimizer.recipes import Recipe
from optimizer.search.events import SearchEvents, SearchProgress
from optimizer.search.plan import PlannedSearch
from optimizer.search.results import SearchResult
from optimizer.search.scoring import StageScoring
from optimizer.search.trials import (
    Budgets,
    Claim,
    Proposer,
    Scores,
    SharedStorage,
    Trial,
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
from optimizer.similarity import AttentionOptions, total_similarity
from optimizer.studies import Study

__all__ = ["Search", "TrialsFailed"]

_logger = logging.getLogger("blockfit.search")

# Failed trials in a row after which a search gives up: the same thing fails again and again.
_FAILURES = 10
# Seconds between looks at what other workers have done, when nothing is left to claim.
_LOOK = 0.1
# The most that similarities of a block differ by from one machine to another: products are rounded, with tf32 more.
_MEASURED, _TF32 = 1e-4, 1e-2
# What may happen to one point, or for a while, though the program is right: files that changed, numbers that are none,
# torch's errors (no memory among them), drives that are away. Everything else is a bug, as a metric may have one.
_FAILS_A_TRIAL = (CheckpointError, ArithmeticError, MemoryError, OSError, RuntimeError)
# RuntimeErrors to Python, but bugs.
_BUGS = (NotImplementedError, RecursionError)


class TrialsFailed(RuntimeError):
    """A search gave up because its trials kept failing."""


class Search:
    """One Optuna study: proposes points, scores them, stores each finished trial."""

    def __init__(self, study: Study, planned: PlannedSearch, recipe: Recipe, scoring: StageScoring) -> None:
        """Search the alphas of `planned` under all other alphas of `recipe`.

        The exact optima of the metrics in `scoring` come first; in further passes the point where the search starts
        comes before them, so that nothing is lost. Alphas that only move blocks which the target has unchanged are not
        searched: they keep those blocks.
        """
        self.planned = planned
        self._study = study
        self._stage = planned.stage
        self._metric, self._explained = scoring.metric, scoring.explained
        self._space = space = scoring.space(recipe, planned.step, planned.parameters)
        if all(len(names) < 2 for names in space.parameters_by_block(self._metric.blocks).values()):
            self._metric.prepare(space.coefficients(space.diagonal))
        kept = keeping_point(space, self._explained, self._metric.unchanged)
        optima = {label: exact_optimum(space, metric, seed=study.seed) for label, metric in scoring.opening.items()}
        self._exact = {label: replace(one, point={**one.point, **kept}) for label, one in optima.items()}
        names = [parameter.name for parameter in space.parameters]
        start = {**dict(zip(names, space.start, strict=True)), **kept}
        first = [("incumbent", start)] if planned.number > 1 else []
        first += [(f"exact {label}", optimum.point) for label, optimum in self._exact.items()]
        self._distributions = distributions_of(space.parameters, kept)
        self._propose = Proposer(
            search=planned.name,
            sampler=self._stage.sampler,
            seed=study.seed,
            ranges=self._distributions,
            blocks=space.parameters_by_block(self._metric.blocks),
            first=first,
        )
        # Where nothing is left to search, one trial says it all.
        self._most = None if set(names) - set(kept) else 1
        self._budget = self._stage.trials if self._most is None else min(self._stage.trials, self._most)
        self._trials: Trials | None = None

    @property
    def result(self) -> SearchResult:
        """The search and its trials so far."""
        planned = self.planned
        trials = () if self._trials is None else self._trials.finished
        return SearchResult(
            planned.name, planned.stage, planned.step, planned.parameters, trials, dict(self._exact), planned.number
        )

    def refresh(self) -> None:
        """Take in the trials of other workers."""
        if self._trials is not None:
            self._trials.refresh()

    def run(
        self,
        shared: SharedStorage,
        events: SearchEvents,
        *,
        prefix: str = "",
        wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[SearchResult]:
        """Run trials until the budget of completed ones is met, or none is `wanted`; yield the result so far.

        First what was there already, then after every trial. The name of the Optuna study begins with `prefix`.

        Raises TrialsFailed, StorageLost, the error of a metric that has a bug, and KeyboardInterrupt, when the running
        trial is finished.
        """
        trials = self._trials = self._open(shared, prefix)
        failures = 0
        self._leave_out_better_than_measured(trials)
        events.opened(self._progress(trials, shared))
        yield self.result
        reported = {trial.number for trial in trials.finished}
        while wanted():
            with whole_trial():
                claim = trials.claim(self._budget, self._propose)
                failure = None if claim is None else self._run_trial(trials, claim)
                for trial in trials.finished:
                    if trial.number not in reported:
                        reported.add(trial.number)
                        events.finished(self._progress(trials, shared), trial)
                yield self.result
            if failure is not None and not _fails_a_trial(failure):
                raise failure
            if claim is not None:
                failures = failures + 1 if failure is not None else 0
            if failures >= _FAILURES:
                raise TrialsFailed(
                    f"{self.planned.name}: {failures} trials failed in a row, the last with: {_described(failure)}"
                ) from failure
            if claim is None:
                if len(completed(trials.finished)) >= self._budget:
                    return
                time.sleep(_LOOK)

    def _open(self, shared: SharedStorage, prefix: str) -> Trials:
        """Open the Optuna study of this search, which is made if there is none."""
        study, planned, metric = self._study, self.planned, self._metric
        upstream = found_upstream(self._space.algebra, self._space.parameters, metric.blocks)
        describe = study.recipe.layout.describe_blocks
        facts = {
            "target": study.target_file,
            "step": planned.step,
            "metric": ", ".join(f"{name} on {describe(blocks)}" for name, blocks in planned.stage.measured),
            "strategy": planned.stage.strategy,
            "sampler": planned.stage.sampler,
        }
        budgets = Budgets.of(study, shared.workers, self._most)
        label = prefix + planned.name
        stored = shared.locked(
            lambda: open_search(shared.storage, label, planned.binding, upstream, shared.address, facts, budgets)
        )
        return Trials(stored, shared, self._distributions, metric.blocks)

    def _run_trial(self, trials: Trials, claim: Claim) -> Exception | None:
        """Score a claimed trial and store it; return what it failed with, None if it did not."""
        try:
            scores = self._scores_at(claim.alphas)
        except Exception as error:  # a bug among them is raised again when the trial is stored as failed
            _logger.exception("%s: a trial failed at %s", self.planned.name, dict(claim.alphas))
            trials.fail(claim, _described(error))
            return error
        trials.finish(claim, scores)
        return None

    def _leave_out_better_than_measured(self, trials: Trials) -> None:
        """Leave out best trials whose points do not score what was stored of them: a stranger may have written it."""
        tolerance = _TF32 if self.planned.stage.options.of(AttentionOptions).tf32 else _MEASURED
        while (best := best_of(completed(trials.finished))) is not None:
            try:
                scores = self._scores_at(best.alphas)
            except Exception as error:
                if not _fails_a_trial(error):
                    raise
                return  # it cannot be scored here, as where the memory does not suffice; a trial will show that
            if all(abs(score - best.block_scores[block]) <= tolerance for block, score in scores.blocks.items()):
                return
            trials.leave_out(best)

    def _progress(self, trials: Trials, shared: SharedStorage) -> SearchProgress:
        done = completed(trials.finished)
        best: Trial | None = best_of(done)
        budget = self._budget if self._most is not None else shared.budget(self._stage, trials.study_id)
        return SearchProgress(
            search=self.planned.name,
            step=self.planned.step,
            metric=self._stage.metric,
            done=len(done),
            budget=budget,
            best=None if best is None else best.similarity,
            best_blocks={} if best is None else best.block_scores,
            seconds_per_trial=seconds_per_trial(done),
            seconds_left=seconds_left(done, budget),
            workers=shared.count,
        )

    def _scores_at(self, alphas: Mapping[str, float]) -> Scores:
        """Return the scores of a point. Raises ArithmeticError for one that is not a finite number."""
        point = [alphas[parameter.name] for parameter in self._space.parameters]
        coefficients = self._space.coefficients(torch.tensor([point], dtype=torch.float64))
        by_block = dict(zip(self._metric.blocks, self._metric.score(coefficients)[0].tolist(), strict=True))
        if broken := [block for block, score in by_block.items() if not math.isfinite(score)]:
            raise ArithmeticError(f"the similarity of {', '.join(broken)} is not a finite number")
        distance = float(self._explained.distance(coefficients)[0])
        # Where the target has all blocks unchanged, no point is better than another.
        return Scores(total_similarity(by_block) if by_block else 1.0, by_block, distance)


def _fails_a_trial(error: Exception) -> bool:
    return isinstance(error, _FAILS_A_TRIAL) and not isinstance(error, _BUGS)


def _described(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}"
