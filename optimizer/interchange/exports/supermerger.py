"""Export to SuperMerger: the steps in the article's notation, then the same numbers as lines for mbwpresets.txt.

SuperMerger does one step at a time: its fields take a step's models and mode from the notation, and its numbers come
from the preset of the step's name (of NAME_beta for beta). It has a mapping of its own, for time_embed and the VAE, so
a recipe of another mapping is refused where that makes a difference.
"""

from optimizer.errors import RecipeError
from optimizer.interchange.exports.placement import mapping_problems
from optimizer.interchange.notation import write_notation
from optimizer.recipes import Recipe, preset_line

__all__ = ["write_supermerger"]

_HEADER = "preset_name\tpreset_weights"


def write_supermerger(recipe: Recipe) -> str:
    """The notation, an empty line, and the block of presets.

    Raises RecipeError for alphas that SuperMerger's mapping would move elsewhere, and for presets of one name.
    """
    problems = mapping_problems(recipe, recipe.ancestors(), "supermerger", "SuperMerger")
    lines: dict[str, str] = {}
    for step in recipe.ancestors():
        for name, alpha in step.alphas.items():
            preset = step.name if name == "alpha" else f"{step.name}_{name}"
            values = {block: alpha.at(block) for block in recipe.layout.blocks}
            line = preset_line(preset, values, recipe.layout.blocks)
            written = line.split("\t", 1)[0]
            if written in lines:
                problems.append(
                    f"steps.{step.name}.{name}: its preset would be {written!r}, as another's; SuperMerger takes the "
                    "first of one name; rename the step"
                )
            lines[written] = line
    if problems:
        raise RecipeError(problems)
    notation = write_notation(recipe.trimmed())
    return "\n".join([notation.rstrip("\n"), "", _HEADER, *lines.values(), ""])
