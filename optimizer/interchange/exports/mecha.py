"""Export to sd-mecha: a `.mecha` text of version 0.1.0 with the recipe's steps.

    recipe = sd_mecha.deserialize(Path("recipe.mecha").read_text())
    sd_mecha.merge(recipe, output_dtype=torch.float16, output="merged.safetensors")

sd-mecha opens relative file names from the folder where it runs. It has its own mapping of alphas. Where the recipe's
mapping differs (time_embed and the VAE), the file contains separate alphas for those tensors, so every mapping is
exact. So is a VAE that the recipe copies: if it is not that of the model that the recipe begins with, a last weighted
sum puts it in. Tensors that an input lacks are carried over or pass through, as in blockfit.

sd-mecha differs from blockfit in these points:

* EMA copies and the noise schedule are not merged; the result has those of a, or of b if a has none.
* Position ids become floating-point numbers (0 to 76, exact if the sources agree).
* Tensors outside sd-mecha's list for the family are left out.
* Tensors of other shapes, like the 9-channel input of inpainting models, are refused.
* A source's tensor with NaN or Inf counts as missing.
"""

import json
from dataclasses import dataclass, field

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.families.records import MechaNames
from optimizer.interchange.exports.placement import alpha_at, file_problems, file_text
from optimizer.recipes import MODES, Alpha, Recipe, Step

__all__ = ["write_mecha"]


def write_mecha(recipe: Recipe) -> str:
    """Return the `.mecha` text of a finished recipe, of any mode and mapping.

    Args:
        recipe: A recipe without free alphas.

    Returns:
        The text, without a line end after the last line.

    Raises:
        RecipeError: If sd-mecha cannot read a file name.

    """
    problems = file_problems(recipe, (".safetensors",), "sd-mecha")
    for name in recipe.sources():
        file = recipe.models[name].file
        if "=" in file:
            problems.append(
                f"models.{name}.file: received {file!r}; a .mecha text cannot hold '=' in a file name; rename the file"
            )
    if problems:
        raise RecipeError(problems)
    written = _Instructions([f"# {json.dumps(recipe.name, ensure_ascii=False)}, mapping {recipe.mapping}"])
    known: dict[str, str] = {}
    for name in recipe.sources():
        known[name] = _write_model(written, recipe, name, "weight")
    for step in recipe.ancestors():
        inputs = " ".join(f"{place}={name}" for place, name in step.inputs.items())
        written.lines.append("# " + " ".join(f"{step.name}: {MODES[step.mode].formula} {inputs}".split()))
        known[step.name] = _write_step(written, recipe, step, known)
    if recipe.vae is not None and recipe.vae != recipe.first_model():
        _write_vae(written, recipe, recipe.vae, known)
    # sd-mecha takes an empty last line for an instruction, so the text ends without a line end.
    return "\n".join(["version 0.1.0", *written.lines])


@dataclass
class _Instructions:
    """The lines written so far. Instructions, unlike comments, have numbers that later instructions refer to."""

    lines: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, instruction: str) -> str:
        """Return the reference to an instruction, and write it if it is new."""
        if instruction not in self.numbers:
            self.numbers[instruction] = len(self.numbers)
            self.lines.append(instruction)
        return f"&{self.numbers[instruction]}"

    def merge(self, method: str, *arguments: str) -> str:
        """Return the reference to the result of one of sd-mecha's methods."""
        return self.add(f'merge "{method}" {" ".join(arguments)}')


def _write_model(written: _Instructions, recipe: Recipe, name: str, space: str) -> str:
    """Return the reference to a source, opened in one of sd-mecha's merge spaces."""
    path = file_text(recipe.models[name].file).replace('"', '\\"')
    return written.add(f'model "{path}" model_config="{_names(recipe.layout).model}" merge_space="{space}"')


def _write_presence(written: _Instructions, recipe: Recipe, name: str) -> str:
    """Return the reference to a value (the device) for each tensor of a source or step, and for no other tensor."""
    # sd-mecha separates weights from the parameters of merges, so a file is named a second time, as a parameter.
    if name in recipe.models:
        return written.merge("get_device", _write_model(written, recipe, name, "param"))
    step = recipe.step(name)
    first, second = (_write_presence(written, recipe, source) for source in (step.a, step.b))
    return written.merge("fallback", first, second)


