"""Approximated exports: the nearest recipe that ComfyUI and model-mixer express, with every change named."""

import json
from dataclasses import replace

import pytest
from exporting import MANY, RISING, make_recipe, make_step, recipes
from hypothesis import given, settings
from step_by_step import BLOCKS

from optimizer.errors import RecipeError
from optimizer.interchange import approximate_recipe, export_recipe
from optimizer.recipes import block_coefficients

INSIDE = {block: min(number, 1.0) for block, number in RISING.items()}
WHOLE = make_step("T1", "weight_sum", "base", "x", alpha={**INSIDE, "BASE": 0.0})


def lines(recipe, format_name):
    """Return the changes of an approximation as texts."""
    return [str(change) for change in approximate_recipe(recipe, format_name).changes]


@pytest.mark.parametrize("format_name", ["comfyui", "model-mixer"])
def test_nothing_to_change(format_name):
    """A recipe that the format expresses has no changes, and the same file with and without the option."""
    recipe = make_recipe(WHOLE, mapping="model-mixer")

    assert approximate_recipe(recipe, format_name).changes == ()
    assert export_recipe(recipe, format_name, approximate=True) == export_recipe(recipe, format_name)


def test_alphas_beyond_the_range():
    """For ComfyUI alphas are clipped to 0 and 1; a line for each pair of numbers lists its blocks."""
    alpha = {"IN02": -0.5, "OUT03": 1.25, "OUT04": 1.25, "OUT05": 0.5}
    recipe = make_recipe(make_step("T1", "add_difference", "base", "x", "y", alpha=alpha))

    found = approximate_recipe(recipe, "comfyui")

    assert lines(recipe, "comfyui") == [
        "steps.T1.alpha, IN02: -0.5 -> 0; ComfyUI merges with ratios from 0 to 1",
        "steps.T1.alpha, OUT03-OUT04: 1.25 -> 1; ComfyUI merges with ratios from 0 to 1",
    ]
    clipped = found.recipe.step("T1").alpha
    assert [clipped.at(block) for block in ("IN02", "OUT03", "OUT04", "OUT05", "M00")] == [0, 1, 1, 0.5, 0]
    assert json.loads(export_recipe(recipe, "comfyui", approximate=True))


def test_excess_of_a_triple_sum():
    """For ComfyUI the alpha of a triple sum is lowered until no negative share of a is left."""
    step = make_step("T1", "triple_sum", "base", "x", "y", alpha={"M00": 0.75}, beta={"M00": 0.5})
    recipe = make_recipe(step)

    found = approximate_recipe(recipe, "comfyui")

    assert lines(recipe, "comfyui") == [
        "steps.T1.alpha, M00: 0.75 -> 0.5; alpha + beta is above 1, and ComfyUI keeps no negative a"
    ]
    coefficients = block_coefficients(found.recipe)
    assert [coefficients[name]["M00"] for name in ("base", "x", "y")] == [0, 0.5, 0.5]


@pytest.mark.parametrize("format_name", ["comfyui", "model-mixer"])
def test_mixed_vae(format_name):
    """A mixed VAE becomes that of the source with the largest share, which for model-mixer becomes model A."""
    step = make_step("T1", "weight_sum", "base", "x", alpha=0.75)

    (line,) = lines(make_recipe(step), format_name)
    found = approximate_recipe(make_recipe(step), format_name).recipe

    assert line.startswith("vae: 0.25 x base + 0.75 x x -> x; ")
    assert found.vae == "x"
    data = json.loads(export_recipe(found, format_name))
    if format_name == "model-mixer":
        assert (data["model_a"], data["model_b"]) == ("x.safetensors", "base")
        assert data["weights_alpha"] == [[0.25] * len(BLOCKS)]
    else:
        (saved,) = (node for node in data.values() if node["class_type"] == "CheckpointSave")
        assert data[saved["inputs"]["vae"][0]]["inputs"]["ckpt_name"] == "x.safetensors"


def test_place_of_time_embed():
    """For model-mixer time_embed moves by OUT11, and the line names both blocks and the numbers."""
    step = make_step("T1", "weight_sum", "base", "x", alpha={"IN00": 0.25, "OUT11": 0.5})
    recipe = make_recipe(step)

    (line,) = lines(recipe, "model-mixer")

    assert line == (
        "mapping, model.diffusion_model.time_embed.*: IN00 -> OUT11; model-mixer has its own place for them "
        "(0.25 -> 0.5 in steps.T1.alpha)"
    )
    assert approximate_recipe(recipe, "model-mixer").recipe == replace(recipe, mapping="model-mixer", vae="base")


def test_vae_of_a_long_chain():
    """If model A cannot be the model of the VAE, because the chain is full, the VAE becomes that of model A."""
    names = ["base", *(f"T{n}" for n in range(1, 6))]
    steps = [make_step(names[n], "weight_sum", names[n - 1], f"s{n}", alpha=0.5) for n in range(1, 6)]
    recipe = make_recipe(*steps, mapping="model-mixer", files=MANY, vae="s6")

    found = approximate_recipe(recipe, "model-mixer")

    assert [str(change) for change in found.changes] == ["vae: s6 -> base; model-mixer keeps model A's VAE"]
    assert json.loads(export_recipe(found.recipe, "model-mixer"))["model_a"] == "base.safetensors"


def test_steps_that_become_a_chain():
    """Where the steps change but not the result, that is a note and no change."""
    step = make_step("T1", "sum_twice", "base", "x", "y", alpha={"M00": 0.5}, beta={"OUT01": 0.5})

    found = approximate_recipe(make_recipe(step), "model-mixer")

    assert found.changes == ()
    (note,) = found.notes
    assert note.startswith("steps: model-mixer cannot merge the recipe's; written as Add-Diff of x, y on base")


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(vaes=(None, "y")))
def test_any_recipe(recipe):
    """The approximation of any recipe over few sources is exported, and is its own approximation."""
    for format_name in ("comfyui", "model-mixer"):
        found = approximate_recipe(recipe, format_name)
        assert export_recipe(found.recipe, format_name)
        assert approximate_recipe(found.recipe, format_name).changes == ()


@pytest.mark.parametrize("format_name", ["mecha", "mergekit", "supermerger"])
def test_exact_formats(format_name):
    """Formats that are exact refuse the option, and name those that take it."""
    with pytest.raises(RecipeError) as caught:
        export_recipe(make_recipe(WHOLE), format_name, approximate=True)

    assert caught.value.field == "approximate"
    (problem,) = caught.value.problems
    assert problem == (
        f"received {format_name}, which is exact wherever it is not refused; model-mixer and comfyui are approximated; "
        "leave the option out"
    )
