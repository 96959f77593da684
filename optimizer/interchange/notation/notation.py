"""SuperMerger's notation: recipes as people write them into articles and model cards, read line by line, prose and all.

What counts are steps, in whatever words (see `statements`), in tables and on SuperMerger's console; the numbers that
belong to them, presets, and reported similarities. Nothing that looks like a step is passed over: a line is read, or
named with the reason why it is not.
"""

from collections.abc import Mapping

from optimizer.families import Layout, default_layout
from optimizer.interchange.notation.line_reading import LineReader
from optimizer.interchange.notation.settling import Imported, Settling
from optimizer.interchange.notation.writing import write_notation
from optimizer.recipes import Preset

__all__ = ["Imported", "read_notation", "write_notation"]


def read_notation(
    text: str,
    *,
    name: str = "recipe",
    layout: Layout | None = None,
    mapping: str | None = None,
    presets: Mapping[str, Preset] | None = None,
) -> Imported:
    """Return the recipe in a text of formulas, tables and prose. `presets` are alphas that it may name.

    `mapping` is the recipe's, whatever the text says; by default what the text declares, else supermerger (for a line
    of model-mixer's: model-mixer).

    Names that no formula defines are the sources: the file is the name, with .safetensors. Steps may come in any order.
    Of several steps that no other uses, the output is the one that needs the most steps.

    Raises RecipeError, each problem with its line, for numbers of a wrong count, a step that lacks its alpha, a line
    that is not understood but defines a name that others use or goes on from what would be the output, a name defined
    in two ways, and a text without steps.
    """
    found = LineReader(layout or default_layout(), presets or {}).read(text)
    return Settling(found).imported(name, mapping)
