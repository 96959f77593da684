"""The benchmark of the samplers, on a small family."""

import json

import pytest


@pytest.mark.slow
def test_samplers_are_compared(run, family, tmp_path):
    """After nine trials blockwise has found the best points of three tasks, and random sampling has not."""
    done = run(
        "samplers.py", family, "--trials", "9", "--seeds", "1", "--samplers", "blockwise", "random",
        "--json", tmp_path / "figures.json", "--plot", tmp_path / "regret.png",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]["runs"]
    last = {(each["task"], each["sampler"]): each["regret"][-1] for each in runs}
    assert {task for task, _ in last} == {"smooth", "bumpy", "attention, FIRST"}
    for task in ("smooth", "attention, FIRST"):
        assert last[task, "blockwise"] < 1e-6 < last[task, "random"]
        assert f"{task:<20}blockwise" in done.stdout
    assert (tmp_path / "regret.png").read_bytes().startswith(b"\x89PNG")
