"""Presets, the named alphas of SuperMerger, model-mixer and bbc-mc's merger: one per line, a number for each block.

Some presets omit the number of the first block, the text encoder.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optimizer.errors import RecipeError, attempt
from optimizer.families import Layout, built_in_presets, default_layout, layout_names, load_layout
from optimizer.recipes.recipe import Alpha
from optimizer.recipes.written_numbers import number_in

__all__ = [
    "Preset",
    "built_in_alpha",
    "dropped_note",
    "lacks_first",
    "layout_of_counts",
    "numbered_alpha",
    "numbers_of",
    "parse_preset",
    "preset_alpha",
    "preset_blocks",
    "preset_line",
    "read_presets",
]

# The name ends at the first tab or colon; model-mixer also takes the first comma.
_END_OF_NAME = re.compile(r"[\t:,]")
_ITEM = re.compile(r"[\w.+-]*")


@dataclass(frozen=True)
class Preset:
    """One unchecked preset of a file: `numbers` are texts, `line` counts from 1."""

    name: str
    numbers: tuple[str, ...]
    line: int


def read_presets(text: str) -> dict[str, Preset]:
    """Return the presets of a file, without checking their numbers.

    `preset_alpha` checks the numbers of one preset. Files also hold presets with random numbers and presets of other
    model families.

    Args:
        text: The contents of the file. Lines of another form are skipped.

    Returns:
        The presets by name. Of several with one name, the first counts.
    """
    found: dict[str, Preset] = {}
    for line, content in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        preset = parse_preset(content, line)
        if preset is not None:
            found.setdefault(preset.name, preset)
    return found


def parse_preset(text: str, line: int = 1) -> Preset | None:
    """Return the preset in a line of text; None without one."""
    name, *rest = _END_OF_NAME.split(text.strip(), maxsplit=1)
    if not name.strip() or not rest:
        return None
    numbers = tuple(item.strip() for item in rest[0].rstrip(",").split(","))
    if len(numbers) < 2 or not all(_ITEM.fullmatch(item) for item in numbers):
        return None
    return Preset(name.strip(), numbers, line)


def preset_alpha(preset: Preset, layout: Layout, base: float | None = None) -> Alpha:
    """Return a preset as an alpha.

    Args:
        preset: The preset.
        layout: The layout whose blocks are meant.
        base: The number of the first block, for presets without it.

    Returns:
        The alpha, without free blocks.

    Raises:
        RecipeError: A value is no finite number, or the count does not fit the layout.
    """
    values: list[float] = []
    for position, text in enumerate(preset.numbers, 1):
        try:
            values.append(float(text))
        except ValueError:
            raise RecipeError(
                f"preset {preset.name!r}, line {preset.line}: value {position} is {text!r}; must be a number "
                "(SuperMerger's letters stand for random numbers)"
            ) from None
        if not math.isfinite(values[-1]):
            raise RecipeError(f"preset {preset.name!r}, line {preset.line}: value {position} is {text}; must be finite")
    return attempt(lambda: numbered_alpha(layout, values, base), f"preset {preset.name!r}, line {preset.line}")


def built_in_alpha(name: str, layout: Layout, base: float | None = None) -> Alpha | None:
    """Return the alpha of a preset that comes with SuperMerger.

    Args:
        name: The name of the preset, in upper or lower case.
        layout: The layout whose blocks are meant.
        base: The number of the first block. Default: that of the preset.

    Returns:
        The alpha, without free blocks; None if SuperMerger has no preset of this name.

    Raises:
        RecipeError: SuperMerger has no presets for the layout.
    """
    known = built_in_presets()
    numbers = known.get(name) or known.get(name.upper())
    if numbers is None:
        return None
    tool = layout.tools.supermerger
    if tool is None or tool.presets != len(numbers) - 1:
        raise RecipeError(f"preset {name!r}: SuperMerger has it for other families; {layout.name} has no such presets")
    first = numbers[0] if base is None else base
    return attempt(lambda: numbered_alpha(layout, [first, *numbers[1:]]), f"preset {name!r}")


def numbers_of(text: str, layout: Layout) -> tuple[list[float], str | None]:
    """Return the numbers of a list in a text, and a note on their interpretation.

    Commas, semicolons or spaces separate the numbers. A comma is read as a decimal point only if the layout's number of
    blocks, or one less, comes of it. In SuperMerger's names of merges the first number is doubled.

    Args:
        text: The text.
        layout: The layout, for the number of blocks.

    Returns:
        The numbers, and the note; None if nothing was interpreted.

    Raises:
        ValueError: The text holds anything but numbers.
    """
    try:
        number, note = number_in(text, ratio=True)
        return [number], note
    except ValueError:
        if re.search("[/:]", text) and not re.search(r"[,;]|\d\s+\d", text):
            raise
    fitting = (len(layout.blocks), len(layout.blocks) - 1, *((len(_longer(layout)),) if _longer(layout) else ()))
    text = re.sub(r"(?<=\d)\s+%", "%", text)
    spaced = re.split(r"\s*;\s*|,\s+|\s+", text.strip(" ,;"))
    by_comma = re.split(r"\s*[,;]\s*|\s+", text.strip(" ,;"))
    decimal = all(re.fullmatch(r"-?\d+(?:[.,]\d+)?", item) for item in spaced) and any("," in item for item in spaced)
    if decimal and (len(spaced) in fitting or len(by_comma) == 2) and len(by_comma) not in fitting:
        return [float(item.replace(",", ".")) for item in spaced], "commas are read as decimal points"
    numbers = [number_in(item).value for item in by_comma]
    if len(numbers) == fitting[0] + 1 and round(numbers[1], 3) == numbers[0]:
        return numbers[1:], f"{layout.blocks[0]}'s number stands there twice, as SuperMerger writes it"
    return numbers, None


def numbered_alpha(
    layout: Layout, numbers: Sequence[float], base: float | None = None, *, base_name: str = "base_alpha"
) -> Alpha:
    """Return the alpha of a list of numbers.

    Two conventions are in use: SuperMerger's, with the text encoder's number first, and one number less with a separate
    base alpha. Of the longer list that SuperMerger takes for some layouts, the numbers of other blocks are dropped;
    `dropped_note` says so.

    Args:
        layout: The layout whose blocks are meant.
        numbers: One number per block, or all but the first.
        base: The number of the first block, if `numbers` lacks it.
        base_name: The name of `base` in messages.

    Returns:
        The alpha, without free blocks.

    Raises:
        RecipeError: The count fits neither convention, or the first block has two numbers or none.
    """
    first, count, longer = layout.blocks[0], len(layout.blocks), _longer(layout)
    if longer and len(numbers) in (len(longer), len(longer) - 1):
        names = longer[-len(numbers) :]
        numbers = [number for name, number in zip(names, numbers, strict=True) if name in layout.blocks]
    if len(numbers) == count:
        if base is not None:
            raise RecipeError(f"received {count} numbers, {first} among them, and {base_name} {base:g}; give one")
        return Alpha(dict(zip(layout.blocks, map(float, numbers), strict=True)))
    if len(numbers) == count - 1:
        if base is None:
            raise RecipeError(
                f"received {count - 1} numbers; must be {count}, {first} first, or {base_name} beside them"
            )
        return Alpha(dict(zip(layout.blocks, [float(base), *map(float, numbers)], strict=True)))
    raise RecipeError(
        f"received {len(numbers)} numbers; {layout.name} has {count} blocks, {first} first, {layout.blocks[-1]} last "
        f"(or {count - 1} without {first}, and {base_name})"
        + (f"; SuperMerger takes {len(longer)}, too" if longer else "")
    )


def lacks_first(layout: Layout, count: int) -> bool:
    """Return whether a list of `count` numbers has one for each block but the first, and so needs a base alpha."""
    return count + 1 in (len(layout.blocks), len(_longer(layout)) or len(layout.blocks))


def dropped_note(layout: Layout, count: int) -> str | None:
    """Return a sentence on the numbers that `numbered_alpha` drops from a list of `count`; None if it drops none."""
    longer = _longer(layout)
    if not longer or count not in (len(longer), len(longer) - 1):
        return None
    dropped = _in_ranges([block for block in longer if block not in layout.blocks])
    return f"{count} numbers for {layout.name}: those of {dropped} are dropped, as in SuperMerger"


def preset_blocks(layout: Layout) -> tuple[str, ...]:
    """Return the blocks of SuperMerger's lines of presets; it lists no lines of another length."""
    return _longer(layout) or layout.blocks


