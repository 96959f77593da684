"""Reads recipes in SuperMerger's notation, line by line, from articles and model cards with prose.

The reader recognises steps in many spellings (`statements`), in tables and in SuperMerger's console. It also recognises
their numbers, presets, and reported similarities. A line that looks like a step is never ignored: it is read, or
reported with the reason for refusing it.
"""

import re
from collections.abc import Iterator, Mapping

from optimizer.families import Layout
from optimizer.interchange.notation.line_reading import LineReader
from optimizer.interchange.notation.settling import Imported, Settling
from optimizer.interchange.notation.writing import write_notation
from optimizer.recipes import NUMBER, Preset, layout_of_counts

__all__ = ["Imported", "read_notation", "write_notation"]

# Possessive quantifiers, and no match that begins within a number: long texts would take quadratic time.
_LISTED = re.compile(rf"(?<![\w.])-?{NUMBER}(?:\s*+,\s*+-?{NUMBER}){{9,}}+")


def read_notation(
    text: str,
    *,
    name: str = "recipe",
    layout: Layout | None = None,
    mapping: str | None = None,
    presets: Mapping[str, Preset] | None = None,
) -> Imported:
    """Return the recipe in a text of formulas, tables and prose; raise RecipeError for an incomplete recipe.

    Steps may come in any order. Names that no formula defines are the sources; the file of a source is its name with
    .safetensors. If several steps are not used by others, the output is the one that needs the most steps.

    A RecipeError lists each problem with its line: a wrong count of numbers, a step without its alpha, a name with two
    definitions, or a text without steps. A line that is not understood is a problem if it defines a name in use, or
    continues from the output.

    Args:
        text: The whole text.
        name: Name of the recipe, unless the text declares one.
        layout: Layout of the models. By default the one for which the text's lists of numbers have the right length,
            else the default layout. A layout declared in the text takes precedence.
        mapping: Mapping of the recipe, which overrides the text. By default the one that the text declares, then
            model-mixer if all steps are model-mixer's and have numbers by block, then the layout's default.
        presets: Alphas that the text can refer to by name.

    Returns:
        The recipe, with warnings about interpretations and about lines that were not understood.
    """
    found = LineReader(layout or layout_of_counts(_counts(text)), presets or {}).read(text)
    return Settling(found).imported(name, mapping)


def _counts(text: str) -> Iterator[int]:
    """Yield the length of each list of at least ten numbers in a text."""
    return (found[0].count(",") + 1 for found in _LISTED.finditer(text))
