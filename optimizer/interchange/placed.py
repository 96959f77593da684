"""Turn merges with numbers by prefix of tensor names, as in other tools, into recipes.

A recipe has one number for each block; its mapping assigns time_embed, `out` and the VAE to blocks. So the functions
search for a mapping under which each prefix has the number of its block. A VAE that is that of one model needs none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.recipes import Algebra, Alpha, Group, Model, Recipe, Step

__all__ = ["ByPrefix", "PlacedStep", "SourceNames", "recipe_of_rows", "recipe_of_steps"]

ByPrefix = Mapping[str, float]
_EQUAL = 1e-9  # a difference of alphas too small to change a merged tensor
_SUM = 1e-5  # tolerance for sums of weights that were written with few digits


@dataclass(frozen=True)
class PlacedStep:
    """A step with numbers by prefix: `alphas` is {symbol: {prefix: number}}; the VAE's prefix may be missing."""

    name: str
    mode: str
    inputs: Mapping[str, str]
    alphas: Mapping[str, ByPrefix]


class SourceNames:
    """Unique names of sources, made of their files' names without folder and extension."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self._names: dict[str, str] = {}

    def name(self, file: str) -> str:
        """Return the name of the model with this file; the same file always has the same name."""
        if file not in self._names:
            last = file.replace("\\", "/").rpartition("/")[2] or file
            stem = next((last[: -len(end)] for end in CHECKPOINT_SUFFIXES if last.lower().endswith(end)), last)
            stem = stem.strip() or "model"
            count = 1 + sum(known == stem or known.startswith(f"{stem}-") for known in self.models)
            name = stem if stem not in self.models else f"{stem}-{count}"
            self.models[name] = Model(file)
            self._names[file] = name
        return self._names[file]


class _Mismatch(NamedTuple):
    """A prefix whose number (`here`) differs from the number of its block (`there`)."""

    step: str
    prefix: str
    block: str | None
    here: float
    there: float


def recipe_of_steps(
    name: str,
    layout: Layout,
    models: Mapping[str, Model],
    steps: Sequence[PlacedStep],
    *,
    prefer: str | None = None,
    vae: str | None = None,
) -> tuple[Recipe, list[str]]:
    """Return the recipe of these steps, with the best fitting mapping, and notes about it.

    Places of the network outside all blocks (time_embed and `out`) take the number of their block if no mapping fits; a
    note names each of them.

    Args:
        name: The name of the recipe.
        layout: The layout of its models.
        models: The models, by name, with that of the VAE.
        steps: The steps, each after its inputs; the last one is the output.
        prefer: The mapping to take if several fit equally well.
        vae: The model whose VAE the output has. Default: the VAE merges with the steps.

    Returns:
        The recipe, and the notes as sentences.

    Raises:
        RecipeError: If under each mapping a prefix inside a block has another number than the block.

    """
    preferred = [prefer] if prefer is not None and prefer in layout.mappings else []
    candidates = dict.fromkeys([*preferred, *layout.mappings])
    if vae is None:
        steps, vae = _with_vae_apart(steps, layout, models)
    taken = {model for step in steps for model in step.inputs.values()} | {vae}
    models = {model: entry for model, entry in models.items() if model in taken}
    beside = layout.places_beside_blocks()
    found: list[tuple[tuple[int, int, bool], Recipe, list[_Mismatch]]] = []
    for mapping in candidates:
        wrong = _mismatches(steps, layout, mapping)
        recipe = _recipe(name, layout, models, steps, mapping)
        if vae is not None and _vae_of(recipe) != {vae: 1.0}:
            recipe = replace(recipe, vae=vae)
        serious = sum(mismatch.prefix not in beside for mismatch in wrong)
        found.append(((serious, len(wrong), recipe.vae is not None), recipe, wrong))
    _, recipe, wrong = min(found, key=lambda candidate: candidate[0])
    inside = [mismatch for mismatch in wrong if mismatch.prefix not in beside]
    if inside:
        raise RecipeError(
            f"{mismatch.step}: {mismatch.prefix}* has {mismatch.here:g}, and "
            f"{mismatch.block or 'tensors outside blocks'} {mismatch.there:g}; a recipe has one number for both"
            for mismatch in inside
        )
    notes = [
        f"{mismatch.step}: {mismatch.prefix}* has {mismatch.here:g}; in the recipe it merges by "
        f"{mismatch.block or 'no block'}, which has {mismatch.there:g}"
        for mismatch in wrong
    ]
    return recipe, notes


def recipe_of_rows(
    name: str,
    layout: Layout,
    models: Mapping[str, Model],
    rows: Mapping[str, ByPrefix],
    *,
    output: str = "merged",
    origin: str | None = None,
    prefer: str | None = None,
    vae: str | None = None,
) -> tuple[Recipe, list[str]]:
    """Return a recipe whose output is a weighted sum of the models, and notes about it.

    Its steps are the shortest chain that begins with `origin`.

    Args:
        name: The name of the recipe.
        layout: The layout of its models.
        models: The models, by name.
        rows: The coefficients, {prefix: {model: number}}.
        output: The name of the last step.
        origin: The model that the chain begins with. Default: the first model.
        prefer: The mapping to take if several fit equally well.
        vae: The model whose VAE the output has. Default: the VAE merges with the steps.

    Returns:
        The recipe, and the notes as sentences.

    Raises:
        RecipeError: If the coefficients under a prefix do not sum to 1, within 1e-5.

    """
    off = {prefix: total for prefix, row in rows.items() if abs((total := sum(row.values())) - 1) > _SUM}
    if off:
        prefix, total = next(iter(off.items()))
        raise RecipeError(f"the weights of {prefix}* sum to {total:.6g}; must sum to 1")
    if vae is None and layout.vae is not None:
        vae = next((model for model, number in rows.get(layout.vae.prefix, {}).items() if number == 1), None)
        others_too = any(number for model, number in rows.get(layout.vae.prefix, {}).items() if model != vae)
        vae = None if others_too else vae
    if vae is not None and layout.vae is not None:
        rows = {prefix: row for prefix, row in rows.items() if prefix != layout.vae.prefix}
    first = origin if origin is not None else next(iter(models))
    others = [other for other in models if other != first and any(row.get(other) for row in rows.values())]
    columns = {other: {prefix: row.get(other, 0.0) for prefix, row in rows.items()} for other in others}
    nothing = dict.fromkeys(rows, 0.0)
    notes: list[str] = []
    steps: list[PlacedStep] = []
    if not others:
        notes.append(f"the file is {first!r} alone, written as its weight sum with itself")
        steps = [PlacedStep(output, "weight_sum", {"a": first, "b": first}, {"alpha": nothing})]
    elif len(others) == 1:
        steps = [PlacedStep(output, "weight_sum", {"a": first, "b": others[0]}, {"alpha": columns[others[0]]})]
    else:
        b, c, *rest = others
        names = [f"{output}_{n}" for n in range(1, len(rest) + 1)] + [output]
        alphas = {"alpha": columns[b], "beta": columns[c]}
        steps = [PlacedStep(names[0], "triple_sum", {"a": first, "b": b, "c": c}, alphas)]
        for before, after, added in zip(names, names[1:], rest, strict=False):
            inputs = {"a": before, "b": added, "c": first}
            steps.append(PlacedStep(after, "add_difference", inputs, {"alpha": columns[added]}))
    used = {source: model for source, model in models.items() if source in (first, vae) or source in others}
    recipe, more = recipe_of_steps(name, layout, used, steps, prefer=prefer, vae=vae)
    return recipe, [*notes, *more]


def _with_vae_apart(
    steps: Sequence[PlacedStep], layout: Layout, models: Mapping[str, Model]
) -> tuple[Sequence[PlacedStep], str | None]:
    """Return the steps without numbers for the VAE, and the model whose VAE they copy; them and None if they merge it.

    A last step that only puts in a VAE is left out.
    """
    place = None if layout.vae is None else layout.vae.prefix
    if place is None or not all(place in numbers for step in steps for numbers in step.alphas.values()):
        return steps, None
    everywhere = [
        replace(
            step, alphas={symbol: dict.fromkeys(numbers, numbers[place]) for symbol, numbers in step.alphas.items()}
        )
        for step in steps
    ]
    shares = _vae_of(_recipe("", layout, models, everywhere, layout.default_mapping))
    if list(shares.values()) != [1.0]:
        return steps, None
    apart = [
        replace(
            step,
            alphas={
                symbol: {prefix: number for prefix, number in numbers.items() if prefix != place}
                for symbol, numbers in step.alphas.items()
            },
        )
        for step in steps
    ]
    last = apart[-1]
    nothing = last.mode == "weight_sum" and not any(last.alphas["alpha"].values())
    before = next((step for step in apart[:-1] if step.name == last.inputs["a"]), None)
    if nothing and before is not None:
        kept = [step for step in apart[:-1] if step is not before]
        apart = [*kept, replace(before, name=last.name)]
    return apart, next(iter(shares))


def _mismatches(steps: Sequence[PlacedStep], layout: Layout, mapping: str) -> list[_Mismatch]:
    """Return the prefixes whose numbers differ from their blocks' under a mapping."""
    found: list[_Mismatch] = []
    for step in steps:
        for numbers in step.alphas.values():
            for prefix in numbers:
                block = layout.block_of(prefix, mapping)
                there = 0.0 if block is None else numbers[layout.place_of(block)]
                if abs(numbers[prefix] - there) > _EQUAL:
                    found.append(_Mismatch(step.name, prefix, block, numbers[prefix], there))
    return found


def _recipe(
    name: str, layout: Layout, models: Mapping[str, Model], steps: Sequence[PlacedStep], mapping: str
) -> Recipe:
    """Return the recipe of steps with the numbers of their blocks."""
    made: list[Step] = []
    for step in steps:
        alphas = {
            symbol: Alpha({block: numbers[layout.place_of(block)] for block in layout.blocks})
            for symbol, numbers in step.alphas.items()
        }
        a, b, c = (step.inputs.get(place, "") for place in "abc")
        made.append(Step(step.name, step.mode, a, b, c or None, alphas["alpha"], alphas.get("beta")))
    return Recipe(name, layout, models, tuple(made), made[-1].name, mapping)


def _vae_of(recipe: Recipe) -> dict[str, float]:
    """Return the non-zero coefficients of the sources in the VAE."""
    sources, vae = recipe.sources(), recipe.layout.vae
    if vae is None:
        return {}
    group = Group(recipe.block_of(vae.prefix), tuple(range(len(sources))))
    algebra = Algebra(recipe, [group], sources)
    row = algebra.coefficients(algebra.starting_alphas())[0, 0].tolist()
    return {name: round(number, 9) for name, number in zip(sources, row, strict=True) if abs(number) > _EQUAL}
