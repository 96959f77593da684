"""Merging as the formulas say it, step after step on whole tensors: what the code under test is compared with."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

BLOCKS = ("BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12)))

Tensors = dict[str, torch.Tensor]


def block_of(name: str) -> str:
    """The block of a tensor by its LDM name, as SuperMerger counts."""
    if found := re.match(r"model\.diffusion_model\.(input|output)_blocks\.(\d+)\.", name):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}"
    for prefix, block in (("middle_block.", "M00"), ("time_embed.", "IN00"), ("out.", "OUT11")):
        if name.startswith("model.diffusion_model." + prefix):
            return block
    return "BASE"


def merged_names(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The tensors that merge: floating-point ones named weight or bias, but no EMA copies."""
    return [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and name.endswith((".weight", ".bias")) and not name.startswith("model_ema.")
    ]


def merge_by_steps(
    steps: Sequence[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, torch.Tensor]],
    dtype: torch.dtype = torch.float64,
    block: Callable[[str], str] = block_of,
) -> dict[str, Tensors]:
    """What each step holds, {step: {tensor name: value}}, computed in `dtype`.

    `steps` come in order of evaluation, each with name, mode, a, b, c and alpha {block: number} (0 where unnamed).
    """
    known: dict[str, Tensors] = {
        name: {key: tensors[key].to(dtype) for key in merged_names(tensors)} for name, tensors in models.items()
    }
    for step in steps:
        first, second = known[step["a"]], known[step["b"]]
        third = known[step["c"]] if step["mode"] == "add_difference" else None
        result: Tensors = {}
        for name in dict.fromkeys([*first, *second]):
            alpha = step["alpha"].get(block(name), 0.0)
            if name not in first:
                result[name] = second[name]
            elif name not in second or (third is not None and name not in third):
                result[name] = first[name]
            elif third is not None:
                result[name] = first[name] + (second[name] - third[name]) * alpha
            else:
                result[name] = first[name] * (1 - alpha) + second[name] * alpha
        known[step["name"]] = result
    return {step["name"]: known[step["name"]] for step in steps}
