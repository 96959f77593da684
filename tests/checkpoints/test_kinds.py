"""Files that users bring are named: each kind by the names and shapes of published files."""

import json
import re
import struct
from pathlib import Path

import pytest
import sd_mecha
import torch
from headers import write_header

from optimizer.checkpoints import open_checkpoint
from optimizer.checkpoints.kinds import kind_of
from optimizer.cli import main
from optimizer.errors import CheckpointError
from optimizer.families import layout_names, load_layout
from optimizer.library import inspect_checkpoint

UNET = "model.diffusion_model."
NEEDED = "must be a checkpoint of Stable Diffusion 1.x (layout sd1)"
SINGLE_FILE = "give the single file with all of the model, as WebUIs and ComfyUI load it"


def under(prefix: str, shapes: dict) -> dict:
    """Return the tensors with a prefix to their names."""
    return {prefix + name: shape for name, shape in shapes.items()}


def unet(context: int, channels: int = 4, width: int = 320) -> dict:
    """Return the identifying tensors of a four-level UNet of Stable Diffusion 1.x or 2.x, without prefix."""
    return {
        "input_blocks.0.0.weight": (width, channels, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (width, context),
        "input_blocks.11.0.in_layers.0.weight": (1280,),
        "middle_block.1.transformer_blocks.0.attn1.to_q.weight": (1280, 1280),
        "output_blocks.11.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
    }


def xl_unet(channels: int = 4, depths: tuple[int, int] = (2, 10), *, middle: bool = True) -> dict:
    """Return the identifying tensors of an SDXL UNet, or a smaller one, by the transformer blocks of two levels."""
    found = {
        "input_blocks.0.0.weight": (320, channels, 3, 3),
        "label_emb.0.0.weight": (1280, 2816),
        "output_blocks.0.1.transformer_blocks.0.attn1.to_q.weight": (1280, 1280),
    }
    for block, depth, size in (("4", depths[0], 640), ("7", depths[1], 1280)):
        for number in range(depth):
            found[f"input_blocks.{block}.1.transformer_blocks.{number}.attn2.to_k.weight"] = (size, 2048)
    if middle:
        found["middle_block.1.transformer_blocks.0.attn1.to_q.weight"] = (1280, 1280)
    return found


def diffusers_unet(context: int, channels: int = 4) -> dict:
    """Return the identifying tensors of a UNet of Stable Diffusion 1.x or 2.x in diffusers' names."""
    return {
        "conv_in.weight": (320, channels, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, context),
        "down_blocks.3.resnets.1.norm1.weight": (1280,),
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight": (1280, 1280),
        "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_q.weight": (320, 320),
    }


CLIP_L = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)}
OPEN_CLIP = {"cond_stage_model.model.ln_final.weight": (1024,)}
CLIP_G = {"conditioner.embedders.1.model.ln_final.weight": (1280,)}
VAE = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
SD1 = under(UNET, unet(768)) | CLIP_L | VAE
SD2 = under(UNET, unet(1024)) | OPEN_CLIP | VAE
SDXL = under(UNET, xl_unet()) | CLIP_G | VAE
REFINER = {
    "input_blocks.0.0.weight": (384, 4, 3, 3),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (768, 1280),
    "label_emb.0.0.weight": (1536, 2560),
    "output_blocks.0.0.in_layers.0.weight": (3072,),
}
FLUX = {
    "img_in.weight": (3072, 64),
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    "single_blocks.0.linear1.weight": (16, 16),
}
FLUX_DEV = FLUX | {"guidance_in.in_layer.weight": (3072, 256)}
FLUX_DIFFUSERS = {
    "x_embedder.weight": (3072, 64),
    "transformer_blocks.0.attn.add_q_proj.weight": (16, 16),
    "single_transformer_blocks.0.proj_mlp.weight": (16, 16),
    "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
}
SD3 = {"pos_embed": (1, 36864, 4), "joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)}
QWEN = {"txt_norm.weight": (3584,), "img_in.weight": (3072, 64), "transformer_blocks.59.img_mod.1.bias": (18432,)}
LUMINA = {"cap_embedder.1.weight": (2304, 16), "noise_refiner.0.attention.qkv.weight": (3840, 4)}
Z_IMAGE = {"cap_embedder.1.weight": (3840, 16), "noise_refiner.0.attention.qkv.weight": (11520, 4)}
COSMOS = {"x_embedder.proj.1.weight": (2048, 68), "blocks.0.mlp.layer1.weight": (16, 16)}
ANIMA = COSMOS | {"llm_adapter.blocks.0.cross_attn.q_proj.weight": (16, 16)}
WAN = {"head.modulation": (1, 2, 5120), "patch_embedding.weight": (5120, 16, 1, 2, 2)}

# Kinds of SD 2.x whose tensors below are all that its layout requires.
OPENED_SD2 = ("sd2", "sd2-unet", "sd2-depth", "sd2-inpainting", "sd2-edit")
# Name, tensors, title and evidence; title and evidence are None where a checkpoint of SD 1.x is opened.
NETWORKS = [
    ("sd1-inpainting", under(UNET, unet(768, 9)) | CLIP_L | VAE, None, None),
    ("sd1-instruct-pix2pix", under(UNET, unet(768, 8)) | CLIP_L | VAE, None, None),
    (
        "sd1-unet",
        unet(768),
        "the UNet of a Stable Diffusion 1.x model alone, without the prefix 'model.diffusion_model.'",
        "4 input channels, text of width 768",
    ),
    (
        "sd1-unet",
        diffusers_unet(768),
        "the UNet of a Stable Diffusion 1.x model alone, in diffusers names",
        "4 input channels, text of width 768",
    ),
    (
        "sd1-inpainting-unet",
        diffusers_unet(768, 9),
        "the UNet of a Stable Diffusion 1.x inpainting model alone, in diffusers names",
        "9 input channels, text of width 768",
    ),
    ("sd2", SD2, "a Stable Diffusion 2.x checkpoint", "4 input channels, text of width 1024"),
    (
        "sd2-unet",
        under(UNET, unet(1024)),
        "the UNet of a Stable Diffusion 2.x model alone",
        "4 input channels, text of width 1024",
    ),
    (
        "sd2-unet",
        unet(1024),
        "the UNet of a Stable Diffusion 2.x model alone, without the prefix 'model.diffusion_model.'",
        "4 input channels, text of width 1024",
    ),
    (
        "sd2-depth",
        under(UNET, unet(1024, 5)) | OPEN_CLIP | VAE,
        "a Stable Diffusion 2.x depth checkpoint",
        "5 input channels, text of width 1024",
    ),
    (
        "sd2-inpainting",
        under(UNET, unet(1024, 9)) | OPEN_CLIP | VAE,
        "a Stable Diffusion 2.x inpainting checkpoint",
        "9 input channels, text of width 1024",
    ),
    (
        "sd2-unclip",
        under(UNET, unet(1024) | {"label_emb.0.0.weight": (1280, 2048)}) | OPEN_CLIP | VAE,
        "a Stable Diffusion 2.x unCLIP checkpoint",
        "4 input channels, text of width 1024, extra conditioning of width 2048",
    ),
    (
        "sd2-edit",
        under(UNET, unet(1024, 8)) | OPEN_CLIP | VAE,
        "a Stable Diffusion 2.x image-to-image (Marigold or the like) checkpoint",
        "8 input channels, text of width 1024",
    ),
    (
        "x4-upscaler",
        under(UNET, unet(1024, 7, 256)) | OPEN_CLIP | VAE,
        "a Stable Diffusion x4 upscaler checkpoint",
        "7 input channels, text of width 1024, 256 channels wide",
    ),
    (
        "svd",
        under(UNET, unet(1024, 8) | {"input_blocks.1.1.time_stack.0.attn1.to_q.weight": (320, 320)}) | CLIP_G | VAE,
        "a Stable Video Diffusion checkpoint",
        "8 input channels, text of width 1024",
    ),
    (
        "zero123",
        under(UNET, unet(768, 8)) | VAE | {"cc_projection.weight": (768, 772)},
        "a Zero-1-to-3 checkpoint without text encoder",
        "8 input channels, text of width 768",
    ),
    ("sdxl", SDXL, "an SDXL checkpoint", "4 input channels, text of width 2048, extra conditioning of width 2816"),
    (
        "sdxl-unet",
        under(UNET, xl_unet()),
        "the UNet of an SDXL model alone",
        "4 input channels, text of width 2048, extra conditioning of width 2816",
    ),
    (
        "sdxl-inpainting",
        under(UNET, xl_unet(9)) | CLIP_G,
        "an SDXL inpainting checkpoint",
        "9 input channels, text of width 2048",
    ),
    (
        "sdxl-edit",
        under(UNET, xl_unet(8)) | CLIP_G,
        "an SDXL instruct-pix2pix checkpoint",
        "8 input channels, text of width 2048",
    ),
    (
        "sdxl-refiner",
        under(UNET, REFINER) | {"conditioner.embedders.0.model.ln_final.weight": (1280,)},
        "an SDXL refiner checkpoint",
        "4 input channels, text of width 1280, extra conditioning of width 2560",
    ),
    (
        "playground-v2.5",
        SDXL | {"edm_mean": (4,), "edm_std": (4,)},
        "a Playground v2.5 checkpoint",
        "4 input channels, text of width 2048",
    ),
    (
        "ssd-1b",
        under(UNET, xl_unet(depths=(2, 4), middle=False)) | CLIP_G,
        "an SSD-1B checkpoint",
        "4 input channels, text of width 2048, no transformer in the middle block",
    ),
    (
        "segmind-vega",
        under(UNET, xl_unet(depths=(1, 2), middle=False)) | CLIP_G,
        "a Segmind Vega checkpoint",
        ("4 input channels, text of width 2048, no transformer in the middle block, two in the last input block"),
    ),
    (
        "koala",
        under(
            UNET,
            {
                "input_blocks.0.0.weight": (320, 4, 3, 3),
                "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
                "label_emb.0.0.weight": (1280, 2816),
                "output_blocks.0.0.in_layers.0.weight": (2560,),
            },
        )
        | CLIP_G,
        "a KOALA checkpoint",
        "4 input channels, text of width 2048, one block a level",
    ),
    (
        "kolors-unet",
        diffusers_unet(2048) | {"add_embedding.linear_1.weight": (1280, 5632)},
        "the UNet of a Kolors model alone, in diffusers names",
        "4 input channels, text of width 2048, extra conditioning of width 5632",
    ),
    (
        "other-unet",
        {"input_blocks.0.0.weight": (128, 3, 3, 3), "output_blocks.0.0.in_layers.0.weight": (8,)},
        "a UNet of none of the known sizes",
        "3 input channels",
    ),
    (
        "sd3-medium",
        under(UNET, SD3) | {"text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": (768,)},
        "a Stable Diffusion 3 medium checkpoint",
        "holds 'model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias'",
    ),
    (
        "sd35-medium-transformer",
        under(UNET, SD3 | {"joint_blocks.0.x_block.attn2.qkv.weight": (16, 4)}),
        "the transformer of a Stable Diffusion 3.5 medium model alone",
        "holds 'model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.weight'",
    ),
    (
        "sd35-large-transformer",
        SD3 | {"joint_blocks.37.x_block.mlp.fc1.weight": (16, 4)},
        "the transformer of a Stable Diffusion 3.5 large model alone",
        "holds 'joint_blocks.37.x_block.mlp.fc1.weight'",
    ),
    (
        "flux-dev-transformer",
        FLUX_DEV,
        "the transformer of a FLUX.1 dev (or Kontext) model alone",
        "holds 'guidance_in.in_layer.weight'",
    ),
    (
        "flux-dev",
        under(UNET, FLUX_DEV)
        | {"text_encoders.t5xxl.transformer.shared.weight": (16, 4), "vae.encoder.conv_in.bias": (4,)},
        "a FLUX.1 dev (or Kontext) checkpoint",
        "holds 'model.diffusion_model.guidance_in.in_layer.weight'",
    ),
    (
        "flux-dev-transformer",
        FLUX_DIFFUSERS,
        "the transformer of a FLUX.1 dev (or Kontext) model alone, in diffusers names",
        "holds 'time_text_embed.guidance_embedder.linear_1.weight'",
    ),
    (
        "flux-schnell-transformer",
        FLUX,
        "the transformer of a FLUX.1 schnell model alone",
        "holds 'single_blocks.0.linear1.weight'",
    ),
    (
        "flux-fill-transformer",
        FLUX_DEV | {"img_in.weight": (3072, 384)},
        "the transformer of a FLUX.1 Fill model alone",
        "384 numbers an image patch",
    ),
    (
        "flux-depth-transformer",
        FLUX_DEV | {"img_in.weight": (3072, 128)},
        "the transformer of a FLUX.1 Depth or Canny model alone",
        "128 numbers an image patch",
    ),
    (
        "flux2-transformer",
        FLUX_DEV | {"double_stream_modulation_img.lin.weight": (16, 16)},
        "the transformer of a FLUX.2 model alone",
        "holds 'double_stream_modulation_img.lin.weight'",
    ),
    (
        "chroma-transformer",
        FLUX | {"distilled_guidance_layer.in_proj.bias": (5120,)},
        "the transformer of a Chroma model alone",
        "holds 'distilled_guidance_layer.in_proj.bias'",
    ),
    ("qwen-image-transformer", QWEN, "the transformer of a Qwen-Image model alone", "holds 'txt_norm.weight'"),
    ("lumina2-transformer", LUMINA, "the transformer of a Lumina-Image 2.0 model alone", "captions of width 2304"),
    ("z-image-transformer", Z_IMAGE, "the transformer of a Z-Image model alone", "captions of width 3840"),
    (
        "anima-transformer",
        under("net.", ANIMA),
        "the transformer of an Anima model alone",
        "holds 'net.llm_adapter.blocks.0.cross_attn.q_proj.weight'",
    ),
    (
        "cosmos-predict2-transformer",
        under("net.", COSMOS),
        "the transformer of a Cosmos-Predict2 model alone",
        "holds 'net.blocks.0.mlp.layer1.weight'",
    ),
    ("wan-transformer", WAN, "the transformer of a Wan 2.1 or 2.2 (14B) model alone", "5120 numbers wide"),
    (
        "wan-i2v-transformer",
        WAN | {"img_emb.proj.0.bias": (1280,)},
        "the transformer of a Wan 2.1 image-to-video model alone",
        "holds 'head.modulation'",
    ),
]

BESIDE = "it is loaded beside a checkpoint and is no part of it"
STEERS = "it steers a model and is no part of it; name the checkpoints themselves"
ADDED = "it is added to a checkpoint, and none is to be merged by itself; name the checkpoints"
LORA = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 1280)}


