"""Labelled sheets that show pictures side by side, with captions and a title."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import FT2Font
from PIL import Image

from optimizer.fonts import font_families, known_letters
from optimizer.printable import printable

__all__ = ["contact_sheet"]

_FONT_SIZE, _GAP = 16, 8  # pixels: the height of the smallest letters, and the space around the parts of a sheet
_WORD = 128  # pixels: the greatest column width that a long word can cause
_LABEL = 240  # pixels: the greatest width of labels at the left, unless pictures are much wider
_UNITS = 64  # FreeType measures in 64ths of a pixel
_ASCENT = 0.93  # the distance of a line's baseline from its top, as a share of the font size (DejaVu Sans)
_MOST_LINES = 24  # of one paragraph of a label


def contact_sheet(
    rows: Mapping[str, Sequence[Image.Image]],
    columns: Sequence[str],
    scale: int,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> Image.Image:
    """Return pictures as a labelled table, RGB, black on white.

    A column is as wide as its pictures. For small pictures, words above and lines below can widen it up to 128 pixels.
    Line breaks in texts are kept; longer lines are broken between words, and words that are too wide inside. A
    paragraph of more than 24 lines is cut off with an ellipsis. Letters grow with pictures wider than 320 pixels.

    Args:
        rows: The pictures of each row, one for each column and all of one size, by the label at the row's left.
        columns: The headings of the columns.
        scale: The factor by which pictures are enlarged, at least 1.
        captions: The texts below a row's pictures, by the row's label; "" for no text.
        title: The text above the table.

    Returns:
        The sheet.

    Raises:
        ValueError: If `scale` is less than 1, if there is no picture, if a row does not have one picture (or one
            caption) for each column, or if the pictures differ in size.

    """
    captions = {} if captions is None else captions
    if scale < 1:
        raise ValueError(f"scale must be at least 1, received {scale}")
    for label, pictures in rows.items():
        if len(pictures) != len(columns):
            raise ValueError(f"row {label!r} has {len(pictures)} pictures for {len(columns)} columns")
        if len(captions.get(label, columns)) != len(columns):
            raise ValueError(f"row {label!r} has {len(captions[label])} captions for {len(columns)} columns")
    sizes = {picture.size for pictures in rows.values() for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"all pictures must have one size, received {sorted(sizes) or 'no picture'}")

    width, height = (side * scale for side in sizes.pop())
    letters = _Lettering(max(_FONT_SIZE, width // 20))
    words = [word for column in columns for word in column.split()]
    lines = [line for below in captions.values() for text in below for line in text.split("\n")]
    cell = math.ceil(max([width, *(min(letters.length(text), _WORD) for text in (*words, *lines))]))
    headings = [letters.wrapped(column, cell) for column in columns]
    labels = [letters.wrapped(label, max(_LABEL, width // 2)) for label in rows]
    left = math.ceil(max(letters.length(line) for label in labels for line in label)) + 2 * _GAP
    below = [
        max((len(letters.wrapped(text, cell)) for text in captions.get(label, ())), default=0) * letters.line
        for label in rows
    ]
    heights = [max(height + space, len(label) * letters.line) for space, label in zip(below, labels, strict=True)]
    across = left + len(columns) * (cell + _GAP)
    heading = letters.wrapped(title, across - 2 * _GAP) if title else []
    upper = len(heading) * letters.line + (2 * _GAP if heading else 0)
    top = upper + max(map(len, headings)) * letters.line + 2 * _GAP

    sheet = Image.new("RGB", (across, top + sum(heights) + len(heights) * _GAP), "white")
    letters.draw(sheet, heading, _GAP, _GAP)
    for column, heading_lines in enumerate(headings):
        middle = left + column * (cell + _GAP) + cell / 2
        letters.draw(sheet, heading_lines, middle, top - _GAP - len(heading_lines) * letters.line, align=0.5)
    for (label, pictures), label_lines, row_height, space in zip(rows.items(), labels, heights, below, strict=True):
        beside = max(height, len(label_lines) * letters.line)
        letters.draw(sheet, label_lines, left - _GAP, top + (beside - len(label_lines) * letters.line) // 2, align=1)
        for column, picture in enumerate(pictures):
            x = left + column * (cell + _GAP)
            enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (x + (cell - width) // 2, top))
            if space and label in captions:
                below_it = letters.wrapped(captions[label][column], cell)
                letters.draw(sheet, below_it, x + cell / 2, top + height, align=0.5)
        top += row_height + _GAP
    return sheet


class _Lettering:
    """Text of one size in the fonts of plots, so that sheets look the same everywhere; `line` is a line's height."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.line = size * 5 // 4

    def length(self, text: str) -> float:
        """Return the width of a line of text, in pixels."""
        width, _ = self._set(text).get_width_height()
        return width / _UNITS

    def wrapped(self, text: str, width: float) -> list[str]:
        """Return text in lines of at most `width` pixels; a paragraph without letters is an empty line."""
        return [line for paragraph in text.split("\n") for line in self._paragraph(paragraph, width)]

    def draw(self, sheet: Image.Image, lines: Sequence[str], x: float, y: float, *, align: float = 0) -> None:
        """Draw lines from `y` down; `align` is the share of a line that is left of `x`, 0 to 1."""
        baseline = y + round(self._size * _ASCENT)
        for line in lines:
            font = self._set(line)
            width, _ = font.get_width_height()
            font.draw_glyphs_to_bitmap()
            letters = Image.fromarray(font.get_image())
            bottom = round(baseline + font.get_descent() / _UNITS)
            sheet.paste("black", (round(x - align * width / _UNITS), bottom - letters.height), letters)
            baseline += self.line

    def _paragraph(self, text: str, width: float) -> list[str]:
        """Return a paragraph in lines of at most `width` pixels."""
        lines: list[str] = []
        for word in printable(text).split():
            if lines and self.length(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            else:
                lines += self._pieces(word, width)
            if len(lines) > _MOST_LINES:
                return [*lines[: _MOST_LINES - 1], "…"]
        return lines or [""]

    def _pieces(self, word: str, width: float) -> Iterator[str]:
        """Yield a word in pieces of at most `width` pixels, broken after signs if it has any, else anywhere."""
        piece = ""
        for part in re.findall(r"[^-_./\\,]*[-_./\\,]?", word):
            for letters in (part,) if self.length(part) <= width else part:
                if piece and self.length(piece + letters) > width:
                    yield piece
                    piece = ""
                piece += letters
        yield piece

    def _set(self, text: str) -> FT2Font:
        """Return a font with a line of text laid out; other fonts supply letters that the first one lacks."""
        font = get_font([findfont(family) for family in font_families(text)])
        font.set_size(self._size, 72)  # points, of which 72 are an inch: pixels
        font.set_text(known_letters(text))
        return font
