"""Merging and similarity by their formulas on whole tensors, as the reference for the code under test."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

BLOCKS = ("BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12)))

# Blocks with self-attention, in the order of evaluation.
ATTENTION = {
    **{f"IN{n:02}": f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)},
    "M00": "middle_block.1",
    **{f"OUT{n:02}": f"output_blocks.{n}.1" for n in range(3, 12)},
}

Tensors = dict[str, torch.Tensor]


def block_of(name: str) -> str:
    """Return the block of a tensor by its LDM name, as in SuperMerger."""
    if found := re.match(r"model\.diffusion_model\.(input|output)_blocks\.(\d+)\.", name):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}"
    for prefix, block in (("middle_block.", "M00"), ("time_embed.", "IN00"), ("out.", "OUT11")):
        if name.startswith("model.diffusion_model." + prefix):
            return block
    return "BASE"


def block_of_mecha(name: str) -> str:
    """Return the block of a tensor as in sd-mecha: time_embed belongs to BASE."""
    return "BASE" if name.startswith("model.diffusion_model.time_embed.") else block_of(name)


def block_of_model_mixer(name: str) -> str | None:
    """Return the block of a tensor as in model-mixer: OUT11 for time_embed, None for the VAE, which stays as in A."""
    if name.startswith("first_stage_model."):
        return None
    return "OUT11" if name.startswith("model.diffusion_model.time_embed.") else block_of(name)


BLOCK_OF = {"supermerger": block_of, "mecha": block_of_mecha, "model-mixer": block_of_model_mixer}

SDXL_BLOCKS = ("BASE", *(f"IN{n:02}" for n in range(9)), "M00", *(f"OUT{n:02}" for n in range(9)))

# The transformer blocks with self-attention of each block of SDXL, in the order of evaluation.
SDXL_ATTENTION = {
    block: [f"{place}.1.transformer_blocks.{n}" for n in range(depth)]
    for block, place, depth in (
        *((f"IN{n:02}", f"input_blocks.{n}", 2) for n in (4, 5)),
        *((f"IN{n:02}", f"input_blocks.{n}", 10) for n in (7, 8)),
        ("M00", "middle_block", 10),
        *((f"OUT{n:02}", f"output_blocks.{n}", 10) for n in (0, 1, 2)),
        *((f"OUT{n:02}", f"output_blocks.{n}", 2) for n in (3, 4, 5)),
    )
}

# What each tool does with the tensors of SDXL outside the blocks of the UNet and the layers of the text encoders; None:
# it leaves them as in A.
_SDXL_PLACES = {
    "supermerger": ("IN00", "IN00", None, None, None, "BASE"),
    "mecha": ("BASE", "BASE", "BASE", "BASE", "BASE", "BASE"),
    "model-mixer": ("OUT08", None, "BASE", None, None, None),
    "comfyui": ("IN00", "IN00", "BASE", "BASE", None, None),
}


def block_of_sdxl(name: str, mapping: str) -> str | None:
    """Return the block of a tensor of SDXL by its name in sgm, as in the tool of this mapping."""
    special = (
        "model.diffusion_model.time_embed.",
        "model.diffusion_model.label_emb.",
        "conditioner.embedders.1.model.positional_embedding",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.logit_scale",
        "first_stage_model.",
    )
    for start, block in zip(special, _SDXL_PLACES[mapping], strict=True):
        if name.startswith(start):
            return block
    return "OUT08" if name.startswith("model.diffusion_model.out.") else block_of(name)


def merged_names(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the tensors that are merged: floating-point ones of parameters, except EMA copies."""
    ends = ("weight", "bias", ".positional_embedding", ".text_projection", ".logit_scale")
    return [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and name.endswith(ends) and not name.startswith("model_ema.")
    ]


