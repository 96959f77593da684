"""Fitting: from a study to the best alphas, one Optuna study after another, continued where it stopped."""

import math
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from optimizer.checkpoints import HashCache
from optimizer.errors import InputError, StudyError
from optimizer.recipes import Algebra, Alpha, Free, Recipe, load_recipe, recipe_as_data, save_recipe
from optimizer.search.candidates import Choice, different
from optimizer.search.exact import exact_optimum
from optimizer.search.measuring import OpenStudy, open_study
from optimizer.search.notes import finished_recipe
from optimizer.search.results import Candidate, FitResult, SearchResult, SeedSpread, StepScores, completed
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
    score_step,
    total_similarity,
)

__all__ = ["FitEvents", "TrialsFailed", "fit"]

_Metrics = Mapping[str, Metric]

# The metrics whose exact optimum opens every study.
_EXACT = ("delta", "weights")
# On how many random inputs that were not fitted on the result is scored.
_OTHER_SEEDS = 4
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


def fit(
    study: Study,
    *,
    device: torch.device | None = None,
    fresh: bool = False,
    candidates: int = 1,
    events: FitEvents | None = None,
    hashes: HashCache | None = None,
) -> FitResult:
    """Run every search of `study` up to its budget of completed trials, and write `best.yaml` into its folder.

    With `candidates` above 1 the next best recipes that differ are written beside it, candidate-2.yaml and so on. Those
    of an earlier fit are removed in any case.

    A second call continues where the first one stopped. Ctrl-C ends the search after the running trial, a second one
    at once; the best so far is written and returned with `interrupted` set. `fresh` sets earlier trials aside.

    Raises InputError for files that do not fit or a study started with other inputs, and TrialsFailed, the best so far
    written, if trials keep failing.
    """
    if candidates < 1:
        raise StudyError(f"--candidates: received {candidates}; must be at least 1, which is the best recipe alone")
    written = [study.folder / name for name in ("best.yaml", *map(_candidate_name, range(2, candidates + 1)))]
    if taken := [path for path in written if path.resolve() == study.recipe_path.resolve()]:
        raise StudyError(
            f"{taken[0]}: is the study's recipe, which the result would replace; name the recipe otherwise"
        )
    return _Fit(study, device or torch.device("cpu"), candidates, events or FitEvents(), hashes).run(fresh=fresh)


