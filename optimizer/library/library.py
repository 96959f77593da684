"""The library of checkpoints on this machine: folders, cached hashes and the receiver of progress."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.checkpoints import TensorSource
from optimizer.errors import CheckpointError
from optimizer.events import LOGGED, CallbackEvents, Events, Progress
from optimizer.library.fingerprints import HashCache, fingerprint, sha256
from optimizer.library.locations import given_not_found, locate, not_found

__all__ = ["Library"]


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
        cls, folders: Iterable[Path | str] = (), hash_cache: HashCache | None = None, progress: Progress | None = None
    ) -> "Library":
        """Return the library of these folders, which reports to `progress` if given."""
        events = LOGGED if progress is None else CallbackEvents(progress=progress)
        return cls(tuple(map(Path, folders)), hash_cache, events)

    def within(self, folders: Iterable[Path]) -> "Library":
        """Return the same library over other folders."""
        return replace(self, folders=tuple(folders))

    def find(self, file: str, beside: Path = Path()) -> Path | None:
        """Return the path of a checkpoint that is named by file name or hash.

        Raises CheckpointError in the cases of `locate`.

        Args:
            file: The name or hash.
            beside: The folder to search first, without the folders below.

        Returns:
            The path; None if no file fits.
        """
        return locate(file, beside, self.folders, hashes=self.hash_cache, progress=self.events.progress)

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

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, 64 hexadecimal digits; raise CheckpointError if it cannot be read."""

        def report(done: int, total: int) -> None:
            self.events.progress(f"hashing {path.name}", done, total)

        return sha256(path, self.hash_cache, progress=report)

    def fingerprint(self, checkpoint: TensorSource) -> str:
        """Return the identity of an open checkpoint's tensors, 64 hexadecimal digits."""
        return fingerprint(checkpoint, self.hash_cache)
