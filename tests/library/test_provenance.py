"""The provenance in a file's metadata, and that no metadata does harm."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.library import inspect_checkpoint, name_and_hash, parsed, read_provenance
from optimizer.library.provenance import Parent

A, B, C = ("a1" * 32, "b2" * 32, "c3" * 32)
MODELS = {sha: {"name": name, "legacy_hash": "12345678"} for sha, name in ((A, "A"), (B, "dir/B.ckpt"), (C, "C"))}

SUPERMERGER = {
    "type": "sd-webui-supermerger",
    "weights_alpha": [0.1] * 25,
    "weights_beta": "0.2",
    "weights_alpha_orig": ",".join(["0.5"] + ["0.1"] * 25),
    "weights_beta_orig": "",
    "model_a": A,
    "model_b": B,
    "model_c": A,
    "base_alpha": 0.5,
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
    "weights_alpha": [[0.5] * 26, [0.1] * 26],
    "alpha": [0.5, 0.5],
    "model_a": f"A.safetensors [{A[:10]}]",
    "base_model": "sd15.safetensors [0123456789]",
    "mode": ["Sum", "Add-Diff"],
    "calcmode": ["Normal", "Normal"],
    "uses": [True, True],
    "use_mbws": [True, True],
    "model_b": "B",
    "model_c": "C",
}
WEBUI = {
    "type": "webui",
    "primary_model_hash": A,
    "secondary_model_hash": B,
    "tertiary_model_hash": None,
    "interp_method": "Weighted sum",
    "multiplier": 0.3,
    "bake_in_vae": "good.vae.pt",
}
CHATTIORI = {
    "type": "merge-models-chattiori",
    "primary_model_hash": A,
    "secondary_model_hash": B,
    "tertiary_model_hash": None,
    "merge_method": "Weighted Sum",
    "block_weights": True,
    "alpha_info": "0.5,[...]",
    "bake_in_vae": False,
}
ANALYZER = {
    "type": "sd-model-analyzer",
    "weights_alpha": [[0.5] * 25],
    "model_a": "x.safetensors",
    "model_b": "y.safetensors",
    "mode": ["add"],
    "mbw": True,
    "model_base": "v1-5.safetensors",
}
BLOCKFIT = {
    "type": "blockfit",
    "output": "T1",
    "recipe": {
        "models": {"a": {"file": "A.safetensors"}, "b": {"file": "dir\\B.ckpt"}},
        "steps": [{"name": "T1", "mode": "weight_sum", "a": "a", "b": "b", "alpha": [0.5] * 26}],
    },
    "vae": {"name": "good.vae.pt", "sha256": C},
}
MECHA = (
    'version 0.1.0\nmodel "a.safetensors" model_config="sd1-ldm" merge_space="weight"\n'
    'model "b.safetensors" model_config="sd1-ldm" merge_space="weight"\ndict BASE=0.0 IN00=0.04\n'
    'literal &2 model_config="sd1-supermerger_blocks"\nmerge "convert_sd1_blocks_to_ldm" &3\n'
    'merge "weighted_sum" &0 &1 &4\n'
)
PROMPT = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "b.safetensors"}},
    "3": {"class_type": "ModelMergeSD1", "inputs": {"model1": ["1", 0], "model2": ["2", 0], "time_embed.": 0.9}},
}
WORKFLOW = {
    "nodes": [
        {"type": "CheckpointLoaderSimple", "widgets_values": ["a.safetensors"]},
        {"type": "CheckpointLoaderSimple", "widgets_values": ["b.safetensors"]},
        {"type": "ModelMergeSimple", "widgets_values": [0.5]},
    ]
}


def provenance_of(recipe):
    """Return the provenance of a recipe beside the three models."""
    return read_provenance({"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(MODELS)})


@pytest.mark.parametrize(
    ("recipe", "tool", "method", "models", "per_block"),
    [
        (SUPERMERGER, "SuperMerger", ("Weight sum",), ["A [a1a1a1a1a1]", "dir/B.ckpt [b2b2b2b2b2]"], True),
        (
            MIXER,
            "Model Mixer",
            ("Sum", "Add-Diff"),
            ["A.safetensors [a1a1a1a1a1]", "sd15.safetensors [0123456789]", "B", "C [c3c3c3c3c3]"],
            True,
        ),
        (
            WEBUI,
            "Stable Diffusion WebUI",
            ("Weighted sum, 0.3", "VAE of good.vae.pt"),
            ["A [a1a1a1a1a1]", "dir/B.ckpt [b2b2b2b2b2]"],
            False,
        ),
        (
            CHATTIORI,
            "Chattiori's Model Merger",
            ("Weighted Sum",),
            ["A [a1a1a1a1a1]", "dir/B.ckpt [b2b2b2b2b2]"],
            True,
        ),
        (ANALYZER, "sd-model-analyzer", ("add",), ["x.safetensors", "y.safetensors", "v1-5.safetensors"], True),
        (
            BLOCKFIT,
            "blockfit",
            ("T1 = weight_sum of a, b, alpha per block", "VAE of good.vae.pt [c3c3c3c3c3]"),
            ["A.safetensors [a1a1a1a1a1]", "B.ckpt"],
            True,
        ),
        (
            {"type": "some-tool", "mode": "magic", "model_a": A},
            "some-tool",
            ("magic",),
            ["A [a1a1a1a1a1]"],
            None,
        ),
    ],
)
def test_each_tools_recipe_is_described(recipe, tool, method, models, per_block):
    """Each tool's recipe is described in its own words, with hashes resolved to names and each model once."""
    found = provenance_of(recipe)

    assert (found.tool, found.method, found.per_block) == (tool, method, per_block)
    assert [str(model) for model in found.models] == models
    assert found.fields == ("sd_merge_recipe", "sd_merge_models")


