"""Exports of SDXL recipes: each tool's rules, carried out on a small family, give the tensors of the recipe's steps."""

import contextlib
import json
import re
from dataclasses import replace

import pytest
import sd_mecha
import torch
from exporting import SOURCES, VAE, assert_equal_tensors, refused
from ruamel.yaml import YAML
from running_comfyui import carry_out, validate
from safetensors.torch import load_file
from step_by_step import SDXL_BLOCKS, as_dicts, block_of_sdxl, merge_by_steps, merged_names

from optimizer.errors import RecipeError
from optimizer.families import load_layout
from optimizer.interchange import EXPORTS, approximate_recipe, export_recipe, import_text
from optimizer.merging import merge
from optimizer.recipes import Alpha, Model, Recipe, Step

IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
CLIP_G = "conditioner.embedders.1.model."
MAPPINGS = ("supermerger", "model-mixer", "mecha", "comfyui")
RISING = {block: round(0.1 + 0.03 * n, 3) for n, block in enumerate(SDXL_BLOCKS)}
FALLING = {block: round(0.15 - 0.005 * n, 3) for n, block in enumerate(SDXL_BLOCKS)}
SUFFIXES = {"supermerger": "txt", "model-mixer": "json", "mecha": "mecha", "comfyui": "json", "mergekit": "yml"}


def make_step(name, mode, a, b, c=None, alpha=RISING, beta=None):
    """Return a step with numbers by block."""
    return Step(name, mode, a, b, c, Alpha(dict(alpha)), None if beta is None else Alpha(dict(beta)))


EVERY_MODE = (
    make_step("T1", "weight_sum", "base", "x"),
    make_step("T2", "add_difference", "T1", "y", "x", FALLING),
    make_step("T3", "triple_sum", "T2", "x", "y", FALLING, RISING),
    make_step("T4", "sum_twice", "T3", "base", "y", FALLING, RISING),
)
CHAIN = (make_step("T1", "weight_sum", "base", "x"), make_step("T2", "add_difference", "T1", "y", "base", FALLING))


def make_recipe(*steps, mapping="supermerger", vae=None):
    """Return a recipe of these steps on base, x and y, with files NAME.safetensors."""
    models = {name: Model(f"{name}.safetensors") for name in SOURCES}
    return Recipe("made", load_layout("sdxl"), models, steps, steps[-1].name, mapping, vae=vae)


@pytest.fixture(scope="module")
def family(tmp_path_factory, write_sdxl, sdxl_tensors):
    """Return a folder of float32 finetunes base, x and y, and {file stem: tensors}."""
    folder = tmp_path_factory.mktemp("sdxl")
    common = sdxl_tensors()
    return folder, {
        name: write_sdxl(folder / f"{name}.safetensors", seed=seed, around=common)
        for seed, name in enumerate(SOURCES, 1)
    }


def expected_tensors(recipe, tensors):
    """Return the output's tensors, computed step by step in float64."""
    models = {name: tensors[recipe.models[name].file.split(".")[0]] for name in recipe.sources()}
    merged = merge_by_steps(
        as_dicts(recipe.ancestors()), models, block=lambda name: block_of_sdxl(name, recipe.mapping)
    )[recipe.output]
    if recipe.vae is not None:
        merged |= {name: value for name, value in models[recipe.vae].items() if name.startswith(VAE)}
    return merged


def executed(recipe, folder):
    """Return the tensors that sd-mecha makes of the exported recipe in `folder`, in float32."""
    with contextlib.chdir(folder):
        made = sd_mecha.merge(
            sd_mecha.deserialize(export_recipe(recipe, "mecha")), output_dtype=torch.float32, threads=0
        )
    return {name: value for name, value in made.items() if name not in ("__metadata__", IDS)}


# sd-mecha takes seconds for each step, since it walks its list of 2,500 tensors.
@pytest.mark.parametrize(
    ("steps", "mapping"),
    [
        pytest.param(CHAIN, "supermerger", id="chain"),
        *(pytest.param(EVERY_MODE, mapping, id=mapping, marks=pytest.mark.slow) for mapping in MAPPINGS),
    ],
)
def test_mecha_and_merge_give_the_tensors(family, tmp_path, steps, mapping):
    """sd-mecha and `merge` give the tensors of all four modes with every mapping."""
    folder, tensors = family
    recipe = make_recipe(*steps, mapping=mapping)
    paths = {name: folder / f"{name}.safetensors" for name in recipe.sources()}
    merge(recipe, paths, tmp_path / "out.safetensors", dtype=torch.float32)

    found, written = executed(recipe, folder), load_file(tmp_path / "out.safetensors")
    del written[IDS]

    expected = expected_tensors(recipe, tensors)
    assert_equal_tensors(found, expected)
    assert_equal_tensors(written, expected)


