"""Fonts of this machine that have the letters of a text: users choose names freely, and plots and sheets show them."""

from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

__all__ = ["font_families", "known_letters"]

_USUAL = "DejaVu Sans"  # comes with matplotlib, so every machine has it
_UNKNOWN = "\ufffd"


def font_families(text: str) -> list[str]:
    """Return font families that have the letters of `text` between them: the one that comes with matplotlib first."""
    families, _ = _families_with(_missing(text))
    return [_USUAL, *families]


def known_letters(text: str) -> str:
    """Return `text` with U+FFFD for each letter that no font of this machine has."""
    _, unknown = _families_with(_missing(text))
    return "".join(_UNKNOWN if letter in unknown else letter for letter in text)


def _missing(text: str) -> frozenset[str]:
    """Return the letters of `text` that the usual font lacks."""
    return frozenset(letter for letter in text if not letter.isspace()) - _letters_of(_USUAL)


@cache
def _families_with(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return installed families that have these letters between them, and the letters that none of them has."""
    families: list[str] = []
    # Only upright fonts of usual weight and width: matplotlib complains where a family lacks these.
    usual = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.weight, entry.stretch) == ("normal", 400, "normal")
    }
    for family in sorted(usual) if letters else ():
        # "Last Resort" draws a box for any letter.
        found = letters & _letters_of(family) if not family.startswith("Last Resort") else frozenset()
        if found:
            families.append(family)
            letters -= found
    return tuple(families), letters


@cache
def _letters_of(family: str) -> frozenset[str]:
    """Return the letters that a font family has; none if its file was removed or cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(font_manager.findfont(family)).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
