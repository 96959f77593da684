"""A finished recipe in the formats of other tools: one file a tool, and the registry that names them.

Opens no checkpoint.
"""

from optimizer.interchange.exports.formats import EXPORTS, Export, export_recipe

__all__ = ["EXPORTS", "Export", "export_recipe"]
