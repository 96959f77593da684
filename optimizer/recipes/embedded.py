"""Recipes that merged files carry in their metadata, ours and other tools', read back as recipes.

The formats are those that the tools write; what they do beyond a plain merge per block is refused, never guessed.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from optimizer.checkpoints import CHECKPOINT_SUFFIXES, known_models, load_layout, name_and_hash, parsed, short_hash
from optimizer.checkpoints.layout import Layout
from optimizer.errors import RecipeError, attempt
from optimizer.recipes.files import read_recipe
from optimizer.recipes.metadata import TYPE
from optimizer.recipes.modes import MODES
from optimizer.recipes.presets import numbered_alpha
from optimizer.recipes.recipe import Alpha, Model, Recipe, Step

__all__ = ["recipe_from_metadata"]

_FIELD = "sd_merge_recipe"
_ONE_STEP, _STEPS = "merged", "TEMP{}"
_STEP_NAME = re.compile(r"merged|TEMP\d+")
_PLACES = ("primary", "secondary", "tertiary")  # what the WebUI calls A, B and C


def recipe_from_metadata(metadata: Mapping[str, str], path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe by which the file at `path`, with this metadata, was merged; and what to know about it, in sentences.

    Reads blockfit's, SuperMerger's, sd-webui-model-mixer's and the WebUI's own (A1111, Forge) metadata. Raises
    RecipeError, naming the field, if there is no recipe, or it does what a recipe of blockfit cannot say: elemental
    merges, calculation modes other than normal, adjustments, another tool's format.
    """
    data = parsed(metadata.get(_FIELD))
    if _FIELD not in metadata:
        raise RecipeError(
            f"{path}: no recipe in its metadata ({_FIELD}); it has {', '.join(map(repr, metadata)) or 'none'}"
        )
    if not isinstance(data, Mapping):
        raise RecipeError(f"{path}: {_FIELD}: received {_shown(data)}; must be a JSON object")
    source = _Source(data, path, known_models(metadata))
    kind = source.text("type")
    if kind not in _READERS:
        raise source.wrong("type", f"must be one of {', '.join(_READERS)}")
    return _READERS[kind](source), tuple(source.warnings)


@dataclass
class _Source:
    """The recipe in a file's metadata, read field by field; every error names the file and the field."""

    data: Mapping[str, Any]
    path: Path
    known: Mapping[str, Mapping[str, Any]]
    models: dict[str, Model] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _named: dict[tuple[str | None, str | None], str] = field(default_factory=dict)

    def wrong(self, name: str, why: str) -> RecipeError:
        received = f"received {_shown(self.data[name])}" if name in self.data else "missing"
        return RecipeError(f"{self.path}: {_FIELD}.{name}: {received}; {why}")

    def text(self, name: str) -> str:
        value = self.data.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be text")
        return value

    def flag(self, name: str) -> bool:
        value = self.data.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def number(self, name: str) -> float:
        number = _number(self.data.get(name))
        if number is None:
            raise self.wrong(name, "must be a number")
        return number

    def entries(self, name: str, steps: int | None = None) -> list[Any]:
        value = self.data.get(name)
        if not isinstance(value, list) or steps not in (None, len(value)):
            raise self.wrong(name, "must be a list" + ("" if steps is None else f" of {steps}, one for each step"))
        return value

    def must_be_empty(self, name: str, why: str) -> None:
        """Refuse a field that asks for more than a merge per block."""
        if not _is_empty(self.data.get(name)):
            raise self.wrong(name, why)

    def alpha(self, layout: Layout, name: str, numbers: Sequence[float], base: float | None = None) -> Alpha:
        return attempt(lambda: numbered_alpha(layout, numbers, base), f"{self.path}: {_FIELD}.{name}")

    def model(self, name: str) -> str:
        """The name, in the recipe, of the model that this field refers to; the same one for the same model."""
        called, digits = name_and_hash(self.data.get(name), self.known)
        if called is None and digits is None:
            raise self.wrong(name, "must be a model's sha256 or name")
        if not called:
            assert digits is not None
            called = short_hash(digits)
            self.warnings.append(f"{name}: the metadata has no name for the model with sha256 {digits}; set its file")
        file = called.replace("\\", "/").rpartition("/")[2] or called
        file = file if file.endswith(CHECKPOINT_SUFFIXES) else f"{file}.safetensors"
        digits = digits if digits is not None and re.fullmatch(r"[0-9a-f]{64}", digits) else None
        key = (None, digits) if digits is not None else (file, None)
        if key not in self._named:
            stem = (file.rpartition(".")[0] or file).strip() or "model"
            names = (stem if n == 1 else f"{stem}-{n}" for n in count(1))
            self._named[key] = next(n for n in names if n not in self.models and not _STEP_NAME.fullmatch(n))
            self.models[self._named[key]] = Model(file, sha256=digits)
        return self._named[key]

    def recipe(self, steps: Iterable[Step], mapping: str) -> Recipe:
        """The recipe of these steps, the last one its output."""
        all_steps = tuple(steps)
        return attempt(
            lambda: Recipe(
                self.path.stem, load_layout("sd1"), self.models, all_steps, all_steps[-1].name, mapping=mapping
            ),
            f"{self.path}: {_FIELD}",
        )


