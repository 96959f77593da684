"""The inspection of a checkpoint."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from optimizer.errors import CheckpointError
from optimizer.families import layout_names, load_layout
from optimizer.library import HashCache, inspect_checkpoint, sha256

TEXT = "cond_stage_model.transformer.text_model."
IDS = TEXT + "embeddings.position_ids"
RIGHT = "they should be int64 0..76; a merge writes the correct values"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def unusual(tmp_path, write_sd1, **options):
    """Return the oddities of the checkpoint that `options` describe."""
    write_sd1(tmp_path / "a.safetensors", **options)
    return list(inspect_checkpoint(tmp_path / "a.safetensors").unusual)


def test_an_ordinary_checkpoint_has_no_oddities(tmp_path, write_sd1):
    """A plain checkpoint has no oddities; its numbers are those of its tensors and its file."""
    path = tmp_path / "a.safetensors"
    tensors = write_sd1(
        path, dtype=torch.float16, metadata={"recipe": '{"a": [1]}', "hash": "12e4", "bad": '{"a": NaN}'}
    )

    found = inspect_checkpoint(path)

    assert found.unusual == ()
    assert (str(path), path.stat().st_size, "safetensors", "sd1") == (
        found.file,
        found.size,
        found.format,
        found.layout,
    )
    assert {"float16": len(tensors) - 1, "int64": 1} == found.dtypes
    assert len(tensors) == found.tensors
    assert sum(tensor.numel() for tensor in tensors.values()) == found.parameters
    assert hashlib.sha256(path.read_bytes()).hexdigest() == found.sha256
    assert found.sha256[:10] == found.short_hash
    assert found.metadata == {"recipe": {"a": [1]}, "hash": "12e4", "bad": '{"a": NaN}'}


def test_blocks_are_listed_in_order(tmp_path, write_sd1):
    """Blocks are listed in layout order with the tensors that merge, without EMA copies and position_ids."""
    write_sd1(tmp_path / "a.ckpt", ema=True, width=8)

    blocks = inspect_checkpoint(tmp_path / "a.ckpt").blocks

    assert list(blocks)[:3] == ["BASE", "IN00", "IN01"]
    assert list(blocks)[13:15] == ["M00", "OUT00"]
    assert blocks["IN00"] == {"tensors": 4, "parameters": 8 * 4 * 9 + 8 + 64 + 8}  # the convolution and time_embed
    assert blocks["IN10"] == {"tensors": 2, "parameters": 16}
    assert blocks["M00"] == {"tensors": 6, "parameters": 16 + 4 * 64}
    text = 64 * 8 + 77 * 8 + 2 * (4 * 72 + 2 * 8 * 32 + 32 + 8 + 32) + 16
    assert {"tensors": 2 + 2 * 16 + 2 + 4, "parameters": text + 8 * 27 + 8 + 3 * 72 + 3} == blocks["BASE"]


def test_the_json_survives_a_round(tmp_path, write_sd1):
    """The dictionary survives a round through JSON."""
    write_sd1(tmp_path / "a.safetensors", vae=False)
    found = inspect_checkpoint(tmp_path / "a.safetensors").as_dict()

    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["unusual"] == ["no VAE: a merge takes it from another input"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vae": False}, "no VAE: a merge takes it from another input"),
        ({"text_encoder": False}, "no text encoder: a merge takes it from another input"),
        (
            {"overrides": {FIRST: torch.ones(8, 9, 3, 3)}},
            "9 input channels: an inpainting model, of which the first 4 channels merge",
        ),
        (
            {"overrides": {"model.diffusion_model.out.0.bias": torch.tensor([1.0, float("nan")])}},
            "NaN or infinite values in 'model.diffusion_model.out.0.bias': the model is damaged",
        ),
        (
            {"overrides": {"model.diffusion_model.out.0.weight": torch.zeros(8)}},
            "nothing but zeros in 'model.diffusion_model.out.0.weight'",
        ),
        (
            {"overrides": {"model.diffusion_model.out.0.step": torch.ones(8, dtype=torch.int32)}},
            "'model.diffusion_model.out.0.step': not floating-point; copied, never merged",
        ),
        (
            {"overrides": {"model.diffusion_model.input_blocks.12.0.weight": torch.ones(1), "lora.a": torch.ones(1)}},
            "'lora.a' and 1 more: no part of Stable Diffusion 1.x",
        ),
        (
            {"overrides": {IDS: torch.arange(77).half().unsqueeze(0) * 0.5}},
            f"position_ids are 77 values of float16, 76 of them wrong: {RIGHT}",
        ),
        (
            {"overrides": {IDS: torch.arange(77).float().unsqueeze(0)}},
            f"position_ids are 77 values of float32, 0 of them wrong: {RIGHT}",
        ),
        (
            {"overrides": {"model.diffusion_model.out.0.weight": torch.ones(8).to(torch.float8_e4m3fn)}},
            "1 tensors in float8_e4m3fn: too coarse to merge or to compare well",
        ),
    ],
)
def test_each_oddity_has_a_sentence(tmp_path, write_sd1, options, sentence):
    """Each oddity gives one sentence, and no other."""
    assert [sentence] == unusual(tmp_path, write_sd1, **options)


def test_an_ema_copy_is_counted(tmp_path, write_sd1, sd1_tensors):
    """An EMA copy is counted; its integer counter is no oddity."""
    copies = sum(name.startswith("model_ema.") for name in sd1_tensors(ema=True))

    assert [f"an EMA copy of {copies} tensors: merges leave it out"] == unusual(tmp_path, write_sd1, ema=True)


def test_old_spellings_are_reported(tmp_path, write_sd1, sd1_tensors):
    """Names in an old spelling are reported with an example."""
    count = sum(name.startswith(TEXT) for name in sd1_tensors())

    (sentence,) = unusual(tmp_path, write_sd1, rename={TEXT: "cond_stage_model.transformer."})

    assert sentence.startswith(f"{count} tensors under other names, such as 'cond_stage_model.transformer.")


def test_another_noise_schedule_is_reported(tmp_path, write_sd1):
    """LDM's noise schedule is no oddity, in half precision neither; another one is reported."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    usual = {"betas": betas.half(), "alphas_cumprod": (1 - betas).cumprod(0).bfloat16(), "logvar": torch.zeros(1000)}
    assert unusual(tmp_path, write_sd1, overrides=usual) == []

    assert unusual(tmp_path, write_sd1, overrides={"betas": torch.full((1000,), 0.5)}) == [
        "a noise schedule other than that of Stable Diffusion 1.x: alphas_cumprod ends at 9.333e-302"
    ]


