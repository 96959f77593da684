"""Hidden temporary files and folders for unfinished output, and the removal of those left by killed processes.

Each has a lock file beside it, which its process holds while it runs. However the process ends, the system releases the
lock. The next command that writes to the folder takes the free locks and removes the files that belong to them. Files
of another machine in a shared folder are left alone, since its locks may not be visible here. No clock is involved.
"""

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["ABANDONED", "Temporary", "abandoned", "clear_abandoned", "host_name", "remove", "temporary_folder"]

_LOCK = ".lock"
# Suffix of folders that `new_files.undo_unfinished` must examine before they are removed.
ABANDONED = ".new"


def host_name() -> str:
    """Return this machine's name reduced to letters, digits, _ and -, at most 40 characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40] or "unknown"


class Temporary:
    """A new hidden path in `folder` that ends with `suffix`, reserved for this process until `close`.

    Abandoned files in the folder are removed first. Nothing is created at the path itself. If no lock can be taken, as
    in a folder that cannot be written to, the path is not reserved, and a file left there by a kill is never removed.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        clear_abandoned(folder)
        name = f".blockfit-{host_name()}-{os.getpid()}-{secrets.token_hex(8)}"
        self.path = folder / f"{name}{suffix}"
        self._lock: FileLock | None = None
        # A process that removes abandoned files may hold the lock for a moment.
        lock = FileLock(folder / f"{name}{_LOCK}", timeout=1, poll_interval=0.002, is_singleton=False)
        # Locking would create a missing folder.
        if folder.is_dir():
            with suppress(OSError, NotImplementedError, Timeout):
                lock.acquire()
                self._lock = lock

    def close(self) -> None:
        """Remove the file or folder at the path, and release the path."""
        remove(self.path)
        if self._lock is not None:
            _let_go(self._lock)
            self._lock = None


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder in `folder`; it is removed with its contents when the block ends.

    OSError is raised if the folder cannot be created.

    Args:
        folder: An existing folder.

    Yields:
        The path of the new folder.
    """
    temporary = Temporary(folder, "")
    try:
        temporary.path.mkdir()
        yield temporary.path
    finally:
        temporary.close()


def clear_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` left by ended processes of this machine."""
    for left in abandoned(folder):
        if not any(path.suffix == ABANDONED for path in left):
            for path in left:
                remove(path)


def abandoned(folder: Path) -> Iterator[list[Path]]:
    """Yield the paths that belong to each lock in `folder` whose process on this machine has ended.

    The lock is held during each step of the iteration, so no other process takes the paths. It is removed if no path is
    left after the step.

    Args:
        folder: The folder to search.

    Yields:
        The paths that belong to one lock.
    """
    try:
        with os.scandir(folder) as listing:
            entries = {entry.name: entry for entry in listing if entry.name.startswith(".blockfit-")}
    except OSError:
        return
    named = re.compile(rf"(\.blockfit-{re.escape(host_name())}-\d+-[0-9a-f]{{16}}){re.escape(_LOCK)}")
    for name, entry in sorted(entries.items()):
        if (match := named.fullmatch(name)) is None or not _is_plain(entry):
            continue
        lock = FileLock(entry.path, timeout=0, is_singleton=False)
        try:
            lock.acquire()
        except (OSError, NotImplementedError, Timeout):
            continue  # the process that holds it is alive
        left = [
            folder / sibling
            for sibling in entries
            if sibling != name and (sibling == match[1] or sibling.startswith(f"{match[1]}."))
        ]
        try:
            yield left
        finally:
            if any(map(os.path.lexists, left)):
                lock.release()
            else:
                _let_go(lock)


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry can be one of our locks: an empty regular file without another hard link."""
    with suppress(OSError):
        status = entry.stat(follow_symlinks=False)
        return entry.is_file(follow_symlinks=False) and status.st_size == 0 and status.st_nlink <= 1
    return False


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if possible; links are not followed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _let_go(lock: FileLock) -> None:
    # Remove it while it is held if the system allows that: a process waiting for it then creates a new one.
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
