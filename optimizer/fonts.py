"""Which fonts of this machine have the letters of a text that plots and sheets show: users choose names freely."""

from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

__all__ = ["USUAL_FONT", "families_with", "letters_of", "missing_letters"]

USUAL_FONT = "DejaVu Sans"
"""Comes with matplotlib, so it is there on every machine."""


def missing_letters(text: str) -> frozenset[str]:
    """The letters of `text` that the usual font lacks."""
    return frozenset(letter for letter in text if not letter.isspace()) - letters_of(USUAL_FONT)


@cache
def families_with(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
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
        found = letters & letters_of(family) if not family.startswith("Last Resort") else frozenset()
        if found:
            families.append(family)
            letters -= found
    return tuple(families), letters


@cache
def letters_of(family: str) -> frozenset[str]:
    """The letters that a font family has; none if its file was removed, or cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(font_manager.findfont(family)).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
