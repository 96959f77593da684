"""Read recipes from YAML files, with a line for every problem, and write them so that they read back unchanged."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictStr, StringConstraints, WithJsonSchema
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarbool import ScalarBoolean

from optimizer.errors import BlockfitWarning, RecipeError, attempt
from optimizer.families import DEFAULT_LAYOUT, Layout, layout_names, load_layout
from optimizer.files import (
    TEXT_SUFFIXES,
    UserFile,
    dump_yaml,
    line_of,
    missing_file,
    named_file,
    read_text,
    read_yaml,
    replace_text,
    schema_of,
    shown,
    validate,
)
from optimizer.recipes.fitted import Fitted
from optimizer.recipes.modes import MODES
from optimizer.recipes.presets import Preset, dropped_note, numbered_alpha, preset_alpha, read_presets
from optimizer.recipes.recipe import Alpha, Expected, Free, Model, Recipe, Step

__all__ = [
    "RECIPE_TYPE",
    "alpha_as_data",
    "folders_of",
    "load_recipe",
    "read_alpha",
    "read_recipe",
    "recipe_as_data",
    "recipe_of",
    "recipe_schema",
    "save_recipe",
    "step_as_data",
]

RECIPE_TYPE = "blockfit"  # marks our sd_merge_recipe among those of other tools

_Name = Annotated[StrictStr, StringConstraints(min_length=1)]
_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number"}, "minItems": 1}


class FreeEntry(UserFile):
    """A free alpha, which a study searches."""

    search: Annotated[Any, WithJsonSchema({**_NUMBERS, "minItems": 2, "maxItems": 2})] = Field(
        description="The lowest and the highest value.", examples=[[0, 1], [-1, 1]]
    )
    blocks: Annotated[
        Any,
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
    ] = Field(
        None,
        description="The blocks that are searched, as a block list; the others have 0. Default: all.",
        examples=["OUT03-OUT11,M00"],
    )
    tie: Annotated[Any, WithJsonSchema({"type": "boolean"})] = Field(
        False, description="Whether all blocks share one number."
    )
    step: Annotated[Any, WithJsonSchema({"type": ["number", "null"]})] = Field(
        None, description="The spacing of a grid of values that starts at the lowest value.", examples=[0.01]
    )
    start: Annotated[Any, WithJsonSchema({"type": ["number", "null"]})] = Field(
        None, description="The value before the search. Default: 0, or the bound next to it.", examples=[0.5]
    )


_FREE = FreeEntry.model_json_schema()
_IN_MAPPING = {**_FREE, "properties": {name: of for name, of in _FREE["properties"].items() if name != "blocks"}}
_ALPHA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "description": "One number for all blocks."},
        {**_NUMBERS, "description": "One number per block in the layout's order, or all but the first (base_alpha)."},
        {"type": "string", "description": "The name of a preset in the file that `presets` names."},
        _FREE,
        {
            "type": "object",
            "description": "Numbers or free alphas by block, range of blocks or list of both; other blocks have 0.",
            "additionalProperties": {"anyOf": [{"type": "number"}, _IN_MAPPING]},
        },
    ]
}
_Alpha = Annotated[
    Any,
    WithJsonSchema(_ALPHA),
    Field(examples=[0.5, {"OUT06-OUT11": 0.15}, {"search": [0, 1], "blocks": "OUT03-OUT11"}]),
]


class ModelEntry(UserFile):
    """A checkpoint that the recipe starts from."""

    file: _Name = Field(
        description="The file, beside the recipe or in the folders of models; or its hash.",
        examples=["v1-5-pruned-emaonly.safetensors", "model [a60cfaa90d]"],
    )
    license: str = Field("unknown", description="The licence.", examples=["creativeml-openrail-m"])
    sha256: str | None = Field(None, description="The SHA-256 that the file must have.")


class ExpectEntry(UserFile):
    """The similarities reported for a step; `blockfit verify` measures them again."""

    metric: str = Field("attention", description="The metric.", examples=["attention", "explained"])
    seed: int = Field(114514, description="The seed of attention's random inputs.")
    blocks: Annotated[
        Any,
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "number"}}]}),
    ] = Field(
        description="The blocks that were measured, or the similarity of each.",
        examples=["OUT03-OUT11", {"OUT03": 0.974805}],
    )
    total: float | None = Field(None, description="The mean similarity, 1 at most.", examples=[0.975])


class StepEntry(UserFile):
    """One step: two or three inputs, combined by a mode with an alpha per block."""

    name: _Name = Field(description="The name, which later steps use as an input.", examples=["TEMP1"])
    mode: str = Field(
        description="; ".join(f"{mode.name}: {mode.formula}" for mode in MODES.values()),
        json_schema_extra={"enum": list(MODES)},
    )
    a: _Name = Field(description="The first input: a model or another step.")
    b: _Name = Field(description="The second input.")
    c: _Name | None = Field(None, description="The third input, of modes that have one.")
    alpha: _Alpha = Field(description="The weight of the step in each block.")
    base_alpha: float | None = Field(None, description="The alpha of the first block, beside a list of the others.")
    beta: _Alpha = Field(None, description="The second weight, of modes that have one.")
    base_beta: float | None = Field(None, description="The beta of the first block, beside a list of the others.")
    expect: ExpectEntry | None = Field(None, description="The similarities reported for this step's result.")
    similarity: dict[str, Any] | None = Field(
        None, description="The similarities that a fit measured for this step; written by blockfit."
    )


class RecipeFile(UserFile):
    """A recipe: checkpoints, and the steps that combine them."""

    name: str | None = Field(None, description="The name. Default: that of the file.")
    layout: str = Field(DEFAULT_LAYOUT, description="The model family.", examples=list(layout_names()))
    mapping: _Name | None = Field(
        None,
        description="The tool whose assignment of tensors to blocks is used. Default: the layout's first.",
        examples=["supermerger", "mecha", "model-mixer"],
    )
    presets: _Name | None = Field(None, description="A file of presets, alphas by name, beside the recipe.")
    models: dict[str, ModelEntry] = Field(description="The checkpoints by the names that steps use.")
    vae: _Name | None = Field(
        None,
        description="The model whose VAE the result has unchanged. Default: the VAE merges as the mapping says.",
        examples=["base"],
    )
    steps: list[StepEntry] = Field(description="The steps, in any order.")
    output: str | None = Field(None, description="The step that is the recipe's result. Default: the last one.")
    fitted: dict[str, Any] | None = Field(None, description="The notes of a fit on its searches; written by blockfit.")


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipe.yaml."""
    return schema_of(RecipeFile, "blockfit recipe")


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe from a YAML file.

        load_recipe("my-study/best.yaml").step("OUT").alpha

    Raises RecipeError with one line for each problem.

    Args:
        path: The file.

    Returns:
        The checked recipe.
    """
    path = Path(path)
    return read_recipe(read_yaml(path, RecipeError), path)


def read_recipe(data: Mapping[str, Any], path: Path) -> Recipe:
    """Return the recipe in the data of a YAML file.

    Raises RecipeError with one line for each problem.

    Args:
        data: The data, as returned by `read_yaml`.
        path: The file, for messages and the default name. A file of presets that the recipe names lies beside it.

    Returns:
        The checked recipe.
    """
    return recipe_of(data, path, name=path.stem, folder=path.parent)


def recipe_of(data: Mapping[str, Any], given: Path | str, *, name: str, folder: Path) -> Recipe:
    """Return the recipe in data of the form of its YAML file.

    Args:
        data: The data.
        given: The file or function that the data came from, for messages.
        name: The default name.
        folder: The folder of a file of presets that the recipe names.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: One line for each problem.
    """
    entry = validate(RecipeFile, data, given, RecipeError)
    layout = attempt(lambda: load_layout(entry.layout), f"{given}: layout")
    presets = _presets_in(folder, entry.presets, given)
    problems: list[str] = [*_unusable(entry.fitted, f"{given}: fitted")]
    steps: list[Step] = []
    for position, item in enumerate(entry.steps):
        problems += _unusable(item.similarity, f"{given}: steps.{item.name}.similarity")

        def read(field: str, value: Any, base: float | None, *, item: Any = item, position: int = position) -> Alpha:
            line = line_of(data, ("steps", position, field))
            where = f"{given}:{f' line {line}:' if line else ''} steps.{item.name}.{field}"
            return read_alpha(value, layout, where, base, presets)

        try:
            alpha = read("alpha", item.alpha, item.base_alpha)
            beta = None if item.beta is None else read("beta", item.beta, item.base_beta)
            where = f"{given}: steps.{item.name}.expect"
            expect = None if item.expect is None else _read_expected(item.expect, layout, where)
            steps.append(Step(item.name, item.mode, item.a, item.b, item.c, alpha, beta, expect, item.similarity))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    if not steps:
        raise RecipeError(f"{given}: steps: empty; a recipe needs at least one step")
    return attempt(
        lambda: Recipe(
            name=entry.name or name,
            layout=layout,
            models={name: Model(model.file, model.license, model.sha256) for name, model in entry.models.items()},
            steps=tuple(steps),
            output=entry.output or steps[-1].name,
            mapping=entry.mapping or layout.default_mapping,
            fitted=None if entry.fitted is None else Fitted.from_data(entry.fitted),
            vae=entry.vae,
        ),
        given,
    )


def _unusable(noted: Any, where: str) -> Iterator[str]:
    """Yield a line for the first note that is no plain value: merges keep their recipe as JSON."""
    stack = [(noted, where)]
    while stack:
        value, place = stack.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    yield f"{place}: received the key {shown(key)}; keys of notes must be text"
                    return
                stack.append((inner, f"{place}.{key}"))
        elif isinstance(value, list):
            stack += [(inner, f"{place}[{number}]") for number, inner in enumerate(value)]
        elif value is not None and not isinstance(value, str | int) and not _is_finite(value):
            yield f"{place}: received {shown(value)}; must be a text, a finite number, true, false, a list or a mapping"
            return


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def save_recipe(recipe: Recipe, path: Path | str) -> None:
    """Write a recipe as YAML, atomically.

        save_recipe(result.recipe, "my-study/mine.yaml")

    The names of its models' files stay as they are; they are not made relative to `path`. Raises InputError if the
    folder is missing or cannot be written to.

    Args:
        recipe: The recipe.
        path: The file to write.
    """
    replace_text(Path(path), dump_yaml(recipe_as_data(recipe)))


def folders_of(recipe: Recipe, path: Path, folders: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return the folders that may hold a recipe's files: its own, that of the fitted recipe, and `folders`."""
    origin = recipe.noted.recipe
    beside = () if origin is None else ((path.parent / origin).parent,)
    return (path.parent, *beside, *folders)


