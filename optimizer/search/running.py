"""Running a plan: the only part of a fit that works with the storage of trials and with further processes."""

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
    interruptible,
    leave_interrupts,
    quiet_optuna,
    still_wanted,
)
from optimizer.studies import OpenStudy

__all__ = ["plan_for", "run_searches"]

_logger = logging.getLogger("blockfit.search")


def plan_for(opened: OpenStudy, earlier: Recipe | None = None) -> Plan:
    """Return the plan of a fit on opened files; `earlier` is the recipe that an earlier fit wrote.

    Raises CheckpointError for a text encoder whose prompts are unknown.
    """
    study = opened.study
    options = {stage.name: opened.options(stage) for stage in study.stages}
    return plan_searches(study, opened.fingerprints, options, earlier)


def run_searches(context: FitContext, plan: Plan, opened: OpenStudy, *, fresh: bool = False) -> Generator[Findings]:
    """Search and score every stage; yield the findings after every trial and every other step.

    What ends the searches before their time is raised after the last findings were yielded: KeyboardInterrupt,
    TrialsFailed, StorageLost, CheckpointError, or the error of a metric that has a bug. `fresh` sets earlier trials
    aside.

    Raises StudyError, before anything is searched, for trials that are bound to anything else.
    """
    found, later = Findings(context.study.recipe), list[StageScoring]()
    # Of all searches, not of each when its turn comes: hours may lie between.
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
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Findings]:
    """Run the searches of a stage, pass by pass, and yield the findings; after a stop with the scores so far."""
    stage, before = scoring.stage, -math.inf
    try:
        for searches in plan.passes(stage):
            for search in searches:
                if not wanted():
                    return
                running = Search(context.study, search.started_at(found.recipe), found.recipe, scoring)
                for step in _search(context, running, shared, found, processes, wanted):
                    found = step
                    yield found
            # A second pass over the one step that there is would be the same search once more.
            only_one = len(searches) == 1 and searches[0].step == stage.steps[-1]
            reached = scoring.total(found.recipe)
            if only_one or reached - before < stage.tolerance:
                return
            before = reached
    except (KeyboardInterrupt, Exception) as stopped:
        if isinstance(stopped, InputError) and not isinstance(stopped, CheckpointError):
            raise
        found = found.filled()
        yield found  # scoring may be interrupted, too
        yield _with_last_scores(scoring, found)
        raise


def _search(
    context: FitContext,
    search: Search,
    shared: SharedStorage,
    found: Findings,
    processes: WorkerProcesses | None,
    wanted: Callable[[], bool],
) -> Iterator[Findings]:
    """Run one search, and yield the findings after every trial, at last with its best alphas in the recipe."""
    try:
        for result in search.run(shared, context.events, prefix=context.prefix, wanted=wanted):
            found = found.with_result(result)
            yield found
            for line in () if processes is None else processes.ended():
                context.events.warn(line)
    except KeyboardInterrupt as error:
        if processes is not None:
            # Their last trials count too.
            processes.stop(at_once=isinstance(error, AtOnce))
            search.refresh()
            yield found.with_result(search.result)
        raise
    yield found.filled()


def _scored(context: FitContext, scoring: StageScoring, found: Findings) -> Findings:
    """Add the scores of a stage under the alphas so far, and those on other random inputs."""
    scores = scoring.step_scores(found.recipe)
    found = found.with_scores(scores)
    try:
        for spread in scoring.other_seeds(found.recipe, scores):
            found = found.with_spread(spread)
    except CheckpointError as error:
        # The search is done; this is good to know beside it, and no more.
        context.events.warn(f"not scored on other random inputs: {'; '.join(error.problems)}")
    return found


def _with_last_scores(scoring: StageScoring, found: Findings) -> Findings:
    """Add the scores of a stage that was stopped, if it can be scored: what stopped it may stop this, too."""
    try:
        return found.with_scores(scoring.step_scores(found.recipe))
    except Exception:
        _logger.exception("%s: stopped, and not scored", scoring.stage.name)
        return found


def _with_choices(context: FitContext, plan: Plan, scoring: StageScoring, found: Findings) -> Findings:
    """Add the next best trials of the search that ran last, with the scores of its stage under their alphas."""
    # Of a stepwise stage only that one was scored with all other alphas as they are in the end.
    search = found.results[-1]
    space = scoring.space(found.recipe, search.step, search.parameters)
    for choice in next_best(search, space, context.candidates - 1, plan.candidate_base(scoring.stage)):
        found = found.with_choice(choice, scoring.step_scores(found.recipe.with_alphas(choice.alphas)))
    return found


@contextmanager
def _further_processes(context: FitContext) -> Iterator[WorkerProcesses | None]:
    """Give the further processes that run the same searches; None if there are to be none."""
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
    """Run the trials of the same searches in a further process; nothing is written into the study's folder."""
    leave_interrupts()
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
                if not still_wanted(stop):
                    return
                scoring = StageScoring.of(stage, opened)
                for step in _searched(context, plan, scoring, shared, found, wanted=lambda: still_wanted(stop)):
                    found = step
    except KeyboardInterrupt:
        return
    except (InputError, StorageLost, TrialsFailed) as error:
        sys.exit(f"{multiprocessing.current_process().name}: {error}")