def _of_blockfit(source: _Source) -> Recipe:
    data = source.data.get("recipe")
    if not isinstance(data, Mapping):
        raise source.wrong("recipe", "must be a JSON object")
    if "presets" in data:
        raise RecipeError(f"{source.path}: {_FIELD}.recipe.presets: received one; a file's recipe holds its numbers")
    recipe = read_recipe(data, source.path)
    vae = source.data.get("vae")
    if isinstance(vae, Mapping):
        name, digits = _shown(vae.get("name")), _shown(vae.get("sha256"))
        source.warnings.append(
            f"vae: the file's VAE is not the recipe's, but {name} (sha256 {digits}): merge with --vae"
        )
    output = source.data.get("output")
    if not isinstance(output, str) or output == recipe.output:
        return recipe
    source.warnings.append(f"output: the file holds the step {output!r}, not the whole recipe up to {recipe.output!r}")
    recipe.step(output)
    return replace(recipe, output=output)


def _of_webui(source: _Source) -> Recipe:
    method = source.text("interp_method")
    mode = {"Weighted sum": "weight_sum", "Add difference": "add_difference"}.get(method)
    if mode is None:
        raise source.wrong("interp_method", "must be 'Weighted sum' or 'Add difference'")
    layout = load_layout("sd1")
    alpha = Alpha(dict.fromkeys(layout.blocks, source.number("multiplier")))
    for name, empty in (("bake_in_vae", "None"), ("discard_weights", "")):
        if source.data.get(name) not in (None, empty, ""):
            source.warnings.append(f"{name}: {_shown(source.data[name])} is not part of the recipe")
    return source.recipe([_step(source, mode, [f"{place}_model_hash" for place in _PLACES], alpha)], "supermerger")


def _of_supermerger(source: _Source) -> Recipe:
    method = source.text("mode")
    words = {"Weight": "weight_sum", "Add": "add_difference", "Triple": "triple_sum", "Twice": "sum_twice"}
    modes = [mode for word, mode in words.items() if word in method]
    if len(modes) != 1:
        raise source.wrong("mode", "must be Weight sum, Add difference, Triple sum or sum Twice")
    _must_be_normal(source)
    source.must_be_empty("elemental_merge", "elemental merges cannot be said per block")
    layout = load_layout("sd1")
    alphas = {
        name: _without_excluded(source, layout, _supermerger_alpha(source, layout, name))
        for name in MODES[modes[0]].alphas
    }
    step = _step(source, modes[0], ["model_a", "model_b", "model_c"], alphas["alpha"], alphas.get("beta"))
    return source.recipe([step], "supermerger")


def _supermerger_alpha(source: _Source, layout: Layout, name: str) -> Alpha:
    """SuperMerger's alpha or beta: one for all, or 26 as text, or, where that is a preset's name, 25 and the base."""
    if not source.flag("mbw"):
        return Alpha(dict.fromkeys(layout.blocks, source.number(f"base_{name}")))
    numbers = _numbers(source.data.get(f"weights_{name}_orig"))
    if numbers is not None and len(numbers) == len(layout.blocks):
        return source.alpha(layout, f"weights_{name}_orig", numbers)
    numbers = _numbers(source.data.get(f"weights_{name}"))
    if numbers is None:
        raise source.wrong(f"weights_{name}", "must be a list of numbers")
    base = source.number(f"base_{name}") if len(numbers) == len(layout.blocks) - 1 else None
    return source.alpha(layout, f"weights_{name}", numbers, base)


def _without_excluded(source: _Source, layout: Layout, alpha: Alpha) -> Alpha:
    """SuperMerger's lists of blocks that are left out, or alone merged: A passes through the others, as with 0."""
    for name in ("Include", "Exclude"):
        listed = [entry for entry in _leaves(source.data.get(name)) if entry]
        if not listed:
            continue
        if unknown := [entry for entry in listed if entry not in layout.blocks]:
            raise source.wrong(name, f"{_shown(unknown[0])} is no block; elements cannot be said per block")
        alpha = Alpha(
            {block: n if (block in listed) == (name == "Include") else 0.0 for block, n in alpha.values.items()}
        )
    return alpha


