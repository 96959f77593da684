"""Open the checkpoints of a study, or load their statistics from an earlier run."""

import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from optimizer.checkpoints import TensorSource, open_checkpoint
from optimizer.errors import BlockfitWarning, CheckpointError, InputError, StudyError
from optimizer.library import Library, sha256
from optimizer.recipes import Contributors, check_channels, warn_of_sources
from optimizer.similarity import (
    METRICS,
    Comparison,
    FileMark,
    Measured,
    Options,
    Scorable,
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

_REPORT_INTERVAL = 0.25  # seconds


@dataclass(frozen=True)
class OpenStudy:
    """The statistics of a study's checkpoints and, unless they are missing, the open checkpoints.

    Attributes:
        study: The study.
        measured: The statistics of the sources that the study needs.
        kept: The statistics in the study's folder, perhaps of further sources.
        files: The open checkpoints; None if any is missing.
    """

    study: Study
    measured: Measured
    kept: Measured
    files: Comparison | None

    @property
    def scorable(self) -> Scorable:
        """The input from which metrics are built: the open checkpoints, else their statistics."""
        return self.measured if self.files is None else self.files

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the sources by name, in the order of coefficients, then of "the target"."""
        marks = {**self.measured.sources, "the target": self.measured.target}
        return {name: mark.fingerprint for name, mark in marks.items()}

    def options(self, stage: Stage) -> Options:
        """Return the options of a stage's metrics, with the defaults that depend on the target.

        Raises CheckpointError for an unknown text encoder.

        Args:
            stage: A stage of the study.

        Returns:
            The options; unchanged if the checkpoints are missing.
        """
        if self.files is None:
            return stage.options
        target, layout = self.files.target, self.study.recipe.layout
        return Options(
            tuple(options.resolved(target, layout) if used else options for options, used in stage.used_options)
        )

    def sha256(self, library: Library, *, known: bool = False) -> dict[str, str]:
        """Return the SHA-256 of each checkpoint, and keep it for runs without the files.

        Missing files have the hash that an earlier run recorded. Unknown hashes and unreadable files are omitted. Files
        that were changed, replaced or deleted since they were opened are omitted too, each with a BlockfitWarning,
        since their hash would be that of another file.

        Args:
            library: The library with the files' hashes, which receives the bytes read as progress.
            known: Whether to return only hashes that the cache holds, and to read no file.

        Returns:
            The hashes, 64 hexadecimal digits, by source name; "" is the target.

        Raises:
            KeyboardInterrupt: The user pressed Ctrl-C; files that are waiting are not hashed.
        """
        if self.files is None:
            marks = {**self.measured.sources, "": self.measured.target}
            return {name: mark.sha256 for name, mark in marks.items() if mark.sha256 is not None}
        files = {**self.files.sources, "": self.files.target}
        sizes = {name: _file_size(checkpoint) for name, checkpoint in files.items()}
        # Several files are hashed at once, and make one progress.
        read = dict.fromkeys(files, 0)

        def report() -> None:
            library.events.progress("hashing the checkpoints", sum(read.values()), sum(sizes.values()))

        def hashed(name: str, checkpoint: TensorSource) -> str | None:
            def count(done: int, _: int) -> None:
                read[name] = done

            if checkpoint.path is None or checkpoint.change_since_open() is not None:
                return None
            if known:
                return library.known_sha256(checkpoint.path)
            with suppress(CheckpointError):
                return sha256(checkpoint.path, library.hash_cache, progress=count)
            return None

        # hashlib releases the GIL.
        with ThreadPoolExecutor(os.cpu_count() or 1, "hashing") as pool:
            try:
                report()
                digests = {name: pool.submit(hashed, name, checkpoint) for name, checkpoint in files.items()}
                waiting: set[Future[str | None]] = set(digests.values())
                while waiting:
                    _, waiting = wait(waiting, timeout=_REPORT_INTERVAL)
                    if waiting:
                        report()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        read |= sizes
        report()
        found = {name: digest for name, future in digests.items() if (digest := future.result()) is not None}
        for name, checkpoint in files.items():
            # The file may have changed while it was hashed.
            if (change := checkpoint.change_since_open()) is not None:
                found.pop(name, None)
                warnings.warn(
                    f"{checkpoint.label}: {change} during the fit: the result is of the file as it was before, "
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
    library: Library,
    *,
    blocks: Collection[str],
    device: torch.device,
    tensors: bool = True,
) -> Iterator[OpenStudy]:
    """Open a study's checkpoints and measure their statistics, unless an earlier run did.

    The statistics of an earlier run are reused if every file present has its fingerprint of then and every missing file
    still has its name of then.

    Raises CheckpointError if files do not fit together, or are changed, replaced or deleted while they are measured. No
    statistics are kept then. Issues a BlockfitWarning for each oddity of the files.

    Args:
        study: The study, with its checkpoints found.
        library: The library with the files' fingerprints, and the receiver of progress.
        blocks: Blocks that the statistics must cover.
        device: The device of the computation.
        tensors: Whether the files are required if a metric of the study reads tensors.

    Yields:
        The open study.

    Raises:
        StudyError: Files are missing that no statistics can replace.
    """
    check_study_folder(study.folder)
    earlier, broken = _earlier(study)
    if study.missing:
        found = None if earlier is None else _without_files(study, earlier, library)
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
        events=library.events,
    ) as comparison:
        _check_steps(study, comparison)
        warn_of_sources(study.recipe, comparison.sources, comparison.target, contributing)
        sources = {
            name: FileMark(study.files[name], library.fingerprint(checkpoint))
            for name, checkpoint in comparison.sources.items()
        }
        target = FileMark(study.target_file, library.fingerprint(comparison.target))
        measured = None if earlier is None else _serving(study, earlier, sources, target)
        if earlier is None or measured is None or not _covers(measured, comparison, blocks):
            measured = earlier = measure_family(
                comparison, blocks, base=study.base, mapping=study.recipe.mapping, sources=sources, target=target
            )
            _keep(study, measured)
        warn_of_zeros(measured.scored, measured.gram, comparison)
        yield OpenStudy(study, measured, earlier, comparison)


def _file_size(checkpoint: TensorSource) -> int:
    """Return the size of a checkpoint's file; 0 if there is none, or none any more."""
    with suppress(OSError):
        return 0 if checkpoint.path is None else checkpoint.path.stat().st_size
    return 0


def _earlier(study: Study) -> tuple[Measured | None, tuple[str, ...]]:
    """Return the statistics of an earlier run, and the reasons why its file cannot be used."""
    try:
        return read_measured(study.outputs.statistics), ()
    except CheckpointError as error:
        return None, error.problems


def _keep(study: Study, measured: Measured) -> None:
    # Without the file the next run only has to read the checkpoints again.
    with suppress(InputError):
        save_measured(measured, study.outputs.statistics)


def _covers(measured: Measured, comparison: Comparison, blocks: Collection[str]) -> bool:
    return measured.parts == comparison.parts and set(blocks) <= set(measured.blocks)


def _reads_tensors(study: Study) -> bool:
    return any(not METRICS[name].reads_statistics for stage in study.stages for name, _ in stage.measured)


def _contributors(study: Study, sources: Sequence[str]) -> Contributors:
    """Return which of `sources`, by position, can count in the results that the stages score."""
    steps = dict.fromkeys(step for stage in study.stages for step in stage.steps)
    return Contributors(study.recipe, sources, list(steps))


def _check_steps(study: Study, known: Scorable) -> None:
    for stage in study.stages:
        for step in stage.steps:
            check_channels(study.recipe, step, known.parts, known.labels)


def _without_files(study: Study, earlier: Measured, library: Library) -> Measured | None:
    """Return the earlier statistics if the files present, and the names of missing files, have not changed."""

    def marked(path: Path | None, file: str, before: FileMark | None) -> FileMark:
        if path is not None:
            with open_checkpoint(path, layout=study.recipe.layout) as checkpoint:
                return FileMark(file, library.fingerprint(checkpoint))
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
    """Return the earlier statistics of these sources; None if they are of other files, blocks or shapes."""
    recipe = study.recipe
    alike = (earlier.layout.name, earlier.mapping, earlier.base) == (recipe.layout.name, recipe.mapping, study.base)
    same = earlier.target.fingerprint == target.fingerprint and all(
        name in earlier.sources and earlier.sources[name].fingerprint == mark.fingerprint
        for name, mark in sources.items()
    )
    found = earlier.of_sources(tuple(sources)) if alike and same else None
    if found is None:
        return None
    # Under other alphas a tensor may count that was left out for its shape.
    contributing = _contributors(study, tuple(sources))
    left_out = [part for part in found.parts if part.other_shapes]
    counts = any(
        set(part.other_shapes) & contributing.of(part.block, (*part.holders, *part.other_shapes)) for part in left_out
    )
    return None if counts else found
