"""Importing files: those of other tools are read, and any other file is refused in one line with its kind."""

import json
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from spellings import RISING, alone, assert_coefficients, by_block, everywhere, weight_sum
from step_by_step import BLOCKS

from optimizer.errors import RecipeError
from optimizer.interchange import import_merged, import_text
from optimizer.interchange.comfyui_workflow import is_workflow, read_workflow
from optimizer.interchange.mecha_text import read_mecha
from optimizer.interchange.mergekit_configuration import read_mergekit
from optimizer.recipes import block_coefficients

A, B = "a1" * 32, "b2" * 32
SUPERMERGER = {
    "type": "sd-webui-supermerger",
    "weights_alpha": RISING[1:],
    "weights_alpha_orig": ",".join(map(str, RISING)),
    "model_a": A,
    "model_b": B,
    "model_c": A,
    "base_alpha": RISING[0],
    "base_beta": 0.25,
    "mode": "Weight sum",
    "mbw": True,
    "calcmode": "normal",
}
MODELS = {A: {"name": "A.safetensors"}, B: {"name": "B.safetensors"}}
MERGED = {"sd_merge_recipe": SUPERMERGER, "sd_merge_models": MODELS}
EXPECTED = weight_sum(alone("A"), alone("B"), by_block(RISING))
TENSOR = {"model.diffusion_model.out.0.weight": torch.ones(2)}


def refused(path):
    """Return the one line with which a file is refused."""
    with pytest.raises(RecipeError) as caught:
        (import_merged if path.suffix == ".safetensors" else import_text)(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    return line


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(MERGED),
        json.dumps(MERGED, indent=2),
        json.dumps({key: json.dumps(value) for key, value in MERGED.items()}),
        json.dumps({key: json.dumps(json.dumps(value)) for key, value in MERGED.items()}),
        json.dumps(json.dumps(MERGED)),
        json.dumps({"__metadata__": {key: json.dumps(value) for key, value in MERGED.items()}, "tensor": {}}),
        "\ufeff\r\n" + json.dumps(MERGED, indent=1).replace("\n", "\r\n"),
        f"sd_merge_recipe: {json.dumps(SUPERMERGER)}\nsd_merge_models: {json.dumps(MODELS)}\n",
        f'"sd_merge_recipe"={json.dumps(json.dumps(SUPERMERGER))},\nsd_merge_models={json.dumps(json.dumps(MODELS))}',
    ],
)  # fmt: skip
def test_metadata_as_text(tmp_path, text):
    """Metadata as WebUIs show it, plain or encoded twice, gives the recipe of its file."""
    path = tmp_path / "metadata.json"
    path.write_text(text, encoding="utf-8")

    imported = import_text(path)

    assert_coefficients(block_coefficients(imported.recipe), EXPECTED)
    assert {name: model.sha256 for name, model in imported.recipe.models.items()} == {"A": A, "B": B}


def test_recipe_alone_as_text(tmp_path):
    """A recipe without the models' names keeps their hashes, which find the files under any name."""
    (tmp_path / "recipe.json").write_text(json.dumps(SUPERMERGER), encoding="utf-8")

    imported = import_text(tmp_path / "recipe.json")

    assert {name: (model.file, model.sha256) for name, model in imported.recipe.models.items()} == {
        A[:10]: (A[:10], A),
        B[:10]: (B[:10], B),
    }
    assert len(imported.warnings) == 2


def test_parents_in_metadata_as_text(tmp_path):
    """`with_parents` puts in parents' steps from a text of metadata, and is refused for a text of formulas."""
    parent = {"type": "webui", "primary_model_hash": "c3" * 32, "secondary_model_hash": "d4" * 32,
              "interp_method": "Weighted sum", "multiplier": 0.25}  # fmt: skip
    models = {**MODELS, B: {"name": "B", "sd_merge_recipe": parent}, "c3" * 32: {"name": "C"}, "d4" * 32: {"name": "D"}}
    (tmp_path / "m.json").write_text(json.dumps({**MERGED, "sd_merge_models": models}), encoding="utf-8")
    (tmp_path / "t.txt").write_text("A x 0.5 + B x 0.5 = T", encoding="utf-8")

    imported = import_text(tmp_path / "m.json", with_parents=True)

    b = weight_sum(alone("C"), alone("D"), everywhere(0.25))
    assert_coefficients(block_coefficients(imported.recipe), weight_sum(alone("A"), b, by_block(RISING)))
    with pytest.raises(RecipeError, match="with_parents"):
        import_text(tmp_path / "t.txt", with_parents=True)


