"""Read ComfyUI workflows that merge checkpoints, exported by blockfit or made by hand, as recipes.

A workflow has one of two forms: the API's ({number: node}) or the browser's ({"nodes": [...], "links": [...]}). In
ComfyUI a ratio of 1 keeps the first model, so alpha = 1 - ratio. Separate nodes merge the UNet and the text encoder. If
both are merged in the same way, each pair of nodes becomes a step; otherwise the whole merge becomes one sum. Written
after ComfyUI 0.19, comfy_extras/nodes_model_merging.py and nodes_model_merging_model_specific.py.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from optimizer.errors import RecipeError
from optimizer.families import Layout, default_layout, layout_names, load_layout
from optimizer.families.records import ComfyUINodes
from optimizer.interchange.exports.comfyui import encoder_places
from optimizer.interchange.notation import number_in, received
from optimizer.interchange.placed import PlacedStep, SourceNames, recipe_of_rows, recipe_of_steps
from optimizer.recipes import MOST_STEPS, Recipe

__all__ = ["is_workflow", "read_workflow"]

# The browser saves a node's values without names, in this order. `_inputs` gives the order for nodes of one family.
_WIDGETS: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "ModelMergeSimple": ("ratio",),
    "ModelMergeBlocks": ("input", "middle", "out"),
    "ModelMergeSubtract": ("multiplier",),
    "CLIPMergeSimple": ("ratio",),
    "CLIPMergeSubtract": ("multiplier",),
    "CheckpointSave": ("filename_prefix",),
}
_LOADERS = ("CheckpointLoaderSimple", "CheckpointLoader")
_MERGES = ("ModelMergeSimple", "ModelMergeBlocks")
_CLIP_MERGES = ("CLIPMergeSimple", "CLIPMergeAdd", "CLIPMergeSubtract")
_SWITCHED_OFF = (2, 4)  # muted, bypassed
_DEEPEST = 300  # nested merges
_TOO_DEEP = f"more than {_DEEPEST} nested merges, or a merge that takes its own result"

_Link = tuple[str, int]
_Row = dict[str, float]


class _NotAlike(Exception):
    """The text encoder and the UNet are merged in different ways."""


@dataclass(frozen=True)
class _Node:
    """A node of a workflow; `off` is true for a muted or bypassed one."""

    number: str
    kind: str
    inputs: Mapping[str, Any]
    title: str
    off: bool = False


def is_workflow(data: object) -> bool:
    """Return whether parsed JSON is a ComfyUI workflow, in either form."""
    if not isinstance(data, Mapping):
        return False
    if isinstance(data.get("nodes"), list) and isinstance(data.get("links"), list):
        return True
    return bool(data) and all(
        isinstance(node, Mapping) and isinstance(node.get("class_type"), str) for node in data.values()
    )


def read_workflow(data: Mapping[str, Any], name: str, layout: Layout | None = None) -> tuple[Recipe, list[str]]:
    """Return the recipe of a workflow, and notes about it.

    A RecipeError names the node if the workflow merges nothing, saves several merges, or merges by unsupported nodes.

    Args:
        data: The parsed JSON, in either form.
        name: The name of the recipe.
        layout: The layout of a workflow without nodes of one family. Default: the default layout.

    Returns:
        The recipe, and the notes as sentences.

    """
    nodes = _nodes_of_browser(data) if "nodes" in data else _nodes_of_api(data)
    return _Reader(nodes, *_family_of(nodes.values(), layout)).recipe(name)


def _families() -> list[tuple[Layout, ComfyUINodes]]:
    """Return the layouts with a merge node in ComfyUI, the default layout first."""
    layouts = [default_layout(), *map(load_layout, layout_names())]
    return [(layout, layout.tools.comfyui) for layout in layouts if layout.tools.comfyui is not None]


def _family_of(nodes: Iterable[_Node], layout: Layout | None) -> tuple[Layout, ComfyUINodes]:
    """Return the layout whose merge node the workflow uses; if it uses none, `layout` or the default layout."""
    kinds = {node.kind for node in nodes}
    families = _families()
    named = [pair for pair in families if pair[1].node in kinds]
    alike = [pair for pair in families if kinds & {*pair[1].alike}]
    return [*named, *alike, *(pair for pair in families if pair[0] is layout), *families][0]


def _inputs(layout: Layout, nodes: ComfyUINodes) -> dict[str, tuple[str, ...]]:
    """Return the inputs of a family's node for each place of the network, in the node's order."""
    behind = len(layout.network.prefix)
    return {place: nodes.inputs.get(place, (place[behind:],)) for place in layout.places if layout.in_network(place)}


def _widgets(kind: str) -> tuple[str, ...]:
    """Return the names of the values that the browser saves for a node of this kind, in order."""
    for layout, nodes in _families():
        if kind in (nodes.node, *nodes.alike):
            return tuple(name for names in _inputs(layout, nodes).values() for name in names)
    return _WIDGETS.get(kind, ())


def _nodes_of_api(data: Mapping[str, Any]) -> dict[str, _Node]:
    """Return the nodes of a workflow in the API's form, by number."""
    nodes: dict[str, _Node] = {}
    for number, node in data.items():
        inputs, about = node.get("inputs"), node.get("_meta")
        title = about.get("title") if isinstance(about, Mapping) else None
        nodes[str(number)] = _Node(
            str(number),
            node["class_type"],
            inputs if isinstance(inputs, Mapping) else {},
            title if isinstance(title, str) else "",
        )
    return nodes


