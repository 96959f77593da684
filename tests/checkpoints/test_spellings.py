"""One tensor under several names and shapes, as tools of several years wrote Stable Diffusion 1.x."""

import pytest
import torch

from optimizer.checkpoints import open_checkpoint
from optimizer.errors import CheckpointError
from optimizer.families import load_layout
from optimizer.library import fingerprint, inspect_checkpoint

LAYOUT = load_layout("sd1")
TEXT = "cond_stage_model.transformer.text_model."
ATTENTION = "first_stage_model.{}.mid.attn_1."
# Converters' names for LDM's names, by the diffusers that they knew and the one that was installed.
NEW = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "norm"}
OLD = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}


def attention(width=8, seed=0):
    """Return the attention of a VAE in LDM's names and shapes: convolutions of one pixel, and a norm."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for half in ("encoder", "decoder"):
        for name in NEW:
            shape = (width,) if name == "norm" else (width, width, 1, 1)
            found[f"{ATTENTION.format(half)}{name}.weight"] = torch.randn(shape, generator=random)
            found[f"{ATTENTION.format(half)}{name}.bias"] = torch.randn(width, generator=random)
    return found


def respelled(tensors, names, *, matrices=True):
    """Return the same attention under other names, with convolutions as matrices [out, in]."""
    found = {}
    for name, tensor in tensors.items():
        start, _, rest = name.partition("attn_1.")
        key, end = rest.rsplit(".", 1)
        found[f"{start}attn_1.{names[key]}.{end}"] = tensor[..., 0, 0] if matrices and tensor.dim() == 4 else tensor
    return found


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("names", [NEW, OLD, dict(zip(NEW, NEW, strict=True))], ids=["new", "old", "matrices alone"])
@pytest.mark.parametrize("matrices", [True, False])
def test_spellings_of_a_vaes_attention_are_equal(tmp_path, write_sd1, suffix, names, matrices):
    """A VAE's attention under diffusers' names, or as matrices, reads as the same checkpoint, to the bit."""
    tensors = attention()
    write_sd1(tmp_path / f"ldm{suffix}", overrides=tensors)
    write_sd1(tmp_path / f"other{suffix}", overrides=respelled(tensors, names, matrices=matrices))

    with open_checkpoint(tmp_path / f"ldm{suffix}") as ldm, open_checkpoint(tmp_path / f"other{suffix}") as respelt:
        assert set(ldm.tensors) == set(respelt.tensors)
        assert fingerprint(ldm) == fingerprint(respelt)
        for name, tensor in tensors.items():
            assert (respelt.tensors[name].shape, respelt.tensor(name).shape) == (tuple(tensor.shape), tensor.shape)
            assert torch.equal(respelt.tensor(name), tensor)
            assert LAYOUT.merges(name)


@pytest.mark.parametrize("block", ["input_blocks.1.1", "middle_block.1", "output_blocks.11.1"])
def test_projections_are_read_as_convolutions(tmp_path, write_sd1, block):
    """Projections around the UNet's attention, stored as matrices, read as convolutions of one pixel."""
    name, unrelated = (f"model.diffusion_model.{block}.{which}.weight" for which in ("proj_in", "proj_off"))
    write_sd1(tmp_path / "a.safetensors", overrides={name: torch.ones(8, 6), unrelated: torch.ones(8, 6)})

    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.tensor(name).shape == (8, 6, 1, 1)
        assert checkpoint.tensor(unrelated).shape == (8, 6)


def test_the_ldm_spelling_counts(tmp_path, write_sd1):
    """Of both spellings in one file, as mergers leave it, LDM's is read; an inspection reports the other."""
    tensors = attention()
    second = {name: one for name, one in respelled(attention(seed=1), NEW).items() if name not in tensors}
    write_sd1(tmp_path / "a.ckpt", overrides={**second, **tensors})
    write_sd1(tmp_path / "b.ckpt", overrides={**tensors, **second})

    for file in ("a.ckpt", "b.ckpt"):
        with open_checkpoint(tmp_path / file) as checkpoint:
            assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
            assert set(checkpoint.passed_over) == set(second)
    unusual = inspect_checkpoint(tmp_path / "a.ckpt").unusual
    assert f"{next(iter(second))!r} and 15 more: stored again under other names, with other values; not read" in unusual