class _Fit:
    def __init__(
        self, study: Study, device: torch.device, candidates: int, events: FitEvents, hashes: HashCache | None
    ) -> None:
        self._study = study
        self._candidates = candidates
        self._device = device
        self._events = events
        self._hashes = hashes
        self._recipe = study.recipe
        self._results: list[SearchResult] = []
        self._scores: list[StepScores] = []
        self._spread: list[SeedSpread] = []
        # Stages that a later one moves too, to be scored under the final alphas.
        self._disturbed: list[tuple[Stage, Comparison | Measured, _Metrics]] = []
        self._choices: list[tuple[Choice, list[StepScores]]] = []

    def run(self, *, fresh: bool) -> FitResult:
        study = self._study
        stopped: KeyboardInterrupt | TrialsFailed | None = None
        earlier = None if fresh else self._earlier()
        with open_study(
            study, blocks=self._blocks(), device=self._device, progress=self._events.progress, hashes=self._hashes
        ) as opened:
            identity = self._identity(opened)
            storage = open_storage(study.folder, fresh=fresh)
            try:
                for stage in study.stages:
                    self._run_stage(stage, opened, storage, identity)
                for disturbed in self._disturbed:
                    self._score(*disturbed)
            except (KeyboardInterrupt, TrialsFailed) as error:
                stopped = error
                if not any(result.best for result in self._results):
                    raise
            finally:
                close_storage(storage)
            # Not before the search, which would wait for it; and nobody who has pressed Ctrl-C waits for it.
            hashed = opened.sha256(self._hashes, self._events.progress, known=stopped is not None)
        if stopped is not None and earlier is not None:
            # What was not reached this time stays as it was found before.
            self._recipe = self._recipe.with_alphas(_still_free(self._recipe, earlier))
        self._recipe = self._recipe.started()
        order = [stage.name for stage in study.stages]
        self._scores.sort(key=lambda scores: order.index(scores.stage))
        self._spread.sort(key=lambda spread: order.index(spread.stage))
        found = [(result, result.best) for result in self._standing()]
        recipe = finished_recipe(
            study, self._recipe, self._scores, found, self._spread, hashed, complete=stopped is None
        )
        save_recipe(recipe, study.folder / "best.yaml")
        others = () if stopped is not None else self._write_candidates(hashed)
        if isinstance(stopped, TrialsFailed):
            raise stopped
        return FitResult(
            study,
            recipe,
            tuple(self._results),
            tuple(self._scores),
            interrupted=stopped is not None,
            spread=tuple(self._spread),
            candidates=others,
        )

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
            comparison = replace(comparison, seeds=stage.seeds, tf32=stage.tf32)
        metric = Combined([build_metric(name, comparison, blocks, statistics) for name, blocks in stage.measured])
        exact = _exact_metrics(comparison, stage.blocks, statistics)
        metrics: dict[str, Metric] = {stage.metric: metric, **exact}
        space: Space | None = None
        try:
            before = -math.inf
            for number in range(1, stage.passes + 1):
                searches = stage.searches(number)
                for name, step, searched in searches:
                    parameters = searched if number == 1 else _started_at(searched, self._recipe)
                    space = Space(Algebra(self._recipe, comparison.groups, tuple(comparison.sources), step), parameters)
                    search = _Search(self._study, stage, name, step, space, metric, exact, number=number)
                    try:
                        for trials in search.trials(storage, identity, self._events):
                            self._keep(search.result(trials))
                    finally:
                        self._fill()
                # A second pass over the one step that there is would be the same search once more.
                done = len(searches) == 1 and searches[0][1] == stage.steps[-1]
                reached = self._total(stage, comparison, metric)
                if done or reached - before < stage.tolerance:
                    break
                before = reached
        except (KeyboardInterrupt, TrialsFailed):
            self._scores += _step_scores(self._recipe, stage, comparison, metrics)
            raise
        later = self._study.stages[self._study.stages.index(stage) + 1 :]
        if any(self._study.disturbs(other, stage) for other in later):
            self._disturbed.append((stage, comparison, metrics))
        else:
            self._score(stage, comparison, metrics)
        assert space is not None
        # Of a stepwise stage only what ran last was scored with all other alphas as they are in the end.
        self._choose(stage, space, comparison, metrics)

    def _score(self, stage: Stage, comparison: Comparison | Measured, metrics: _Metrics) -> None:
        self._scores += _step_scores(self._recipe, stage, comparison, metrics)
        self._score_other_seeds(stage, comparison)

    def _total(self, stage: Stage, comparison: Comparison | Measured, metric: Metric) -> float:
        return total_similarity(_score(self._recipe, stage.steps[-1], comparison, metric))

    def _keep(self, result: SearchResult) -> None:
        self._results = [kept for kept in self._results if kept.name != result.name] + [result]

    def _fill(self) -> None:
        """Fill the holes of the search that ran last with its best alphas, so that later steps build on them."""
        if not self._results or (best := self._results[-1].best) is None:
            return
        self._recipe = self._recipe.with_alphas(filled_alphas(self._results[-1].parameters, best.params))

    def _score_other_seeds(self, stage: Stage, comparison: Comparison | Measured) -> None:
        seeds = tuple(seed for seed in range(len(stage.seeds) + _OTHER_SEEDS) if seed not in stage.seeds)[:_OTHER_SEEDS]
        for name, blocks in stage.measured:
            if (by_seed := METRICS[name].by_seed) is None:
                continue
            assert isinstance(comparison, Comparison)
            step = stage.steps[-1]
            algebra = Algebra(self._recipe, comparison.groups, tuple(comparison.sources), step)
            found = by_seed(comparison, blocks, algebra.coefficients(algebra.starting_alphas())[0], seeds)
            scores = tuple(dict(zip(blocks, row, strict=True)) for row in found.tolist())
            after = next(
                one.after for one in reversed(self._scores) if (one.stage, one.metric) == (stage.name, stage.metric)
            )
            fitted = total_similarity({block: after[block] for block in blocks})
            self._spread.append(SeedSpread(stage.name, step, name, fitted, seeds, scores))

    def _choose(self, stage: Stage, space: Space, comparison: Comparison | Measured, metrics: _Metrics) -> None:
        """Take note of the next best trials of what the stage searched last, and of what its steps score with them."""
        disturbed = (other for other in self._study.stages if other != stage and self._study.disturbs(stage, other))
        # What another stage has found, or is yet to find, would not hold for these.
        if self._candidates == 1 or any(disturbed):
            return
        base = self._study.base if all(METRICS[name].scale_free for name, _ in stage.measured) else None
        for choice in different(self._results[-1], space, self._candidates - 1, base):
            filled = self._recipe.with_alphas(filled_alphas(choice.search.parameters, choice.trial.params))
            self._choices.append((choice, _step_scores(filled, stage, comparison, metrics)))

    def _write_candidates(self, hashed: Mapping[str, str]) -> tuple[Candidate, ...]:
        """Write the next best recipes beside the best one, and remove what an earlier fit left of its own."""
        folder = self._study.folder
        ordered = sorted(self._choices, key=lambda each: (each[0].loss, each[0].trial.number))
        found: list[Candidate] = []
        for number, (choice, scores) in enumerate(ordered[: self._candidates - 1], start=2):
            search = choice.search
            recipe = self._recipe.with_alphas(filled_alphas(search.parameters, choice.trial.params))
            others = [one for one in self._scores if one.stage != search.stage.name]
            bests = [(one, choice.trial if one.name == search.name else one.best) for one in self._standing()]
            spread = [one for one in self._spread if one.stage != search.stage.name]
            finished = finished_recipe(self._study, recipe, [*others, *scores], bests, spread, hashed, complete=True)
            finished = replace(finished, fitted={**(finished.fitted or {}), "candidate": number})
            save_recipe(finished, folder / _candidate_name(number))
            found.append(
                Candidate(
                    number, finished, search.name, choice.trial.number, choice.similarity, choice.loss, choice.apart
                )
            )
        for path in folder.glob("candidate-*.yaml"):
            named = re.fullmatch(r"candidate-(\d+)\.yaml", path.name)
            stale = named is not None and int(named[1]) > len(found) + 1
            if stale and path.resolve() != self._study.recipe_path.resolve():
                try:
                    path.unlink()
                except OSError as error:
                    raise StudyError(f"{path}: of an earlier fit, cannot be removed: {error.strerror}") from error
        return tuple(found)

    def _standing(self) -> list[SearchResult]:
        """The searches whose best trials are what the recipe is: of a stage with passes only what ran last."""
        repeated = {one.stage.name for one in self._results if one.number > 1}
        last = {one.stage.name: one.name for one in self._results}
        return [one for one in self._results if one.stage.name not in repeated or one.name == last[one.stage.name]]

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

    def _earlier(self) -> Recipe | None:
        """The best recipe of an earlier fit of the same recipe, if there is one."""
        path = self._study.folder / "best.yaml"
        try:
            earlier = load_recipe(path) if path.is_file() else None
        except InputError:
            return None
        same = earlier is not None and earlier.formulas == self._study.recipe.formulas
        return earlier if same else None


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
        *,
        number: int = 1,
    ) -> None:
        """Of pass `number`; in further passes the first trial is where the space starts, so that nothing is lost."""
        self._number = number
        self._seed = study.seed
        self._folder = study.folder
        self._stage = stage
        self._name = name
        self._step = step
        self._space = space
        self._metric = metric
        if all(len(names) < 2 for names in space.parameters_by_block(metric.blocks).values()):
            metric.prepare(space.coefficients(space.diagonal))
        self._exact = {label: exact_optimum(space, quadratic, seed=study.seed) for label, quadratic in exact.items()}
        names = [parameter.name for parameter in space.parameters]
        self._first = [("incumbent", dict(zip(names, space.start, strict=True)))] if number > 1 else []
        self._first += [(f"exact {label}", optimum.point) for label, optimum in self._exact.items()]
        self._distributions: dict[str, BaseDistribution] = {
            parameter.name: FloatDistribution(parameter.free.low, _last(parameter.free), step=parameter.free.step)
            for parameter in space.parameters
        }

    def result(self, trials: Sequence[FrozenTrial]) -> SearchResult:
        """What these trials amount to."""
        return SearchResult(
            self._name, self._stage, self._step, self._space.parameters, tuple(trials), dict(self._exact), self._number
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
        done, budget = len(completed(trials)), self._stage.trials
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
        """The next of the points known beforehand that no trial has tried yet, with what to call it."""
        tried = [trial.params for trial in trials]
        return next(((origin, point) for origin, point in self._first if point not in tried), None)

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
            **({"seeds": list(self._stage.seeds)} if self._stage.draws else {}),
            **({"tf32": True} if self._stage.tf32 else {}),
            **identity,
        }

    def _float_distributions(self) -> Iterator[tuple[str, FloatDistribution]]:
        for name, distribution in self._distributions.items():
            assert isinstance(distribution, FloatDistribution)
            yield name, distribution

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


