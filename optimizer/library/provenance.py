"""Read from a checkpoint's metadata how it was merged, for all tools that record it.

Metadata is untrusted. No function here raises for its contents; unreadable parts are left out.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from math import isfinite
from typing import Any

from optimizer.families import layout_names, load_layout
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.library.fingerprints import short_hash

__all__ = ["Parent", "Provenance", "known_models", "name_and_hash", "parsed", "read_provenance"]

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
# The field and its value beside a recipe whose noted hashes were not compared with the files.
HASHES, NOT_VERIFIED = "blockfit.hashes", "not verified"

_TOOLS = {
    "blockfit": "blockfit",
    "webui": "Stable Diffusion WebUI",
    "sd-webui-supermerger": "SuperMerger",
    "sd-webui-model-mixer": "Model Mixer",
    "merge-models-chattiori": "Chattiori's Model Merger",
    "sd-model-analyzer": "sd-model-analyzer",
}
_METHODS = ("interp_method", "merge_method", "mode")
_PARENTS = re.compile(r"(primary|secondary|tertiary)_model_hash|model_[a-z]|base_model|model_base")
_LONGEST = 100  # characters shown of one name or formula; some names of merges are whole recipes
_MOST = 32  # listed models or steps
_DEEPEST = 100  # levels of nesting; recipes have about 10
_MOST_ENCODINGS = 3  # of JSON in JSON; tools that copy metadata encode it once more
_JSON = re.compile(r'\s*(?:[{\[]|"\s*(?:\\[nrt"]|\s)*[{\[\\])')


@dataclass(frozen=True)
class Parent:
    """A merged model, with the name and hash in the metadata; None if missing."""

    name: str | None
    short_hash: str | None

    def __str__(self) -> str:
        return " ".join([self.name or "unnamed", *([f"[{self.short_hash}]"] if self.short_hash else [])])


@dataclass(frozen=True)
class Provenance:
    """The provenance of a merged checkpoint.

    Attributes:
        tool: The tool that merged it.
        method: One line per step, in the words of the tool.
        models: The merged models.
        per_block: Whether blocks have separate alphas; None if the metadata does not record it.
        fields: The metadata fields that were read.
    """

    tool: str
    method: tuple[str, ...]
    models: tuple[Parent, ...]
    per_block: bool | None
    fields: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON values."""
        return asdict(self) | {
            "method": list(self.method),
            "models": [asdict(model) for model in self.models],
            "fields": list(self.fields),
        }


def parsed(text: object) -> Any:
    """Return the object or list in a JSON text, perhaps encoded several times.

    Other values stay text: a hash such as "123e4567" must not become a number.

    Args:
        text: The text.

    Returns:
        The object or list. `text` itself if it is no such JSON, holds NaN or a number too large for a float, or is
        nested more than 100 levels deep.
    """
    value: Any = text
    for _ in range(_MOST_ENCODINGS):
        if not isinstance(value, str) or not _JSON.match(value):
            return text
        try:
            value = json.loads(value, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, dict | list):
            return value if _depth_is_sane(value) else text
    return text


def read_provenance(metadata: Mapping[str, Any]) -> Provenance | None:
    """Return how the file with this metadata was merged; None if the metadata does not record it legibly."""
    recipe = parsed(metadata.get(RECIPE))
    if isinstance(recipe, Mapping) and isinstance(recipe.get("type"), str):
        known = known_models(metadata)
        found = _of_blockfit(recipe, known) if recipe["type"] == "blockfit" else _of_merger(recipe, known)
        if metadata.get(HASHES) == NOT_VERIFIED:
            tool, method, models, per_block = found
            found = tool, (*method, "hashes that its recipe noted were not verified"), models, per_block
        return Provenance(*found, tuple(field for field in (RECIPE, MODELS, HASHES) if field in metadata))
    text = metadata.get("mecha_recipe")
    if isinstance(text, str) and text.lstrip().startswith("version "):
        return Provenance(*_of_mecha(text), ("mecha_recipe",))
    for field in ("prompt", "workflow"):
        graph = parsed(metadata.get(field))
        nodes = list(_nodes(graph)) if isinstance(graph, Mapping) else []
        if nodes:
            return Provenance(*_of_comfy(nodes), tuple(name for name in ("prompt", "workflow") if name in metadata))
    return None


