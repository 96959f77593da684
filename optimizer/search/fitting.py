"""The fit of a study: one Optuna study after another; a second call continues where the first one stopped."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from optimizer.analysis import judge, narrow_ranges
from optimizer.checkpoints import open_checkpoint
from optimizer.errors import CheckpointError, InputError, StudyError
from optimizer.library import HashCache
from optimizer.merging import check_noted_hashes, fits_hash, other_hash
from optimizer.recipes import Recipe
from optimizer.search.choosing import choose
from optimizer.search.context import FitContext, opened_study
from optimizer.search.events import FitEvents, SearchEvents
from optimizer.search.findings import Findings
from optimizer.search.results import FitResult
from optimizer.search.running import plan_for, run_searches
from optimizer.search.trials import PATIENCE, check_storage_files, interruptible, quiet_optuna, storage_address
from optimizer.search.writing import check_written, remove_simple, write_best, write_candidates, write_simple
from optimizer.similarity import EncoderOptions, check_encoder, check_installed, chosen_device
from optimizer.studies import OpenStudy, Study, best_recipe, check_study_folder

__all__ = ["fit"]

_Stop = KeyboardInterrupt | Exception


def fit(
    study: Study,
    *,
    device: torch.device | str = "auto",
    fresh: bool = False,
    candidates: int = 1,
    storage: str | None = None,
    workers: int | None = None,
    patience: float = PATIENCE,
    check_hashes: bool = True,
    events: SearchEvents | None = None,
    hashes: HashCache | None = None,
) -> FitResult:
    """Run every search of `study` up to its budget of completed trials, and write `best.yaml` into its folder.

        result = fit(new_study(recipe, target="closed.safetensors", folder="my-study", trials=40))
        print(result.similarity, result.recipe.step("OUT").alpha)

    The fit also writes `best.simple.yaml`, the best recipe with rounded numbers, if rounding loses almost nothing.

    A second call continues where the first one stopped. Ctrl-C or SIGTERM ends the search after the running trial; a
    second signal ends it at once. The best recipe so far is then written and returned with `interrupted` set.

    Errors of the parts of a fit pass through. InputError: the files do not match, or the study was started with other
    inputs. TrialsFailed: trials keep failing. StorageLost: the storage stays unavailable. CheckpointError: a file
    changes, or its hash differs from the recipe's. A metric with a bug ends the fit with its own error. In all cases
    except InputError the best recipe so far is written first.

    Args:
        study: The study, from `load_study` or `new_study`.
        device: The device that computes similarities, or its name: auto (a GPU if one is available), cpu, cuda.
        fresh: Whether to set earlier trials aside.
        candidates: The number of different recipes to write: best.yaml, candidate-2.yaml and so on. Candidates of an
            earlier fit are always removed.
        storage: The storage of the trials: sqlite:///FILE, journal:FILE or postgresql://USER@HOST/DATABASE; by default
            `study.db` in the study's folder.
        workers: The number of processes that search together, this one included. With `workers` or `storage`, other
            fits may join from this or another machine; all share one budget. A script that asks for more than one
            process must do so below `if __name__ == "__main__":`.
        patience: Seconds to wait for an unavailable storage.
        check_hashes: Whether each file must have the SHA-256 in the recipe. This check reads no file by itself: cached
            hashes are compared before the search, the others after it, when all hashes are computed.
        events: The receiver of the fit's reports.
        hashes: A cache of the checkpoints' SHA-256, which best.yaml records, for later calls.

    Returns:
        The best recipe, the searches with their trials, and the similarities of every step.

    Raises:
        StudyError: `candidates` or `workers` is less than 1.

    """
    if candidates < 1:
        raise StudyError(f"received {candidates}; must be at least 1 (only the best recipe)", field="candidates")
    if workers is not None and workers < 1:
        raise StudyError(f"received {workers}; must be at least 1 (only this process)", field="workers")
    check_written(study, candidates)
    check_installed(name for stage in study.stages for name, _ in stage.measured)
    address = storage_address(storage, study.folder)
    check_study_folder(study.folder)
    check_storage_files(address, study.folder)
    context = FitContext(
        study=study,
        address=address,
        device=chosen_device(device),
        shared=workers is not None or storage is not None,
        workers=workers or 1,
        candidates=candidates,
        patience=patience,
        events=events or FitEvents(),
        hash_cache=hashes,
    )
    if check_hashes:
        check_noted_hashes(study.recipe.models, study.sources, context.library, named_in=study.recipe_path, known=True)
    with interruptible(), quiet_optuna():
        return _fit(context, fresh=fresh, check_hashes=check_hashes)


def _fit(context: FitContext, *, fresh: bool, check_hashes: bool) -> FitResult:
    """Plan, run, choose and write."""
    study, warn = context.study, context.events.warn
    _check_prompts(study)
    earlier = None if fresh else _earlier_best(study)
    with opened_study(context) as opened:
        plan = plan_for(opened, earlier)
        found, stopped = _until_stopped(run_searches(context, plan, opened, fresh=fresh), Findings(study.recipe))
        if stopped is not None and not found.has_best:
            raise stopped
        complete = stopped is None
        hashed, interrupted = _source_hashes(context, opened, known=not complete)
        stopped = stopped or interrupted
    chosen = choose(
        plan,
        found,
        hashed,
        complete=complete,
        interrupted=stopped is not None,
        candidates=context.candidates,
    )
    verdict = judge(opened.measured, study.recipe, study.stages, chosen.best)
    best = replace(chosen.best, fitted=chosen.best.noted.noting(verdict=verdict.text))
    write_best(study, best)
    simple = None
    if stopped is None:
        write_candidates(study, chosen.candidates)
        simple = write_simple(study, best, opened.measured, warn)
    else:
        remove_simple(study)
    narrow = narrow_ranges(study.recipe, study.stages, opened.measured, seed=study.seed) if complete else ()
    if stopped is not None and not isinstance(stopped, KeyboardInterrupt):
        raise stopped
    if check_hashes:
        _check_hashes(study, hashed)
    return FitResult(
        study,
        best,
        found.results,
        chosen.scores,
        interrupted=stopped is not None,
        spread=chosen.spread,
        candidates=chosen.candidates,
        simple=simple,
        narrow=narrow,
        verdict=verdict,
    )


def _until_stopped(steps: Generator[Findings], found: Findings) -> tuple[Findings, _Stop | None]:
    """Return the last findings of a run and the error that stopped it, if any; raise bad input at once."""
    with closing(steps):
        try:
            for latest in steps:
                found = latest
        except (KeyboardInterrupt, Exception) as stopped:
            if isinstance(stopped, InputError) and not isinstance(stopped, CheckpointError):
                raise
            return found, stopped
    return found, None


def _source_hashes(
    context: FitContext, opened: OpenStudy, *, known: bool
) -> tuple[dict[str, str], KeyboardInterrupt | None]:
    """Return the checkpoints' hashes; after Ctrl-C only cached ones, so that the command ends at once."""
    try:
        return opened.sha256(context.library, known=known), None
    except KeyboardInterrupt as error:
        return opened.sha256(context.library, known=True), error


