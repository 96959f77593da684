"""The export to sd-webui-model-mixer: the metadata that it loads, and the recipes that it cannot merge."""

import json

import pytest
from exporting import EVERY_MODE, EVERY_MODE_CHAINED, FALLING, MANY, NESTED, RISING, make_recipe, make_step, refused
from step_by_step import BLOCKS

from optimizer.interchange import export_notes, export_recipe
from optimizer.recipes import block_coefficients

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
    """With seven sources a step as b or c, and a second base model, are refused, with a line for each."""
    steps = (
        make_step("T1", "weight_sum", "base", "s1", alpha=0.5),
        make_step("S1", "triple_sum", "s2", "s3", "s4", alpha=0.5, beta=0.25),
        make_step("S2", "weight_sum", "s5", "s6", alpha=0.5),
        make_step("T3", "add_difference", "T1", "S1", "base", alpha=0.5),
        make_step("T4", "add_difference", "T3", "S2", "s1", alpha=0.25),
    )

    first, second, base = refused(make_recipe(*steps, mapping="model-mixer", files=MANY), "model-mixer")

    assert first.startswith("steps.T3.b: received the step 'S1'; model-mixer takes only files beside its one chain")
    assert second.startswith("steps.T4.b: received the step 'S2'; model-mixer takes only files beside its one chain")
    assert base.startswith("steps.T4.c: received 's1'; model-mixer subtracts the same base model in every step, ")
    assert "`merge(step=...)`" in first
    assert "`merge(step=...)`" in base


@pytest.mark.parametrize("mode", ["triple_sum", "sum_twice"])
def test_other_modes(mode):
    """With seven sources several steps of a mode with three models are refused in one line, with advice."""
    names = ["base", "T1", "T2", "T3"]
    steps = [make_step(names[n], mode, names[n - 1], f"s{2 * n - 1}", f"s{2 * n}", 0.2, 0.3) for n in (1, 2, 3)]

    (problem,) = refused(make_recipe(*steps, mapping="model-mixer", files=MANY), "model-mixer")

    assert problem.startswith(
        f"steps.T1.mode, steps.T2.mode, steps.T3.mode: received {mode}; model-mixer merges one model a step"
    )
    assert problem.endswith("write it as two steps, or export to comfyui or mecha")


def test_too_many_steps():
    """A chain over more models than model-mixer can merge is refused."""
    names = ["base", *(f"T{n}" for n in range(6))]
    steps = [make_step(names[n + 1], "weight_sum", names[n], f"s{n + 1}", alpha=0.5) for n in range(6)]

    (problem,) = refused(make_recipe(*steps, mapping="model-mixer", files=MANY), "model-mixer")

    assert problem.startswith("steps: T5 is a chain of 6; model-mixer merges at most 5 models")


@pytest.mark.parametrize("steps", [NESTED, EVERY_MODE_CHAINED, (EVERY_MODE["triple_sum"],)])
def test_other_steps_become_one_chain(steps):
    """Steps that model-mixer lacks are written as differences from one model, with the coefficients of the steps."""
    recipe = make_recipe(*steps, mapping="model-mixer")

    data = json.loads(export_recipe(recipe, "model-mixer"))

    expected = block_coefficients(recipe)
    assert data["model_a"] == data["base_model"] == "base.safetensors"
    assert data["mode"] == ["Add-Diff", "Add-Diff"]
    for added, row in zip((data["model_b"], data["model_c"]), data["weights_alpha"], strict=True):
        assert row == [pytest.approx(expected[added][block], abs=1e-12) for block in BLOCKS]
    (note,) = export_notes(recipe, "model-mixer")
    assert "written as Add-Diff of x, y on base, with the same coefficients in every block" in note
    assert export_notes(make_recipe(*CHAIN, mapping="model-mixer"), "model-mixer") == ()


def test_copied_vae():
    """The chain begins with the model whose VAE the recipe copies; a model outside the steps is refused with a way."""
    recipe = make_recipe(CHAIN[0], mapping="model-mixer", vae="x")

    data = json.loads(export_recipe(recipe, "model-mixer"))

    expected = block_coefficients(recipe)["base"]
    assert (data["model_a"], data["model_b"], data["mode"]) == ("x.safetensors", "base", ["Add-Diff"])
    assert data["weights_alpha"][0] == [pytest.approx(expected[block]) for block in BLOCKS]
    many = [make_step("T1", "weight_sum", "base", "s1", alpha=0.5)]
    many += [make_step(f"T{n}", "weight_sum", f"T{n - 1}", f"s{n}", alpha=0.5) for n in (2, 3, 4, 5)]
    (problem,) = refused(make_recipe(*many, mapping="model-mixer", files=MANY, vae="s6"), "model-mixer")
    assert problem == (
        "vae: received 's6'; model-mixer keeps the VAE of model A, 'base'; set vae: base, or export to comfyui or "
        "mecha; `approximate=True` converts it"
    )


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
    assert "but by no block in model-mixer; make the two equal, or fit with mapping: model-mixer" in vae
    assert all(problem.endswith("; `approximate=True` converts it") for problem in problems)
