"""Export to sd-webui-model-mixer: the JSON with all steps for its "Load from metadata".

model-mixer merges one chain: model A, then one model in each step, with numbers by block for each step. All Add-Diff
steps subtract the same base model. model-mixer keeps model A's VAE, and moves time_embed by the last block (its setting
"Merge Extra Elements" is on by default). It finds checkpoints by name in the WebUI's folder, and shows up to "Maximum
Merge models" of them, a setting: 3 by default, 5 at most.

Merges are linear, so every recipe over at most six sources is also one chain: a source, and for each other source the
difference from it times the coefficient in the block. The export is this chain where the recipe's own steps are none
that model-mixer can merge, or begin with another model than that of the VAE. An approximation keeps one source's VAE,
and moves time_embed as model-mixer does.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from optimizer.errors import RecipeError
from optimizer.interchange.exports.approximation import Approximation, Change, moved_changes
from optimizer.interchange.exports.placement import (
    CONVERTIBLE,
    file_text,
    listed,
    mapping_problems,
    vae_shares,
)
from optimizer.recipes import Alpha, Recipe, Step, block_coefficients

__all__ = ["approximate_for_model_mixer", "model_mixer_notes", "write_model_mixer"]

_MODES = {"weight_sum": "Sum", "add_difference": "Add-Diff"}
_MOST_STEPS = 5
_MAPPING = "model-mixer"


def write_model_mixer(recipe: Recipe) -> str:
    """Return the metadata of a finished recipe.

    Args:
        recipe: A recipe without free alphas.

    Returns:
        The metadata as JSON.

    Raises:
        RecipeError: If the recipe has more than six sources and is no chain of at most five steps that model-mixer
            merges, if its mapping would move some tensors differently, or if model A is not that of the VAE.

    """
    recipe = _as_chain(recipe)
    steps = _chain(recipe)
    problems = [
        *_chain_problems(recipe, steps),
        *mapping_problems(recipe, steps, _MAPPING, "model-mixer", convertible=True),
        *_vae_problems(recipe, steps),
    ]
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


def model_mixer_notes(recipe: Recipe) -> list[str]:
    """Return a sentence if the export has other steps than the recipe."""
    chain = _as_chain(recipe)
    if chain is recipe:
        return []
    added = ", ".join(step.b for step in chain.steps)
    same = "with the same coefficients in every block"
    return [
        f"steps: model-mixer cannot merge the recipe's; written as Add-Diff of {added} on {chain.steps[0].a}, {same}"
    ]


def approximate_for_model_mixer(recipe: Recipe) -> Approximation:
    """Return the recipe with the VAE of model A, and with time_embed moved as model-mixer does."""
    changes: list[Change] = []
    shares = vae_shares(recipe)
    if shares and list(shares.values()) != [1.0]:
        recipe = replace(recipe, vae=max(shares, key=lambda name: shares[name]))
    chain, notes = _as_chain(recipe), model_mixer_notes(recipe)
    steps = _chain(chain)
    if shares:
        chain = replace(chain, vae=steps[0].a)
        if shares != vae_shares(chain):
            before = " + ".join(f"{value:.4g} x {name}" if value != 1 else name for name, value in shares.items())
            changes.append(Change("vae", None, before, steps[0].a, "model-mixer keeps model A's VAE"))
    changes += moved_changes(chain, steps, _MAPPING, "model-mixer")
    return Approximation(replace(chain, mapping=_MAPPING), tuple(changes), tuple(notes))


def _as_chain(recipe: Recipe) -> Recipe:
    """Return the recipe, or the same merge as Add-Diff steps on one source if model-mixer cannot merge its own steps.

    The recipe is returned too if it has too many sources for that.
    """
    steps, shares = _chain(recipe), vae_shares(recipe)
    of_vae = next(iter(shares)) if list(shares.values()) == [1.0] else None
    first = of_vae or recipe.first_model()
    if not _chain_problems(recipe, steps) and steps[0].a == first:
        return recipe
    rows = block_coefficients(recipe)
    others = [name for name, row in rows.items() if name != first and any(row.values())]
    # A model alone is a chain too, of one difference times 0.
    others = others or [name for name in rows if name != first][:1] or [first]
    if len(others) > _MOST_STEPS:
        return recipe
    names = [f"{recipe.output}_{number}" for number in range(1, len(others))] + [recipe.output]
    made = tuple(
        Step(name, "add_difference", before, other, first, Alpha(rows[other]))
        for name, before, other in zip(names, [first, *names], others, strict=False)
    )
    models = {name: model for name, model in recipe.models.items() if name in (first, *others)}
    if any(step.name in models for step in made):
        return recipe
    return replace(recipe, models=models, steps=made, output=recipe.output, vae=of_vae)


def _vae_problems(recipe: Recipe, steps: Sequence[Step]) -> list[str]:
    """Return a line if the recipe copies the VAE of another model than model A."""
    if recipe.vae is None or recipe.vae == steps[0].a:
        return []
    kept = f"model-mixer keeps the VAE of model A, {steps[0].a!r}"
    ways = f"set vae: {steps[0].a}, or export to comfyui or mecha; {CONVERTIBLE}"
    return [f"vae: received {recipe.vae!r}; {kept}; {ways}"]


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
