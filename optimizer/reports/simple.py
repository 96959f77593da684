"""The simplified recipe at the end of a fit, for the terminal."""

import math
from collections.abc import Iterator

from rich.text import Text

from optimizer.analysis import Simplified
from optimizer.interchange import formula_of
from optimizer.printable import printable
from optimizer.recipes import Alpha, Recipe
from optimizer.reports.tables import percent

__all__ = ["simple_recipe"]

# Steps printed; a longer recipe is easier to read in its file.
_MOST_STEPS = 20


def simple_recipe(simplified: Simplified) -> Text:
    """Return the steps of a simplified recipe as formulas with alphas, after a line on the loss by rounding."""
    recipe = simplified.recipe
    steps = recipe.ancestors()
    lines = [_cost(simplified)]
    for step in steps[:_MOST_STEPS]:
        formula, differs = formula_of(step, recipe.layout.blocks)
        lines.append(f"  {formula} = {step.name}")
        lines += [f"    {name}: {_by_value(alpha, recipe)}" for name, alpha in step.alphas.items() if differs[name]]
    if len(steps) > _MOST_STEPS:
        lines.append(f"  ... and {len(steps) - _MOST_STEPS} more steps")
    return Text("\n".join(map(printable, lines)))


def _cost(simplified: Simplified) -> str:
    """Return a line on the numbers saved and the similarity lost."""
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
    """Return an alpha's numbers with their blocks: "BASE,M00 0.4; IN00-IN11 0.1"; leave out blocks at 0."""
    return "; ".join(_groups(alpha, recipe)) or "0"


def _groups(alpha: Alpha, recipe: Recipe) -> Iterator[str]:
    values = {block: alpha.at(block) for block in recipe.layout.blocks}
    for value in dict.fromkeys(number for number in values.values() if number != 0):
        blocks = [block for block, number in values.items() if number == value]
        yield f"{recipe.layout.describe_blocks(blocks)} {value:.6g}"
