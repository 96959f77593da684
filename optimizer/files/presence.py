"""Whether something is at a path, for names that a user or a stranger gave: what cannot be there is not there.

Python raises for a name that is longer than the file system has, for one with a NUL in it, and for what lies in a
folder that may not be looked into.
"""

from collections.abc import Callable
from pathlib import Path

__all__ = ["is_file", "is_folder", "is_there"]


def is_file(path: Path) -> bool:
    """Whether a file is there; devices, pipes and the like count as none."""
    return _answer(path.is_file)


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    return _answer(path.is_dir)


def is_there(path: Path) -> bool:
    """Whether anything is there."""
    return _answer(path.exists)


def _answer(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except (OSError, ValueError):
        return False
