"""Tiny text encoders with SDXL's layers, heads and vocabulary, and their hidden states by independent code."""

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

L, G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
TOKENS = 49408
# Widths of the encoders, two numbers for each attention head, and of the layers between.
WIDTHS = {L: (24, 48), G: (40, 72)}
UNET = "model.diffusion_model."
# What a file needs to be SDXL with a VAE.
OTHER_SHAPES = {
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
    "first_stage_model.decoder.conv_out.weight": (3, 8, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    UNET + "input_blocks.0.0.weight": (8, 4, 3, 3),
    UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 2048),
    UNET + "label_emb.0.0.weight": (8, 2816),
    **{
        f"{UNET}{block}.1.transformer_blocks.9.attn1.to_q.weight": (8, 8)
        for block in ("input_blocks.7", "input_blocks.8", "middle_block")
    },
    UNET + "output_blocks.8.0.in_layers.0.weight": (8,),
}


# Scales of normalizations, which are near 1.
_SCALES = ("norm.weight", "norm1.weight", "norm2.weight", "ln_1.weight", "ln_2.weight", "ln_final.weight")


def clip_shapes(layers=12):
    """Return the shapes of the CLIP-L's tensors by name."""
    width, inner = WIDTHS[L]
    shapes = {
        L + "embeddings.token_embedding.weight": (TOKENS, width),
        L + "embeddings.position_embedding.weight": (77, width),
        **_layer(L + "final_layer_norm", width),
    }
    for n in range(layers):
        layer = f"{L}encoder.layers.{n}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{layer}.self_attn.{name}", width, width)
        shapes |= _layer(f"{layer}.mlp.fc1", inner, width) | _layer(f"{layer}.mlp.fc2", width, inner)
        shapes |= _layer(f"{layer}.layer_norm1", width) | _layer(f"{layer}.layer_norm2", width)
    return shapes


def openclip_shapes(prefix=G, layers=32, width=WIDTHS[G][0], inner=WIDTHS[G][1]):
    """Return the shapes of an OpenCLIP text encoder's tensors by name."""
    shapes = {
        prefix + "token_embedding.weight": (TOKENS, width),
        prefix + "positional_embedding": (77, width),
        prefix + "text_projection": (width, width),
        prefix + "logit_scale": (),
        **_layer(prefix + "ln_final", width),
    }
    for n in range(layers):
        layer = f"{prefix}transformer.resblocks.{n}"
        shapes |= {f"{layer}.attn.in_proj_weight": (3 * width, width), f"{layer}.attn.in_proj_bias": (3 * width,)}
        shapes |= _layer(f"{layer}.attn.out_proj", width, width)
        shapes |= _layer(f"{layer}.mlp.c_fc", inner, width) | _layer(f"{layer}.mlp.c_proj", width, inner)
        shapes |= _layer(f"{layer}.ln_1", width) | _layer(f"{layer}.ln_2", width)
    return shapes


def _layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def drawn(shapes, seed, around=None, distance=1.0):
    """Return tensors of these shapes; `around` others, `distance` times as far from them as they are from 0."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        value = 0.3 * torch.randn(shape, generator=random)
        if around is None:
            found[name] = value + 1.0 if name.endswith(_SCALES) and len(shape) == 1 else value
        else:
            found[name] = around[name] + distance * value
    return found


def write_family(folder, names, shapes):
    """Write files of these names around the first, and return their tensors by name."""
    tensors = {}
    for seed, name in enumerate(names):
        tensors[name] = drawn(shapes, seed, next(iter(tensors.values()), None), 0.4)
        save_file(tensors[name], folder / f"{name}.safetensors")
    return tensors


def padded(tokenizer, prompts):
    """Return the prompts' tokens padded to 77, int64 [prompts, 77], and the number of tokens of each prompt."""
    tokens = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"].sum(dim=1).tolist()


def side_by_side(tensors, tokens, skip):
    """Return hidden_states[-skip] of SDXL's encoders side by side, float64 [prompts, 77, 64], all layers computed.

    transformers has the models. The CLIP-G's tensors are converted by diffusers.
    """
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    width, inner = WIDTHS[L]
    first = CLIPTextModel(_configuration(width, inner, 12, 12, "quick_gelu")).eval()
    within = getattr(first, "text_model", first)  # before transformers 5.6
    within.load_state_dict({name: tensors[L + name] for name in within.state_dict()})
    width, inner = WIDTHS[G]
    second = CLIPTextModelWithProjection(_configuration(width, inner, 32, 20, "gelu")).eval()
    missing, _ = second.load_state_dict(convert_open_clip_checkpoint(second, tensors, prefix=G), strict=False)
    assert not missing
    with torch.no_grad():
        states = [model(tokens, output_hidden_states=True).hidden_states[-skip] for model in (first, second)]
    return torch.cat(states, dim=-1).double()


def _configuration(width, inner, layers, heads, activation):
    return CLIPTextConfig(
        vocab_size=TOKENS, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, hidden_act=activation, projection_dim=width, max_position_embeddings=77,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip


def openclip_states(tensors, tokens, *, prefix, layers, heads, normalized):
    """Return the states after so many layers, float64 [prompts, 77, width], by torch's own attention.

    The order of operations, and the names, are those of OpenCLIP's residual attention blocks.
    """
    width = tensors[prefix + "positional_embedding"].shape[1]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    attention = nn.MultiheadAttention(width, heads, batch_first=True).eval()

    def norm(name, states):
        return nn.functional.layer_norm(states, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def linear(name, states):
        return states @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    with torch.no_grad():
        states = tensors[prefix + "token_embedding.weight"][tokens] + tensors[prefix + "positional_embedding"]
        for n in range(layers):
            layer = f"{prefix}transformer.resblocks.{n}"
            own = {name: tensors[f"{layer}.attn.{name}"] for name in attention.state_dict()}
            attention.load_state_dict(own)
            inputs = norm(f"{layer}.ln_1", states)
            states = states + attention(inputs, inputs, inputs, need_weights=False, attn_mask=mask)[0]
            inner = nn.functional.gelu(linear(f"{layer}.mlp.c_fc", norm(f"{layer}.ln_2", states)))
            states = states + linear(f"{layer}.mlp.c_proj", inner)
        return (norm(prefix + "ln_final", states) if normalized else states).double()


def mean_cosine(candidate, target, lengths):
    """Return the mean over prompts of the mean cosine over the tokens that are no padding."""
    cosines = nn.functional.cosine_similarity(candidate, target, dim=-1)
    return sum(float(row[:length].mean()) for row, length in zip(cosines, lengths, strict=True)) / len(lengths)
