"""Recipes as YAML files: read with every problem named, written so that they read back as the same recipe."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import StrictStr, StringConstraints
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarbool import ScalarBoolean

from optimizer.checkpoints import atomic_path
from optimizer.checkpoints.layout import Layout, load_layout
from optimizer.errors import RecipeError
from optimizer.recipes.recipe import Alpha, Free, Model, Recipe, Step
from optimizer.recipes.yaml_files import UserFile, dump_yaml, line_of, read_yaml, validate

__all__ = ["load_recipe", "read_recipe", "recipe_as_data", "save_recipe"]

_Built = TypeVar("_Built")
_Name = Annotated[StrictStr, StringConstraints(min_length=1)]


class _ModelEntry(UserFile):
    file: _Name
    license: str = "unknown"
    sha256: str | None = None


class _FreeEntry(UserFile):
    search: Any
    blocks: Any = None
    tie: Any = False
    step: Any = None
    start: Any = None


class _StepEntry(UserFile):
    name: _Name
    mode: str
    a: _Name
    b: _Name
    c: _Name | None = None
    alpha: Any
    similarity: dict[str, Any] | None = None


class _RecipeFile(UserFile):
    name: str | None = None
    layout: str = "sd1"
    mapping: str = "supermerger"
    models: dict[str, _ModelEntry]
    steps: list[_StepEntry]
    output: str | None = None
    fitted: dict[str, Any] | None = None


def load_recipe(path: Path) -> Recipe:
    """The recipe in the YAML file `path`. Raises RecipeError with one line for each problem."""
    return read_recipe(read_yaml(path, RecipeError), path)


def read_recipe(data: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe in data as `read_yaml` gives it; `path` is for messages and the default name. Raises RecipeError."""
    entry = validate(_RecipeFile, data, path, RecipeError)
    layout = _attempt(lambda: load_layout(entry.layout), f"{path}: layout")
    problems: list[str] = []
    steps: list[Step] = []
    for position, item in enumerate(entry.steps):
        line = line_of(data, ("steps", position, "alpha"))
        where = f"{path}:{f' line {line}:' if line else ''} steps.{item.name}.alpha"
        try:
            alpha = _read_alpha(item.alpha, layout, where)
            steps.append(Step(item.name, item.mode, item.a, item.b, item.c, alpha, item.similarity))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    if not steps:
        raise RecipeError(f"{path}: steps: empty; a recipe needs at least one step")
    try:
        return Recipe(
            name=entry.name or path.stem,
            layout=layout,
            models={name: Model(model.file, model.license, model.sha256) for name, model in entry.models.items()},
            steps=tuple(steps),
            output=entry.output or steps[-1].name,
            mapping=entry.mapping,
            fitted=entry.fitted,
        )
    except RecipeError as error:
        raise RecipeError(f"{path}: {problem}" for problem in error.problems) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write `recipe` as YAML, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(dump_yaml(recipe_as_data(recipe)), encoding="utf-8", newline="\n")


