"""Alphas and coefficients of a recipe by place, a prefix of tensor names, and checks that several exports share."""

from collections.abc import Container, Sequence
from pathlib import PurePosixPath

from optimizer.library import name_without_hash
from optimizer.recipes import Algebra, Alpha, Group, Recipe, Step

__all__ = [
    "CONVERTIBLE",
    "alpha_at",
    "coefficients_by_prefix",
    "file_problems",
    "file_text",
    "listed",
    "mapping_problems",
    "moved_places",
    "vae_shares",
]

CONVERTIBLE = "`approximate=True` converts it"  # ends the lines of problems that an approximation solves

# Alphas that a search has found may differ by less than this when they stand for the same number. The difference is too
# small to change a merged tensor.
_EQUAL = 1e-9


def alpha_at(recipe: Recipe, alpha: Alpha, prefix: str) -> float:
    """Return the number of the tensors under a prefix, by the recipe's mapping; 0 for a prefix without a block."""
    block = recipe.block_of(prefix)
    return 0.0 if block is None else alpha.at(block)


def coefficients_by_prefix(recipe: Recipe, prefixes: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Return the coefficients of the sources in the output, by prefix, for tensors that every source has.

    Args:
        recipe: A recipe without free alphas.
        prefixes: The prefixes. Default: all places of the layout.

    Returns:
        The coefficients, {prefix: {source: coefficient}}.

    """
    prefixes = tuple(recipe.layout.places) if prefixes is None else prefixes
    sources = recipe.sources()
    all_sources = tuple(range(len(sources)))
    groups = [Group(recipe.block_of(prefix), all_sources) for prefix in prefixes]
    algebra = Algebra(recipe, groups, sources)
    rows = algebra.coefficients(algebra.starting_alphas())[0].tolist()
    return {
        prefix: {source: float(source == recipe.vae) for source in sources}
        if recipe.copies(prefix)
        else dict(zip(sources, row, strict=True))
        for prefix, row in zip(prefixes, rows, strict=True)
    }


def vae_shares(recipe: Recipe) -> dict[str, float]:
    """Return the coefficients of the sources in the output's VAE, without those of 0; none without a VAE."""
    if recipe.layout.vae is None:
        return {}
    place = recipe.layout.vae.prefix
    return {name: value for name, value in coefficients_by_prefix(recipe, (place,))[place].items() if value != 0}


def moved_places(recipe: Recipe, steps: Sequence[Step], mapping: str) -> dict[str, list[tuple[str, float, float]]]:
    """Return the places that other numbers would move under another mapping.

    The VAE is left out if the recipe copies it.

    Args:
        recipe: A recipe without free alphas.
        steps: The steps to compare.
        mapping: The other mapping, by its name in the layout.

    Returns:
        For each such place the alphas that differ, {place: [("steps.T1.alpha", number, number under `mapping`)]}.

    """
    moved: dict[str, list[tuple[str, float, float]]] = {}
    for prefix in recipe.layout.places:
        if recipe.copies(prefix):
            continue
        ours, theirs = recipe.block_of(prefix), recipe.layout.block_of(prefix, mapping)
        for step in steps:
            for name, alpha in step.alphas.items():
                here, there = (0.0 if block is None else alpha.at(block) for block in (ours, theirs))
                if abs(here - there) > _EQUAL:
                    moved.setdefault(prefix, []).append((f"steps.{step.name}.{name}", here, there))
    return moved


def mapping_problems(
    recipe: Recipe,
    steps: Sequence[Step],
    mapping: str,
    tool: str,
    *,
    places: Container[str] | None = None,
    convertible: bool = False,
) -> list[str]:
    """Return a line for each prefix that a tool would merge differently than the recipe does.

    A prefix passes if the blocks of both mappings have equal alphas in all steps, or if the recipe copies the VAE.

    Args:
        recipe: A recipe without free alphas.
        steps: The steps to compare.
        mapping: The mapping of the tool, by its name in the layout.
        tool: The tool's name for the lines.
        places: The places to look at. Default: all.
        convertible: Whether the export can be approximated, which the lines then say.

    Returns:
        The lines; none if the mappings merge alike.

    """
    problems: list[str] = []
    for prefix, alphas in moved_places(recipe, steps, mapping).items():
        if places is not None and prefix not in places:
            continue
        ours, theirs = (recipe.layout.block_of(prefix, name) for name in (recipe.mapping, mapping))
        shown = ["{} ({}, not {})".format(where, *_distinct_texts(here, there)) for where, here, there in alphas]
        problems.append(
            f"{listed(shown)}: {prefix}* merges by {ours or 'no block'} with the recipe's mapping, "
            f"{recipe.mapping}, but by {theirs or 'no block'} in {tool}; make the two equal, "
            f"or fit with mapping: {mapping}{f'; {CONVERTIBLE}' if convertible else ''}"
        )
    return problems


def _distinct_texts(first: float, second: float) -> tuple[str, str]:
    """Return two different numbers with enough digits to show the difference, 6 to 17."""
    pairs = ((f"{first:.{digits}g}", f"{second:.{digits}g}") for digits in range(6, 18))
    return next(pair for pair in pairs if pair[0] != pair[1])


def listed(places: Sequence[str], most: int = 3) -> str:
    """Return the first places, `most` of them, and the number of the rest."""
    more = [f"{len(places) - most} more"] if len(places) > most else []
    return ", ".join([*places[:most], *more])


def file_text(file: str) -> str:
    """Return a source's file for other tools: as in the recipe, with forward slashes and without the hash."""
    return name_without_hash(file).replace("\\", "/")


def file_problems(recipe: Recipe, suffixes: Sequence[str], tool: str) -> list[str]:
    """Return a line if file names of sources do not end in one of `suffixes`, the only ones that `tool` opens."""
    files = {name: recipe.models[name].file for name in recipe.sources()}
    wrong = [name for name, file in files.items() if PurePosixPath(file_text(file)).suffix not in suffixes]
    if not wrong:
        return []
    opened = ", ".join(suffixes[:-1]) + (" and " if suffixes[1:] else "") + suffixes[-1]
    places, received = listed([f"models.{name}.file" for name in wrong]), listed([repr(files[name]) for name in wrong])
    way = (
        "convert the file (`merge()` writes .safetensors), complete its name in the recipe, or name its folder "
        "(`folders`)"
    )
    return [f"{places}: received {received}; {tool} opens {opened} files and needs the whole name; {way}"]
