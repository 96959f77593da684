"""Names and shapes of full-size models' floating-point tensors, which follow from the structure of each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FAMILIES", "Shapes", "sdxl_shapes", "stable_diffusion_shapes"]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_TOKENS = 49408
_POSITIONS = 77

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Network:
    """A UNet: widths of its levels, transformer blocks in each, width of the text; and what SDXL added."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int
    context: int
    conditioning: int | None = None
    convolutions: bool = True  # of one pixel around the transformer blocks; else matrices


def stable_diffusion_shapes(divisor: int = 1) -> Shapes:
    """Return {name: shape} of the floating-point tensors of Stable Diffusion 1.5, with widths divided by `divisor`."""
    text = "cond_stage_model.transformer.text_model."
    network = _Network(_widths((1, 2, 4, 4), divisor), (1, 1, 1, 0), 1, 768 // divisor)
    return {**_unet(network), **_clip(text, divisor), **_autoencoder(divisor)}


def sdxl_shapes(divisor: int = 1) -> Shapes:
    """Return {name: shape} of the floating-point tensors of SDXL base 1.0, with widths divided by `divisor`.

    The widths of text and conditioning stay, since files are recognised by them.
    """
    network = _Network(_widths((1, 2, 4), divisor), (0, 2, 10), 10, 2048, conditioning=2816, convolutions=False)
    return {
        **_unet(network),
        **_clip("conditioner.embedders.0.transformer.text_model.", divisor),
        **_open_clip("conditioner.embedders.1.model.", divisor),
        **_autoencoder(divisor),
    }


FAMILIES: dict[str, Callable[[int], Shapes]] = {"sd1": stable_diffusion_shapes, "sdxl": sdxl_shapes}
"""The shapes of a family, by its layout, for a divisor of the widths."""


def _widths(multipliers: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    return tuple(320 // divisor * multiplier for multiplier in multipliers)


def _layer(shapes: Shapes, name: str, *shape: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]


def _unet(network: _Network) -> Shapes:
    shapes: Shapes = {}
    widths, depths = network.widths, network.depths
    last = len(widths) - 1
    width = widths[0]
    embedding = 4 * width

    _layer(shapes, UNET + "time_embed.0", embedding, width)
    _layer(shapes, UNET + "time_embed.2", embedding, embedding)
    if network.conditioning is not None:
        _layer(shapes, UNET + "label_emb.0.0", embedding, network.conditioning)
        _layer(shapes, UNET + "label_emb.0.2", embedding, embedding)
    _layer(shapes, UNET + "input_blocks.0.0", width, 4, 3, 3)
    skipped, size, block = [width], width, 0
    for level, wide in enumerate(widths):
        for _ in range(2):
            block += 1
            _residual(shapes, f"{UNET}input_blocks.{block}.0", size, wide, embedding)
            _transformer(shapes, f"{UNET}input_blocks.{block}.1", wide, depths[level], network)
            size = wide
            skipped.append(size)
        if level < last:
            block += 1
            _layer(shapes, f"{UNET}input_blocks.{block}.0.op", size, size, 3, 3)
            skipped.append(size)
    _residual(shapes, UNET + "middle_block.0", size, size, embedding)
    _transformer(shapes, UNET + "middle_block.1", size, network.middle, network)
    _residual(shapes, UNET + "middle_block.2", size, size, embedding)
    block = 0
    for level, wide in reversed(list(enumerate(widths))):
        for position in range(3):
            _residual(shapes, f"{UNET}output_blocks.{block}.0", size + skipped.pop(), wide, embedding)
            size = wide
            _transformer(shapes, f"{UNET}output_blocks.{block}.1", size, depths[level], network)
            if level > 0 and position == 2:
                _layer(shapes, f"{UNET}output_blocks.{block}.{2 if depths[level] else 1}.conv", size, size, 3, 3)
            block += 1
    _layer(shapes, UNET + "out.0", size)
    _layer(shapes, UNET + "out.2", 4, size, 3, 3)
    return shapes


def _residual(shapes: Shapes, name: str, before: int, after: int, embedding: int) -> None:
    _layer(shapes, f"{name}.in_layers.0", before)
    _layer(shapes, f"{name}.in_layers.2", after, before, 3, 3)
    _layer(shapes, f"{name}.emb_layers.1", after, embedding)
    _layer(shapes, f"{name}.out_layers.0", after)
    _layer(shapes, f"{name}.out_layers.3", after, after, 3, 3)
    if before != after:
        _layer(shapes, f"{name}.skip_connection", after, before, 1, 1)


def _transformer(shapes: Shapes, name: str, size: int, depth: int, network: _Network) -> None:
    if not depth:
        return
    pixel = (1, 1) if network.convolutions else ()
    _layer(shapes, f"{name}.norm", size)
    _layer(shapes, f"{name}.proj_in", size, size, *pixel)
    for number in range(depth):
        inner = f"{name}.transformer_blocks.{number}"
        for attention, seen in (("attn1", size), ("attn2", network.context)):
            _layer(shapes, f"{inner}.{attention}.to_q", size, size, bias=False)
            _layer(shapes, f"{inner}.{attention}.to_k", size, seen, bias=False)
            _layer(shapes, f"{inner}.{attention}.to_v", size, seen, bias=False)
            _layer(shapes, f"{inner}.{attention}.to_out.0", size, size)
        _layer(shapes, f"{inner}.ff.net.0.proj", 8 * size, size)
        _layer(shapes, f"{inner}.ff.net.2", size, 4 * size)
        for norm in (1, 2, 3):
            _layer(shapes, f"{inner}.norm{norm}", size)
    _layer(shapes, f"{name}.proj_out", size, size, *pixel)


def _clip(prefix: str, divisor: int) -> Shapes:
    """Return the shapes of CLIP ViT-L/14's text model in transformers' names."""
    shapes: Shapes = {}
    width = 768 // divisor
    _layer(shapes, prefix + "embeddings.token_embedding", _TOKENS // divisor, width, bias=False)
    _layer(shapes, prefix + "embeddings.position_embedding", _POSITIONS, width, bias=False)
    for number in range(12):
        name = f"{prefix}encoder.layers.{number}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            _layer(shapes, f"{name}.self_attn.{projection}", width, width)
        _layer(shapes, f"{name}.layer_norm1", width)
        _layer(shapes, f"{name}.mlp.fc1", 4 * width, width)
        _layer(shapes, f"{name}.mlp.fc2", width, 4 * width)
        _layer(shapes, f"{name}.layer_norm2", width)
    _layer(shapes, prefix + "final_layer_norm", width)
    return shapes


def _open_clip(prefix: str, divisor: int) -> Shapes:
    """Return the shapes of OpenCLIP ViT-bigG/14's text model in its own names."""
    width = 1280 // divisor
    shapes: Shapes = {
        prefix + "positional_embedding": (_POSITIONS, width),
        prefix + "text_projection": (width, width),
        prefix + "logit_scale": (),
    }
    _layer(shapes, prefix + "token_embedding", _TOKENS // divisor, width, bias=False)
    for number in range(32):
        name = f"{prefix}transformer.resblocks.{number}"
        _layer(shapes, f"{name}.ln_1", width)
        shapes[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{name}.attn.in_proj_bias"] = (3 * width,)
        _layer(shapes, f"{name}.attn.out_proj", width, width)
        _layer(shapes, f"{name}.ln_2", width)
        _layer(shapes, f"{name}.mlp.c_fc", 4 * width, width)
        _layer(shapes, f"{name}.mlp.c_proj", width, 4 * width)
    _layer(shapes, prefix + "ln_final", width)
    return shapes


def _autoencoder(divisor: int) -> Shapes:
    shapes: Shapes = {}
    width = 128 // divisor
    levels = (width, 2 * width, 4 * width, 4 * width)

    def residual(name: str, before: int, after: int) -> None:
        _layer(shapes, f"{name}.norm1", before)
        _layer(shapes, f"{name}.conv1", after, before, 3, 3)
        _layer(shapes, f"{name}.norm2", after)
        _layer(shapes, f"{name}.conv2", after, after, 3, 3)
        if before != after:
            _layer(shapes, f"{name}.nin_shortcut", after, before, 1, 1)

    def middle(name: str, size: int) -> None:
        residual(f"{name}.block_1", size, size)
        _layer(shapes, f"{name}.attn_1.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            _layer(shapes, f"{name}.attn_1.{part}", size, size, 1, 1)
        residual(f"{name}.block_2", size, size)

    size = width
    _layer(shapes, VAE + "encoder.conv_in", width, 3, 3, 3)
    for level, wide in enumerate(levels):
        for number in range(2):
            residual(f"{VAE}encoder.down.{level}.block.{number}", size, wide)
            size = wide
        if level < 3:
            _layer(shapes, f"{VAE}encoder.down.{level}.downsample.conv", size, size, 3, 3)
    middle(VAE + "encoder.mid", size)
    _layer(shapes, VAE + "encoder.norm_out", size)
    _layer(shapes, VAE + "encoder.conv_out", 8, size, 3, 3)
    _layer(shapes, VAE + "decoder.conv_in", size, 4, 3, 3)
    middle(VAE + "decoder.mid", size)
    for level, wide in reversed(list(enumerate(levels))):
        for number in range(3):
            residual(f"{VAE}decoder.up.{level}.block.{number}", size, wide)
            size = wide
        if level > 0:
            _layer(shapes, f"{VAE}decoder.up.{level}.upsample.conv", size, size, 3, 3)
    _layer(shapes, VAE + "decoder.norm_out", size)
    _layer(shapes, VAE + "decoder.conv_out", 3, size, 3, 3)
    _layer(shapes, VAE + "quant_conv", 8, 8, 1, 1)
    _layer(shapes, VAE + "post_quant_conv", 4, 4, 1, 1)
    return shapes
