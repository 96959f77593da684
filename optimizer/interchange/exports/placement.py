"""What a recipe does to tensors by the start of their names, the layout's places."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from optimizer.library import name_without_hash
from optimizer.recipes import Algebra, Alpha, Group, Recipe, Step

__all__ = [
    "alpha_at",
    "coefficients_by_prefix",
    "file_problems",
    "file_text",
    "listed",
    "mapping_problems",
]

# Alphas that a search found differ by less where they are meant to be the same; no merged tensor tells them apart.
_EQUAL = 1e-9


def alpha_at(recipe: Recipe, alpha: Alpha, prefix: str) -> float:
    """The number that moves the tensors under this prefix, by the recipe's mapping; 0 where none does."""
    block = recipe.layout.block_of(prefix, recipe.mapping)
    return 0.0 if block is None else alpha.at(block)


def coefficients_by_prefix(recipe: Recipe, prefixes: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Return what each source contributes to the output under each prefix, {prefix: {source: coefficient}}.

    `prefixes` are by default all places of the layout. Holds for tensors that every source has.
    """
    prefixes = tuple(recipe.layout.places) if prefixes is None else prefixes
    sources = recipe.sources()
    everyone = tuple(range(len(sources)))
    groups = [Group(recipe.layout.block_of(prefix, recipe.mapping), everyone) for prefix in prefixes]
    algebra = Algebra(recipe, groups, sources)
    rows = algebra.coefficients(algebra.starting_alphas())[0].tolist()
    return {prefix: dict(zip(sources, row, strict=True)) for prefix, row in zip(prefixes, rows, strict=True)}


def mapping_problems(recipe: Recipe, steps: Sequence[Step], mapping: str, tool: str) -> list[str]:
    """A line for each prefix that `tool`, which has this mapping, would merge otherwise than the recipe does.

    None where the blocks concerned have equal alphas in all of `steps`: then the tool's mapping makes no difference.
    """
    problems: list[str] = []
    for prefix in recipe.layout.places:
        ours, theirs = (recipe.layout.block_of(prefix, name) for name in (recipe.mapping, mapping))
        places: list[str] = []
        for step in steps:
            for name, alpha in step.alphas.items():
                here, there = (0.0 if block is None else alpha.at(block) for block in (ours, theirs))
                if abs(here - there) > _EQUAL:
                    ours_text, theirs_text = _told_apart(here, there)
                    places.append(f"steps.{step.name}.{name} ({ours_text}, not {theirs_text})")
        if places:
            problems.append(
                f"{listed(places)}: {prefix}* merges by {ours or 'no block'} with the recipe's mapping, "
                f"{recipe.mapping}, but by {theirs or 'no block'} in {tool}; make the two equal, or fit with "
                f"mapping: {mapping}"
            )
    return problems


def _told_apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers that differ, with as many digits as it takes to see that."""
    pairs = ((f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in range(6, 18))
    return next(pair for pair in pairs if pair[0] != pair[1])


def listed(places: Sequence[str], most: int = 3) -> str:
    """The first few places, and how many more there are."""
    more = [f"{len(places) - most} more"] if len(places) > most else []
    return ", ".join([*places[:most], *more])


def file_text(file: str) -> str:
    """A source's file as other tools are told it: as the recipe gives it, with forward slashes, without its hash."""
    return name_without_hash(file).replace("\\", "/")


def file_problems(recipe: Recipe, suffixes: Sequence[str], tool: str) -> list[str]:
    """A line on the sources whose file names do not end in one of `suffixes`, by which `tool` knows what it opens."""
    files = {name: recipe.models[name].file for name in recipe.sources()}
    wrong = [name for name, file in files.items() if PurePosixPath(file_text(file)).suffix not in suffixes]
    if not wrong:
        return []
    opened = ", ".join(suffixes[:-1]) + (" and " if suffixes[1:] else "") + suffixes[-1]
    places, received = listed([f"models.{name}.file" for name in wrong]), listed([repr(files[name]) for name in wrong])
    way = (
        "convert the file (`merge()` writes .safetensors), complete its name in the recipe, or name the folder "
        "where it is found (`folders`)"
    )
    return [f"{places}: received {received}; {tool} opens {opened} files and needs the whole name; {way}"]
