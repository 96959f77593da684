"""SDXL from beginning to end: `init`, `fit`, `report`, `export` and `merge` on a small family with planted alphas."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from step_by_step import SDXL_ATTENTION, SDXL_BLOCKS, block_of_sdxl, merge_by_steps

from optimizer.cli import main
from optimizer.interchange import EXPORTS, import_text
from optimizer.recipes import block_coefficients, load_recipe

ONE = {block: round(0.1 + 0.02 * n, 2) for n, block in enumerate(SDXL_BLOCKS)}
TWO = {block: round(0.4 - 0.015 * n, 3) for n, block in enumerate(SDXL_BLOCKS)}
IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
SUFFIXES = {"supermerger": "txt", "model-mixer": "json", "mecha": "mecha", "comfyui": "json", "mergekit": "yml"}


def run(*arguments):
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code or 0


@pytest.fixture(scope="module")
def family(tmp_path_factory, write_sdxl, sdxl_tensors):
    """Return a folder with a base, two finetunes and two targets, and the tensors of each file.

    `two` holds both finetunes, `one` the first alone; both have the VAE of the base.
    """
    folder = tmp_path_factory.mktemp("sdxl-family")
    common = sdxl_tensors(width=12)
    base = "sd_xl_base_1.0"
    tensors = {
        name: write_sdxl(folder / f"{name}.safetensors", width=12, seed=seed, around=common, distance=0.3)
        for seed, name in enumerate((base, "x", "y"))
    }
    steps = [
        {"name": "one", "mode": "weight_sum", "a": base, "b": "x", "alpha": ONE},
        {"name": "two", "mode": "add_difference", "a": "one", "b": "y", "c": base, "alpha": TWO},
    ]
    for name, values in merge_by_steps(steps, tensors, block=lambda name: block_of_sdxl(name, "supermerger")).items():
        kept = {key: value for key, value in tensors[base].items() if key.startswith("first_stage_model.")}
        tensors[name] = {key: value.float().contiguous() for key, value in (values | kept).items()}
        save_file({**tensors[name], IDS: torch.arange(77).unsqueeze(0)}, folder / f"{name}.safetensors")
    return folder, tensors


@pytest.fixture(scope="module")
def study(family):
    """Return the folder of a fitted study of both finetunes, which `init` wrote."""
    folder = family[0]
    files = [folder / f"{name}.safetensors" for name in ("two", "y", "sd_xl_base_1.0", "x")]
    assert run("init", *files, "-o", folder / "study", "--quiet") == 0
    assert run("fit", folder / "study", "--quiet") == 0
    return folder / "study"


def sums(recipe):
    """Return the coefficients of x and y by block."""
    rows = block_coefficients(recipe)
    return [{block: rows[name][block] for block in SDXL_BLOCKS} for name in ("x", "y")]


def test_the_layout_and_the_base_are_found(study):
    """`init` recognises SDXL and takes the base by its name; its recipe has 20 free alphas a step."""
    recipe = load_recipe(study / "recipe.yaml")

    assert (recipe.layout.name, recipe.mapping, recipe.vae) == ("sdxl", "supermerger", "base")
    assert recipe.models["base"].file.endswith("sd_xl_base_1.0.safetensors")
    assert [free.blocks for step in recipe.steps for free in step.alpha.free] == [SDXL_BLOCKS] * 2


def test_planted_alphas_are_found(study):
    """The coefficients of both finetunes are found in every block, also of the text encoders."""
    found = sums(load_recipe(study / "best.yaml"))

    assert found == [pytest.approx(ONE, abs=1e-4), pytest.approx(TWO, abs=1e-4)]


def test_attention_finds_planted_alphas(family):
    """A fit by attention finds the alphas of the blocks that have it."""
    folder = family[0]
    files = [folder / f"{name}.safetensors" for name in ("one", "sd_xl_base_1.0", "x")]
    assert run("init", *files, "-o", folder / "seen", "--mode", "weight_sum", "--metric", "attention", "--quiet") == 0
    text = (folder / "seen" / "study.yaml").read_text(encoding="utf-8")
    assert "elsewhere: explained" in text

    assert run("fit", folder / "seen", "--quiet") == 0

    recipe = load_recipe(folder / "seen" / "best.yaml")
    (step,) = recipe.steps
    assert {block: step.alpha.at(block) for block in SDXL_ATTENTION} == pytest.approx(
        {block: ONE[block] for block in SDXL_ATTENTION}, abs=1e-3
    )
    assert step.alpha.at("BASE") == pytest.approx(ONE["BASE"], abs=1e-4)


def test_the_report_draws_20_blocks(study, tmp_path):
    """The page's map has SDXL's 20 blocks with their alphas, and none of Stable Diffusion 1.x's."""
    assert run("report", study, "-o", tmp_path / "report.html", "--quiet") == 0

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    drawn = re.findall(r'<text class="on [\w ]*block"[^>]*>([^<]+)</text>', page)
    assert set(drawn) == set(SDXL_BLOCKS)
    assert len(drawn) % 20 == 0
    assert "2 text encoders" in page
    assert not re.search(r"\bIN09\b|\bOUT09\b|\bOUT11\b", page)
    # Its commands are those of tools that take the recipe as it is.
    assert "--to mecha" in page
    assert "--to comfyui" not in page


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_read_back(study, tmp_path, name):
    """Every tool that knows SDXL gets the recipe, changed where it merges otherwise; its file has the same alphas."""
    path = tmp_path / f"recipe.{SUFFIXES[name]}"
    options = ["--approximate"] if name in ("model-mixer", "comfyui") else []

    assert run("export", study / "best.yaml", "--to", name, "-o", path, *options, "--quiet") == 0

    imported = import_text(path).recipe
    assert imported.layout.name == "sdxl"
    assert sums(imported) == [pytest.approx(ONE, abs=1e-4), pytest.approx(TWO, abs=1e-4)]


