"""Replace models that were themselves merged with the steps that made them.

Tools store the recipes of a merge's parents beside its own, by sha256. Together they give one recipe that starts from
unmerged sources.
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
    """Return the recipe, with its parents' steps if `expand`, and notes about it.

    A parent stays a model if its recipe cannot be read, or if its alphas would merge some tensors differently under
    this recipe's mapping. A note names each such parent.

    Args:
        recipe: The recipe of the merged file.
        warnings: Notes about the recipe so far.
        parents: A reader for the recipe of each model that was merged, by sha256.
        hash_of: Returns the sha256 of a model, None if it is unknown.
        expand: Put in the parents' steps; without, only name the models that have recipes.

    Returns:
        The recipe, and the notes as sentences, those in `warnings` first.

    """
    notes = list(warnings)
    if not expand:
        merged = [name for name in recipe.sources() if hash_of(recipe.models[name]) in parents]
        if merged:
            notes.append(f"{_listed(merged)}: merged too; import with `with_parents=True` for the steps that made them")
        return recipe, tuple(notes)
    steps: dict[str, str] = {}  # {sha256 of a model: the step that makes it}
    looked_at: set[str] = set()
    while waiting := [
        (name, digits)
        for name, model in recipe.models.items()
        if (digits := hash_of(model)) is not None and digits in parents and digits not in looked_at
    ]:
        name, digits = waiting[0]
        looked_at.add(digits)
        try:
            parent, parent_notes = parents[digits]()
            recipe = _grafted(recipe, name, parent, hash_of, steps)
        except RecipeError as error:
            notes.append(f"{name}: remains a model, because its recipe cannot replace it: {error.problems[0]}")
            continue
        steps[digits] = name
        notes += [f"{name}: {note}" for note in parent_notes]
    return recipe, tuple(notes)


def _listed(names: list[str], most: int = 6) -> str:
    """Return the first names in quotes, and the number of the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _grafted(recipe: Recipe, name: str, parent: Recipe, hash_of: HashOf, made: Mapping[str, str]) -> Recipe:
    """Return `recipe` with the steps of `parent` in place of its model `name`.

    Args:
        recipe: The recipe that uses the model.
        name: The model.
        parent: The recipe that made the model.
        hash_of: Returns the sha256 of a model, None if it is unknown.
        made: The steps that already make models, by the models' sha256.

    Returns:
        The joint recipe.

    Raises:
        RecipeError: If the two recipes differ in layout, in the tensors that their mappings move, or in the VAE.

    """
    if parent.layout != recipe.layout:
        raise RecipeError(f"layout: received {parent.layout.name!r}; the recipe's is {recipe.layout.name!r}")
    if name == recipe.vae and parent.vae is None:
        raise RecipeError(f"vae: received {name!r}; its VAE is a merge, and a recipe copies that of a model")
    if recipe.vae is None and parent.vae is not None:
        raise RecipeError(f"vae: received {parent.vae!r}; the recipe merges the VAE with its other tensors")
    if moved := _moved(parent, recipe):
        raise RecipeError(
            f"mapping: received {parent.mapping!r}; the recipe has {recipe.mapping!r}, by which the same alphas would "
            f"merge {moved}* differently"
        )
    parent = parent.trimmed()
    models = {kept: model for kept, model in recipe.models.items() if kept != name}
    taken = {*models, *(step.name for step in recipe.steps), name}
    names: dict[str, str] = {}
    for source, model in parent.models.items():
        digits = hash_of(model)
        same = made.get(digits) if digits is not None else None
        names[source] = same or _same(models, model, hash_of) or _free(source, taken)
        taken.add(names[source])
        if same is None:
            models.setdefault(names[source], model)
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
    vae = recipe.vae if recipe.vae != name or parent.vae is None else names[parent.vae]
    return replace(recipe, models=models, steps=(*steps, *recipe.steps), vae=vae)


def _same(models: Mapping[str, Model], searched: Model, hash_of: HashOf) -> str | None:
    """Return the name of the same model in `models`, by hash, or by file if a hash is unknown; None if absent."""
    searched_digits = hash_of(searched)
    for name, model in models.items():
        digits = hash_of(model)
        if searched_digits == digits if searched_digits and digits else model.file == searched.file:
            return name
    return None


def _free(name: str, taken: set[str]) -> str:
    """Return the name, or the first of name-2, name-3, ... that is not taken."""
    return next(free for n in count(1) if (free := name if n == 1 else f"{name}-{n}") not in taken)


def _moved(recipe: Recipe, other: Recipe) -> str | None:
    """Return a prefix of tensors that the recipe's alphas would merge differently within the other, or None."""
    mappings = recipe.layout.mappings
    for prefix in {**mappings[recipe.mapping], **mappings[other.mapping]}:
        if other.copies(prefix):
            continue
        ours, theirs = recipe.block_of(prefix), other.block_of(prefix)
        for step in recipe.ancestors():
            for alpha in step.alphas.values():
                here, there = (0.0 if block is None else alpha.at(block) for block in (ours, theirs))
                if here != there:
                    return prefix
    return None
