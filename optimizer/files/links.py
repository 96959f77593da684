"""Protection from links in the folder of a study: no file outside it is changed by writing into it.

The folder may come from a stranger and may contain a link with the name of a future result. Such a link could lead to a
shell's start-up file or to somebody's checkpoints. Input files may be links, since many people link their models.
Output must be inside the folder itself, and is otherwise refused before any work.

A hard link is a second name of a file. Replacing the file leaves the second name alone; writing into it does not.
"""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from optimizer.errors import InputError

__all__ = ["DATABASE", "check_output", "open_in_place", "refuse_links", "study_folder_of"]

DATABASE = "study.db"
# Either file marks the folder of a study.
_MARKS = ("study.yaml", DATABASE)
# This bit of a Windows reparse tag is set for links and junctions, and clear for files that OneDrive has yet to fetch.
_STANDS_FOR_ANOTHER = 0x20000000
# Neither follow a link nor wait for a pipe.
_IN_PLACE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def refuse_links(
    folder: Path,
    *,
    replaced: Iterable[Path] = (),
    opened: Iterable[Path] = (),
    folders: Iterable[Path] = (),
) -> None:
    """Raise InputError if writing at one of these paths would change a file outside `folder`.

    None of the paths need exist.

    Args:
        folder: The folder that contains all paths; it may itself be a link.
        replaced: Files that will be replaced by new ones.
        opened: Files that are modified in place, such as logs, databases and locks.
        folders: Folders in which files will be created.

    Raises:
        InputError: A path is or leads through a link; one line for each link.
    """
    problems: dict[Path, str] = {}
    for path in replaced:
        problems |= _link_below(folder, path, "file")
    for path in opened:
        problems |= _link_below(folder, path, "file") or _another_name(path)
    for path in folders:
        problems |= _link_below(folder, path, "folder")
    if problems:
        raise InputError(problems.values())


def check_output(output: Path, *, beside: Path | None = None, opened: bool = False) -> None:
    """Raise InputError if an output in the folder of a study is a link or is reached through one.

    Outside such folders links are the user's own and are followed.

    Args:
        output: The file to be written.
        beside: The input of the work, such as a recipe. Its folder counts as a study's, because the author of the input
            may have put a link where the result will be.
        opened: Whether the output is modified in place instead of being replaced.
    """
    output = _absolute(output)
    folder = study_folder_of(output)
    if folder is None and beside is not None and _absolute(beside).parent == output.parent:
        folder = output.parent
    if folder is not None:
        refuse_links(folder, **{"opened" if opened else "replaced": [output]})


def study_folder_of(path: Path) -> Path | None:
    """Return the folder of the study that contains `path`, by its absolute path; None if `path` is in no study."""
    return next((folder for folder in _absolute(path).parents if _is_marked(folder)), None)


def open_in_place(path: str | Path, flags: int) -> int:
    """Open a file that is modified in place; an `opener` for `open`.

    Args:
        path: The file.
        flags: Flags of `os.open`.

    Returns:
        The file descriptor.

    Raises:
        OSError: The file is a link, has a second name, or is no regular file. This catches links created after a check
            by `refuse_links`.
    """
    descriptor = os.open(path, flags | _IN_PLACE, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or _is_link(Path(path)):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "is a link, or another file's second name")
    return descriptor


def _link_below(folder: Path, path: Path, kind: str) -> dict[Path, str]:
    """Return the problem of the first link on the way from `folder` to `path`, by its place; nothing without a link."""
    here = folder
    parts = path.relative_to(folder).parts
    for place, part in enumerate(parts, start=1):
        here = here / part
        if _is_link(here):
            expected = kind if place == len(parts) else "folder"
            return {
                here: f"{here}: is a symbolic link to {_target(here)}; a study's files are written into its own folder "
                f"only: replace it with a {expected}"
            }
    return {}


def _another_name(path: Path) -> dict[Path, str]:
    """Return the problem of a file that cannot be modified without changing another one, by its path."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return {}
    if stat.S_ISDIR(status.st_mode):  # opening it raises an error of its own
        return {}
    if not stat.S_ISREG(status.st_mode):
        return {path: f"{path}: is a pipe or a device; a study's files are written into its own folder only: remove it"}
    if status.st_nlink > 1:
        return {
            path: f"{path}: is a hard link, one of {status.st_nlink} names of one file; a study's files are written "
            "into its own folder only: replace it with a copy"
        }
    return {}


def _is_link(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except (OSError, ValueError):  # a missing file, or an impossible name
        return False
    # Python counts a junction as a folder.
    return stat.S_ISLNK(status.st_mode) or bool(getattr(status, "st_reparse_tag", 0) & _STANDS_FOR_ANOTHER)


def _target(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - Path would tidy it up
    except OSError:
        return "another place"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow the links


def _is_marked(folder: Path) -> bool:
    return any(os.path.lexists(folder / mark) for mark in _MARKS)
