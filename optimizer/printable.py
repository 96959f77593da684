"""Text out of files as a terminal, a log or a table may show it.

Names and metadata are what strangers put into files: an escape sequence in one could do anything to a terminal, and a
line break could pass for another message.
"""

import re
import unicodedata
from pathlib import PurePath

__all__ = ["printable", "quoted", "unprintable"]


def unprintable(text: str) -> str | None:
    """The first character of `text` that is no letter, sign or space, such as ESC, a line break or half a surrogate."""
    if text.isprintable():
        return None
    return next((letter for letter in text if not _is_shown(letter)), None)


def printable(text: str) -> str:
    r"""`text` on one line, what is no letter, sign or space escaped as Python does it: `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(letter if _is_shown(letter) else _escaped(letter) for letter in text)


def quoted(word: PurePath | str) -> str:
    """A path, or another word, as it can be typed after a command, in every shell."""
    return f'"{word}"' if re.search(r"[^\w@%+=:,./\\~-]", str(word)) else str(word)


def _is_shown(letter: str) -> bool:
    # Python calls every space but one unprintable; Japanese file names hold wide ones. The two joiners are part of
    # Persian and Indic words and of emoji. Letters newer than Python's tables may be shown, too.
    return letter.isprintable() or letter in "\u200c\u200d" or unicodedata.category(letter) in ("Zs", "Cn", "Co")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