def as_dicts(steps: Iterable[Any]) -> list[dict[str, Any]]:
    """Return a recipe's steps for `merge_by_steps`."""
    return [
        {"name": step.name, "mode": step.mode, **step.inputs, **{k: dict(a.values) for k, a in step.alphas.items()}}
        for step in steps
    ]


def merge_by_steps(
    steps: Sequence[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, torch.Tensor]],
    dtype: torch.dtype = torch.float64,
    block: Callable[[str], str | None] = block_of,
) -> dict[str, Tensors]:
    """Return the result of each step, {step: {tensor name: value}}, computed in `dtype` by SuperMerger's formulas.

    `steps` are in the order of evaluation. Each has name, mode, a, b, c, and alpha and beta as {block: number}, 0 where
    unnamed. A tensor that b or c lacks is taken from a; a tensor that a lacks is taken from b.
    """
    known: dict[str, Tensors] = {
        name: {key: tensors[key].to(dtype) for key in merged_names(tensors)} for name, tensors in models.items()
    }
    for step in steps:
        a, b = known[step["a"]], known[step["b"]]
        c = known[step["c"]] if step.get("c") else None
        result: Tensors = {}
        for name in dict.fromkeys([*a, *b]):
            alpha, beta = (step.get(symbol, {}).get(block(name), 0.0) for symbol in ("alpha", "beta"))
            if name not in a:
                result[name] = b[name]
            elif name not in b or (c is not None and name not in c):
                result[name] = a[name]
            elif c is None:
                result[name] = a[name] * (1 - alpha) + b[name] * alpha
            elif step["mode"] == "add_difference":
                result[name] = a[name] + (b[name] - c[name]) * alpha
            elif step["mode"] == "triple_sum":
                result[name] = a[name] * (1 - alpha - beta) + b[name] * alpha + c[name] * beta
            else:
                assert step["mode"] == "sum_twice"
                result[name] = (a[name] * (1 - alpha) + b[name] * alpha) * (1 - beta) + c[name] * beta
        known[step["name"]] = result
    return {step["name"]: known[step["name"]] for step in steps}


def explained_by_definition(
    merged: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Return 1 - |merged - target|^2 / |base - target|^2, at least -1, of each block."""
    sums: dict[str, list[list[torch.Tensor]]] = {}
    for name in merged_names(merged):
        if not name.startswith("first_stage_model."):
            left, whole = sums.setdefault(block_of(name), [[], []])
            left.append((merged[name].double() - target[name].double()).square().sum())
            whole.append((base[name].double() - target[name].double()).square().sum())
    return {block: max(float(1 - sum(left) / sum(whole)), -1.0) for block, (left, whole) in sums.items()}


def attention_by_definition(
    candidate: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    blocks: Sequence[str],
    seed: int,
    dtype: torch.dtype = torch.float32,
    attention: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Return {block: similarity} by rows of softmax(Q K') times the column sums of V, computed in `dtype`.

    `attention` has the transformer blocks of each block, by default those of Stable Diffusion 1.x. One X is drawn for
    each, and a block's similarity is their mean.
    """
    torch.manual_seed(seed)
    places = {block: [f"{place}.transformer_blocks.0"] for block, place in ATTENTION.items()}
    found = {}
    for block, inner in (attention or places).items():
        if block not in blocks:
            continue
        cosines = []
        for place in inner:
            outputs, inputs = [], None
            for tensors in (candidate, target):
                prefix = f"model.diffusion_model.{place}.attn1"
                query, key, value = (tensors[f"{prefix}.to_{which}.weight"].to(dtype) for which in "qkv")
                if inputs is None:
                    inputs = torch.randn(query.shape[0], query.shape[0]).to(dtype)
                q, k, v = inputs @ query.T, inputs @ key.T, inputs @ value.T
                outputs.append(torch.softmax(q @ k.T, dim=-1) * v.sum(dim=0))
            cosines.append(float(torch.nn.functional.cosine_similarity(*outputs, dim=-1).mean()))
        found[block] = sum(cosines) / len(cosines)
    return found
