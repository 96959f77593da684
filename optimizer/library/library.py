"""The library of checkpoints on this machine: folders, cached hashes and the receiver of progress."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from optimizer.checkpoints import TensorSource
from optimizer.errors import BlockfitWarning, CheckpointError
from optimizer.events import LOGGED, CallbackEvents, Events, ProgressOption
from optimizer.library.fingerprints import HashCache, fingerprint, legacy_hash, sha256, short_hash
from optimizer.library.locations import (
    all_named,
    checkpoints_below,
    checkpoints_in,
    distinct,
    given_not_found,
    name_and_digits,
    named,
    not_found,
    slashed,
)

__all__ = ["Library"]

# The lengths of a hash of the WebUI from before 2023, and of the part of a SHA-256 that people quote.
_LEGACY, _SHORT = 8, 10
_SAMPLE = 1 << 16  # bytes


@dataclass(frozen=True)
class Library:
    """A library of checkpoints that are found by name or by hash.

    Attributes:
        folders: The folders to search, with all folders below, in this order.
        hash_cache: A cache of hashes; None computes them each time.
        events: The receiver of progress while files are hashed.
    """

    folders: tuple[Path, ...] = ()
    hash_cache: HashCache | None = None
    events: Events = LOGGED

    @classmethod
    def of(
        cls, folders: Iterable[Path | str] = (), hash_cache: HashCache | None = None, progress: ProgressOption = None
    ) -> "Library":
        """Return the library of these folders, which reports to `progress` if given."""
        return cls(tuple(map(Path, folders)), hash_cache, CallbackEvents.of(progress))

    def within(self, folders: Iterable[Path]) -> "Library":
        """Return the same library over other folders."""
        return replace(self, folders=tuple(folders))

    def find(self, file: str, beside: Path = Path()) -> Path | None:
        """Return the path of a checkpoint that is named by file name, by hash, or by both.

        A file with exactly the name `file` has precedence over a hash. The WebUI's old hash of 8 digits is accepted
        with a warning if only one file has it. Files whose hash is not cached are read: those of the name if one is
        given, else one after the other until one fits. Unreadable ones are then skipped. Several files of one name
        count as one if they are equal byte for byte; their sizes, some of their bytes and finally their hashes are
        compared.

        Args:
            file: The name, perhaps without extension; the hash, the first 10 digits of the file's SHA-256 or all 64,
                with or without brackets; or both, as in `name [a60cfaa90d]`.
            beside: The folder to search first, without the folders below.

        Returns:
            The path; None if no file fits.

        Raises:
            CheckpointError: Several different files fit, or the file of that name has another hash.
        """
        found = named(file, beside, self.folders)
        if not found and (reference := name_and_digits(file)) is not None:
            name, digits = reference
            return _with_hash(name, digits, beside, self)
        if len(found) > 1 and len(found := _different(found, self)) > 1:
            listed = ", ".join(map(str, found))
            raise CheckpointError(
                f"{file!r}: {len(found)} files have this name: {listed}; name the folder too, or the hash "
                f"({Path(slashed(file)).stem} [0123456789])"
            )
        return found[0] if found else None

    def find_given(self, given: Path) -> Path:
        """Return the path of a checkpoint that a user names.

        A folder with the name does not hide a file in `folders`, since a study's folder is named like its target. If no
        such file exists the folder itself is returned: opening it gives a better message.

        Args:
            given: The path, name or hash.

        Returns:
            The path.

        Raises:
            CheckpointError: No file fits.
        """
        if os.path.exists(given) and not os.path.isdir(given):
            return given
        found = self.find(str(given))
        if found is None and os.path.isdir(given):
            return given
        if found is None:
            raise CheckpointError(given_not_found(given, self.folders))
        return found

    def find_models(
        self, files: Mapping[str, str], beside: Path, *, named_in: Path | str = "recipe"
    ) -> tuple[dict[str, Path], list[str]]:
        """Return the paths of the files that `find` finds, and a line for each of the others.

        Args:
            files: The files by model name.
            beside: The folder to search first, without the folders below.
            named_in: The place where the files are named, for messages.

        Returns:
            The paths by model name, and the lines.
        """
        found: dict[str, Path] = {}
        problems = list[str]()
        for name, file in files.items():
            where = f"{named_in}: models.{name}.file"
            try:
                path = self.find(file, beside)
            except CheckpointError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
                continue
            if path is None:
                more = "" if self.folders else "; `folders=[DIR]` names more folders"
                problems.append(f"{where}: {self.not_found(file, beside)}{more}")
            else:
                found[name] = path
        return found, problems

    def all_models(self, files: Mapping[str, str], beside: Path, *, named_in: Path | str = "recipe") -> dict[str, Path]:
        """Return the paths that `find_models` finds; raise CheckpointError with a line for each of the others."""
        found, problems = self.find_models(files, beside, named_in=named_in)
        if problems:
            raise CheckpointError(problems)
        return found

    def not_found(self, file: str, beside: Path = Path()) -> str:
        """Return the message for a file that `find` does not find: similar names, and the folders searched."""
        return not_found(file, beside, self.folders)

    def known_sha256(self, path: Path) -> str | None:
        """Return the SHA-256 of a file if it is cached, 64 hexadecimal digits, else None; read no file."""
        return None if self.hash_cache is None else self.hash_cache.look_up(path, "sha256")

    def sha256(self, path: Path, title: str | None = None) -> str:
        """Return the SHA-256 of a file; cached hashes need no reading.

        Raises CheckpointError if the file cannot be read.

        Args:
            path: The file.
            title: The title of the progress. Default: "hashing" and the file's name.

        Returns:
            64 hexadecimal digits.
        """
        title = f"hashing {path.name}" if title is None else title
        return sha256(path, self.hash_cache, progress=partial(self.events.progress, title))

    def fingerprint(self, checkpoint: TensorSource) -> str:
        """Return the identity of an open checkpoint's tensors, 64 hexadecimal digits."""
        return fingerprint(checkpoint, self.hash_cache)


