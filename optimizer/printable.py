"""Text from files, made safe to show in a terminal, a log or a table.

Names and metadata in files are untrusted: an escape sequence in one could control the terminal, and a line break
could imitate a separate message.
"""

import re
import unicodedata
from pathlib import PurePath

__all__ = ["printable", "quoted", "unprintable"]


def unprintable(text: str) -> str | None:
    """Return the first unprintable character of `text`, such as ESC, a line break or a lone surrogate, if any."""
    if text.isprintable():
        return None
    return next((letter for letter in text if not _is_shown(letter)), None)


def printable(text: str) -> str:
    r"""Return `text` on one line, with unprintable characters escaped as in Python: `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(letter if _is_shown(letter) else _escaped(letter) for letter in text)


def quoted(word: PurePath | str) -> str:
    """Return a path or another word as it can be typed after a command in any shell."""
    return f'"{word}"' if re.search(r"[^\w@%+=:,./\\~-]", str(word)) else str(word)


def _is_shown(letter: str) -> bool:
    # Python counts every space except U+0020 as unprintable, but Japanese file names contain wide spaces. The two
    # joiners occur in Persian and Indic words and in emoji. Letters newer than Python's tables are shown as well.
    return letter.isprintable() or letter in "\u200c\u200d" or unicodedata.category(letter) in ("Zs", "Cn", "Co")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
