"""The hook of mkdocs that inserts parts of the code, the notebooks and the benchmarks into the pages.

A page whose front matter has `generated: true` is a Jinja template with the names of docs/generating/content.py. Pages
may link to files outside docs/, so that the links also work in the repository: the hook copies these files into the
site.
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
    """Add the files outside docs/ that pages link to, and the pictures of the notebooks."""
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
    """Render a generated page, and redirect links to the copies in the site."""
    if page.meta.get("generated"):
        markdown = environment().from_string(markdown).render()
    return with_links(markdown, page.file.src_uri, _linked)
