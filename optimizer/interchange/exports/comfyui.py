"""Export to ComfyUI: a workflow in the format of its API (`POST /prompt`, or Load in the browser), core nodes only.

In ComfyUI a ratio of 1 keeps the first model, so ratio = 1 - alpha with a as the first. Each step becomes two merges:
the UNet block by block, and the text encoders. A + (B - C) alpha is the merge of A with A + (B - C). Tensors of the
UNet outside all blocks (time_embed) have their own ratio, so mappings that differ there alone are exact. One ratio
merges all tensors of the text encoders that ComfyUI merges at all, and a recipe that merges some of them by other
numbers is refused. No core node merges VAEs: the output has one source's VAE, and a recipe whose VAE is a mix is
refused. ComfyUI finds files by name in its own folder of checkpoints. An approximation has the nearest ratios from 0 to
1, the text encoders' tensors merged as in ComfyUI, and the VAE of the source with the largest share.

A merge node takes a tensor that one input lacks from the other input. ComfyUI merges in the precision in which it loads
the models.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.families.records import ComfyUINodes
from optimizer.interchange.exports.approximation import Approximation, Change, clipped_changes, moved_changes
from optimizer.interchange.exports.placement import (
    CONVERTIBLE,
    alpha_at,
    file_problems,
    file_text,
    listed,
    mapping_problems,
    moved_places,
    vae_shares,
)
from optimizer.recipes import Alpha, Recipe, Step

__all__ = ["approximate_for_comfyui", "encoder_places", "write_comfyui"]

_SUFFIXES = (".safetensors", ".sft", ".ckpt")
_MAPPING = "comfyui"  # of the layouts in whose text encoders ComfyUI leaves some tensors
_Ratios = dict[str, float]


class _Output(NamedTuple):
    """One output of a node, as another node's input names it."""

    node: str
    slot: int


@dataclass
class _Loaded:
    """The outputs that give the UNet and the text encoder of a source or step."""

    model: _Output
    clip: _Output


@dataclass
class _Workflow:
    """The nodes written so far, by number."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, title: str, **inputs: Any) -> _Output:
        """Add a node and return its first output."""
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        return _Output(number, 0)


def write_comfyui(recipe: Recipe) -> str:
    """Return the ComfyUI workflow of a finished recipe.

    Args:
        recipe: A recipe without free alphas.

    Returns:
        The workflow as JSON, in the format of ComfyUI's API.

    Raises:
        RecipeError: If a ratio is outside 0 to 1 (an alpha outside 0 to 1, or alpha + beta above 1 in a triple sum),
            if the VAE is a mix of sources, or if ComfyUI would not list a file or would confuse two files.

    """
    vae, vae_problems = _vae_source(recipe)
    if problems := [
        *_name_problems(recipe),
        *_ratio_problems(recipe),
        *_encoder_problems(recipe),
        *vae_problems,
    ]:
        raise RecipeError(problems)
    workflow = _Workflow()
    known: dict[str, _Loaded] = {}
    for name in recipe.sources():
        model = workflow.add("CheckpointLoaderSimple", name, ckpt_name=_listed_name(recipe, name))
        known[name] = _Loaded(model, _Output(model.node, 1))
    for step in recipe.ancestors():
        known[step.name] = _add_step(workflow, recipe, step, known)
    workflow.add(
        "CheckpointSave",
        f"{recipe.output} (mapping {recipe.mapping})",
        model=known[recipe.output].model,
        clip=known[recipe.output].clip,
        vae=_Output(known[vae].model.node, 2),
        filename_prefix="checkpoints/" + (re.sub(r"[^\w.-]+", "_", recipe.output).strip("._") or "merged"),
    )
    return json.dumps(workflow.nodes, ensure_ascii=False, indent=1) + "\n"


def approximate_for_comfyui(recipe: Recipe) -> Approximation:
    """Return the recipe with alphas from 0 to 1, triple sums with a share of a of at least 0, and one source's VAE."""
    changes: list[Change] = []
    clipped = {step.name: _clipped(recipe, step, changes) for step in recipe.ancestors()}
    vae, mixed = _vae_source(recipe)
    approximated = replace(recipe, steps=tuple(clipped.get(step.name, step) for step in recipe.steps))
    if _moved_encoders(approximated):
        changes += moved_changes(approximated, approximated.ancestors(), _MAPPING, "ComfyUI")
        approximated = replace(approximated, mapping=_MAPPING)
    if recipe.layout.vae is not None and vae_shares(approximated) != {vae: 1.0}:
        approximated = replace(approximated, vae=vae)
    if mixed:
        before = " + ".join(f"{value:.4g} x {name}" for name, value in vae_shares(recipe).items())
        changes.append(Change("vae", None, before, vae, "no node of ComfyUI merges VAEs"))
    return Approximation(approximated, tuple(changes))


