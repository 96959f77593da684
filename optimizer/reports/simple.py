"""The simple recipe that a fit ends with, for the terminal."""

import math
from collections.abc import Iterator

from rich.text import Text

from optimizer.analysis import Simplified
from optimizer.interchange import formula_of
from optimizer.printable import printable
from optimizer.recipes import Alpha, Recipe
from optimizer.reports.tables import percent

__all__ = ["simple_recipe"]

# Steps that are written out; longer recipes are better read in their file.
_MOST_STEPS = 20


def simple_recipe(simplified: Simplified) -> Text:
    """Return the steps of a simplified recipe as formulas with their alphas, and what the rounding cost."""
    recipe = simplified.recipe
    steps = recipe.ancestors()
    lines = [_cost(simplified)]
    for step in steps[:_MOST_STEPS]:
        formula, apart = formula_of(step, recipe.layout.blocks)
        lines.append(f"  {formula} = {step.name}")
        lines += [f"    {name}: {_by_value(alpha, recipe)}" for name, alpha in step.alphas.items() if apart[name]]
    if len(steps) > _MOST_STEPS:
        lines.append(f"  ... and {len(steps) - _MOST_STEPS} more steps")
    return Text("\n".join(map(printable, lines)))


def _cost(simplified: Simplified) -> str:
    before, after = simplified.distinct
    text = f"rounded: {after} different numbers for {before}"
    dropped = [*simplified.changes.sources, *simplified.changes.steps]
    if dropped:
        text += f", without {', '.join(dropped)}"
    explained = simplified.explained
    if math.isnan(explained[0]):
        return text
    if simplified.lost <= 0:
        return f"{text}; explains {percent(explained[1])}, no less than before"
    return (
        f"{text}; explains {percent(explained[1])} for {percent(explained[0])}, "
        f"{percent(simplified.lost)} less in the block that loses most"
    )


def _by_value(alpha: Alpha, recipe: Recipe) -> str:
    """The numbers with the blocks that have them, "BASE,M00 0.4; IN00-IN11 0.1"; those at 0 are not named."""
    return "; ".join(_groups(alpha, recipe)) or "0"


def _groups(alpha: Alpha, recipe: Recipe) -> Iterator[str]:
    values = {block: alpha.at(block) for block in recipe.layout.blocks}
    for value in dict.fromkeys(number for number in values.values() if number != 0):
        blocks = [block for block, number in values.items() if number == value]
        yield f"{recipe.layout.describe_blocks(blocks)} {value:.6g}"