def recipe_as_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain dicts, lists, strings and numbers, as its YAML file holds it."""
    data: dict[str, Any] = {"name": recipe.name, "layout": recipe.layout.name, "mapping": recipe.mapping}
    data["models"] = {
        name: _on_one_line(
            {"file": model.file, "license": model.license, **({"sha256": model.sha256} if model.sha256 else {})}
        )
        for name, model in recipe.models.items()
    }
    data["steps"] = [_step_as_data(step, recipe.layout) for step in recipe.steps]
    data["output"] = recipe.output
    if recipe.fitted is not None:
        data["fitted"] = recipe.fitted
    return data


def _step_as_data(step: Step, layout: Layout) -> dict[str, Any]:
    data: dict[str, Any] = {"name": step.name, "mode": step.mode}
    data |= step.inputs
    for name, alpha in step.alphas.items():
        data[name] = _alpha_as_data(alpha, layout)
    if step.similarity is not None:
        data["similarity"] = {
            metric: _on_one_line(values) if isinstance(values, Mapping) else values
            for metric, values in step.similarity.items()
        }
    return data


def _alpha_as_data(alpha: Alpha, layout: Layout) -> Any:
    values = [alpha.values.get(block, 0.0) for block in layout.blocks]
    if not alpha.free:
        return values[0] if len(set(values)) == 1 else _on_one_line(values)
    if len(alpha.free) == 1 and not any(values):
        return _free_as_data(alpha.free[0], layout, with_blocks=True)
    runs: dict[str, Any] = {}
    for number in dict.fromkeys(value for value in alpha.values.values() if value):
        blocks = [block for block, value in alpha.values.items() if value == number]
        runs[layout.describe_blocks(blocks)] = number
    for hole in alpha.free:
        runs[layout.describe_blocks(hole.blocks)] = _free_as_data(hole, layout, with_blocks=False)
    return _on_one_line(runs)


def _free_as_data(hole: Free, layout: Layout, *, with_blocks: bool) -> Any:
    data: dict[str, Any] = {"search": [hole.low, hole.high]}
    if with_blocks and hole.blocks != layout.blocks:
        data["blocks"] = layout.describe_blocks(hole.blocks)
    if hole.tie:
        data["tie"] = True
    data |= {name: value for name, value in (("step", hole.step), ("start", hole.start)) if value is not None}
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


def _read_alpha(value: Any, layout: Layout, where: str) -> Alpha:
    """An alpha in any of its written forms: a number, one per block, a mapping of blocks, or free."""
    count = len(layout.blocks)
    if _is_number(value):
        return Alpha(dict.fromkeys(layout.blocks, _number(value, where)))
    if isinstance(value, list):
        if len(value) != count:
            raise RecipeError(
                f"{where}: received {len(value)} numbers; {layout.name} has {count} blocks, "
                f"{layout.blocks[0]} first, {layout.blocks[-1]} last"
            )
        return Alpha(
            {block: _number(number, f"{where}.{block}") for block, number in zip(layout.blocks, value, strict=True)}
        )
    if not isinstance(value, Mapping):
        raise RecipeError(
            f"{where}: received {value!r}; must be a number, {count} numbers, a mapping of blocks, "
            "or free as {search: [low, high]}"
        )
    if "search" in value:
        hole = _read_free(value, layout, where, None)
        return Alpha({block: 0.0 for block in layout.blocks if block not in hole.blocks}, (hole,))
    return _read_mapping(value, layout, where)


def _read_mapping(value: Mapping[str, Any], layout: Layout, where: str) -> Alpha:
    values: dict[str, float] = {}
    free: list[Free] = []
    problems: list[str] = []
    seen: set[str] = set()
    for key, inner in value.items():
        here = f"{where}.{key}"
        try:
            blocks = _attempt(partial(layout.parse_blocks, str(key)), here)
            if twice := sorted(seen & set(blocks), key=layout.blocks.index):
                raise RecipeError(
                    f"{here}: {', '.join(twice)} given more than once; every block may stand in one key only"
                )
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
    known = list(_FreeEntry.model_fields)
    if unknown := [key for key in value if key not in known]:
        raise RecipeError(f"{where}: unknown field {unknown[0]!r}; a free alpha has {', '.join(known)}")
    if "search" not in value:
        raise RecipeError(f"{where}: received {dict(value)!r}; a free alpha is {{search: [low, high]}}")
    if blocks is not None and "blocks" in value:
        raise RecipeError(f"{where}.blocks: received {value['blocks']!r}; the key already names the blocks")
    entry = _FreeEntry.model_validate(dict(value))
    if not isinstance(entry.tie, bool):
        raise RecipeError(f"{where}.tie: received {entry.tie!r}; must be true or false")
    if not (isinstance(entry.search, list) and len(entry.search) == 2 and all(map(_is_number, entry.search))):
        raise RecipeError(f"{where}.search: received {entry.search!r}; must be two numbers, [low, high]")
    if blocks is None:
        named = "all" if entry.blocks is None else entry.blocks
        texts = named if isinstance(named, list) else [named]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise RecipeError(f"{where}.blocks: received {named!r}; must be blocks or ranges, such as OUT03-OUT11,M00")
        blocks = _attempt(lambda: layout.parse_blocks(named), f"{where}.blocks")
    low, high = (_number(bound, f"{where}.search") for bound in entry.search)
    step, start = (
        None if number is None else _number(number, f"{where}.{name}")
        for name, number in (("step", entry.step), ("start", entry.start))
    )
    return _attempt(lambda: Free(low, high, blocks, entry.tie, step, start), where, joint=".")


def _number(value: Any, where: str) -> float:
    if not _is_number(value):
        raise RecipeError(f"{where}: received {value!r}; must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecipeError(f"{where}: received {number}; must be finite")
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool | ScalarBoolean)


def _attempt(build: Callable[[], _Built], where: str, joint: str = ": ") -> _Built:
    """What `build` gives; `where` stands before the problems of a RecipeError that it raises."""
    try:
        return build()
    except RecipeError as error:
        raise RecipeError(f"{where}{joint}{problem}" for problem in error.problems) from None
