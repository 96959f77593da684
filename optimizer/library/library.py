"""The checkpoints on this machine: the folders to look in, the hashes that are known, and who hears of progress."""

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
    """Where checkpoints are looked for, by name or by hash.

    Attributes:
        folders: folders that are looked into and below, in this order.
        hash_cache: keeps the hashes of files from call to call; None computes them each time.
        events: told what is read while a file is found by its hash.

    """

    folders: tuple[Path, ...] = ()
    hash_cache: HashCache | None = None
    events: Events = LOGGED

    @classmethod
    def of(
        cls, folders: Iterable[Path | str] = (), hash_cache: HashCache | None = None, progress: Progress | None = None
    ) -> "Library":
        """Return the library of these folders, which reports to `progress` if there is one."""
        events = LOGGED if progress is None else CallbackEvents(progress=progress)
        return cls(tuple(map(Path, folders)), hash_cache, events)

    def within(self, folders: Iterable[Path]) -> "Library":
        """Return the same library over other folders."""
        return replace(self, folders=tuple(folders))

    def find(self, file: str, beside: Path = Path()) -> Path | None:
        """Return the checkpoint `file`, a name or a hash, in the folder `beside` or in the library; None if nowhere.

        Raises CheckpointError as `locate` does.
        """
        return locate(file, beside, self.folders, hashes=self.hash_cache, progress=self.events.progress)

    def find_given(self, given: Path) -> Path:
        """Return the checkpoint that a user names by path, name or hash. Raises CheckpointError if there is none."""
        return locate_given(given, self.folders, hashes=self.hash_cache, progress=self.events.progress)

    def find_models(
        self, files: Mapping[str, str], beside: Path, *, named_in: Path | str = "recipe"
    ) -> tuple[dict[str, Path], list[str]]:
        """Return the paths of those of `files` {name: file} that are found, and a line for each of the others."""
        hashes, progress = self.hash_cache, self.events.progress
        return find_models(files, beside, self.folders, named_in=named_in, hashes=hashes, progress=progress)

    def all_models(self, files: Mapping[str, str], beside: Path, *, named_in: Path | str = "recipe") -> dict[str, Path]:
        """Return the paths of all `files` {name: file}. Raises CheckpointError with a line for each that is missing."""
        hashes, progress = self.hash_cache, self.events.progress
        return locate_models(files, beside, self.folders, named_in=named_in, hashes=hashes, progress=progress)

    def not_found(self, file: str, beside: Path = Path()) -> str:
        """Return what to say of a `file` that `find` finds nowhere: names that are near, and where was looked."""
        return not_found(file, beside, self.folders)

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, 64 hexadecimal digits. Raises CheckpointError if it cannot be read."""

        def tell(done: int, total: int) -> None:
            self.events.progress(f"hashing {path.name}", done, total)

        return sha256(path, self.hash_cache, progress=tell)

    def fingerprint(self, checkpoint: TensorSource) -> str:
        """Return the identity of an open checkpoint's tensors, 64 hexadecimal digits."""
        return fingerprint(checkpoint, self.hash_cache)
