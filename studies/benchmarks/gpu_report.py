"""Reports of the figures of `gpu.py`: goals reached or missed, and the table of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["NOT_RUN", "as_markdown", "goals", "section"]

Figures = Mapping[str, Any]

NOT_RUN = """\
Not run yet: no machine with an NVIDIA GPU has run `make gpu` so far. What an H100 should reach, and why, is worked
out in studies/benchmarks/gpu.py; the figures of the first run will stand here."""


def goals(figures: Figures) -> list[dict[str, Any]]:
    """Return the goals, each with its value and with `reached`, None if nothing was measured on a GPU at full size."""
    of = {part["name"]: part["figures"] for part in figures["parts"] if part["figures"]}
    rates = of.get("attention", {}).get("most candidates a second", {})
    alone = of.get("attention", {}).get("candidates a second", {})
    single = [alone[name]["1"] for name in ("along a line", "anywhere") if "1" in alone.get(name, {})]
    differences = [
        *of.get("agreement", {}).get("largest difference of a metric", {}).values(),
        *(value for name, value in of.get("encoder", {}).items() if name == "largest difference from the processor"),
    ]
    products = of.get("limits", {}).get("errors of float32 products")
    fit = of.get("fit", {})
    scoring, reading = fit.get("scoring, seconds"), fit.get("reading, seconds")
    rows = [
        ("`attention` along one alpha, candidates a second", ">=", 8000, rates.get("along a line")),
        ("`attention` anywhere, candidates a second", ">=", 2000, rates.get("anywhere")),
        ("the same by products, 14.4 GFLOP each", ">=", 2000, rates.get("anywhere, by products")),
        ("`attention` one at a time, candidates a second", ">=", 500, min(single, default=None)),
        ("cpu and cuda, largest difference of a block", "<=", 1e-5, max(differences, default=None)),
        ("float32 products, relative error (of tf32: 3e-4)", "<=", 1e-6, products),
        ("fit: seconds of scoring against those of reading", "<=", reading, scoring),
        ("all parts, seconds", "<=", 480, figures["seconds"] if len(of) > 1 else None),
    ]
    measured = figures["device"] == "cuda" and not figures["small"]
    return [
        {
            "goal": name,
            "sense": sense,
            "wanted": limit,
            "value": value,
            "reached": None
            if value is None or limit is None or not measured
            else (value >= limit if sense == ">=" else value <= limit),
        }
        for name, sense, limit, value in rows
    ]


def section(path: Path) -> str:
    """Return the documentation's section on GPUs: the tables of the figures at `path`, or NOT_RUN without a file."""
    return as_markdown(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else NOT_RUN


def as_markdown(figures: Figures) -> str:
    """Return the figures as Markdown tables."""
    machine = figures["machine"]
    if figures["device"] == "cuda":
        gigabytes = machine["memory, bytes"] / 1e9
        where = f"{machine['card']} ({gigabytes:.0f} GB), driver {machine['driver']}, cuda {machine['cuda']}"
    else:
        sizes = ", small sizes" if figures["small"] else ""
        where = f"no GPU (a run on the CPU{sizes}, whose times do not apply to GPUs)"
    versions = f"torch {machine['torch']}, Python {machine['python']}, {machine['processors']} processors"
    lines = [f"{where}; {versions}, {machine['system']}; {figures['date']}; {figures['seconds']:.0f} s in all."]
    lines += ["", "| goal | wanted | measured | reached |", "|---|---|---|---|"]
    reached = {True: "yes", False: "**no**", None: ""}
    for goal in figures["goals"]:
        limit = "" if goal["wanted"] is None else f"{goal['sense']} {_number(goal['wanted'])}"
        lines.append(f"| {goal['goal']} | {limit} | {_number(goal['value'])} | {reached[goal['reached']]} |")
    lines += ["", "| part | | seconds | |", "|---|---|---|---|"]
    for part in figures["parts"]:
        status = part["status"] if part["status"] == "done" else f"**{part['status']}**"
        error = _cell(part["error"] or "")
        lines.append(
            f"| {part['name']} | {part['title']} | {part['seconds']:.1f} | {': '.join(filter(None, [status, error]))} |"
        )
    for part in figures["parts"]:
        rows = list(_rows(part["figures"], ""))
        if rows:
            lines += ["", f"**{part['name']}**: {part['title']}", "", "| | |", "|---|---|"]
            lines += [f"| {_cell(name)} | {value} |" for name, value in rows]
    return "\n".join(lines)


def _rows(figures: Figures, before: str) -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        title = f"{before}{name}"
        if name == "largest difference by block":
            continue
        if isinstance(value, Mapping):
            if (
                value
                and all(isinstance(each, (int, float)) for each in value.values())
                and all(k.isdigit() for k in value)
            ):
                yield title, ", ".join(f"{_number(each)} ({count} at a time)" for count, each in value.items())
            else:
                yield from _rows(value, f"{title}: ")
        elif name.endswith("bytes") or name.startswith("bytes"):
            yield title.removesuffix(", bytes"), "" if value is None else f"{value / 1e9:.2f} GB"
        else:
            yield title, _number(value)


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and value < 1e15):
        return f"{int(value):,}"
    if isinstance(value, float):
        if value and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.1e}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return _cell(str(value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
