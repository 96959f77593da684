"""The names that generated pages can use between braces."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from generating.figures import FILTERS, gpu, load_results, measured_on

__all__ = ["environment", "notebook_pictures"]

ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 88  # characters of a help page


def environment() -> jinja2.Environment:
    """Return the environment in which generated pages are rendered; unknown names are errors."""
    found = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)  # noqa: S701
    found.filters.update(FILTERS)
    found.globals.update(
        results=load_results(),
        measured_on=measured_on,
        gpu=gpu,
        commands=commands,
        recipe_fields=lambda: fields("recipe"),
        study_fields=lambda: fields("study"),
        families=families,
        layouts=layouts,
        names=names,
        notebook=notebook,
        samplers=samplers,
        security=lambda: (ROOT / "SECURITY.md").read_text(encoding="utf-8"),
        metrics=metrics,
    )
    return found


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return a section for each command with its help page."""
    from typer.main import get_command  # noqa: PLC0415

    from optimizer.cli import app  # noqa: PLC0415

    whole = get_command(app)
    parts = [_help("blockfit", whole)]
    for name in whole.commands:  # type: ignore[attr-defined]
        with whole.make_context("blockfit", [name], resilient_parsing=True) as context:
            command = whole.get_command(context, name)  # type: ignore[attr-defined]
        parts.append(_help(f"blockfit {name}", command))
    return "\n".join(parts)


def _help(name: str, command: Any) -> str:
    context = command.context_class(
        command, info_name=name, terminal_width=_WIDTH, max_content_width=_WIDTH, help_option_names=["-h", "--help"]
    )
    return f"## {name}\n\n```text\n{command.get_help(context).strip()}\n```\n"


# --- YAML files -------------------------------------------------------------------------------------------------------


def schema(kind: str) -> dict[str, Any]:
    """Return the JSON schema of recipe.yaml or study.yaml."""
    module = importlib.import_module({"recipe": "optimizer.recipes", "study": "optimizer.studies"}[kind])
    found: dict[str, Any] = getattr(module, f"{kind}_schema")()
    return found


def fields(kind: str) -> str:
    """Return the tables of a file's fields: one for the file, and one for each object in it."""
    whole = schema(kind)
    parts = list(_table(f"The {kind} file", whole))
    for name, part in whole.get("$defs", {}).items():
        if "properties" in part:
            parts += _table(part.get("title", name), part)
    return "\n".join(parts)


def _table(title: str, part: Mapping[str, Any]) -> Iterator[str]:
    title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title.strip("_")).removesuffix(" Entry")
    title = title[:1].upper() + title[1:].lower()
    yield f"### {title}\n"
    if description := part.get("description"):
        yield f"{description}\n"
    yield "| field | type | default | |\n|---|---|---|---|"
    required = part.get("required", ())
    for name, entry in part["properties"].items():
        default = "*required*" if name in required else _default(entry.get("default"))
        text = " ".join(entry.get("description", "").split())
        yield f"| `{name}` | {_type(entry)} | {default} | {_cell(text)} |"
    yield ""