def test_equal_spellings_are_one_tensor(tmp_path, write_sd1):
    """Both spellings with the same values are one tensor, and none is passed over."""
    tensors = attention()
    write_sd1(tmp_path / "a.ckpt", overrides={**tensors, **respelled(tensors, NEW)})

    with open_checkpoint(tmp_path / "a.ckpt") as checkpoint:
        assert checkpoint.passed_over == ()
        assert len([name for name in checkpoint.tensors if "attn_1" in name]) == len(tensors)


def test_two_foreign_spellings_are_refused(tmp_path, write_sd1):
    """Two spellings with different values, neither of them LDM's, are refused: the right one is unknown."""
    tensors = attention()
    write_sd1(tmp_path / "a.ckpt", overrides={**respelled(tensors, NEW), **respelled(attention(seed=1), OLD)})

    with pytest.raises(CheckpointError, match=r"two spellings of one tensor, but their values differ"):
        open_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "start", ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer.text_model.",
              "conditioner.embedders.0.transformer."]
)  # fmt: skip
def test_text_encoders_have_canonical_names(tmp_path, write_sd1, start):
    """A text encoder under the names of old or new transformers, or of sgm, reads under the canonical names."""
    write_sd1(tmp_path / "ldm.safetensors")
    write_sd1(tmp_path / "other.safetensors", rename={TEXT: start})

    with (
        open_checkpoint(tmp_path / "ldm.safetensors") as ldm,
        open_checkpoint(tmp_path / "other.safetensors") as new,
    ):
        assert new.layout == LAYOUT
        assert set(ldm.tensors) == set(new.tensors)
        assert fingerprint(ldm) == fingerprint(new)


@pytest.mark.parametrize("start", ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer."])
def test_the_text_projection_is_part_of_the_encoder(tmp_path, write_sd1, start):
    """`text_projection` lies beside `text_model`, as in transformers, and merges with the text encoder."""
    name = "cond_stage_model.transformer.text_projection.weight"
    write_sd1(tmp_path / "a.safetensors", overrides={f"{start}text_projection.weight": torch.ones(8, 8)})

    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert name in checkpoint.tensors
    assert LAYOUT.part_of(name) == "text encoder"
    assert LAYOUT.merges(name)


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.transformer.vision_model.encoder.layers.0.mlp.fc1.weight",
        "cond_stage_model.transformer.logit_scale",
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "first_stage_model.loss.discriminator.main.0.weight",
        "first_stage_model.encoder.down_blocks.0.resnets.0.conv1.weight",
        "model.diffusion_model.input_blocks.12.0.weight",
        "control_model.input_blocks.0.0.weight",
        "lora_unet_x.lora_up.weight",
        "filler.weight",
    ],
)
def test_foreign_tensor_is_reported(tmp_path, write_sd1, name):
    """A tensor that is not part of Stable Diffusion 1.x keeps its name, merges with nothing, and is reported."""
    write_sd1(tmp_path / "a.safetensors", overrides={name: torch.ones(2)})

    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert name in checkpoint.tensors
    assert not LAYOUT.merges(name)
    assert inspect_checkpoint(tmp_path / "a.safetensors").unusual == (f"{name!r}: no part of Stable Diffusion 1.x",)


@pytest.mark.parametrize(
    "name", ["betas", "lvlb_weights", "cond_stage_model.logit_scale", "cond_stage_model.text_projection"]
)
def test_usual_leftovers_are_not_reported(tmp_path, write_sd1, name):
    """The noise schedule, and leftovers of ComfyUI's text encoder, merge with nothing and are not reported."""
    assert LAYOUT.expects(name)
    assert not LAYOUT.merges(name)


def test_sgm_of_other_families_is_recognised():
    """The conditioner of sgm is Stable Diffusion 2's or SDXL's if it has OpenCLIP or a second encoder."""
    names = {*LAYOUT.requires, "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"}

    assert LAYOUT.missing({LAYOUT.canonical(name) for name in names}) is None
    for other in ("conditioner.embedders.0.model.ln_final.weight", "conditioner.embedders.1.model.ln_final.weight"):
        assert LAYOUT.missing({*names, other}) is not None
