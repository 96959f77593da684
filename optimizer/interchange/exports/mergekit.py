"""Export to mergekit: YAML for `mergekit-pytorch recipe.yml FOLDER`, which merges single files.

Merges are linear, so a recipe of any number of steps is one weighted sum of its sources in each block, and that is what
the file holds: `linear`, not normalized, with the coefficients as weights. Weights may be negative. Tensors that do not
merge (position ids, the noise schedule, EMA copies, which `blockfit merge` leaves out) come from the source that the
recipe begins with, in float32.
Relative file names are opened from the folder where mergekit runs.

mergekit needs every tensor in every file, under the same name: a source without a VAE, or with its text encoder under
the other name, stops it ("Missing tensors"). This cannot be seen without the files; `blockfit inspect` shows it. NaN
or Inf in a tensor spreads, unlike here, even where the source's coefficient is 0.

mergekit takes a weight of exactly 0 for a missing one and fails; 1e-300 stands for it, which is 0 in float32, exactly.
"""

import json

from optimizer.errors import RecipeError
from optimizer.interchange.exports.placement import coefficients_by_prefix, file_problems, file_text
from optimizer.recipes import Recipe

__all__ = ["write_mergekit"]

_ZERO = "1.0e-300"


def write_mergekit(recipe: Recipe) -> str:
    """The YAML. Raises RecipeError for files that are not .safetensors; every mode and mapping can be expressed."""
    if problems := file_problems(recipe, (".safetensors",), "mergekit-pytorch"):
        raise RecipeError(problems)
    # Weights by file, since mergekit knows models by their files and a recipe may give one file two names.
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
        # The first filter that is part of a tensor's name counts. Position ids are the text encoder's, but not merged.
        copied = 1.0 if file == origin else 0.0
        rows = {**{name.rsplit(".", 1)[-1]: copied for name in recipe.layout.position_ids}, **by_prefix}
        lines += [f'        - {{filter: "{prefix}", value: {_number(value)}}}' for prefix, value in rows.items()]
        lines.append(f"        - {{value: {_number(copied)}}}")
    return "\n".join([*lines, "parameters: {normalize: false}", "dtype: float32", ""])


def _number(value: float) -> str:
    if value == 0:
        return _ZERO
    text = repr(value)
    # YAML 1.1 takes 1e-05 for a text, 1.0e-05 for a number.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
