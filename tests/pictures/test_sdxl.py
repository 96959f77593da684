"""Pictures of a tiny SDXL model are those of the diffusers pipeline that it was written from."""

import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimizer.errors import CheckpointError
from optimizer.families import Pipeline, load_layout, load_tokenizer, pipeline_folder
from optimizer.pictures import draw, open_pipeline, preview
from optimizer.pictures.opening import _padded_by_zero, open_scheduler

PROMPTS, SEEDS, STEPS, GUIDANCE = ("a digit three", "eight"), (1, 2), 3, 4.0
# Sizes of the tiny model. The widths of text and conditioning are SDXL's, by which its checkpoints are recognised.
SIZES: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [4, 8, 8], "attention_head_dim": [1, 2, 2], "norm_num_groups": 4, "sample_size": 8},
    "vae": {
        "block_out_channels": [4, 4], "down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1,
        "norm_num_groups": 2, "sample_size": 16, "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "text_encoder": {"intermediate_size": 24, "num_hidden_layers": 3, "vocab_size": 36, "max_position_embeddings": 16},
    "text_encoder_2": {
        "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 36, "max_position_embeddings": 16,
    },
}  # fmt: skip
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
IN_RESNETS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
AROUND_UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
IN_OPENCLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj", "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip


def unet_name(name: str) -> str:
    """Return the name in sgm of a tensor of diffusers' UNet with SDXL's three levels of two layers."""
    module, kind = name.rsplit(".", 1)
    if module in AROUND_UNET:
        return f"{AROUND_UNET[module]}.{kind}"
    for ours, theirs in IN_RESNETS.items():
        module = re.sub(rf"(resnets\.\d)\.{ours}$", rf"\1.{theirs}", module)
    module = re.sub(r"^mid_block\.resnets\.0", "middle_block.0", module)
    module = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", module)
    module = re.sub(r"^mid_block\.resnets\.1", "middle_block.2", module)
    for part, inner in (("resnets", 0), ("attentions", 1)):
        for level in range(3):
            for layer in range(3):
                down, up = f"down_blocks.{level}.{part}.{layer}.", f"up_blocks.{level}.{part}.{layer}."
                module = module.replace(down, f"input_blocks.{3 * level + layer + 1}.{inner}.")
                module = module.replace(up, f"output_blocks.{3 * level + layer}.{inner}.")
    for level in range(2):
        module = module.replace(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{3 * level + 3}.0.op")
        module = module.replace(f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{3 * level + 2}.2.conv")
    return f"{module}.{kind}"


def vae_name(name: str) -> str:
    """Return the name in LDM of a tensor of diffusers' VAE with two levels."""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda found: f"up.{1 - int(found[1])}.block.", name)
    name = name.replace("down_blocks.0.downsamplers.0", "down.0.downsample")
    name = name.replace("up_blocks.0.upsamplers.0", "up.1.upsample")
    name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("group_norm", "norm").replace("conv_norm_out", "norm_out").replace("to_out.0", "proj_out")
    return re.sub(r"to_([qkv])\.", r"\1.", name)


def openclip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a CLIPTextModelWithProjection's tensors under OpenCLIP's names."""
    found = {"logit_scale": torch.tensor(4.6), "text_projection": state["text_projection.weight"].T}
    for name, tensor in state.items():
        renamed = name.removeprefix("text_model.").replace("encoder.layers", "transformer.resblocks")
        for ours, theirs in IN_OPENCLIP.items():
            renamed = renamed.replace(ours, theirs)
        if ".self_attn.q_proj." in renamed:
            projections = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[renamed.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(projections)
        elif ".self_attn." not in renamed and "text_projection" not in renamed:
            found[renamed] = tensor
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder of a tiny configuration, the diffusers pipeline of it, and its tensors as a checkpoint has them."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny-sdxl"
    shutil.copytree(pipeline_folder("sdxl"), folder)
    shutil.copytree(pipeline_folder("digits") / "tokenizer", folder / "tokenizer")
    for part, sizes in SIZES.items():
        path = folder / part / "config.json"
        ends = ENDS if part.startswith("text") else {}
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | sizes | ends), encoding="utf-8")
    with warnings.catch_warnings(action="ignore"):
        from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        torch.manual_seed(3)
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(folder), subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(str(folder), subfolder="vae"))
        first = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
        second = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2"))
        second_tokenizer = load_tokenizer(folder)
        second_tokenizer.pad_token = second_tokenizer.convert_ids_to_tokens(0)
        for module in (first, second):
            for name, parameter in module.named_parameters():
                if "norm" not in name:  # so large that words matter
                    torch.nn.init.normal_(parameter, std=0.1)
        pipeline = StableDiffusionXLPipeline(
            vae.eval(), first.eval(), second.eval(), load_tokenizer(folder), second_tokenizer, unet.eval(),
            open_scheduler(folder), add_watermarker=False,
        )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    within = getattr(first, "text_model", first).state_dict()
    tensors = {
        **{f"model.diffusion_model.{unet_name(name)}": tensor for name, tensor in unet.state_dict().items()},
        **{f"first_stage_model.{vae_name(name)}": tensor for name, tensor in vae.state_dict().items()},
        **{f"conditioner.embedders.0.transformer.text_model.{name}": tensor for name, tensor in within.items()},
        **{f"conditioner.embedders.1.model.{name}": tensor for name, tensor in openclip(second.state_dict()).items()},
    }
    for name in [name for name in tensors if ".mid.attn_1." in name and tensors[name].ndim == 2]:
        tensors[name] = tensors[name][:, :, None, None]
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    return SimpleNamespace(folder=folder, pipeline=pipeline, tensors=tensors)


@pytest.fixture
def checkpoint(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint, for which SDXL's layout has the tiny configuration and its tokenizer."""
    pipelines = load_layout("sdxl").readable_encoder.pipelines
    monkeypatch.setitem(pipelines, 36, Pipeline(name="tiny-sdxl", guidance=GUIDANCE))
    monkeypatch.setattr("optimizer.checkpoints.configuration.pipeline_folder", lambda name: tiny.folder)
    path = tmp_path / "checkpoint.safetensors"
    save_file(tiny.tensors, path)
    return path


def by_diffusers(pipeline: Any) -> list[torch.Tensor]:
    """Return the final latents of a pipeline, one picture at a time."""
    return [
        pipeline(
            prompt, negative_prompt="", num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent",
            latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)),
        ).images[0]
        for prompt in PROMPTS
        for seed in SEEDS
    ]  # fmt: skip


