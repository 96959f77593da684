"""The model whose VAE a recipe copies: the field in YAML, Python and texts, and its mistakes."""

from dataclasses import replace

import pytest

from optimizer.errors import RecipeError
from optimizer.families import load_layout
from optimizer.interchange import read_notation, write_notation
from optimizer.recipes import load_recipe, new_recipe, recipe_as_data, save_recipe

MODELS = {"base": "base.safetensors", "x": "x.safetensors", "other": "other.safetensors"}
STEP = {"name": "T", "mode": "weight_sum", "a": "base", "b": "x", "alpha": 0.5}
VAE = "first_stage_model.encoder.conv_in.weight"


def test_the_field_is_kept(tmp_path):
    """YAML files and texts read back with the VAE, and recipes without it have no such field."""
    recipe = new_recipe(MODELS, [STEP], vae="other")

    save_recipe(recipe, tmp_path / "recipe.yaml")

    assert load_recipe(tmp_path / "recipe.yaml").vae == "other"
    assert replace(read_notation(write_notation(recipe)).recipe, name="recipe") == recipe
    assert "vae" not in recipe_as_data(new_recipe(MODELS, [STEP]))


def test_the_model_is_needed():
    """A model that only gives the VAE is one of the sources, and stays in the trimmed recipe."""
    recipe = new_recipe(MODELS, [STEP], vae="other")

    assert recipe.sources() == ("base", "x", "other")
    assert list(recipe.trimmed().models) == ["base", "x", "other"]
    assert new_recipe(MODELS, [STEP]).sources() == ("base", "x")


def test_no_alpha_moves_it():
    """The VAE belongs to no block if it is copied, and to that of the mapping if not; other tensors keep theirs."""
    copied, merged = (new_recipe(MODELS, [STEP], vae=vae) for vae in ("base", None))

    assert (copied.block_of(VAE), merged.block_of(VAE)) == (None, "BASE")
    assert copied.block_of("model.diffusion_model.out.2.weight") == "OUT11"


@pytest.mark.parametrize(
    ("vae", "problem"),
    [
        ("bse", "vae: received 'bse'; no model has this name; did you mean 'base'?"),
        ("T", "vae: received the step 'T'; a VAE is copied from a model; must be one of base, other, x"),
    ],
)
def test_names_that_are_no_model(vae, problem):
    """A name without a model, and that of a step, are refused with what would be right."""
    with pytest.raises(RecipeError) as caught:
        new_recipe(MODELS, [STEP], vae=vae)

    assert caught.value.problems == (f"new_recipe: {problem}",)


def test_layout_without_a_vae():
    """A layout without a VAE refuses the field."""
    recipe = new_recipe(MODELS, [STEP])
    parts = tuple(part for part in load_layout("sd1").parts if part.role != "vae")

    with pytest.raises(RecipeError) as caught:
        replace(recipe, layout=replace(recipe.layout, parts=parts), vae="base")

    assert caught.value.problems == (
        "vae: received 'base'; checkpoints of Stable Diffusion 1.x have no VAE; leave the field out",
    )
