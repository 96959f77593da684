"""User-chosen names, with any characters, as text in plots."""

from matplotlib.figure import Figure
from matplotlib.text import Text

from optimizer.fonts import font_families, known_letters

__all__ = ["label", "set_fonts"]


def label(name: str, limit: int = 48) -> str:
    """Return a name as text for a plot.

    Line ends and control characters become spaces, letters without a font on this machine U+FFFD; `$` is escaped.

    Args:
        name: The name.
        limit: Maximum number of letters; an ellipsis replaces the middle of a longer name.

    Returns:
        The text, in matplotlib's notation.
    """
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(shown) > limit:
        tail = (limit - 1) // 2
        shown = f"{shown[: limit - 1 - tail]}…{shown[-tail:]}"
    return known_letters(shown).replace("$", r"\$")


def set_fonts(figure: Figure) -> None:
    """Set fonts that contain all letters of a figure's texts; call this when the figure is complete."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    families = font_families("".join(text.get_text() for text in texts))
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
