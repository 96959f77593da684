"""Small HTML for notebooks: tables, bars and paragraphs in the notebook's own fonts and colours."""

import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from optimizer.printable import printable

__all__ = ["html_bar", "html_paragraphs", "html_table"]

# Paragraphs as wide as a book's, whatever the window; tables that are wider than the window scroll.
_PARAGRAPH = "margin:0 0 .4em;max-width:52em;line-height:1.4"
_AROUND = "overflow-x:auto;margin:.2em 0"
_NUMBER = re.compile(r"[+-]?[\d.,]*\d( ?%)?( (of|\u2192) [\d.]+( ?%)?)?|-|")
# Longer texts may be broken into lines.
_UNBROKEN = 40


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], paragraphs: Iterable[str] = ()) -> str:
    """Return paragraphs and a table as HTML; all texts but `Markup` are escaped.

    Args:
        header: The names of the columns.
        rows: The cells of each row.
        paragraphs: Texts above the table.

    Returns:
        The HTML.
    """
    cells = [tuple(row) for row in rows]
    columns = zip(*cells, strict=True) if cells else [()] * len(header)
    styles = [_column_style(heading, texts) for heading, texts in zip(header, columns, strict=True)]

    def line(texts: Sequence[str], tag: str) -> str:
        found = zip(texts, styles, strict=True)
        cells = "".join(f'<{tag} style="{style}">{_escaped(text)}</{tag}>' for text, style in found)
        return f"<tr>{cells}</tr>"

    body = "".join(line(row, "td") for row in cells)
    table = f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"
    return f'{html_paragraphs(paragraphs)}<div style="{_AROUND}">{table}</div>'


def html_paragraphs(texts: Iterable[str], *, muted: bool = False) -> str:
    """Return texts as paragraphs, maybe paler than other text; all texts but `Markup` are escaped."""
    style = f"{_PARAGRAPH};opacity:.7" if muted else _PARAGRAPH
    return "".join(f'<p style="{style}">{_escaped(text)}</p>' for text in texts)


def html_bar(share: float) -> Markup:
    """Return a bar that is filled to a share in [0, 1]."""
    around = "display:inline-block;width:9em;height:.7em;border-radius:.35em;background:rgba(127,127,127,.3)"
    filled = f"height:100%;width:{100 * min(max(share, 0.0), 1.0):.1f}%;border-radius:inherit;background:#3987d0"
    return Markup('<span style="{}"><span style="display:block;{}"></span></span>').format(around, filled)


def _column_style(heading: str, texts: Sequence[str]) -> str:
    """Return the style of a column: numbers are aligned at the right, with digits of equal width."""
    style = "vertical-align:top;text-align:left"
    if texts and all(_NUMBER.fullmatch(text) for text in texts):
        style = "vertical-align:top;text-align:right;font-variant-numeric:tabular-nums"
    short = all(len(text) <= _UNBROKEN or isinstance(text, Markup) for text in (heading, *texts))
    return f"{style};white-space:nowrap" if short else style


def _escaped(text: str) -> Markup:
    return text if isinstance(text, Markup) else escape(printable(text))
