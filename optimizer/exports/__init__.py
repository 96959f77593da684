"""A finished recipe in the formats of other tools: one file a tool, and the registry that names them.

May import `optimizer.recipes` and `optimizer.checkpoints`; never similarity, search or reports. Opens no checkpoint.
"""

from optimizer.exports.formats import EXPORTS, export_recipe

__all__ = ["EXPORTS", "export_recipe"]
