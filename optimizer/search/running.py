"""The run of a plan: the only part of a fit that uses the storage of trials and further processes."""

import logging
import math
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from ctypes import c_bool

import torch

from optimizer.errors import BlockfitWarning, CheckpointError, InputError
from optimizer.recipes import Recipe
from optimizer.search.candidates import next_best
from optimizer.search.context import FitContext, joined_storage, opened_study
from optimizer.search.findings import Findings
from optimizer.search.plan import Plan, plan_searches
from optimizer.search.scoring import StageScoring
from optimizer.search.searching import Search, TrialsFailed
from optimizer.search.trials import (
    AtOnce,
    SharedStorage,
    StorageLost,
    WorkerProcesses,
    check_bindings,
    check_place,
    ignore_interrupts,
    interruptible,
    quiet_optuna,
    should_go_on,
)
from optimizer.studies import OpenStudy

__all__ = ["plan_for", "run_searches"]

_logger = logging.getLogger("blockfit.search")


def plan_for(opened: OpenStudy, earlier: Recipe | None = None) -> Plan:
    """Return the plan of a fit on opened files.

    CheckpointError passes through for a text encoder whose prompts are unknown.

    Args:
        opened: The opened study.
        earlier: The best recipe of an earlier fit.

    Returns:
        The plan.

    """
    study = opened.study
    options = {stage.name: opened.options(stage) for stage in study.stages}
    return plan_searches(study, opened.fingerprints, options, earlier)


def run_searches(context: FitContext, plan: Plan, opened: OpenStudy, *, fresh: bool = False) -> Generator[Findings]:
    """Search and score every stage.

    Errors that stop the searches pass through after the last findings: KeyboardInterrupt, TrialsFailed, StorageLost,
    CheckpointError, or the error of a metric with a bug. StudyError passes through before the first trial if stored
    trials are bound to other inputs.

    Args:
        context: The settings of the fit.
        plan: The plan to run.
        opened: The opened study.
        fresh: Whether to set earlier trials aside.

    Yields:
        The findings after every trial and every other step.

    """
    found, later = Findings(context.study.recipe), list[StageScoring]()
    # All bindings are checked before the first search; a later one could fail after hours.
    bindings, prefix = plan.bindings, context.prefix
    if not fresh:
        check_place(context.address, bindings, prefix)
    with joined_storage(context, fresh=fresh) as shared:
        shared.do(lambda: check_bindings(shared.storage, context.address, bindings, prefix))
        with _further_processes(context) as processes:
            for stage in context.study.stages:
                scoring = StageScoring.of(stage, opened)
                for step in _searched(context, plan, scoring, shared, found, processes=processes):
                    found = step
                    yield found
                if plan.is_moved_later(stage):
                    later.append(scoring)
                else:
                    found = _scored(context, scoring, found)
                if context.candidates > 1 and plan.has_candidates(stage):
                    found = _with_choices(context, plan, scoring, found)
                yield found
    for scoring in later:
        found = _scored(context, scoring, found)
        yield found


def _searched(
    context: FitContext,
    plan: Plan,
    scoring: StageScoring,
    shared: SharedStorage,
    found: Findings,
    *,
    processes: WorkerProcesses | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Findings]:
    """Run the searches of a stage, pass by pass, and yield the findings; after a stop, yield the last scores too."""
    stage, before = scoring.stage, -math.inf
    try:
        for searches in plan.passes(stage):
            for search in searches:
                if not go_on():
                    return
                running = Search(context.study, search.starting_from(found.recipe), found.recipe, scoring)
                for step in _search(context, running, shared, found, processes, go_on):
                    found = step
                    yield found
            # A second pass over a single step would repeat the same search.
            only_one = len(searches) == 1 and searches[0].step == stage.steps[-1]
            reached = scoring.total(found.recipe)
            if only_one or reached - before < stage.tolerance:
                return
            before = reached
    except (KeyboardInterrupt, Exception) as stopped:
        if isinstance(stopped, InputError) and not isinstance(stopped, CheckpointError):
            raise
        found = found.filled()
        yield found  # the scoring below may be interrupted too
        yield _with_last_scores(scoring, found)
        raise


def _search(
    context: FitContext,
    search: Search,
    shared: SharedStorage,
    found: Findings,
    processes: WorkerProcesses | None,
    go_on: Callable[[], bool],
) -> Iterator[Findings]:
    """Run one search and yield the findings after every trial; at the end, with its best alphas in the recipe."""
    try:
        for result in search.run(shared, context.events, prefix=context.prefix, go_on=go_on):
            found = found.with_result(result)
            yield found
            for line in () if processes is None else processes.ended():
                context.events.warn(line)
    except KeyboardInterrupt as error:
        if processes is not None:
            # The last trials of the processes count too.
            processes.stop(at_once=isinstance(error, AtOnce))
            search.refresh()
            yield found.with_result(search.result)
        raise
    yield found.filled()


def _scored(context: FitContext, scoring: StageScoring, found: Findings) -> Findings:
    """Add the scores of a stage under the alphas so far, and its scores on other random inputs."""
    scores = scoring.step_scores(found.recipe)
    found = found.with_scores(scores)
    try:
        for spread in scoring.other_seeds(found.recipe, scores):
            found = found.with_spread(spread)
    except CheckpointError as error:
        # These scores are optional: the search is done.
        context.events.warn(f"not scored on other random inputs: {'; '.join(error.problems)}")
    return found


def _with_last_scores(scoring: StageScoring, found: Findings) -> Findings:
    """Add the scores of a stopped stage if possible; the error that stopped it may also stop the scoring."""
    try:
        return found.with_scores(scoring.step_scores(found.recipe))
    except Exception:
        _logger.exception("%s: stopped, and not scored", scoring.stage.name)
        return found


def _with_choices(context: FitContext, plan: Plan, scoring: StageScoring, found: Findings) -> Findings:
    """Add the next best trials of the latest search, with the scores of its stage under their alphas."""
    # In a stepwise stage only the latest search scored its trials under the final values of all other alphas.
    search = found.results[-1]
    space = scoring.space(found.recipe, search.step, search.parameters)
    for choice in next_best(search, space, context.candidates - 1, plan.candidate_base(scoring.stage)):
        found = found.with_choice(choice, scoring.step_scores(found.recipe.with_alphas(choice.alphas)))
    return found


@contextmanager
def _further_processes(context: FitContext) -> Iterator[WorkerProcesses | None]:
    """Run the further processes of the same searches; yield None for a single worker."""
    if context.workers == 1:
        yield None
        return
    threads = torch.get_num_threads()
    each = max(threads // context.workers, 1)
    processes = WorkerProcesses(context.workers - 1, _work, context.for_worker(), each)
    torch.set_num_threads(each)
    try:
        yield processes
    finally:
        torch.set_num_threads(threads)
        processes.stop()


def _work(stop: c_bool, context: FitContext, threads: int) -> None:
    """Run trials of the same searches in a further process, without writing recipes."""
    ignore_interrupts()
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", BlockfitWarning)
    found = Findings(context.study.recipe)
    try:
        with (
            interruptible(),
            quiet_optuna(),
            opened_study(context) as opened,
            joined_storage(context) as shared,
        ):
            plan = plan_for(opened)
            for stage in context.study.stages:
                if not should_go_on(stop):
                    return
                scoring = StageScoring.of(stage, opened)
                for step in _searched(context, plan, scoring, shared, found, go_on=lambda: should_go_on(stop)):
                    found = step
    except KeyboardInterrupt:
        return
    except (InputError, StorageLost, TrialsFailed) as error:
        sys.exit(f"{multiprocessing.current_process().name}: {error}")
