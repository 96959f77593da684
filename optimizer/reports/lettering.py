"""Names that users chose, as text in plots: whatever characters they hold."""

from matplotlib.figure import Figure
from matplotlib.text import Text

from optimizer.fonts import font_families, known_letters

__all__ = ["label", "set_fonts"]


def label(name: str, limit: int = 48) -> str:
    """Return `name` for a plot: its middle cut out beyond `limit` letters, `$` meaning a dollar.

    Line ends and control characters become spaces, letters that no font of this machine has U+FFFD.
    """
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(shown) > limit:
        tail = (limit - 1) // 2
        shown = f"{shown[: limit - 1 - tail]}…{shown[-tail:]}"
    return known_letters(shown).replace("$", r"\$")


def set_fonts(figure: Figure) -> None:
    """Give the figure's texts fonts of this machine that have their letters; call it once the figure is complete."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    families = font_families("".join(text.get_text() for text in texts))
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
