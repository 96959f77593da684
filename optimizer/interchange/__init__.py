"""Other tools' languages: recipes out of texts, metadata and workflows, and recipes in their formats."""

from optimizer.interchange.comfyui_workflow import is_workflow, read_workflow
from optimizer.interchange.embedded import recipe_from_metadata
from optimizer.interchange.exports import EXPORTS, Export, export_recipe
from optimizer.interchange.importing import import_merged, import_text
from optimizer.interchange.mecha_text import read_mecha
from optimizer.interchange.mergekit_configuration import read_mergekit
from optimizer.interchange.notation import formula_of, read_notation, write_notation
from optimizer.interchange.whole_names import with_whole_names

__all__ = [
    "EXPORTS",
    "Export",
    "export_recipe",
    "formula_of",
    "import_merged",
    "import_text",
    "is_workflow",
    "read_mecha",
    "read_mergekit",
    "read_notation",
    "read_workflow",
    "recipe_from_metadata",
    "with_whole_names",
    "write_notation",
]
