"""Files that are either written completely or not at all.

Everything goes to a hidden temporary file in the target's own folder, reaches the disk, and then takes the target's
place in one step. Whatever fails before that step leaves an existing target as it was, and no temporary file behind.
What a kill leaves behind, the next writing to that folder removes.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optimizer.errors import InputError
from optimizer.files.links import check_output
from optimizer.files.temporaries import Temporary

__all__ = ["atomic_path", "check_writable", "replace_text", "replacing"]

# No space, quota used up, or larger than this file system (or the process's limit) lets a file be.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path, with the suffix of `path`, to write to; it replaces `path` when the block succeeds.

    A symbolic link stays, and what it leads to is replaced; in the folder of a study it is refused (`check_output`).

    Raises InputError if the folder is missing or not writable, the disk becomes full, or the old file cannot be
    replaced; other errors of the block pass through. In every case an existing file at `path` is untouched.

        with atomic_path(Path("plot.png")) as temporary:
            figure.savefig(temporary)
    """
    path = Path(path)
    with replacing(path, suffix=path.suffix, error=InputError, needed=None) as temporary:
        yield temporary


def check_writable(folder: Path) -> None:
    """Raise InputError if no file can be made in `folder`, so that it is known before there is anything to write."""
    # Trying is the only way to know that holds for every kind of disk, share and access list.
    probe = Temporary(Path(folder), "")
    try:
        probe.path.touch(exist_ok=False)
    except OSError as error:
        raise InputError(
            f"{folder}: the folder cannot be written to ({error.strerror}); copy what is in it to one that can be"
        ) from error
    finally:
        probe.close()


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, its line ends as given, or not at all. Raises as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


@contextmanager
def replacing(path: Path, *, suffix: str, error: type[InputError], needed: int | None) -> Iterator[Path]:
    # A link is followed, but for one in a study's folder: its target is what gets replaced, in the folder (and on the
    """Give a temporary path that replaces `path` when the block succeeds; problems are raised as `error`.

    `needed` are the bytes that will be written, as far as they are known: then there must be room for them.
    """
    # disk) where it really lies.
    try:
        check_output(path)
    except InputError as refused:
        raise error(refused.problems) from None
    target = Path(os.path.realpath(path))
    folder = target.parent
    if not os.path.isdir(folder):
        raise error(f"{path}: the folder {folder} does not exist; create it first")
    if os.path.isdir(target):
        raise error(f"{path}: a folder of this name exists; give a file name")
    try:
        intact = "; the old file is intact" if target.exists() else ""
    except OSError as problem:  # no file can have this name: told before all is written under another
        raise error(f"{path}: cannot be written: {problem.strerror}") from None
    if needed is not None and shutil.disk_usage(folder).free < needed:
        raise error(_disk_full(path, folder, needed) + intact)
    claimed = Temporary(folder, suffix)
    temporary = claimed.path
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        if target.exists():
            with suppress(OSError):
                shutil.copymode(target, temporary)
        try:
            temporary.replace(target)
        except PermissionError as failure:
            raise error(
                f"{path}: cannot be replaced ({failure.strerror}): it is write-protected, or another program "
                f"has it open; close that program and try again{intact}"
            ) from failure
        _sync_folder(folder)
    except OSError as failure:
        if failure.errno in _DISK_FULL:
            raise error(_disk_full(path, folder, needed) + intact) from failure
        if failure.errno in _NOT_ALLOWED and str(failure.filename) == str(temporary):
            raise error(f"{path}: the folder {folder} cannot be written to ({failure.strerror})") from failure
        raise
    finally:
        claimed.close()


def _disk_full(path: Path, folder: Path, needed: int | None) -> str:
    free = f"{shutil.disk_usage(folder).free:,}"
    room = f"{free} bytes are free" if needed is None else f"{needed:,} bytes are needed, {free} are free"
    return f"{path}: the disk is full or the file too large for it: {room}"


def _sync_folder(folder: Path) -> None:
    # Makes the renaming itself survive a power cut, where folders can be opened (not on Windows).
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