def _clipped(recipe: Recipe, step: Step, changes: list[Change]) -> Step:
    """Return a step with ratios from 0 to 1, and add its differences to `changes`."""
    blocks = recipe.layout.blocks
    clipped = step
    for name, alpha in step.alphas.items():
        numbers = {block: min(max(alpha.at(block), 0.0), 1.0) for block in blocks}
        clipped = _changed(recipe, clipped, name, numbers, "ComfyUI merges with ratios from 0 to 1", changes)
    if clipped.mode != "triple_sum" or clipped.beta is None:
        return clipped
    pairs = {block: (clipped.alpha.at(block), clipped.beta.at(block)) for block in blocks}
    left = {
        block: alpha if _rounded(1 - alpha - beta) >= 0 else _rounded(1 - beta)
        for block, (alpha, beta) in pairs.items()
    }
    return _changed(recipe, clipped, "alpha", left, "alpha + beta is above 1, and ComfyUI keeps no negative a", changes)


def _changed(
    recipe: Recipe, step: Step, name: str, numbers: Mapping[str, float], reason: str, changes: list[Change]
) -> Step:
    """Return a step with other numbers in an alpha, and add the differences to `changes`."""
    alpha = step.alphas[name]
    moved = {block: (alpha.at(block), number) for block, number in numbers.items() if alpha.at(block) != number}
    changes += clipped_changes(recipe, f"steps.{step.name}.{name}", moved, reason)
    if not moved:
        return step
    made = Alpha(dict(numbers))
    return replace(step, alpha=made) if name == "alpha" else replace(step, beta=made)


def _add_step(workflow: _Workflow, recipe: Recipe, step: Step, known: Mapping[str, _Loaded]) -> _Loaded:
    """Add the nodes of a step and return its outputs."""
    first, second = known[step.a], known[step.b]
    if step.mode == "add_difference":
        assert step.c is not None
        subtracted = known[step.c]
        second = _Loaded(
            workflow.add(
                "ModelMergeAdd",
                f"{step.name}: a + (b - c)",
                model1=first.model,
                model2=workflow.add(
                    "ModelMergeSubtract",
                    f"{step.name}: b - c",
                    model1=second.model,
                    model2=subtracted.model,
                    multiplier=1.0,
                ),
            ),
            workflow.add(
                "CLIPMergeAdd",
                f"{step.name}: a + (b - c)",
                clip1=first.clip,
                clip2=workflow.add(
                    "CLIPMergeSubtract", f"{step.name}: b - c", clip1=second.clip, clip2=subtracted.clip, multiplier=1.0
                ),
            ),
        )
    ratios = _ratios(recipe, step)
    if len(ratios) == 1:
        return _add_merge(workflow, recipe.layout, step.name, first, second, ratios[0])
    assert step.c is not None
    both = _add_merge(workflow, recipe.layout, f"{step.name}: a, b", first, second, ratios[0])
    return _add_merge(workflow, recipe.layout, step.name, both, known[step.c], ratios[1])