def _default(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value)}`".replace("|", "\\|")


_OR = " \\| "  # separates alternatives; an unescaped bar would begin the next cell of a table


def _type(entry: Mapping[str, Any]) -> str:
    if "$ref" in entry:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", entry["$ref"].rsplit("/", 1)[-1].strip("_"))
        return name.removesuffix(" Entry").lower()
    if "enum" in entry:
        return _OR.join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if alternatives := entry.get("anyOf") or entry.get("oneOf"):
        kinds = [kind for each in alternatives if each.get("type") != "null" for kind in _type(each).split(_OR)]
        return _OR.join(dict.fromkeys(kinds))
    if "search" in entry.get("properties", {}):
        return "[free](#alphas)"
    kind = entry.get("type", "any")
    if kind == "array":
        return f"list of {_type(entry['items'])}" if entry.get("items") else "list"
    if kind == "object" and isinstance(entry.get("additionalProperties"), Mapping):
        return f"mapping to {_type(entry['additionalProperties'])}"
    return {"object": "mapping", "string": "text", "boolean": "true or false"}.get(str(kind), str(kind))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- Layouts, samplers, metrics ---------------------------------------------------------------------------------------


def layouts() -> str:
    """Return a table of the layouts with their blocks."""
    from optimizer.families import layout_names, load_layout  # noqa: PLC0415

    rows = ["| layout | family | blocks |", "|---|---|---|"]
    for layout in map(load_layout, layout_names()):
        link = f"[`{layout.name}`](families.md#{layout.name})"
        rows.append(f"| {link} | {layout.title} | {len(layout.blocks)}: {layout.describe_blocks(layout.blocks)} |")
    return "\n".join(rows)


def families() -> str:
    """Return a section for each layout: its blocks in the order of the numbers, mappings, exports and metrics."""
    from optimizer.families import layout_names, load_layout  # noqa: PLC0415

    return "\n".join(_family(load_layout(name)) for name in layout_names())


def _family(layout: Any) -> str:
    from optimizer.errors import InputError  # noqa: PLC0415
    from optimizer.interchange import EXPORTS  # noqa: PLC0415
    from optimizer.similarity.registry import METRICS  # noqa: PLC0415

    places: dict[str, list[str]] = {}
    for place in layout.places:
        places.setdefault(re.sub(r"\.\d+\.$", ".N.", place), []).append(layout.block_of(place) or "")
    rows = [
        f"| `{place}` | {layout.describe_blocks(filter(None, blocks)) or 'stays that of the first input'} |"
        for place, blocks in places.items()
    ]
    exports = [f"`{name}`" for name, export in EXPORTS.items() if layout.name in export.layouts()]
    offered, refused = [], []
    for name, kind in METRICS.items():
        try:
            kind.check_offered(layout)
        except InputError:
            refused.append(f"`{name}` ({kind.absent})")
        else:
            offered.append(f"`{name}`")
    mappings = ", ".join(f"`{name}`" for name in layout.mappings)
    return "\n".join(
        [
            f"## {layout.name}",
            "",
            layout.about or f"{layout.title}.",
            "",
            f"{len(layout.blocks)} blocks, in the order of a list of numbers: {', '.join(_runs(layout))}.",
            "",
            f"| names that begin with | block (mapping `{layout.default_mapping}`) |",
            "|---|---|",
            *rows,
            "",
            f"* Mappings: {mappings}; the first is that of recipes without one.",
            f"* Exports: {', '.join(exports) or 'none; no other tool that blockfit writes for has its blocks'}.",
            f"* Metrics: {', '.join(offered)}{'; not offered: ' if refused else ''}{', '.join(refused)}.",
            "",
        ]
    )


def _runs(layout: Any) -> list[str]:
    return [f"`{run}`" for run in layout.describe_blocks(layout.blocks).split(",")]


def samplers() -> str:
    """Return the names of the samplers."""
    from optimizer.samplers import SAMPLERS  # noqa: PLC0415

    return ", ".join(f"`{name}`" for name in SAMPLERS)


def metrics() -> str:
    """Return the names of the metrics."""
    from optimizer.similarity import METRICS  # noqa: PLC0415

    return ", ".join(f"`{name}`" for name in METRICS)


# --- Python -----------------------------------------------------------------------------------------------------------

_KINDS = (
    ("Functions", inspect.isfunction),
    ("Errors and warnings", lambda value: inspect.isclass(value) and issubclass(value, Exception)),
    ("Classes", inspect.isclass),
    ("Registries", lambda value: isinstance(value, dict)),
)


def names() -> str:
    """Return a directive of mkdocstrings for each public name, by kind."""
    import optimizer  # noqa: PLC0415

    left = {name: getattr(optimizer, name) for name in sorted(optimizer.__all__)}
    parts = []
    for title, belongs in _KINDS:
        chosen = {name: value for name, value in left.items() if belongs(value)}
        left = {name: value for name, value in left.items() if name not in chosen}
        parts.append(f"## {title}\n")
        parts += [
            f"::: {optimizer._HOMES[name]}.{name}\n"
            if isinstance(value, dict)
            else f"::: {value.__module__}.{value.__qualname__}\n"
            for name, value in chosen.items()
        ]
    if left:
        raise ValueError(f"optimizer.__all__: neither functions nor classes nor registries: {', '.join(left)}")
    return "\n".join(parts)


# --- Notebooks --------------------------------------------------------------------------------------------------------


def notebook(name: str) -> str:
    """Return the notebook notebooks/NAME.ipynb as a page, with its stored outputs."""
    body, _ = _exported(name)
    return body


def notebook_pictures() -> dict[str, bytes]:
    """Return the pictures of all notebooks by their addresses in the site."""
    found: dict[str, bytes] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _, pictures = _exported(path.stem)
        found |= {f"tutorial/{uri}": content for uri, content in pictures.items()}
    return found


@functools.cache
def _exported(name: str) -> tuple[str, dict[str, bytes]]:
    from nbconvert import MarkdownExporter  # noqa: PLC0415

    resources = {"unique_key": name, "output_files_dir": f"pictures/{name}"}
    body, resources = MarkdownExporter().from_filename(ROOT / "notebooks" / f"{name}.ipynb", resources=resources)
    # The site has its own style for tables.
    body = re.sub(r"<style scoped>.*?</style>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<table border="1" class="dataframe">', "<table>", body)
    # The page has its own title.
    body = re.sub(r"\A\s*# .*\n", "", body)
    # Links between notebooks become links between pages.
    body = re.sub(r"\]\((\d\d-[\w-]+)\.ipynb\)", r"](\1.md)", body)
    return body, dict(resources["outputs"])