def test_an_unknown_layout_is_described_by_its_names(tmp_path):
    """A file of another kind is described by its names, without blocks."""
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, tmp_path / "a.safetensors")

    found = inspect_checkpoint(tmp_path / "a.safetensors")

    assert (found.layout, found.blocks, found.kind.name) == (None, {}, "embedding")
    (sentence,) = found.unusual
    every = " or ".join(f"{load_layout(name).title} (layout {name})" for name in layout_names())
    assert sentence == (
        f"no known layout: must be a checkpoint of {every}; it is loaded beside a checkpoint and is no part of it"
    )


def test_a_quick_inspection_reads_no_values(tmp_path, write_sd1):
    """Without a full read, values are not checked, and only a cached hash is given."""
    path, cache = tmp_path / "a.safetensors", HashCache(tmp_path / "hashes.json")
    write_sd1(path, overrides={FIRST: torch.zeros(8, 4, 3, 3)})

    before = inspect_checkpoint(path, cache=cache, full=False)
    value = sha256(path, cache)
    after = inspect_checkpoint(path, cache=cache, full=False)

    assert (before.unusual, before.sha256, before.short_hash) == ((), None, None)
    assert value == after.sha256


def test_an_unusable_file_is_refused(tmp_path):
    """A file that is no checkpoint raises the error of opening it."""
    (tmp_path / "a.ckpt").write_bytes(b"<html>")

    with pytest.raises(CheckpointError, match="web page"):
        inspect_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_named(tmp_path, dtype, value):
    """Tensors with a NaN or an infinity are named in every dtype; integers and empty tensors are fine."""
    tensors = {
        "a": torch.ones(3).to(dtype),
        "b": torch.empty(0).to(dtype),
        "c": torch.arange(3),
        "d": torch.tensor([1.0, float(value)]).to(dtype),
    }
    save_file(tensors, tmp_path / "a.safetensors")

    found = inspect_checkpoint(tmp_path / "a.safetensors").unusual

    assert [line for line in found if "NaN" in line] == ["NaN or infinite values in 'd': the model is damaged"]
