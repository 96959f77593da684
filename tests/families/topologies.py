"""Names and shapes of all tensors of the families' published models, in the names of their original files.

Each function builds them from the sizes of the network, as its authors' code does. `tiny` makes them small, and
`make_family` writes a base, two finetunes of it and a merge of them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

NETWORK = "model.diffusion_model."

# Tensors with the number on one axis that identifies the family.
_MEASURED = {
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": 1,
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": 1,
    "input_blocks.0.0.weight": 1,
    "label_emb.0.0.weight": 1,
    "img_in.weight": 1,
    "cap_embedder.1.weight": 0,
    "x_embedder.proj.1.weight": 1,
    "patch_embedding.weight": 0,
}


class _Names:
    """The tensors of one module and of the modules inside it."""

    def __init__(self, prefix: str = "", shapes: Shapes | None = None) -> None:
        self.prefix = prefix
        self.shapes: Shapes = {} if shapes is None else shapes

    def inside(self, name: str) -> "_Names":
        return _Names(f"{self.prefix}{name}.", self.shapes)

    def linear(self, name: str, rows: int, *columns: int, bias: bool = True) -> None:
        """Add a matrix [rows, columns], or a convolution, and its bias."""
        self.one(f"{name}.weight", rows, *columns)
        if bias:
            self.one(f"{name}.bias", rows)

    def norm(self, name: str, width: int) -> None:
        """Add the weight and the bias of a norm."""
        self.linear(name, width)

    def one(self, name: str, *shape: int) -> None:
        self.shapes[self.prefix + name] = shape


def _residual(net: _Names, inputs: int, outputs: int, time: int) -> None:
    net.norm("in_layers.0", inputs)
    net.linear("in_layers.2", outputs, inputs, 3, 3)
    net.linear("emb_layers.1", outputs, time)
    net.norm("out_layers.0", outputs)
    net.linear("out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        net.linear("skip_connection", outputs, inputs, 1, 1)


def _transformer(net: _Names, width: int, context: int, depth: int) -> None:
    net.norm("norm", width)
    net.linear("proj_in", width, width)
    for t in range(depth):
        block = net.inside(f"transformer_blocks.{t}")
        for name, text in (("attn1", width), ("attn2", context)):
            block.linear(f"{name}.to_q", width, width, bias=False)
            block.linear(f"{name}.to_k", width, text, bias=False)
            block.linear(f"{name}.to_v", width, text, bias=False)
            block.linear(f"{name}.to_out.0", width, width)
        block.linear("ff.net.0.proj", 8 * width, width)
        block.linear("ff.net.2", width, 4 * width)
        for name in ("norm1", "norm2", "norm3"):
            block.norm(name, width)
    net.linear("proj_out", width, width)


def ldm_unet(
    channels: int, depths: Sequence[int], middle: int, context: int, *, conditioning: int = 0, inputs: int = 4
) -> Shapes:
    """Return the UNet of LDM and sgm with four levels of 1, 2, 4, 4 times `channels`, and two ResNets in each.

    Args:
        channels: The width of the first level.
        depths: The number of transformer blocks in each block of a level.
        middle: That of the middle block.
        context: The width of the text.
        conditioning: The width of the extra conditioning; 0 without one.
        inputs: The number of input channels.
    """
    net, time = _Names(NETWORK), 4 * channels
    widths = [channels * times for times in (1, 2, 4, 4)]
    net.linear("time_embed.0", time, channels)
    net.linear("time_embed.2", time, time)
    if conditioning:
        net.linear("label_emb.0.0", time, conditioning)
        net.linear("label_emb.0.2", time, time)
    net.linear("input_blocks.0.0", channels, inputs, 3, 3)
    skips, width, number = [channels], channels, 1
    for level, wide in enumerate(widths):
        for _ in range(2):
            block = net.inside(f"input_blocks.{number}")
            _residual(block.inside("0"), width, wide, time)
            if depths[level]:
                _transformer(block.inside("1"), wide, context, depths[level])
            width, number = wide, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            net.linear(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            skips.append(width)
    _residual(net.inside("middle_block.0"), width, width, time)
    _transformer(net.inside("middle_block.1"), width, context, middle)
    _residual(net.inside("middle_block.2"), width, width, time)
    number = 0
    for level, wide in reversed(list(enumerate(widths))):
        for layer in range(3):
            block = net.inside(f"output_blocks.{number}")
            _residual(block.inside("0"), width + skips.pop(), wide, time)
            if depths[level]:
                _transformer(block.inside("1"), wide, context, depths[level])
            if level and layer == 2:
                block.linear(f"{2 if depths[level] else 1}.conv", wide, wide, 3, 3)
            width, number = wide, number + 1
    net.norm("out.0", channels)
    net.linear("out.2", 4, channels, 3, 3)
    return net.shapes


def openclip(prefix: str, layers: int, width: int) -> Shapes:
    """Return OpenCLIP's text encoder."""
    net = _Names(prefix)
    net.one("token_embedding.weight", 49408, width)
    net.one("positional_embedding", 77, width)
    for n in range(layers):
        block = net.inside(f"transformer.resblocks.{n}")
        block.norm("ln_1", width)
        block.norm("ln_2", width)
        block.one("attn.in_proj_weight", 3 * width, width)
        block.one("attn.in_proj_bias", 3 * width)
        block.linear("attn.out_proj", width, width)
        block.linear("mlp.c_fc", 4 * width, width)
        block.linear("mlp.c_proj", width, 4 * width)
    net.norm("ln_final", width)
    net.one("text_projection", width, width)
    net.one("logit_scale")
    return net.shapes


