"""Links in the folder of a study, which may be a stranger's: no file is written through one.

A folder that somebody gives away may hold a link of the name that a result will have, and it leads where that person
likes: to a shell's start-up file, to somebody's checkpoints. What is read may be a link, as people link their models.
What is written lies in the folder itself, or it is refused before any work.

A hard link is another name of one file. Replacing the file leaves the other name alone; writing into it does not.
"""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from optimizer.errors import InputError

__all__ = ["DATABASE", "check_output", "open_in_place", "refuse_links", "study_folder_of"]

DATABASE = "study.db"
# What tells that a folder is a study's.
_MARKS = ("study.yaml", DATABASE)
# The bit of a Windows reparse tag that is set if the file stands for another one: links and junctions, not files that
# OneDrive has yet to fetch.
_STANDS_FOR_ANOTHER = 0x20000000
# A link is not followed, a pipe not waited for.
_IN_PLACE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def refuse_links(
    folder: Path,
    *,
    replaced: Iterable[Path] = (),
    opened: Iterable[Path] = (),
    folders: Iterable[Path] = (),
) -> None:
    """Raise InputError, a line for each, for paths below `folder` at which writing would change a file elsewhere.

    `replaced` are files that a new one takes the place of; `opened` those that are written into as they stand, such as
    logs, databases and locks; `folders` those that files are written into. None of them need exist. `folder` itself may
    be a link.
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
    """Raise InputError if a link leads away from an output in the folder of a study, or that of the file `beside`.

    `beside` is what the work starts from, such as a recipe: who wrote it may have put a link where its result will
    lie. `opened`: the output is written into as it stands, and not replaced. Elsewhere links are the user's own, and
    are followed.
    """
    output = _absolute(output)
    folder = study_folder_of(output)
    if folder is None and beside is not None and _absolute(beside).parent == output.parent:
        folder = output.parent
    if folder is not None:
        refuse_links(folder, **{"opened" if opened else "replaced": [output]})


def study_folder_of(path: Path) -> Path | None:
    """The folder of the study that `path` lies in, as its absolute path names it; None if it lies in none."""
    return next((folder for folder in _absolute(path).parents if _is_marked(folder)), None)


def open_in_place(path: str | Path, flags: int) -> int:
    """Open a file that is written into as it stands, and give its descriptor; an `opener` for `open`.

    Raises OSError if a link, or a file that has another name as well, has come there since it was looked at.
    """
    descriptor = os.open(path, flags | _IN_PLACE, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or _is_link(Path(path)):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "is a link, or another file's second name")
    return descriptor


def _link_below(folder: Path, path: Path, kind: str) -> dict[Path, str]:
    """The problem of the first link on the way from `folder` to `path`, if there is one, by where it is."""
    here = folder
    parts = path.relative_to(folder).parts
    for place, part in enumerate(parts, start=1):
        here = here / part
        if _is_link(here):
            what = kind if place == len(parts) else "folder"
            return {
                here: f"{here}: is a symbolic link to {_target(here)}; a study's files are written into its own folder "
                f"only: replace it by a {what}"
            }
    return {}


def _another_name(path: Path) -> dict[Path, str]:
    """The problem of a file that cannot be written into without changing another, by where it is."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return {}
    if stat.S_ISDIR(status.st_mode):  # who opens it says so
        return {}
    if not stat.S_ISREG(status.st_mode):
        return {path: f"{path}: is a pipe or a device; a study's files are written into its own folder only: remove it"}
    if status.st_nlink > 1:
        return {
            path: f"{path}: is a hard link, one of {status.st_nlink} names of one file; a study's files are written "
            "into its own folder only: replace it by a copy"
        }
    return {}


def _is_link(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except (OSError, ValueError):  # nothing is there, or nothing can be
        return False
    # A junction is a folder to Python.
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
