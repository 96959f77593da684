"""Merges whose numbers are given by the start of tensor names, as other tools have them, said as a recipe.

A recipe has a number a block, and a mapping says by which block time_embed, `out` and the VAE merge. So the mapping is
looked for under which every number is that of its block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.recipes import Algebra, Alpha, Group, Model, Recipe, Step

__all__ = ["ByPrefix", "PlacedStep", "SourceNames", "recipe_of_rows", "recipe_of_steps"]

ByPrefix = Mapping[str, float]
_EQUAL = 1e-9  # a difference of alphas that no merged tensor tells apart
_SUM = 1e-5  # that weights written with some digits may be off 1 by


@dataclass(frozen=True)
class PlacedStep:
    """A step with its numbers by prefix: `alphas` are {symbol: {prefix: number}}, perhaps without the VAE's."""

    name: str
    mode: str
    inputs: Mapping[str, str]
    alphas: Mapping[str, ByPrefix]


class SourceNames:
    """The names of sources by their files: a file's name without folder and extension, made unique."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self._names: dict[str, str] = {}

    def name(self, file: str) -> str:
        """Return the name of the model with this file, the same one for the same file."""
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
    """A prefix whose number is not that of the block it would merge by."""

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
    """Return the recipe of these steps, the last one its output, and what to know about it, in sentences.

    `prefer` is the mapping to take where several fit, `vae` the model whose VAE the output has. Places of the network
    that are no block's own (time_embed and `out`) take their block's number, with a note, where no mapping has theirs.
    Raises RecipeError for other numbers that no
    mapping has.
    """
    preferred = [prefer] if prefer is not None and prefer in layout.mappings else []
    candidates = dict.fromkeys([*preferred, *layout.mappings])
    found: list[tuple[int, Recipe, list[_Mismatch]]] = []
    for mapping in candidates:
        wrong = _mismatches(steps, layout, mapping)
        recipe = _recipe(name, layout, models, steps, mapping)
        other_vae = vae is not None and _vae_of(recipe) != {vae: 1.0}
        found.append((len(wrong) + other_vae, recipe, wrong))
    _, recipe, wrong = min(found, key=lambda candidate: candidate[0])
    serious = [one for one in wrong if one.prefix not in layout.places_beside_blocks()]
    if serious:
        raise RecipeError(
            f"{one.step}: {one.prefix}* has {one.here:g}, and {one.block or 'what no block moves'} {one.there:g}; "
            "a recipe has one number for both"
            for one in serious
        )
    notes = [
        f"{one.step}: {one.prefix}* has {one.here:g}; in the recipe it merges by {one.block or 'no block'}, which has "
        f"{one.there:g}"
        for one in wrong
    ]
    if vae is not None and _vae_of(recipe) != {vae: 1.0}:
        notes.append(
            f"the VAE is that of {vae!r}, which the recipe does not say: merge with `vae={models[vae].file!r}`"
        )
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
    """Return a recipe whose output is the sum of the models with these coefficients, {prefix: {model: number}}.

    Its steps are the shortest chain from `origin` (default: the first model) on. Raises RecipeError for coefficients
    that do not sum to 1 under a prefix.
    """
    off = {prefix: total for prefix, row in rows.items() if abs((total := sum(row.values())) - 1) > _SUM}
    if off:
        prefix, total = next(iter(off.items()))
        raise RecipeError(f"the weights of {prefix}* sum to {total:.6g}; those of a merge sum to 1")
    first = origin if origin is not None else next(iter(models))
    others = [other for other in models if other != first and any(row.get(other) for row in rows.values())]
    columns = {other: {prefix: row.get(other, 0.0) for prefix, row in rows.items()} for other in others}
    nothing = dict.fromkeys(rows, 0.0)
    notes: list[str] = []
    steps: list[PlacedStep] = []
    if not others:
        notes.append(f"the file is {first!r} alone, written as a weight sum of it with itself")
        steps = [PlacedStep(output, "weight_sum", {"a": first, "b": first}, {"alpha": nothing})]
    elif len(others) == 1:
        steps = [PlacedStep(output, "weight_sum", {"a": first, "b": others[0]}, {"alpha": columns[others[0]]})]
    else:
        b, c, *rest = others
        names = [f"{output}_{n}" for n in range(1, len(rest) + 1)] + [output]
        alphas = {"alpha": columns[b], "beta": columns[c]}
        steps = [PlacedStep(names[0], "triple_sum", {"a": first, "b": b, "c": c}, alphas)]
        for before, after, other in zip(names, names[1:], rest, strict=False):
            inputs = {"a": before, "b": other, "c": first}
            steps.append(PlacedStep(after, "add_difference", inputs, {"alpha": columns[other]}))
    used = {other: model for other, model in models.items() if other == first or other in others}
    recipe, more = recipe_of_steps(name, layout, used, steps, prefer=prefer, vae=vae if vae in used else None)
    if vae is not None and vae not in used:
        more.append(f"the VAE is that of {models[vae].file}: merge with `vae={models[vae].file!r}`")
    return recipe, [*notes, *more]


def _mismatches(steps: Sequence[PlacedStep], layout: Layout, mapping: str) -> list[_Mismatch]:
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
    """What each source contributes to the VAE, those that contribute nothing left out."""
    sources, vae = recipe.sources(), recipe.layout.vae
    if vae is None:
        return {}
    group = Group(recipe.layout.block_of(vae.prefix, recipe.mapping), tuple(range(len(sources))))
    algebra = Algebra(recipe, [group], sources)
    row = algebra.coefficients(algebra.starting_alphas())[0, 0].tolist()
    return {name: round(number, 9) for name, number in zip(sources, row, strict=True) if abs(number) > _EQUAL}
