"""Fitting: from a study to the best alphas, one Optuna study after another, continued where it stopped."""

import math
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from ctypes import c_bool
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch

from optimizer.analysis import Simplified, narrow_ranges, simplify_fit
from optimizer.checkpoints import open_checkpoint
from optimizer.errors import BlockfitWarning, CheckpointError, InputError, RecipeError, StudyError
from optimizer.library import HashCache
from optimizer.merging import check_noted_hashes, fits_hash, other_hash
from optimizer.recipes import Algebra, Recipe, Space, filled_alphas, load_recipe, save_recipe
from optimizer.search.best_recipe import finished_recipe
from optimizer.search.candidates import Choice, different
from optimizer.search.plan import quadratic_metrics, started_at, still_free
from optimizer.search.results import (
    Candidate,
    FitResult,
    Metrics,
    SearchResult,
    SeedSpread,
    score,
    standing,
    step_scores,
)
from optimizer.search.searching import FitEvents, Search, TrialsFailed
from optimizer.search.trials import (
    PATIENCE,
    AtOnce,
    SharedStorage,
    StorageAddress,
    StorageLost,
    WorkerProcesses,
    bound_to,
    check_bindings,
    check_place,
    check_storage_files,
    interruptible,
    leave_interrupts,
    name_prefix,
    open_storage,
    set_aside,
    still_wanted,
    storage_address,
    workers_at,
)
from optimizer.similarity import (
    METRICS,
    AttentionOptions,
    Combined,
    Comparison,
    EncoderOptions,
    ExplainedMetric,
    Measured,
    Metric,
    build_metric,
    check_encoder,
    check_installed,
    chosen_device,
    total_similarity,
)
from optimizer.studies import OpenStudy, Stage, StepScores, Study, best_recipe, check_study_folder, open_study

__all__ = ["fit"]


# On how many random inputs that were not fitted on the result is scored.
_OTHER_SEEDS = 4
# What ends a fit before its time; the best so far is kept first.
_STOPPED = (KeyboardInterrupt, TrialsFailed, StorageLost, CheckpointError)


def fit(
    study: Study,
    *,
    device: torch.device | str | None = None,
    fresh: bool = False,
    candidates: int = 1,
    storage: str | None = None,
    workers: int | None = None,
    patience: float = PATIENCE,
    check_hashes: bool = True,
    events: FitEvents | None = None,
    hashes: HashCache | None = None,
) -> FitResult:
    """Run every search of `study` up to its budget of completed trials, and write `best.yaml` into its folder.

        result = fit(new_study(recipe, target="closed.safetensors", folder="my-study", trials=40))
        print(result.similarity, result.recipe.step("OUT").alpha)

    Beside it goes `best.simple.yaml`, the same with numbers as people choose them, where that loses next to nothing.

    With `candidates` above 1 the next best recipes that differ are written beside it, candidate-2.yaml and so on. Those
    of an earlier fit are removed in any case.

    Trials are kept in `study.db` in the study's folder, or in `storage`: sqlite:///FILE, journal:FILE or
    postgresql://USER@HOST/DATABASE. With `workers` so many processes search together, this one among them, and with it
    or `storage` those of other fits, here or elsewhere, may join in; the budget is that of all. A storage may be away
    for `patience` seconds. A script that asks for more than one process does so below `if __name__ == "__main__":`.

    `device` is the cpu unless given; names may be used: auto (a card, if there is one), cpu, cuda. `events` is told how
    the fit goes; `hashes`, a HashCache, keeps the checkpoints' sha256, which best.yaml notes, from call to call.

    Where the recipe notes a sha256 itself, the file must have it, unless `check_hashes` is off. No file is read for
    that: what `hashes` knows is looked at before any work, the rest when hashes are taken, after the search.

    A second call continues where the first one stopped. Ctrl-C, or SIGTERM, ends the search after the running trial, a
    second one at once; the best so far is written and returned with `interrupted` set. `fresh` sets earlier trials
    aside.

    Raises InputError for files that do not fit or a study started with other inputs; the best so far written,
    TrialsFailed if trials keep failing, StorageLost if the storage stays away, CheckpointError for a file that changes
    or has another hash than the recipe notes.
    """
    if candidates < 1:
        raise StudyError(
            f"received {candidates}; must be at least 1, which is the best recipe alone", field="candidates"
        )
    if workers is not None and workers < 1:
        raise StudyError(f"received {workers}; must be at least 1, which is this process alone", field="workers")
    outputs = study.outputs
    written = (outputs.best, outputs.simple, *map(outputs.candidate, range(2, candidates + 1)))
    if taken := [path for path in written if path.resolve() == study.recipe_path.resolve()]:
        raise StudyError(
            f"{taken[0]}: is the study's recipe, which the result would replace; name the recipe otherwise"
        )
    check_installed(name for stage in study.stages for name, _ in stage.measured)
    address = storage_address(storage, study.folder)
    check_study_folder(study.folder)
    check_storage_files(address, study.folder)
    if check_hashes:
        check_noted_hashes(study.recipe.models, study.sources, named_in=study.recipe_path, hashes=hashes, known=True)
    together = workers is not None or storage is not None
    with interruptible(), _quiet_optuna():
        one = _Fit(study, chosen_device(device), address, together, patience, events or FitEvents(), hashes)
        return one.run(fresh=fresh, candidates=candidates, workers=workers or 1, check_hashes=check_hashes)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna from telling of each Optuna study that it makes; what goes wrong it still says."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _work(
    stop: c_bool,
    study: Study,
    device: torch.device,
    address: StorageAddress,
    patience: float,
    hashes: HashCache | None,
    threads: int,
) -> None:
    """What a further process does: the same searches, and nothing that is written into the study's folder."""
    leave_interrupts()
    torch.set_num_threads(threads)
    # What there is to say, the first process says of itself.
    fit = _Fit(study, device, address, True, patience, FitEvents(), hashes)
    warnings.simplefilter("ignore", BlockfitWarning)
    try:
        with interruptible(), _quiet_optuna():
            fit.work(lambda: still_wanted(stop))
    except KeyboardInterrupt:
        return
    except (InputError, StorageLost, TrialsFailed) as error:
        sys.exit(f"{multiprocessing.current_process().name}: {error}")


