"""Recipes of merged files whose models were themselves merged: on request with all steps."""

import json
from pathlib import Path

import pytest
from spellings import add_difference, alone, assert_coefficients, by_block, everywhere, weight_sum

from optimizer.interchange.embedded import recipe_from_metadata
from optimizer.recipes import block_coefficients

HASHES = {name: digits * 32 for name, digits in zip("ABCDEF", ("a1", "b2", "c3", "d4", "e5", "f6"), strict=True)}
RISING = [round(0.03 * n, 2) for n in range(26)]


def webui(primary, secondary, multiplier, tertiary=None):
    """Return the WebUI's metadata of a merge."""
    return {
        "type": "webui",
        "primary_model_hash": HASHES[primary],
        "secondary_model_hash": HASHES[secondary],
        "tertiary_model_hash": None if tertiary is None else HASHES[tertiary],
        "interp_method": "Weighted sum" if tertiary is None else "Add difference",
        "multiplier": multiplier,
    }


def supermerger(a, b, numbers):
    """Return SuperMerger's metadata of a merge."""
    return {
        "type": "sd-webui-supermerger",
        "weights_alpha": numbers[1:],
        "weights_alpha_orig": ",".join(map(str, numbers)),
        "model_a": HASHES[a],
        "model_b": HASHES[b],
        "model_c": HASHES[a],
        "base_alpha": numbers[0],
        "base_beta": 0.25,
        "mode": "Weight sum",
        "mbw": True,
        "calcmode": "normal",
    }


def read(recipe, parents, *, with_parents=True, encode=lambda data: data):
    """Read a recipe from metadata with six models, of which `parents` have recipes too."""
    models = {digits: {"name": name, "sd_merge_recipe": None} for name, digits in HASHES.items()}
    for name, data in parents.items():
        models[HASHES[name]]["sd_merge_recipe"] = encode(data)
    metadata = {"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(models)}
    return recipe_from_metadata(metadata, Path("merged.safetensors"), with_parents=with_parents)


@pytest.mark.parametrize("encode", [lambda data: data, json.dumps, lambda data: json.dumps(json.dumps(data))])
def test_parents_become_steps(encode):
    """A model with a recipe becomes the steps that made it, named after it, with the coefficients of its formula."""
    recipe, warnings = read(webui("A", "B", 0.3), {"B": webui("C", "D", 0.25)}, encode=encode)

    assert [(step.name, *step.inputs.values()) for step in recipe.steps] == [("B", "C", "D"), ("merged", "A", "B")]
    expected = weight_sum(alone("A"), weight_sum(alone("C"), alone("D"), everywhere(0.25)), everywhere(0.3))
    assert_coefficients(block_coefficients(recipe), expected)
    assert {name: model.sha256 for name, model in recipe.models.items()} == {name: HASHES[name] for name in "ACD"}
    assert warnings == ()


def test_parents_stay_models_by_default():
    """Without the option the recipe is the last merge, and a warning names the merged models."""
    recipe, warnings = read(webui("A", "B", 0.3), {"B": webui("C", "D", 0.25)}, with_parents=False)

    assert [step.name for step in recipe.steps] == ["merged"]
    assert warnings == ("'B': merged too; import with `with_parents=True` for the steps that made them",)


def test_parents_of_parents_are_shared():
    """Grandparents are put in too; a model that several parents share is put in once."""
    parents = {
        "A": webui("C", "D", 0.5),
        "B": supermerger("D", "E", RISING),
        "D": webui("E", "F", 0.2, "C"),
    }
    recipe, warnings = read(webui("A", "B", 0.3), parents)

    d = add_difference(alone("E"), alone("F"), alone("C"), everywhere(0.2))
    a = weight_sum(alone("C"), d, everywhere(0.5))
    b = weight_sum(d, alone("E"), by_block(RISING))
    assert_coefficients(block_coefficients(recipe), weight_sum(a, b, everywhere(0.3)))
    assert sorted(step.name for step in recipe.steps) == ["A", "B", "D", "merged"]
    assert (set(recipe.models), warnings) == ({"C", "E", "F"}, ())


def test_steps_of_a_parent_are_named_after_it():
    """The steps of a parent with several steps are named after the parent."""
    steps = [
        {"name": "T", "mode": "weight_sum", "a": "x", "b": "y", "alpha": 0.5},
        {"name": "A", "mode": "weight_sum", "a": "T", "b": "y", "alpha": 0.25},
    ]
    parent = {
        "type": "blockfit",
        "output": "A",
        "recipe": {"models": {"x": {"file": "C"}, "y": {"file": "D"}}, "steps": steps, "output": "A"},
    }
    recipe, _ = read(webui("A", "B", 0.3), {"B": parent})

    inner = weight_sum(weight_sum(alone("x"), alone("y"), everywhere(0.5)), alone("y"), everywhere(0.25))
    assert [step.name for step in recipe.steps] == ["B_T", "B", "merged"]
    assert_coefficients(block_coefficients(recipe), weight_sum(alone("A"), inner, everywhere(0.3)))


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        (
            {"type": "sd-webui-supermerger", "mode": "Magic"},
            ["B: remains a model", "sd_merge_recipe of b2b2b2b2b2", "Magic"],
        ),
        ({"type": "other-tool"}, ["B: remains a model", "other-tool"]),
        (
            {
                "type": "sd-webui-model-mixer",
                "mode": ["Sum"],
                "weights_alpha": [RISING],
                "use_mbws": [True],
                "uses": [True],
                "model_a": "C",
                "model_b": "D",
            },
            ["B: remains a model", "mapping: received 'model-mixer'", "'supermerger'", "time_embed"],
        ),
    ],
)  # fmt: skip
def test_parents_that_a_recipe_cannot_express(parent, words):
    """A parent with an unsupported recipe, or another mapping, remains a model; a warning gives the reason."""
    recipe, warnings = read(webui("A", "B", 0.3), {"B": parent})

    assert (list(recipe.models), len(recipe.steps)) == (["A", "B"], 1)
    (warning,) = warnings
    assert all(word in warning for word in words), warning


