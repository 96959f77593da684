"""The hook of mkdocs that fills in what the pages take from the code, the notebooks and the benchmarks.

A page whose front matter says `generated: true` is a Jinja template: `{{ ... }}` in it is what
docs/generating/content.py offers. Links that leave docs/ are kept, so that pages read as well in the repository: what
they lead to is copied into the site.
"""

from __future__ import annotations

from typing import Any

from generating.content import environment, notebook_pictures
from generating.links import Linked, files_outside, with_links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_linked: dict[str, Linked] = {}


def on_files(files: Files, *, config: MkDocsConfig, **_: Any) -> Files:
    """Add what lies outside docs/ and is linked from a page, and the pictures of the notebooks."""
    _linked.clear()
    _linked.update(files_outside(files.documentation_pages()))
    for linked in _linked.values():
        if linked.page:
            content = linked.path.read_text(encoding="utf-8")
            files.append(File.generated(config, linked.uri, content=content))
        else:
            files.append(File.generated(config, linked.uri, abs_src_path=str(linked.path)))
    for uri, picture in notebook_pictures().items():
        files.append(File.generated(config, uri, content=picture))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Fill in a generated page, and lead its links to the copies in the site."""
    if page.meta.get("generated"):
        markdown = environment().from_string(markdown).render()
    return with_links(markdown, page.file.src_uri, _linked)
