"""Names that users chose, as text in plots and in file names: whatever characters they hold."""

import re
import unicodedata
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

__all__ = ["file_name_part", "label", "set_fonts"]

# Comes with matplotlib, so it is there on every machine.
_FONT = "DejaVu Sans"
_UNKNOWN = "\ufffd"


def label(name: str, limit: int = 48) -> str:
    """`name` for a plot: its middle cut out beyond `limit` letters, `$` meaning a dollar.

    Line ends and control characters become spaces, letters that no font of this machine has U+FFFD.
    """
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(shown) > limit:
        tail = (limit - 1) // 2
        shown = f"{shown[: limit - 1 - tail]}…{shown[-tail:]}"
    _, unknown = _families_with(_missing(shown))
    return "".join(_UNKNOWN if letter in unknown else letter for letter in shown).replace("$", r"\$")


def file_name_part(name: str) -> str:
    """`name` as a part of a file name on any system: letters, digits, `_`, `.` and `-`, at most 40 of them."""
    safe = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name))
    return safe[:40].strip("-._") or "unnamed"


def set_fonts(figure: Figure) -> None:
    """Give the figure's texts fonts of this machine that have their letters; call it once the figure is complete."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    families, _ = _families_with(frozenset[str]().union(*(_missing(text.get_text()) for text in texts)))
    if families:
        for text in texts:
            text.set_fontfamily([_FONT, *families])


def _missing(text: str) -> frozenset[str]:
    """The letters that the usual font lacks."""
    return frozenset(letter for letter in text if not letter.isspace()) - _letters(_FONT)


@cache
def _families_with(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed font families that have these letters between them, and the letters that none of them has."""
    families: list[str] = []
    # Only upright fonts of usual weight and width: matplotlib complains where a family lacks these.
    usual = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.weight, entry.stretch) == ("normal", 400, "normal")
    }
    for family in sorted(usual) if letters else ():
        # "Last Resort" draws a box for any letter.
        found = letters & _letters(family) if not family.startswith("Last Resort") else frozenset()
        if found:
            families.append(family)
            letters -= found
    return tuple(families), letters


@cache
def _letters(family: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(font_manager.findfont(family)).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        # A font file that was removed, or that cannot be read.
        return frozenset()
