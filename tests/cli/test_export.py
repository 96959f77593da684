"""The command `export --approximate`: every change and the measured loss, on stderr and as JSON."""

import json

import pytest

from optimizer.cli import main
from optimizer.recipes import new_recipe, save_recipe

SOURCES = ("base", "x", "y")
STEP = {"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "y"}
BEYOND = "steps.T1.alpha, OUT03: 1.25 -> 1; ComfyUI merges with ratios from 0 to 1"


@pytest.fixture
def here(tmp_path, monkeypatch, write_sd1, sd1_tensors):
    """Return the working directory, with a recipe beyond ComfyUI's ratios, and its models in the folder `models`."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    common = sd1_tensors(seed=0)
    (tmp_path / "models").mkdir()
    for seed, name in enumerate(SOURCES, 1):
        write_sd1(tmp_path / "models" / f"{name}.safetensors", seed=seed, around=common)
    alpha = {"OUT03": 1.25, "OUT04": 0.5}
    recipe = new_recipe({name: f"{name}.safetensors" for name in SOURCES}, [{**STEP, "alpha": alpha}])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    return tmp_path


def run(*arguments):
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_way_on(here, capsys):
    """Without the option the export is refused, names the option, and writes nothing."""
    assert run("export", "recipe.yaml", "--to", "comfyui", "-o", "workflow.json") == 2

    assert capsys.readouterr().err.endswith("export to mecha or mergekit; --approximate converts it\n")
    assert not (here / "workflow.json").exists()


def test_changes_and_loss(here, capsys):
    """With the option each change is a line on stderr, the last line the loss: 0.25^2 of 1.25^2 in the one block."""
    assert (
        run("export", "recipe.yaml", "--to", "comfyui", "-o", "workflow.json", "--approximate", "--models", "models")
        == 0
    )

    printed = capsys.readouterr()
    change, loss = printed.err.splitlines()
    assert change == f"blockfit: warning: recipe.yaml: {BEYOND}"
    assert loss.startswith("blockfit: warning: recipe.yaml: loss: 0.0")
    assert loss.endswith(" of |merge - base|^2 (worst block OUT03: 0.04)")
    assert printed.out == "T1 -> workflow.json\n"
    assert json.loads((here / "workflow.json").read_text(encoding="utf-8"))


def test_json(here, capsys):
    """With --json the changes and the loss are values, and null if nothing was changed."""
    arguments = ("export", "recipe.yaml", "-o", "workflow.json", "--approximate", "--models", "models", "--json")
    assert run(*arguments, "--to", "comfyui") == 0
    changed = json.loads(capsys.readouterr().out)
    assert run(*arguments, "--to", "model-mixer") == 0
    same = json.loads(capsys.readouterr().out)

    (change,) = changed["approximated"]
    assert change == {
        "field": "steps.T1.alpha",
        "blocks": "OUT03",
        "before": "1.25",
        "after": "1",
        "reason": "ComfyUI merges with ratios from 0 to 1",
    }
    loss = changed["loss"]
    assert (loss["worst"], loss["measured"], loss["base"]) == ("OUT03", "checkpoints", "base")
    assert loss["blocks"]["OUT03"] == pytest.approx(0.04)
    assert 0 < loss["total"] < 0.04
    assert (loss["blocks"]["OUT04"], loss["vae"], loss["explained"]) == (0, None, None)
    assert (same["approximated"], same["loss"], same["notes"]) == ([], None, [])
    assert run(*arguments[:-1], "--to", "model-mixer") == 0
    assert capsys.readouterr().out == "T1 -> workflow.json, exact: nothing was approximated\n"


def test_no_files_to_measure(here, capsys):
    """Without statistics and checkpoints the loss cannot be measured: one line, and nothing is written."""
    assert run("export", "recipe.yaml", "--to", "comfyui", "-o", "workflow.json", "--approximate") == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "blockfit: --approximate: the loss cannot be measured, neither from a study's statistics nor"
    )
    assert "--models" in line
    assert not (here / "workflow.json").exists()


def test_exact_formats(here, capsys):
    """A format that is always exact refuses the option with the reason."""
    assert run("export", "recipe.yaml", "--to", "mecha", "-o", "recipe.mecha", "--approximate") == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "blockfit: --approximate: recipe.yaml: received mecha, which is exact wherever it is not refused"
    )


def test_notes(here, capsys):
    """What to set in the tool is a line on stderr, and a value with --json."""
    recipe = new_recipe({name: f"{name}.safetensors" for name in SOURCES}, [{**STEP, "alpha": 0.5}], vae="base")
    save_recipe(recipe, here / "copied.yaml")

    assert run("export", "copied.yaml", "--to", "supermerger", "-o", "steps.txt") == 0
    line = capsys.readouterr().err
    assert run("export", "copied.yaml", "--to", "supermerger", "-o", "steps.txt", "--json") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]

    assert line == f"blockfit: warning: copied.yaml: {note}\n"
    assert '"Bake in VAE"' in note
