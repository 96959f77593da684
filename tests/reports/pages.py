"""A parser for report pages that extracts tables, preformatted texts and all text."""

from html.parser import HTMLParser
from pathlib import Path

EMPTY = {"meta", "br", "wbr", "img", "input"}


class Page(HTMLParser):
    """A parsed page: `tables` {label: rows of cells}, `texts` {id: text}, `tags` in order, and all `text`.

    `figures` are the tables with all digits, as the page copies them.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, list[list[str]]] = {}
        self.figures: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.captions: list[str] = []
        self._open: list[tuple[str, str | None]] = []
        self._region = ""
        self._full = False
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    @classmethod
    def of(cls, path: Path) -> "Page":
        """Return the page in a file."""
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an opening tag."""
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag in EMPTY:
            return
        self._open.append((tag, given.get("id")))
        if given.get("role") == "region":
            self._region = given["aria-label"] or ""
        if tag == "table":
            assert self._region not in self.tables, f"two tables are called {self._region}"
            self.tables[self._region] = []
            self.figures[self._region] = []
        if tag == "tr":
            self.tables[self._region].append([])
            self.figures[self._region].append([])
        if tag in ("td", "th"):
            self.tables[self._region][-1].append("")
            self.figures[self._region][-1].append(given.get("data-full") or "")
            self._full = given.get("data-full") is not None
        if tag == "figcaption":
            self.captions.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a self-closing tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Check that a closing tag matches the last opened one."""
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        """Add a text to its table cell, element and page."""
        around = [tag for tag, _ in self._open]
        if "style" in around or "script" in around:
            return
        self.text += data
        for _, name in self._open:
            if name is not None:
                self.texts[name] = self.texts.get(name, "") + data
        if "td" in around or "th" in around:
            self.tables[self._region][-1][-1] += data
            if not self._full:
                self.figures[self._region][-1][-1] += data
        if "figcaption" in around:
            self.captions[-1] += data
