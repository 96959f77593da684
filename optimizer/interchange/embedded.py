"""Read the recipes that blockfit and other tools write into the metadata of merged files.

Each reader takes the format that its tool writes. An operation beyond a plain merge per block is refused, never
guessed. The same metadata may also arrive as a text, copied from a WebUI's page or from a file's header.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from optimizer.errors import RecipeError, attempt
from optimizer.families import Layout, default_layout
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.interchange.notation import (
    Fields,
    is_empty,
    layout_of_supermerge,
    leaves,
    number_in,
    numbers_in,
    read_supermerge,
    received,
)
from optimizer.interchange.parents import with_parents_steps
from optimizer.library import known_models, name_and_hash, parsed, short_hash
from optimizer.recipes import (
    MODES,
    RECIPE_TYPE,
    Alpha,
    Model,
    Recipe,
    Step,
    dropped_note,
    lacks_first,
    layout_of_counts,
    numbered_alpha,
    read_recipe,
)

__all__ = ["recipe_from_metadata"]

_FIELD = "sd_merge_recipe"
_ONE_STEP, _STEPS = "merged", "TEMP{}"
_STEP_NAME = re.compile(r"merged|TEMP\d+")
_MOST_STEPS = ord("z") - ord("b") + 1  # model-mixer names its models b, c, ..., z
_PLACES = ("primary", "secondary", "tertiary")  # the WebUI's words for A, B and C


def recipe_from_metadata(
    metadata: Mapping[str, Any], path: Path, *, layout: Layout | None = None, with_parents: bool = False
) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe by which the file at `path` was merged, and notes about it.

    Reads metadata of blockfit, SuperMerger, sd-webui-model-mixer and the WebUIs (A1111, Forge).

    Args:
        metadata: The metadata of the file, by field.
        path: The file, for messages and the recipe's name.
        layout: The layout of the merged file. Default: the one for which lists of numbers have the right length, else
            the default layout. blockfit's own metadata name theirs.
        with_parents: Replace models that were themselves merged with the steps that made them, if the metadata holds
            their recipes.

    Returns:
        The recipe, and the notes as sentences.

    Raises:
        RecipeError: If the metadata holds no recipe, or one that blockfit cannot express: elemental merges,
            calculation modes other than normal, adjustments, another tool's format. The error names the field.

    """
    data = parsed(metadata.get(_FIELD))
    if _FIELD not in metadata:
        raise RecipeError(
            f"{path}: no recipe in its metadata ({_FIELD}); it has {', '.join(map(repr, metadata)) or 'none'}"
        )
    known = known_models(metadata)
    recipe, warnings = _read(data, path, f"{path}: {_FIELD}", known, layout)

    def hash_of(model: Model) -> str | None:
        # A recipe of blockfit names files; the metadata lists their hashes separately.
        name = re.split(r"[\\/]", model.file)[-1]
        digits = model.sha256 or name_and_hash(name, known)[1]
        return digits if digits is not None and re.fullmatch(r"[0-9a-f]{64}", digits) else None

    return with_parents_steps(recipe, warnings, _parents(known, path, layout), hash_of, expand=with_parents)


def _parents(
    known: Mapping[str, Mapping[str, Any]], path: Path, layout: Layout | None
) -> dict[str, Callable[[], tuple[Recipe, list[str]]]]:
    """Return readers for the recipes of models that were themselves merged, by the models' sha256."""
    recipes = {digits.lower(): parsed(entry.get(_FIELD)) for digits, entry in known.items()}
    return {
        digits: partial(_read, data, path, f"{path}: {_FIELD} of {short_hash(digits)}", known, layout)
        for digits, data in recipes.items()
        if isinstance(data, Mapping) and re.fullmatch(r"[0-9a-f]{64}", digits)
    }


def _read(
    data: Any, path: Path, where: str, known: Mapping[str, Mapping[str, Any]], layout: Layout | None
) -> tuple[Recipe, list[str]]:
    """Return the recipe in parsed metadata, and notes about it as sentences."""
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: received {received(data)}; must be a JSON object")
    source = _Source(Fields(data, f"{where}."), path, where, known, layout)
    kind = source.fields.text("type")
    if kind not in _READERS:
        raise source.fields.wrong("type", f"must be one of {', '.join(_READERS)}")
    return _READERS[kind](source), source.warnings


