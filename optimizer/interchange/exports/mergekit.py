"""Export to mergekit: YAML for `mergekit-pytorch recipe.yml FOLDER`, which merges single files.

Merges are linear, so a recipe with any number of steps is one weighted sum of its sources in each block. The file
contains this sum: `linear`, not normalized, with the coefficients as weights, which may be negative. Tensors that do
not merge come from the source that the recipe begins with, in float32: position ids, the noise schedule, and EMA
copies, which `blockfit merge` leaves out. mergekit opens relative file names from the folder where it runs.

mergekit needs every tensor in every file, under the same name. A source without a VAE, or with its text encoder under
the other name, stops it ("Missing tensors"). The export does not open the files and cannot check this; `blockfit
inspect` does. Unlike in blockfit, NaN or Inf in a source's tensor spreads even if its coefficient is 0.

mergekit takes a weight of exactly 0 for a missing one and fails. The file has 1e-300 instead, which float32 rounds to
exactly 0.
"""

import json

from optimizer.errors import RecipeError
from optimizer.interchange.exports.placement import coefficients_by_prefix, file_problems, file_text
from optimizer.recipes import Recipe

__all__ = ["write_mergekit"]

_ZERO = "1.0e-300"


def write_mergekit(recipe: Recipe) -> str:
    """Return the YAML of a finished recipe, of any mode and mapping.

    Args:
        recipe: A recipe without free alphas.

    Returns:
        The configuration for `mergekit-pytorch`.

    Raises:
        RecipeError: If a source's file is not .safetensors.

    """
    if problems := file_problems(recipe, (".safetensors",), "mergekit-pytorch"):
        raise RecipeError(problems)
    # Sum weights by file: mergekit identifies models by file, and a recipe may give one file two names.
    weights: dict[str, dict[str, float]] = {}
    for prefix, coefficients in coefficients_by_prefix(recipe).items():
        for source, coefficient in coefficients.items():
            nothing = dict.fromkeys(recipe.layout.places, 0.0)
            by_prefix = weights.setdefault(file_text(recipe.models[source].file), nothing)
            by_prefix[prefix] += coefficient
    origin = file_text(recipe.models[recipe.first_model()].file)
    lines = [
        (
            f"# {json.dumps(recipe.name, ensure_ascii=False)}, step {json.dumps(recipe.output, ensure_ascii=False)}, "
            f"mapping {recipe.mapping}"
        ),
        "merge_method: linear",
        "models:",
    ]
    for file, by_prefix in weights.items():
        if file != origin and not any(by_prefix.values()):
            continue
        lines += [f"  - model: {json.dumps(file, ensure_ascii=False)}", "    parameters:", "      weight:"]
        # The first matching filter counts. Position ids belong to the text encoder but are not merged.
        copied = 1.0 if file == origin else 0.0
        rows = {**{name.rsplit(".", 1)[-1]: copied for name in recipe.layout.position_ids}, **by_prefix}
        lines += [f'        - {{filter: "{prefix}", value: {_number(value)}}}' for prefix, value in rows.items()]
        lines.append(f"        - {{value: {_number(copied)}}}")
    return "\n".join([*lines, "parameters: {normalize: false}", "dtype: float32", ""])


def _number(value: float) -> str:
    """Return a weight as YAML."""
    if value == 0:
        return _ZERO
    text = repr(value)
    # YAML 1.1 reads 1e-05 as a text and 1.0e-05 as a number.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
