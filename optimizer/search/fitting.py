"""Fitting: from a study to the best alphas, one Optuna study after another, continued where it stopped."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from optimizer.checkpoints import HashCache
from optimizer.recipes import Algebra, Free, Recipe, recipe_as_data, save_recipe
from optimizer.search.exact import ExactOptimum, exact_optimum
from optimizer.search.measuring import OpenStudy, open_study
from optimizer.search.samplers import make_sampler, trial_seed
from optimizer.search.space import Parameter, Space, filled_alphas
from optimizer.search.storage import close_storage, open_search, open_storage
from optimizer.search.study import Stage, Study
from optimizer.similarity import (
    METRICS,
    Combined,
    Comparison,
    Measured,
    Metric,
    QuadraticMetric,
    Statistics,
    build_metric,
    total_similarity,
)

__all__ = ["FitEvents", "FitResult", "SearchResult", "StepScores", "TrialsFailed", "fit"]

# The metrics whose exact optimum opens every study.
_EXACT = ("delta", "weights")
# Failed trials in a row after which a search gives up: the same thing fails again and again.
_FAILURES = 10


class TrialsFailed(RuntimeError):
    """A search gave up because its trials kept failing."""


@dataclass(frozen=True)
class FitEvents:
    """What a fit tells its caller while it runs; every callback may be left out.

    `progress(what, done, total)` while files are read; `opened(search, done, budget)` as a search begins;
    `finished(search, trial, best value, done, budget)` after every trial.
    """

    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    opened: Callable[[str, int, int], None] = lambda search, done, budget: None
    finished: Callable[[str, FrozenTrial, float, int, int], None] = lambda search, trial, best, done, budget: None


@dataclass(frozen=True)
class SearchResult:
    """One Optuna study: what it searched, its trials in order, and the best of them.

    `exact` are the exact optima by metric, as a basis for comparison; `step` is the step that was scored.
    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    trials: tuple[FrozenTrial, ...]
    exact: Mapping[str, ExactOptimum]

    @property
    def completed(self) -> tuple[FrozenTrial, ...]:
        """The trials that have a value."""
        return tuple(trial for trial in self.trials if trial.state == TrialState.COMPLETE)

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the highest similarity, the earliest of equals; None if there is none."""
        return max(self.completed, key=lambda trial: (trial.values[0], -trial.number), default=None)


@dataclass(frozen=True)
class StepScores:
    """A step's similarities {block: value} under the final alphas, `before` of its input a, `after` of its result."""

    stage: str
    step: str
    metric: str
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class FitResult:
    """What a fit found: `recipe` with the holes filled, the searches, and the similarities of every step."""

    study: Study
    recipe: Recipe
    searches: tuple[SearchResult, ...]
    scores: tuple[StepScores, ...]
    interrupted: bool = False


def fit(
    study: Study,
    *,
    device: torch.device | None = None,
    fresh: bool = False,
    events: FitEvents | None = None,
    hashes: HashCache | None = None,
) -> FitResult:
    """Run every search of `study` up to its budget of completed trials, and write `best.yaml` into its folder.

    A second call continues where the first one stopped. Ctrl-C ends the search after the running trial, a second one
    at once; the best so far is written and returned with `interrupted` set. `fresh` sets earlier trials aside.

    Raises InputError for files that do not fit or a study started with other inputs, and TrialsFailed, the best so far
    written, if trials keep failing.
    """
    return _Fit(study, device or torch.device("cpu"), events or FitEvents(), hashes).run(fresh)


