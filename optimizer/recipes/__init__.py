"""What is merged with what: recipes, their YAML files, coefficients (pure algebra), the space of free alphas.

Opens no checkpoint and looks for none."""

from optimizer.recipes.coefficients import Algebra, Contributors, Group, block_coefficients
from optimizer.recipes.combining import CHUNK
from optimizer.recipes.elements import ElementReader
from optimizer.recipes.files import load_recipe, recipe_as_data, save_recipe
from optimizer.recipes.formulas import formula_of
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
from optimizer.recipes.modes import MODES
from optimizer.recipes.new import new_recipe
from optimizer.recipes.notation import read_notation
from optimizer.recipes.notation_writing import write_notation
from optimizer.recipes.noted_hashes import check_noted_hashes, fits_hash, other_hash
from optimizer.recipes.presets import preset_line
from optimizer.recipes.recipe import Alpha, Expected, Free, Model, Recipe, Step
from optimizer.recipes.tensors import Contributing, Part, check_channels, finite, plan_parts
from optimizer.recipes.vae import open_vae
from optimizer.recipes.zeros import ZeroTensors

__all__ = [
    "CHUNK",
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
    "Model",
    "Part",
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
    "formula_of",
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
    "open_vae",
    "other_hash",
    "plan_parts",
    "preset_line",
    "read_notation",
    "recipe_as_data",
    "save_recipe",
    "seen_from",
    "warn_of_compared",
    "warn_of_sources",
    "with_whole_names",
    "write_notation",
]