def _write_step(written: _Instructions, recipe: Recipe, step: Step, known: dict[str, str]) -> str:
    """Return the reference to a step's result."""
    # Refer to each input as rarely as possible, to a only once. sd-mecha walks a recipe as a tree, so a chain in which
    # each step refers to the one before twice would take 2 ** steps as long.
    place = {name: known[source] for name, source in step.inputs.items()}
    others = tuple(source for name, source in step.inputs.items() if name != "a")
    difference = written.merge("subtract", place["b"], place["c"]) if "c" in place else ""

    def alpha(numbers: Alpha) -> str:
        # Where b or c lacks the tensor the alpha is 0, so that a passes through.
        result = _write_alpha(written, recipe, numbers)
        for source in others:
            result = written.merge("cast", result, _write_presence(written, recipe, source))
        return written.merge("fallback", result, "0.0")

    def whole(reference: str) -> str:
        return written.merge("fallback", reference, "0.0")

    result = place["a"]
    match step.mode:
        case "weight_sum":
            result = written.merge("weighted_sum", result, whole(place["b"]), alpha(step.alpha))
        case "add_difference":
            result = written.merge("add_difference", result, whole(difference), alpha(step.alpha))
        case "triple_sum":
            # A (1-alpha-beta) + B alpha + C beta = A (1-(alpha+beta)) + C (alpha+beta) + (B-C) alpha
            assert step.beta is not None
            both = Alpha({block: step.alpha.at(block) + step.beta.at(block) for block in recipe.layout.blocks})
            result = written.merge("weighted_sum", result, whole(place["c"]), alpha(both))
            result = written.merge("add_difference", result, whole(difference), alpha(step.alpha))
        case "sum_twice":
            assert step.beta is not None
            result = written.merge("weighted_sum", result, whole(place["b"]), alpha(step.alpha))
            result = written.merge("weighted_sum", result, whole(place["c"]), alpha(step.beta))
        case _:
            raise RecipeError(f"steps.{step.name}.mode: received {step.mode}; must be a mode of the mecha export")
    return written.merge("fallback", result, place["b"])


def _write_vae(written: _Instructions, recipe: Recipe, model: str, known: dict[str, str]) -> None:
    """Write a weighted sum of the output with a model, which has an alpha of 1 on the VAE and of 0 elsewhere."""
    written.lines.append(f"# the VAE of {json.dumps(model, ensure_ascii=False)}")
    alpha, vae = Alpha(dict.fromkeys(recipe.layout.blocks, 0.0)), recipe.layout.vae
    assert vae is not None
    number = _write_alpha(written, recipe, alpha, vae=1.0)
    number = written.merge("cast", number, _write_presence(written, recipe, model))
    number = written.merge("fallback", number, "0.0")
    taken = written.merge("fallback", known[model], "0.0")
    result = written.merge("weighted_sum", known[recipe.output], taken, number)
    written.merge("fallback", result, known[model])


def _write_alpha(written: _Instructions, recipe: Recipe, alpha: Alpha, vae: float = 0.0) -> str:
    """Return the reference to alphas by tensor: by block, and separately where sd-mecha's mapping differs.

    If the recipe copies the VAE, that has the alpha `vae`.
    """
    names = _names(recipe.layout)
    # List every block: sd-mecha silently leaves out the tensors of missing blocks.
    listed = {block: alpha.at(block) for block in recipe.layout.blocks}
    listed |= {block: _number(recipe, alpha, place, vae) for block, place in names.others.items()}
    numbers = " ".join(f"{block}={number!r}" for block, number in listed.items())
    values = written.add(f"dict {numbers}")
    blocks = written.add(f'literal {values} model_config="{names.blocks}" merge_space="param"')
    result = written.merge(names.converter, blocks)

    for place, tensors in names.tensors.items():
        number = alpha_at(recipe, alpha, place)
        if number != _converted(recipe, alpha, place):
            values = written.add("dict " + " ".join(f"{place}{tensor}={number!r}" for tensor in tensors))
            numbered = written.add(f'literal {values} model_config="{names.model}" merge_space="param"')
            result = written.merge("fallback", numbered, result)

    # sd-mecha would merge tensors outside all places by the first block; blockfit copies them.
    parts = {part: 0.0 for part, place in names.components.items() if place is None}
    for part, prefix in names.components.items():
        if prefix is None:
            continue
        number = _number(recipe, alpha, prefix, vae)
        if prefix not in names.others.values() and number != _converted(recipe, alpha, prefix):
            parts[part] = number
    for value in dict.fromkeys(parts.values()):
        for part in (part for part, part_value in parts.items() if part_value == value):
            result = written.merge("omit_component", result, f'"{part}"')
        result = written.merge("fallback", result, repr(value))
    return result


def _number(recipe: Recipe, alpha: Alpha, prefix: str, vae: float) -> float:
    """Return the number of the tensors under a prefix, `vae` if the recipe copies them."""
    return vae if recipe.copies(prefix) else alpha_at(recipe, alpha, prefix)


def _names(layout: Layout) -> MechaNames:
    """Return sd-mecha's names for a layout."""
    names = layout.tools.mecha
    assert names is not None, "only layouts that sd-mecha knows are exported to it"
    return names


def _converted(recipe: Recipe, alpha: Alpha, prefix: str) -> float:
    """Return the number that sd-mecha's mapping gives the tensors under a prefix."""
    block = recipe.layout.block_of(prefix, _names(recipe.layout).mapping)
    return 0.0 if block is None else alpha.at(block)
