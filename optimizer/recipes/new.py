"""Make recipes in Python; they are checked like YAML files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.errors import attempt
from optimizer.families import DEFAULT_LAYOUT, Layout, load_layout
from optimizer.files import plain
from optimizer.recipes.files import alpha_as_data, recipe_of, step_as_data
from optimizer.recipes.recipe import Alpha, Model, Recipe, Step

__all__ = ["new_recipe"]

_CALLED = "new_recipe"


def new_recipe(
    models: Mapping[str, str | Path | Model | Mapping[str, Any]],
    steps: Sequence[Step | Mapping[str, Any]],
    *,
    name: str = "recipe",
    layout: str = DEFAULT_LAYOUT,
    mapping: str | None = None,
    output: str | None = None,
    vae: str | None = None,
    presets: str | Path | None = None,
) -> Recipe:
    """Make a recipe from models and steps.

        recipe = new_recipe(
            {"base": "base.safetensors", "bra": "bra.safetensors"},
            steps=[dict(name="OUT", mode="add_difference", a="base", b="bra", c="base", alpha={"search": [0, 1]})],
        )

    The file of presets is the only file read; none is written. A step has the fields of a step in a recipe's YAML file:

    - `name`, and `mode`: weight_sum, add_difference, triple_sum or sum_twice
    - `a`, `b` and, for modes with three inputs, `c`: names of models or of other steps
    - `alpha` and, for modes with two alphas, `beta`, in one of these forms: a number for all blocks, usually in 0..1; a
      list with one number per block in the layout's order (26 for sd1, BASE first); a mapping of blocks, {"IN00-IN05":
      0.2, "OUT03,OUT04": 0.5}, 0 for the others; a free alpha, {"search": [low, high], "blocks": "OUT03-OUT11", "tie":
      False, "step": 0.01, "start": 0.1}; a mapping of blocks with free alphas in it; the name of a preset; the `Alpha`
      of another recipe

    Raises RecipeError with one line for each problem.

    Args:
        models: The sources, {name: checkpoint}. A checkpoint is a file, {"file": ..., "license": ...}, or a `Model`.
        steps: The steps, as mappings or as the steps of another recipe.
        name: The name of the recipe.
        layout: The name of the model family.
        mapping: The tool whose assignment of tensors to blocks is used, one of the layout's mappings. Default: the
            layout's first. Those of sd1, supermerger, mecha and model-mixer, differ in `time_embed` and the VAE.
        output: The step that is the recipe's result. Default: the last one.
        vae: The model whose VAE the result has unchanged. Default: the VAE merges as the mapping says.
        presets: A file of presets, relative to the current folder.

    Returns:
        The checked recipe.
    """
    blocks = attempt(lambda: load_layout(layout), f"{_CALLED}: layout")
    data: dict[str, Any] = {
        "name": name,
        "layout": layout,
        **({} if mapping is None else {"mapping": mapping}),
        "models": _models_as_data(models),
        "steps": [_step_as_data(step, blocks) for step in steps] if _is_list(steps) else plain(steps),
        **({} if output is None else {"output": output}),
        **({} if vae is None else {"vae": vae}),
        **({} if presets is None else {"presets": plain(presets)}),
    }
    return recipe_of(data, _CALLED, name=name, folder=Path())


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _models_as_data(models: object) -> Any:
    if not isinstance(models, Mapping):
        return plain(models)
    return {
        key: {"file": model.file, "license": model.license, "sha256": model.sha256}
        if isinstance(model, Model)
        else {"file": plain(model)}
        if isinstance(model, str | Path)
        else plain(model)
        for key, model in models.items()
    }


def _step_as_data(step: object, layout: Layout) -> Any:
    if isinstance(step, Step):
        return step_as_data(step, layout)
    if not isinstance(step, Mapping):
        return plain(step)
    return {
        key: alpha_as_data(value, layout) if isinstance(value, Alpha) else plain(value) for key, value in step.items()
    }