def _check_hashes(study: Study, hashed: Mapping[str, str]) -> None:
    """Raise CheckpointError for sources whose hashes differ from the recipe's; best.yaml is already written."""
    problems = []
    for name, file in study.files.items():
        expected, digest = study.recipe.models[name].sha256, hashed.get(name)
        if expected is not None and digest is not None and not fits_hash(digest, expected):
            problem = other_hash(expected, study.sources.get(name, Path(file)), digest)
            problems.append(f"{study.recipe_path}: models.{name}.sha256: {problem}")
    if problems:
        best = study.outputs.best
        raise CheckpointError([*problems, f"{best}: was made from these files, and records their hashes"])


def _check_prompts(study: Study) -> None:
    """Refuse prompts that the target cannot read before the search; the stage that needs them may be hours away."""
    clip_skips = {
        f"{study.path or study.folder}: stages.{stage.name}.clip_skip": stage.options.of(EncoderOptions).clip_skip
        for stage in study.stages
        if stage.uses_prompts
    }
    # `open_study` reports missing files, all of them together.
    if clip_skips and study.target.is_file():
        with open_checkpoint(study.target, layout=study.recipe.layout) as target:
            check_encoder(target, study.recipe.layout, clip_skips)


def _earlier_best(study: Study) -> Recipe | None:
    """Return the best recipe of an earlier fit of the same recipe, or None."""
    try:
        return best_recipe(study)
    except InputError:
        return None
