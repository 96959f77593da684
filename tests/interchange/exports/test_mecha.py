"""The export to sd-mecha, executed by sd-mecha: it gives the tensors of the steps with every mapping."""

import contextlib
import itertools
from dataclasses import replace

import pytest
import sd_mecha
import torch
from exporting import (
    EVERY_MODE,
    EVERY_MODE_CHAINED,
    NESTED,
    RISING,
    VAE,
    assert_equal_tensors,
    expected_tensors,
    make_recipe,
    make_step,
    recipes,
    refused,
    whole,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from step_by_step import BLOCKS

from optimizer.interchange import export_recipe
from optimizer.merging import merge

IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
EMA = "model_ema.diffusion_modelout2bias"


def executed(recipe, folder):
    """Return the tensors that sd-mecha makes of the exported recipe in `folder`, in float32."""
    with contextlib.chdir(folder):
        made = sd_mecha.merge(
            sd_mecha.deserialize(export_recipe(recipe, "mecha")), output_dtype=torch.float32, threads=0
        )
    return {name: value for name, value in made.items() if name not in ("__metadata__", IDS)}


def test_every_mode(family, tmp_path):
    """A chain of all modes gives the same tensors in sd-mecha, by the formulas and in `merge`."""
    folder, tensors = family
    recipe = make_recipe(*EVERY_MODE_CHAINED, mapping="mecha")
    paths = {name: folder / f"{name}.safetensors" for name in recipe.sources()}
    merge(recipe, paths, tmp_path / "out.safetensors", dtype=torch.float32)

    found = executed(recipe, folder)

    written = load_file(tmp_path / "out.safetensors")
    del written[IDS]
    assert_equal_tensors(found, expected_tensors(recipe, tensors))
    assert_equal_tensors(found, written)


@pytest.mark.parametrize(
    "mapping", ["supermerger", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mecha", "model-mixer"))]
)
def test_mappings(family, mapping):
    """time_embed and the VAE merge by the recipe's mapping."""
    folder, tensors = family
    recipe = make_recipe(EVERY_MODE["weight_sum"], mapping=mapping)

    assert_equal_tensors(executed(recipe, folder), expected_tensors(recipe, tensors))


@pytest.mark.parametrize("vae", ["base", "y"])
def test_copied_vae(family, vae):
    """The VAE that the recipe copies is unchanged, that of the first model and that of another."""
    folder, tensors = family
    recipe = make_recipe(EVERY_MODE["weight_sum"], vae=vae)

    found = executed(recipe, folder)

    assert_equal_tensors(found, expected_tensors(recipe, tensors))
    assert all(torch.equal(found[name], tensors[vae][name]) for name in found if name.startswith(VAE))


@settings(max_examples=4, deadline=None)
@given(recipe=recipes(everywhere=False, most=2))
@pytest.mark.slow
def test_any_recipe(family, recipe):
    """Any recipe gives the tensors of its steps, also with sources without a VAE and alphas outside 0 to 1."""
    folder, tensors = family

    # Alphas outside 0 to 1 in nested steps enlarge values before they cancel, so float32 loses precision.
    assert_equal_tensors(executed(recipe, folder), expected_tensors(recipe, tensors), tolerance=1e-5)


def test_long_chain():
    """The file of a chain refers to each step once; sd-mecha walks it as a tree and would never end otherwise."""
    names = ["base", *(f"T{n}" for n in range(20))]
    steps = [make_step(b, "weight_sum", a, "x", alpha=RISING) for a, b in itertools.pairwise(names)]

    graph = sd_mecha.deserialize(export_recipe(make_recipe(*steps), "mecha"))

    assert sum(1 for _ in graph.accept(sd_mecha.recipe_nodes.IterVisitor())) < 50 * len(steps)


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=pytest.mark.slow if mode in ("weight_sum", "triple_sum") else ()) for mode in EVERY_MODE],
)
def test_tensors_that_a_source_lacks(tmp_path, write_sd1, sd1_tensors, mode):
    """Missing tensors are copied, pass through or stay absent as in blockfit, also with alphas of 0 and 1."""
    common = sd1_tensors()
    lacking = {"base": (0, 1, 2, 9), "x": (3, 4, 5, 9), "y": (6, 7, 8, 10)}
    tensors = {}
    for seed, (name, blocks) in enumerate(lacking.items()):
        drop = [f"model.diffusion_model.output_blocks.{n}.0.in_layers.0.bias" for n in blocks]
        tensors[name] = write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=common, drop=drop)
    alpha = whole({f"OUT{n:02}": (0.0, 0.3, 1.0)[n % 3] for n in range(12)})
    beta = whole({f"OUT{n:02}": (0.0, 0.4)[n % 2] for n in range(12)})
    step = EVERY_MODE[mode]
    recipe = make_recipe(replace(step, alpha=alpha, beta=step.beta and beta))

    assert_equal_tensors(executed(recipe, tmp_path), expected_tensors(recipe, tensors))


def test_copied_tensors(tmp_path, write_sd1, sd1_tensors):
    """EMA copies are not merged but come from the first input that has them."""
    common = sd1_tensors()
    write_sd1(tmp_path / "base.safetensors", seed=1, around=common)
    first = write_sd1(tmp_path / "x.safetensors", seed=2, around=common, ema=True)
    write_sd1(tmp_path / "y.safetensors", seed=3, around=common, ema=True)
    steps = (make_step("T1", "weight_sum", "base", "x", alpha=0.5), make_step("T2", "weight_sum", "T1", "y", alpha=0.5))

    assert torch.equal(executed(make_recipe(*steps), tmp_path)[EMA], first[EMA])


def test_every_block_is_listed():
    """Every alpha lists all 26 blocks, those at 0 too, since sd-mecha drops the tensors of missing blocks."""
    text = export_recipe(make_recipe(make_step("T1", "weight_sum", "base", "x", alpha={"OUT06": 0.5})), "mecha")

    (line,) = (line for line in text.splitlines() if line.startswith("dict BASE="))
    assert [item.split("=")[0] for item in line.split()[1:]] == list(BLOCKS)


def test_only_ancestors():
    """Steps and sources that the output does not need are left out."""
    recipe = make_recipe(*NESTED[:2], output="T1")

    text = export_recipe(recipe, "mecha")

    assert "y.safetensors" not in text
    assert "# side:" not in text


# Recipes refuse names with unprintable characters, for example line breaks.
SHOWN = st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"), exclude_characters="/\\=")


@settings(max_examples=50)
@given(stem=st.text(SHOWN, min_size=1).filter(str.strip))
def test_file_names(stem):
    """Any other file name that a recipe can have reaches sd-mecha unchanged."""
    recipe = make_recipe(EVERY_MODE["weight_sum"], files={"x": f"sub/{stem}.safetensors"})

    graph = sd_mecha.deserialize(export_recipe(recipe, "mecha"))

    paths = {str(node.path) for node in graph.accept(sd_mecha.recipe_nodes.IterVisitor()) if hasattr(node, "path")}
    assert paths == {"base.safetensors", f"sub/{stem}.safetensors"}


def test_refused_file_names():
    """Names that a .mecha text cannot contain, and files that sd-mecha cannot open, have a line each."""
    recipe = make_recipe(EVERY_MODE["triple_sum"], files={"base": "a=b.safetensors", "y": "old.ckpt"})

    problems = refused(recipe, "mecha")

    assert len(problems) == 2
    assert any(p.startswith("models.base.file: received 'a=b.safetensors'") and "rename" in p for p in problems)
    assert any(p.startswith("models.y.file: received 'old.ckpt'; sd-mecha opens .safetensors") for p in problems)