@pytest.mark.slow
@pytest.mark.parametrize("vae", SOURCES)
def test_mecha_copies_the_vae(family, vae):
    """sd-mecha leaves the VAE that the recipe copies unchanged, whichever source has it."""
    folder, tensors = family
    recipe = make_recipe(*CHAIN, vae=vae)

    found = executed(recipe, folder)

    assert_equal_tensors(found, expected_tensors(recipe, tensors))
    assert all(torch.equal(found[name], tensors[vae][name]) for name in found if name.startswith(VAE))


def test_mecha_numbers_the_vae():
    """The VAE has its own number in sd-mecha's list of 21, as the recipe's mapping gives it."""
    by_mapping = {}
    for mapping in ("supermerger", "model-mixer"):
        text = export_recipe(make_recipe(CHAIN[0], mapping=mapping), "mecha")
        (line,) = (line for line in text.splitlines() if line.startswith("dict BASE="))
        by_mapping[mapping] = dict(item.split("=") for item in line.split()[1:])

    assert list(by_mapping["supermerger"]) == [*SDXL_BLOCKS, "VAE"]
    assert (by_mapping["supermerger"]["VAE"], by_mapping["model-mixer"]["VAE"]) == ("0.1", "0.0")


@pytest.mark.parametrize(
    ("vae", "words"),
    [("", "no alpha for first_stage_model.*"), (" VAE=0.7", "first_stage_model.* has 0.7"), (" VAE=1.0", None)],
)
def test_mecha_texts_need_a_number_for_the_vae(tmp_path, vae, words):
    """A list without VAE is refused, as sd-mecha leaves the VAE out; so is a mix other than BASE's, but no copy."""
    numbers = " ".join(f"{block}={number}" for block, number in RISING.items())
    path = tmp_path / "recipe.mecha"
    path.write_text(
        'version 0.1.0\nmodel "base.safetensors" model_config="sdxl-sgm" merge_space="weight"\n'
        'model "x.safetensors" model_config="sdxl-sgm" merge_space="weight"\n'
        f'dict {numbers}{vae}\nliteral &2 model_config="sdxl-supermerger_blocks" merge_space="param"\n'
        'merge "convert_sdxl_blocks_to_sgm" &3\nmerge "weighted_sum" &0 &1 &4',
        encoding="utf-8",
    )

    if words is not None:
        with pytest.raises(RecipeError, match=re.escape(words)):
            import_text(path)
    else:
        assert (import_text(path).recipe.mapping, import_text(path).recipe.vae) == ("mecha", "x")


@pytest.mark.parametrize("steps", [CHAIN, EVERY_MODE], ids=["chain", "modes"])
def test_comfyui_gives_the_tensors(family, steps):
    """ComfyUI's nodes give the tensors of a recipe with ComfyUI's mapping."""
    _, tensors = family
    recipe = make_recipe(*steps, mapping="comfyui", vae="base")

    workflow = json.loads(export_recipe(recipe, "comfyui"))
    validate(workflow)

    found = {name: value.float() for name, value in carry_out(workflow, tensors).items()}
    assert_equal_tensors(found, expected_tensors(recipe, tensors))


@pytest.mark.parametrize(
    ("mapping", "left"),
    [
        ("supermerger", ["positional_embedding", "text_projection"]),
        ("model-mixer", ["text_projection"]),
        ("mecha", ["logit_scale"]),
    ],
)
def test_comfyui_merges_text_encoders_its_own_way(family, mapping, left):
    """Tensors of the text encoders that ComfyUI merges otherwise are refused; the approximation merges its way."""
    _, tensors = family
    recipe = make_recipe(*CHAIN, mapping=mapping, vae="base")

    problems = refused(recipe, "comfyui")
    found = approximate_recipe(recipe, "comfyui")

    assert [problem.split("*")[0].rsplit(".", 1)[1] for problem in problems] == left
    assert all("steps.T1.alpha" in problem and "in ComfyUI" in problem for problem in problems)
    changed = {change.blocks.rstrip("*.").rsplit(".", 1)[1] for change in found.changes}
    assert changed - {"time_embed", "label_emb"} == set(left)
    workflow = json.loads(export_recipe(recipe, "comfyui", approximate=True))
    carried = {name: value.float() for name, value in carry_out(workflow, tensors).items()}
    assert_equal_tensors(carried, expected_tensors(found.recipe, tensors))