def _add_merge(
    workflow: _Workflow, layout: Layout, title: str, first: _Loaded, second: _Loaded, ratios: _Ratios
) -> _Loaded:
    """Add the two nodes that merge UNet and text encoder with ratios by prefix, and return their outputs."""
    nodes = _nodes(layout)
    by_place: _Ratios = {}
    further: _Ratios = {}
    for place, ratio in ratios.items():
        if layout.in_network(place):
            usual = place.removeprefix(layout.network.prefix)
            for name in nodes.inputs.get(place, (usual,)):
                (by_place if name == usual else further)[name] = ratio
    encoders = [ratios[place] for place in encoder_places(layout)]
    return _Loaded(
        workflow.add(nodes.node, title, model1=first.model, model2=second.model, **by_place, **further),
        workflow.add("CLIPMergeSimple", title, clip1=first.clip, clip2=second.clip, ratio=(encoders or [1.0])[0]),
    )


def _nodes(layout: Layout) -> ComfyUINodes:
    """Return ComfyUI's nodes for a layout."""
    nodes = layout.tools.comfyui
    assert nodes is not None, "only layouts that ComfyUI has a node for are exported to it"
    return nodes


def encoder_places(layout: Layout) -> tuple[str, ...]:
    """Return the places of the text encoders that ComfyUI merges, all with one ratio."""
    prefixes = tuple(encoder.prefix for encoder in layout.text_encoders)
    mapping = _MAPPING if _MAPPING in layout.mappings else None
    return tuple(p for p in layout.places if p.startswith(prefixes) and layout.block_of(p, mapping) is not None)


def _moved_encoders(recipe: Recipe) -> list[str]:
    """Return the places of the text encoders that ComfyUI would merge by other numbers than the recipe."""
    if _MAPPING not in recipe.layout.mappings:
        return []
    prefixes = tuple(encoder.prefix for encoder in recipe.layout.text_encoders)
    return [place for place in moved_places(recipe, recipe.ancestors(), _MAPPING) if place.startswith(prefixes)]


def _encoder_problems(recipe: Recipe) -> list[str]:
    """Return a line for each place and alpha of the text encoders that one ratio cannot merge."""
    layout = recipe.layout
    if moved := _moved_encoders(recipe):
        return mapping_problems(recipe, recipe.ancestors(), _MAPPING, "ComfyUI", places=moved, convertible=True)
    problems = list[str]()
    for step in recipe.ancestors():
        for name, alpha in step.alphas.items():
            numbers = {place: alpha_at(recipe, alpha, place) for place in encoder_places(layout)}
            if len(set(numbers.values())) > 1:
                given = ", ".join(f"{number:g} on {place}*" for place, number in numbers.items())
                problems.append(
                    f"steps.{step.name}.{name}: received {given}; ComfyUI merges all text encoders with one ratio"
                )
    return problems


def _ratios(recipe: Recipe, step: Step) -> list[_Ratios]:
    """Return the ratios of a step's merges, by prefix: one merge, or a with b and then with c."""
    rows: list[_Ratios] = []
    places = tuple(recipe.layout.places)
    for prefix in places:
        alpha = alpha_at(recipe, step.alpha, prefix)
        beta = 0.0 if step.beta is None else alpha_at(recipe, step.beta, prefix)
        if step.mode == "triple_sum":
            # A (1-alpha-beta) + B alpha, scaled to a sum of 1. With beta = 1 only C remains, and any ratio will do.
            first = 1.0 if beta == 1 else _rounded(1 - alpha - beta) / (1 - beta)
        else:
            first = 1 - alpha
        rows.append({"first": first, "second": 1 - beta})
    merges = ("first",) if step.beta is None else ("first", "second")
    return [{prefix: row[merge] for prefix, row in zip(places, rows, strict=True)} for merge in merges]