def recipe_as_data(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as the plain values of its YAML file: dicts, lists, strings and numbers."""
    data: dict[str, Any] = {"name": recipe.name, "layout": recipe.layout.name, "mapping": recipe.mapping}
    data["models"] = {
        name: _on_one_line(
            {"file": model.file, "license": model.license, **({"sha256": model.sha256} if model.sha256 else {})}
        )
        for name, model in recipe.models.items()
    }
    if recipe.vae is not None:
        data["vae"] = recipe.vae
    data["steps"] = [step_as_data(step, recipe.layout) for step in recipe.steps]
    data["output"] = recipe.output
    if recipe.fitted is not None:
        data["fitted"] = recipe.fitted.to_data()
    return data


def step_as_data(step: Step, layout: Layout) -> dict[str, Any]:
    """Return a step as the plain values of a recipe's YAML file."""
    data: dict[str, Any] = {"name": step.name, "mode": step.mode}
    data |= step.inputs
    for name, alpha in step.alphas.items():
        data[name] = alpha_as_data(alpha, layout)
    if step.expect is not None:
        data["expect"] = _expected_as_data(step.expect, layout)
    if step.similarity is not None:
        data["similarity"] = {
            metric: _on_one_line(values) if isinstance(values, Mapping) else values
            for metric, values in step.similarity.items()
        }
    return data


def alpha_as_data(alpha: Alpha, layout: Layout) -> Any:
    """Return an alpha as a recipe writes it: a number, a list with one per block, or with free ones a mapping."""
    values = [alpha.values.get(block, 0.0) for block in layout.blocks]
    if not alpha.free:
        return values[0] if len(set(values)) == 1 else _on_one_line(values)
    if len(alpha.free) == 1 and not any(values):
        return _free_as_data(alpha.free[0], layout, with_blocks=True)
    runs: dict[str, Any] = {}
    for number in dict.fromkeys(value for value in alpha.values.values() if value):
        blocks = [block for block, value in alpha.values.items() if value == number]
        runs[layout.describe_blocks(blocks)] = number
    for free in alpha.free:
        runs[layout.describe_blocks(free.blocks)] = _free_as_data(free, layout, with_blocks=False)
    return _on_one_line(runs)


def _free_as_data(free: Free, layout: Layout, *, with_blocks: bool) -> Any:
    data: dict[str, Any] = {"search": [free.low, free.high]}
    if with_blocks and free.blocks != layout.blocks:
        data["blocks"] = layout.describe_blocks(free.blocks)
    if free.tie:
        data["tie"] = True
    data |= {name: value for name, value in (("step", free.step), ("start", free.start)) if value is not None}
    return _on_one_line(data)


def _on_one_line(data: Any) -> Any:
    node: Any = (
        CommentedSeq(data)
        if isinstance(data, list)
        else CommentedMap(
            (key, _on_one_line(value) if isinstance(value, Mapping | list) else value) for key, value in data.items()
        )
    )
    node.fa.set_flow_style()
    return node


def _expected_as_data(expect: Expected, layout: Layout) -> Any:
    data: dict[str, Any] = {"metric": expect.metric}
    if expect.seed != Expected.seed:
        data["seed"] = expect.seed
    data["blocks"] = dict(expect.similarities) if expect.similarities else layout.describe_blocks(expect.blocks)
    if expect.total is not None:
        data["total"] = expect.total
    return _on_one_line(data)


def _read_expected(entry: ExpectEntry, layout: Layout, where: str) -> Expected:
    values: dict[str, float] = {}
    if isinstance(entry.blocks, Mapping):
        blocks = attempt(lambda: layout.parse_blocks([str(key) for key in entry.blocks]), f"{where}.blocks")
        given = {layout.parse_blocks(str(key)): value for key, value in entry.blocks.items()}
        values = {block: _number(given[(block,)], f"{where}.blocks.{block}") for block in blocks if (block,) in given}
        if len(values) != len(given):
            raise RecipeError(f"{where}.blocks: received a range; a similarity belongs to one block")
    elif isinstance(entry.blocks, str):
        blocks = attempt(lambda: layout.parse_blocks(entry.blocks), f"{where}.blocks")
    else:
        raise RecipeError(
            f"{where}.blocks: received {shown(entry.blocks)}; must be blocks, {layout.example} for example, or "
            f"{{{layout.blocks[-1]}: 0.97}}"
        )
    if not 0 <= entry.seed < 2**63:
        raise RecipeError(f"{where}.seed: received {shown(entry.seed)}; must be a whole number from 0 to 2^63 - 1")
    for name, value in (*values.items(), ("total", entry.total)):
        if value is not None and not -1 <= value <= 1:
            raise RecipeError(f"{where}.{name}: received {value:g}; similarities are at most 1: write 97.5 % as 0.975")
    return Expected(blocks, values, entry.total, entry.metric, entry.seed)


def _presets_in(folder: Path, file: str | None, given: Path | str) -> Mapping[str, Preset]:
    if file is None:
        return {}
    presets = named_file(folder, file)
    if presets is None:
        missing = missing_file(folder / file, TEXT_SUFFIXES)
        raise RecipeError(f"{given}: presets: {folder / file} cannot be read: {missing}")
    try:
        return read_presets(read_text(presets, RecipeError).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RecipeError(f"{given}: presets: {presets} cannot be read: not UTF-8 text") from None
    except RecipeError as error:
        raise RecipeError(f"{given}: presets: {error.problems[0]}") from None


def read_alpha(
    value: Any, layout: Layout, where: str, base: float | None = None, presets: Mapping[str, Preset] | None = None
) -> Alpha:
    """Return an alpha from any of its written forms.

    Args:
        value: A number, a list with one number per block, a mapping of blocks, a preset's name, or a free alpha.
        layout: The layout whose blocks are meant.
        where: The place of the alpha, for messages; it ends in "alpha" or "beta".
        base: The number of the first block, if `value` lists the others alone.
        presets: The presets by name.

    Returns:
        The alpha.

    Raises:
        RecipeError: One line for each problem.
    """
    count = len(layout.blocks)
    name = f"base_{where.rsplit('.', 1)[-1]}"
    if base is not None and not math.isfinite(base):
        raise RecipeError(f"{where}: received {name} {base}; must be finite")
    if isinstance(value, list):
        blocks = layout.blocks[-len(value) :] if count - 1 <= len(value) <= count else range(1, len(value) + 1)
        numbers = [_number(number, f"{where}.{block}") for block, number in zip(blocks, value, strict=True)]
        _warn_of_dropped(layout, len(numbers), where)
        return attempt(lambda: numbered_alpha(layout, numbers, base, base_name=name), where)
    if isinstance(value, str) and presets:
        if value not in presets:
            raise RecipeError(
                f"{where}: received {shown(value)}; no preset has this name; must be one of {', '.join(presets)}"
            )
        _warn_of_dropped(layout, len(presets[value].numbers), where)
        return attempt(lambda: preset_alpha(presets[value], layout, base), where)
    if base is not None:
        raise RecipeError(f"{where}: received {name} {base:g} beside it; {name} goes with {count - 1} numbers only")
    if _is_number(value):
        return Alpha(dict.fromkeys(layout.blocks, _number(value, where)))
    if not isinstance(value, Mapping):
        raise RecipeError(
            f"{where}: received {shown(value)}; must be a number, {count} numbers, a mapping of blocks, "
            "the name of a preset (with `presets: FILE` in the recipe), or free as {search: [low, high]}"
        )
    if "search" in value:
        free = _read_free(value, layout, where, None)
        return Alpha({block: 0.0 for block in layout.blocks if block not in free.blocks}, (free,))
    return _read_mapping(value, layout, where)


def _warn_of_dropped(layout: Layout, count: int, where: str) -> None:
    if (dropped := dropped_note(layout, count)) is not None:
        warnings.warn(f"{where}: {dropped}", BlockfitWarning, stacklevel=2)


def _read_mapping(value: Mapping[str, Any], layout: Layout, where: str) -> Alpha:
    values: dict[str, float] = {}
    free: list[Free] = []
    problems: list[str] = []
    seen: set[str] = set()
    for key, inner in value.items():
        here = f"{where}.{key}"
        try:
            blocks = attempt(partial(layout.parse_blocks, str(key)), here)
            if twice := seen & set(blocks):
                doubled = layout.describe_blocks(twice)
                raise RecipeError(f"{here}: {doubled} given more than once; a block may be in one key only")
            seen |= set(blocks)
            if isinstance(inner, Mapping):
                free.append(_read_free(inner, layout, here, blocks))
            else:
                values |= dict.fromkeys(blocks, _number(inner, here))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    rest = {block: 0.0 for block in layout.blocks if block not in seen}
    return Alpha(
        {block: {**rest, **values}[block] for block in layout.blocks if block in rest or block in values}, tuple(free)
    )


def _read_free(value: Mapping[str, Any], layout: Layout, where: str, blocks: tuple[str, ...] | None) -> Free:
    known = list(FreeEntry.model_fields)
    if unknown := [key for key in value if key not in known]:
        raise RecipeError(f"{where}: unknown field {unknown[0]!r}; a free alpha has {', '.join(known)}")
    if "search" not in value:
        raise RecipeError(f"{where}: received {shown(value)}; a free alpha is {{search: [low, high]}}")
    if blocks is not None and "blocks" in value:
        raise RecipeError(f"{where}.blocks: received {shown(value['blocks'])}; the key already names the blocks")
    entry = FreeEntry.model_validate(dict(value))
    if not isinstance(entry.tie, bool):
        raise RecipeError(f"{where}.tie: received {shown(entry.tie)}; must be true or false")
    if not (isinstance(entry.search, list) and len(entry.search) == 2 and all(map(_is_number, entry.search))):
        raise RecipeError(f"{where}.search: received {shown(entry.search)}; must be two numbers, [low, high]")
    if blocks is None:
        named = "all" if entry.blocks is None else entry.blocks
        texts = named if isinstance(named, list) else [named]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise RecipeError(
                f"{where}.blocks: received {shown(named)}; must be blocks or ranges, {layout.example} for example"
            )
        blocks = attempt(lambda: layout.parse_blocks(named), f"{where}.blocks")
    low, high = (_number(bound, f"{where}.search") for bound in entry.search)
    step, start = (
        None if number is None else _number(number, f"{where}.{name}")
        for name, number in (("step", entry.step), ("start", entry.start))
    )
    return attempt(lambda: Free(low, high, blocks, entry.tie, step, start), where, joint=".")


def _number(value: Any, where: str) -> float:
    if not _is_number(value):
        raise RecipeError(f"{where}: received {shown(value)}; must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecipeError(f"{where}: received {number}; must be finite")
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool | ScalarBoolean)