def test_comfyui_takes_recipes_that_leave_the_text_encoders():
    """A recipe that moves no text encoder is exported with any mapping."""
    alpha = RISING | {"BASE": 0.0}
    recipe = make_recipe(make_step("T1", "weight_sum", "base", "x", alpha=alpha))

    workflow = json.loads(export_recipe(recipe, "comfyui"))

    validate(workflow)
    (node,) = (node for node in workflow.values() if node["class_type"] == "ModelMergeSDXL")
    assert node["inputs"]["input_blocks.4"] == pytest.approx(1 - RISING["IN04"])
    assert node["inputs"]["label_emb."] == node["inputs"]["time_embed."] == pytest.approx(1 - RISING["IN00"])


def test_supermerger_lists_26_numbers():
    """SuperMerger lists presets of 26 numbers only, so those of blocks that SDXL lacks are 0."""
    text = export_recipe(make_recipe(CHAIN[0]), "supermerger")

    name, numbers = text.splitlines()[-1].split("\t")
    listed = [float(number) for number in numbers.split(",")]
    by_block = iter(RISING.values())
    expected = [0.0 if n in (10, 11, 12, 23, 24, 25) else next(by_block) for n in range(26)]
    assert (name, listed) == ("T1", expected)
    assert [line.count(",") + 1 for line in text.splitlines() if line.startswith("    alpha = ")] == [20]


def test_model_mixer_takes_20_numbers(family):
    """model-mixer has 20 numbers a step; what it merges otherwise is refused, and changed in the approximation."""
    recipe = make_recipe(*CHAIN)

    problems = refused(recipe, "model-mixer")
    data = json.loads(export_recipe(replace(recipe, mapping="model-mixer"), "model-mixer"))
    found = approximate_recipe(recipe, "model-mixer")

    places = ("time_embed.", "label_emb.", "positional_embedding", "first_stage_model.")
    assert all(any(place in problem for problem in problems) for place in places)
    assert data["blocks"] == ",".join(SDXL_BLOCKS)
    assert data["weights_alpha"] == [list(RISING.values()), list(FALLING.values())]
    assert found.recipe.mapping == "model-mixer"
    changed = {change.blocks for change in found.changes if change.field == "mapping"}
    assert changed == {
        "model.diffusion_model.time_embed.*",
        "model.diffusion_model.label_emb.*",
        f"{CLIP_G}positional_embedding*",
    }


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_mergekit_gives_the_tensors(family, mapping):
    """The weighted sums by the first matching filters are the tensors of the recipe."""
    _, tensors = family
    recipe = make_recipe(*EVERY_MODE, mapping=mapping)
    yaml = YAML(typ="safe")
    yaml.version = (1, 1)
    data = yaml.load(export_recipe(recipe, "mergekit"))

    found = {
        name: sum(
            next(row["value"] for row in model["parameters"]["weight"] if row.get("filter", "") in name)
            * tensors[model["model"].split(".")[0]][name].double()
            for model in data["models"]
        ).float()
        for name in merged_names(tensors["base"])
    }

    assert_equal_tensors(found, expected_tensors(recipe, tensors))


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("vae", [None, "base"])
def test_exports_are_imported_again(family, tmp_path, name, vae):
    """Each export reads back, as SDXL, to a recipe of the same tensors."""
    _, tensors = family
    mapping = name if name in ("model-mixer", "comfyui") else "supermerger"
    recipe = make_recipe(*CHAIN, mapping=mapping, vae=vae or (None if name != "comfyui" else "base"))
    path = tmp_path / f"exported.{SUFFIXES[name]}"
    path.write_text(export_recipe(recipe, name), encoding="utf-8")

    imported = import_text(path)

    assert imported.recipe.layout.name == "sdxl"
    assert imported.not_understood == ()
    assert_equal_tensors(
        {key: value.float() for key, value in expected_tensors(imported.recipe, tensors).items()},
        expected_tensors(recipe, tensors),
    )
