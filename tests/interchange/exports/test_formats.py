"""Properties of all exports, and the command."""

import re
from dataclasses import replace

import pytest
from exporting import make_recipe, make_step, refused
from step_by_step import BLOCKS
from typer.testing import CliRunner

from optimizer.cli import app
from optimizer.errors import InputError, RecipeError
from optimizer.families import Tools, layout_names, load_layout
from optimizer.interchange import EXPORTS, export_recipe
from optimizer.recipes import Alpha, Free, load_recipe, save_recipe

SIMPLE = make_step("T1", "weight_sum", "base", "x", alpha={"OUT05": 0.5, "OUT06": 0.25})


@pytest.fixture
def recipe_file(tmp_path):
    """Write a recipe that every format can express, and return its path."""
    save_recipe(make_recipe(SIMPLE), tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


def run(*arguments):
    """Return the command's result; `exception` has the problems that it would print."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", EXPORTS)
def test_free_alphas(name):
    """Free alphas are refused by step and blocks, but only in steps that the output needs."""
    alpha = Alpha({block: 0.0 for block in BLOCKS if block != "OUT05"}, (Free(0, 1, ("OUT05",)),))
    free = replace(SIMPLE, alpha=alpha)
    (problem,) = refused(make_recipe(free), name)

    assert problem.startswith("steps.T1.alpha: free on OUT05, and only numbers can be exported; fit the recipe first")
    assert export_recipe(make_recipe(SIMPLE, replace(free, name="other"), output="T1"), name)


def test_free_alphas_of_several_steps():
    """Steps whose alphas are free on the same blocks are refused in one line."""
    free_alphas = (Free(0, 1, ("OUT05",)), Free(0, 1, ("OUT03", "OUT04"), tie=True))
    free = Alpha({block: 0.0 for block in BLOCKS if block not in ("OUT03", "OUT04", "OUT05")}, free_alphas)
    second = replace(SIMPLE, name="T2", a="T1", alpha=free)

    (problem,) = refused(make_recipe(replace(SIMPLE, alpha=free), second, output="T2"), "mecha")

    assert problem.startswith("steps.T1.alpha, steps.T2.alpha: free on OUT03-OUT05, and only numbers can be exported;")


@pytest.mark.parametrize("name", EXPORTS)
def test_same_text_every_time(name):
    """The same recipe always gives the same text."""
    assert export_recipe(make_recipe(SIMPLE), name) == export_recipe(make_recipe(SIMPLE), name)


def test_unknown_format():
    """An unknown format is refused with the list of formats."""
    with pytest.raises(
        RecipeError, match=r"^format_name: received 'comfy'; must be one of supermerger, model-mixer, mecha, comfyui"
    ):
        export_recipe(make_recipe(SIMPLE), "comfy")


def test_other_layouts():
    """A family that an export does not support is refused."""
    recipe = replace(make_recipe(SIMPLE), layout=replace(load_layout("sd1"), name="sd9", tools=Tools()))

    able = ", ".join(name for name in layout_names() if load_layout(name).tools.mecha is not None)
    assert refused(recipe, "mecha") == (f"layout: received 'sd9'; the mecha export takes {able}",)


@pytest.mark.parametrize("name", EXPORTS)
def test_command(recipe_file, name):
    """The command writes the file over an old one, and prints the step and the path."""
    target = recipe_file.with_name("out.txt")
    target.write_text("before")

    result = run("export", recipe_file, "--to", name, "-o", target)

    assert result.exit_code == 0
    assert result.stdout == f"T1 -> {target}\n"
    assert target.read_text(encoding="utf-8") == export_recipe(load_recipe(recipe_file), name)


@pytest.mark.parametrize("name", EXPORTS)
def test_mapping_is_written(name):
    """The text of every format contains the mapping of its numbers."""
    mapping = name if name in ("supermerger", "model-mixer", "mecha") else "model-mixer"
    recipe = replace(make_recipe(SIMPLE), mapping=mapping)

    assert re.search(rf'mapping"?:? "?{mapping}\b', export_recipe(recipe, name))


def test_command_writes_nothing_on_errors(recipe_file):
    """A refused export changes no file and leaves none behind."""
    target = recipe_file.with_name("out.json")
    target.write_text("before")
    save_recipe(make_recipe(make_step("T1", "weight_sum", "base", "x", alpha=0.5)), recipe_file)

    for arguments in (("--to", "comfyui", "-o", target), ("--to", "nonsense", "-o", target)):
        result = run("export", recipe_file, *arguments)
        assert isinstance(result.exception, InputError)
    assert target.read_text() == "before"
    assert sorted(path.name for path in recipe_file.parent.iterdir()) == ["out.json", "recipe.yaml"]


def test_command_onto_the_recipe(recipe_file):
    """An output that is the recipe itself is refused."""
    before = recipe_file.read_bytes()

    result = run("export", recipe_file, "--to", "mecha", "-o", recipe_file.parent / "." / "recipe.yaml")

    assert "is the recipe itself" in str(result.exception)
    assert recipe_file.read_bytes() == before


def test_help_names_every_format():
    """The command's help lists all formats and has an example."""
    shown = " ".join(run("export", "--help").stdout.split())

    assert all(name in shown for name in EXPORTS)
    assert "blockfit export best.yaml --to comfyui -o workflow.json" in shown.split("Examples:")[1]
