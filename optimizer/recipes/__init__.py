"""What is merged with what: recipes, their YAML files, coefficients (pure algebra), and merging files.

May import torch, pydantic, ruamel.yaml and `optimizer.checkpoints`; never similarity, search or Optuna.
"""

from optimizer.recipes.coefficients import Algebra, Group, block_coefficients
from optimizer.recipes.elements import ElementReader
from optimizer.recipes.embedded import recipe_from_metadata
from optimizer.recipes.files import load_recipe, read_recipe, recipe_as_data, save_recipe
from optimizer.recipes.locations import (
    STATISTICS,
    checkpoints_below,
    checkpoints_in,
    find_models,
    folders_of,
    locate,
    locate_given,
    locate_models,
    name_without_hash,
    seen_from,
)
from optimizer.recipes.merging import merge
from optimizer.recipes.modes import MODES, Mode
from optimizer.recipes.new import new_recipe
from optimizer.recipes.notation import Imported, import_text, read_notation, write_notation
from optimizer.recipes.noted_hashes import check_noted_hashes, fits_hash, other_hash
from optimizer.recipes.presets import Preset, preset_line, read_presets
from optimizer.recipes.recipe import Alpha, Expected, Free, Model, Recipe, Step
from optimizer.recipes.tensors import Part, check_channels, finite, plan_parts

__all__ = [
    "MODES",
    "STATISTICS",
    "Algebra",
    "Alpha",
    "ElementReader",
    "Expected",
    "Free",
    "Group",
    "Imported",
    "Mode",
    "Model",
    "Part",
    "Preset",
    "Recipe",
    "Step",
    "block_coefficients",
    "check_channels",
    "check_noted_hashes",
    "checkpoints_below",
    "checkpoints_in",
    "find_models",
    "finite",
    "fits_hash",
    "folders_of",
    "import_text",
    "load_recipe",
    "locate",
    "locate_given",
    "locate_models",
    "merge",
    "name_without_hash",
    "new_recipe",
    "other_hash",
    "plan_parts",
    "preset_line",
    "read_notation",
    "read_presets",
    "read_recipe",
    "recipe_as_data",
    "recipe_from_metadata",
    "save_recipe",
    "seen_from",
    "write_notation",
]
