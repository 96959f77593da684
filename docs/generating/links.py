"""Links from a page to files outside docs/: their targets, and the addresses of the targets' copies in the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.structure.files import File

__all__ = ["Linked", "files_outside", "with_links"]

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


@dataclass(frozen=True)
class Linked:
    """A file of the repository outside docs/, with the address of its copy in the site."""

    path: Path
    uri: str

    @property
    def page(self) -> bool:
        """True if the copy is rendered as a page."""
        return self.path.suffix == ".md"


def files_outside(pages: Iterable[File]) -> dict[str, Linked]:
    """Return all files outside docs/ that pages link to, directly or through other such files.

    Args:
        pages: The pages of docs/.

    Returns:
        {path in the repository: file}.

    Raises:
        FileNotFoundError: If a link leads nowhere.

    """
    found: dict[str, Linked] = {}
    waiting = [(page.src_uri, Path(str(page.abs_src_path))) for page in pages]
    while waiting:
        uri, path = waiting.pop()
        for target in _targets(path.read_text(encoding="utf-8")):
            inside = _in_repository(uri, target, found)
            if inside.startswith("docs/") or inside in found:
                continue
            if not (ROOT / inside).is_file():
                raise FileNotFoundError(f"{uri}: links to {target}, which is no file of the repository")
            linked = Linked(ROOT / inside, _uri(inside))
            found[inside] = linked
            if linked.page:
                waiting.append((linked.uri, linked.path))
    return found


def with_links(markdown: str, uri: str, linked: Mapping[str, Linked]) -> str:
    """Return the text of the page `uri` with links to the copies of files outside docs/."""
    folder = posixpath.dirname(uri)

    def replaced(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if _elsewhere(target):
            return match.group()
        inside = _in_repository(uri, target, linked)
        if inside in linked:
            target = posixpath.relpath(linked[inside].uri, folder or ".")
        elif inside.startswith("docs/"):
            target = posixpath.relpath(inside.removeprefix("docs/"), folder or ".")
        return f"{before}{target}{after}"

    return _LINK.sub(replaced, markdown)


def _targets(text: str) -> Iterator[str]:
    for match in _LINK.finditer(text):
        if not _elsewhere(match[2]):
            yield match[2]


def _elsewhere(target: str) -> bool:
    return re.match(r"[a-z]+:|/|\{\{", target) is not None


def _in_repository(uri: str, target: str, linked: Mapping[str, Linked]) -> str:
    """Return the path in the repository that a link leads to; links of a copy are relative to its original."""
    for inside, each in linked.items():
        if each.uri == uri:
            return posixpath.normpath(posixpath.join(posixpath.dirname(inside), target))
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), target))


def _uri(inside: str) -> str:
    """Return the address of a copy: pages of the root are at the site's root, other files are below files/."""
    return inside.lower() if inside.endswith(".md") and "/" not in inside else f"files/{inside}"
