"""The export to sd-webui-model-mixer: the metadata that it loads, and the recipes that it cannot merge."""

import json
from dataclasses import replace

import pytest
from exporting import EVERY_MODE, FALLING, RISING, make_recipe, make_step, refused
from step_by_step import BLOCKS

from optimizer.interchange import export_recipe

CHAIN = (
    make_step("T1", "weight_sum", "base", "x", alpha=RISING),
    make_step("T2", "add_difference", "T1", "y", "x", alpha=FALLING),
)


def test_metadata():
    """The fields are those of model-mixer's metadata: 26 numbers for each step, BASE first, and the models."""
    recipe = make_recipe(*CHAIN, mapping="model-mixer", files={"base": "sub/my base.safetensors"})

    data = json.loads(export_recipe(recipe, "model-mixer"))

    assert data["type"] == "sd-webui-model-mixer"
    assert data["blocks"] == ",".join(BLOCKS)
    assert data["weights_alpha"] == [list(RISING.values()), list(FALLING.values())]
    assert [[float(n) for n in text.split(",")] for text in data["weights_alpha_orig"]] == data["weights_alpha"]
    assert data["alpha"] == [RISING["BASE"], FALLING["BASE"]]
    assert (data["model_a"], data["model_b"], data["model_c"]) == ("my base.safetensors", "x", "y")
    assert data["base_model"] == "x.safetensors"
    assert data["mode"] == ["Sum", "Add-Diff"]
    assert data["calcmode"] == ["Normal", "Normal"]
    assert data["use_mbw"] == data["use_mbws"] == data["uses"] == [True, True]
    assert data["use_elemental"] == [False, False]
    assert data["recipe"].startswith("(my base * (1 - alpha_0) + x * alpha_0) + (y - x) * alpha_1(0.1,0.13,")


def test_known_hashes():
    """Model A is named with its hash, as in the WebUI, if the recipe has the hash."""
    recipe = make_recipe(CHAIN[0], mapping="model-mixer")
    object.__setattr__(recipe.models["base"], "sha256", "0123456789abcdef" * 4)

    assert json.loads(export_recipe(recipe, "model-mixer"))["model_a"] == "base.safetensors [0123456789]"


def test_steps_that_are_no_chain():
    """A step as b or c, and a second base model, are refused, with a line for each."""
    steps = (
        make_step("T1", "weight_sum", "base", "x", alpha=0.5),
        make_step("T2", "weight_sum", "x", "y", alpha=0.5),
        make_step("T3", "add_difference", "T1", "T2", "base", alpha=0.5),
        make_step("T4", "add_difference", "T3", "x", "y", alpha=0.5),
    )

    nested, base = refused(make_recipe(*steps, mapping="model-mixer"), "model-mixer")

    assert nested.startswith("steps.T3.b: received the step 'T2'; model-mixer takes only files beside its one chain")
    assert base.startswith("steps.T4.c: received 'y'; model-mixer subtracts the same base model in every step, ")
    assert "`merge(step=...)`" in nested
    assert "`merge(step=...)`" in base


@pytest.mark.parametrize("mode", ["triple_sum", "sum_twice"])
def test_other_modes(mode):
    """A mode with three models is refused by name, with advice."""
    problems = refused(make_recipe(EVERY_MODE[mode], mapping="model-mixer"), "model-mixer")

    (problem,) = problems
    assert problem.startswith(f"steps.T1.mode: received {mode}; model-mixer merges one model a step")
    assert problem.endswith("write it as two steps, or export to comfyui or mecha")


def test_steps_with_the_same_problem():
    """Several steps of the same unsupported mode are refused in one line."""
    first = EVERY_MODE["sum_twice"]
    steps = (first, replace(first, name="T2", a="T1"), replace(first, name="T3", a="T2"))

    (problem,) = refused(make_recipe(*steps, mapping="model-mixer", output="T3"), "model-mixer")

    assert problem.startswith("steps.T1.mode, steps.T2.mode, steps.T3.mode: received sum_twice; model-mixer merges one")


def test_too_many_steps():
    """A chain of more steps than model-mixer can merge is refused."""
    names = ["base", *(f"T{n}" for n in range(6))]
    steps = [make_step(names[n + 1], "weight_sum", names[n], "x", alpha=0.5) for n in range(6)]

    (problem,) = refused(make_recipe(*steps, mapping="model-mixer"), "model-mixer")

    assert problem.startswith("steps: T5 is a chain of 6; model-mixer merges at most 5 models")


def test_alphas_that_nearly_agree():
    """Where mappings differ, alphas may differ by less than 1e-9; a larger difference is refused in full digits."""
    same = make_step("T1", "weight_sum", "base", "x", alpha={"IN00": 0.9999999999999992, "OUT11": 1.0})
    different = make_step("T1", "weight_sum", "base", "x", alpha={"IN00": 0.99999999, "OUT11": 1.0})

    assert json.loads(export_recipe(make_recipe(same), "model-mixer"))
    (problem,) = refused(make_recipe(different), "model-mixer")
    assert problem.startswith("steps.T1.alpha (0.99999999, not 1): ")


def test_mappings():
    """Another mapping passes if it makes no difference, and is refused by step and tensors if it does."""
    same = make_step("T1", "weight_sum", "base", "x", alpha={"IN00": 0.4, "OUT11": 0.4, "OUT05": 0.7})
    different = make_step("T1", "weight_sum", "base", "x", alpha={"IN00": 0.4, "OUT11": 0.6, "BASE": 0.2})

    exported = json.loads(export_recipe(make_recipe(same), "model-mixer"))
    problems = refused(make_recipe(different), "model-mixer")

    assert exported["weights_alpha"][0][BLOCKS.index("OUT05")] == 0.7
    embed, vae = problems
    assert embed.startswith("steps.T1.alpha (0.4, not 0.6): model.diffusion_model.time_embed.* merges by IN00 with the")
    assert "mapping, supermerger, but by OUT11 in model-mixer" in embed
    assert vae.startswith("steps.T1.alpha (0.2, not 0): first_stage_model.* merges by BASE")
    assert vae.endswith("but by no block in model-mixer; make the two equal, or fit with mapping: model-mixer")
