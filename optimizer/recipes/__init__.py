"""What is merged with what: recipes, their YAML files, coefficients (pure algebra), and merging files.

May import torch, pydantic, ruamel.yaml and `optimizer.checkpoints`; never similarity, search or Optuna.
"""

from optimizer.recipes.coefficients import Algebra, Contributors, Group, block_coefficients
from optimizer.recipes.elements import ElementReader
from optimizer.recipes.embedded import recipe_from_metadata
from optimizer.recipes.files import load_recipe, read_recipe, recipe_as_data, save_recipe
from optimizer.recipes.importing import import_merged, import_text
from optimizer.recipes.inputs import warn_of_compared, warn_of_sources
from optimizer.recipes.locations import (
    STATISTICS,
    check_folders,
    checkpoints_below,
    checkpoints_in,
    find_models,
    folders_of,
    locate,
    locate_given,
    locate_models,
    name_without_hash,
    named_at,
    not_found,
    seen_from,
    with_whole_names,
)
from optimizer.recipes.merging import merge
from optimizer.recipes.modes import MODES, Mode
from optimizer.recipes.new import new_recipe
from optimizer.recipes.notation import Imported, read_notation, write_notation
from optimizer.recipes.noted_hashes import check_noted_hashes, fits_hash, other_hash
from optimizer.recipes.presets import Preset, preset_line, read_presets
from optimizer.recipes.recipe import Alpha, Expected, Free, Model, Recipe, Step
from optimizer.recipes.tensors import Contributing, Part, check_channels, finite, plan_parts
from optimizer.recipes.zeros import ZeroTensors

__all__ = [
    "MODES",
    "STATISTICS",
    "Algebra",
    "Alpha",
    "Contributing",
    "Contributors",
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
    "ZeroTensors",
    "block_coefficients",
    "check_channels",
    "check_folders",
    "check_noted_hashes",
    "checkpoints_below",
    "checkpoints_in",
    "find_models",
    "finite",
    "fits_hash",
    "folders_of",
    "import_merged",
    "import_text",
    "load_recipe",
    "locate",
    "locate_given",
    "locate_models",
    "merge",
    "name_without_hash",
    "named_at",
    "new_recipe",
    "not_found",
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
    "warn_of_compared",
    "warn_of_sources",
    "with_whole_names",
    "write_notation",
]
