"""The export to ComfyUI: a valid workflow that, executed node by node, gives the tensors of the steps."""

import json

import pytest
import torch
from exporting import (
    EVERY_MODE,
    NESTED,
    RISING,
    SOURCES,
    TIME_EMBED,
    VAE,
    assert_equal_tensors,
    expected_tensors,
    make_recipe,
    make_step,
    recipes,
    refused,
)
from hypothesis import assume, given, settings
from running_comfyui import carry_out, validate

from optimizer.errors import RecipeError
from optimizer.interchange import export_recipe


def saved(recipe, tensors):
    """Return the tensors of the exported workflow, validated and executed."""
    workflow = json.loads(export_recipe(recipe, "comfyui"))
    validate(workflow)
    return {name: value.float() for name, value in carry_out(workflow, tensors).items()}


@pytest.mark.parametrize("mapping", ["supermerger", "mecha", "model-mixer"])
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_modes_and_mappings(family, mode, mapping):
    """The workflow gives the tensors of the formula, for every mode and mapping."""
    _, tensors = family
    step = EVERY_MODE[mode]
    beta = dict.fromkeys(RISING, 0.1) | {"BASE": 0.0}
    step = make_step("T1", mode, step.a, step.b, step.c, RISING | {"BASE": 0.0}, step.beta and beta)
    recipe = make_recipe(step, mapping=mapping)

    assert_equal_tensors(saved(recipe, tensors), expected_tensors(recipe, tensors))


def test_nested_steps(family):
    """Nested steps that also mix the text encoder give the tensors of the formulas."""
    _, tensors = family
    recipe = make_recipe(*NESTED, mapping="model-mixer")

    assert_equal_tensors(saved(recipe, tensors), expected_tensors(recipe, tensors))


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(low=0.0, high=1.0, vaes=(None, *SOURCES)))
def test_any_recipe(family, recipe):
    """Any recipe is either refused or gives the tensors of its steps."""
    _, tensors = family
    try:
        found = saved(recipe, tensors)
    except RecipeError:
        assume(False)

    assert_equal_tensors(found, expected_tensors(recipe, tensors))


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.3), (0.0, 1.0), (1.0, 0.0), (0.1 + 0.2, 0.7), (0.0, 0.0)])
def test_triple_sums_without_a_share_of_a(family, alpha, beta):
    """A triple sum whose alpha and beta sum to about 1 is exact, also with rounding errors in the sum."""
    _, tensors = family
    recipe = make_recipe(make_step("T1", "triple_sum", "base", "x", "y", alpha, beta), mapping="model-mixer")

    assert_equal_tensors(saved(recipe, tensors), expected_tensors(recipe, tensors))


def test_direction(family):
    """Alpha 0 keeps a and has the ratio 1; alpha 1 takes b and has the ratio 0."""
    workflow = json.loads(
        export_recipe(make_recipe(make_step("T1", "weight_sum", "base", "x", alpha={"OUT05": 1.0})), "comfyui")
    )
    (node,) = (node["inputs"] for node in workflow.values() if node["class_type"] == "ModelMergeSD1")

    assert workflow[node["model1"][0]]["inputs"]["ckpt_name"] == "base.safetensors"
    assert (node["output_blocks.5."], node["output_blocks.6."]) == (0.0, 1.0)


def test_vae_of_the_other_source(family):
    """With BASE at 1 the output has b's VAE."""
    _, tensors = family
    recipe = make_recipe(make_step("T1", "weight_sum", "base", "x", alpha=RISING | {"BASE": 1.0}))

    found = saved(recipe, tensors)

    assert torch.equal(found[f"{VAE}decoder.conv_out.weight"], tensors["x"][f"{VAE}decoder.conv_out.weight"])


def test_mixed_vae():
    """A VAE that is a mix is refused with the step, its number, the mix and advice."""
    (problem,) = refused(make_recipe(make_step("T1", "weight_sum", "base", "x", alpha=0.25)), "comfyui")

    assert problem.startswith("steps.T1.alpha.BASE (0.25): the VAE of T1 becomes 0.75 x base + 0.25 x x, and no node")
    assert "set BASE to 0 or 1, name the model of the VAE in the recipe (vae: base)" in problem
    assert problem.endswith("or export to mecha; `approximate=True` converts it")


def test_ratios_outside():
    """Numbers outside 0 to 1, and triple sums that leave a negative share of a, have a line for each alpha."""
    steps = (
        make_step("T1", "add_difference", "base", "x", "y", alpha={"OUT03": 1.25, "IN02": -0.5, "OUT04": 1.25}),
        make_step("T2", "triple_sum", "T1", "x", "y", alpha={"M00": 0.75}, beta={"M00": 0.5}),
    )

    problems = refused(make_recipe(*steps), "comfyui")

    why = "ComfyUI merges with ratios from 0 to 1 only; export to mecha or mergekit; `approximate=True` converts it"
    assert problems == (
        f"steps.T1.alpha: received -0.5 on IN02, 1.25 on OUT03-OUT04; {why}",
        f"steps.T2: alpha and beta leave a negative share of a: received -0.25 on M00; {why}",
    )


def test_files():
    """Files are listed by name; the same name in two folders, and incomplete names, are refused."""
    step = make_step("T1", "weight_sum", "base", "x", alpha={"OUT05": 1.0})
    workflow = json.loads(export_recipe(make_recipe(step, files={"x": "../models/X v1.safetensors"}), "comfyui"))
    same = refused(make_recipe(step, files={"base": "one/a.safetensors", "x": "two/a.safetensors"}), "comfyui")
    short = refused(make_recipe(step, files={"x": "x"}), "comfyui")

    assert [n["inputs"]["ckpt_name"] for n in workflow.values() if n["class_type"] == "CheckpointLoaderSimple"] == [
        "base.safetensors",
        "X v1.safetensors",
    ]
    (problem,) = same
    assert problem.startswith("models.x.file: received 'two/a.safetensors'; ComfyUI finds files by name, and 'base' is")
    assert short[0].startswith("models.x.file: received 'x'; ComfyUI opens .safetensors, .sft and .ckpt files")


def test_only_ancestors():
    """Steps and sources that the output does not need are left out; nodes have the recipe's names as titles."""
    recipe = make_recipe(*NESTED[:2], output="T1", mapping="model-mixer")

    workflow = json.loads(export_recipe(recipe, "comfyui"))

    titles = {node["_meta"]["title"] for node in workflow.values()}
    assert titles == {"base", "x", "T1", "T1 (mapping model-mixer)"}


def test_time_embed():
    """time_embed has the ratio of its block in the recipe's mapping."""
    numbers = {"BASE": 0.0, "IN00": 0.25, "OUT11": 0.75}
    for mapping, ratio in (("supermerger", 0.75), ("mecha", 1.0), ("model-mixer", 0.25)):
        recipe = make_recipe(make_step("T1", "weight_sum", "base", "x", alpha=numbers), mapping=mapping)
        workflow = json.loads(export_recipe(recipe, "comfyui"))
        (node,) = (node["inputs"] for node in workflow.values() if node["class_type"] == "ModelMergeSD1")
        assert node[TIME_EMBED.removeprefix("model.diffusion_model.")] == ratio
