"""Metadata of a merged file: its fields, and those left out on request."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from optimizer.errors import CheckpointError
from optimizer.library import HashCache
from optimizer.merging import merge
from optimizer.recipes import load_recipe, read_recipe

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
RECIPE = """
name: my merge
mapping: mecha
models:
  one: {file: One.safetensors, license: LICENSE_ONE}
  two: {file: two.ckpt, license: LICENSE_TWO}
  three: {file: three.safetensors}
steps:
  - {name: T1, mode: weight_sum, a: one, b: two, alpha: {OUT06: 0.25, IN01: 0.1}}
  - {name: T2, mode: weight_sum, a: T1, b: three, alpha: 0.5}
"""
PARENT = {"type": "webui", "interp_method": "Weighted sum", "multiplier": 0.25}
GRANDPARENTS = {"ab" * 32: {"name": "old", "legacy_hash": "01234567", "sd_merge_recipe": None}}


@pytest.fixture
def folder(tmp_path, write_sd1):
    """Return a folder with three sources; the WebUI merged the first of them."""
    metadata = {"sd_merge_recipe": json.dumps(PARENT), "sd_merge_models": json.dumps(GRANDPARENTS)}
    big = {
        "model.diffusion_model.out.filler.weight": torch.arange(400_000.0) % 997
    }  # longer than 1 MiB, where old hashes begin
    write_sd1(tmp_path / "One.safetensors", seed=1, metadata=metadata, overrides=big)
    write_sd1(tmp_path / "two.ckpt", seed=2)
    write_sd1(tmp_path / "three.safetensors", seed=3)
    return tmp_path


def merged(folder, licenses=("MIT", "MIT"), **options):
    """Merge the recipe and return the metadata, read by the safetensors library."""
    text = RECIPE.replace("LICENSE_ONE", licenses[0]).replace("LICENSE_TWO", licenses[1])
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml")
    paths = {name: folder / model.file for name, model in recipe.models.items()}
    merge(recipe, paths, folder / "out.safetensors", **options)
    with safe_open(folder / "out.safetensors", "pt") as file:
        return file.metadata()


def sha(path):
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_recipe_reads_back_unchanged(folder):
    """The header contains the recipe with its mapping, which reads back unchanged, and the merged step."""
    noted = json.loads(merged(folder, step="T1")["sd_merge_recipe"])

    assert set(noted) == {"type", "output", "recipe"}
    assert (noted["type"], noted["output"], noted["recipe"]["mapping"]) == ("blockfit", "T1", "mecha")
    assert read_recipe(noted["recipe"], folder / "x.yaml") == load_recipe(folder / "recipe.yaml")


def test_each_source_is_listed_with_its_hashes(folder):
    """Each merged source is listed by its sha256 with old hash and recipe, followed by its parents."""
    models = json.loads(merged(folder, step="T1")["sd_merge_models"])

    one, two = folder / "One.safetensors", folder / "two.ckpt"
    old = {path: hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8] for path in (one, two)}
    assert models == {
        sha(one): {"name": "One.safetensors", "legacy_hash": old[one], "sd_merge_recipe": PARENT},
        sha(two): {"name": "two.ckpt", "legacy_hash": old[two], "sd_merge_recipe": None},
        **GRANDPARENTS,
    }
    assert list(models)[:2] == [sha(one), sha(two)]


def test_the_model_spec_is_filled_in(folder):
    """The known fields of the Stability model spec are filled in."""
    found = merged(folder, date="2026-11-23T01:02:03+00:00")

    assert {name: value for name, value in found.items() if name.startswith("modelspec.")} == {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": "512x512",
        "modelspec.title": "my merge",
        "modelspec.merged_from": "One, two, three",
        "modelspec.license": "differs between the merged models: one: MIT, two: MIT, three: unknown",
        "modelspec.date": "2026-11-23T01:02:03+00:00",
    }
    assert found["format"] == "pt"
    assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (("MIT", "MIT"), "MIT"),
        (("MIT", "CC0"), "differs between the merged models: one: MIT, two: CC0"),
        (("unknown", "MIT"), "differs between the merged models: one: unknown, two: MIT"),
        (("unknown", "unknown"), "unknown: the licences of the merged models are not stated"),
    ],
)
def test_the_shared_licence_is_stated(folder, licenses, expected):
    """The licence is the one that all merged sources share; otherwise each is listed."""
    assert merged(folder, licenses, step="T1")["modelspec.license"] == expected


def test_nine_channels_are_an_inpainting_model(folder, write_sd1):
    """A merge with nine input channels is an inpainting model."""
    write_sd1(folder / "One.safetensors", seed=1, overrides={FIRST: torch.ones(8, 9, 3, 3)})

    assert merged(folder)["modelspec.architecture"] == "stable-diffusion-v1-inpainting"


def test_recipe_can_be_left_out(folder):
    """Without the recipe, the header has only general fields, and no file is hashed."""
    calls = []

    hidden = merged(folder, embed_recipe=False, date="2026-11-23", progress=lambda *progress: calls.append(progress))

    assert hidden == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
    }
    assert {what for what, _, _ in calls} == {"merging out.safetensors"}


def test_hashes_are_cached(folder):
    """Hashes come from the cache; only missing ones are computed, with progress for each file."""
    cache, calls = HashCache(folder / "hashes.json"), []

    def hashed(what, done, total):
        if what.startswith("hashing"):
            calls.append((what, done, total))

    options = {"hashes": cache, "progress": hashed}

    first = merged(folder, **options)
    files = ["One.safetensors", "two.ckpt", "three.safetensors"]
    sizes = {name: (folder / name).stat().st_size for name in files}
    assert calls == [(f"hashing {name}", size, size) for name, size in sizes.items()]
    assert merged(folder, **options) == first
    assert len(calls) == 3


def test_missing_folder_is_found_before_hashing(folder):
    """A merge that cannot be written is refused before any file is hashed."""
    merged(folder)
    recipe, calls = load_recipe(folder / "recipe.yaml"), []
    paths = {name: folder / model.file for name, model in recipe.models.items()}

    with pytest.raises(CheckpointError, match="does not exist"):
        merge(recipe, paths, folder / "none" / "out.safetensors", progress=lambda *progress: calls.append(progress))

    assert calls == []


@pytest.mark.parametrize(
    "models", ["{", "[1]", '{"a": 3}', '{"a": NaN}', "[" * 9999, json.dumps({"a": {"name": "x" * (1 << 20)}})]
)
def test_broken_metadata_of_a_source_are_left_out(folder, write_sd1, models):
    """Broken or huge metadata of a source is left out."""
    write_sd1(folder / "One.safetensors", metadata={"sd_merge_models": models, "sd_merge_recipe": models})

    found = merged(folder)

    models = json.loads(found["sd_merge_models"])
    assert set(models) == {sha(folder / name) for name in ("One.safetensors", "two.ckpt", "three.safetensors")}
    assert len(found["sd_merge_models"]) < 1000
    assert models[sha(folder / "One.safetensors")]["sd_merge_recipe"] in (None, {"a": 3})


def test_the_same_file_has_one_entry(folder):
    """Two models with the same file have one entry."""
    (folder / "three.safetensors").write_bytes((folder / "One.safetensors").read_bytes())

    assert len(json.loads(merged(folder)["sd_merge_models"])) == 2 + len(GRANDPARENTS)