def _with_hash(name: str, digits: str, beside: Path, library: Library) -> Path | None:
    """Return the file with a hash among those called `name`, or among all files if none has the name."""
    having_name = all_named(name, beside, library.folders) if name else []
    candidates = having_name or distinct(
        [*checkpoints_in(beside), *(path for folder in library.folders for path in checkpoints_below(folder))]
    )
    if len(digits) == _LEGACY:
        return _with_legacy_hash(digits, candidates, library, by_name=bool(having_name))
    # Cached hashes find renamed files too, so that most searches read nothing.
    known = {path: library.known_sha256(path) for path in candidates}
    for path, digest in known.items():
        if digest is not None and digest.startswith(digits):
            return path
    unknown = [path for path, digest in known.items() if digest is None]
    sizes = {path: _size(path) for path in unknown}
    total, done = sum(sizes.values()), 0
    unreadable: list[str] = []
    for path in unknown:

        def report(read: int, size: int, *, before: int = done) -> None:
            library.events.progress(f"hashing to find {digits[:_SHORT]}", min(before + read, total), total)

        try:
            known[path] = digest = sha256(path, library.hash_cache, progress=report)
        except CheckpointError as error:
            unreadable += error.problems
            continue
        if digest.startswith(digits):
            return path
        done += sizes[path]
    if having_name:
        cut = short_hash if len(digits) == _SHORT else str
        differing = (
            f"{path}: has the hash {cut(digest)}, not {digits}; another version of the model?"
            for path, digest in known.items()
            if digest is not None
        )
        raise CheckpointError([*differing, *unreadable])
    # Unreadable files are no problem here: the user did not name them.
    return None


def _with_legacy_hash(digits: str, candidates: Sequence[Path], library: Library, *, by_name: bool) -> Path | None:
    """Return the one file among the candidates with a hash of the WebUI from before 2023."""
    having: dict[Path, str] = {}
    unreadable: list[str] = []
    for path in candidates:
        try:
            having[path] = legacy_hash(path)
        except CheckpointError as error:
            unreadable += error.problems
    fitting = _different([path for path, found in having.items() if found == digits], library)
    if len(fitting) == 1:
        warnings.warn(
            f"{digits} is the WebUI's old hash, which different checkpoints may share; taken to be {fitting[0]}",
            BlockfitWarning,
            stacklevel=2,
        )
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"{digits!r}: {len(fitting)} files have this old hash: {', '.join(map(str, fitting))}; name the file, or "
            "the first 10 digits of its sha256"
        )
    if by_name:
        differing = (f"{path}: has the old hash {found}, not {digits}" for path, found in having.items())
        raise CheckpointError([*differing, *unreadable])
    return None


def _different(paths: Sequence[Path], library: Library) -> list[Path]:
    """Return `paths` without files that equal an earlier one.

    The cheapest test comes first: sizes, then some bytes, and only if these are equal the hashes.
    """
    alike: dict[object, list[Path]] = {}
    for path in paths:
        try:
            alike.setdefault(_sample(path), []).append(path)
        except OSError:
            alike[path] = [path]
    different: list[Path] = []
    for same in alike.values():
        first: dict[str, Path] = {}
        for path in same if len(same) > 1 else ():
            try:
                first.setdefault(library.sha256(path, f"comparing the files called {path.name}"), path)
            except CheckpointError:
                first[str(path)] = path
        different += first.values() if len(same) > 1 else same
    return [path for path in paths if path in different]


def _sample(path: Path) -> tuple[int, bytes]:
    """Return the size of a file and some bytes from its beginning, its middle and its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        read = b""
        for place in (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(place)
            read += file.read(_SAMPLE)
    return size, read


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # deleted meanwhile
        return 0
