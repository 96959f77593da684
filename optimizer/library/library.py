"""The library of checkpoints on this machine: folders, cached hashes and the receiver of progress."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.checkpoints import TensorSource
from optimizer.events import LOGGED, CallbackEvents, Events, Progress
from optimizer.library.fingerprints import HashCache, fingerprint, sha256
from optimizer.library.locations import find_models, locate, locate_given, locate_models, not_found

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
        """Return the checkpoint that a user names by path, name or hash; raise CheckpointError without one."""
        return locate_given(given, self.folders, hashes=self.hash_cache, progress=self.events.progress)

    def find_models(
        self, files: Mapping[str, str], beside: Path, *, named_in: Path | str = "recipe"
    ) -> tuple[dict[str, Path], list[str]]:
        """Return the paths of the `files` {name: file} that are found, and a line for each of the others."""
        hashes, progress = self.hash_cache, self.events.progress
        return find_models(files, beside, self.folders, named_in=named_in, hashes=hashes, progress=progress)

    def all_models(self, files: Mapping[str, str], beside: Path, *, named_in: Path | str = "recipe") -> dict[str, Path]:
        """Return the paths of all `files` {name: file}; raise CheckpointError with a line for each missing one."""
        hashes, progress = self.hash_cache, self.events.progress
        return locate_models(files, beside, self.folders, named_in=named_in, hashes=hashes, progress=progress)

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