def clip(prefix: str, layers: int, width: int, *, projection: bool = False) -> Shapes:
    """Return a CLIP text encoder in transformers' names."""
    net = _Names(prefix)
    text = net.inside("transformer.text_model")
    text.one("embeddings.token_embedding.weight", 49408, width)
    text.one("embeddings.position_embedding.weight", 77, width)
    for n in range(layers):
        block = text.inside(f"encoder.layers.{n}")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            block.linear(f"self_attn.{name}", width, width)
        block.linear("mlp.fc1", 4 * width, width)
        block.linear("mlp.fc2", width, 4 * width)
        block.norm("layer_norm1", width)
        block.norm("layer_norm2", width)
    text.norm("final_layer_norm", width)
    if projection:
        net.linear("transformer.text_projection", width, width, bias=False)
        net.one("logit_scale")
    return net.shapes


def t5(prefix: str, words: int = 32128, *, every: bool = False) -> Shapes:
    """Return the encoder of T5 XXL; with `every`, each layer has a position bias of its own, as in umT5."""
    net, width = _Names(f"{prefix}transformer."), 4096
    net.one("shared.weight", words, width)
    for n in range(24):
        first, second = (net.inside(f"encoder.block.{n}.layer.{k}") for k in (0, 1))
        for name in "qkvo":
            first.linear(f"SelfAttention.{name}", width, width, bias=False)
        if n == 0 or every:
            first.linear("SelfAttention.relative_attention_bias", 32, 64, bias=False)
        first.one("layer_norm.weight", width)
        second.linear("DenseReluDense.wi_0", 10240, width, bias=False)
        second.linear("DenseReluDense.wi_1", 10240, width, bias=False)
        second.linear("DenseReluDense.wo", width, 10240, bias=False)
        second.one("layer_norm.weight", width)
    net.one("encoder.final_layer_norm.weight", width)
    return net.shapes


def language_model(prefix: str, layers: int, width: int) -> Shapes:
    """Return some tensors of a language model that encodes the text; the layouts only know its prefix."""
    net = _Names(prefix)
    net.one("embed_tokens.weight", 151936, width)
    for n in range(layers):
        net.linear(f"layers.{n}.self_attn.q_proj", width, width, bias=False)
        net.one(f"layers.{n}.input_layernorm.weight", width)
    net.one("norm.weight", width)
    return net.shapes