def test_parent_of_another_mapping_with_fitting_numbers():
    """A parent with another mapping is put in if its numbers are the same under both mappings."""
    parent = {
        "type": "sd-webui-model-mixer",
        "mode": ["Sum"],
        "weights_alpha": [[0.0] * 26],
        "use_mbws": [True],
        "uses": [True],
        "model_a": "C",
        "model_b": "D",
    }
    recipe, warnings = read(webui("A", "B", 0.3), {"B": parent})

    assert ([step.name for step in recipe.steps], warnings) == (["B", "merged"], ())


def test_parents_of_model_mixers_merges():
    """model-mixer's parents with the same mapping are put in; model-mixer names them with short hashes."""

    def mixer(a, b, numbers):
        return {
            "type": "sd-webui-model-mixer",
            "mode": ["Sum"],
            "weights_alpha": [numbers],
            "use_mbws": [True],
            "uses": [True],
            "model_a": f"{a}.safetensors [{HASHES[a][:10]}]",
            "model_b": f"{b}.safetensors [{HASHES[b][:10]}]",
        }

    falling = RISING[::-1]
    recipe, warnings = read(mixer("A", "B", RISING), {"B": mixer("C", "D", falling)})

    expected = weight_sum(alone("A"), weight_sum(alone("C"), alone("D"), by_block(falling)), by_block(RISING))
    assert_coefficients(block_coefficients(recipe), expected)
    assert (recipe.mapping, warnings) == ("model-mixer", ())


def test_parent_that_is_one_model():
    """A parent that was saved without interpolation is replaced with its one model."""
    parent = webui("C", "D", 0.5) | {"interp_method": "No interpolation"}
    recipe, (warning,) = read(webui("A", "B", 0.3), {"B": parent})

    assert_coefficients(block_coefficients(recipe), weight_sum(alone("A"), alone("C"), everywhere(0.3)))
    assert warning.startswith("B: interp_method: no interpolation: the file is 'C' alone")


def test_parent_of_itself():
    """If the metadata names a model as its own parent, its recipe is put in once."""
    recipe, _ = read(webui("A", "B", 0.3), {"B": webui("B", "C", 0.5)})

    inner = weight_sum(alone("B-2"), alone("C"), everywhere(0.5))
    assert recipe.models["B-2"].sha256 == HASHES["B"]
    assert_coefficients(block_coefficients(recipe), weight_sum(alone("A"), inner, everywhere(0.3)))


def test_parents_of_each_other():
    """If two models are each other's parents, the first is put in; the second remains a model, with a warning."""
    recipe, (warning,) = read(webui("A", "B", 0.3), {"B": webui("C", "D", 0.5), "C": webui("B", "D", 0.25)})

    inner = weight_sum(alone("C"), alone("D"), everywhere(0.5))
    assert_coefficients(block_coefficients(recipe), weight_sum(alone("A"), inner, everywhere(0.3)))
    assert warning.startswith("C: remains a model")
    assert "cycle" in warning


def blockfit(a, b, alpha, vae=None):
    """Return blockfit's metadata of a weighted sum."""
    models = {name: {"file": f"{name}.safetensors", "sha256": HASHES[name]} for name in {a, b, vae} - {None}}
    step = {"name": "T1", "mode": "weight_sum", "a": a, "b": b, "alpha": alpha}
    recipe = {
        "name": "made",
        "layout": "sd1",
        "models": models,
        "steps": [step],
        **({} if vae is None else {"vae": vae}),
    }
    return {"type": "blockfit", "output": "T1", "recipe": recipe}


def test_copied_vaes():
    """A copied VAE is traced to the model that its parent copied it from; parents with other VAEs change nothing."""
    outer = blockfit("A", "B", 0.5, vae="B")

    traced, notes = read(outer, {"B": blockfit("C", "D", 0.25, vae="D")})
    other, _ = read(blockfit("A", "B", 0.5, vae="A"), {"B": blockfit("C", "D", 0.25)})

    assert (traced.vae, notes) == ("D", ())
    assert other.vae == "A"
    assert [step.name for step in other.steps] == ["B", "T1"]


@pytest.mark.parametrize(
    ("vae", "parents", "reason"),
    [
        ("B", None, "vae: received 'B'; its VAE is a merge, and a recipe copies that of a model"),
        (None, "D", "vae: received 'D'; the recipe merges the VAE with its other tensors"),
    ],
)
def test_vaes_that_cannot_be_traced(vae, parents, reason):
    """A parent whose steps would give another VAE stays a model; a note says why."""
    recipe, notes = read(blockfit("A", "B", 0.5, vae=vae), {"B": blockfit("C", "D", 0.25, vae=parents)})

    assert [step.name for step in recipe.steps] == ["T1"]
    assert recipe.vae == vae
    assert notes == (f"B: remains a model, because its recipe cannot replace it: {reason}",)
