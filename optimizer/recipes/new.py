"""Recipes made in Python, checked as those in YAML files are."""

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
    presets: str | Path | None = None,
) -> Recipe:
    """The recipe of these models and steps; nothing is read but a file of `presets`, and nothing is written.

        recipe = new_recipe(
            {"base": "base.safetensors", "bra": "bra.safetensors"},
            steps=[dict(name="OUT", mode="add_difference", a="base", b="bra", c="base", alpha={"search": [0, 1]})],
        )

    `models` names the sources: {name: checkpoint}, the checkpoint as a file, as {"file": ..., "license": ...}, or as a
    `Model`. `steps` are mappings with the fields that steps have in a recipe's YAML file, or the steps of another
    recipe:

    - `name`, and `mode`: weight_sum, add_difference, triple_sum or sum_twice
    - `a`, `b` and, where the mode takes three, `c`: names of models or of other steps
    - `alpha` (and `beta`, where the mode has one): a number, usually in 0..1, for all blocks; a list with a number for
      each block, in the layout's order (26 for sd1, BASE first); a mapping of blocks, {"IN00-IN05": 0.2, "OUT03,OUT04":
      0.5}, 0 for the others; free, {"search": [low, high], "blocks": "OUT03-OUT11", "tie": False, "step": 0.01,
      "start": 0.1}; a mapping with free ones in it; the name of a preset in the file `presets`; or another recipe's
      `Alpha`

    `layout` names the model family. `output` is the step that the whole recipe makes, by default the last one.
    `mapping` is the tool whose blocks are meant, one of the layout's mappings, by default its first: supermerger, mecha
    or model-mixer for sd1, which differ in `time_embed` and the VAE.

    Raises RecipeError with one line for each problem.
    """
    blocks = attempt(lambda: load_layout(layout), f"{_CALLED}: layout")
    data: dict[str, Any] = {
        "name": name,
        "layout": layout,
        **({} if mapping is None else {"mapping": mapping}),
        "models": _models_as_data(models),
        "steps": [_step_as_data(step, blocks) for step in steps] if _is_list(steps) else plain(steps),
        **({} if output is None else {"output": output}),
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
