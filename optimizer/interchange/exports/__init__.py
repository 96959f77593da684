"""Export finished recipes to other tools: one module for each tool, and the registry of formats.

An export opens no checkpoint.
"""

from optimizer.interchange.exports.formats import EXPORTS, Export, export_recipe

__all__ = ["EXPORTS", "Export", "export_recipe"]
