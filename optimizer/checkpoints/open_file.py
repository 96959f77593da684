"""Files that stay open: what happens to them, or at their path, while something reads them.

On most systems a file that is in use may be deleted, replaced by another of the same name, written to, or cut short.
What was mapped into memory stays as it was when its name goes or another file takes it; but if the file itself is
written to, its mapped tensors change, and if it is cut short, reading them ends the process.
"""

import os
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.errors import CheckpointError

__all__ = ["FileState", "HeldFile"]


@dataclass(frozen=True)
class FileState:
    """What tells a file from another one, and from itself after it was written to.

    `ctime_ns` is when its contents, name or rights changed last, which no program can set back; it is not compared.
    """

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, file: Path | int) -> "FileState":
        """The state of the file at a path or behind a descriptor. Raises OSError if there is none."""
        status = os.stat(file)  # noqa: PTH116 - takes descriptors too
        # Windows lets nobody take the place of an open file, and gives inodes that depend on how they are asked for;
        # what it calls by this name is when the file was created.
        if sys.platform == "win32":
            return cls(status.st_size, status.st_mtime_ns, 0)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


class HeldFile:
    """The file at `path`, held open until this object is gone; `state` is what it was like at first.

    Raises OSError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self.state = FileState.of(self._descriptor)

    def check_intact(self) -> None:
        """Raise CheckpointError if the file was written to or cut short, whatever its path leads to now."""
        # It takes a microsecond, so it is done before every tensor that is read from a mapped file.
        if FileState.of(self._descriptor) != self.state:
            raise CheckpointError(f"{self.path}: was changed while it was being read; run again")

    def fate(self) -> str | None:
        """What became of the file at `path`, "was ..."; None if it is there as it was."""
        if FileState.of(self._descriptor) != self.state:
            return "was changed"
        try:
            now = FileState.of(self.path)
        except OSError:
            return "was deleted or moved"
        return None if now == self.state else "was replaced by another file"
