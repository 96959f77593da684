"""One search: propose points, score them, store the trials."""

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
    open_search,
    seconds_left,
    seconds_per_trial,
    upstream_alphas,
    whole_trial,
)
from optimizer.similarity import AttentionOptions, total_similarity
from optimizer.studies import Study

__all__ = ["Search", "TrialsFailed"]

_logger = logging.getLogger("blockfit.search")

# Consecutive failed trials after which a search gives up.
_FAILURES = 10
# Seconds between polls of the other workers' trials, when none is left to claim.
_POLL_INTERVAL = 0.1
# The largest difference of a block's similarity between machines: rounding of products, larger with tf32.
_MEASURED, _TF32 = 1e-4, 1e-2
# Errors of one point, or of a moment, in a correct program: changed files, invalid numbers, torch's errors (out of
# memory included), unavailable drives. Any other error is a bug of a metric.
_FAILS_A_TRIAL = (CheckpointError, ArithmeticError, MemoryError, OSError, RuntimeError)
# Subclasses of RuntimeError that are bugs.
_BUGS = (NotImplementedError, RecursionError)


class TrialsFailed(RuntimeError):
    """A search gave up because its trials kept failing."""


class Search:
    """A search, which is one Optuna study: proposes points, scores them, stores each finished trial."""

    def __init__(self, study: Study, planned: PlannedSearch, recipe: Recipe, scoring: StageScoring) -> None:
        """Prepare the search of the alphas of `planned` under all other alphas of `recipe`.

        The first points are the exact optima of the metrics in `scoring`. In further passes the starting point comes
        before them, so that the search never ends below it. Alphas that move only blocks which the target left
        unchanged are not searched: they get the value that keeps those blocks.
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
        self._exact = {label: replace(optimum, point={**optimum.point, **kept}) for label, optimum in optima.items()}
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
        # If every alpha is fixed, one trial is enough.
        self._most = None if set(names) - set(kept) else 1
        self._budget = self._stage.trials if self._most is None else min(self._stage.trials, self._most)
        self._trials: Trials | None = None

    @property
    def result(self) -> SearchResult:
        """Result of the search so far."""
        planned = self.planned
        trials = () if self._trials is None else self._trials.finished
        return SearchResult(
            planned.name, planned.stage, planned.step, planned.parameters, trials, dict(self._exact), planned.number
        )

    def refresh(self) -> None:
        """Read the trials of other workers."""
        if self._trials is not None:
            self._trials.refresh()

    def run(
        self,
        shared: SharedStorage,
        events: SearchEvents,
        *,
        prefix: str = "",
        go_on: Callable[[], bool] = lambda: True,
    ) -> Iterator[SearchResult]:
        """Run trials until the budget of completed ones is met.

        StorageLost passes through, and KeyboardInterrupt after the running trial. A metric with a bug ends the search
        with its own error.

        Args:
            shared: The storage of the trials.
            events: The receiver of reports.
            prefix: The prefix of the Optuna study's name.
            go_on: Whether to run another trial; called before each.

        Yields:
            The result so far: first the stored trials, then after every trial.

        Raises:
            TrialsFailed: Ten trials failed in a row.

        """
        trials = self._trials = self._open(shared, prefix)
        failures = 0
        self._leave_out_better_than_measured(trials)
        events.opened(self._progress(trials, shared))
        yield self.result
        reported = {trial.number for trial in trials.finished}
        while go_on():
            with whole_trial(events.warn):
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
                time.sleep(_POLL_INTERVAL)

    def _open(self, shared: SharedStorage, prefix: str) -> Trials:
        """Open or create the Optuna study of this search."""
        study, planned, metric = self._study, self.planned, self._metric
        upstream = upstream_alphas(self._space.algebra, self._space.parameters, metric.blocks)
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
        """Score a claimed trial and store it; return the error if it failed."""
        try:
            scores = self._scores_at(claim.alphas)
        except Exception as error:  # `run` raises a bug again after the trial is stored as failed
            _logger.exception("%s: a trial failed at %s", self.planned.name, dict(claim.alphas))
            trials.fail(claim, _described(error))
            return error
        trials.finish(claim, scores)
        return None

    def _leave_out_better_than_measured(self, trials: Trials) -> None:
        """Score the best trial again, and leave it out if its stored scores are wrong; repeat for the next best."""
        tolerance = _TF32 if self.planned.stage.options.of(AttentionOptions).tf32 else _MEASURED
        while (best := best_of(completed(trials.finished))) is not None:
            try:
                scores = self._scores_at(best.alphas)
            except Exception as error:
                if not _fails_a_trial(error):
                    raise
                return  # it cannot be scored here, for lack of memory for example; the next trial will report that
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
        """Return the scores of a point; raise ArithmeticError if one is not a finite number."""
        point = [alphas[parameter.name] for parameter in self._space.parameters]
        coefficients = self._space.coefficients(torch.tensor([point], dtype=torch.float64))
        by_block = dict(zip(self._metric.blocks, self._metric.score(coefficients)[0].tolist(), strict=True))
        if broken := [block for block, score in by_block.items() if not math.isfinite(score)]:
            raise ArithmeticError(f"the similarity of {', '.join(broken)} is not a finite number")
        distance = float(self._explained.distance(coefficients)[0])
        # Without a scored block the target left all blocks unchanged, and all points are equal.
        return Scores(total_similarity(by_block) if by_block else 1.0, by_block, distance)


def _fails_a_trial(error: Exception) -> bool:
    return isinstance(error, _FAILS_A_TRIAL) and not isinstance(error, _BUGS)


def _described(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}"
