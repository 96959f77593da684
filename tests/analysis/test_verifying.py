"""The article's recipe is measured step by step, on small files with its sources' names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from step_by_step import as_dicts, attention_by_definition, explained_by_definition, merge_by_steps

from optimizer.analysis import verify
from optimizer.cli import main
from optimizer.errors import CheckpointError, RecipeError
from optimizer.recipes import load_recipe

CONFIG = Path(__file__).parents[2] / "configs" / "blessingmix-v1.yaml"
INPUTS = ("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00")
OUTPUTS = tuple(f"OUT{n:02}" for n in range(3, 12))


@pytest.fixture(scope="module")
def sources(tmp_path_factory, write_sd1, sd1_tensors):
    """A folder with small checkpoints of the article's names, two of them without VAE, and their tensors by name."""
    folder = tmp_path_factory.mktemp("article")
    around = sd1_tensors(seed=0)
    recipe = load_recipe(CONFIG)
    for seed, (name, model) in enumerate(recipe.models.items()):
        write_sd1(folder / model.file, seed=seed, around=around, vae="NoVae" not in name)
    return folder, {name: load_file(folder / model.file) for name, model in recipe.models.items()}


def in_order(recipe):
    """Return the steps of both endings, each once and after its inputs."""
    endings = ("BlessingMix V1", "BlessingMix V1-EvoEnc")
    return {step.name: step for name in endings for step in recipe.ancestors(name)}.values()


@pytest.mark.filterwarnings("ignore::optimizer.errors.BlockfitWarning")  # two sources have no VAE
def test_every_step_of_the_articles_recipe_is_measured(sources):
    """Each of the 18 steps has the similarity of its merged result by its metric's definition."""
    folder, tensors = sources
    recipe = load_recipe(CONFIG)
    target = folder / "BracingEvoMix_v1.safetensors"

    found = verify(recipe, {name: folder / model.file for name, model in recipe.models.items()}, target)

    assert [verified.step for verified in found] == [step.name for step in recipe.steps]
    merged = merge_by_steps(as_dicts(in_order(recipe)), tensors)
    for verified in found:
        blocks = {"TEMP": OUTPUTS, "FINAL_O": OUTPUTS, "SAVE": INPUTS, "FINAL_I": INPUTS}
        scored = next((blocks[start] for start in blocks if verified.step.startswith(start)), ())
        if scored:
            expected = attention_by_definition(merged[verified.step], tensors["BracingEvoMix_v1"], scored, 114514)
        else:
            # A step without an expectation is measured by `explained`, with the recipe's first model as base.
            first = tensors[next(iter(recipe.models))]
            expected = explained_by_definition(merged[verified.step], tensors["BracingEvoMix_v1"], first)
        assert verified.metric == ("attention" if scored else "explained")
        assert dict(verified.measured) == pytest.approx(expected, abs=2e-6)
        assert verified.total == pytest.approx(sum(expected.values()) / len(expected), abs=2e-6)
        assert verified.not_measurable == (("IN09",) if scored == INPUTS else ())
        assert verified.expected == recipe.step(verified.step).expect


