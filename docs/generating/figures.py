"""The figures of the benchmarks, and the filters that format them in pages; no number of a table is typed by hand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["FILTERS", "gpu", "load_results", "measured_on"]

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "studies" / "benchmarks"
RESULTS = BENCHMARKS / "results"
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def load_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the results of each benchmark by its name, except the GPU's, which have a page of their own."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
        if path.stem != "gpu"
    }


def measured_on(result: Mapping[str, Any]) -> str:
    """Return the commands of a result as a block, and a line with its date, machine and versions."""
    machine, versions = result["machine"], result["versions"]
    memory = machine["memory, bytes"]
    parts = [
        result["date"] or "date not recorded",
        machine["processor"] or "processor not recorded",
        None if machine["cores"] is None else f"{machine['cores']} cores",
        None if memory is None else f"{memory / 2**30:.0f} GiB of memory",
        machine["system"],
        *(f"{name} {version}" for name, version in versions.items() if version and name != "commit"),
        None if not versions["commit"] else f"commit {versions['commit'][:10]}",
    ]
    note = f" ({machine['note']})" if machine["note"] else ""
    commands = "\n".join(result["commands"])
    return f"```text\n{commands}\n```\n\n*Measured: {', '.join(part for part in parts if part)}{note}.*"


def gpu() -> str:
    """Return the tables of the GPU's figures, or a note that there are none yet."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from gpu_report import section  # noqa: PLC0415
    finally:
        sys.path.remove(str(BENCHMARKS))
    return str(section(RESULTS / "gpu.json"))


# --- Formats of numbers -----------------------------------------------------------------------------------------------


def _scientific(value: float) -> str:
    """Return a number with two digits, such as 9.9e-8."""
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _round_scientific(value: float) -> str:
    """Return a number with one digit, such as 1e-6, for goals and thresholds."""
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _fixed(value: float, digits: int = 1) -> str:
    """Return the number with `digits` decimals and separators of thousands."""
    return f"{value:,.{digits}f}"


def _plain(value: float) -> str:
    """Return the shortest form of the number, with separators of thousands."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.12g}"


def _gigabytes(value: float, digits: int = 2) -> str:
    return f"{value / 1e9:.{digits}f} GB"


def _milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, with about three significant digits."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def _between(values: float | Sequence[float], digits: int = 0) -> str:
    """Return a range such as "19 to 25", or a single number if both ends are equal."""
    least, most = (values, values) if isinstance(values, int | float) else values
    show = _plain if all(float(each) == round(each, 2) for each in (least, most)) else partial(_fixed, digits=digits)
    return show(least) if least == most else f"{show(least)} to {show(most)}"


def _word(value: int) -> str:
    """Return a small number as a word."""
    return _WORDS[value] if 0 <= value < len(_WORDS) else _plain(value)


def _correlation(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['rho']:.2f} ({low:.2f} to {high:.2f})"


def _below(found: Mapping[str, Any]) -> str:
    least, most = found["below the best"]
    return "best" if least == most == 0 else f"{least:+.2f} to {most:+.2f}"


def _regret(value: float, floor: float) -> str:
    """Return a regret, or "< 1e-7" if it is below the error of the reference."""
    return f"< {_round_scientific(floor)}" if value <= floor or math.isclose(value, floor) else _scientific(value)


FILTERS: dict[str, Callable[..., str]] = {
    "scientific": _scientific,
    "power": _round_scientific,
    "fixed": _fixed,
    "plain": _plain,
    "gigabytes": _gigabytes,
    "milliseconds": _milliseconds,
    "percent": _percent,
    "between": _between,
    "word": _word,
    "correlation": _correlation,
    "below": _below,
    "regret": _regret,
}