def test_the_merge_is_the_target(study, family, tmp_path):
    """The merge of the best recipe is the target, tensor by tensor; position ids are written anew."""
    output = tmp_path / "clone.safetensors"

    assert run("merge", study / "best.yaml", "-o", output, "--dtype", "fp32", "--quiet") == 0

    found = load_file(output)
    assert torch.equal(found.pop(IDS), torch.arange(77).unsqueeze(0))
    assert found.keys() == family[1]["two"].keys()
    for name, value in family[1]["two"].items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)


def test_markers_survive_and_mixed_predictions_warn(family, tmp_path, write_sdxl, capsys):
    """v_pred and ztsnr of the first input survive, and merging it with a model that predicts noise warns."""
    folder, tensors = family
    write_sdxl(folder / "v.safetensors", width=12, seed=9, around=tensors["x"], v_prediction=True)
    recipe = tmp_path / "recipe.yaml"
    models = "".join(f"  {name}: {{file: {json.dumps(str(folder / name))}.safetensors}}\n" for name in ("v", "x"))
    models = models.replace('".safetensors', '.safetensors"')
    recipe.write_text(
        f"layout: sdxl\nmodels:\n{models}steps:\n  - {{name: T, mode: weight_sum, a: v, b: x, alpha: 0.5}}\n",
        encoding="utf-8",
    )

    assert run("merge", recipe, "-o", tmp_path / "merged.safetensors") == 0

    (line,) = capsys.readouterr().err.splitlines()
    assert "x.safetensors: predicts noise, but" in line
    assert "v.safetensors predicts velocity (v_pred) up to zero terminal SNR (ztsnr)" in line
    merged = load_file(tmp_path / "merged.safetensors")
    assert [merged[name].shape for name in ("v_pred", "ztsnr")] == [(0,), (0,)]
    assert run("inspect", tmp_path / "merged.safetensors", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["layout"], found["metadata"]["modelspec.prediction_type"]) == ("sdxl", "v")
    assert found["metadata"]["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
