"""The files of a study, or what an earlier run measured of them."""

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from optimizer.checkpoints import TensorSource, open_checkpoint
from optimizer.errors import BlockfitWarning, CheckpointError, InputError, StudyError
from optimizer.library import HashCache, fingerprint, sha256
from optimizer.recipes import Contributors, check_channels, warn_of_sources
from optimizer.similarity import (
    METRICS,
    Comparison,
    FileMark,
    Measured,
    Options,
    measure_family,
    open_comparison,
    read_measured,
    save_measured,
    warn_of_zeros,
)
from optimizer.studies.folder import check_study_folder
from optimizer.studies.stage import Stage
from optimizer.studies.study import Study

__all__ = ["OpenStudy", "open_study"]


@dataclass(frozen=True)
class OpenStudy:
    """What was measured of a study's checkpoints and, if they are there, the checkpoints, opened.

    `kept` is what the study's folder holds: the same, perhaps of more sources.
    """

    study: Study
    measured: Measured
    kept: Measured
    files: Comparison | None

    @property
    def comparison(self) -> Comparison | Measured:
        """What metrics are built from."""
        return self.measured if self.files is None else self.files

    @property
    def fingerprints(self) -> dict[str, str]:
        """Those of the sources by name, in the order of coefficients, then the target's as "the target"."""
        marks = {**self.measured.sources, "the target": self.measured.target}
        return {name: mark.fingerprint for name, mark in marks.items()}

    def options(self, stage: Stage) -> Options:
        """Return the options of a stage's metrics with defaults that depend on the target filled in.

        Raises CheckpointError for a text encoder that is unknown.
        """
        if self.files is None:
            return stage.options
        target, layout = self.files.target, self.study.recipe.layout
        return Options(tuple(one.resolved(target, layout) if used else one for one, used in stage.used_options))

    def sha256(
        self, hashes: HashCache | None, progress: Callable[[str, int, int], None], *, known: bool = False
    ) -> dict[str, str]:
        """The hash of each source by name, and of the target as "", noted for runs that have not got the files.

        Only those that `hashes` has if `known`. Of files that are not there, those that an earlier run noted. What is
        not known, or cannot be read any more, is left out. So are files that were changed, replaced or deleted since
        they were opened, with a BlockfitWarning for each: a hash of what lies there now would be of another file.
        """
        if self.files is None:
            marks = {**self.measured.sources, "": self.measured.target}
            return {name: mark.sha256 for name, mark in marks.items() if mark.sha256 is not None}
        files = {**self.files.sources, "": self.files.target}
        found: dict[str, str] = {}

        def hashed(checkpoint: TensorSource) -> str | None:
            if checkpoint.path is None or checkpoint.change_since_open() is not None:
                return None
            if known:
                return None if hashes is None else hashes.look_up(checkpoint.path, "sha256")
            with suppress(CheckpointError):
                return sha256(checkpoint.path, hashes)
            return None

        # hashlib lets other threads run meanwhile.
        with ThreadPoolExecutor(os.cpu_count() or 1, "hashing") as pool:
            try:
                for position, (name, digest) in enumerate(zip(files, pool.map(hashed, files.values()), strict=True)):
                    progress("hashing the checkpoints", position, len(files))
                    if digest is not None:
                        found[name] = digest
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        progress("hashing the checkpoints", len(files), len(files))
        for name, checkpoint in files.items():
            # Asked again: it may have happened while hashing.
            if (change := checkpoint.change_since_open()) is not None:
                found.pop(name, None)
                warnings.warn(
                    f"{checkpoint.label}: {change} during the fit: what was found is about the file as it was before, "
                    "and best.yaml notes no hash of it",
                    BlockfitWarning,
                    stacklevel=2,
                )
        noted = self.kept.with_hashes(found)
        if (noted.sources, noted.target) != (self.kept.sources, self.kept.target):
            _keep(self.study, noted)
        return found


