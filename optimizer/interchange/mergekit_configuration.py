"""Read mergekit's configurations for single files (mergekit-pytorch), exported or made by hand, as recipes.

A configuration is a weighted sum (`linear`, `task_arithmetic`). Each model has one weight, or a list of weights with
filters, which are parts of tensor names; the first matching filter counts. A filter must match all tensors of a block
or none. Written after mergekit 0.1, mergekit/scripts/merge_raw_pytorch.py.
"""

import re
from collections.abc import Mapping
from typing import Any

from optimizer.errors import RecipeError
from optimizer.families import Layout, default_layout, layout_names, load_layout
from optimizer.files import CHECKPOINT_SUFFIXES, yaml_of
from optimizer.interchange.notation import Fields, json_text, number_in, received
from optimizer.interchange.placed import SourceNames, recipe_of_rows
from optimizer.recipes import Recipe

__all__ = ["is_mergekit", "read_mergekit"]

_METHOD = re.compile(r"^merge_method\s*:", re.MULTILINE)
_TITLE = re.compile(
    r"#\s*(?P<name>\"(?:[^\"\\]|\\.)*\"), step (?P<step>\"(?:[^\"\\]|\\.)*\"), mapping (?P<mapping>[\w-]+)"
)
_ZERO = 1e-200  # blockfit exports a weight of 0 as 1e-300, since mergekit takes 0 for a missing weight
_SUPPORTED = "must be linear or task_arithmetic"


def is_mergekit(text: str) -> bool:
    """Return whether a text is a configuration of mergekit."""
    return _METHOD.search(text) is not None


