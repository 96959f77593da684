"""Texts without the folders of the machine that wrote them, since a page may be given away."""

import re
from pathlib import PurePath

__all__ = ["address_without_folders", "file_name", "without_folders"]

# Folders of an absolute path: of Windows (C:\, \\server\), or below / on other systems. Addresses (https://) are none.
_FOLDERS = re.compile(
    r"""(?<![\w./\\:-])(?:[A-Za-z]:[\\/]|\\\\)(?:[^\\/:*?"'<>|\n]+[\\/])*|(?<![\w./\\:-])/(?:[^/"'<>|:,;\n]+/)+"""
)
_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|[\\/]|~")


def file_name(file: str) -> str:
    """Return a file as a recipe names it; of an absolute path only its name."""
    return re.split(r"[\\/]", file.rstrip("\\/"))[-1] if _ABSOLUTE.match(file) else file


def address_without_folders(storage: str) -> str:
    """Return the address of a storage; of a file's absolute path only its name."""
    found = re.match(r"sqlite[^:/]*:///|journal:", storage)
    return storage if found is None else found[0] + file_name(storage[found.end() :])


def without_folders(text: str, folder: PurePath, shown: PurePath) -> str:
    """Return a text in which no absolute path shows its folders.

    Args:
        text: The text.
        folder: The study's folder.
        shown: The study's folder as the user typed it, which replaces it.

    Returns:
        The text. Of paths elsewhere only the file's name is left.
    """
    if folder.name:  # else the study's folder is the current one, ".", or a whole disk
        start = rf"(?<![\w./\\-]){re.escape(str(folder))}"
        text = re.sub(start + r"(?=[/\\:;,\s]|$)", lambda _: str(shown), text)
    return _FOLDERS.sub("", text)
