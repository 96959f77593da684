"""Export to SuperMerger: the steps as formulas, then the same numbers as lines for mbwpresets.txt.

SuperMerger merges one step at a time. A user enters a step's models and mode from the formula, and takes its numbers
from the preset with the step's name (NAME_beta for beta). SuperMerger has its own mapping for time_embed and the VAE. A
recipe with another mapping is refused if that changes the result. SuperMerger merges VAEs by BASE; a VAE that the
recipe copies has to be baked in at the last step.
"""

from dataclasses import replace

from optimizer.errors import RecipeError
from optimizer.interchange.exports.placement import file_text, mapping_problems, vae_shares
from optimizer.interchange.notation import write_notation
from optimizer.recipes import Recipe, preset_blocks, preset_line

__all__ = ["supermerger_notes", "write_supermerger"]

_HEADER = "preset_name\tpreset_weights"


def write_supermerger(recipe: Recipe) -> str:
    """Return the formulas and presets of a finished recipe.

    Args:
        recipe: A recipe without free alphas.

    Returns:
        The formulas, an empty line, and the block of presets.

    Raises:
        RecipeError: If SuperMerger's mapping would move some tensors differently, or two presets have the same name.

    """
    problems = mapping_problems(recipe, recipe.ancestors(), "supermerger", "SuperMerger")
    lines: dict[str, str] = {}
    for step in recipe.ancestors():
        for name, alpha in step.alphas.items():
            preset = step.name if name == "alpha" else f"{step.name}_{name}"
            values = {block: alpha.at(block) for block in recipe.layout.blocks}
            line = preset_line(preset, values, preset_blocks(recipe.layout))
            written = line.split("\t", 1)[0]
            if written in lines:
                problems.append(
                    f"steps.{step.name}.{name}: its preset would be {written!r}, like another's; SuperMerger takes "
                    "the first preset of a name; rename the step"
                )
            lines[written] = line
    if problems:
        raise RecipeError(problems)
    notation = write_notation(recipe.trimmed())
    return "\n".join([notation.rstrip("\n"), "", _HEADER, *lines.values(), ""])


def supermerger_notes(recipe: Recipe) -> list[str]:
    """Return a sentence on the VAE to bake in, if SuperMerger would merge another one than the recipe copies."""
    if recipe.vae is None or vae_shares(replace(recipe, vae=None, mapping="supermerger")) == {recipe.vae: 1.0}:
        return []
    assert recipe.layout.vae is not None
    block = recipe.layout.block_of(recipe.layout.vae.prefix, "supermerger")
    file = file_text(recipe.models[recipe.vae].file)
    set_by_hand = f'choose a file with the VAE of {file} under "Bake in VAE" in the last step'
    return [f"vae: SuperMerger merges VAEs by {block}, and the recipe has that of {recipe.vae!r}: {set_by_hand}"]