def test_only_steps_that_were_merged_are_described():
    """If only one step was merged, later steps and their models are left out; cycles do no harm."""
    recipe = {
        "models": {name: {"file": f"{name}.safetensors"} for name in "abc"},
        "steps": [
            {"name": "T1", "mode": "weight_sum", "a": "a", "b": "b", "alpha": 0.5},
            {"name": "T2", "mode": "weight_sum", "a": "T1", "b": "c", "alpha": [0.5] * 26},
            {"name": "T3", "mode": "weight_sum", "a": "T3", "b": "c", "alpha": 0.5},
        ],
    }
    one, two, three = (
        provenance_of({"type": "blockfit", "output": name, "recipe": recipe}) for name in ("T1", "T2", "T3")
    )

    assert (one.method, [model.name for model in one.models], one.per_block) == (
        ("T1 = weight_sum of a, b, alpha 0.5",),
        ["a.safetensors", "b.safetensors"],
        False,
    )
    assert len(two.method) == 2
    assert two.per_block
    assert [model.name for model in three.models] == ["c.safetensors"]


def test_a_recipe_without_block_weights_has_one_alpha():
    """A recipe of SuperMerger without block weights has one alpha."""
    found = provenance_of({**SUPERMERGER, "mbw": False, "weights_alpha": None})

    assert (found.method, found.per_block) == (("Weight sum, 0.5",), False)


def test_sd_mechas_recipe_is_read():
    """sd-mecha's recipe is a text in a separate field."""
    found = read_provenance({"mecha_recipe": MECHA})

    assert (found.tool, found.per_block, found.fields) == ("sd-mecha", True, ("mecha_recipe",))
    assert found.models == (Parent("a.safetensors", None), Parent("b.safetensors", None))
    assert found.method == ("convert_sd1_blocks_to_ldm", "weighted_sum")


@pytest.mark.parametrize(
    ("field", "graph", "method", "per_block"),
    [("prompt", PROMPT, "ModelMergeSD1", True), ("workflow", WORKFLOW, "ModelMergeSimple", False)],
)
def test_comfyuis_workflow_is_read(field, graph, method, per_block):
    """ComfyUI's prompt, or its workflow alone, gives the loaded files and the merging nodes."""
    found = read_provenance({field: json.dumps(graph)})

    assert (found.tool, found.method, found.per_block) == ("ComfyUI", (method,), per_block)
    assert [model.name for model in found.models] == ["a.safetensors", "b.safetensors"]


def test_inspection_contains_provenance(tmp_path, write_sd1):
    """An inspection contains the provenance as JSON values; a file without such metadata has None."""
    write_sd1(tmp_path / "a.safetensors", metadata={"sd_merge_recipe": json.dumps(SUPERMERGER)})
    write_sd1(tmp_path / "b.safetensors")

    merged, plain = (inspect_checkpoint(tmp_path / f"{name}.safetensors", full=False).as_dict() for name in "ab")

    assert merged == json.loads(json.dumps(merged, allow_nan=False))
    assert merged["merge"]["models"][0] == {"name": None, "short_hash": A[:10]}
    assert plain["merge"] is None


@pytest.mark.parametrize("text", ["{", "[1", '{"a": NaN}', '{"a": 1e999}', "[" * 5000, "[" * 500 + "]" * 500, "12e4"])
def test_other_text_is_unchanged(text):
    """Text that is no JSON, holds numbers that JSON cannot, or is nested too deep is returned unchanged."""
    assert parsed(text) == text


