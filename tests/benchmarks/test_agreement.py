"""The benchmark that compares merges with those of other tools, on a small family."""

import json

import pytest


@pytest.mark.slow
def test_small_family_agrees(run, family, tmp_path):
    """A mode agrees with sd-mecha and the formulas to 1e-6 in every block, and diffusers takes a step."""
    done = run("agreement.py", family, "--modes", "weight_sum", "--json", tmp_path / "figures.json")

    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert figures["tolerance"] == 1e-6
    assert set(figures["weight_sum"]) == {"mecha", "supermerger"}
    for blocks in figures["weight_sum"].values():
        assert len(blocks) == 26
        # A difference of 0 would mean that nothing was compared, or a file with itself.
        assert all(0 < difference <= 1e-6 for difference in blocks.values())
    assert figures["unet"] > 0
    assert [path.name for path in family.glob("agreement-*")] == []
