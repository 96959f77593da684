"""Open files, and the changes to them or to their paths while they are read.

On most systems a file in use may be deleted, replaced by another of the same name, written to, or truncated. Mapped
memory stays valid when the name goes or another file takes it. If the file itself is written to, mapped tensors change;
if it is truncated, reading them ends the process.
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
    """State that identifies a file, and changes when the file is written to.

    Attributes:
        size: Size in bytes.
        mtime_ns: Time of the last write, in nanoseconds.
        inode: Number of the file; 0 on Windows.
        ctime_ns: Time of the last change of contents, name or rights, in nanoseconds. No program can set it back; it is
            not compared.
    """

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, file: Path | int) -> "FileState":
        """Return the state of the file at a path or behind a descriptor, or raise OSError if it does not exist."""
        status = os.stat(file)  # noqa: PTH116 - takes descriptors too
        # Windows does not let another file replace an open one, and its inodes depend on the way they are asked for.
        # Its `st_ctime` is the time of creation.
        if sys.platform == "win32":
            return cls(status.st_size, status.st_mtime_ns, 0)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


class HeldFile:
    """The file at `path`, held open as long as this object exists; `state` is its state at opening.

    Raises OSError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self.state = FileState.of(self._descriptor)

    def check_intact(self) -> None:
        """Raise CheckpointError if the file was written to or truncated, wherever its path leads now."""
        # This takes a microsecond, so it runs before each read of a mapped tensor.
        if FileState.of(self._descriptor) != self.state:
            raise CheckpointError(f"{self.path}: was changed while it was being read; run again")

    def change_since_open(self) -> str | None:
        """Return how the file at `path` changed since it was opened ("was deleted or moved"), or None."""
        if FileState.of(self._descriptor) != self.state:
            return "was changed"
        try:
            now = FileState.of(self.path)
        except OSError:
            return "was deleted or moved"
        return None if now == self.state else "was replaced by another file"
