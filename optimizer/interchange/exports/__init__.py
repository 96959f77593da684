"""Export finished recipes to other tools: one module for each tool, and the registry of formats.

An export opens no checkpoint.
"""

from optimizer.interchange.exports.approximation import Approximation
from optimizer.interchange.exports.formats import EXPORTS, Export, approximate_recipe, export_notes, export_recipe

__all__ = ["EXPORTS", "Approximation", "Export", "approximate_recipe", "export_notes", "export_recipe"]
