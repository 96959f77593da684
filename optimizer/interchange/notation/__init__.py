"""Reads recipes from texts line by line, as people and consoles write them, and from other tools' records by field."""

from optimizer.interchange.notation.fields import Fields, is_empty, json_text, leaves, number_in, numbers_in, received
from optimizer.interchange.notation.formulas import formula_of
from optimizer.interchange.notation.notation import read_notation
from optimizer.interchange.notation.settling import Imported
from optimizer.interchange.notation.supermerger import layout_of_supermerge, read_supermerge
from optimizer.interchange.notation.writing import write_notation

__all__ = [
    "Fields",
    "Imported",
    "formula_of",
    "is_empty",
    "json_text",
    "layout_of_supermerge",
    "leaves",
    "number_in",
    "numbers_in",
    "read_notation",
    "read_supermerge",
    "received",
    "write_notation",
]