@dataclass
class _Source:
    """The recipe in a file's metadata, and the models that its fields have named so far.

    `layout` is the file's; None if it is unknown.
    """

    fields: Fields
    path: Path
    where: str
    known: Mapping[str, Mapping[str, Any]]
    layout: Layout | None = None
    models: dict[str, Model] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _named: dict[tuple[str | None, str | None], str] = field(default_factory=dict)

    @property
    def data(self) -> Mapping[str, Any]:
        """Values of the metadata, by field."""
        return self.fields.data

    def alpha(self, layout: Layout, name: str, numbers: Sequence[float], base: float | None = None) -> Alpha:
        """Return the alpha with these numbers by block; errors name the field `name`."""
        if (dropped := dropped_note(layout, len(numbers))) is not None and dropped not in self.warnings:
            self.warnings.append(dropped)
        return attempt(lambda: numbered_alpha(layout, numbers, base), f"{self.where}.{name}")

    def model(self, name: str) -> str:
        """Return the name in the recipe of the model in a field; one model has one name in all fields."""
        called, digits = name_and_hash(self.data.get(name), self.known)
        if called is None and digits is None:
            raise self.fields.wrong(name, "must be a model's sha256 or name")
        whole = digits if digits is not None and re.fullmatch(r"[0-9a-f]{64}", digits) else None
        if not called:
            assert digits is not None
            # A file can be found by its hash alone.
            called = file = short_hash(digits)
            self.warnings.append(
                f"{name}: the metadata has no name for the model with sha256 {digits}; found by its hash"
            )
        else:
            file = called.replace("\\", "/").rpartition("/")[2] or called
            file = file if file.endswith(CHECKPOINT_SUFFIXES) else f"{file}.safetensors"
        key = (None, whole) if whole is not None else (file, None)
        if key not in self._named:
            stem = (
                next((file[: -len(end)] for end in CHECKPOINT_SUFFIXES if file.endswith(end)), file).strip() or "model"
            )
            names = (stem if n == 1 else f"{stem}-{n}" for n in count(1))
            self._named[key] = next(n for n in names if n not in self.models and not _STEP_NAME.fullmatch(n))
            if whole is None and digits is not None and file != digits:
                file = f"{file} [{digits}]"
            self.models[self._named[key]] = Model(file, sha256=whole)
        return self._named[key]

    def recipe(self, layout: Layout, steps: Iterable[Step], mapping: str) -> Recipe:
        """Return the recipe of these steps; the last step is its output."""
        all_steps = tuple(steps)
        return attempt(
            lambda: Recipe(self.path.stem, layout, self.models, all_steps, all_steps[-1].name, mapping=mapping),
            self.where,
        )


def _of_blockfit(source: _Source) -> Recipe:
    """Return the recipe that blockfit noted."""
    data = source.data.get("recipe")
    if not isinstance(data, Mapping):
        raise source.fields.wrong("recipe", "must be a JSON object")
    if "presets" in data:
        raise RecipeError(f"{source.where}.recipe.presets: received presets; must hold its numbers instead")
    recipe = read_recipe(data, source.path)
    vae = source.data.get("vae")
    if isinstance(vae, Mapping):
        name, digits = received(vae.get("name")), received(vae.get("sha256"))
        source.warnings.append(
            f"vae: the file's VAE comes from {name} (sha256 {digits}), not from the recipe: merge with `vae=...`"
        )
    output = source.data.get("output")
    if not isinstance(output, str) or output == recipe.output:
        return recipe
    source.warnings.append(f"output: the file holds the step {output!r}, not the whole recipe up to {recipe.output!r}")
    recipe.step(output)
    return replace(recipe, output=output)


def _of_webui(source: _Source) -> Recipe:
    """Return the recipe that a WebUI noted."""
    method = source.fields.text("interp_method")
    mode = {"weightedsum": "weight_sum", "adddifference": "add_difference", "nointerpolation": None}.get(
        _letters(method), ""
    )
    if mode == "":
        raise source.fields.wrong("interp_method", "must be 'Weighted sum', 'Add difference' or 'No interpolation'")
    layout = source.layout or default_layout()
    for name, empty in (("bake_in_vae", "None"), ("discard_weights", "")):
        if source.data.get(name) not in (None, empty, ""):
            source.warnings.append(f"{name}: {received(source.data[name])} is not part of the recipe")
    fields = [f"{place}_model_hash" for place in _PLACES]
    if mode is None:
        # The WebUI saved one model anew. A recipe has at least one step, so add one that changes nothing.
        model = source.model(fields[0])
        source.warnings.append(
            f"interp_method: no interpolation: the file is {model!r} alone, written as its weight sum with itself"
        )
        nothing = Alpha(dict.fromkeys(layout.blocks, 0.0))
        return source.recipe(layout, [Step(_ONE_STEP, "weight_sum", model, model, None, nothing)], "supermerger")
    alpha = Alpha(dict.fromkeys(layout.blocks, source.fields.number("multiplier")))
    return source.recipe(layout, [_step(source, mode, fields, alpha)], "supermerger")


def _of_supermerger(source: _Source) -> Recipe:
    """Return the recipe that SuperMerger noted."""
    layout = source.layout or layout_of_supermerge(source.fields)
    merge = read_supermerge(source.fields, layout)
    source.warnings += merge.notes
    step = _step(source, merge.mode, ["model_a", "model_b", "model_c"], merge.alphas["alpha"], merge.alphas.get("beta"))
    return source.recipe(layout, [step], "supermerger")