KINDS = {
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG image"),
    "picture.jpg": (b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG image"),
    "picture.webp": (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40), "a WebP image"),
    "paper.pdf": (b"%PDF-1.7" + bytes(40), "a PDF document"),
    "model.gguf": (b"GGUF" + bytes(40), "a GGUF file"),
    "archive.gz": (b"\x1f\x8b" + bytes(40), "a gzip archive"),
    "trials.db": (b"SQLite format 3\0" + bytes(40), "a database, for example of a study's trials"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
    "old": (b"\x80\x02}q\0." + bytes(40), "a pickle, as old checkpoints are"),
    "page.html": (b"<!DOCTYPE html>\n<html><body>A x 0.5 + B x 0.5 = T</body></html>", "a web page"),
    "list.json": (b"[1, 2, 3]", "a JSON list of 3"),
    "empty.json": (b"{}", "a JSON object with nothing in it"),
    "other.json": (b'{"name": "x", "version": 2}', "a JSON object with 'name', 'version'"),
    "unet.json": (b'{"_class_name": "UNet2DConditionModel"}', "a diffusers configuration (UNet2DConditionModel)"),
    "lora.json": (b'{"ss_network_dim": "32"}', "the metadata of a LoRA"),
    "recipe.yaml": (b"models: {a: {file: a}}\nsteps:\n  - {name: T}\n", "already a recipe of blockfit"),
    "study.yaml": (b"recipe: recipe.yaml\nstages:\n  - {}\n", "a study of blockfit"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(tmp_path, name):
    """A file without a recipe is refused with its kind, not as a bad formula."""
    content, kind = KINDS[name]
    (tmp_path / name).write_bytes(content)

    assert f"is {kind}" in refused(tmp_path / name)


def test_checkpoints_under_other_names(tmp_path):
    """A checkpoint without the right extension is refused with the extension that it needs."""
    save_file(TENSOR, tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "old", "w") as archive:
        archive.writestr("archive/data.pkl", b"")

    assert "is a safetensors file; its name must end in .safetensors" in refused(tmp_path / "model")
    assert "is a zip archive (perhaps a checkpoint" in refused(tmp_path / "old")
    assert "is a folder (holds no checkpoint)" in refused(tmp_path)


@pytest.mark.parametrize("name", ["bzhMix", "Rar!", "GIF8", "BMmix", "<b>MZ</b>"])
def test_texts_that_begin_like_other_files(tmp_path, name):
    """A text that begins like an archive or an image is still read as a text."""
    (tmp_path / "t.txt").write_text(f"{name} recipe\nA x 0.75 + B x 0.25 = MIX\n", encoding="utf-8")

    expected = weight_sum(alone("A"), alone("B"), everywhere(0.25))
    assert_coefficients(block_coefficients(import_text(tmp_path / "t.txt").recipe), expected)


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        (["lora_unet_mid_block.lora_up.weight", "lora_unet_mid_block.lora_down.weight"], "a LoRA in kohya's names"),
        (["lora_te_text_model.hada_w1_a"], "a LoHa"),
        (["encoder.down.0.block.0.norm1.weight", "decoder.conv_in.weight"], "a Stable Diffusion VAE alone"),
        (["first_stage_model.decoder.conv_in.weight"], "a VAE alone"),
        (["emb_params"], "a textual-inversion embedding"),
        (["control_model.input_hint_block.0.weight"], "a ControlNet"),
    ],
)
def test_kinds_of_tensors(tmp_path, tensors, kind):
    """Files of tensors that are no checkpoints are refused with their kind."""
    save_file({name: torch.ones(2, 4) for name in tensors}, tmp_path / "file.safetensors")

    line = refused(tmp_path / "file.safetensors")
    assert f"is {kind}" in line
    assert line.endswith("; it holds no recipe")


def test_checkpoint_without_a_recipe(tmp_path):
    """A checkpoint without a recipe is refused with the metadata that it has."""
    save_file(TENSOR, tmp_path / "plain.safetensors", metadata={"format": "pt"})

    assert "no recipe in its metadata (sd_merge_recipe); it has 'format'" in refused(tmp_path / "plain.safetensors")


MECHA = """version 0.1.0
model "A.safetensors" model_config="sd1-ldm" merge_space="weight"
model "B.safetensors" model_config="sd1-ldm" merge_space="weight"
dict BLOCKS
literal &2 model_config="sd1-supermerger_blocks" merge_space="param"
merge "convert_sd1_blocks_to_ldm" &3
merge "weighted_sum" &0 &1 &4
""".replace("BLOCKS", " ".join(f"{block}={number}" for block, number in zip(BLOCKS, RISING, strict=True)))
COMFY = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "A.safetensors"}},
    "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "B.safetensors"}},
    "3": {"class_type": "ModelMergeSimple", "inputs": {"model1": ["1", 0], "model2": ["2", 0], "ratio": 0.75}},
    "4": {"class_type": "CLIPMergeSimple", "inputs": {"clip1": ["1", 1], "clip2": ["2", 1], "ratio": 0.75}},
    "5": {
        "class_type": "CheckpointSave",
        "inputs": {"model": ["3", 0], "clip": ["4", 0], "vae": ["1", 2], "filename_prefix": "MIX"},
    },
}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({key: json.dumps(value) for key, value in MERGED.items()}, EXPECTED),
        ({"mecha_recipe": MECHA}, EXPECTED),
        ({"prompt": json.dumps(COMFY)}, weight_sum(alone("A"), alone("B"), everywhere(0.25))),
    ],
)
def test_metadata_of_merged_files(tmp_path, metadata, expected):
    """The metadata of files merged by WebUIs, sd-mecha and ComfyUI is read as a recipe."""
    save_file(TENSOR, tmp_path / "merged.safetensors", metadata=metadata)

    assert_coefficients(block_coefficients(import_merged(tmp_path / "merged.safetensors").recipe), expected)