@pytest.mark.parametrize("encodings", [1, 2, 3])
def test_metadata_encoded_twice_are_decoded(encodings):
    """A JSON text within a JSON text is decoded, since tools that copy metadata encode it once more."""
    recipe, models = json.dumps(SUPERMERGER), {key: json.dumps(entry) for key, entry in MODELS.items()}
    models = json.dumps(models)
    for _ in range(encodings - 1):
        recipe, models = json.dumps(recipe), json.dumps(models)

    found = read_provenance({"sd_merge_recipe": recipe, "sd_merge_models": models})

    assert parsed(recipe) == SUPERMERGER
    assert [str(model) for model in found.models] == ["A [a1a1a1a1a1]", "dir/B.ckpt [b2b2b2b2b2]"]


@pytest.mark.parametrize("text", ['"text"', '"12"', '"\\"{\\""', '"[1"', json.dumps("{" * 5000), '"" {'])
def test_a_json_text_without_structure_is_unchanged(text):
    """A JSON text without an object or list is returned unchanged."""
    assert parsed(text) == text


def test_control_characters_are_not_shown():
    """Escape sequences, line breaks and text direction marks in a name are replaced; long names are cut."""
    found = provenance_of({"type": "x\x1b[2J\n\u202e", "mode": "m" * 10**6, "model_a": "\x07bell"})

    shown = [found.tool, *found.method, *map(str, found.models)]
    assert all(text.isprintable() and len(text) <= 120 for text in shown)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (A, ("A", A)),
        (A.upper(), ("A", A)),
        ("A", ("A", A)),
        ("C [c3c3c3c3c3]", ("C", C)),
        ("A.safetensors", ("A.safetensors", A)),
        ("A.1", ("A.1", None)),
        ("B", ("B", None)),
        ("dir/B", ("dir/B", B)),
        ("d" * 64, (None, "d" * 64)),
        ("a1a1a1a1a1", ("A", A)),
        ("[C3C3C3C3C3]", ("C", C)),
        ("d" * 10, (None, "d" * 10)),
        ("[a1a1a1a1]", ("[a1a1a1a1]", None)),
        ("", (None, None)),
        (None, (None, None)),
        ([A], (None, None)),
    ],
)
def test_a_model_is_found_by_name_or_hash(reference, expected):
    """A model is found by its sha256, the beginning of it in brackets, or its name with or without extension."""
    assert name_and_hash(reference, MODELS) == expected


def test_a_shared_name_gives_no_hash():
    """A name shared by two models gives no hash."""
    known = {A: {"name": "x.ckpt"}, B: {"name": "x.safetensors"}}

    assert name_and_hash("x", known) == ("x", None)
    assert name_and_hash(A, known) == ("x.ckpt", A)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([A, B, "Sum"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [*SUPERMERGER, *MIXER, *WEBUI, *BLOCKFIT, "models", "steps", "nodes", "name", "a", "inputs"]
            )
            | st.text(max_size=4),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
HOSTILE = st.text(max_size=40) | JSON.map(json.dumps) | st.none() | st.integers()


BROKEN = st.builds(
    lambda whole, field, value: json.dumps({**whole, field: value}),
    st.sampled_from([SUPERMERGER, MIXER, WEBUI, CHATTIORI, ANALYZER, BLOCKFIT, PROMPT, WORKFLOW, {"type": "?"}]),
    st.sampled_from([*SUPERMERGER, *MIXER, *WEBUI, *CHATTIORI, *BLOCKFIT, "1", "3", "nodes"]),
    JSON,
)


@given(
    recipe=HOSTILE | BROKEN,
    models=HOSTILE,
    other=HOSTILE | BROKEN,
    field=st.sampled_from(["mecha_recipe", "prompt", "workflow", "sd_merge_recipe"]),
)
def test_hostile_metadata_can_be_shown(recipe, models, other, field):
    """Any contents of the fields give None or a provenance that JSON and a terminal can show."""
    for metadata in (
        {"sd_merge_recipe": recipe, "sd_merge_models": models},
        {field: other},
        {field: f"version {other}\nmodel {recipe}\nmerge {models}"},
    ):
        found = read_provenance(metadata)
        if found is not None:
            json.dumps(found.as_dict(), allow_nan=False)
            assert all(text.isprintable() for text in (found.tool, *found.method, *map(str, found.models)))


def test_copied_vae():
    """The model whose VAE the recipe copies is listed and named, also if no step uses it."""
    models = {name: {"file": f"{name}.safetensors"} for name in "ABC"}
    steps = [{"name": "T", "mode": "weight_sum", "a": "A", "b": "B", "alpha": 0.5}]
    recipe = {"models": models, "steps": steps, "output": "T", "vae": "C"}
    noted = {"type": "blockfit", "output": "T", "recipe": recipe}

    found = read_provenance({"sd_merge_recipe": json.dumps(noted)})

    assert found.method == ("T = weight_sum of A, B, alpha 0.5", "VAE of C")
    assert [model.name for model in found.models] == ["A.safetensors", "B.safetensors", "C.safetensors"]