def lora(prefix: str, context: int = 768, down: str = "lora_down.weight", up: str = "lora_up.weight") -> dict:
    """Return two tensors and an alpha of a LoRA of one cross-attention."""
    return {f"{prefix}.{down}": (4, context), f"{prefix}.{up}": (320, 4), f"{prefix}.alpha": ()}


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
KOHYA_XL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
PEFT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"

OTHERS = [
    (
        "lora",
        lora(KOHYA),
        "a LoRA for Stable Diffusion 1.x in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight'",
        ADDED,
    ),
    (
        "lora",
        lora(KOHYA, 1024),
        "a LoRA for Stable Diffusion 2.x in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight'",
        ADDED,
    ),
    (
        "lora",
        lora(KOHYA_XL, 2048),
        "a LoRA for SDXL in kohya's names",
        "holds 'lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight'",
        ADDED,
    ),
    (
        "lora",
        lora("lora_unet_double_blocks_0_img_attn_qkv", 3072),
        "a LoRA for FLUX in kohya's names",
        "holds 'lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight'",
        ADDED,
    ),
    (
        "lora",
        lora(PEFT, down="lora_A.weight", up="lora_B.weight"),
        "a LoRA for Stable Diffusion 1.x in diffusers names",
        "holds 'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight'",
        ADDED,
    ),
    (
        "lora",
        lora("diffusion_model.double_blocks.0.img_attn.qkv", down="lora_A.weight", up="lora_B.weight"),
        "a LoRA for FLUX in ComfyUI's names",
        "holds 'diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight'",
        ADDED,
    ),
    (
        "lora",
        lora(KOHYA) | {"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": (4, 320, 3, 3)},
        "a LoCon (a LoRA of convolutions, too) for Stable Diffusion 1.x in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight'",
        ADDED,
    ),
    (
        "loha",
        {f"{KOHYA}.{end}": (4, 768) for end in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
        "a LoHa for Stable Diffusion 1.x in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_a'",
        ADDED,
    ),
    (
        "lokr",
        {"lycoris_blocks_0_attn_to_q.lokr_w1": (4, 4), "lycoris_blocks_0_attn_to_q.lokr_w2": (8, 8)},
        "a LoKr in LyCORIS names",
        "holds 'lycoris_blocks_0_attn_to_q.lokr_w1'",
        ADDED,
    ),
    (
        "dora",
        lora(KOHYA) | {f"{KOHYA}.dora_scale": (1, 768)},
        "a DoRA for Stable Diffusion 1.x in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.dora_scale'",
        ADDED,
    ),
    (
        "glora",
        {f"{KOHYA}.{end}.weight": (4, 768) for end in ("a1", "a2", "b1", "b2")},
        "a GLoRA for Stable Diffusion 1.x in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.a1.weight'",
        ADDED,
    ),
    (
        "oft",
        {f"{KOHYA}.oft_blocks": (4, 8, 8)},
        "an OFT in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.oft_blocks'",
        ADDED,
    ),
    (
        "full-difference",
        {f"{KOHYA}.diff": (320, 768), f"{KOHYA}.diff_b": (320,)},
        "a full difference for Stable Diffusion 1.x in kohya's names",
        "holds 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.diff'",
        ADDED,
    ),
    (
        "controlnet",
        {
            "control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
            "control_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        },
        "a ControlNet",
        "holds 'control_model.zero_convs.0.0.weight'",
        STEERS,
    ),
    (
        "controlnet",
        diffusers_unet(768) | {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
        "a ControlNet in diffusers names",
        "holds 'controlnet_cond_embedding.conv_in.weight'",
        STEERS,
    ),
    (
        "control-lora",
        {"lora_controlnet": (0,), "input_hint_block.0.weight": (16, 3, 3, 3)},
        "a ControlNet stored as a LoRA (Control-LoRA)",
        "holds 'lora_controlnet'",
        STEERS,
    ),
    (
        "t2i-adapter",
        {"adapter.conv_in.weight": (320, 192, 3, 3), "adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)},
        "a T2I-Adapter",
        "holds 'adapter.body.0.resnets.0.block1.weight'",
        STEERS,
    ),
    (
        "motion-module",
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)},
        "an AnimateDiff motion module",
        "holds 'down_blocks.0.motion_modules.0.temporal_transformer.norm.weight'",
        f"{BESIDE}; name the checkpoints themselves",
    ),
    (
        "ip-adapter",
        {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "an IP-Adapter",
        "holds 'ip_adapter.1.to_k_ip.weight'",
        f"{BESIDE}; name the checkpoints themselves",
    ),
    (
        "ema",
        {"model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3), "model_ema.decay": ()},
        "an EMA copy of a model without the model itself",
        "holds 'model_ema.diffusion_modelinput_blocks00weight'",
        "give the file with the weights under their own names (model.diffusion_model.*); EMA copies are not read",
    ),
    (
        "vae",
        {"encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
        "a Stable Diffusion VAE alone",
        "4 latent channels",
        "it goes with `vae=...`; name a whole checkpoint here",
    ),
    (
        "vae",
        {"encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3), "decoder.conv_in.weight": (512, 16, 3, 3)},
        "a VAE of FLUX or Stable Diffusion 3 alone",
        "16 latent channels",
        "name a whole checkpoint",
    ),
    (
        "vae",
        {
            "encoder.down_blocks.0.resnets.0.conv1.weight": (128, 128, 3, 3),
            "decoder.up_blocks.0.resnets.0.conv1.weight": (512, 512, 3, 3),
            "decoder.conv_in.weight": (512, 4, 3, 3),
        },
        "a VAE alone in diffusers names",
        "4 latent channels",
        "name a whole checkpoint",
    ),
    (
        "clip",
        {
            "text_model.embeddings.token_embedding.weight": (49408, 768),
            "text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
        },
        "a text encoder of Stable Diffusion 1.x alone (CLIP-L)",
        "768 numbers a token",
        "name a whole checkpoint",
    ),
    (
        "clip-g",
        {
            "text_model.encoder.layers.0.mlp.fc1.weight": (5120, 1280),
            "text_model.encoder.layers.30.mlp.fc1.weight": (5120, 1280),
        },
        "a text encoder CLIP-G alone",
        "holds 'text_model.encoder.layers.30.mlp.fc1.weight'",
        "name a whole checkpoint",
    ),
    (
        "t5",
        {"shared.weight": (32128, 4096), "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)},
        "a text encoder T5 alone",
        "holds 'encoder.block.0.layer.0.SelfAttention.q.weight'",
        "name a whole checkpoint",
    ),
    (
        "language-model",
        {"model.layers.0.self_attn.q_proj.weight": (2048, 2048)},
        "a language model",
        "holds 'model.layers.0.self_attn.q_proj.weight'",
        "name a checkpoint of an image model",
    ),
    (
        "embedding",
        {"emb_params": (8, 768)},
        "a textual-inversion embedding for Stable Diffusion 1.x",
        "vectors of 768 numbers",
        BESIDE,
    ),
    (
        "embedding",
        {"emb_params": (8, 1024)},
        "a textual-inversion embedding for Stable Diffusion 2.x",
        "vectors of 1024 numbers",
        BESIDE,
    ),
    (
        "embedding",
        {"clip_l": (8, 768), "clip_g": (8, 1280)},
        "a textual-inversion embedding for SDXL",
        "holds 'clip_l'",
        BESIDE,
    ),
    ("embedding", {"<cat-toy>": (768,)}, "a textual-inversion embedding of diffusers", "holds '<cat-toy>'", BESIDE),
    (
        "upscaler",
        {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
        "an upscaler (ESRGAN)",
        "holds 'model.0.weight'",
        "it enlarges pictures; name the checkpoints that draw them",
    ),
    (
        "upscaler",
        {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)},
        "an upscaler (Real-ESRGAN)",
        "holds 'conv_first.weight'",
        "it enlarges pictures; name the checkpoints that draw them",
    ),
]

QUANTIZED = [
    ("nf4", f"{UNET}x.weight.quant_state.bitsandbytes__nf4", {}, "quantised as nf4 (bitsandbytes)"),
    ("fp4", f"{UNET}x.weight.quant_state.bitsandbytes__fp4", {}, "quantised as fp4 (bitsandbytes)"),
    ("scaled fp8", f"{UNET}scaled_fp8", {}, "quantised as fp8 with scales"),
    ("scaled fp8, by layer", f"{UNET}x.scale_weight", {}, "quantised as fp8 with scales"),
    ("comfy_quant", f"{UNET}x.comfy_quant", {}, "quantised by ComfyUI (comfy_quant)"),
    ("in metadata", "", {"_quantization_metadata": "{}"}, "quantised by ComfyUI (comfy_quant)"),
]


def problem(path: Path) -> str:
    """Return the error of opening `path` as a checkpoint of Stable Diffusion 1.x, after the file's name."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, layout=load_layout("sd1"))
    (line,) = caught.value.problems
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "shapes", "title", "evidence"), NETWORKS, ids=[f"{case[0]}-{n}" for n, case in enumerate(NETWORKS)]
)
def test_networks_are_named(tmp_path, name, shapes, title, evidence):
    """A model of each family is named with its evidence; those that have all that their layout requires are opened."""
    path = tmp_path / "a.safetensors"
    write_header(path, shapes)

    with open_checkpoint(path) as checkpoint:
        layout = checkpoint.layout and checkpoint.layout.name
        opened = "sd1" if title is None else "sd2" if name in OPENED_SD2 else None
        assert (name, opened) == (checkpoint.kind.name, layout)
    if title is not None:
        more = f"; {SINGLE_FILE}" if "diffusers names" in title else ""
        own = "" if opened is None else f", layout {opened}"
        assert f"is {title} ({evidence}){own}; {NEEDED}{more}" == problem(path)


@pytest.mark.parametrize(
    ("name", "shapes", "title", "evidence", "advice"), OTHERS, ids=[f"{case[0]}-{n}" for n, case in enumerate(OTHERS)]
)
def test_files_beside_checkpoints_are_named(tmp_path, name, shapes, title, evidence, advice):
    """Files used beside a checkpoint, and parts of one, are named with advice."""
    path = tmp_path / "a.safetensors"
    write_header(path, shapes)

    assert f"is {title} ({evidence}); {NEEDED}; {advice}" == problem(path)
    with open_checkpoint(path) as checkpoint:
        assert (name, None) == (checkpoint.kind.name, checkpoint.layout)


@pytest.mark.parametrize(
    ("marker", "metadata", "way"), [case[1:] for case in QUANTIZED], ids=[case[0] for case in QUANTIZED]
)
def test_quantised_checkpoints_are_not_taken_for_weights(tmp_path, marker, metadata, way):
    """Packed weights are named by their form, and never opened as weights."""
    write_header(tmp_path / "a.safetensors", SD1 | ({marker: (4,)} if marker else {}), metadata=metadata)

    shown = marker or next(iter(metadata))
    assert (
        f"is a Stable Diffusion 1.x checkpoint, {way} (holds '{shown}'); {NEEDED}; give the file that it was made "
        "from, in float16, bfloat16 or float32"
    ) == problem(tmp_path / "a.safetensors")


def test_ordinary_checkpoints_have_a_kind(tmp_path):
    """Readable checkpoints have a kind too: whole, without encoder or VAE, with more input channels."""
    cases = {
        "a Stable Diffusion 1.x checkpoint (4 input channels, text of width 768)": SD1,
        "a Stable Diffusion 1.x checkpoint without text encoder (4 input channels, text of width 768)": under(
            UNET, unet(768)
        )
        | VAE,
        "the UNet of a Stable Diffusion 1.x model alone (4 input channels, text of width 768)": under(UNET, unet(768)),
        "a Stable Diffusion 1.x instruct-pix2pix checkpoint (8 input channels, text of width 768)": under(
            UNET, unet(768, 8)
        )
        | CLIP_L,
        "a Stable Diffusion 1.x depth checkpoint (5 input channels, text of width 768)": under(UNET, unet(768, 5))
        | CLIP_L,
        "a Stable Diffusion 1.x checkpoint (7 input channels, text of width 768)": under(UNET, unet(768, 7)) | CLIP_L,
    }
    for number, (expected, shapes) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        write_header(path, shapes)
        with open_checkpoint(path) as checkpoint:
            assert (expected, "sd1") == (str(checkpoint.kind), checkpoint.layout.name)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (9, "an inpainting model"),
        (8, "an instruct-pix2pix model"),
        (5, "a depth model"),
        (7, "a model that reads more than an image"),
    ],
)
def test_inspection_names_input_channels(tmp_path, channels, message):
    """An inspection names the kind of a checkpoint with more input channels."""
    write_header(tmp_path / "a.safetensors", under(UNET, unet(768, channels)) | CLIP_L | VAE)

    unusual = inspect_checkpoint(tmp_path / "a.safetensors", full=False).unusual

    assert f"{channels} input channels: {message}, of which the first 4 channels merge" in unusual


def test_shards_are_named(tmp_path):
    """A part of a model in several files, and their index, are named as such, for any contents."""
    part = tmp_path / "model-00001-of-00003.safetensors"
    write_header(part, SD1)
    index = tmp_path / "model.safetensors.index.json"
    files = {f"{n}.weight": f"model-0000{1 + n % 3}-of-00003.safetensors" for n in range(9)}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}), encoding="utf-8")
    alone = tmp_path / "model-00001-of-00001.safetensors"
    write_header(alone, SD1)

    assert problem(part) == (
        f"is part 1 of 3 of a model (-00001-of-00003.safetensors in its name); {NEEDED}; the folder holds all parts "
        "and their index"
    )
    assert problem(index) == (
        "is the index of a model in 3 files (lists model-00001-of-00003.safetensors, model-00002-of-00003.safetensors "
        f"...); {SINGLE_FILE}"
    )
    assert open_checkpoint(alone).layout.name == "sd1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x"},
            "is a textual-inve",
        ),
        (
            {768: ({"linear.0.weight": torch.ones(2, 2)}, {"linear.0.weight": torch.ones(2, 2)}), "step": 1},
            "is a hypern",
        ),
        (
            {"params_ema": {"conv_first.weight": torch.ones(2, 3, 3, 3), "body.0.rdb1.conv1.weight": torch.ones(1)}},
            "is an ups",
        ),
        (
            {"image_proj": {"proj.weight": torch.ones(2, 2)}, "ip_adapter": {"1.to_k_ip.weight": torch.ones(2, 2)}},
            "is an IP-",
        ),
        ({"optimizer_state_dict": {"state": {0: torch.ones(1)}}, "hash": "x"}, "is a state of a training's optimizer"),
        ({"<toy>": torch.ones(768)}, "is a textual-inversion embedding of diffusers"),
        ({"a": {"b": {"c": 1}}}, "holds no tensors"),
    ],
)
def test_nested_pickles_are_named(tmp_path, content, message):
    """Nested mappings of tensors in pickles of the WebUI and other tools are named."""
    torch.save(content, tmp_path / "a.pt")

    assert problem(tmp_path / "a.pt").startswith(message)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
GGUF = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 20) + b"general.architecture" + struct.pack("<IQ", 8, 4) + b"flux"
PULL = "fetch the file itself with `git lfs pull`"
AGAIN = "download the file again"
NAME = "name the checkpoints themselves"
UNPACK = "unpack it first"
FULL = "give the file that it was quantised from"


@pytest.mark.parametrize(
    ("name", "content", "title", "evidence", "advice"),
    [
        ("a.safetensors", LFS, "a Git LFS pointer", "begins with 'version https://git-lfs'", PULL),
        ("a.safetensors", b"\n <!DOCTYPE html>", "a web page", "begins with '<!DOCTYPE'", AGAIN),
        (
            "a.ckpt",
            b'{"error": "Unauthorized"}',
            "JSON text, for example a server's error message",
            "holds 'error'",
            AGAIN,
        ),
        ("a.ckpt", b"<Error>Denied", "a web page or a server's answer", "begins with '<'", AGAIN),
        ("model_index.json", b'{"_class_name": "SDPipe"}', "a configuration without weights", "SDPipe", NAME),
        ("w.json", b'{"3": {"class_type": "KSampler"}}', "a ComfyUI workflow", "holds its nodes", NAME),
        ("a.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "a GGUF file", "begins with 'GGUF'", FULL),
        ("a.gguf", b"GGUF\x03", "a GGUF file", "begins with 'GGUF'", FULL),
        ("a.gguf", GGUF, "a GGUF file of architecture flux", "begins with 'GGUF'", FULL),
        (
            "a.ckpt",
            bytes(4096),
            "a file of zeros",
            f"begins with {chr(0) * 8!a}",
            f"an interrupted download: {AGAIN}",
        ),
        ("a.zip", b"7z\xbc\xaf\x1c", "a 7-Zip archive", "begins with '7z\\xbc\\xaf'", UNPACK),
        ("a.rar", b"Rar!\x1a\x07", "a RAR archive", "begins with 'Rar!'", UNPACK),
        ("a.ckpt", b"\x1f\x8b\x08", "a gzip archive", "begins with '\\x1f\\x8b'", UNPACK),
        ("a.tar", b"model.ckpt".ljust(257, b"\0") + b"ustar\0", "a tar archive", "ustar in its header", UNPACK),
        ("a.png", b"\x89PNG\r\n\x1a\n", "a PNG image", "begins with '\\x89PNG'", NAME),
        ("a.jpg", b"\xff\xd8\xff\xe0", "a JPEG image", "begins with '\\xff\\xd8\\xff'", NAME),
        ("a.webp", b"RIFF1234WEBPVP8 ", "a WebP image", "begins with 'RIFF'", NAME),
        ("a.bmp", b"BM\0\0", "a BMP image", "begins with 'BM'", NAME),
        ("a.sft.crdownload", b"half of it", "an unfinished download", ".crdownload in its name", "finish it first"),
        ("mine.yaml", b"recipe: r.yaml\n", "a recipe or a study", ".yaml in its name", NAME),
    ],
)
def test_files_without_tensors_are_named(tmp_path, name, content, title, evidence, advice):
    """Other files under a checkpoint's name are named by their content, not by their extension."""
    (tmp_path / name).write_bytes(content)

    assert f"is {title} ({evidence}); {advice}" == problem(tmp_path / name)


CONFIGS = Path(sd_mecha.__file__).parent / "extensions" / "builtin" / "model_configs"


@pytest.mark.parametrize(
    ("config", "name", "layout"),
    [
        ("sd1-ldm", "sd1", "sd1"),
        ("sdxl-sgm", "sdxl", "sdxl"),
        ("sd3-comfyui", "sd3-medium", "sd3-medium"),
        ("flux-flux", "flux-dev", "flux"),
        ("sdxl-diffusers_unet_only", "sdxl-unet", "sdxl"),
    ],
)
def test_families_of_sd_mecha_are_recognized(config, name, layout):
    """The whole list of tensors that sd-mecha has for a family is recognized as that family."""
    line = re.compile(r"^ +(\S+): \{shape: \[([\d, ]*)\]", re.MULTILINE)
    text = (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8")
    shapes = {key: tuple(map(int, sizes.split(","))) if sizes else () for key, sizes in line.findall(text)}

    assert len(shapes) > 1000
    kind = kind_of(shapes)
    assert (name, layout) == (kind.name, kind.layout)


SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SD3_SIZES = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("model", "options", "name"),
    [
        ("UNet2DConditionModel", {**SD, "cross_attention_dim": 768}, "sd1-unet"),
        ("UNet2DConditionModel", {**SD, "cross_attention_dim": 768, "in_channels": 9}, "sd1-inpainting-unet"),
        ("UNet2DConditionModel", {**SD, "cross_attention_dim": 768, "in_channels": 8}, "sd1-instruct-pix2pix-unet"),
        ("UNet2DConditionModel", {**SD, "cross_attention_dim": 1024}, "sd2-unet"),
        ("UNet2DConditionModel", {**SD, "cross_attention_dim": 1024, "in_channels": 5}, "sd2-depth-unet"),
        ("UNet2DConditionModel", {**XL, "transformer_layers_per_block": (1, 2, 10)}, "sdxl-unet"),
        (
            "UNet2DConditionModel",
            {
                **XL,
                "transformer_layers_per_block": [[], [2, 2], [4, 4]],
                "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
                "mid_block_type": "UNetMidBlock2D",
            },
            "ssd-1b-unet",
        ),
        (
            "UNet2DConditionModel",
            {
                **XL,
                "transformer_layers_per_block": [[], [1, 1], [2, 2]],
                "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
                "mid_block_type": "UNetMidBlock2D",
            },
            "segmind-vega-unet",
        ),
        (
            "UNet2DConditionModel",
            {**XL, "transformer_layers_per_block": (1, 2, 6), "layers_per_block": 1},
            "koala-unet",
        ),
        ("UNetSpatioTemporalConditionModel", {}, "svd-unet"),
        ("UNetMotionModel", {}, "unet-motion"),
        ("SD3Transformer2DModel", SD3_SIZES, "sd3-medium-transformer"),
        (
            "SD3Transformer2DModel",
            {**SD3_SIZES, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
            "sd35-medium-transformer",
        ),
        (
            "SD3Transformer2DModel",
            {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
            "sd35-large-transformer",
        ),
        ("FluxTransformer2DModel", {"guidance_embeds": True}, "flux-dev-transformer"),
        ("FluxTransformer2DModel", {"guidance_embeds": True, "in_channels": 384}, "flux-fill-transformer"),
        ("FluxTransformer2DModel", {}, "flux-schnell-transformer"),
        ("Flux2Transformer2DModel", {}, "flux2-transformer"),
        ("ChromaTransformer2DModel", {}, "chroma-transformer"),
        ("QwenImageTransformer2DModel", {}, "qwen-image-transformer"),
        ("Lumina2Transformer2DModel", {}, "lumina2-transformer"),
        ("ZImageTransformer2DModel", {}, "z-image-transformer"),
        ("CosmosTransformer3DModel", {}, "cosmos-transformer"),
        ("WanTransformer3DModel", {}, "wan-transformer"),
        ("HunyuanVideoTransformer3DModel", {}, "hunyuan-video-transformer"),
        ("LTXVideoTransformer3DModel", {}, "ltx-video-transformer"),
        ("SanaTransformer2DModel", {}, "sana-transformer"),
        ("PixArtTransformer2DModel", {}, "pixart-transformer"),
        ("AuraFlowTransformer2DModel", {}, "auraflow-transformer"),
        ("StableCascadeUNet", {}, "stable-cascade-transformer"),
        ("ControlNetModel", {}, "controlnet"),
        ("FluxControlNetModel", {}, "controlnet"),
        ("SD3ControlNetModel", {}, "controlnet"),
        ("T2IAdapter", {}, "t2i-adapter"),
        ("MotionAdapter", {}, "motion-module"),
        ("AutoencoderKL", {}, "vae"),
        ("AutoencoderTiny", {}, "tiny-vae"),
    ],
)
def test_classes_of_diffusers_are_recognized(model, options, name):
    """The tensors of diffusers' classes, made without numbers, are recognized in diffusers' names."""
    import diffusers

    with torch.device("meta"):
        made = getattr(diffusers, model)(**options)

    kind = kind_of({key: tuple(value.shape) for key, value in made.state_dict().items()})
    assert kind.name == name


@pytest.mark.parametrize("content", [b"cos\nsystem\n(S'x'\ntR.", b"BMW", b"hello"])
def test_unknown_files_show_their_first_bytes_only(tmp_path, content):
    """An unknown file is shown by its first bytes only: the rest may be private."""
    (tmp_path / "a.ckpt").write_bytes(content)

    assert f"not a checkpoint: it begins with {ascii(content[:8])[1:]}" == problem(tmp_path / "a.ckpt")


def test_folders_are_named(tmp_path):
    """A folder is named: a diffusers model, a part of one, a model in several files, or a folder of files."""
    plain, empty, diffusers, part, sharded = (
        tmp_path / name for name in ("plain", "empty", "diffusers", "part", "shards")
    )
    for folder in (plain, empty, diffusers, part, sharded):
        folder.mkdir()
    for name in ("a.safetensors", "b.ckpt", "c.sft", "d.pt", "notes.txt"):
        (plain / name).touch()
    (diffusers / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}', encoding="utf-8")
    (part / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}', encoding="utf-8")
    (sharded / "m.safetensors.index.json").write_text("{}", encoding="utf-8")

    assert problem(plain) == "is a folder (holds a.safetensors, b.ckpt, c.sft and 1 more); name one of its files"
    assert problem(empty) == "is a folder (holds no checkpoint); give a single checkpoint file"
    assert problem(diffusers) == f"is a folder in diffusers format (StableDiffusionXLPipeline); {SINGLE_FILE}"
    assert problem(part) == f"is a folder with a part of a diffusers model (UNet2DConditionModel); {SINGLE_FILE}"
    assert problem(sharded) == f"is a folder with a model in several files (m.safetensors.index.json); {SINGLE_FILE}"


def test_sft_is_safetensors(tmp_path, write_sd1):
    """A .sft file is safetensors by another extension: it is opened, found by name, and listed in folders."""
    from optimizer.library import Library, checkpoints_in

    write_sd1(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "flux.sft")

    with open_checkpoint(tmp_path / "flux.sft") as checkpoint:
        assert (checkpoint.format, checkpoint.layout.name) == ("safetensors", "sd1")
    assert Library().find("flux", tmp_path) == tmp_path / "flux.sft"
    assert checkpoints_in(tmp_path) == [tmp_path / "flux.sft"]


def test_unknown_tensors_are_listed(tmp_path):
    """A file of unknown tensors is reported as unknown, with the first of their names."""
    write_header(tmp_path / "a.safetensors", {"x.weight": (1,), "y.weight": (1,), "z.weight": (1,)})

    line = problem(tmp_path / "a.safetensors")

    assert line == (
        "is none of the kinds of file that blockfit knows (holds 'x.weight', 'y.weight' ...); must be a checkpoint of "
        "Stable Diffusion 1.x (layout sd1), but it lacks 'model.diffusion_model.input_blocks.0.0.weight', which is "
        "part of Stable Diffusion 1.x"
    )
    assert kind_of({}) is None


def test_endless_names_are_cut(tmp_path):
    """Names of any length and with any number of dots are checked fast, and cut in messages."""
    write_header(tmp_path / "a.safetensors", {"a." * 200_000 + "lora_up.weight": (1, 1), "b" * 100_000: (1,)})

    assert re.search(r"is a LoRA \(holds '(a\.){58}a\.{3}'\)", problem(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("name", "shapes", "title", "evidence"),
    [case for case in NETWORKS if case[0] in ("sdxl-refiner", "ssd-1b", "segmind-vega", "koala")],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_relatives_of_sdxl_are_refused_by_name(tmp_path, name, shapes, title, evidence):
    """The refiner and the smaller models derived from SDXL are named and refused where SDXL is needed."""
    write_header(tmp_path / "a.safetensors", shapes)

    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "a.safetensors", layout=load_layout("sdxl"))
    needed = "Stable Diffusion XL (layout sdxl)"
    more = f"; {SINGLE_FILE}" if "diffusers names" in title else ""
    assert caught.value.problems == (
        f"{tmp_path / 'a.safetensors'}: is {title} ({evidence}); must be a checkpoint of {needed}{more}",
    )


@pytest.mark.parametrize(
    ("channels", "kind"), [(4, "sdxl"), (8, "sdxl-edit"), (9, "sdxl-inpainting")], ids=["base", "edit", "inpainting"]
)
def test_variants_of_sdxl_have_its_layout(tmp_path, write_sdxl, channels, kind):
    """Inpainting and edit models have SDXL's layout, and are told apart by their input channels."""
    name = f"{UNET}input_blocks.0.0.weight"
    write_sdxl(tmp_path / "a.safetensors", overrides={name: torch.zeros(8, channels, 3, 3)})

    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert (checkpoint.kind.name, checkpoint.layout.name) == (kind, "sdxl")


def test_incomplete_and_mixed_checkpoints_are_named(tmp_path):
    """A file with a family's UNet that lacks tensors, or has those of another family, is named with both facts."""
    write_header(tmp_path / "mixed.safetensors", under(UNET, unet(768)) | CLIP_L | OPEN_CLIP)

    assert problem(tmp_path / "mixed.safetensors") == (
        "is a Stable Diffusion 1.x checkpoint (4 input channels, text of width 768), but contains "
        "'cond_stage_model.model.ln_final.weight', which is not part of Stable Diffusion 1.x; must be whole and of no "
        "other family (layout sd1)"
    )
    cut = under(UNET, unet(768)) | CLIP_L
    del cut[f"{UNET}input_blocks.11.0.in_layers.0.weight"]
    cut[f"{UNET}down_blocks.3.resnets.1.norm1.weight"] = (1280,)
    write_header(tmp_path / "cut.safetensors", cut)
    assert problem(tmp_path / "cut.safetensors") == (
        "is a Stable Diffusion 1.x checkpoint (4 input channels, text of width 768), but lacks "
        f"'{UNET}input_blocks.11.0.in_layers.0.weight', which is part of Stable Diffusion 1.x; must be whole and of no "
        "other family (layout sd1)"
    )


@pytest.mark.parametrize(
    ("shapes", "how", "advice"),
    [
        (
            unet(768),
            "with the names of its UNet bare",
            f"put '{UNET}' before them, as WebUIs and ComfyUI look for it",
        ),
        (
            under("diffusion_model.", unet(768)),
            "with the names of its UNet behind 'diffusion_model.'",
            f"put '{UNET}' there, as WebUIs and ComfyUI look for it",
        ),
        (under("unet.", diffusers_unet(768)), "in diffusers names", SINGLE_FILE),
    ],
)
def test_misnamed_networks_are_refused_with_advice(tmp_path, shapes, how, advice):
    """A UNet under other names beside an LDM text encoder is a checkpoint, refused with the wrong prefix."""
    write_header(tmp_path / "a.safetensors", shapes | CLIP_L)

    assert problem(tmp_path / "a.safetensors") == (
        f"is a Stable Diffusion 1.x checkpoint {how} (4 input channels, text of width 768); {advice}"
    )


def test_files_with_unreadable_types_are_named(tmp_path):
    """A file with a type that torch lacks is named all the same."""
    write_header(tmp_path / "a.safetensors", under(UNET, FLUX_DEV))
    content = (tmp_path / "a.safetensors").read_bytes()
    header, data = (
        content[8 : 8 + int.from_bytes(content[:8], "little")],
        content[8 + int.from_bytes(content[:8], "little") :],
    )
    header = header.replace(b'"F16"', b'"F9"')
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)

    assert problem(tmp_path / "a.safetensors") == (
        "is the transformer of a FLUX.1 dev (or Kontext) model alone (holds "
        "'model.diffusion_model.guidance_in.in_layer.weight'), and 'model.diffusion_model.img_in.weight' has type F9, "
        "which cannot be read"
    )


def test_inspect_names_the_kind(tmp_path, capsys, monkeypatch):
    """The command shows the kind in its table and, as name, title and evidence, in JSON."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    write_header(tmp_path / "style.safetensors", lora(KOHYA_XL, 2048))

    for options in (("--json",), ()):
        with pytest.raises(SystemExit) as left:
            main(["inspect", str(tmp_path / "style.safetensors"), "--quick", *options])
        assert not left.value.code
        text = capsys.readouterr().out
        if options:
            (entry,) = json.loads(text)
            assert entry["kind"] == {
                "name": "lora",
                "title": "a LoRA for SDXL in kohya's names",
                "evidence": f"holds '{KOHYA_XL}.lora_down.weight'",
            }
            every = f"must be a checkpoint of one of the layouts {', '.join(layout_names())}"
            assert entry["unusual"] == [f"no known layout: {every}; {ADDED}"]
        else:
            assert re.search(r"kind +a LoRA for SDXL in kohya's names", text)
