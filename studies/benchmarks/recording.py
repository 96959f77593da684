"""Write a benchmark's figures to a JSON file, with the command, the date, the machine and the versions.

Every file in studies/benchmarks/results has these keys. docs/figures and README.md's table are generated from them:

    benchmark   name of the script, without .py
    commands    command lines that measured it
    date        day of the measurement, YYYY-MM-DD
    machine     processor, cores, memory in bytes, system; `note` has other conditions
    versions    versions of Python, torch, blockfit, its commit, and of the tools that blockfit is compared with
    figures     the figures

Unknown values are null.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "add_json_option", "command_line", "commit", "machine", "record", "result_file", "versions"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def result_file(name: str) -> Path:
    """Return the default file for the figures of a benchmark."""
    return RESULTS / f"{name}.json"


def add_json_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the option --json FILE, whose default is the result file of the benchmark `name`."""
    file = result_file(name)
    shown = file.relative_to(HERE.parents[1]).as_posix()
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=file, help=f"write the figures there (default: {shown})"
    )


def record(name: str, figures: Mapping[str, Any], file: Path | None, *, peers: Sequence[str] = ()) -> None:
    """Write the figures of the benchmark `name` to `file`; do nothing if it is None.

    Args:
        name: The script's name, without .py.
        figures: The figures, as JSON can hold them.
        file: The file to write.
        peers: Further distributions whose versions are recorded.

    """
    if file is None:
        return
    result = {
        "benchmark": name,
        "commands": [command_line()],
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(peers),
        "figures": figures,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def command_line() -> str:
    """Return the running command as a user would type it in the checkout."""
    script = Path(sys.argv[0]).resolve()
    root = HERE.parents[1]
    shown = script.relative_to(root).as_posix() if script.is_relative_to(root) else script.name
    return shlex.join(["python", shown, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Return the processor, its cores, the memory in bytes and the system; unknown values are None."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory, bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "load of the last minute": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "note": None,
    }


def versions(peers: Sequence[str] = ()) -> dict[str, str | None]:
    """Return the versions of Python, torch, blockfit and `peers`, and the commit of this checkout."""
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "blockfit": _version("blockfit"),
        "commit": commit(),
        **{peer: _version(peer) for peer in peers},
    }


def commit() -> str | None:
    """Return the commit of this checkout, followed by "+" if tracked files differ; None outside a checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