class _Searched(NamedTuple):
    """A stage that was searched: the space of the search that ran last, and what the stage is scored with."""

    space: Space
    comparison: Comparison | Measured
    metrics: Metrics


class _Fit:
    def __init__(
        self,
        study: Study,
        device: torch.device,
        address: StorageAddress,
        together: bool,
        patience: float,
        events: FitEvents,
        hashes: HashCache | None,
    ) -> None:
        self._study = study
        self._candidates = 1
        self._device = device
        self._address = address
        self._together = together
        self._patience = patience
        self._events = events
        self._hashes = hashes
        self._recipe = study.recipe
        self._wanted: Callable[[], bool] = lambda: True
        self._processes: WorkerProcesses | None = None
        self._results: list[SearchResult] = []
        self._scores: list[StepScores] = []
        self._spread: list[SeedSpread] = []
        # Stages that a later one moves too, to be scored under the final alphas.
        self._disturbed: list[tuple[Stage, Comparison | Measured, Metrics]] = []
        self._choices: list[tuple[Choice, list[StepScores]]] = []

    def work(self, wanted: Callable[[], bool]) -> None:
        """Run the searches' trials as long as they are `wanted`."""
        self._wanted = wanted
        with self._opened() as opened, self._joined(fresh=False) as shared:
            for stage in self._study.stages:
                if wanted():
                    self._search(stage, opened, shared)

    def run(self, *, fresh: bool, candidates: int, workers: int, check_hashes: bool) -> FitResult:
        """Search with `workers` processes, and keep what was found."""
        study, self._candidates = self._study, candidates
        self._check_reading()
        stopped: KeyboardInterrupt | TrialsFailed | StorageLost | CheckpointError | None = None
        earlier = None if fresh else self._earlier()
        with self._opened() as opened:
            try:
                # Of all searches, not of each when its turn comes: hours may lie between.
                bindings, prefix = self._bindings(opened), name_prefix(study, self._address)
                if not fresh:
                    check_place(self._address, bindings, prefix)
                with self._joined(fresh=fresh) as shared:
                    shared.do(lambda: check_bindings(shared.storage, self._address, bindings, prefix))
                    with self._further(workers - 1):
                        for stage in study.stages:
                            self._run_stage(stage, opened, shared)
                for disturbed in self._disturbed:
                    self._score(*disturbed)
            except _STOPPED as error:
                stopped = error
                if not any(result.best for result in self._results):
                    raise
            complete = stopped is None
            hashed, interrupted = self._hashed(opened, known=not complete)
            stopped = stopped or interrupted
        if stopped is not None and earlier is not None:
            # What was not reached this time stays as it was found before.
            self._recipe = self._recipe.with_alphas(still_free(self._recipe, earlier))
        self._recipe = self._recipe.started()
        order = [stage.name for stage in study.stages]
        self._scores.sort(key=lambda scores: order.index(scores.stage))
        self._spread.sort(key=lambda spread: order.index(spread.stage))
        found = [(result, result.best) for result in standing(self._results)]
        recipe = finished_recipe(study, self._recipe, self._scores, found, self._spread, hashed, complete=complete)
        save_recipe(recipe, study.outputs.best)
        others = () if stopped is not None else self._write_candidates(hashed)
        simple = self._simplified(recipe, opened.measured) if stopped is None else None
        narrow = narrow_ranges(study.recipe, study.stages, opened.measured, seed=study.seed) if complete else ()
        if simple is None:
            # That of an earlier fit would be another recipe's.
            _remove_own(study.outputs.simple)
        if stopped is not None and not isinstance(stopped, KeyboardInterrupt):
            raise stopped
        if check_hashes:
            self._check_hashes(hashed)
        return FitResult(
            study,
            recipe,
            tuple(self._results),
            tuple(self._scores),
            interrupted=stopped is not None,
            spread=tuple(self._spread),
            candidates=others,
            simple=simple,
            narrow=narrow,
        )

    def _simplified(self, recipe: Recipe, measured: Measured) -> Simplified | None:
        """Write the simpler recipe; None, with a warning, if there is none to be had."""
        try:
            return simplify_fit(self._study, recipe, measured, self._study.outputs.simple)
        except RecipeError as error:
            # The fit is done; this is good to have beside it, and no more.
            self._events.warned(f"{self._study.outputs.simple.name}: not written: {'; '.join(error.problems)}")
            return None

    def _hashed(self, opened: OpenStudy, *, known: bool) -> tuple[dict[str, str], KeyboardInterrupt | None]:
        """The checkpoints' hashes, only `known` ones after an interruption: nobody who has pressed Ctrl-C waits."""
        try:
            return opened.sha256(self._hashes, self._events.progress, known=known), None
        except KeyboardInterrupt as error:
            return opened.sha256(self._hashes, self._events.progress, known=True), error

    def _check_hashes(self, hashed: Mapping[str, str]) -> None:
        """Refuse sources with other hashes than the study's recipe notes; what was found of them is written by now."""
        study = self._study
        problems = []
        for name, file in study.files.items():
            noted, digest = study.recipe.models[name].sha256, hashed.get(name)
            if noted is not None and digest is not None and not fits_hash(digest, noted):
                other = other_hash(noted, study.sources.get(name, Path(file)), digest)
                problems.append(f"{study.recipe_path}: models.{name}.sha256: {other}")
        if problems:
            best = study.outputs.best
            raise CheckpointError([*problems, f"{best}: is of the files that are there, and notes their hashes"])

    @contextmanager
    def _opened(self) -> Iterator[OpenStudy]:
        with open_study(
            self._study, blocks=self._blocks(), device=self._device, progress=self._events.progress, hashes=self._hashes
        ) as opened:
            yield opened

    @contextmanager
    def _joined(self, *, fresh: bool) -> Iterator[SharedStorage]:
        """The storage of trials, this process one of those that work there."""
        workers = workers_at(self._address, self._study.name)
        said = self._events.warned
        try:
            workers.join(alone=not self._together)
            with ExitStack() as stack:
                with workers.turn():
                    if fresh:
                        if others := [worker for worker in workers.living() if worker != workers.own]:
                            who = ", ".join(map(str, others))
                            raise StudyError(
                                f"{self._address}: others are at these trials ({who}); stop them", field="fresh"
                            )
                        aside = set_aside(self._address)
                        if aside is not None:
                            said(f"{self._address}: renamed to {aside.name}")
                    storage = stack.enter_context(open_storage(self._address, patience=self._patience, said=said))
                yield SharedStorage(storage, self._address, workers, patience=self._patience, said=said)
        finally:
            workers.close()

    @contextmanager
    def _further(self, count: int) -> Iterator[None]:
        """So many further processes at the same searches."""
        if not count:
            yield
            return
        threads = torch.get_num_threads()
        each = max(threads // (count + 1), 1)
        self._processes = WorkerProcesses(
            count, _work, self._study, self._device, self._address, self._patience, self._hashes, each
        )
        torch.set_num_threads(each)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            self._processes.stop()

    def _bindings(self, opened: OpenStudy) -> dict[str, Mapping[str, Any]]:
        """What each search is bound to."""
        return {
            name: bound_to(self._study, stage, step, parameters, opened.fingerprints, opened.options(stage))
            for stage in self._study.stages
            for number in range(1, stage.passes + 1)
            for name, step, parameters in stage.searches(number)
        }

    def _check_reading(self) -> None:
        """Refuse prompts that could not be read of this target: the stage that would may come after hours of others."""
        study = self._study
        clip_skips = {
            f"{study.path or study.folder}: stages.{stage.name}.clip_skip": stage.options.of(EncoderOptions).clip_skip
            for stage in study.stages
            if stage.reads
        }
        # What is missing is named when the files are opened.
        if clip_skips and study.target.is_file():
            with open_checkpoint(study.target, layout=study.recipe.layout) as target:
                check_encoder(target, study.recipe.layout, clip_skips)

    def _blocks(self) -> tuple[str, ...]:
        scored = {block for stage in self._study.stages for block in stage.blocks}
        return tuple(block for block in self._study.recipe.layout.blocks if block in scored)

    def _search(self, stage: Stage, opened: OpenStudy, shared: SharedStorage) -> "_Searched":
        """Run the searches of a stage, and fill the recipe with what they find."""
        comparison, statistics = opened.comparison, opened.measured.statistics
        if isinstance(comparison, Comparison):
            comparison = replace(comparison, options=stage.options)
        metric = Combined([build_metric(name, comparison, blocks, statistics) for name, blocks in stage.measured])
        quadratic = quadratic_metrics(comparison, stage.blocks, statistics)
        explained = quadratic["explained"]
        assert isinstance(explained, ExplainedMetric)
        metrics: dict[str, Metric] = {stage.metric: metric, **quadratic}
        # What is nearest to the target opens every search, and so does the best by the stage's own measure.
        own = {"explained", *(name for name, _ in stage.measured)}
        exact = {name: one for name, one in quadratic.items() if name in own}
        bindings = self._bindings(opened)
        space: Space | None = None
        try:
            before = -math.inf
            for number in range(1, stage.passes + 1):
                searches = stage.searches(number)
                for name, step, searched in searches:
                    parameters = searched if number == 1 else started_at(searched, self._recipe)
                    space = Space(Algebra(self._recipe, comparison.groups, tuple(comparison.sources), step), parameters)
                    search = Search(self._study, stage, name, step, space, metric, exact, explained, number=number)
                    self._run_search(search, shared, bindings[name])
                # A second pass over the one step that there is would be the same search once more.
                done = len(searches) == 1 and searches[0][1] == stage.steps[-1]
                reached = self._total(stage, comparison, metric)
                if done or reached - before < stage.tolerance:
                    break
                before = reached
        except _STOPPED:
            self._scores += step_scores(self._recipe, stage, comparison, metrics)
            raise
        assert space is not None
        return _Searched(space, comparison, metrics)

    def _run_search(self, search: Search, shared: SharedStorage, binding: Mapping[str, Any]) -> None:
        try:
            for result in search.run(
                shared, binding, self._events, prefix=name_prefix(self._study, self._address), wanted=self._wanted
            ):
                self._keep(result)
                for ended in () if self._processes is None else self._processes.ended():
                    self._events.warned(ended)
        except KeyboardInterrupt as error:
            if self._processes is not None:
                # Their last trials count too.
                self._processes.stop(at_once=isinstance(error, AtOnce))
                search.look_again()
                self._keep(search.result)
            raise
        finally:
            self._fill()

    def _run_stage(self, stage: Stage, opened: OpenStudy, shared: SharedStorage) -> None:
        """Search a stage, and score what was found."""
        space, comparison, metrics = self._search(stage, opened, shared)
        later = self._study.stages[self._study.stages.index(stage) + 1 :]
        if any(self._study.disturbs(other, stage) for other in later):
            self._disturbed.append((stage, comparison, metrics))
        else:
            self._score(stage, comparison, metrics)
        # Of a stepwise stage only what ran last was scored with all other alphas as they are in the end.
        self._choose(stage, space, comparison, metrics)

    def _score(self, stage: Stage, comparison: Comparison | Measured, metrics: Metrics) -> None:
        self._scores += step_scores(self._recipe, stage, comparison, metrics)
        self._score_other_seeds(stage, comparison)

    def _total(self, stage: Stage, comparison: Comparison | Measured, metric: Metric) -> float:
        return total_similarity(score(self._recipe, stage.steps[-1], comparison, metric))

    def _keep(self, result: SearchResult) -> None:
        self._results = [kept for kept in self._results if kept.name != result.name] + [result]

    def _fill(self) -> None:
        """Fill the holes of the search that ran last with its best alphas, so that later steps build on them."""
        if not self._results or (best := self._results[-1].best) is None:
            return
        self._recipe = self._recipe.with_alphas(filled_alphas(self._results[-1].parameters, best.params))

    def _score_other_seeds(self, stage: Stage, comparison: Comparison | Measured) -> None:
        own = stage.options.of(AttentionOptions).seeds
        seeds = tuple(seed for seed in range(len(own) + _OTHER_SEEDS) if seed not in own)[:_OTHER_SEEDS]
        for name, blocks in stage.measured:
            if (by_seed := METRICS[name].by_seed) is None:
                continue
            assert isinstance(comparison, Comparison)
            step = stage.steps[-1]
            algebra = Algebra(self._recipe, comparison.groups, tuple(comparison.sources), step)
            try:
                found = by_seed(comparison, blocks, algebra.coefficients(algebra.starting_alphas())[0], seeds)
            except CheckpointError as error:
                # The search is done; this is good to know beside it, and no more.
                self._events.warned(f"not scored on other random inputs: {'; '.join(error.problems)}")
                return
            scores = tuple(dict(zip(blocks, row, strict=True)) for row in found.tolist())
            after = next(
                one.after for one in reversed(self._scores) if (one.stage, one.metric) == (stage.name, stage.metric)
            )
            fitted = total_similarity({block: after[block] for block in blocks})
            self._spread.append(SeedSpread(stage.name, step, name, fitted, seeds, scores))

    def _choose(self, stage: Stage, space: Space, comparison: Comparison | Measured, metrics: Metrics) -> None:
        """Take note of the next best trials of what the stage searched last, and of what its steps score with them."""
        disturbed = (other for other in self._study.stages if other != stage and self._study.disturbs(stage, other))
        # What another stage has found, or is yet to find, would not hold for these.
        if self._candidates == 1 or any(disturbed):
            return
        base = self._study.base if all(METRICS[name].scale_free for name, _ in stage.measured) else None
        for choice in different(self._results[-1], space, self._candidates - 1, base):
            filled = self._recipe.with_alphas(filled_alphas(choice.search.parameters, choice.trial.params))
            self._choices.append((choice, step_scores(filled, stage, comparison, metrics)))

    def _write_candidates(self, hashed: Mapping[str, str]) -> tuple[Candidate, ...]:
        """Write the next best recipes beside the best one, and remove what an earlier fit left of its own."""
        ordered = sorted(self._choices, key=lambda each: (each[0].loss, each[0].trial.number))
        found: list[Candidate] = []
        for number, (choice, scores) in enumerate(ordered[: self._candidates - 1], start=2):
            search = choice.search
            recipe = self._recipe.with_alphas(filled_alphas(search.parameters, choice.trial.params))
            others = [one for one in self._scores if one.stage != search.stage.name]
            bests = [(one, choice.trial if one.name == search.name else one.best) for one in standing(self._results)]
            spread = [one for one in self._spread if one.stage != search.stage.name]
            finished = finished_recipe(self._study, recipe, [*others, *scores], bests, spread, hashed, complete=True)
            finished = replace(finished, fitted=finished.noted.noting(candidate=number))
            save_recipe(finished, self._study.outputs.candidate(number))
            found.append(
                Candidate(
                    number, finished, search.name, choice.trial.number, choice.similarity, choice.loss, choice.apart
                )
            )
        for number, path in self._study.outputs.candidates().items():
            if number > len(found) + 1 and path.resolve() != self._study.recipe_path.resolve():
                try:
                    path.unlink()
                except OSError as error:
                    raise StudyError(f"{path}: of an earlier fit, cannot be removed: {error.strerror}") from error
        return tuple(found)

    def _earlier(self) -> Recipe | None:
        """The best recipe of an earlier fit of the same recipe, if there is one."""
        try:
            return best_recipe(self._study)
        except InputError:
            return None


def _remove_own(path: Path) -> None:
    """Remove a simpler recipe of an earlier fit, unless it is something else by now."""
    with suppress(InputError, OSError):
        if load_recipe(path).noted.simplified is not None:
            path.unlink()