def run(*arguments):
    """Return the exit code of the command."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


def test_command_prints_measured_beside_expected(sources, capsys, tmp_path, monkeypatch):
    """The command prints every step, the article's figures beside ours, and "not measurable" for IN09."""
    monkeypatch.setenv("COLUMNS", "160")
    folder, _ = sources
    target = folder / "BracingEvoMix_v1.safetensors"

    assert run("verify", CONFIG, "--target", target, "--models", folder) == 0
    rows = [[cell.strip() for cell in line.strip("│|").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert run("verify", CONFIG, "--target", target, "--models", folder, "--json") == 0
    steps = json.loads(capsys.readouterr().out)

    measured = {step["step"]: step for step in steps}
    assert len(measured) == 18
    assert ["", "IN09", "not measurable", "99.6233%", "-"] in rows
    out03 = measured["FINAL_OUTPUTS"]["blocks"]["OUT03"]
    assert out03["expected"] == 0.974805
    shown = [f"{100 * out03['measured']:.4f}%", "97.4805%", f"{100 * (out03['measured'] - 0.974805):+.4f}"]
    assert ["FINAL_OUTPUTS", "OUT03", *shown] in rows
    assert measured["FINAL_INPUTS"]["blocks"]["IN09"] == {"measured": None, "expected": 0.996233}
    assert measured["FINAL_INPUTS"]["not_measurable"] == ["IN09"]
    assert any(row[:2] == ["", "total without IN09"] and row[3] == "98.6075%" for row in rows)
    assert measured["BlessingMix V1"]["total"]["expected"] is None


def test_expectations_may_use_any_metric(tmp_path, write_sd1, sd1_tensors):
    """An expectation may use any metric; delta takes its base from the call, and its lack is reported."""
    around = sd1_tensors(seed=0)
    tensors = {
        name: write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=around)
        for seed, name in enumerate(("a", "b", "target"))
    }
    text = (
        "models: {a: {file: a}, b: {file: b}}\nsteps:\n"
        "  - {name: T, mode: weight_sum, a: a, b: b, alpha: 0.3, expect: {metric: METRIC, blocks: OUT06, total: 0.5}}\n"
    )
    path, paths = tmp_path / "recipe.yaml", {name: tmp_path / f"{name}.safetensors" for name in ("a", "b")}

    def measured(metric, **options):
        path.write_text(text.replace("METRIC", metric), "utf-8")
        (verified,) = verify(load_recipe(path), paths, tmp_path / "target.safetensors", **options)
        return verified.measured["OUT06"]

    names = [name for name in tensors["a"] if name.startswith("model.diffusion_model.output_blocks.6.")]
    base, second, aim = (torch.cat([tensors[m][n].double().flatten() for n in names]) for m in ("a", "b", "target"))
    merged = 0.7 * base + 0.3 * second
    cosine = torch.nn.functional.cosine_similarity
    assert measured("weights") == pytest.approx(float(cosine(merged, aim, dim=0)), abs=1e-9)
    assert measured("delta", base="a") == pytest.approx(float(cosine(merged - base, aim - base, dim=0)), abs=1e-9)
    with pytest.raises(RecipeError, match=r"steps\.T\.expect\.metric: delta needs a base; name it \(`base`\)"):
        measured("delta")
    with pytest.raises(
        RecipeError, match=r"steps\.T\.expect\.metric: received 'beauty'; must be one of explained, delta"
    ):
        measured("beauty")
    again = text.replace("METRIC", "beauty").replace("name: T,", "name: U,").split("steps:")[1]
    path.write_text(text.replace("METRIC", "beauty") + again, "utf-8")
    with pytest.raises(
        RecipeError, match=r"^steps\.T\.expect\.metric, steps\.U\.expect\.metric: received 'beauty'; .*$"
    ):
        verify(load_recipe(path), paths, tmp_path / "target.safetensors")


def test_missing_source_is_reported_in_one_line(sources, capsys, tmp_path):
    """A missing source file is bad input: one line with the model, the file and the folders searched."""
    folder, tensors = sources
    save_file(tensors["BracingEvoMix_v1"], tmp_path / "BracingEvoMix_v1.safetensors")

    assert run("verify", CONFIG, "--target", tmp_path / "BracingEvoMix_v1.safetensors", "--models", tmp_path) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert "models.OpenBra.file: 'OpenBra.safetensors' not found; looked in" in lines[0]
    recipe = load_recipe(CONFIG)
    paths = {name: folder / model.file for name, model in recipe.models.items()}
    with pytest.raises(CheckpointError, match="no such file"):
        verify(recipe, paths, tmp_path / "nowhere.safetensors")


def test_source_with_the_targets_name_is_its_own_file(tmp_path, write_sd1, sd1_tensors, capsys):
    """A source with the target's name is its own file; only if that is missing, the target takes its place."""
    around, text = sd1_tensors(), "models: {a: {file: a}, b: {file: b}}\nsteps:\n"
    (tmp_path / "models").mkdir()
    for folder, name, seed in (("models", "a", 1), ("models", "b", 2), (".", "b", 3)):
        write_sd1(tmp_path / folder / f"{name}.safetensors", seed=seed, around=around)
    recipe = tmp_path / "models" / "recipe.yaml"
    recipe.write_text(text + "  - {name: T, mode: weight_sum, a: a, b: b, alpha: 1.0}\n", encoding="utf-8")

    def total():
        assert run("verify", recipe, "--target", tmp_path / "b.safetensors", "--json") == 0
        printed = capsys.readouterr()
        return json.loads(printed.out)[0]["total"]["measured"], printed.err

    measured, warnings = total()
    (tmp_path / "models" / "b.safetensors").unlink()
    taken, warnings_then = total()

    assert measured < 0.999
    assert warnings == ""
    assert taken == pytest.approx(1, abs=1e-6)
    assert "models.b.file: 'b' is taken to be the target" in warnings_then