@pytest.mark.parametrize("name", ["m.mecha", "m.json", "m.yml"])
def test_options_that_only_texts_take(tmp_path, name):
    """A mapping for a file that contains its own is refused, not ignored."""
    texts = {"m.mecha": MECHA, "m.json": json.dumps(COMFY), "m.yml": "merge_method: linear\nmodels: []\n"}
    (tmp_path / name).write_text(texts[name], encoding="utf-8")

    with pytest.raises(RecipeError, match="mapping: received mecha; the file contains its own"):
        import_text(tmp_path / name, mapping="mecha")


def test_files_that_end_early(tmp_path):
    """Files of a few bytes, or none, are refused with a RecipeError, never with an error of Python."""
    for number, content in enumerate((b"", b"\x00", b"{", b"[", b'"', struct.pack("<Q", 5) + b"{", b"version 0.1.0")):
        path = tmp_path / f"file{number}"
        path.write_bytes(content)
        with pytest.raises(RecipeError):
            import_text(path)


# --- Any content -----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["&0", "&1", "&4", "&99", "null", "nan", "1e999", "-1", '"x"', '"weighted_sum"', '"subtract"', "alpha=&4", "BASE=2",
     '"sd1-ldm"', 'model_config="x"', "merge", "dict", "literal", "model", "#", '"', "IN00=nan", '"fallback"', "\\"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(line=st.integers(0, 6), words=st.lists(WORDS | st.text(max_size=6), max_size=6), data=st.data())