def _nodes_of_browser(data: Mapping[str, Any]) -> dict[str, _Node]:
    """Return the nodes of a workflow in the browser's form, by number."""
    links: dict[str, list[Any]] = {}
    for link in data["links"]:
        if isinstance(link, list) and len(link) >= 5:
            links[str(link[0])] = [str(link[1]), link[2]]
        elif isinstance(link, Mapping):
            links[str(link.get("id"))] = [str(link.get("origin_id")), link.get("origin_slot")]
    nodes: dict[str, _Node] = {}
    for node in data["nodes"]:
        if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
            continue
        values, linked = node.get("widgets_values"), node.get("inputs")
        inputs: dict[str, Any] = {}
        if isinstance(values, list):
            inputs |= zip(_widgets(node["type"]), values, strict=False)
        elif isinstance(values, Mapping):
            inputs |= values
        for entry in linked if isinstance(linked, list) else ():
            link = entry.get("link") if isinstance(entry, Mapping) else None
            if link is not None and str(link) in links:
                inputs[str(entry.get("name"))] = links[str(link)]
        number = str(node.get("id"))
        title = node.get("title")
        nodes[number] = _Node(
            number,
            node["type"],
            inputs,
            title if isinstance(title, str) else "",
            off=node.get("mode") in _SWITCHED_OFF,
        )
    return nodes


