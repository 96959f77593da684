"""Recipes made in Python are those of YAML files: the same forms, the same mistakes."""

from pathlib import Path

import numpy as np
import pytest
from step_by_step import BLOCKS

from optimizer.errors import RecipeError
from optimizer.recipes import Model, load_recipe, new_recipe, recipe_as_data, save_recipe

MODELS = {"base": "base.safetensors", "x": "x.safetensors"}
STEP = {"name": "T", "mode": "weight_sum", "a": "base", "b": "x"}


@pytest.mark.parametrize(
    ("alpha", "text"),
    [
        (0.5, "0.5"),
        (np.float32(0.5), "0.5"),
        ([n / 26 for n in range(26)], str([n / 26 for n in range(26)])),
        (np.arange(26) / 26, str([n / 26 for n in range(26)])),
        ({"OUT03-OUT05": 0.5, "M00": 2}, "{OUT03-OUT05: 0.5, M00: 2}"),
        ({"search": (0, 1)}, "{search: [0, 1]}"),
        (
            {"IN01": 0.3, "OUT03-OUT11": {"search": [0, 1], "tie": True, "step": 0.01, "start": 0.1}},
            "{IN01: 0.3, OUT03-OUT11: {search: [0, 1], tie: true, step: 0.01, start: 0.1}}",
        ),
    ],
)
def test_a_recipe_equals_that_of_its_yaml(tmp_path: Path, alpha: object, text: str) -> None:
    """Every form of an alpha, numpy's numbers and tuples too, makes the recipe that its YAML makes."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "models: {base: {file: base.safetensors}, x: {file: x.safetensors}}\n"
        f"steps: [{{name: T, mode: weight_sum, a: base, b: x, alpha: {text}}}]\n",
        encoding="utf-8",
    )
    assert new_recipe(MODELS, [{**STEP, "alpha": alpha}]) == load_recipe(path)


def test_models_are_accepted_in_every_form() -> None:
    """A model is a file as text or path, a mapping, or another recipe's model."""
    recipe = new_recipe(
        {"base": Path("folder") / "base.ckpt", "x": {"file": "x", "license": "MIT"}, "y": Model("y", "CC0", "00")},
        [{**STEP, "alpha": 0}],
    )
    assert recipe.models == {"base": Model("folder/base.ckpt"), "x": Model("x", "MIT"), "y": Model("y", "CC0", "00")}


def test_parts_of_another_recipe_can_be_used() -> None:
    """Steps, alphas and models of a recipe can be used in another one unchanged."""
    first = new_recipe(MODELS, [{**STEP, "alpha": {"M00": 0.1 + 0.2, "OUT03": {"search": [0, 1]}}}])
    second = new_recipe(
        {**first.models, "y": "y"},
        [
            *first.steps,
            {"name": "U", "mode": "sum_twice", "a": "T", "b": "x", "c": "y", "alpha": first.steps[0].alpha, "beta": 1},
        ],
    )
    assert second.steps[0].alpha == first.steps[0].alpha == second.steps[1].alpha
    assert {name: second.models[name] for name in MODELS} == first.models
    assert second.output == "U"


def test_a_recipe_survives_a_round_through_its_file(tmp_path: Path) -> None:
    """A recipe survives a round through its file, which may be named by text."""
    recipe = new_recipe(MODELS, [{**STEP, "alpha": dict.fromkeys(BLOCKS, 1 / 3)}], name="made", mapping="mecha")
    save_recipe(recipe, str(tmp_path / "made.yaml"))
    assert load_recipe(str(tmp_path / "made.yaml")) == recipe
    assert recipe_as_data(recipe)["mapping"] == "mecha"


def test_an_alpha_may_be_a_preset(tmp_path: Path) -> None:
    """An alpha may be the name of a preset in a file."""
    presets = tmp_path / "presets.txt"
    presets.write_text("HALF\t" + ",".join(["0.5"] * 26) + "\n", encoding="utf-8")
    recipe = new_recipe(MODELS, [{**STEP, "alpha": "HALF"}], presets=presets)
    assert recipe.steps[0].alpha.at("M00") == 0.5


@pytest.mark.parametrize(
    ("steps", "options", "problems"),
    [
        ([{**STEP, "alpha": {"OUT03": "much"}}], {}, ["steps.T.alpha.OUT03: received 'much'; must be a number"]),
        (
            [{**STEP, "alfa": 1}],
            {},
            ["steps.T.alpha: missing", "steps.T.alfa: unknown field; must be one of name, mode, a, b, c, alpha"],
        ),
        ([{**STEP, "b": "z", "alpha": 0}], {}, ["steps.T.b: received 'z'; neither a model nor a step has this name"]),
        ([], {}, ["steps: empty; a recipe needs at least one step"]),
        ([{**STEP, "alpha": 0}], {"output": "U"}, ["output: received 'U'; no step has this name"]),
        ([{**STEP, "alpha": 0}], {"layout": "sd9"}, ["layout: unknown layout 'sd9'; must be one of sd1"]),
        ([{**STEP, "alpha": 0}], {"mapping": "none"}, ["mapping: received 'none'; sd1 has"]),
        ([{**STEP, "alpha": "HALF"}], {"presets": "none.txt"}, ["presets: none.txt cannot be read: no such file"]),
        ([3], {}, ["steps.0: received 3; must be a mapping with name, mode, a, b, c, alpha"]),
        (None, {}, ["steps: received None; "]),
        ("abc", {}, ["steps: received 'abc'; "]),
        ({"name": "T"}, {}, ["steps: received {'name': 'T'}; "]),
    ],
)
def test_mistakes_name_the_argument(steps: list, options: dict, problems: list[str]) -> None:
    """Each problem is a line with the function, the argument and the value received, as for a file."""
    with pytest.raises(RecipeError) as raised:
        new_recipe(MODELS, steps, **options)

    assert len(raised.value.problems) == len(problems)
    for found, expected in zip(raised.value.problems, problems, strict=True):
        assert found.startswith(f"new_recipe: {expected}")


def test_models_that_are_no_mapping_are_refused() -> None:
    """Models that are no mapping are refused like a field of the wrong type."""
    with pytest.raises(RecipeError, match=r"^new_recipe: models: received \['base'\]"):
        new_recipe(["base"], [{**STEP, "alpha": 0}])
    with pytest.raises(RecipeError) as raised:
        new_recipe({"base": 3}, [{**STEP, "alpha": 0}])
    assert raised.value.problems == (
        "new_recipe: models.base: received 3; must be a mapping with file, license, sha256",
    )