def read_mergekit(text: str, name: str, layout: Layout | None = None) -> tuple[Recipe, list[str]]:
    """Return the recipe of a configuration, and notes about it.

    Args:
        text: The YAML.
        name: The name of the recipe if the text does not give one.
        layout: The layout of the models. Default: the one that has tensors for the most filters.

    Returns:
        The recipe, and the notes as sentences.

    Raises:
        RecipeError: If the YAML is broken, the method is another one, or a recipe cannot express the weights. The error
            names the field.

    """
    try:
        data = yaml_of(text)
    except Exception as error:  # for a broken text ruamel raises errors of many kinds, not only its own
        raise RecipeError(
            f"not readable as YAML: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from None
    if not isinstance(data, Mapping):
        raise RecipeError(f"received {received(data)}; a configuration of mergekit must be a mapping")
    title = _TITLE.search(text)
    fields = Fields(data, "")
    method = fields.text("merge_method")
    if method not in ("linear", "task_arithmetic"):
        raise fields.wrong("merge_method", f"{_SUPPORTED}; other methods are no weighted sums by block")
    for foreign in ("slices", "modules", "tokenizer_source", "tokenizer"):
        if data.get(foreign):
            raise RecipeError(f"{foreign}: is for language models; a recipe merges image models")
    weights, sources = _weights(fields)
    base = _base(data, sources) if method == "task_arithmetic" else None
    layout = layout or _layout_of(weights)
    rows = {place: _row(fields, layout, place, weights, base) for place in layout.places}
    return recipe_of_rows(
        name if title is None else json_text(title["name"]),
        layout,
        sources.models,
        rows,
        output="merged" if title is None else json_text(title["step"]),
        origin=base or _origin(weights),
        prefer=None if title is None else title["mapping"],
    )


def _layout_of(weights: Mapping[str, Any]) -> Layout:
    """Return the layout with the fewest filters that match none of its sample names; of several, the default one."""
    entries = [entry for weight in weights.values() if isinstance(weight, list) for entry in weight]
    filters = {str(entry["filter"]) for entry in entries if isinstance(entry, Mapping) and entry.get("filter")}

    def unmatched(layout: Layout) -> int:
        samples = [place + inner for place in layout.places for inner in _samples(layout, place)]
        return sum(not any(part in sample for sample in samples) for part in filters)

    layouts = [default_layout(), *map(load_layout, layout_names())]
    return min((layout for layout in layouts if layout.tools.knows("mergekit")), key=unmatched)


def _samples(layout: Layout, place: str) -> tuple[str, ...]:
    """Return sample names of the tensors in a place, without the place."""
    names = layout.tools.mergekit
    assert names is not None, "only layouts with names for mergekit's filters are read"
    return names.inside.get(place, names.block)


def _weights(fields: Fields) -> tuple[dict[str, Any], SourceNames]:
    """Return the weight of each model as the configuration gives it, and the models."""
    shared = fields.data.get("parameters") or {}
    default = shared.get("weight") if isinstance(shared, Mapping) else None
    sources = SourceNames()
    weights: dict[str, Any] = {}
    for position, entry in enumerate(fields.entries("models"), 1):
        where = f"models, entry {position}"
        if not isinstance(entry, Mapping):
            raise RecipeError(f"{where}: received {received(entry)}; must be a mapping with model and parameters")
        parameters = entry.get("parameters") or {}
        weight = parameters.get("weight") if isinstance(parameters, Mapping) else None
        name = sources.name(_file(entry.get("model"), where))
        if name in weights:
            raise RecipeError(f"{where}: {name!r} is listed twice")
        weights[name] = default if weight is None else weight
    return weights, sources


def _file(model: Any, where: str) -> str:
    """Return the file of a model's entry, or raise RecipeError if it names no checkpoint."""
    path = model.get("path") if isinstance(model, Mapping) and isinstance(model.get("path"), str) else model
    if not isinstance(path, str) or not path.lower().endswith(CHECKPOINT_SUFFIXES):
        raise RecipeError(
            f"{where}: received {received(path)}; blockfit reads configurations for single checkpoints "
            "(mergekit-pytorch), whose models are .safetensors files"
        )
    return path


def _base(data: Mapping[str, Any], sources: SourceNames) -> str:
    """Return the name of the base model."""
    return sources.name(_file(data.get("base_model"), "base_model"))


def _row(fields: Fields, layout: Layout, prefix: str, weights: Mapping[str, Any], base: str | None) -> dict[str, float]:
    """Return the coefficients of the tensors under a prefix, by model."""
    row = {name: _weight_at(weight, layout, prefix, name) for name, weight in weights.items() if name != base}
    shared = fields.data.get("parameters") or {}
    parameters = shared if isinstance(shared, Mapping) else {}
    if base is not None and parameters.get("lambda", 1.0) != 1.0:
        raise RecipeError(f"parameters.lambda: received {received(parameters['lambda'])}; must be 1")
    total = sum(row.values())
    if parameters.get("normalize", base is None) is True:
        if abs(total) < _ZERO:
            raise RecipeError(f"the weights of {prefix}* sum to 0 and cannot be normalized")
        row = {name: weight / total for name, weight in row.items()}
        total = 1.0
    return row if base is None else {base: 1 - total, **row}


def _weight_at(weight: Any, layout: Layout, prefix: str, name: str) -> float:
    """Return the weight of the tensors under a prefix; in a list, the first filter in their names counts."""
    for entry in weight if isinstance(weight, list) else [weight]:
        value, part = (entry.get("value"), entry.get("filter")) if isinstance(entry, Mapping) else (entry, None)
        if part is not None and not _is_in(str(part), layout, prefix, name):
            continue
        number = None if isinstance(value, str) else number_in(value)
        if number is None:
            raise RecipeError(
                f"models.{name}.weight: received {received(value)}; must be a number, or filters with a number each"
            )
        return 0.0 if abs(number) < _ZERO else number
    raise RecipeError(f"models.{name}.weight: none for {prefix}*; the last entry of the list needs no filter")


def _is_in(part: str, layout: Layout, prefix: str, name: str) -> bool:
    """Return whether a filter matches all tensors under a prefix; raise RecipeError if it matches only some."""
    found = {part in prefix + inner for inner in _samples(layout, prefix)}
    if len(found) > 1:
        raise RecipeError(
            f"models.{name}.weight: the filter {received(part)} matches only some tensors of {prefix}*; "
            "a recipe has one number for each block"
        )
    return found.pop()


def _origin(weights: Mapping[str, Any]) -> str | None:
    """Return the only model that gives tensors without a filter, None if several or none do."""
    defaults = {
        name: next(
            (entry.get("value") for entry in weight if isinstance(entry, Mapping) and "filter" not in entry), None
        )
        for name, weight in weights.items()
        if isinstance(weight, list)
    }
    origins = [name for name, value in defaults.items() if value == 1]
    return origins[0] if len(origins) == 1 else None
