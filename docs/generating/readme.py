"""Insert the table of results into README.md, between its markers: `python docs/generating/readme.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import jinja2  # noqa: E402

from generating.figures import FILTERS, load_results  # noqa: E402

README = ROOT / "README.md"
BEGIN, END = "<!-- results: begin (made by docs/generating/readme.py) -->", "<!-- results: end -->"
TABLE = Path(__file__).with_name("results.md.jinja")


def table() -> str:
    """Return the table of the benchmarks' figures."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  Markdown
    environment.filters.update(FILTERS)
    return environment.from_string(TABLE.read_text(encoding="utf-8")).render(results=load_results()).strip()


def with_table(text: str) -> str:
    """Return the text of README.md with the new table between its markers."""
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n{table()}\n{text[after:]}"


def main() -> None:
    """Rewrite README.md."""
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
