"""Fetch the wheels that blockfit needs on a machine with a GPU and torch, but without a network.

    make gpu-wheels PYTHON_VERSION=3.12 PRESENT="numpy scipy pandas"
    python studies/benchmarks/gpu_wheels.py .wheels --python-version 3.12 --present there.txt

The script finds the requirements of blockfit and of its GPU tests in the metadata of this environment, which must have
both installed. Versions are those of constraints.txt. It leaves out torch, distributions that only torch needs, and
distributions that the machine has. These are given as names or as a file with the output of `pip list --format=freeze`.
A distribution whose version there is too old is fetched. Wheels are for Linux on x86-64. A distribution that is
published only as source is built here, and must be pure Python.
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
# Imported by the tests marked cuda, besides blockfit and its requirements.
TESTS = ("pytest", "pytest-timeout", "hypothesis", "psycopg[binary]")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def needed(roots: Iterable[str], python: str) -> dict[str, SpecifierSet]:
    """Return the distributions that `roots` need, except torch and distributions that only torch needs.

    Args:
        roots: Requirements, such as "blockfit[all]". They are part of the result.
        python: The Python version of the machine, such as "3.12". Its system is Linux on x86-64.

    All distributions must be installed here.

    Returns:
        {distribution: versions that satisfy all requirements}.

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
    """Yield (name, version or None) of the distributions in a list of names and of files with one name per line."""
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
    """Fetch a distribution's wheel, or build it from source.

    Args:
        name: The distribution.
        version: Its version.
        python: The Python version of the machine, such as "3.12".
        folder: The folder for the wheel.

    Returns:
        The wheel.

    Raises:
        RuntimeError: If pip fails, or the wheel would run on this machine alone.

    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    requirement = f"{name}=={version}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        platforms = [part for platform in PLATFORMS for part in ("--platform", f"{platform}_x86_64")]
        target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
        done = _run([*pip, "download", "--no-deps", *target, "--dest", scratch, requirement])
        if done.returncode:
            done = _run([*pip, "wheel", "--no-deps", "--wheel-dir", scratch, requirement])
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise RuntimeError(f"{requirement}: {done.stderr.strip()[-500:]}")
        fits = wheels[0].name.endswith("-none-any.whl") or "manylinux" in wheels[0].name
        if not fits:
            raise RuntimeError(f"{requirement}: {wheels[0].name} runs on this machine alone")
        return wheels[0].replace(folder / wheels[0].name)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


def main() -> int:
    """Read the command line, fetch the wheels, print names and sizes, and return the exit code."""
    parser = argparse.ArgumentParser(description="Fetch the wheels that a machine with a GPU lacks.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--python-version", default=f"{sys.version_info[0]}.{sys.version_info[1]}", metavar="3.N")
    parser.add_argument("--present", nargs="*", default=[], metavar="NAME|FILE", help="distributions of that machine")
    parser.add_argument("--list", action="store_true", help="print the names and fetch nothing")
    given = parser.parse_args()
    python = given.python_version
    missing = needed(["blockfit[all]", *TESTS], python)
    del missing["blockfit"]
    for name, version in present(given.present):
        if name in missing and (version is None or missing[name].contains(version, prereleases=True)):
            del missing[name]
    pinned = versions()
    if unknown := sorted(name for name in missing if name not in pinned):
        print(f"constraints.txt: has no version of {', '.join(unknown)}", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(f"{name}=={pinned[name]}" for name in sorted(missing)))
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    for old in given.folder.glob("*.whl"):
        old.unlink()
    total = 0
    for name in sorted(missing):
        try:
            wheel = fetch(name, pinned[name], python, given.folder)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        total += wheel.stat().st_size
        print(f"{wheel.stat().st_size / 1e6:>7.2f} MB  {wheel.name}", flush=True)
    print(f"{total / 1e6:>7.2f} MB  in all, {len(missing)} wheels in {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
