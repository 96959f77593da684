"""Merges of merges: the steps of a model that was merged itself, put in the model's place.

The tools keep the recipes of a merge's parents beside its own, by sha256. What comes of them together is one recipe
from the first sources on.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count

from optimizer.errors import RecipeError
from optimizer.recipes import Model, Recipe

__all__ = ["with_parents_steps"]

Reader = Callable[[], tuple[Recipe, list[str]]]
HashOf = Callable[[Model], str | None]


def with_parents_steps(
    recipe: Recipe, warnings: list[str], parents: Mapping[str, Reader], hash_of: HashOf, *, expand: bool
) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe, its parents' steps in it if `expand`, and what to know about it, in sentences.

    `parents` read the recipes of models by their sha256, and `hash_of` tells a model's, as far as it is known. A parent
    whose recipe cannot be read, or moves other tensors by its alphas than this one does, stays a model, and is named.
    """
    told = list(warnings)
    if not expand:
        merged = [name for name in recipe.sources() if hash_of(recipe.models[name]) in parents]
        if merged:
            told.append(f"{_listed(merged)}: merged too; import with `with_parents=True` for the steps that made them")
        return recipe, tuple(told)
    steps: dict[str, str] = {}  # which step makes the model with a sha256
    looked_at: set[str] = set()
    while waiting := [
        (name, digits)
        for name, model in recipe.models.items()
        if (digits := hash_of(model)) is not None and digits in parents and digits not in looked_at
    ]:
        name, digits = waiting[0]
        looked_at.add(digits)
        try:
            parent, notes = parents[digits]()
            recipe = _grafted(recipe, name, parent, hash_of, steps)
        except RecipeError as error:
            told.append(f"{name}: stays a model, as its recipe cannot be put in its place: {error.problems[0]}")
            continue
        steps[digits] = name
        told += [f"{name}: {note}" for note in notes]
    return recipe, tuple(told)


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _grafted(recipe: Recipe, name: str, parent: Recipe, hash_of: HashOf, made: Mapping[str, str]) -> Recipe:
    """`recipe` with the steps of `parent` for its model `name`; `made` are the steps that make other models.

    Raises RecipeError if the two do not go together.
    """
    if parent.layout != recipe.layout:
        raise RecipeError(f"layout: received {parent.layout.name!r}; the recipe's is {recipe.layout.name!r}")
    if moved := _moved(parent, recipe.mapping):
        raise RecipeError(
            f"mapping: received {parent.mapping!r}; with the recipe's, {recipe.mapping!r}, its alphas would merge "
            f"{moved}* otherwise"
        )
    parent = parent.trimmed()
    models = {other: model for other, model in recipe.models.items() if other != name}
    taken = {*models, *(step.name for step in recipe.steps), name}
    names: dict[str, str] = {}
    for other, model in parent.models.items():
        digits = hash_of(model)
        same = made.get(digits) if digits is not None else None
        names[other] = same or _same(models, model, hash_of) or _free(other, taken)
        taken.add(names[other])
        if same is None:
            models.setdefault(names[other], model)
    for step in parent.steps:
        names[step.name] = name if step.name == parent.output else _free(f"{name}_{step.name}", taken)
        taken.add(names[step.name])
    steps = tuple(
        replace(
            step,
            name=names[step.name],
            a=names[step.a],
            b=names[step.b],
            c=None if step.c is None else names[step.c],
            similarity=None,
        )
        for step in parent.steps
    )
    return replace(recipe, models=models, steps=(*steps, *recipe.steps))


def _same(models: Mapping[str, Model], wanted: Model, hash_of: HashOf) -> str | None:
    """The name of a model that is this one: by its hash, or by its file where a hash is not known."""
    digits = hash_of(wanted)
    for name, model in models.items():
        other = hash_of(model)
        if digits == other if digits and other else model.file == wanted.file:
            return name
    return None


def _free(name: str, taken: set[str]) -> str:
    return next(free for n in count(1) if (free := name if n == 1 else f"{name}-{n}") not in taken)


def _moved(recipe: Recipe, mapping: str) -> str | None:
    """The start of tensor names that the recipe's alphas would merge otherwise under this mapping; None if none."""
    layout = recipe.layout
    for prefix in {**layout.mappings[recipe.mapping], **layout.mappings[mapping]}:
        ours, theirs = (layout.block_of(prefix, name) for name in (recipe.mapping, mapping))
        for step in recipe.ancestors():
            for alpha in step.alphas.values():
                here, there = (0.0 if block is None else alpha.at(block) for block in (ours, theirs))
                if here != there:
                    return prefix
    return None