def _rounded(difference: float) -> float:
    """Return 0 for a rounding error, else the difference."""
    # 1 - 0.7 - 0.3 is -5.6e-17 in floating point.
    return 0.0 if abs(difference) < 1e-12 else difference


def _ratio_problems(recipe: Recipe) -> list[str]:
    """Return a line for each alpha with numbers outside 0 to 1, and for each triple sum with alpha + beta above 1."""
    outside: dict[str, dict[str, float]] = {}
    for step in recipe.ancestors():
        for prefix in recipe.layout.places:
            if recipe.layout.vae is not None and prefix.startswith(recipe.layout.vae.prefix):
                continue  # no node merges VAEs
            block = recipe.block_of(prefix)
            if block is None:
                continue
            numbers = {name: alpha_at(recipe, alpha, prefix) for name, alpha in step.alphas.items()}
            beyond = {name: number for name, number in numbers.items() if not 0 <= number <= 1}
            for name, number in beyond.items():
                outside.setdefault(f"steps.{step.name}.{name}", {})[block] = number
            left = _rounded(1 - sum(numbers.values()))
            if step.mode == "triple_sum" and not beyond and left < 0:
                place = f"steps.{step.name}: alpha and beta leave a negative share of a"
                outside.setdefault(place, {})[block] = left
    return [
        f"{place}: received {_by_number(recipe, numbers)}; ComfyUI merges with ratios from 0 to 1 only; export to "
        f"mecha or mergekit; {CONVERTIBLE}"
        for place, numbers in outside.items()
    ]


def _by_number(recipe: Recipe, numbers: Mapping[str, float]) -> str:
    """Return the numbers of blocks as text, blocks with the same number together."""
    return ", ".join(
        f"{number:g} on {recipe.layout.describe_blocks(block for block, its in numbers.items() if its == number)}"
        for number in dict.fromkeys(numbers.values())
    )


def _vae_source(recipe: Recipe) -> tuple[str, list[str]]:
    """Return the source with the largest share of the output's VAE, and a problem if other sources have shares."""
    if recipe.layout.vae is None:
        return recipe.first_model(), []
    place, mixed = recipe.layout.vae.prefix, vae_shares(recipe)
    most = max(mixed, key=lambda name: mixed[name])
    if mixed == {most: 1.0}:
        return most, []
    shown = " + ".join(f"{value:.4g} x {name}" for name, value in mixed.items())
    block = recipe.layout.block_of(place, recipe.mapping)
    places = [
        f"steps.{step.name}.{name}.{block} ({alpha_at(recipe, alpha, place):g})"
        for step in recipe.ancestors()
        for name, alpha in step.alphas.items()
        if alpha_at(recipe, alpha, place) != 0
    ]
    problem = (
        f"{listed(places)}: the VAE of {recipe.output} becomes {shown}, and no node of ComfyUI merges VAEs; "
        f"set {block} to 0 or 1, name the model of the VAE in the recipe (vae: {most}), or export to mecha; "
        f"{CONVERTIBLE}"
    )
    return most, [problem]


def _listed_name(recipe: Recipe, model: str) -> str:
    """Return the file name under which ComfyUI lists a model."""
    return PurePosixPath(file_text(recipe.models[model].file)).name


def _name_problems(recipe: Recipe) -> list[str]:
    """Return a line for each file that ComfyUI would not list, or would confuse with another."""
    problems = file_problems(recipe, _SUFFIXES, "ComfyUI")
    owners: dict[str, str] = {}
    for name in recipe.sources():
        listed = _listed_name(recipe, name)
        owner = owners.setdefault(listed, name)
        if file_text(recipe.models[owner].file) != file_text(recipe.models[name].file):
            problems.append(
                f"models.{name}.file: received {recipe.models[name].file!r}; ComfyUI finds files by name, and "
                f"{owner!r} is {recipe.models[owner].file!r}; rename one of them"
            )
    return problems
