"""The benchmark of the samplers, on a small family."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "studies" / "benchmarks"


def test_samplers_are_compared(tmp_path):
    """Figures, table and plot of three tasks; blockwise is at the best after nine trials, random sampling is not."""
    for script, *options in (
        ("make_checkpoints.py", tmp_path / "family", "--small", "--sources", "6"),
        (
            "samplers.py", tmp_path / "family", "--trials", "9", "--seeds", "1", "--samplers", "blockwise", "random",
            "--json", tmp_path / "figures.json", "--plot", tmp_path / "regret.png",
        ),
    ):  # fmt: skip
        command = [sys.executable, BENCHMARKS / script, *options]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=250)

    runs = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["runs"]
    last = {(run["task"], run["sampler"]): run["regret"][-1] for run in runs}
    assert {task for task, _ in last} == {"smooth", "bumpy", "attention, FIRST"}
    for task in ("smooth", "attention, FIRST"):
        assert last[task, "blockwise"] < 1e-6 < last[task, "random"]
        assert f"{task:<20}blockwise" in done.stdout
    assert (tmp_path / "regret.png").read_bytes().startswith(b"\x89PNG")
