"""The export to SuperMerger: a text that reads back as the recipe, with presets of the same numbers."""

from dataclasses import replace

import pytest
from exporting import EVERY_MODE_CHAINED, NESTED, RISING, make_recipe, make_step, recipes, refused
from hypothesis import given, settings
from step_by_step import BLOCKS

from optimizer.interchange import export_notes, export_recipe, read_notation
from optimizer.recipes import Expected, preset_alpha, read_presets


def test_lines():
    """The formulas come first, then the header and a preset for each alpha, beta after alpha, BASE first."""
    text = export_recipe(make_recipe(*EVERY_MODE_CHAINED), "supermerger")

    notation, presets = text.split("\n\npreset_name\tpreset_weights\n")
    assert " = T1" in notation
    assert "#" not in notation
    names = [line.split("\t")[0] for line in presets.splitlines()]
    assert names == ["T1", "T2", "T3", "T3_beta", "T4", "T4_beta"]
    assert [float(number) for number in presets.splitlines()[0].split("\t")[1].split(",")] == list(RISING.values())


def test_presets_read_back():
    """The presets in the file read back with the numbers of each step."""
    recipe = make_recipe(*EVERY_MODE_CHAINED)

    presets = read_presets(export_recipe(recipe, "supermerger"))

    for step in recipe.steps:
        for name, alpha in step.alphas.items():
            read = preset_alpha(presets[step.name if name == "alpha" else f"{step.name}_beta"], recipe.layout)
            assert [read.at(block) for block in BLOCKS] == [alpha.at(block) for block in BLOCKS]


@settings(max_examples=50, deadline=None)
@given(recipe=recipes(mappings=("supermerger",), vaes=(None, "base", "y")))
def test_reads_back(recipe):
    """The whole file reads back as the recipe with all numbers, without steps that the output does not need."""
    models = {name: recipe.models[name] for name in recipe.sources()}
    needed = replace(recipe, models=models, steps=recipe.ancestors())

    found = read_notation(export_recipe(recipe, "supermerger"))

    assert not found.not_understood
    assert found.recipe == needed


def test_no_reports():
    """The file does not contain the similarities that a step reports."""
    step = replace(EVERY_MODE_CHAINED[0], expect=Expected(("OUT03",), {"OUT03": 0.97}, 0.97))

    assert "imilarity" not in export_recipe(make_recipe(step), "supermerger")


def test_only_ancestors():
    """Steps that the output does not need are left out."""
    text = export_recipe(make_recipe(*NESTED[:2], output="T1"), "supermerger")

    assert "side" not in text


@pytest.mark.parametrize("mapping", ["mecha", "model-mixer"])
def test_mappings(mapping):
    """Another mapping passes if it makes no difference, and is refused if SuperMerger would merge differently."""
    same = make_step("T1", "weight_sum", "base", "x", alpha={"IN00": 0.0, "OUT11": 0.0, "BASE": 0.0, "OUT05": 1.0})
    different = make_step("T1", "sum_twice", "base", "x", "y", alpha={}, beta={"IN00": 0.5})

    assert "\nT1\t0,0," in export_recipe(make_recipe(same, mapping=mapping), "supermerger")
    (problem,) = refused(make_recipe(different, mapping=mapping), "supermerger")
    assert problem.startswith("steps.T1.beta (0, not 0.5): model.diffusion_model.time_embed.* merges by ")
    assert f"with the recipe's mapping, {mapping}, but by IN00 in SuperMerger" in problem


def test_copied_vae():
    """A note says which VAE is to be baked in, unless SuperMerger's merge by BASE gives the same."""
    merged = make_step("T1", "weight_sum", "base", "x", alpha={"BASE": 0.5, "OUT05": 1.0})
    kept = make_step("T1", "weight_sum", "base", "x", alpha={"OUT05": 1.0})
    taken = make_step("T1", "weight_sum", "base", "x", alpha={"BASE": 1.0})

    (note,) = export_notes(make_recipe(merged, vae="x"), "supermerger")

    assert 'choose a file with the VAE of x.safetensors under "Bake in VAE"' in note
    assert '\nvae: "x"\n' in export_recipe(make_recipe(merged, vae="x"), "supermerger")
    assert export_notes(make_recipe(kept, vae="base"), "supermerger") == ()
    assert export_notes(make_recipe(taken, vae="x"), "supermerger") == ()
    assert export_notes(make_recipe(merged), "supermerger") == ()


def test_presets_of_one_name():
    """Two presets with the same name are refused."""
    steps = (
        make_step("T1", "triple_sum", "base", "x", "y", alpha=0.1, beta=0.2),
        make_step("T1_beta", "weight_sum", "T1", "x", alpha=0.5),
    )

    (problem,) = refused(make_recipe(*steps), "supermerger")

    assert problem.startswith("steps.T1_beta.alpha: its preset would be 'T1_beta', like another's")