@dataclass
class _Reader:
    """The nodes of a workflow and the parts of the recipe read so far."""

    nodes: Mapping[str, _Node]
    layout: Layout
    family: ComfyUINodes
    sources: SourceNames = field(default_factory=SourceNames)
    steps: list[PlacedStep] = field(default_factory=list)
    made: dict[tuple[_Link, _Link], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    unlike: set[tuple[_Link, _Link]] = field(default_factory=set)
    rows: dict[_Link, dict[str, _Row]] = field(default_factory=dict)
    clip_rows: dict[_Link, _Row] = field(default_factory=dict)

    @property
    def _networks(self) -> tuple[str, ...]:
        """Places of the network."""
        return tuple(_inputs(self.layout, self.family))

    @property
    def _encoders(self) -> tuple[str, ...]:
        """Places of the text encoders, which ComfyUI merges together."""
        return encoder_places(self.layout)

    @property
    def _left(self) -> tuple[str, ...]:
        """Places of the text encoders that ComfyUI takes from the first input."""
        prefixes = tuple(encoder.prefix for encoder in self.layout.text_encoders)
        every = (place for place in self.layout.places if place.startswith(prefixes))
        return tuple(place for place in every if place not in self._encoders)

    @property
    def _merges(self) -> tuple[str, ...]:
        """Kinds of nodes that merge two UNets by ratios."""
        return (*_MERGES, self.family.node, *self.family.alike)

    def recipe(self, name: str) -> tuple[Recipe, list[str]]:
        """Return the recipe of the whole workflow, and notes about it as sentences."""
        model, clip, vae, notes = self._saved()
        layout = self.layout
        # Collect all sources first, so that no step gets the name of a source.
        by_prefix = self._model_row(model, 0) | dict.fromkeys(self._encoders, self._clip_row(clip, 0))
        by_prefix |= {place: {self._first_clip(clip): 1.0} for place in self._left}
        origin = None if vae is None else self._source(self._node(vae, "vae"))
        prefer = next(
            (found[1] for node in self.nodes.values() if (found := re.search(r"\(mapping ([\w-]+)\)", node.title))),
            None,
        )
        self.taken = set(self.sources.models)
        try:
            output = self._step(model, clip, 0)
        except _NotAlike:
            notes.append("UNet and text encoder are merged in different ways; the recipe is written as one sum")
            output = ""
        if output in self.sources.models or not output:
            made = recipe_of_rows(name, layout, self.sources.models, by_prefix, prefer=prefer, vae=origin)
        else:
            used = {source for step in self.steps for source in step.inputs.values()} | {origin}
            models = {source: entry for source, entry in self.sources.models.items() if source in used}
            steps = sorted(self.steps, key=lambda step: step.name == output)
            made = recipe_of_steps(name, layout, models, steps, prefer=prefer, vae=origin)
        recipe, more = made
        return recipe, [*notes, *more]

    def _saved(self) -> tuple[_Link, _Link, _Link | None, list[str]]:
        """Return the links to the resulting UNet, text encoder and VAE (None if not saved), and notes."""
        saving = [node for node in self.nodes.values() if node.kind == "CheckpointSave" and not node.off]
        if len(saving) > 1:
            raise RecipeError(
                f"nodes {', '.join(node.number for node in saving)} each save a checkpoint; keep one of them"
            )
        if saving:
            node = saving[0]
            return self._link(node, "model"), self._link(node, "clip"), self._link(node, "vae"), []
        merges = [node for node in self.nodes.values() if node.kind.startswith(("ModelMerge", "CLIPMerge"))]
        used = {(str(value[0]), value[1]) for node in merges for value in node.inputs.values() if _is_link(value)}
        ends = {
            start: [
                (n.number, 0) for n in self.nodes.values() if n.kind.startswith(start) and (n.number, 0) not in used
            ]
            for start in ("ModelMerge", "CLIPMerge")
        }
        if len(ends["ModelMerge"]) != 1 or len(ends["CLIPMerge"]) > 1:
            kinds = ", ".join(dict.fromkeys(node.kind for node in self.nodes.values())) or "none"
            raise RecipeError(
                f"saves no checkpoint (CheckpointSave), and merges no model, or several; its nodes are {kinds[:300]}"
            )
        model = ends["ModelMerge"][0]
        clip = ends["CLIPMerge"][0] if ends["CLIPMerge"] else self._natural_clip(model, 0)
        return (
            model,
            clip,
            None,
            [f"the workflow saves no checkpoint; the recipe's output is the result of node {model[0]}"],
        )

    def _node(self, link: _Link, place: str) -> _Node:
        """Return the node at the end of a link, past reroutes; `place` names the link in messages."""
        node = self.nodes.get(link[0])
        for _ in self.nodes:
            if node is None or node.kind != "Reroute":
                break
            links = [value for value in node.inputs.values() if _is_link(value)]
            node = self.nodes.get(str(links[0][0])) if links else None
        if node is None:
            raise RecipeError(f"{place}: received a link to node {link[0]}; the workflow has no such node")
        if node.off:
            raise RecipeError(f"node {node.number} ({node.kind}) is switched off")
        return node

    def _link(self, node: _Node, name: str) -> _Link:
        """Return the link at an input of a node, or raise RecipeError."""
        value = node.inputs.get(name)
        if not _is_link(value):
            raise RecipeError(f"node {node.number} ({node.kind}): {name}: received {received(value)}; must be linked")
        return str(value[0]), int(value[1])

    def _number(self, node: _Node, name: str) -> float:
        """Return the number at an input of a node, or raise RecipeError."""
        value = node.inputs.get(name)
        number = None if isinstance(value, str) else number_in(value)
        if number is None:
            raise RecipeError(f"node {node.number} ({node.kind}): {name}: received {received(value)}; must be a number")
        return number

    def _source(self, node: _Node) -> str:
        """Return the name of the model that a node loads, or raise RecipeError if it loads no checkpoint."""
        if node.kind not in _LOADERS:
            raise RecipeError(
                f"node {node.number} ({node.kind}): does not merge checkpoints; blockfit reads "
                f"CheckpointLoaderSimple, {', '.join(_MERGES)}, {self.family.node}, ModelMergeAdd, ModelMergeSubtract "
                "and CLIPMerge..."
            )
        file = node.inputs.get("ckpt_name")
        if not isinstance(file, str) or not file:
            raise RecipeError(f"node {node.number} ({node.kind}): ckpt_name: received {received(file)}; must be a file")
        return self.sources.name(file.replace("\\", "/"))

    def _alphas(self, node: _Node) -> dict[str, float]:
        """Return the alphas of a node that merges two UNets, by prefix."""
        if node.kind == "ModelMergeSimple":
            return dict.fromkeys(self._networks, 1 - self._number(node, "ratio"))
        behind = len(self.layout.network.prefix)
        if node.kind == "ModelMergeBlocks":
            # ComfyUI takes the longest matching name. time_embed matches none and takes the first value.
            words = {place: place[behind:].split(".")[0] for place in self._networks}
            halves, first = self.family.halves, _WIDGETS["ModelMergeBlocks"][0]
            return {place: 1 - self._number(node, halves.get(word, first)) for place, word in words.items()}
        alphas: dict[str, float] = {}
        for place, names in _inputs(self.layout, self.family).items():
            # The input named after the place holds its number; further inputs belong to other models.
            usual = place[behind:]
            numbers = [self._number(node, name) for name in ((usual,) if usual in names else names)]
            if len(set(numbers)) > 1:
                block = self.layout.block_of(place)
                raise RecipeError(
                    f"node {node.number} ({node.kind}): {', '.join(names)} differ; a recipe has one alpha for {block}"
                )
            alphas[place] = 1 - numbers[0]
        return alphas

    def _natural_clip(self, model: _Link, depth: int) -> _Link:
        """Return the text encoder of the checkpoint that a UNet begins with."""
        node = self._node(model, "model1")
        if depth > _DEEPEST:
            raise RecipeError(_TOO_DEEP)
        return (node.number, 1) if node.kind in _LOADERS else self._natural_clip(self._link(node, "model1"), depth + 1)

    # --- The whole merge as one sum ---

    def _model_row(self, link: _Link, depth: int) -> dict[str, _Row]:
        """Return the coefficients of the sources in a UNet, {prefix: {source: coefficient}}."""
        if link not in self.rows:
            node = self._node(link, "model")
            if depth > _DEEPEST:
                raise RecipeError(_TOO_DEEP)
            if node.kind in self._merges:
                first, second = (self._model_row(self._link(node, f"model{n}"), depth + 1) for n in (1, 2))
                alphas = self._alphas(node)
                row = {p: _plus(first[p], second[p], 1 - alphas[p], alphas[p]) for p in self._networks}
            elif node.kind in ("ModelMergeAdd", "ModelMergeSubtract"):
                first, second = (self._model_row(self._link(node, f"model{n}"), depth + 1) for n in (1, 2))
                scale = 1.0 if node.kind == "ModelMergeAdd" else -1.0
                # The multiplier applies to the difference: (model1 - model2) x multiplier.
                whole = 1.0 if node.kind == "ModelMergeAdd" else self._number(node, "multiplier")
                row = {p: _plus(first[p], second[p], whole, whole * scale) for p in self._networks}
            else:
                row = {place: {self._source(node): 1.0} for place in self._networks}
            self.rows[link] = row
        return self.rows[link]

    def _clip_row(self, link: _Link, depth: int) -> _Row:
        """Return the coefficients of the sources in a text encoder, {source: coefficient}."""
        node = self._node(link, "clip")
        if depth > _DEEPEST:
            raise RecipeError(_TOO_DEEP)
        if link in self.clip_rows:
            return self.clip_rows[link]
        if node.kind in _CLIP_MERGES:
            first, second = (self._clip_row(self._link(node, f"clip{n}"), depth + 1) for n in (1, 2))
            if node.kind == "CLIPMergeSimple":
                ratio = self._number(node, "ratio")
                row = _plus(first, second, ratio, 1 - ratio)
            elif node.kind == "CLIPMergeAdd":
                row = _plus(first, second, 1.0, 1.0)
            else:
                whole = self._number(node, "multiplier")
                row = _plus(first, second, whole, -whole)
        else:
            row = {self._source(node): 1.0}
        self.clip_rows[link] = row
        return row

    def _first_clip(self, link: _Link) -> str:
        """Return the source that a text encoder begins with; `_clip_row` has followed the links before."""
        node = self._node(link, "clip")
        while node.kind in _CLIP_MERGES:
            node = self._node(self._link(node, "clip1"), "clip1")
        return self._source(node)

    # --- Step by step ---

    def _step(self, model: _Link, clip: _Link, depth: int) -> str:
        """Return the name of the step that makes both UNet and text encoder, or raise _NotAlike if none does."""
        key = (model, clip)
        if key in self.unlike:
            raise _NotAlike
        if key not in self.made:
            try:
                self.made[key] = self._new_step(model, clip, depth)
            except _NotAlike:
                self.unlike.add(key)
                raise
        return self.made[key]

    def _new_step(self, model: _Link, clip: _Link, depth: int) -> str:
        node, clip_node = self._node(model, "model"), self._node(clip, "clip")
        if depth > _DEEPEST:
            raise RecipeError(_TOO_DEEP)
        if node.kind in _LOADERS:
            if clip_node.kind not in _LOADERS or self._source(node) != self._source(clip_node):
                raise _NotAlike
            return self._source(node)
        difference = self._difference(node, "model")
        if difference is not None:
            return self._difference_step(node, clip_node, difference, clip, depth)
        if node.kind not in self._merges:
            raise _NotAlike
        first, second = self._link(node, "model1"), self._link(node, "model2")
        alphas = self._alphas(node)
        inner = self._difference(self._node(second, "model2"), "model")
        if inner is not None and inner[0] == first and inner[3] == 1.0:
            # A + (B - C) alpha is the merge of A with A + (B - C).
            return self._blocks_difference_step(node, clip_node, alphas, inner, clip, depth)
        if clip_node.kind == "CLIPMergeSimple":
            a = self._step(first, self._link(clip_node, "clip1"), depth + 1)
            b = self._step(second, self._link(clip_node, "clip2"), depth + 1)
            encoders = self._of_encoders(1 - self._number(clip_node, "ratio"))
        else:
            a, b, base = self._beside(first, second, clip, depth)
            encoders = self._of_encoders(base, left=base)
        return self._add(node, "weight_sum", {"a": a, "b": b}, alphas | encoders)

    def _of_encoders(self, alpha: float, left: float = 0.0) -> dict[str, float]:
        """Return the numbers of the text encoders' places, with `left` for those that their nodes do not merge."""
        return dict.fromkeys(self._encoders, alpha) | dict.fromkeys(self._left, left)

    def _beside(self, first: _Link, second: _Link, clip: _Link, depth: int) -> tuple[str, str, float]:
        """Return a, b and the text encoder's alpha (0 or 1) of a merge that keeps the text encoder of a or b."""
        try:
            a = self._step(first, clip, depth + 1)
            return a, self._step(second, self._natural_clip(second, 0), depth + 1), 0.0
        except _NotAlike:
            b = self._step(second, clip, depth + 1)
            return self._step(first, self._natural_clip(first, 0), depth + 1), b, 1.0

    def _difference(self, node: _Node, part: str) -> tuple[_Link, _Link, _Link, float] | None:
        """Return A, B, C and the multiplier if a node computes A + (B - C) x multiplier, else None."""
        add, subtract = {
            "model": ("ModelMergeAdd", "ModelMergeSubtract"),
            "clip": ("CLIPMergeAdd", "CLIPMergeSubtract"),
        }[part]
        if node.kind != add:
            return None
        second = self._node(self._link(node, f"{part}2"), f"{part}2")
        if second.kind != subtract:
            return None
        b, c = (self._link(second, f"{part}{n}") for n in (1, 2))
        return self._link(node, f"{part}1"), b, c, self._number(second, "multiplier")

    def _difference_step(
        self, node: _Node, clip_node: _Node, difference: tuple[_Link, _Link, _Link, float], clip: _Link, depth: int
    ) -> str:
        """Add an add difference with one alpha for all blocks; return its name."""
        inputs, base = self._inputs_of_difference(difference, self._difference(clip_node, "clip"), clip, depth)
        alphas = dict.fromkeys(self._networks, difference[3])
        return self._add(node, "add_difference", inputs, alphas | self._of_encoders(base))

    def _blocks_difference_step(
        self,
        node: _Node,
        clip_node: _Node,
        alphas: Mapping[str, float],
        difference: tuple[_Link, _Link, _Link, float],
        clip: _Link,
        depth: int,
    ) -> str:
        """Add an add difference with an alpha for each block; return its name."""
        inner = None
        if clip_node.kind == "CLIPMergeSimple":
            inner = self._difference(self._node(self._link(clip_node, "clip2"), "clip2"), "clip")
            if inner is None or inner[0] != self._link(clip_node, "clip1") or inner[3] != 1.0:
                raise _NotAlike
            inner = (*inner[:3], 1 - self._number(clip_node, "ratio"))
        inputs, base = self._inputs_of_difference(difference, inner, clip, depth)
        return self._add(node, "add_difference", inputs, {**alphas, **self._of_encoders(base)})

    def _inputs_of_difference(
        self,
        model: tuple[_Link, _Link, _Link, float],
        clip: tuple[_Link, _Link, _Link, float] | None,
        whole: _Link,
        depth: int,
    ) -> tuple[dict[str, str], float]:
        """Return the inputs of an add difference, and the text encoder's alpha: 0 if the encoder passes through."""
        clips = (whole, *(self._natural_clip(link, 0) for link in model[1:3])) if clip is None else clip[:3]
        names = [self._step(link, text, depth + 1) for link, text in zip(model[:3], clips, strict=True)]
        return dict(zip("abc", names, strict=True)), 0.0 if clip is None else clip[3]

    def _add(self, node: _Node, mode: str, inputs: Mapping[str, str], alphas: Mapping[str, float]) -> str:
        """Add a step, named by the node's title if that is free; return its name."""
        if len(self.steps) == MOST_STEPS:
            raise RecipeError(f"more than {MOST_STEPS:,} steps; a recipe has at most {MOST_STEPS:,}")
        name = node.title if node.title and node.title not in (node.kind, *self.taken) else f"TEMP{len(self.steps) + 1}"
        number = 1
        while name in self.taken:
            number += 1
            name = f"TEMP{len(self.steps) + 1}-{number}"
        self.taken.add(name)
        self.steps.append(PlacedStep(name, mode, inputs, {"alpha": dict(alphas)}))
        return name


def _plus(first: _Row, second: _Row, first_weight: float, second_weight: float) -> _Row:
    """Return first x first_weight + second x second_weight."""
    return {
        name: first_weight * first.get(name, 0.0) + second_weight * second.get(name, 0.0)
        for name in {**first, **second}
    }


def _is_link(value: object) -> TypeGuard[list[Any]]:
    """Return whether an input's value is a link, [node, output]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str | int)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )
