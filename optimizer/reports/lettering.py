"""Names that users chose, as text in plots and in file names: whatever characters they hold."""

import re
import unicodedata

from matplotlib.figure import Figure
from matplotlib.text import Text

from optimizer.fonts import USUAL_FONT, families_with, missing_letters

__all__ = ["file_name_part", "label", "set_fonts"]

_UNKNOWN = "\ufffd"


def label(name: str, limit: int = 48) -> str:
    """`name` for a plot: its middle cut out beyond `limit` letters, `$` meaning a dollar.

    Line ends and control characters become spaces, letters that no font of this machine has U+FFFD.
    """
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(shown) > limit:
        tail = (limit - 1) // 2
        shown = f"{shown[: limit - 1 - tail]}…{shown[-tail:]}"
    _, unknown = families_with(missing_letters(shown))
    return "".join(_UNKNOWN if letter in unknown else letter for letter in shown).replace("$", r"\$")


def file_name_part(name: str) -> str:
    """`name` as a part of a file name on any system: letters, digits, `_`, `.` and `-`, at most 40 of them."""
    safe = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name))
    return safe[:40].strip("-._") or "unnamed"


def set_fonts(figure: Figure) -> None:
    """Give the figure's texts fonts of this machine that have their letters; call it once the figure is complete."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    missing = frozenset[str]().union(*(missing_letters(text.get_text()) for text in texts))
    families, _ = families_with(missing)
    if families:
        for text in texts:
            text.set_fontfamily([USUAL_FONT, *families])