def ldm_vae(prefix: str, latent: int = 4, *, quant: bool = True) -> Shapes:
    """Return the VAE of LDM; with `quant`, the two convolutions around its latents."""
    net, widths = _Names(prefix), (128, 256, 512, 512)

    def residual(inside: _Names, inputs: int, outputs: int) -> None:
        inside.norm("norm1", inputs)
        inside.linear("conv1", outputs, inputs, 3, 3)
        inside.norm("norm2", outputs)
        inside.linear("conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            inside.linear("nin_shortcut", outputs, inputs, 1, 1)

    def middle(half: _Names) -> None:
        residual(half.inside("mid.block_1"), 512, 512)
        half.norm("mid.attn_1.norm", 512)
        for name in ("q", "k", "v", "proj_out"):
            half.linear(f"mid.attn_1.{name}", 512, 512, 1, 1)
        residual(half.inside("mid.block_2"), 512, 512)

    half, width = net.inside("encoder"), 128
    half.linear("conv_in", 128, 3, 3, 3)
    for level, wide in enumerate(widths):
        for n in range(2):
            residual(half.inside(f"down.{level}.block.{n}"), width, wide)
            width = wide
        if level < 3:
            half.linear(f"down.{level}.downsample.conv", wide, wide, 3, 3)
    middle(half)
    half.norm("norm_out", 512)
    half.linear("conv_out", 2 * latent, 512, 3, 3)
    half = net.inside("decoder")
    half.linear("conv_in", 512, latent, 3, 3)
    middle(half)
    for level, wide in reversed(list(enumerate(widths))):
        for n in range(3):
            residual(half.inside(f"up.{level}.block.{n}"), width, wide)
            width = wide
        if level:
            half.linear(f"up.{level}.upsample.conv", wide, wide, 3, 3)
    half.norm("norm_out", 128)
    half.linear("conv_out", 3, 128, 3, 3)
    if quant:
        net.linear("quant_conv", 2 * latent, 2 * latent, 1, 1)
        net.linear("post_quant_conv", latent, latent, 1, 1)
    return net.shapes


def mmdit(width: int, blocks: int, positions: int, *, norms: bool = False, second: int = 0) -> Shapes:
    """Return the network of Stable Diffusion 3: `second` blocks have a second self-attention of the image."""
    net = _Names(NETWORK)
    net.one("pos_embed", 1, positions, width)
    net.linear("x_embedder.proj", width, 16, 2, 2)
    net.linear("context_embedder", width, 4096)
    for name, inputs in (("t_embedder", 256), ("y_embedder", 2048)):
        net.linear(f"{name}.mlp.0", width, inputs)
        net.linear(f"{name}.mlp.2", width, width)
    for n in range(blocks):
        for stream in ("context_block", "x_block"):
            block = net.inside(f"joint_blocks.{n}.{stream}")
            last, two = stream == "context_block" and n == blocks - 1, stream == "x_block" and n < second
            block.linear("adaLN_modulation.1", (2 if last else 9 if two else 6) * width, width)
            for name in ("attn", "attn2") if two else ("attn",):
                block.linear(f"{name}.qkv", 3 * width, width)
                if norms:
                    block.one(f"{name}.ln_q.weight", 64)
                    block.one(f"{name}.ln_k.weight", 64)
                if not last:
                    block.linear(f"{name}.proj", width, width)
            if not last:
                block.linear("mlp.fc1", 4 * width, width)
                block.linear("mlp.fc2", width, 4 * width)
    net.linear("final_layer.linear", 64, width)
    net.linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return net.shapes


def flux_network(*, guidance: bool = True, distilled: bool = False) -> Shapes:
    """Return the network of FLUX.1; with `distilled`, that of Chroma."""
    net, width = _Names(NETWORK), 3072
    net.linear("img_in", width, 64)
    net.linear("txt_in", width, 4096)
    if distilled:
        layer = net.inside("distilled_guidance_layer")
        layer.linear("in_proj", 5120, 64)
        for n in range(5):
            layer.linear(f"layers.{n}.in_layer", 5120, 5120)
            layer.linear(f"layers.{n}.out_layer", 5120, 5120)
            layer.one(f"norms.{n}.scale", 5120)
        layer.linear("out_proj", width, 5120)
    else:
        for name, inputs in (("time_in", 256), ("vector_in", 768), *([("guidance_in", 256)] if guidance else [])):
            net.linear(f"{name}.in_layer", width, inputs)
            net.linear(f"{name}.out_layer", width, width)
    for n in range(19):
        for stream in ("img", "txt"):
            block = net.inside(f"double_blocks.{n}")
            block.linear(f"{stream}_attn.qkv", 3 * width, width)
            block.one(f"{stream}_attn.norm.query_norm.scale", 128)
            block.one(f"{stream}_attn.norm.key_norm.scale", 128)
            block.linear(f"{stream}_attn.proj", width, width)
            block.linear(f"{stream}_mlp.0", 4 * width, width)
            block.linear(f"{stream}_mlp.2", width, 4 * width)
            if not distilled:
                block.linear(f"{stream}_mod.lin", 6 * width, width)
    for n in range(38):
        block = net.inside(f"single_blocks.{n}")
        block.linear("linear1", 7 * width, width)
        block.linear("linear2", width, 5 * width)
        block.one("norm.query_norm.scale", 128)
        block.one("norm.key_norm.scale", 128)
        if not distilled:
            block.linear("modulation.lin", 3 * width, width)
    net.linear("final_layer.linear", 64, width)
    if not distilled:
        net.linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return net.shapes


def qwen_network() -> Shapes:
    """Return the network of Qwen-Image."""
    net, width = _Names(NETWORK), 3072
    net.linear("img_in", width, 64)
    net.one("txt_norm.weight", 3584)
    net.linear("txt_in", width, 3584)
    net.linear("time_text_embed.timestep_embedder.linear_1", width, 256)
    net.linear("time_text_embed.timestep_embedder.linear_2", width, width)
    for n in range(60):
        block = net.inside(f"transformer_blocks.{n}")
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            block.linear(f"attn.{name}", width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            block.one(f"attn.{name}.weight", 128)
        for stream in ("img", "txt"):
            block.linear(f"{stream}_mod.1", 6 * width, width)
            block.linear(f"{stream}_mlp.net.0.proj", 4 * width, width)
            block.linear(f"{stream}_mlp.net.2", width, 4 * width)
    net.linear("norm_out.linear", 2 * width, width)
    net.linear("proj_out", 64, width)
    return net.shapes


def z_image_network() -> Shapes:
    """Return the network of Z-Image."""
    net, width = _Names(NETWORK), 3840
    net.linear("x_embedder", width, 64)
    net.one("cap_embedder.0.weight", 2560)
    net.linear("cap_embedder.1", width, 2560)
    net.one("x_pad_token", 1, width)
    net.one("cap_pad_token", 1, width)
    net.linear("t_embedder.mlp.0", 1024, 256)
    net.linear("t_embedder.mlp.2", 256, 1024)
    for name, count in (("noise_refiner", 2), ("context_refiner", 2), ("layers", 30)):
        for n in range(count):
            block = net.inside(f"{name}.{n}")
            block.linear("attention.qkv", 3 * width, width, bias=False)
            block.linear("attention.out", width, width, bias=False)
            block.one("attention.q_norm.weight", 128)
            block.one("attention.k_norm.weight", 128)
            for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                block.one(f"{norm}.weight", width)
            block.linear("feed_forward.w1", 10240, width, bias=False)
            block.linear("feed_forward.w2", width, 10240, bias=False)
            block.linear("feed_forward.w3", 10240, width, bias=False)
            if name != "context_refiner":
                block.linear("adaLN_modulation.0", 4 * width, 256)
    net.linear("final_layer.linear", 64, width)
    net.linear("final_layer.adaLN_modulation.1", width, 256)
    return net.shapes


def anima_network() -> Shapes:
    """Return the network of Anima: that of Cosmos-Predict2 2B and an adapter for its text encoder."""
    net, width = _Names(NETWORK), 2048
    net.linear("x_embedder.proj.1", width, 68, bias=False)
    net.linear("t_embedder.1.linear_1", width, width, bias=False)
    net.linear("t_embedder.1.linear_2", 3 * width, width, bias=False)
    net.one("t_embedding_norm.weight", width)
    for n in range(28):
        block = net.inside(f"blocks.{n}")
        for name, inputs in (("self_attn", width), ("cross_attn", 1024)):
            block.linear(f"{name}.q_proj", width, width, bias=False)
            block.linear(f"{name}.k_proj", width, inputs, bias=False)
            block.linear(f"{name}.v_proj", width, inputs, bias=False)
            block.linear(f"{name}.output_proj", width, width, bias=False)
            block.one(f"{name}.q_norm.weight", 128)
            block.one(f"{name}.k_norm.weight", 128)
        block.linear("mlp.layer1", 4 * width, width, bias=False)
        block.linear("mlp.layer2", width, 4 * width, bias=False)
        for name in ("self_attn", "cross_attn", "mlp"):
            block.linear(f"adaln_modulation_{name}.1", 256, width, bias=False)
            block.linear(f"adaln_modulation_{name}.2", 3 * width, 256, bias=False)
    net.linear("final_layer.linear", 64, width, bias=False)
    net.linear("final_layer.adaln_modulation.1", 256, width, bias=False)
    net.linear("final_layer.adaln_modulation.2", 2 * width, 256, bias=False)
    adapter, width = net.inside("llm_adapter"), 1024
    adapter.one("embed.weight", 32128, width)
    for n in range(6):
        block = adapter.inside(f"blocks.{n}")
        for name in ("self_attn", "cross_attn"):
            block.one(f"norm_{name}.weight", width)
            for matrix in ("q_proj", "k_proj", "v_proj", "o_proj"):
                block.linear(f"{name}.{matrix}", width, width, bias=False)
            block.one(f"{name}.q_norm.weight", 64)
            block.one(f"{name}.k_norm.weight", 64)
        block.one("norm_mlp.weight", width)
        block.linear("mlp.0", 4 * width, width)
        block.linear("mlp.2", width, 4 * width)
    adapter.linear("out_proj", width, width)
    adapter.one("norm.weight", width)
    return net.shapes


def wan_network(
    width: int, inner: int, blocks: int, inputs: int = 16, outputs: int = 16, *, image: bool = False
) -> Shapes:
    """Return the network of Wan 2.1; with `image`, that of image-to-video."""
    net = _Names(NETWORK)
    net.linear("patch_embedding", width, inputs, 1, 2, 2)
    net.linear("text_embedding.0", width, 4096)
    net.linear("text_embedding.2", width, width)
    net.linear("time_embedding.0", width, 256)
    net.linear("time_embedding.2", width, width)
    net.linear("time_projection.1", 6 * width, width)
    if image:
        net.norm("img_emb.proj.0", 1280)
        net.linear("img_emb.proj.1", 1280, 1280)
        net.linear("img_emb.proj.3", width, 1280)
        net.norm("img_emb.proj.4", width)
    for n in range(blocks):
        block = net.inside(f"blocks.{n}")
        block.one("modulation", 1, 6, width)
        for name in ("self_attn", "cross_attn"):
            for matrix in "qkvo":
                block.linear(f"{name}.{matrix}", width, width)
            block.one(f"{name}.norm_q.weight", width)
            block.one(f"{name}.norm_k.weight", width)
        if image:
            block.linear("cross_attn.k_img", width, width)
            block.linear("cross_attn.v_img", width, width)
            block.one("cross_attn.norm_k_img.weight", width)
        block.norm("norm3", width)
        block.linear("ffn.0", inner, width)
        block.linear("ffn.2", width, inner)
    net.one("head.modulation", 1, 2, width)
    net.linear("head.head", 4 * outputs, width)
    return net.shapes


def _stable_diffusion_3(network: Shapes) -> Shapes:
    encoders = "text_encoders."
    return {
        **network,
        **clip(f"{encoders}clip_l.", 12, 768, projection=True),
        **clip(f"{encoders}clip_g.", 32, 1280, projection=True),
        **t5(f"{encoders}t5xxl."),
        f"{encoders}t5xxl.logit_scale": (),
        **ldm_vae("first_stage_model.", 16, quant=False),
    }


def _beside(network: Shapes, *others: Shapes) -> Shapes:
    return {
        name: shape for part in (network, *others, ldm_vae("vae.", 16, quant=False)) for name, shape in part.items()
    }


SD2_UNET = (320, (1, 1, 1, 0), 1, 1024)
REFINER_UNET = (384, (0, 4, 4, 0), 4, 1280)

MODELS: dict[str, Callable[[], Shapes]] = {
    "sd2": lambda: {
        **ldm_unet(*SD2_UNET),
        **openclip("cond_stage_model.model.", 24, 1024),
        **ldm_vae("first_stage_model."),
    },
    "sdxl-refiner": lambda: {
        **ldm_unet(*REFINER_UNET, conditioning=2560),
        **openclip("conditioner.embedders.0.model.", 32, 1280),
        **ldm_vae("first_stage_model."),
    },
    "sd3-medium": lambda: _stable_diffusion_3(mmdit(1536, 24, 36864)),
    "sd35-medium": lambda: _stable_diffusion_3(mmdit(1536, 24, 147456, norms=True, second=13)),
    "sd35-large": lambda: _stable_diffusion_3(mmdit(2432, 38, 36864, norms=True)),
    "flux": lambda: _beside(flux_network(), clip("text_encoders.clip_l.", 12, 768), t5("text_encoders.t5xxl.")),
    "chroma": lambda: _beside(flux_network(distilled=True), t5("text_encoders.t5xxl.")),
    "qwen-image": lambda: {
        **qwen_network(),
        **language_model("text_encoders.qwen25_7b.transformer.model.", 28, 3584),
        "vae.conv2.weight": (16, 16, 1, 1, 1),
    },
    "z-image": lambda: _beside(
        z_image_network(), language_model("text_encoders.qwen3_4b.transformer.model.", 36, 2560)
    ),
    "anima": lambda: {
        **anima_network(),
        **language_model("text_encoders.qwen3_06b.transformer.model.", 28, 1024),
    },
    "wan21": lambda: {**wan_network(1536, 8960, 30), **t5("text_encoders.umt5xxl.", 256384, every=True)},
}
"""A whole checkpoint of each family, {layout: function that returns its shapes by canonical name}."""


def network_of(shapes: Mapping[str, Shape]) -> Shapes:
    """Return the tensors of the UNet or transformer, by the names of bare files."""
    return {name.removeprefix(NETWORK): shape for name, shape in shapes.items() if name.startswith(NETWORK)}


# Layers of text encoders after the first, except OpenCLIP's last, and levels of a VAE after the first.
_FURTHER = re.compile(
    r"(text_encoders|cond_stage_model|conditioner)\..*\.(layers|block|resblocks)\.(?!0\.|23\.)\d+\."
    r"|(first_stage_model|vae)\..*\.(down|up)\.[1-3]\."
)


def tiny(shapes: Mapping[str, Shape], width: int = 3) -> Shapes:
    """Return a small model with the same network.

    Axes have `width` numbers at most, except those that identify the family. Text encoders have one layer, OpenCLIP's
    layer 23 besides, and VAEs one level.
    """
    found: Shapes = {}
    for name, shape in shapes.items():
        if _FURTHER.match(name):
            continue
        axis = _MEASURED.get(name.removeprefix(NETWORK))
        found[name] = tuple(size if n == axis else min(size, width) for n, size in enumerate(shape))
    return found


def _drawn(shapes: Mapping[str, Shape], random: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in shapes.items():
        yield name, torch.randn(shape, generator=random)


def make_family(
    folder: Path, shapes: Mapping[str, Shape], numbers: Sequence[Callable[[str], float]], seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    """Write base, fine1, fine2 ... and target.safetensors, and return their tensors.

    Args:
        folder: The folder.
        shapes: The shapes by name.
        numbers: For each finetune, its share of a tensor of the target by the tensor's name:
            target = base + sum over finetunes of share x (finetune - base), computed in float64.
        seed: The seed of all values.
    """
    random = torch.Generator().manual_seed(seed)
    base = dict(_drawn(shapes, random))
    tensors = {"base": base}
    for n in range(1, len(numbers) + 1):
        tensors[f"fine{n}"] = {name: base[name] + 0.2 * value for name, value in _drawn(shapes, random)}
    tensors["target"] = {
        name: (
            value.double()
            + sum(
                share(name) * (tensors[f"fine{n}"][name].double() - value.double())
                for n, share in enumerate(numbers, start=1)
            )
        ).float()
        for name, value in base.items()
    }
    for name, contents in tensors.items():
        save_file(contents, folder / f"{name}.safetensors")
    return tensors
