"""Recipes from steps as plain dicts, as `step_by_step.merge_by_steps` takes them too."""

from step_by_step import BLOCKS

from optimizer.families import load_layout
from optimizer.recipes import Alpha, Model, Recipe, Step


def recipe_of(steps, models, mapping="supermerger", output=None):
    """The recipe of such steps over these models, whose files are their names; alphas are 0 where unnamed."""
    return Recipe(
        name="drawn",
        layout=load_layout("sd1"),
        models={name: Model(name) for name in models},
        steps=tuple(
            Step(
                s["name"],
                s["mode"],
                s["a"],
                s["b"],
                s["c"],
                **{
                    symbol: Alpha({**dict.fromkeys(BLOCKS, 0.0), **s[symbol]})
                    for symbol in ("alpha", "beta")
                    if symbol in s
                },
            )
            for s in steps
        ),
        output=output or steps[-1]["name"],
        mapping=mapping,
    )
