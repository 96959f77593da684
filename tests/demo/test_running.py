"""`blockfit demo` from the built wheel: what a new user runs first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from optimizer.merging import merge
from optimizer.recipes import load_recipe
from optimizer.similarity import compare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `optimizer` is the installed wheel, not the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(built)], check=True)
    return {**os.environ, "PYTHONPATH": str(site), "BLOCKFIT_CACHE": str(folder / "cache")}


@pytest.fixture(scope="module")
def demo(wheel: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo filled, and what it printed."""
    folder = tmp_path_factory.mktemp("somewhere") / "my first fit"
    done = subprocess.run(
        [sys.executable, "-m", "optimizer", "demo", str(folder)],
        env=wheel, cwd=folder.parent, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_demo_leaves_all_results(demo: tuple[Path, str]) -> None:
    """Each of the four studies leaves its recipe, trials and log; the sheet has pictures in it."""
    folder, _ = demo

    for study in (folder, folder / "attention", folder / "stepwise", folder / "article"):
        assert {"best.yaml", "trials.csv", "fit.log", "study.db"} <= {path.name for path in study.iterdir()}
    with Image.open(folder / "digits.png") as sheet:
        assert len(sheet.convert("L").getcolors(256) or []) > 100


def test_demo_fits_and_stitches_all_parts(demo: tuple[Path, str]) -> None:
    """Of the article's form outputs, inputs, middle and base are all fitted, and the final model consists of them."""
    folder, _ = demo
    recipe = load_recipe(folder / "article" / "best.yaml")
    assert recipe.fitted is not None
    stages = {search.name: search.blocks.split(",") for search in recipe.fitted.searches}
    assert sorted(block for blocks in stages.values() for block in blocks) == sorted(recipe.layout.blocks)
    assert stages["base"] == ["BASE"]
    scores = recipe.step("ENCODER").similarity["encoder"]
    paths = {name: folder / "article" / model.file for name, model in recipe.models.items()}

    assembled = load_file(folder / "assembled.safetensors")
    for step, part in (
        ("FINAL_OUTPUTS", "model.diffusion_model.output_blocks."),
        ("FINAL_INPUTS", "model.diffusion_model.input_blocks."),
        ("FINAL_INPUTS", "model.diffusion_model.middle_block."),
        ("ENCODER", "cond_stage_model."),
    ):
        alone = folder / f"{step}.safetensors"
        merge(recipe, paths, alone, step=step)
        names = [name for name in assembled if name.startswith(part)]
        assert names
        parts = load_file(alone)
        assert all(torch.equal(assembled[name], parts[name]) for name in names)
    assert scores["total"] > max(
        compare(path, folder / "target.safetensors", metric="encoder")["BASE"] for path in paths.values()
    )


def test_demo_prints_a_verdict_and_fitted_beside_true(demo: tuple[Path, str]) -> None:
    """At most 60 lines hold the verdict, true and fitted coefficients, the source that is missing, and the report."""
    folder, printed = demo

    for word in (
        "true",
        "delta",
        "attention",
        "stepwise",
        "article",
        "amber",
        "slanted",
        "is from",
        "is not: leave it",
    ):
        assert word in printed
    lines = printed.splitlines()
    assert len(lines) <= 60
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert "<h1>target</h1>" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_fit_is_nearer_than_the_unfitted_merge(demo: tuple[Path, str]) -> None:
    """The pictures of both fitted recipes are nearer to the target's than those of the unfitted merge."""
    line = next(line for line in demo[1].splitlines() if line.startswith("mean distance: "))
    found = {
        name: float(distance)
        for name, _, distance in (part.rpartition(" ") for part in line.removeprefix("mean distance: ").split(", "))
    }
    assert found["fit"] < 0.7 * found["50/50"]
    assert found["article"] < 0.7 * found["50/50"]


@pytest.mark.slow
def test_fit_never_reads_the_answer(demo: tuple[Path, str], wheel: dict[str, str]) -> None:
    """With the answer's folder gone, a fit from the start finds the same recipe."""
    folder, _ = demo
    before = (folder / "best.yaml").read_text(encoding="utf-8")
    (folder / "answer").rename(folder.parent / "answer put away")
    command = [sys.executable, "-m", "optimizer"]
    subprocess.run([*command, "fit", str(folder), "--fresh"], env=wheel, check=True, capture_output=True)
    shown = subprocess.run([*command, "status", str(folder), "--json"], env=wheel, check=True, capture_output=True)

    assert (folder / "best.yaml").read_text(encoding="utf-8") == before
    (status,) = json.loads(shown.stdout)["searches"]
    assert status["completed"] == status["budget"] == 8