def known_models(metadata: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the first 1000 entries of `sd_merge_models` by SHA-256, without those that are no objects."""
    models = parsed(metadata.get(MODELS))
    if not isinstance(models, Mapping):
        return {}
    entries = ((key, parsed(entry)) for key, entry in islice(models.items(), 1000))
    return {key: entry for key, entry in entries if isinstance(entry, Mapping)}


def name_and_hash(reference: object, known: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """Return the name and the hash in a recipe's reference to a model.

    Args:
        reference: A SHA-256 or its first 10 digits, a name, or `A.safetensors [0123456789]`.
        known: The entries of `sd_merge_models`, which complete a hash by its name and a name by its hash.

    Returns:
        The name and the SHA-256 or a part of it; None for either if unknown, and for both if the reference is no text.
    """
    if not isinstance(reference, str) or not reference.strip():
        return None, None
    name: str | None
    name, digits = _split(reference)
    if re.fullmatch(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{10}|\[[0-9a-fA-F]{10}\]", reference.strip()):
        name, digits = None, reference.strip().strip("[]").lower()
    names = {key: _split(entry["name"])[0] for key, entry in known.items() if isinstance(entry.get("name"), str)}
    if digits is not None:
        found = [key for key in known if key.lower().startswith(digits)]
    else:
        found = [key for key, file in names.items() if name is not None and _stem(file) == _stem(name)]
    # Two files in different folders may have one name.
    return (name or names.get(found[0]), found[0].lower()) if len(found) == 1 else (name, digits)


def _split(text: str) -> tuple[str, str | None]:
    name, _, rest = text.strip().rpartition("[")
    if name.strip() and re.fullmatch(r"[0-9a-fA-F]{8,64}\]", rest):
        return name.strip(), rest[:-1].lower()
    return text.strip(), None


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in CHECKPOINT_SUFFIXES if name.endswith(suffix)), name)


_Found = tuple[str, tuple[str, ...], tuple[Parent, ...], bool | None]


def _of_blockfit(data: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> _Found:
    recipe = _mapping(data.get("recipe"))
    steps = {step["name"]: step for step in _list(recipe.get("steps")) if _is_named(step)}
    made = _with_inputs(steps, data.get("output", recipe.get("output")))
    whole_vae = recipe.get("vae")
    if isinstance(whole_vae, str):
        made.add(whole_vae)
    method, per_block = [], False
    for step in (step for name, step in steps.items() if name in made):
        inputs = ", ".join(_shown(step[place]) for place in "abc" if isinstance(step.get(place), str))
        numbers = [_alpha(name, step[name]) for name in ("alpha", "beta") if name in step]
        method.append(", ".join([f"{_shown(step['name'])} = {_shown(step.get('mode'))} of {inputs}", *numbers]))
        per_block |= any(isinstance(step.get(name), list | Mapping) for name in ("alpha", "beta"))
    taking_part = ((name, model) for name, model in _mapping(recipe.get("models")).items() if name in made)
    models = []
    for name, model in islice(taking_part, _MOST):
        file = _mapping(model).get("file")
        called = file.replace("\\", "/").rpartition("/")[2] if isinstance(file, str) else name
        found, digits = name_and_hash(called, known)
        models.append(_parent(found, digits))
    if isinstance(recipe.get("mapping"), str):
        method.append(f"mapping {_shown(recipe['mapping'])}")
    vae = _mapping(data.get("vae"))
    if isinstance(whole_vae, str):
        method.append(f"VAE of {_shown(whole_vae)}")
    elif isinstance(vae.get("name"), str):
        method.append(f"VAE of {_parent(vae['name'], vae.get('sha256'))}")
    return "blockfit", _some(method), tuple(models), per_block


def _alpha(name: str, value: object) -> str:
    return f"{name} {value:g}" if _is_number(value) else f"{name} per block"


def _with_inputs(steps: Mapping[str, Mapping[str, Any]], output: object) -> set[str]:
    """Return the names of the steps and models that a step needs, itself included."""
    needed: set[str] = set()
    queue = [output]
    while queue:
        name = queue.pop()
        if isinstance(name, str) and name not in needed:
            needed.add(name)
            queue += [steps[name].get(place) for place in "abc"] if name in steps else []
    return needed


def _of_merger(recipe: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> _Found:
    """Read the flat recipes of mergers: modes, models and numbers side by side."""
    modes: Any = next((recipe[field] for field in _METHODS if recipe.get(field)), [])
    method = [_shown(mode) for mode in (modes if isinstance(modes, list) else [modes])]
    number = next((recipe[field] for field in ("multiplier", "alpha") if _is_number(recipe.get(field))), None)
    flags = [recipe[field] for field in ("mbw", "block_weights") if isinstance(recipe.get(field), bool)]
    flags += [any(map(bool, _list(recipe.get(field)))) for field in ("use_mbws", "use_mbw") if field in recipe]
    per_block = any(flags) if flags else True if isinstance(recipe.get("weights_alpha"), list) else None
    if recipe["type"] == "webui":
        per_block = False
    if number is None and per_block is False and _is_number(recipe.get("base_alpha")):
        number = recipe["base_alpha"]
    if number is not None and len(method) == 1 and not per_block:
        method = [f"{method[0]}, {number:g}"]
    if isinstance(recipe.get("bake_in_vae"), str) and recipe["bake_in_vae"] not in ("", "None"):
        method.append(f"VAE of {_shown(recipe['bake_in_vae'])}")
    parents = [
        _parent(*name_and_hash(value, known))
        for field, value in recipe.items()
        if isinstance(field, str) and _PARENTS.fullmatch(field) and isinstance(value, str) and value.strip()
    ]
    tool = _TOOLS.get(recipe["type"], _shown(recipe["type"]))
    return tool, _some(method), tuple(dict.fromkeys(parents))[:_MOST], per_block


def _of_mecha(text: str) -> _Found:
    quoted = r'"((?:[^"\\\n]|\\.)*)"'
    models = [_parent(name, None) for name in re.findall(rf"^model {quoted}", text, re.MULTILINE)]
    method = [_shown(name) for name in re.findall(rf"^merge {quoted}", text, re.MULTILINE)]
    blocks = {block for layout in map(load_layout, layout_names()) for block in layout.blocks}
    first = (found[1] for found in re.finditer(r"^dict (\w+)=", text, re.MULTILINE))
    per_block = any(name in blocks for name in first)
    return "sd-mecha", _some(dict.fromkeys(method)), tuple(dict.fromkeys(models))[:_MOST], per_block


def _of_comfy(nodes: Iterable[tuple[str, list[str]]]) -> _Found:
    kinds: dict[str, int] = {}
    models: list[Parent] = []
    for kind, names in nodes:
        if "Merge" in kind:
            kinds[kind] = kinds.get(kind, 0) + 1
        if "Loader" in kind:
            models += [_parent(name, None) for name in names[:1]]
    method = [_shown(kind) + (f" ({count} times)" if count > 1 else "") for kind, count in kinds.items()]
    per_block = any(re.match(r"ModelMerge(SD|Blocks|Flux|Mochi|LTX|Cosmos|WAN|Qwen)", kind) for kind in kinds)
    return "ComfyUI", _some(method), tuple(dict.fromkeys(models))[:_MOST], per_block


def _nodes(graph: Mapping[str, Any]) -> Iterable[tuple[str, list[str]]]:
    """Yield the kind and texts of each node of a ComfyUI prompt ({id: node}) or workflow ({"nodes": [node]})."""
    for node in (*graph.values(), *_list(graph.get("nodes"))):
        if not isinstance(node, Mapping):
            continue
        kind = node.get("class_type", node.get("type"))
        inputs = node.get("inputs") if isinstance(node.get("inputs"), Mapping) else node.get("widgets_values")
        if isinstance(kind, str) and kind:
            values = inputs.values() if isinstance(inputs, Mapping) else _list(inputs)
            yield kind, [value for value in values if isinstance(value, str)]


def _parent(name: object, sha256: object) -> Parent:
    return Parent(
        _shown(name) if isinstance(name, str) else None,
        short_hash(sha256) if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{8,64}", sha256) else None,
    )


def _some(lines: Iterable[str]) -> tuple[str, ...]:
    found = list(lines)
    return (*found[:_MOST], *([f"... and {len(found) - _MOST} more"] if found[_MOST:] else []))


def _shown(value: object) -> str:
    """Return text that is safe for a terminal: one line, no control characters, at most 100 characters."""
    text = str(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[: _LONGEST + 1])
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _is_named(step: object) -> bool:
    return isinstance(step, Mapping) and isinstance(step.get("name"), str)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _depth_is_sane(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits} is too large")
    return number
