"""Recipes in the metadata of merged files: blockfit's read back exactly, other tools' if a recipe can express them."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from optimizer.checkpoints import open_checkpoint
from optimizer.errors import RecipeError
from optimizer.interchange.embedded import recipe_from_metadata
from optimizer.library import Library
from optimizer.merging import merge
from optimizer.recipes import Model, Recipe, block_coefficients, load_recipe

A, B, C = ("a1" * 32, "b2" * 32, "c3" * 32)
BLOCKS = [
    "BASE",
    *(f"IN{n:02}" for n in range(12)),
    "M00",
    *(f"OUT{n:02}" for n in range(12)),
]
NUMBERS = [round(0.03 * n, 2) for n in range(26)]
TEXT = ",".join(map(str, NUMBERS))
OTHERS = [round(1 - number, 2) for number in NUMBERS]

MODELS = {
    A: {"name": "A", "legacy_hash": "11111111"},
    B: {"name": "dir/B.ckpt", "legacy_hash": "22222222"},
    C: {"name": "C.safetensors [c3c3c3c3c3]", "legacy_hash": "33333333"},
}
# The metadata as SuperMerger writes them, with other numbers.
SUPERMERGER = {
    "type": "sd-webui-supermerger",
    "weights_alpha": NUMBERS[1:],
    "weights_beta": "0.2,0.2",
    "weights_alpha_orig": TEXT,
    "weights_beta_orig": "",
    "model_a": A,
    "model_b": B,
    "model_c": A,
    "base_alpha": NUMBERS[0],
    "base_beta": 0.25,
    "mode": "Weight sum",
    "mbw": True,
    "elemental_merge": "",
    "calcmode": "normal",
    "Off": [""],
}
MIXER = {
    "type": "sd-webui-model-mixer",
    "blocks": "BASE,IN00",
    "mbw": True,
    "weights_alpha": [NUMBERS, OTHERS],
    "weights_alpha_orig": [TEXT, ",".join(map(str, OTHERS))],
    "alpha": [0.5, 0.6],
    "model_a": "A.safetensors [a1a1a1a1a1]",
    "base_model": "sd15.safetensors [0123456789]",
    "mode": ["Sum", "Add-Diff"],
    "calcmode": ["Normal", "Normal"],
    "elemental": ["", ""],
    "use_elemental": [False, False],
    "adjust": "",
    "uses": [True, True],
    "use_mbws": [True, True],
    "model_b": "dir/B",
    "model_c": "C",
    "recipe": "(A * (1 - alpha_0) + B * alpha_0) + (C - sd15) * alpha_1(...)",
}
WEBUI = {
    "type": "webui",
    "primary_model_hash": A,
    "secondary_model_hash": B,
    "tertiary_model_hash": C,
    "interp_method": "Add difference",
    "multiplier": 0.3,
    "save_as_half": True,
    "custom_name": "",
    "config_source": 0,
    "bake_in_vae": "None",
    "discard_weights": "",
    "is_inpainting": False,
    "is_instruct_pix2pix": False,
}


def read(recipe, models=None, **changes):
    """Read a recipe with some fields changed (... leaves one out), in metadata with three models."""
    data = {name: value for name, value in (recipe | changes).items() if value is not ...}
    metadata = {
        "sd_merge_recipe": json.dumps(data),
        "sd_merge_models": json.dumps(MODELS if models is None else models),
    }
    return recipe_from_metadata(metadata, Path("merged.safetensors"))


def numbers(alpha):
    """Return an alpha as 26 numbers."""
    return [alpha.at(block) for block in BLOCKS]


def problem(recipe, **changes):
    """Return the one line with which a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        read(recipe, **changes)
    (line,) = caught.value.problems
    assert line.startswith("merged.safetensors: sd_merge_recipe")
    return line


def test_recipe_of_blockfit_reads_back(tmp_path, write_sd1):
    """A file merged by blockfit contains the exact recipe, with free alphas, licences and mapping."""
    text = """
name: mine
mapping: mecha
models: {a: {file: a.safetensors, license: MIT}, b: {file: b.safetensors}, c: {file: c.safetensors}}
steps:
  - {name: ONE, mode: sum_twice, a: a, b: b, c: c, alpha: {OUT03-OUT05: 0.3}, beta: 0.25}
  - {name: TWO, mode: add_difference, a: ONE, b: b, c: c, alpha: {search: [0, 1], blocks: OUT06, start: 0.5}}
"""
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    for seed, name in enumerate("abc"):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed)
    paths = {name: tmp_path / f"{name}.safetensors" for name in "abc"}

    started = recipe.with_start_values()
    for source, step, expected, count in (
        (started, None, started, 0),
        (recipe, "ONE", replace(recipe, output="ONE"), 1),
    ):
        merge(source, paths, tmp_path / "out.safetensors", step=step)
        with open_checkpoint(tmp_path / "out.safetensors") as checkpoint:
            found, warnings = recipe_from_metadata(checkpoint.metadata, tmp_path / "out.safetensors")
        assert found == expected
        assert len(warnings) == count


def test_baked_vae_gives_a_warning():
    """A VAE that was baked in is not part of the recipe; a warning names it."""
    data = {
        "models": {"a": {"file": "a"}, "b": {"file": "b"}},
        "steps": [{"name": "T", "mode": "weight_sum", "a": "a", "b": "b", "alpha": 1}],
    }

    _, warnings = read({"type": "blockfit", "output": "T", "recipe": data, "vae": {"name": "v.pt", "sha256": C}})

    assert len(warnings) == 1
    assert all(word in warnings[0] for word in ("vae", "v.pt", C, "`vae=...`"))


def test_supermerger_weight_sum():
    """SuperMerger's 26 numbers, names and hashes become a recipe of one step, without the unused model C."""
    recipe, warnings = read(SUPERMERGER)

    (step,) = recipe.steps
    assert (step.name, step.mode, step.a, step.b, step.c, recipe.output) == (
        "merged",
        "weight_sum",
        "A",
        "B",
        None,
        "merged",
    )
    assert (recipe.name, recipe.mapping, warnings) == ("merged", "supermerger", ())
    assert numbers(step.alpha) == NUMBERS
    assert recipe.models == {"A": Model("A.safetensors", sha256=A), "B": Model("B.ckpt", sha256=B)}


@pytest.mark.parametrize("orig", ["GRAD_V", "R,U,X", "", None])
def test_supermerger_separate_base(orig):
    """If the text is a preset's name, the 25 numbers and the separate base alpha are read."""
    (step,) = read(SUPERMERGER, weights_alpha_orig=orig)[0].steps

    assert numbers(step.alpha) == NUMBERS


@pytest.mark.parametrize(
    ("mode", "name", "has_beta"),
    [
        ("Add difference", "add_difference", False),
        ("Triple sum", "triple_sum", True),
        ("sum Twice", "sum_twice", True),
        ("Add difference:A+(B-C)*alpha", "add_difference", False),
    ],
)
def test_supermerger_three_models(mode, name, has_beta):
    """Modes with three models take model C, and beta if the mode has one."""
    beta = ",".join(map(str, OTHERS))
    (step,) = read(SUPERMERGER, mode=mode, model_c=C, weights_beta=OTHERS[1:], weights_beta_orig=beta)[0].steps

    assert (step.mode, step.a, step.b, step.c) == (name, "A", "B", "C")
    assert numbers(step.alpha) == NUMBERS
    assert (step.beta is not None) == has_beta
    if has_beta:
        assert numbers(step.beta) == OTHERS


def test_supermerger_without_blocks():
    """Without block weights, base alpha and base beta hold for all blocks."""
    (step,) = read(SUPERMERGER, mode="Triple sum", mbw=False, weights_alpha=None, weights_alpha_orig=None)[0].steps

    assert numbers(step.alpha) == [NUMBERS[0]] * 26
    assert numbers(step.beta) == [0.25] * 26


@pytest.mark.parametrize(
    ("mode", "kept"),
    [("Exclude", lambda block: block not in ("IN10", "BASE")), ("Include", lambda block: block in ("IN10", "BASE"))],
)
def test_supermerger_excluded_blocks(mode, kept):
    """Blocks that are left out have an alpha of 0."""
    (step,) = read(SUPERMERGER, Off=..., **{mode: ["IN10", "BASE", ""]})[0].steps

    assert numbers(step.alpha) == [number if kept(block) else 0 for block, number in zip(BLOCKS, NUMBERS, strict=True)]


