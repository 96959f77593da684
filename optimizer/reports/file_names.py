"""User-chosen names, with any characters, as parts of file names."""

import re
import unicodedata

__all__ = ["file_name_part"]


def file_name_part(name: str) -> str:
    """Return `name` as a part of a file name on any system: letters, digits, `_`, `.` and `-`, at most 40 of them."""
    safe = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name))
    return safe[:40].strip("-._") or "unnamed"
