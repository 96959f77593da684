"""The benchmarks as scripts, and a small family for them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a function that runs a benchmark with arguments in a separate process."""

    def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "studies" / "benchmarks" / name), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=850)

    return script


@pytest.fixture(scope="session")
def family(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small family of eight sources."""
    folder = tmp_path_factory.mktemp("family")
    done = run("make_checkpoints.py", folder, "--small", "--sources", 8)
    assert done.returncode == 0, done.stderr
    return folder
