"""The demo's trained family, merged by blockfit, by sd-mecha, and by the formulas step by step."""

import contextlib

import pytest
import sd_mecha
import torch
from exporting import EVERY_MODE_CHAINED, assert_equal_tensors, make_recipe
from safetensors.torch import load_file
from step_by_step import as_dicts, merge_by_steps

from optimizer.demo import family_folder
from optimizer.interchange import export_recipe
from optimizer.merging import merge

IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
# "outline" has no VAE.
FILES = {"base": "base.safetensors", "x": "bold.safetensors", "y": "outline.safetensors"}


def merged(recipe, path):
    """Return the recipe's merge in float32, without position ids."""
    folder = family_folder() / "models"
    merge(recipe, {name: folder / file for name, file in FILES.items()}, path, dtype=torch.float32, embed_recipe=False)
    return {name: value for name, value in load_file(path).items() if name != IDS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*outline.safetensors. no VAE")
def test_merge_equals_sd_mechas(tmp_path):
    """A recipe with all four modes and different alphas in all blocks gives sd-mecha's tensors, to 1e-6."""
    recipe = make_recipe(*EVERY_MODE_CHAINED, mapping="mecha", files=FILES)
    with contextlib.chdir(family_folder() / "models"):
        exported = sd_mecha.deserialize(export_recipe(recipe, "mecha"))
        made = sd_mecha.merge(exported, output_dtype=torch.float32, merge_dtype=torch.float32, threads=0)

    expected = {name: value for name, value in made.items() if name not in ("__metadata__", IDS)}
    assert_equal_tensors(merged(recipe, tmp_path / "out.safetensors"), expected)


@pytest.mark.filterwarnings("ignore:.*outline.safetensors. no VAE")
def test_merge_equals_supermergers_rules(tmp_path):
    """With SuperMerger's mapping the merge equals its rules, computed step by step in float32, to 1e-6."""
    recipe = make_recipe(*EVERY_MODE_CHAINED, mapping="supermerger", files=FILES)
    sources = {name: load_file(family_folder() / "models" / file) for name, file in FILES.items()}

    expected = merge_by_steps(as_dicts(recipe.steps), sources, torch.float32)[recipe.output]
    expected |= {name: sources["base"][name] for name in ("alphas_cumprod", "betas")}  # buffers are copied, not merged
    assert_equal_tensors(merged(recipe, tmp_path / "out.safetensors"), expected)
