"""Fetch the wheels that a machine with a card lacks, for one that has torch and no network.

    make gpu-wheels PYTHON_VERSION=3.12 PRESENT="numpy scipy pandas"
    python studies/benchmarks/gpu_wheels.py .wheels --python-version 3.12 --present there.txt

What blockfit and its tests of a card need is read off this environment, in which both are installed, with the versions
of constraints.txt. Left out are torch, what torch alone needs, and what is present there: names, or a file of lines
such as `pip list --format=freeze` writes. A version that is named there, and is not enough, does not count as present.
Wheels are those of Linux on x86-64; what is published as source only is built here, and must come out as pure Python.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# What the tests that are marked cuda import, besides blockfit and what it needs.
TESTS = ("pytest", "pytest-timeout", "hypothesis", "psycopg[binary]")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def needed(roots: Iterable[str], python: str) -> dict[str, SpecifierSet]:
    """Return all distributions that `roots` need on Linux with this Python, these included, with the versions that do.

    What only torch needs is not among them. Raises PackageNotFoundError for one that is not installed here.
    """
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found: dict[str, SpecifierSet] = {}
    waiting = [Requirement(root) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name == "torch":
            continue
        found[name] = found.get(name, SpecifierSet()) & requirement.specifier
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in metadata.requires(requirement.name) or []:
            further = Requirement(text)
            marker = further.marker
            if marker is None or any(marker.evaluate({**environment, "extra": each}) for each in ("", *extras)):
                waiting.append(further)
    return found


def present(given: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield name and version of the distributions in a list of names, and of files with one in a line."""
    for each in given:
        lines = Path(each).read_text(encoding="utf-8").splitlines() if Path(each).is_file() else each.split()
        for line in lines:
            if found := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==(\S+))?", line.strip()):
                yield canonicalize_name(found[1]), found[2]


def versions() -> dict[str, str]:
    """Return the version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pinned}


def fetch(name: str, version: str, python: str, folder: Path) -> Path:
    """Fetch a distribution's wheel, or build it from source. Raises RuntimeError with what pip said."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wanted = f"{name}=={version}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        platforms = [part for platform in PLATFORMS for part in ("--platform", f"{platform}_x86_64")]
        target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
        done = _run([*pip, "download", "--no-deps", *target, "--dest", scratch, wanted])
        if done.returncode:
            done = _run([*pip, "wheel", "--no-deps", "--wheel-dir", scratch, wanted])
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise RuntimeError(f"{wanted}: {done.stderr.strip()[-500:]}")
        fits = wheels[0].name.endswith("-none-any.whl") or "manylinux" in wheels[0].name
        if not fits:
            raise RuntimeError(f"{wanted}: {wheels[0].name} was built for this machine alone")
        return wheels[0].replace(folder / wheels[0].name)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


def main() -> int:
    """Read the command line, fetch, print names and sizes."""
    parser = argparse.ArgumentParser(description="Fetch the wheels that a machine with a card lacks.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--python-version", default=f"{sys.version_info[0]}.{sys.version_info[1]}", metavar="3.N")
    parser.add_argument("--present", nargs="*", default=[], metavar="NAME|FILE", help="what is there already")
    parser.add_argument("--list", action="store_true", help="print the names, fetch nothing")
    given = parser.parse_args()
    python = given.python_version
    wanted = needed(["blockfit[all]", *TESTS], python)
    del wanted["blockfit"]
    for name, version in present(given.present):
        if name in wanted and (version is None or wanted[name].contains(version, prereleases=True)):
            del wanted[name]
    pinned = versions()
    if unknown := sorted(name for name in wanted if name not in pinned):
        print(f"constraints.txt: has no version of {', '.join(unknown)}", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(f"{name}=={pinned[name]}" for name in sorted(wanted)))
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    for old in given.folder.glob("*.whl"):
        old.unlink()
    total = 0
    for name in sorted(wanted):
        try:
            wheel = fetch(name, pinned[name], python, given.folder)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        total += wheel.stat().st_size
        print(f"{wheel.stat().st_size / 1e6:>7.2f} MB  {wheel.name}", flush=True)
    print(f"{total / 1e6:>7.2f} MB  in all, {len(wanted)} wheels in {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
