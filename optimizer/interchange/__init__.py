"""Import recipes from other tools' texts, metadata and workflows, and export recipes to their formats."""

from optimizer.interchange.exports import (
    EXPORTS,
    Approximation,
    Export,
    approximate_recipe,
    export_notes,
    export_recipe,
)
from optimizer.interchange.importing import import_merged, import_text
from optimizer.interchange.notation import formula_of, read_notation, write_notation
from optimizer.interchange.whole_names import with_whole_names

__all__ = [
    "EXPORTS",
    "Approximation",
    "Export",
    "approximate_recipe",
    "export_notes",
    "export_recipe",
    "formula_of",
    "import_merged",
    "import_text",
    "read_notation",
    "with_whole_names",
    "write_notation",
]
