"""Small HTML for notebooks: tables, bars and paragraphs in the notebook's own fonts and colours."""

import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from optimizer.printable import printable

__all__ = ["html_bar", "html_paragraphs", "html_table"]

# Paragraphs as wide as a book's, whatever the window; tables that are wider than the window scroll.
_PARAGRAPH = "margin:0 0 .4em;max-width:52em;line-height:1.4"
_AROUND = "overflow-x:auto;margin:.2em 0"
_NUMBER = re.compile(r"[+-]?[\d.,]*\d( ?%)?( of \d+)?|-|")


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
    # Numbers are aligned at the right, with digits of equal width.
    styles = [
        "text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"
        if all(_NUMBER.fullmatch(row[column]) for row in cells)
        else "text-align:left"
        for column in range(len(header))
    ]

    def line(texts: Sequence[str], tag: str) -> str:
        found = zip(texts, styles, strict=True)
        cells = "".join(f'<{tag} style="{style}">{_escaped(text)}</{tag}>' for text, style in found)
        return f"<tr>{cells}</tr>"

    body = "".join(line(row, "td") for row in cells)
    table = f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"
    return f'{html_paragraphs(paragraphs)}<div style="{_AROUND}">{table}</div>'


def html_paragraphs(texts: Iterable[str]) -> str:
    """Return texts as paragraphs; all texts but `Markup` are escaped."""
    return "".join(f'<p style="{_PARAGRAPH}">{_escaped(text)}</p>' for text in texts)


def html_bar(share: float) -> Markup:
    """Return a bar that is filled to a share in [0, 1]."""
    around = "display:inline-block;width:9em;height:.7em;border-radius:.35em;background:rgba(127,127,127,.3)"
    filled = f"height:100%;width:{100 * min(max(share, 0.0), 1.0):.1f}%;border-radius:inherit;background:#3987d0"
    return Markup('<span style="{}"><span style="display:block;{}"></span></span>').format(around, filled)


def _escaped(text: str) -> Markup:
    return text if isinstance(text, Markup) else escape(printable(text))