def test_supermerger_print():
    """The entry "print" among the left out blocks is ignored: it only prints them on the console."""
    printed, _ = read(SUPERMERGER, Off=..., Exclude=["IN10", "print"])
    only, _ = read(SUPERMERGER, Off=..., Exclude=["print"])

    assert numbers(printed.steps[0].alpha) == [0 if n == BLOCKS.index("IN10") else NUMBERS[n] for n in range(26)]
    assert numbers(only.steps[0].alpha) == NUMBERS


@pytest.mark.parametrize(
    ("excluded", "kind", "kept", "warns"),
    [
        (["VAE"], "Exclude", BLOCKS, True),
        (["VAE", "BASE"], "Exclude", BLOCKS[1:], False),
        (["VAE", "BASE", "OUT03"], "Include", ["BASE", "OUT03"], False),
        (["Adjust", "IN00", "OUT11"], "Exclude", [b for b in BLOCKS if b not in ("IN00", "OUT11")], False),
        (["Adjust", "IN00", "OUT11"], "Include", ["IN00", "OUT11"], False),
    ],
)
def test_supermerger_vae_and_adjust(excluded, kind, kept, warns):
    """The VAE and "Adjust" can be left out with their blocks; a VAE left out alone gives a warning."""
    recipe, warnings = read(SUPERMERGER, Off=..., base_alpha=0.4, weights_alpha_orig="GRAD_V", **{kind: excluded})

    given = dict(zip(BLOCKS, [0.4, *NUMBERS[1:]], strict=True))
    assert numbers(recipe.steps[0].alpha) == [given[block] if block in kept else 0 for block in BLOCKS]
    assert len(warnings) == warns
    assert all("the VAE was excluded and remains model A's: merge with `vae=...`" in warning for warning in warnings)


def test_supermerger_adjust_of_nothing():
    """Leaving out "Adjust" changes nothing if its blocks already have alphas of 0."""
    recipe, _ = read(
        SUPERMERGER,
        Off=...,
        Exclude=["Adjust"],
        weights_alpha=[0, *NUMBERS[2:25], 0],
        weights_alpha_orig=f"{NUMBERS[0]},0,{','.join(map(str, NUMBERS[2:25]))},0",
    )

    assert numbers(recipe.steps[0].alpha) == [NUMBERS[0], 0, *NUMBERS[2:25], 0]


