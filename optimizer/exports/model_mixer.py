"""Export to sd-webui-model-mixer: the JSON that its "Load from metadata" takes, steps and all.

It merges one chain: model A, then one model a step, each step with 26 numbers of its own; every Add-Diff step subtracts
the one base model. It merges time_embed by OUT11 and leaves the VAE at model A (its setting "Merge Extra Elements" is
on by default). It knows checkpoints by name, from the WebUI's own folder, and shows as many as its setting "Maximum
Merge models" says: 3 unless raised, at most 5.
"""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from optimizer.errors import RecipeError
from optimizer.exports.placement import file_text, mapping_problems
from optimizer.recipes import Recipe, Step

__all__ = ["write_model_mixer"]

_MODES = {"weight_sum": "Sum", "add_difference": "Add-Diff"}
_MOST_STEPS = 5


def write_model_mixer(recipe: Recipe) -> str:
    """The metadata as JSON.

    Raises RecipeError for modes other than weight_sum and add_difference, steps that are no chain, differences from
    more than one model, more than five steps, and alphas that model-mixer's mapping would move elsewhere.
    """
    steps = recipe.ancestors()
    problems = [*_chain_problems(recipe, steps), *mapping_problems(recipe, "model-mixer", "model-mixer")]
    if problems:
        raise RecipeError(problems)
    weights = [[step.alpha.at(block) for block in recipe.layout.blocks] for step in steps]
    texts = [",".join(f"{number:.12g}" for number in row) for row in weights]
    base = next((step.c for step in steps if step.c is not None), None)
    every: list[bool] = [True] * len(steps)
    data: dict[str, Any] = {
        "type": "sd-webui-model-mixer",
        "blocks": ",".join(recipe.layout.blocks),
        "mbw": True,
        "weights_alpha": weights,
        "weights_alpha_orig": texts,
        "alpha": [row[0] for row in weights],
        "model_a": _title(recipe, steps[0].a),
        "base_model": None if base is None else _title(recipe, base),
        "mode": [_MODES[step.mode] for step in steps],
        "calcmode": ["Normal"] * len(steps),
        "elemental": [""] * len(steps),
        "use_elemental": [False] * len(steps),
        "adjust": "",
        "uses": every,
        # Its writer and its reader disagree about this name.
        "use_mbws": every,
        "use_mbw": every,
    }
    data |= {f"model_{_letter(position)}": _stem(recipe, step.b) for position, step in enumerate(steps)}
    data["recipe"] = _formula(recipe, steps) + ",".join(f"({text})" for text in texts)
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _chain_problems(recipe: Recipe, steps: Sequence[Step]) -> list[str]:
    problems: list[str] = []
    advice = "merge the other steps into files first (blockfit merge --step), or export to comfyui or mecha"
    first_difference = next((step for step in steps if step.mode == "add_difference"), None)
    for position, step in enumerate(steps):
        where = f"steps.{step.name}"
        if step.mode not in _MODES:
            problems.append(
                f"{where}.mode: received {step.mode}; model-mixer merges one model a step ({', '.join(_MODES)}); "
                "write it as two steps, or export to mecha"
            )
        expected = steps[position - 1].name if position else None
        if expected is None and step.a not in recipe.models:
            problems.append(f"{where}.a: received {step.a!r}; model-mixer's model A is a file; {advice}")
        elif expected is not None and step.a != expected:
            problems.append(
                f"{where}.a: received {step.a!r}; model-mixer merges one chain, so it must be {expected!r}, "
                f"the step before; {advice}"
            )
        if step.b not in recipe.models:
            problems.append(f"{where}.b: received the step {step.b!r}; model-mixer adds only files; {advice}")
        if step.mode == "add_difference" and first_difference is not None:
            if step.c not in recipe.models:
                problems.append(f"{where}.c: received the step {step.c!r}; model-mixer subtracts only files; {advice}")
            elif step.c != first_difference.c and first_difference.c in recipe.models:
                problems.append(
                    f"{where}.c: received {step.c!r}; model-mixer subtracts one base model in every step, and "
                    f"steps.{first_difference.name} has {first_difference.c!r}; {advice}"
                )
    if len(steps) > _MOST_STEPS:
        problems.append(
            f"steps: {recipe.output} takes {len(steps)}; model-mixer merges at most {_MOST_STEPS} models into model A; "
            f"{advice}"
        )
    return problems


def _letter(position: int) -> str:
    return "bcdef"[position]


def _stem(recipe: Recipe, model: str) -> str:
    return PurePosixPath(file_text(recipe.models[model].file)).stem


def _title(recipe: Recipe, model: str) -> str:
    name = PurePosixPath(file_text(recipe.models[model].file)).name
    sha256 = recipe.models[model].sha256
    return name if sha256 is None else f"{name} [{sha256[:10]}]"


def _formula(recipe: Recipe, steps: Sequence[Step]) -> str:
    text = _stem(recipe, steps[0].a)
    for position, step in enumerate(steps):
        other, alpha = _stem(recipe, step.b), f"alpha_{position}"
        before = text if position == 0 else f"({text})"
        if step.c is None:
            text = f"{before} * (1 - {alpha}) + {other} * {alpha}"
        else:
            text = f"{before} + ({other} - {_stem(recipe, step.c)}) * {alpha}"
    return text