class _Fit:
    def __init__(self, study: Study, device: torch.device, events: FitEvents, hashes: HashCache | None) -> None:
        self._study = study
        self._device = device
        self._events = events
        self._hashes = hashes
        self._recipe = study.recipe
        self._results: list[SearchResult] = []
        self._scores: list[StepScores] = []

    def run(self, fresh: bool) -> FitResult:
        study = self._study
        stopped: KeyboardInterrupt | TrialsFailed | None = None
        with open_study(
            study, blocks=self._blocks(), device=self._device, progress=self._events.progress, hashes=self._hashes
        ) as opened:
            # All of the input is read and checked before anything is written, but for what was measured of it.
            identity = self._identity(opened)
            hashed = opened.sha256(self._hashes, self._events.progress)
            storage = open_storage(study.folder, fresh=fresh)
            try:
                for stage in study.stages:
                    self._run_stage(stage, opened, storage, identity)
            except (KeyboardInterrupt, TrialsFailed) as error:
                stopped = error
                if not any(result.best for result in self._results):
                    raise
            finally:
                close_storage(storage)
        recipe = self._finished_recipe(hashed, complete=stopped is None)
        save_recipe(recipe, study.folder / "best.yaml")
        if isinstance(stopped, TrialsFailed):
            raise stopped
        return FitResult(study, recipe, tuple(self._results), tuple(self._scores), interrupted=stopped is not None)

    def _blocks(self) -> tuple[str, ...]:
        scored = {block for stage in self._study.stages for block in stage.blocks}
        return tuple(block for block in self._study.recipe.layout.blocks if block in scored)

    def _run_stage(
        self,
        stage: Stage,
        opened: OpenStudy,
        storage: BaseStorage,
        identity: Mapping[str, Any],
    ) -> None:
        comparison, statistics = opened.comparison, opened.measured.statistics
        if isinstance(comparison, Comparison):
            comparison = replace(comparison, seeds=stage.seeds)
        metric = Combined([build_metric(name, comparison, blocks, statistics) for name, blocks in stage.measured])
        exact = _exact_metrics(comparison, stage.blocks, statistics)
        try:
            for name, step, parameters in stage.searches:
                algebra = Algebra(self._recipe, comparison.groups, tuple(comparison.sources), step)
                search = _Search(self._study, stage, name, step, Space(algebra, parameters), metric, exact)
                try:
                    for trials in search.trials(storage, identity, self._events):
                        self._keep(search.result(trials))
                finally:
                    self._fill()
        except KeyboardInterrupt:
            self._score_steps(stage, comparison, {stage.metric: metric, **exact})
            raise
        self._score_steps(stage, comparison, {stage.metric: metric, **exact})

    def _keep(self, result: SearchResult) -> None:
        self._results = [kept for kept in self._results if kept.name != result.name] + [result]

    def _fill(self) -> None:
        """Fill the holes of the search that ran last with its best alphas, so that later steps build on them."""
        if not self._results or (best := self._results[-1].best) is None:
            return
        self._recipe = self._recipe.with_alphas(filled_alphas(self._results[-1].parameters, best.params))

    def _score_steps(self, stage: Stage, comparison: Comparison | Measured, metrics: Mapping[str, Metric]) -> None:
        for name in stage.steps:
            step = self._recipe.step(name)
            for label, metric in metrics.items():
                before, after = (_scores(self._recipe, output, comparison, metric) for output in (step.a, step.name))
                self._scores.append(StepScores(stage.name, name, label, before, after))

    def _identity(self, opened: OpenStudy) -> dict[str, Any]:
        """What every trial depends on besides its stage: the tensors, the layout and the mapping."""
        recipe = self._study.recipe
        return {
            "layout": recipe.layout.name,
            "mapping": recipe.mapping,
            "base": self._study.base,
            "seed": self._study.seed,
            **{f"file for {name}": mark for name, mark in opened.fingerprints.items()},
        }

    def _finished_recipe(self, hashed: Mapping[str, str], *, complete: bool) -> Recipe:
        recipe = self._recipe.started()
        models = {name: replace(model, sha256=hashed.get(name, model.sha256)) for name, model in recipe.models.items()}
        similarity: dict[str, dict[str, dict[str, Any]]] = {}
        for scores in self._scores:
            of_step = similarity.setdefault(scores.step, {})
            blocks = {**of_step.get(scores.metric, {}).get("blocks", {}), **scores.after}
            rounded = {block: round(value, 9) for block, value in blocks.items()}
            of_step[scores.metric] = {"total": round(total_similarity(blocks), 9), "blocks": rounded}
        steps = tuple(replace(step, similarity=similarity.get(step.name)) for step in recipe.steps)
        fitted = {
            "by": "blockfit",
            "recipe": _relative(self._study.recipe_path, self._study.folder),
            "target": {"file": self._study.target_file, **({"sha256": hashed[""]} if "" in hashed else {})},
            "complete": complete,
            "searches": [_summary(result) for result in self._results],
        }
        return replace(recipe, models=models, steps=steps, fitted=fitted)


