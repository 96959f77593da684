"""README.md, the pages of docs/, and the commands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + sorted(
    DOCS.rglob("*.md")
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```|((?:^ {4,}\S[^\n]*\n?)+)", re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's fenced blocks in a language."""
    return [match[2] for match in _BLOCK.finditer(read(page)) if match[2] and match[1] == language]


def command_lines(page: Path) -> list[str]:
    """Return the lines of a page's command blocks, without comments; continued lines are joined."""
    found = []
    for match in _BLOCK.finditer(read(page)):
        if match[1]:
            continue
        text = re.sub(r"\\\n\s*", " ", match[2] or match[3])
        found += [re.sub(r"\s{2,}#.*", "", line.strip()) for line in text.splitlines()]
    return found


def documented_commands() -> list[str]:
    """Return every distinct `blockfit ...` command, in the order of the pages."""
    lines = [line for page in PAGES for line in command_lines(page) if line.startswith("blockfit ")]
    return list(dict.fromkeys(lines))


def arguments_of(line: str) -> list[str]:
    """Return the arguments of a command line, split as by a shell."""
    return shlex.split(line)[1:]