@contextmanager
def open_study(
    study: Study,
    *,
    blocks: Collection[str],
    device: torch.device,
    progress: Callable[[str, int, int], None],
    hashes: HashCache | None = None,
    tensors: bool = True,
) -> Iterator[OpenStudy]:
    """Give the statistics of the study's checkpoints on at least `blocks`, measured now unless they were before.

    An earlier run's serve as long as every file that is there has the fingerprint that it had then, and every file that
    is not there is still named as it was then. With `tensors` the files must be there if one of the study's metrics is
    computed from them.

    Raises StudyError for files that are missing and cannot be done without, CheckpointError for files that do not fit
    or that are changed, replaced or deleted while they are measured; nothing of that is kept then. Gives a
    BlockfitWarning for what is odd about the files.
    """
    check_study_folder(study.folder)
    earlier, broken = _earlier(study)
    if study.missing:
        found = None if earlier is None else _without_files(study, earlier, hashes)
        if earlier is None or found is None or (tensors and _reads_tensors(study)):
            raise StudyError([*study.missing, *broken])
        if unmeasured := [block for block in blocks if block not in found.blocks]:
            names = study.recipe.layout.describe_blocks(unmeasured)
            raise StudyError([*study.missing, f"{study.outputs.statistics}: {names} could not be measured"])
        _check_steps(study, found)
        yield OpenStudy(study, found, earlier, None)
        return
    for problem in broken:
        warnings.warn(f"{problem}; the checkpoints are measured anew", BlockfitWarning, stacklevel=2)
    contributing = _contributors(study, tuple(study.sources))
    with open_comparison(
        study.recipe.layout,
        study.sources,
        study.target,
        base=study.sources[study.base] if study.base is not None else None,
        mapping=study.recipe.mapping,
        contributing=contributing,
        device=device,
        progress=progress,
    ) as comparison:
        _check_steps(study, comparison)
        warn_of_sources(study.recipe, comparison.sources, comparison.target, contributing)
        sources = {
            name: FileMark(study.files[name], fingerprint(checkpoint, hashes))
            for name, checkpoint in comparison.sources.items()
        }
        target = FileMark(study.target_file, fingerprint(comparison.target, hashes))
        measured = None if earlier is None else _serving(study, earlier, sources, target)
        if earlier is None or measured is None or not _covers(measured, comparison, blocks):
            measured = earlier = measure_family(
                comparison, blocks, base=study.base, mapping=study.recipe.mapping, sources=sources, target=target
            )
            _keep(study, measured)
        warn_of_zeros(measured.scored, measured.gram, comparison)
        yield OpenStudy(study, measured, earlier, comparison)


def _earlier(study: Study) -> tuple[Measured | None, tuple[str, ...]]:
    """Return what an earlier run measured, and why what is there cannot be used."""
    try:
        return read_measured(study.outputs.statistics), ()
    except CheckpointError as error:
        return None, error.problems


def _keep(study: Study, measured: Measured) -> None:
    # A folder that cannot be written to costs the next run the pass over the files, no more.
    with suppress(InputError):
        save_measured(measured, study.outputs.statistics)


def _covers(measured: Measured, comparison: Comparison, blocks: Collection[str]) -> bool:
    return measured.parts == comparison.parts and set(blocks) <= set(measured.blocks)


def _reads_tensors(study: Study) -> bool:
    return any(not METRICS[name].reads_statistics for stage in study.stages for name, _ in stage.measured)


def _contributors(study: Study, sources: Sequence[str]) -> Contributors:
    """Which of `sources`, by their positions, can count in what the stages score."""
    return Contributors(study.recipe, sources, list(dict.fromkeys(step for one in study.stages for step in one.steps)))


def _check_steps(study: Study, known: Comparison | Measured) -> None:
    for stage in study.stages:
        for step in stage.steps:
            check_channels(study.recipe, step, known.parts, known.labels)


def _without_files(study: Study, earlier: Measured, hashes: HashCache | None) -> Measured | None:
    """What was measured of the study's files, if those there have not changed, nor have the names of the others."""

    def marked(path: Path | None, file: str, before: FileMark | None) -> FileMark:
        if path is not None:
            with open_checkpoint(path, layout=study.recipe.layout) as checkpoint:
                return FileMark(file, fingerprint(checkpoint, hashes))
        return before if before is not None and before.file == file else FileMark(file, "unknown")

    try:
        sources = {
            name: marked(study.sources.get(name), file, earlier.sources.get(name)) for name, file in study.files.items()
        }
        target = marked(study.target if study.target.is_file() else None, study.target_file, earlier.target)
    except CheckpointError:
        return None
    return _serving(study, earlier, sources, target)


def _serving(study: Study, earlier: Measured, sources: Mapping[str, FileMark], target: FileMark) -> Measured | None:
    """What was measured earlier of these sources; None if it was of other files, or sorted into blocks otherwise."""
    recipe = study.recipe
    alike = (earlier.layout.name, earlier.mapping, earlier.base) == (recipe.layout.name, recipe.mapping, study.base)
    same = earlier.target.fingerprint == target.fingerprint and all(
        name in earlier.sources and earlier.sources[name].fingerprint == mark.fingerprint
        for name, mark in sources.items()
    )
    found = earlier.of_sources(tuple(sources)) if alike and same else None
    if found is None:
        return None
    # What was left out then for its shape may count now, by other alphas.
    contributing = _contributors(study, tuple(sources))
    left_out = [part for part in found.parts if part.other_shapes]
    counts = any(
        set(part.other_shapes) & contributing.of(part.block, (*part.holders, *part.other_shapes)) for part in left_out
    )
    return None if counts else found