class _Search:
    """One Optuna study: proposes points, scores them, writes each finished trial once."""

    def __init__(
        self,
        study: Study,
        stage: Stage,
        name: str,
        step: str,
        space: Space,
        metric: Metric,
        exact: Mapping[str, QuadraticMetric],
    ) -> None:
        self._seed = study.seed
        self._folder = study.folder
        self._stage = stage
        self._name = name
        self._step = step
        self._space = space
        self._metric = metric
        self._exact = {label: exact_optimum(space, quadratic, seed=study.seed) for label, quadratic in exact.items()}
        self._distributions: dict[str, BaseDistribution] = {
            parameter.name: FloatDistribution(parameter.free.low, _last(parameter.free), step=parameter.free.step)
            for parameter in space.parameters
        }

    def result(self, trials: Sequence[FrozenTrial]) -> SearchResult:
        """What these trials amount to."""
        return SearchResult(
            self._name, self._stage, self._step, self._space.parameters, tuple(trials), dict(self._exact)
        )

    def trials(
        self, storage: BaseStorage, identity: Mapping[str, Any], events: FitEvents
    ) -> Iterator[Sequence[FrozenTrial]]:
        """Run trials until the budget of completed ones is met; yields all trials so far, first those already there.

        Trials are proposed in a copy of the study in memory, so that each costs the storage one write, when it is done.
        """
        stored = open_search(storage, self._name, self._bound_to(identity), self._upstream(), self._folder)
        memory = optuna.create_study(
            study_name=self._name, storage=InMemoryStorage(), direction="maximize", sampler=self._sampler(0)
        )
        memory.add_trials(stored.get_trials(deepcopy=False))
        trials = memory.get_trials(deepcopy=False)
        done, budget = _completed(trials), self._stage.trials
        events.opened(stored.study_name, done, budget)
        yield trials
        failures = 0
        while done < budget:
            with _whole_trial():
                trial = self._run_trial(memory, len(trials))
                stored.add_trial(trial)
                trials = memory.get_trials(deepcopy=False)
                if trial.state == TrialState.COMPLETE:
                    done, failures = done + 1, 0
                else:
                    failures += 1
                best = max((entry.values[0] for entry in trials if entry.values), default=math.nan)
                events.finished(stored.study_name, trial, best, done, budget)
                yield trials
            if failures >= _FAILURES:
                raise TrialsFailed(
                    f"{self._name}: {failures} trials failed in a row, the last with: {trial.user_attrs['error']}"
                )

    def _run_trial(self, memory: optuna.Study, number: int) -> FrozenTrial:
        memory.sampler = self._sampler(number)
        origin = self._stage.sampler
        if proposal := self._proposal(memory.get_trials(deepcopy=False)):
            origin, point = proposal
            memory.enqueue_trial(point)
        trial = memory.ask(self._distributions)
        trial.set_user_attr("origin", origin)
        try:
            scores = self._score(trial.params)
        except Exception as error:  # a trial that fails is recorded as failed, whatever failed in it
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            memory.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr("block_scores", scores)
            memory.tell(trial, total_similarity(scores))
        return memory.get_trials(deepcopy=False)[trial.number]

    def _proposal(self, trials: Sequence[FrozenTrial]) -> tuple[str, dict[str, float]] | None:
        """The next exact optimum that no trial has tried yet, with what to call it."""
        tried = [trial.params for trial in trials]
        for label, optimum in self._exact.items():
            if optimum.point not in tried:
                return f"exact {label}", optimum.point
        return None

    def _score(self, point: Mapping[str, float]) -> dict[str, float]:
        values = [point[parameter.name] for parameter in self._space.parameters]
        coefficients = self._space.coefficients(torch.tensor([values], dtype=torch.float64))
        scores = self._metric.score(coefficients)[0].tolist()
        if not all(map(math.isfinite, scores)):
            broken = [
                block for block, score in zip(self._metric.blocks, scores, strict=True) if not math.isfinite(score)
            ]
            raise ArithmeticError(f"the similarity of {', '.join(broken)} is not a finite number")
        return dict(zip(self._metric.blocks, scores, strict=True))

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = trial_seed(self._seed, self._name, number)
        return make_sampler(self._stage.sampler, seed, self._space.parameters_by_block(self._metric.blocks))

    def _bound_to(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        recipe = recipe_as_data(self._space.algebra.recipe)
        needed = {step.name for step in self._space.algebra.recipe.ancestors(self._step)}
        shape = [
            {key: value for key, value in step.items() if key in ("name", "mode", "a", "b", "c")}
            for step in recipe["steps"]
            if step["name"] in needed
        ]
        space = {name: [one.low, one.high, one.step] for name, one in self._float_distributions()}
        return {
            "recipe": shape,
            "search space": space,
            "metric": [[name, list(blocks)] for name, blocks in self._stage.measured],
            "strategy": self._stage.strategy,
            **({"seeds": list(self._stage.seeds)} if self._draws() else {}),
            **identity,
        }

    def _float_distributions(self) -> Iterator[tuple[str, FloatDistribution]]:
        for name, distribution in self._distributions.items():
            assert isinstance(distribution, FloatDistribution)
            yield name, distribution

    def _draws(self) -> bool:
        return any(METRICS[name].needs_seed for name, _ in self._stage.measured)

    def _upstream(self) -> dict[str, Any]:
        """The alphas that are not searched here but decide what a trial scores."""
        algebra = self._space.algebra
        own = {(one.step, one.alpha, block) for one in self._space.parameters for block in one.blocks}
        scored = set(self._metric.blocks)
        return {
            f"{step}.{alpha}": {
                block: getattr(algebra.recipe.step(step), alpha).at(block)
                for block in algebra.blocks
                if block in scored and (step, alpha, block) not in own
            }
            for step, alpha in algebra.alphas
        }


def _exact_metrics(
    comparison: Comparison | Measured, blocks: Sequence[str], statistics: Statistics
) -> dict[str, QuadraticMetric]:
    metrics = {}
    for name in _EXACT:
        if not METRICS[name].needs_base or comparison.base is not None:
            metric = build_metric(name, comparison, blocks, statistics)
            assert isinstance(metric, QuadraticMetric)
            metrics[name] = metric
    return metrics


def _scores(recipe: Recipe, output: str, comparison: Comparison | Measured, metric: Metric) -> dict[str, float]:
    algebra = Algebra(recipe, comparison.groups, tuple(comparison.sources), output)
    scores = metric.score(algebra.coefficients(algebra.starting_alphas()))[0].tolist()
    return dict(zip(metric.blocks, scores, strict=True))


def _summary(result: SearchResult) -> dict[str, Any]:
    best = result.best
    return {
        "name": result.name,
        "metric": result.stage.metric,
        "strategy": result.stage.strategy,
        "blocks": ",".join(result.stage.blocks),
        "trials": len(result.completed),
        **({} if best is None else {"best_trial": best.number, "similarity": round(best.values[0], 9)}),
    }


@contextmanager
def _whole_trial() -> Iterator[None]:
    """Let Ctrl-C wait until a trial is finished, stored and told; a second Ctrl-C does not wait."""
    # Python handles signals in the main thread only, and a handler of the caller's own is the caller's business.
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            signal.default_int_handler(number, frame)
        waiting = True

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt


def _relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with forward slashes: whoever reads best.yaml finds the models beside it."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()


def _last(free: Free) -> float:
    """The highest value of a free alpha: the last point of its grid, which need not reach the upper bound."""
    return free.high if free.step is None else free.on_grid(free.high)


def _completed(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state == TrialState.COMPLETE for trial in trials)