def _of_model_mixer(source: _Source) -> Recipe:
    """Return the recipe that sd-webui-model-mixer noted."""
    modes = source.fields.entries("mode")
    calculations = leaves(source.data.get("calcmode", "normal"))
    if any(not isinstance(mode, str) or mode.lower() != "normal" for mode in calculations):
        raise source.fields.wrong("calcmode", "must be normal; recipes are made of weighted sums")
    source.fields.must_be_empty("adjust", "a merge cannot express adjustments")
    used = _model_mixer_used(source, len(modes))
    layout = source.layout or _layout_of_model_mixer(source)
    steps: list[Step] = []
    per_block: set[bool] = set()
    result = source.model("model_a")
    for position in used:
        mode = {"sum": "weight_sum", "adddiff": "add_difference"}.get(_letters(modes[position]))
        if mode is None:
            raise source.fields.wrong("mode", f"{received(modes[position])} must be Sum or Add-Diff")
        if _at(source, "use_elemental", position) is not False and not is_empty(_at(source, "elemental", position)):
            raise source.fields.wrong("elemental", "numbers per block cannot express elemental merges")
        alpha, blockwise = _model_mixer_alpha(source, layout, position, len(modes))
        per_block.add(blockwise)
        b = source.model(f"model_{chr(ord('b') + position)}")
        c = source.model("base_model") if "c" in MODES[mode].inputs else None
        name = _STEPS.format(len(steps) + 1) if len(used) > 1 else _ONE_STEP
        steps.append(Step(name, mode, result, b, c, alpha))
        result = name
    if not steps:
        raise source.fields.wrong("uses", "must mark at least one step as used")
    if len(per_block) == 2:
        source.warnings.append(
            "use_mbws: steps without block weights merged the VAE too; here all steps leave model A's VAE as it is"
        )
    # model-mixer keeps model A's VAE when it merges per block, and merges all tensors otherwise.
    return source.recipe(layout, steps, "supermerger" if per_block == {False} else "model-mixer")


def _layout_of_model_mixer(source: _Source) -> Layout:
    """Return the layout by the number of blocks that the metadata list, and of their numbers."""
    blocks, listed = source.data.get("blocks"), source.data.get("weights_alpha")
    numbers = [numbers_in(entry) for entry in listed] if isinstance(listed, list) else []
    counts = [len(entry) for entry in numbers if entry is not None]
    return layout_of_counts([blocks.count(",") + 1] if isinstance(blocks, str) and "," in blocks else counts)


def _model_mixer_used(source: _Source, steps: int) -> list[int]:
    """Return the positions of the steps that were carried out, in the lists with an entry for each step."""
    if not 1 <= steps <= _MOST_STEPS:
        raise source.fields.wrong("mode", "must have an entry for each step")
    if "uses" not in source.data:
        return list(range(steps))
    uses = [entry is True for entry in source.fields.entries("uses")]
    if len(uses) == steps:
        return [position for position in range(steps) if uses[position]]
    if sum(uses) != steps:
        raise source.fields.wrong("uses", f"must have an entry for each of {steps} steps")
    return list(range(steps))


def _model_mixer_alpha(source: _Source, layout: Layout, position: int, steps: int) -> tuple[Alpha, bool]:
    """Return the alpha of a step, and whether it has a number for each block."""
    flags = next((name for name in ("use_mbws", "use_mbw") if name in source.data), None)
    listed = source.fields.entries("weights_alpha", steps)[position] if "weights_alpha" in source.data else None
    if flags is not None:
        blockwise = bool(source.fields.entries(flags, steps)[position])
    else:
        blockwise = source.data.get("mbw") is True or isinstance(listed, list)
    if not blockwise:
        number = number_in(source.fields.entries("alpha", steps)[position])
        if number is None:
            raise source.fields.wrong("alpha", "must be a list of numbers")
        return Alpha(dict.fromkeys(layout.blocks, number)), False
    numbers = numbers_in(listed)
    if numbers is None:
        raise source.fields.wrong("weights_alpha", f"entry {position + 1} must be {len(layout.blocks)} numbers")
    whole = [0.0, *numbers] if lacks_first(layout, len(numbers)) else numbers
    return source.alpha(layout, "weights_alpha", whole), True


_READERS: dict[str, Callable[[_Source], Recipe]] = {
    RECIPE_TYPE: _of_blockfit,
    "webui": _of_webui,
    "sd-webui-supermerger": _of_supermerger,
    "sd-webui-model-mixer": _of_model_mixer,
}


def _step(source: _Source, mode: str, fields: Sequence[str], alpha: Alpha, beta: Alpha | None = None) -> Step:
    # The tools fill in a third model even for modes that take two, so read only the inputs of the mode.
    inputs = {
        place: source.model(name) for place, name in zip("abc", fields, strict=True) if place in MODES[mode].inputs
    }
    return Step(_ONE_STEP, mode, inputs["a"], inputs["b"], inputs.get("c"), alpha, beta)


def _at(source: _Source, name: str, position: int) -> Any:
    """Return a step's entry in a field that is a list; the field itself if it is no list, None if it is missing."""
    value = source.data.get(name)
    return value[position] if isinstance(value, list) and position < len(value) else value


def _letters(value: object) -> str:
    """Return the letters of a mode's name, without `lerp`, a way of computing the same sum."""
    return re.sub(r"lerp|[^a-z]", "", value.lower()) if isinstance(value, str) else ""