def _of_model_mixer(source: _Source) -> Recipe:
    modes = source.entries("mode")
    _must_be_normal(source)
    source.must_be_empty("adjust", "adjustments cannot be said as a merge")
    used = _model_mixer_used(source, len(modes))
    layout = load_layout("sd1")
    steps: list[Step] = []
    per_block: set[bool] = set()
    result = source.model("model_a")
    for position in used:
        mode = {"sum": "weight_sum", "adddiff": "add_difference"}.get(_letters(modes[position]))
        if mode is None:
            raise source.wrong("mode", f"{_shown(modes[position])} is none of Sum, Add-Diff")
        if _at(source, "use_elemental", position) is not False and not _is_empty(_at(source, "elemental", position)):
            raise source.wrong("elemental", "elemental merges cannot be said per block")
        alpha, blockwise = _model_mixer_alpha(source, layout, position, len(modes))
        per_block.add(blockwise)
        b = source.model(f"model_{chr(ord('b') + position)}")
        c = source.model("base_model") if "c" in MODES[mode].inputs else None
        name = _STEPS.format(len(steps) + 1) if len(used) > 1 else _ONE_STEP
        steps.append(Step(name, mode, result, b, c, alpha))
        result = name
    if not steps:
        raise source.wrong("uses", "no step is used; there is no merge")
    if len(per_block) == 2:
        source.warnings.append(
            "use_mbws: steps without block weights merged the VAE too; here all steps leave model A's VAE as it is"
        )
    # Model Mixer leaves the VAE alone where it merges per block, and merges everything where it does not.
    return source.recipe(steps, "supermerger" if per_block == {False} else "model-mixer")


def _model_mixer_used(source: _Source, steps: int) -> list[int]:
    """The positions, in the lists that have an entry for each step, of the steps that were carried out."""
    if not 1 <= steps <= 25:
        raise source.wrong("mode", "must have an entry for each step")
    if "uses" not in source.data:
        return list(range(steps))
    uses = [entry is True for entry in source.entries("uses")]
    if len(uses) == steps:
        return [position for position in range(steps) if uses[position]]
    if sum(uses) != steps:
        raise source.wrong("uses", f"must say for {steps} steps whether they are used")
    return list(range(steps))


def _model_mixer_alpha(source: _Source, layout: Layout, position: int, steps: int) -> tuple[Alpha, bool]:
    """The alpha of a step, and whether it is one per block."""
    flags = next((name for name in ("use_mbws", "use_mbw") if name in source.data), None)
    listed = source.entries("weights_alpha", steps)[position] if "weights_alpha" in source.data else None
    if flags is not None:
        blockwise = bool(source.entries(flags, steps)[position])
    else:
        blockwise = source.data.get("mbw") is True or isinstance(listed, list)
    if not blockwise:
        number = _number(source.entries("alpha", steps)[position])
        if number is None:
            raise source.wrong("alpha", "must be a list of numbers")
        return Alpha(dict.fromkeys(layout.blocks, number)), False
    numbers = _numbers(listed)
    if numbers is None:
        raise source.wrong("weights_alpha", f"entry {position + 1} must be {len(layout.blocks)} numbers")
    return source.alpha(layout, "weights_alpha", [0.0, *numbers] if len(numbers) == 25 else numbers), True


_READERS: dict[str, Callable[[_Source], Recipe]] = {
    TYPE: _of_blockfit,
    "webui": _of_webui,
    "sd-webui-supermerger": _of_supermerger,
    "sd-webui-model-mixer": _of_model_mixer,
}


def _step(source: _Source, mode: str, fields: Sequence[str], alpha: Alpha, beta: Alpha | None = None) -> Step:
    # The tools fill the place of a third model that a mode does not take, so only those that it takes are read.
    inputs = {
        place: source.model(name) for place, name in zip("abc", fields, strict=True) if place in MODES[mode].inputs
    }
    return Step(_ONE_STEP, mode, inputs["a"], inputs["b"], inputs.get("c"), alpha, beta)


def _must_be_normal(source: _Source) -> None:
    modes = _leaves(source.data.get("calcmode", "normal"))
    if any(not isinstance(mode, str) or mode.lower() != "normal" for mode in modes):
        raise source.wrong("calcmode", "only normal is a weighted sum, which recipes are made of")


def _at(source: _Source, name: str, position: int) -> Any:
    """What a list that may be missing has for a step; the field itself where it is no list."""
    value = source.data.get(name)
    return value[position] if isinstance(value, list) and position < len(value) else value


def _leaves(value: Any) -> list[Any]:
    """What is in a value: itself, or the innermost entries of lists and objects."""
    if isinstance(value, list | dict):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(inner)]
    return [value]


def _is_empty(value: Any) -> bool:
    """Whether nothing is asked for: no entry, or texts of zeros, as "0,0,0"."""
    return not any(leaf.strip(", 0\n") if isinstance(leaf, str) else leaf for leaf in _leaves(value))


def _letters(value: object) -> str:
    """A mode's name without the ways of computing the same that it may mention."""
    return re.sub(r"lerp|[^a-z]", "", value.lower()) if isinstance(value, str) else ""


def _numbers(value: object) -> list[float] | None:
    """Numbers in a list, or in a text with commas; None if anything else is among them."""
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list):
        return None
    numbers = [_number(entry) for entry in entries]
    known = [number for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