def layout_of_counts(counts: Iterable[int]) -> Layout:
    """Return the layout that lists of numbers of these lengths are for.

    Args:
        counts: The lengths, with or without the first block's number.

    Returns:
        The default layout if one of the lengths fits its blocks; else the first layout for which that holds and for
        which SuperMerger or model-mixer has numbers by block; else the default layout.
    """
    lengths = set(counts)
    layouts = [default_layout(), *map(load_layout, layout_names())]
    known = [layout for layout in layouts if layout.tools.knows("supermerger") or layout.tools.knows("model-mixer")]
    fitting = (layout for layout in known if lengths & {len(layout.blocks), len(layout.blocks) - 1})
    return next(fitting, layouts[0])


def _longer(layout: Layout) -> tuple[str, ...]:
    """Return the blocks of the longer list of numbers that SuperMerger takes for a layout; none for most layouts."""
    return () if layout.tools.supermerger is None else layout.tools.supermerger.longer


def _in_ranges(blocks: Sequence[str]) -> str:
    """Return numbered blocks with ranges, IN09-IN11 for example."""
    runs: list[list[str]] = []
    for block in blocks:
        letters, number = re.fullmatch(r"(\D*)(\d*)", block).groups()  # type: ignore[union-attr]
        if runs and number and runs[-1][-1] == f"{letters}{int(number) - 1:0{len(number)}}":
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def preset_line(name: str, values: Mapping[str, float], blocks: Iterable[str]) -> str:
    """Return a line of SuperMerger's file of presets: the name, a tab, and one number per block in the given order."""
    cleaned = re.sub(r"[\t:,\r\n]+", " ", name).strip()
    return f"{cleaned}\t{','.join(f'{values.get(block, 0.0):.12g}' for block in blocks)}"
