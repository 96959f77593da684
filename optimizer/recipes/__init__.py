"""Recipes: their YAML files, their coefficients (pure algebra) and the space of their free alphas.

This package opens no checkpoint and searches for none.
"""

from optimizer.recipes.coefficients import Algebra, Contributors, Group, block_coefficients
from optimizer.recipes.files import (
    RECIPE_TYPE,
    alpha_as_data,
    folders_of,
    load_recipe,
    read_alpha,
    read_recipe,
    recipe_as_data,
    recipe_schema,
    save_recipe,
)
from optimizer.recipes.fitted import (
    Fitted,
    FittedPrompts,
    FittedScores,
    FittedSearch,
    FittedSpread,
    FittedTarget,
    Simplification,
)
from optimizer.recipes.inputs import warn_of_compared, warn_of_merged, warn_of_sources
from optimizer.recipes.modes import MODES
from optimizer.recipes.new import new_recipe
from optimizer.recipes.part_reader import PartReader
from optimizer.recipes.presets import (
    Preset,
    built_in_alpha,
    dropped_note,
    lacks_first,
    layout_of_counts,
    numbered_alpha,
    numbers_of,
    parse_preset,
    preset_alpha,
    preset_blocks,
    preset_line,
    read_presets,
)
from optimizer.recipes.recipe import (
    LARGEST_USUAL,
    MOST_STEPS,
    Alpha,
    Expected,
    Free,
    Model,
    Recipe,
    Step,
    beyond_usual,
)
from optimizer.recipes.space import Parameter, Space, described_alphas, filled_alphas, parameters_of
from optimizer.recipes.tensors import Contributing, Part, check_channels, finite, plan_parts
from optimizer.recipes.written_numbers import NUMBER, RATIO, WEIGHT, number_in, percentage

__all__ = [
    "LARGEST_USUAL",
    "MODES",
    "MOST_STEPS",
    "NUMBER",
    "RATIO",
    "RECIPE_TYPE",
    "WEIGHT",
    "Algebra",
    "Alpha",
    "Contributing",
    "Contributors",
    "Expected",
    "Fitted",
    "FittedPrompts",
    "FittedScores",
    "FittedSearch",
    "FittedSpread",
    "FittedTarget",
    "Free",
    "Group",
    "Model",
    "Parameter",
    "Part",
    "PartReader",
    "Preset",
    "Recipe",
    "Simplification",
    "Space",
    "Step",
    "alpha_as_data",
    "beyond_usual",
    "block_coefficients",
    "built_in_alpha",
    "check_channels",
    "described_alphas",
    "dropped_note",
    "filled_alphas",
    "finite",
    "folders_of",
    "lacks_first",
    "layout_of_counts",
    "load_recipe",
    "new_recipe",
    "number_in",
    "numbered_alpha",
    "numbers_of",
    "parameters_of",
    "parse_preset",
    "percentage",
    "plan_parts",
    "preset_alpha",
    "preset_blocks",
    "preset_line",
    "read_alpha",
    "read_presets",
    "read_recipe",
    "recipe_as_data",
    "recipe_schema",
    "save_recipe",
    "warn_of_compared",
    "warn_of_merged",
    "warn_of_sources",
]
