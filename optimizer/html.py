"""Small HTML for notebooks: a table of texts below paragraphs."""

from collections.abc import Iterable, Sequence
from html import escape

from optimizer.printable import printable

__all__ = ["html_table"]


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], paragraphs: Iterable[str] = ()) -> str:
    """Return paragraphs and a table as HTML; all texts are escaped.

    Args:
        header: The names of the columns.
        rows: The cells of each row.
        paragraphs: Texts above the table.

    Returns:
        The HTML.
    """

    def cells(texts: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(printable(text))}</{tag}>" for text in texts) + "</tr>"

    above = "".join(f"<p>{escape(printable(text))}</p>" for text in paragraphs)
    body = "".join(cells(row, "td") for row in rows)
    return f"{above}<table><thead>{cells(header, 'th')}</thead><tbody>{body}</tbody></table>"