def _candidate_name(number: int) -> str:
    return f"candidate-{number}.yaml"


def _step_scores(
    recipe: Recipe, stage: Stage, comparison: Comparison | Measured, metrics: _Metrics
) -> list[StepScores]:
    """What each step of the stage scores under the alphas of `recipe`, and what its input a does."""
    found = []
    for name in stage.steps:
        step = recipe.step(name)
        for label, metric in metrics.items():
            before, after = (_score(recipe, output, comparison, metric) for output in (step.a, step.name))
            found.append(StepScores(stage.name, name, label, before, after))
    return found


def _score(recipe: Recipe, step: str, comparison: Comparison | Measured, metric: Metric) -> dict[str, float]:
    return score_step(metric, recipe, step, comparison.groups, tuple(comparison.sources))


def _still_free(recipe: Recipe, earlier: Recipe) -> dict[tuple[str, str], dict[str, float]]:
    """The numbers that `earlier` has for the holes of `recipe`, as far as they are allowed there."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for step in recipe.steps:
        for name, alpha in step.alphas.items():
            before: Alpha = getattr(earlier.step(step.name), name)
            for hole in alpha.free:
                numbers = {block: before.at(block) for block in hole.blocks}
                if all(hole.low <= number <= hole.high for number in numbers.values()):
                    found.setdefault((step.name, name), {}).update(numbers)
    return found


def _started_at(parameters: Sequence[Parameter], recipe: Recipe) -> tuple[Parameter, ...]:
    """The same parameters, starting at the numbers that `recipe` has for them."""
    found = []
    for parameter in parameters:
        now = getattr(recipe.step(parameter.step), parameter.alpha).at(parameter.blocks[0])
        found.append(replace(parameter, free=replace(parameter.free, start=now)))
    return tuple(found)


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


def _last(free: Free) -> float:
    """The highest value of a free alpha: the last point of its grid, which need not reach the upper bound."""
    return free.high if free.step is None else free.on_grid(free.high)