def test_metadata_encoded_twice():
    """Recipe and models that a tool encoded twice, whole or by entry, give the same recipe."""
    recipe, models = json.dumps(SUPERMERGER), {key: json.dumps(entry) for key, entry in MODELS.items()}
    metadata = {"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(json.dumps(models))}

    assert recipe_from_metadata(metadata, Path("merged.safetensors")) == read(SUPERMERGER)


def test_model_mixer():
    """model-mixer's chain becomes steps TEMP1, TEMP2 with its own mapping; known hashes are completed."""
    recipe, warnings = read(MIXER)

    first, second = recipe.steps
    assert (first.name, first.mode, first.a, first.b, first.c) == ("TEMP1", "weight_sum", "A", "B", None)
    assert (second.name, second.mode, second.a, second.b, second.c) == ("TEMP2", "add_difference", "TEMP1", "C", "sd15")
    assert (numbers(first.alpha), numbers(second.alpha)) == (NUMBERS, OTHERS)
    assert (recipe.mapping, recipe.output, warnings) == ("model-mixer", "TEMP2", ())
    assert recipe.models == {
        "A": Model("A.safetensors", sha256=A),
        "B": Model("B.safetensors", sha256=B),
        "C": Model("C.safetensors", sha256=C),
        "sd15": Model("sd15.safetensors [0123456789]"),
    }


def test_model_mixer_without_blocks():
    """A step without block weights has one alpha; a merge with only such steps moves the VAE too."""
    recipe, warnings = read(MIXER, use_mbws=[False, False], weights_alpha=["", ""])
    mixed, mixed_warnings = read(MIXER, use_mbws=[True, False])

    assert [numbers(step.alpha) for step in recipe.steps] == [[0.5] * 26, [0.6] * 26]
    assert (recipe.mapping, warnings) == ("supermerger", ())
    assert [numbers(step.alpha) for step in mixed.steps] == [NUMBERS, [0.6] * 26]
    assert mixed.mapping == "model-mixer"
    assert len(mixed_warnings) == 1
    assert "VAE" in mixed_warnings[0]


def test_model_mixer_of_another_version():
    """Older metadata has one calcmode, and the type of each step's weights shows whether they are by block."""
    changes = {"use_mbws": ..., "uses": ..., "mbw": False, "calcmode": "normal", "elemental": ..., "adjust": ...}
    recipe, _ = read(MIXER, weights_alpha=[NUMBERS, "0.5"], mode=["Sum", "Sum"], **changes)

    assert [numbers(step.alpha) for step in recipe.steps] == [NUMBERS, [0.6] * 26]


def test_model_mixer_unused_step():
    """A step that was not used is left out, and a single step is named merged."""
    recipe, _ = read(MIXER, uses=[False, True])

    (step,) = recipe.steps
    assert (step.name, step.a, step.b, step.c) == ("merged", "A", "C", "sd15")
    assert numbers(step.alpha) == OTHERS


def test_webui():
    """A merge by the WebUI has one multiplier for all blocks."""
    recipe, warnings = read(WEBUI)
    two, _ = read(WEBUI, interp_method="Weighted sum", tertiary_model_hash=None)

    (step,) = recipe.steps
    assert (step.mode, step.a, step.b, step.c, warnings) == ("add_difference", "A", "B", "C", ())
    assert numbers(step.alpha) == [0.3] * 26
    assert (two.steps[0].mode, list(two.models)) == ("weight_sum", ["A", "B"])


def test_webui_extras_give_warnings():
    """A baked VAE and discarded weights give warnings, since the recipe contains neither."""
    _, warnings = read(WEBUI, bake_in_vae="good.vae.pt", discard_weights="model_ema")

    assert len(warnings) == 2
    assert "good.vae.pt" in warnings[0]
    assert "model_ema" in warnings[1]


def test_no_interpolation():
    """The WebUI's "No interpolation" is a merge of one model with itself; its other fields are ignored."""
    recipe, warnings = read(WEBUI, interp_method="No interpolation", multiplier="", secondary_model_hash=None)

    assert (list(recipe.models), recipe.output, len(recipe.steps)) == (["A"], "merged", 1)
    assert block_coefficients(recipe) == {"A": dict.fromkeys(BLOCKS, 1.0)}
    assert warnings == (
        "interp_method: no interpolation: the file is 'A' alone, written as its weight sum with itself",
    )


@pytest.mark.parametrize("reference", [B, B[:10], f"[{B[:10]}]"])
def test_unnamed_model(reference):
    """A model with a hash but no name gets the hash as its file, which finds it under any name, and a warning."""
    recipe, warnings = read(WEBUI, models={A: MODELS[A], C: MODELS[C]}, secondary_model_hash=reference)

    assert recipe.models["b2b2b2b2b2"] == Model("b2b2b2b2b2", sha256=B if reference == B else None)
    assert len(warnings) == 1
    assert all(word in warnings[0] for word in ("secondary_model_hash", reference.strip("[]"), "found by its hash"))


def test_models_known_only_by_hash(tmp_path, write_sd1):
    """A recipe with hashes only finds its checkpoints under any name."""
    write_sd1(tmp_path / "renamed.safetensors", seed=1)
    digits = hashlib.sha256((tmp_path / "renamed.safetensors").read_bytes()).hexdigest()

    recipe, _ = read(WEBUI, models={}, secondary_model_hash=digits)

    files = {digits[:10]: recipe.models[digits[:10]].file}
    assert Library().find_models(files, tmp_path) == ({digits[:10]: tmp_path / "renamed.safetensors"}, [])


def test_names_are_made_unique():
    """Models with the same name, or the name of a step, get unique names; a model used twice has one name."""
    same = {A: {"name": "x/merged.ckpt"}, B: {"name": "y/merged.ckpt"}}
    recipe, _ = read(WEBUI, models=same, tertiary_model_hash=A)

    assert list(recipe.models) == ["merged-2", "merged-3"]
    assert (recipe.steps[0].a, recipe.steps[0].b, recipe.steps[0].c) == ("merged-2", "merged-3", "merged-2")
    assert {model.file for model in recipe.models.values()} == {"merged.ckpt"}


def test_imported_recipe_merges_like_the_tool(tmp_path, write_sd1, sd1_tensors):
    """A recipe from SuperMerger's metadata merges by the tool's formula, block by block."""
    around = sd1_tensors(seed=0)
    tensors = {
        name: write_sd1(tmp_path / f"{name}.safetensors", seed=n, around=around) for n, name in enumerate("ABC", 1)
    }
    models = {key: {"name": name} for key, name in ((A, "A"), (B, "B"), (C, "C"))}
    recipe, _ = read(SUPERMERGER, models=models, mode="Add difference", model_c=C)

    merge(
        recipe,
        {name: tmp_path / f"{name}.safetensors" for name in "ABC"},
        tmp_path / "out.safetensors",
        dtype=torch.float32,
        check_hashes=False,  # the hashes are invented
    )

    found = load_file(tmp_path / "out.safetensors")
    for name, block in {
        "model.diffusion_model.output_blocks.7.0.in_layers.0.weight": "OUT07",
        "model.diffusion_model.time_embed.0.weight": "IN00",
        "first_stage_model.encoder.conv_in.weight": "BASE",
    }.items():
        a, b, c = (tensors[model][name].double() for model in "ABC")
        expected = a + (b - c) * NUMBERS[BLOCKS.index(block)]
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        (SUPERMERGER, {"elemental_merge": "OUT03:attn1:0.5"}, ["elemental_merge", "OUT03:attn1:0.5", "block"]),
        (SUPERMERGER, {"calcmode": "trainDifference"}, ["calcmode", "trainDifference", "normal"]),
        (SUPERMERGER, {"mode": "Magic"}, ["mode", "'Magic'", "sum Twice"]),
        (SUPERMERGER, {"mode": ...}, ["mode", "missing", "text"]),
        (SUPERMERGER, {"mbw": "yes"}, ["mbw", "'yes'", "true or false"]),
        (SUPERMERGER, {"mbw": False, "base_alpha": "much"}, ["base_alpha", "'much'", "number"]),
        (SUPERMERGER, {"weights_alpha_orig": "", "weights_alpha": [0.5] * 18}, ["weights_alpha", "18 numbers", "26"]),
        (SUPERMERGER, {"weights_alpha_orig": "", "weights_alpha": [0.5] * 20}, ["weights_alpha", "19 numbers and a 0"]),
        (SUPERMERGER, {"weights_alpha_orig": "", "weights_alpha": "GRAD_V"}, ["weights_alpha", "'GRAD_V'", "numbers"]),
        (SUPERMERGER, {"weights_alpha_orig": "", "base_alpha": None}, ["base_alpha", "None"]),
        (SUPERMERGER, {"mode": "Triple sum", "weights_beta": 3}, ["weights_beta", "3"]),
        (SUPERMERGER, {"model_b": None}, ["model_b", "None", "sha256 or name"]),
        (SUPERMERGER, {"Exclude": ["attn1"]}, ["Exclude", "'attn1'", "block"]),
        (MIXER, {"elemental": ["OUT03:attn1:0.5", ""], "use_elemental": [True, False]}, ["elemental", "block"]),
        (MIXER, {"calcmode": ["Normal", "Rebasin"]}, ["calcmode", "Rebasin"]),
        (MIXER, {"adjust": "0.5,0,0"}, ["adjust", "0.5,0,0"]),
        (MIXER, {"mode": ["Sum", "Triple"]}, ["mode", "'Triple'", "Add-Diff"]),
        (MIXER, {"mode": []}, ["mode"]),
        (MIXER, {"mode": "Sum"}, ["mode", "list"]),
        (MIXER, {"uses": [False, False]}, ["uses", "at least one step"]),
        (MIXER, {"uses": [True, True, True]}, ["uses", "2 steps"]),
        (MIXER, {"weights_alpha": [NUMBERS]}, ["weights_alpha", "list of 2"]),
        (MIXER, {"weights_alpha": [NUMBERS, NUMBERS[:20]]}, ["weights_alpha", "20 numbers"]),
        (MIXER, {"weights_alpha": [NUMBERS, "text"]}, ["weights_alpha", "entry 2"]),
        (MIXER, {"use_mbws": [True, False], "alpha": [0.5, None]}, ["alpha", "numbers"]),
        (MIXER, {"base_model": None}, ["base_model", "None"]),
        (MIXER, {"model_c": ...}, ["model_c", "missing"]),
        (WEBUI, {"interp_method": "Magic"}, ["interp_method", "'Magic'", "Weighted sum", "No interpolation"]),
        (SUPERMERGER, {"Exclude": ["Adjust"]}, ["Exclude", "'Adjust'", "IN00 and OUT11", "parts of blocks"]),
        (SUPERMERGER, {"Exclude": ["Adjust", "IN00"]}, ["Exclude", "'Adjust'", "parts of blocks"]),
        (SUPERMERGER, {"Include": ["Adjust"]}, ["Include", "'Adjust'", "parts of blocks"]),
        (
            SUPERMERGER,
            {"Include": ["VAE", "OUT03"], "weights_alpha_orig": "GRAD_V", "base_alpha": 0.4},
            ["Include", "'VAE' without BASE"],
        ),
        (WEBUI, {"multiplier": True}, ["multiplier", "True", "number"]),
        (WEBUI, {"type": "merge-models-chattiori"}, ["type", "merge-models-chattiori", "sd-webui-supermerger"]),
        (WEBUI, {"type": ...}, ["type", "missing"]),
        ({"type": "blockfit", "recipe": 3}, {}, ["recipe", "3", "object"]),
        ({"type": "blockfit", "recipe": {"presets": "../x"}}, {}, ["presets"]),
    ],
)
def test_refused(recipe, changes, words):
    """Unsupported or broken metadata is refused in one line with file, field, received value and reason."""
    line = problem(recipe, **changes)

    assert all(word in line for word in words), line


