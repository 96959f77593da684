"""Several new files that belong together: a kill between them leaves nothing that is in the way of the next attempt."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from optimizer.errors import InputError
from optimizer.files.atomic import replace_text
from optimizer.files.temporaries import ABANDONED, Temporary, abandoned, remove

__all__ = ["undo_unfinished", "write_new_files"]

# This file exists until all of the others are in place.
_MARK = "unfinished"


def write_new_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write `texts` {file name: text} into `folder` as UTF-8; the folder is created if it is missing.

    Until all of them are in place, a hidden folder beside them holds copies, by which `undo_unfinished` recognises what
    a kill left behind. Raises InputError if the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    copies = Temporary(folder, ABANDONED)
    try:
        with suppress(OSError):  # writing the files themselves raises the same, with its reason
            copies.path.mkdir()
            for name, text in texts.items():
                _write_through(copies.path / name, text)
            _write_through(copies.path / _MARK, "")
        for name, text in texts.items():
            replace_text(folder / name, text)
        with suppress(OSError):
            (copies.path / _MARK).unlink()
    finally:
        copies.close()


def undo_unfinished(folder: Path) -> None:
    """Remove the files of a `write_new_files` in `folder` that was killed before all of them were in place.

    If one of them was changed since then, or all of them are in place, none is removed.
    """
    for left in abandoned(folder):
        copies = next((path for path in left if path.suffix == ABANDONED), None)
        with suppress(OSError):
            if copies is not None and (copies / _MARK).is_file():
                written = {path.name: path.read_bytes() for path in copies.iterdir() if path.name != _MARK}
                there = [name for name in written if os.path.lexists(folder / name)]
                same = [name for name in there if _has_bytes(folder / name, written[name])]
                if len(there) < len(written) and same == there:
                    for name in there:
                        (folder / name).unlink()
        for path in left:
            remove(path)


def _write_through(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _has_bytes(path: Path, content: bytes) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == content
