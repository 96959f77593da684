"""The export to mergekit: weights that give the recipe's output, also in mergekit's own environment."""

import subprocess
from pathlib import Path

import pytest
import torch
from exporting import (
    EVERY_MODE,
    EVERY_MODE_CHAINED,
    NESTED,
    SOURCES,
    assert_equal_tensors,
    expected_tensors,
    make_recipe,
    make_step,
    recipes,
    refused,
)
from hypothesis import given, settings
from ruamel.yaml import YAML
from safetensors.torch import load_file
from step_by_step import merged_names

from optimizer.interchange import export_recipe

COMMAND = Path(__file__).parents[3] / ".venv-mergekit" / "bin" / "mergekit-pytorch"
IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def exported(recipe):
    """Return the exported file's data, parsed as YAML 1.1 as in mergekit."""
    yaml = YAML(typ="safe")
    yaml.version = (1, 1)
    return yaml.load(export_recipe(recipe, "mergekit"))


def weight(model, name):
    """Return the weight of a tensor by the first matching filter."""
    return next(row["value"] for row in model["parameters"]["weight"] if row.get("filter", "") in name)


def summed(data, tensors):
    """Return the weighted sums of all tensors by the exported file."""
    names = merged_names(next(iter(tensors.values())))
    return {
        name: sum(
            weight(model, name) * tensors[Path(model["model"]).stem][name].double() for model in data["models"]
        ).float()
        for name in names
    }


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(vaes=(None, *SOURCES)))
def test_any_recipe(family, recipe):
    """The file's weighted sum gives the tensors of any number of steps, with every mapping."""
    _, tensors = family

    assert_equal_tensors(summed(exported(recipe), tensors), expected_tensors(recipe, tensors))


def test_weights_that_mergekit_accepts():
    """The sum is not normalized, and all weights are numbers other than 0, which mergekit takes for missing."""
    data = exported(make_recipe(make_step("T1", "weight_sum", "base", "x", alpha={"OUT06": 1e-5, "IN01": 1.0})))

    assert (data["merge_method"], data["parameters"], data["dtype"]) == ("linear", {"normalize": False}, "float32")
    values = [row["value"] for model in data["models"] for row in model["parameters"]["weight"]]
    assert all(isinstance(value, float) and value != 0 for value in values)
    assert float(torch.tensor(weight(data["models"][1], "model.diffusion_model.out."), dtype=torch.float32)) == 0
    assert weight(data["models"][1], "model.diffusion_model.output_blocks.6.0.bias") == 1e-5


def test_tensors_that_do_not_merge(family):
    """Position ids, EMA copies and the schedule come from the source that the first step begins with."""
    recipe = make_recipe(*NESTED)
    weights = {model["model"]: model for model in exported(recipe)["models"]}

    for name in (IDS, "cond_stage_model.transformer.embeddings.position_ids", "model_ema.decay", "betas"):
        assert weight(weights["base.safetensors"], name) == 1
        assert all(weight(weights[f"{source}.safetensors"], name) == 1e-300 for source in "xy")


def test_blocks_of_two_digits():
    """The filter of block 1 does not match blocks 10 and 11."""
    data = exported(make_recipe(make_step("T1", "weight_sum", "base", "x", alpha={"IN01": 0.25, "IN10": 0.5})))

    found = [weight(data["models"][1], f"model.diffusion_model.input_blocks.{n}.0.weight") for n in (1, 10, 11)]
    assert found == [0.25, 0.5, 1e-300]


def test_sources_without_effect():
    """A source without coefficients is left out, unless it gives the tensors that do not merge."""
    cancelled = make_step("T1", "add_difference", "base", "x", "x", alpha=0.5)
    replaced = make_step("T1", "weight_sum", "base", "x", alpha=1.0)

    assert [model["model"] for model in exported(make_recipe(cancelled))["models"]] == ["base.safetensors"]
    assert len(exported(make_recipe(replaced))["models"]) == 2


def test_two_names_of_one_file(family):
    """A file with two names in the recipe is one model, with the sum of their weights."""
    _, tensors = family
    recipe = make_recipe(EVERY_MODE["triple_sum"], files={"y": "x.safetensors"})

    data = exported(recipe)

    assert [model["model"] for model in data["models"]] == ["base.safetensors", "x.safetensors"]
    assert_equal_tensors(summed(data, tensors), expected_tensors(recipe, tensors))


def test_refused_files():
    """Files that are not .safetensors are refused by name."""
    (problem,) = refused(make_recipe(EVERY_MODE["weight_sum"], files={"x": "x.ckpt"}), "mergekit")

    assert problem.startswith("models.x.file: received 'x.ckpt'; mergekit-pytorch opens .safetensors files")
    (problem,) = refused(make_recipe(EVERY_MODE["weight_sum"], files={"x": "x.ckpt", "base": "b"}), "mergekit")
    assert problem.startswith("models.base.file, models.x.file: received 'b', 'x.ckpt'; mergekit-pytorch opens")


@pytest.mark.mergekit
@pytest.mark.skipif(not COMMAND.exists(), reason="make test-mergekit installs it")
@pytest.mark.parametrize("mapping", ["supermerger", "mecha", "model-mixer"])
@pytest.mark.parametrize("steps", [EVERY_MODE_CHAINED, NESTED], ids=["chained", "nested"])
def test_mergekit(family, tmp_path, steps, mapping):
    """mergekit-pytorch gives the tensors of the formulas, and position ids that are whole numbers."""
    folder, tensors = family
    recipe = make_recipe(*steps, mapping=mapping)
    (tmp_path / "recipe.yml").write_text(export_recipe(recipe, "mergekit"), encoding="utf-8")

    subprocess.run([COMMAND, tmp_path / "recipe.yml", tmp_path / "out"], cwd=folder, check=True, capture_output=True)

    found = {
        name: value for path in (tmp_path / "out").glob("*.safetensors") for name, value in load_file(path).items()
    }
    assert torch.equal(found.pop(IDS), torch.arange(77.0)[None])
    assert_equal_tensors(found, expected_tensors(recipe, tensors))