def test_any_mecha_text(line, words, data):
    """Any sd-mecha text gives a recipe or a RecipeError."""
    lines = MECHA.split("\n")
    kept = lines[line].split(" ")[: data.draw(st.integers(0, 4))]
    lines[line] = " ".join([*kept, *words])
    try:
        read_mecha("\n".join(lines), "x")
    except RecipeError:
        return


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
    | st.sampled_from([["1", 0], ["2", 0], ["3", 0], ["3", 5], ["x", 0], [1, 0], "A.safetensors"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["class_type", "inputs", "type", "nodes", "id", "value", "filter"]), inner),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from(
    ["model1", "model2", "ratio", "clip1", "clip2", "clip", "model", "vae", "ckpt_name", "multiplier"]
)
CLASSES = st.sampled_from(
    ["CheckpointLoaderSimple", "ModelMergeSimple", "ModelMergeBlocks", "ModelMergeSD1", "ModelMergeAdd",
     "ModelMergeSubtract", "CLIPMergeSimple", "CLIPMergeAdd", "CheckpointSave", "Reroute", "KSampler"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    nodes=st.dictionaries(
        st.sampled_from("12345"),
        st.fixed_dictionaries({"class_type": CLASSES, "inputs": st.dictionaries(KEYS, VALUES, max_size=4) | VALUES}),
    )
)
def test_any_workflow(nodes):
    """Any workflow of the API gives a recipe or a RecipeError."""
    data = {**COMFY, **nodes}
    assert is_workflow(data)
    try:
        read_workflow(data, "x")
    except RecipeError:
        return


BROWSER_NODES = [
    {"id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["A.safetensors"], "inputs": [], "mode": 0},
    {"id": 2, "type": "CheckpointLoaderSimple", "widgets_values": ["B.safetensors"], "inputs": [], "mode": 0},
    {
        "id": 3,
        "type": "ModelMergeSimple",
        "widgets_values": [0.75],
        "inputs": [{"name": "model1", "link": 1}, {"name": "model2", "link": 2}],
        "mode": 0,
    },
]
BROWSER_LINKS = [[1, 1, 0, 3, 0, "MODEL"], [2, 2, 0, 3, 1, "MODEL"]]


@settings(max_examples=150, deadline=None)
@given(
    position=st.integers(0, 2),
    field=st.sampled_from(["id", "type", "widgets_values", "inputs", "mode", "title"]),
    value=VALUES,
    more=st.lists(VALUES, max_size=1),
    links=st.lists(VALUES | st.lists(VALUES, min_size=5, max_size=5), max_size=2),
)
def test_any_workflow_from_the_browser(position, field, value, more, links):
    """Any workflow of the browser gives a recipe or a RecipeError."""
    nodes = [*BROWSER_NODES, *more]
    nodes[position] = {**nodes[position], field: value}
    try:
        read_workflow({"nodes": nodes, "links": [*BROWSER_LINKS, *links]}, "x")
    except RecipeError:
        return


def test_anchor_used_twice(recwarn):
    """If mergekit's YAML has the same anchor twice, the later one counts, without a warning of the YAML library."""
    models = (
        "- {model: a.safetensors, parameters: {weight: &w 1.0}}\n- {model: b.safetensors, parameters: {weight: &w 3.0}}"
    )

    recipe, _ = read_mergekit(f"merge_method: linear\nmodels:\n{models}", "x")

    assert_coefficients(block_coefficients(recipe), weight_sum(alone("a"), alone("b"), everywhere(0.75)))
    assert not recwarn.list


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(["merge_method", "models", "parameters", "base_model", "slices", "dtype"]),
    value=VALUES,
    weight=VALUES,
)
def test_any_configuration_of_mergekit(field, value, weight):
    """Any configuration of mergekit gives a recipe or a RecipeError."""
    models = [{"model": f"{name}.safetensors", "parameters": {"weight": weight}} for name in "AB"]
    data = {"merge_method": "linear", "models": models, "base_model": "A.safetensors", field: value}
    text = "\n".join(f"{key}: {json.dumps(entry)}" for key, entry in data.items())
    try:
        read_mergekit(text, "x")
    except RecipeError:
        return