def test_no_recipe():
    """A file without a recipe is refused with the metadata that it has; a broken recipe is refused too."""
    for metadata, words in (
        ({}, "none"),
        ({"format": "pt"}, "'format'"),
        ({"sd_merge_recipe": "{"}, "must be a JSON object"),
        ({"sd_merge_recipe": "[1]"}, "must be a JSON object"),
    ):
        with pytest.raises(RecipeError, match=words):
            recipe_from_metadata(metadata, Path("x.safetensors"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([A, "Sum", TEXT, NUMBERS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "file", "a", "b"]), inner),
    max_leaves=8,
)
BLOCKFIT = {
    "name": "x",
    "models": {"a": {"file": "a"}, "b": {"file": "b"}},
    "steps": [{"name": "T", "mode": "weight_sum", "a": "a", "b": "b", "alpha": NUMBERS}],
    "output": "T",
    "mapping": "supermerger",
    "layout": "sd1",
    "fitted": None,
}
CHANGED = st.sampled_from([SUPERMERGER, MIXER, WEBUI]).flatmap(
    lambda whole: st.dictionaries(st.sampled_from([*whole, "Include", "Exclude"]), JSON, max_size=3).map(
        lambda changes: whole | changes
    )
)
CHANGED_BLOCKFIT = st.dictionaries(st.sampled_from([*BLOCKFIT, "presets"]), JSON, max_size=2).map(
    lambda changes: {"type": "blockfit", "output": "T", "recipe": BLOCKFIT | changes}
)
CHANGED_STEP = st.dictionaries(
    st.sampled_from([*BLOCKFIT["steps"][0], "c", "beta", "expect", "similarity"]), JSON, max_size=2
).map(
    lambda changes: {
        "type": "blockfit",
        "output": "T",
        "recipe": BLOCKFIT | {"steps": [BLOCKFIT["steps"][0] | changes]},
    }
)


@given(data=CHANGED | CHANGED_BLOCKFIT | CHANGED_STEP | JSON, models=JSON)
def test_hostile_metadata(data, models):
    """Any metadata gives a recipe or a RecipeError."""
    metadata = {"sd_merge_recipe": json.dumps(data), "sd_merge_models": json.dumps(models)}
    try:
        recipe, warnings = recipe_from_metadata(metadata, Path("x.safetensors"))
    except RecipeError:
        return
    assert isinstance(recipe, Recipe)
    assert all(isinstance(warning, str) for warning in warnings)