def drawn(checkpoint: Path) -> list[torch.Tensor]:
    """Return the final latents that blockfit draws with a checkpoint, one picture at a time.

    So tiny a UNet with random weights amplifies the rounding of a batch.
    """
    pipeline = open_pipeline(checkpoint)
    return [
        draw(pipeline, prompts=[prompt], seeds=[seed], steps=STEPS, guidance=GUIDANCE)[0].latents
        for prompt in PROMPTS
        for seed in SEEDS
    ]


def test_pictures_are_those_of_diffusers(tiny: SimpleNamespace, checkpoint: Path) -> None:
    """A checkpoint in sgm's names draws what the pipeline with the same weights draws; prompts matter."""
    found, expected = drawn(checkpoint), by_diffusers(tiny.pipeline)

    for latents, other in zip(found, expected, strict=True):
        torch.testing.assert_close(latents, other, atol=1e-4, rtol=0)
    assert float((found[0] - found[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("markers", [("v_pred",), ("v_pred", "ztsnr")])
def test_velocity_models_draw_as_such(tiny: SimpleNamespace, checkpoint: Path, markers: tuple[str, ...]) -> None:
    """A checkpoint that states that it predicts velocity is sampled so, and from pure noise if it states that."""
    from diffusers import DDIMScheduler

    save_file(tiny.tensors | {name: torch.empty(0) for name in markers}, checkpoint)
    from_noise = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in markers else {}
    pipeline, before = tiny.pipeline, tiny.pipeline.scheduler
    pipeline.scheduler = DDIMScheduler.from_config(before.config, prediction_type="v_prediction", **from_noise)
    expected = by_diffusers(pipeline)
    pipeline.scheduler = before

    found = drawn(checkpoint)

    for latents, other in zip(found, expected, strict=True):
        torch.testing.assert_close(latents, other, atol=1e-4, rtol=0)
    assert float((found[0] - by_diffusers(pipeline)[0]).abs().max()) > 1e-2


def test_the_second_tokenizer_pads_as_openclip() -> None:
    """The CLIP-G's prompts are padded with token 0, "!" in CLIP's vocabulary, and the CLIP-L's with the end."""
    first = load_tokenizer(pipeline_folder("sdxl"))
    second = _padded_by_zero(first)

    padded = [each("a cat", padding="max_length", max_length=6)["input_ids"] for each in (first, second)]

    assert padded == [[49406, 320, 2368, 49407, 49407, 49407], [49406, 320, 2368, 49407, 0, 0]]


def test_edm_models_are_refused(tiny: SimpleNamespace, checkpoint: Path) -> None:
    """A model that is sampled as an EDM is refused in one line, with the marker."""
    save_file(tiny.tensors | {"edm_vpred.sigma_max": torch.tensor(120.0)}, checkpoint)

    with pytest.raises(CheckpointError, match=r"^[^\n]*edm_vpred\.sigma_max 120\); blockfit draws no pictures[^\n]*$"):
        open_pipeline(checkpoint)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("conditioner.embedders.1.", "has no text encoder CLIP-G .conditioner.embedders.1.model..."),
        ("conditioner.embedders.0.", "has no text encoder CLIP-L "),
        ("conditioner.embedders.1.model.text_projection", "has 28 conditioner.embedders.1.model.* tensors, but the "),
        ("conditioner.embedders.1.model.ln_final.bias", "has 28 conditioner.embedders.1.model.* tensors, but the "),
    ],
)
def test_incomplete_encoders_are_refused(tiny: SimpleNamespace, checkpoint: Path, lacking: str, message: str) -> None:
    """A checkpoint that lacks an encoder, or a tensor of one, is refused in one line."""
    save_file({name: value for name, value in tiny.tensors.items() if not name.startswith(lacking)}, checkpoint)

    with pytest.raises(CheckpointError, match=message.replace("*", r"\*")):
        open_pipeline(checkpoint)


def test_a_sheet_compares_checkpoints(tiny: SimpleNamespace, checkpoint: Path, tmp_path: Path) -> None:
    """`preview` draws target and candidate; a candidate without encoders takes those of another file."""
    bare = tmp_path / "bare.safetensors"
    save_file({name: value for name, value in tiny.tensors.items() if not name.startswith("conditioner.")}, bare)

    found = preview(
        checkpoint, [bare], tmp_path / "sheet.png", prompts=PROMPTS, seeds=SEEDS, steps=STEPS, encoder_from=checkpoint
    )

    (candidate,) = found.others
    assert (found.pipeline, found.guidance, len(found.target.drawn)) == ("tiny-sdxl", GUIDANCE, 4)
    assert found.latent_distances(candidate) == (0.0,) * 4
    assert (tmp_path / "sheet.png").is_file()
