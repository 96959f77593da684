"""Export to sd-webui-model-mixer: the JSON with all steps for its "Load from metadata".

model-mixer merges one chain: model A, then one model in each step, with numbers by block for each step. All Add-Diff
steps subtract the same base model. model-mixer keeps model A's VAE, and moves time_embed by the last block (its setting
"Merge Extra Elements" is on by default). It finds checkpoints by name in the WebUI's folder, and shows up to "Maximum
Merge models" of them, a setting: 3 by default, 5 at most.
"""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from optimizer.errors import RecipeError
from optimizer.interchange.exports.placement import file_text, listed, mapping_problems
from optimizer.recipes import Recipe, Step

__all__ = ["write_model_mixer"]

_MODES = {"weight_sum": "Sum", "add_difference": "Add-Diff"}
_MOST_STEPS = 5


def write_model_mixer(recipe: Recipe) -> str:
    """Return the metadata of a finished recipe.

    Args:
        recipe: A recipe without free alphas.

    Returns:
        The metadata as JSON.

    Raises:
        RecipeError: If a mode is neither weight_sum nor add_difference, the steps are no chain or more than five, the
            differences are from more than one model, or model-mixer's mapping would move some tensors differently.

    """
    steps = _chain(recipe)
    problems = [*_chain_problems(recipe, steps), *mapping_problems(recipe, steps, "model-mixer", "model-mixer")]
    if problems:
        raise RecipeError(problems)
    weights = [[step.alpha.at(block) for block in recipe.layout.blocks] for step in steps]
    texts = [",".join(f"{number:.12g}" for number in row) for row in weights]
    base = next((step.c for step in steps if step.c is not None), None)
    every: list[bool] = [True] * len(steps)
    data: dict[str, Any] = {
        "type": "sd-webui-model-mixer",
        "mapping": "model-mixer",  # model-mixer ignores this field; it is for people
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
        # model-mixer writes one of these names and reads the other.
        "use_mbws": every,
        "use_mbw": every,
    }
    data |= {f"model_{_letter(position)}": _stem(recipe, step.b) for position, step in enumerate(steps)}
    data["recipe"] = _formula(recipe, steps) + ",".join(f"({text})" for text in texts)
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _chain(recipe: Recipe) -> tuple[Step, ...]:
    """Return the steps from the first file along the inputs `a` to the output, in order of evaluation."""
    steps = [recipe.step(recipe.output)]
    while steps[-1].a not in recipe.models:
        steps.append(recipe.step(steps[-1].a))
    return tuple(reversed(steps))


def _chain_problems(recipe: Recipe, steps: Sequence[Step]) -> list[str]:
    """Return a line for each part of a chain that model-mixer cannot merge."""
    elsewhere = "or export to comfyui or mecha"
    bases = [(step.name, step.c) for step in steps if step.mode == "add_difference" and step.c in recipe.models]
    modes, nested, subtracted = (dict[str, list[str]]() for _ in range(3))
    for step in steps:
        where = f"steps.{step.name}"
        if step.mode not in _MODES:
            modes.setdefault(step.mode, []).append(f"{where}.mode")
        for place, name in step.inputs.items():
            if place != "a" and name not in recipe.models:
                nested.setdefault(name, []).append(f"{where}.{place}")
        if step.c is not None and (step.name, step.c) in bases and step.c != bases[0][1]:
            subtracted.setdefault(step.c, []).append(f"{where}.c")
    problems = [
        f"{listed(places)}: received {mode}; model-mixer merges one model a step ({', '.join(_MODES)}); write it as "
        f"two steps, {elsewhere}"
        for mode, places in modes.items()
    ]
    problems += [
        f"{listed(places)}: received the step {name!r}; model-mixer takes only files beside its one chain of steps; "
        f"make a file of {name!r} first (`merge(step=...)`), {elsewhere}"
        for name, places in nested.items()
    ]
    problems += [
        f"{listed(places)}: received {name!r}; model-mixer subtracts the same base model in every step, "
        f"{bases[0][1]!r} in steps.{bases[0][0]}; make a file of the steps before it first (`merge(step=...)`), "
        f"{elsewhere}"
        for name, places in subtracted.items()
    ]
    if len(steps) > _MOST_STEPS:
        problems.append(
            f"steps: {recipe.output} is a chain of {len(steps)}; model-mixer merges at most {_MOST_STEPS} models into "
            f"model A; make a file of steps.{steps[_MOST_STEPS - 1].name} first (`merge(step=...)`), {elsewhere}"
        )
    return problems


def _letter(position: int) -> str:
    """Return model-mixer's letter for the model of a step."""
    return "bcdef"[position]


def _stem(recipe: Recipe, model: str) -> str:
    """Return a model's file name without folder and extension."""
    return PurePosixPath(file_text(recipe.models[model].file)).stem


def _title(recipe: Recipe, model: str) -> str:
    """Return the WebUI's title of a model: file name [first 10 digits of the sha256]."""
    name = PurePosixPath(file_text(recipe.models[model].file)).name
    sha256 = recipe.models[model].sha256
    return name if sha256 is None else f"{name} [{sha256[:10]}]"


def _formula(recipe: Recipe, steps: Sequence[Step]) -> str:
    """Return the chain as a formula of file names and alphas."""
    text = _stem(recipe, steps[0].a)
    for position, step in enumerate(steps):
        added, alpha = _stem(recipe, step.b), f"alpha_{position}"
        before = text if position == 0 else f"({text})"
        if step.c is None:
            text = f"{before} * (1 - {alpha}) + {added} * {alpha}"
        else:
            text = f"{before} + ({added} - {_stem(recipe, step.c)}) * {alpha}"
    return text
