"""Installed fonts that cover the letters of a text, since plots and sheets show names in any script."""

from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

__all__ = ["font_families", "known_letters"]

_USUAL = "DejaVu Sans"  # part of matplotlib, so every machine has it
_UNKNOWN = "\ufffd"


def font_families(text: str) -> list[str]:
    """Return font families that together cover the letters of `text`, matplotlib's own family first."""
    families, _ = _families_with(_missing(text))
    return [_USUAL, *families]


def known_letters(text: str) -> str:
    """Return `text` with U+FFFD in place of each letter that no font of this machine has."""
    _, unknown = _families_with(_missing(text))
    return "".join(_UNKNOWN if letter in unknown else letter for letter in text)


def _missing(text: str) -> frozenset[str]:
    """Return the letters of `text` that the usual font lacks."""
    return frozenset(letter for letter in text if not letter.isspace()) - _letters_of(_USUAL)


@cache
def _families_with(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return installed families that together cover these letters, and the letters that none of them has."""
    families: list[str] = []
    # matplotlib warns about families without an upright font of regular weight and width.
    usual = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.weight, entry.stretch) == ("normal", 400, "normal")
    }
    for family in sorted(usual) if letters else ():
        # "Last Resort" covers every letter with a box.
        found = letters & _letters_of(family) if not family.startswith("Last Resort") else frozenset()
        if found:
            families.append(family)
            letters -= found
    return tuple(families), letters


@cache
def _letters_of(family: str) -> frozenset[str]:
    """Return the letters of a font family; none if its file was removed or cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(font_manager.findfont(family)).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
