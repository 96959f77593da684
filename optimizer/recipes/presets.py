"""Named alphas as SuperMerger, model-mixer and bbc-mc's merger keep them: one preset a line, 26 or 25 numbers."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optimizer.checkpoints.layout import Layout
from optimizer.errors import RecipeError, attempt
from optimizer.recipes.recipe import Alpha

__all__ = ["Preset", "numbered_alpha", "parse_preset", "preset_alpha", "preset_line", "read_presets"]

# The name ends at the first tab or colon; model-mixer also takes the first comma.
_LINE = re.compile(r"(?P<name>[^\t:,]+?)\s*[\t:,]\s*(?P<numbers>.*)")
_ITEM = re.compile(r"[\w.+-]*")


@dataclass(frozen=True)
class Preset:
    """One preset as its file has it, not yet checked: `numbers` are texts, `line` counts from 1."""

    name: str
    numbers: tuple[str, ...]
    line: int


def read_presets(text: str) -> dict[str, Preset]:
    """The presets of a whole file by name; the first of several of one name. Lines of another form are left out.

    A preset's numbers are checked only by `preset_alpha`: files hold random ones, or some for other model families.
    """
    found: dict[str, Preset] = {}
    for line, content in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        preset = parse_preset(content, line)
        if preset is not None:
            found.setdefault(preset.name, preset)
    return found


def parse_preset(text: str, line: int = 1) -> Preset | None:
    """The preset that this line holds, or None if it holds none."""
    matched = _LINE.fullmatch(text.strip())
    if matched is None:
        return None
    numbers = tuple(item.strip() for item in matched["numbers"].rstrip(",").split(","))
    if len(numbers) < 2 or not all(_ITEM.fullmatch(item) for item in numbers):
        return None
    return Preset(matched["name"].strip(), numbers, line)


def preset_alpha(preset: Preset, layout: Layout, base: float | None = None) -> Alpha:
    """The numbers of `preset` as an alpha; `base` is BASE's, for presets without it.

    Raises RecipeError for anything but finite numbers, and for a count that the layout does not have.
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


def numbered_alpha(
    layout: Layout, numbers: Sequence[float], base: float | None = None, *, base_name: str = "base_alpha"
) -> Alpha:
    """An alpha of as many numbers as there are blocks, or one less and `base` for the first block.

    Both conventions are in use: SuperMerger's 26 with BASE first, and 25 with a base alpha of its own. Raises
    RecipeError for any other count, and for a `base` given twice or not at all.
    """
    first, count = layout.blocks[0], len(layout.blocks)
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
    )


def preset_line(name: str, values: Mapping[str, float], blocks: Iterable[str]) -> str:
    """A preset as SuperMerger's file has it: name, tab, one number per block, BASE first."""
    cleaned = re.sub(r"[\t:,\r\n]+", " ", name).strip()
    return f"{cleaned}\t{','.join(f'{values.get(block, 0.0):.12g}' for block in blocks)}"
