"""Files that are either written completely or not at all.

The content goes to a hidden temporary file in the target's folder, is flushed to disk, and then replaces the target in
one step. If anything fails before that step, an existing target is unchanged and the temporary file is removed. The
next write to the folder removes temporary files left by killed processes.
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

# No space left, quota exceeded, or larger than the file system or the process's limit allows.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block succeeds.

        with atomic_path(Path("plot.png")) as temporary:
            figure.savefig(temporary)

    If `path` is a symbolic link, the link stays and its target is replaced; in the folder of a study it is refused (see
    `check_output`). InputError is raised if the folder is missing or not writable, the disk becomes full, or the old
    file cannot be replaced; other errors of the block pass through. In every case an existing file at `path` is
    unchanged.

    Args:
        path: The file to write.

    Yields:
        The temporary path, with the suffix of `path`.
    """
    path = Path(path)
    with replacing(path, suffix=path.suffix, error=InputError, needed=None) as temporary:
        yield temporary


def check_writable(folder: Path) -> None:
    """Raise InputError if no file can be created in `folder`; call this before producing output.

    Args:
        folder: An existing folder.

    Raises:
        InputError: The folder cannot be written to.
    """
    # Only an attempt gives the right answer for every kind of disk, network share and access list.
    probe = Temporary(Path(folder), "")
    try:
        probe.path.touch(exist_ok=False)
    except OSError as error:
        raise InputError(
            f"{folder}: the folder cannot be written to ({error.strerror}); copy its contents to a writable folder"
        ) from error
    finally:
        probe.close()


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all, without changing its line ends.

    InputError is raised as by `atomic_path`.

    Args:
        path: The file to write.
        text: The new content.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


@contextmanager
def replacing(path: Path, *, suffix: str, error: type[InputError], needed: int | None) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block succeeds, as `atomic_path` does.

    Args:
        path: The file to write.
        suffix: The suffix of the temporary path.
        error: The type in which problems are raised.
        needed: The number of bytes that will be written; the disk must have as many free. None if it is unknown.

    Yields:
        The temporary path.

    Raises:
        OSError: An error of the block that no message covers.
    """
    try:
        check_output(path)
    except InputError as refused:
        raise error(refused.problems) from None
    # The temporary file must be on the disk of the real file, for the replacement to be a single step.
    target = Path(os.path.realpath(path))
    folder = target.parent
    if not os.path.isdir(folder):
        raise error(f"{path}: the folder {folder} does not exist; create it first")
    if os.path.isdir(target):
        raise error(f"{path}: a folder of this name exists; give a file name")
    try:
        intact = "; the old file is intact" if target.exists() else ""
    except OSError as problem:  # an impossible name; found before the content is written to the temporary file
        raise error(f"{path}: cannot be written: {problem.strerror}") from None
    if needed is not None and shutil.disk_usage(folder).free < needed:
        raise error(_disk_full(path, folder, needed) + intact)
    reserved = Temporary(folder, suffix)
    temporary = reserved.path
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
        reserved.close()


def _disk_full(path: Path, folder: Path, needed: int | None) -> str:
    free = f"{shutil.disk_usage(folder).free:,}"
    room = f"{free} bytes are free" if needed is None else f"{needed:,} bytes are needed, {free} are free"
    return f"{path}: the disk is full or the file too large for it: {room}"


def _sync_folder(folder: Path) -> None:
    # The renaming itself then survives a power cut; Windows cannot open folders.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
