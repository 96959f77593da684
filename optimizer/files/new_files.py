"""Groups of new files that belong together: a kill between two of them does not hinder the next attempt."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from optimizer.errors import InputError
from optimizer.files.atomic import replace_text
from optimizer.files.temporaries import ABANDONED, Temporary, abandoned, remove

__all__ = ["undo_unfinished", "write_new_files"]

# This file exists until all others are in place.
_MARK = "unfinished"


def write_new_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write several new files into `folder`, creating the folder if it is missing.

    Until all files are in place, a hidden folder beside them holds copies. By these `undo_unfinished` recognises the
    files of a killed process.

    Args:
        folder: The folder to write to.
        texts: {file name: content}; the files are encoded as UTF-8.

    Raises:
        InputError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    copies = Temporary(folder, ABANDONED)
    try:
        with suppress(OSError):  # writing the files themselves raises the same error with its reason
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
    """Remove the files of a `write_new_files` in `folder` that was killed before all files were in place.

    Nothing is removed if a file was changed since then, or if all files are in place.

    Args:
        folder: The folder that the files were written to.
    """
    for left in abandoned(folder):
        copies = next((path for path in left if path.suffix == ABANDONED), None)
        with suppress(OSError):
            if copies is not None and (copies / _MARK).is_file():
                written = {path.name: path.read_bytes() for path in copies.iterdir() if path.name != _MARK}
                existing = [name for name in written if os.path.lexists(folder / name)]
                unmodified = [name for name in existing if _has_bytes(folder / name, written[name])]
                if len(existing) < len(written) and unmodified == existing:
                    for name in existing:
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
