"""Recipes made of steps as plain dicts, which `step_by_step.merge_by_steps` also takes."""

from step_by_step import BLOCKS

from optimizer.families import load_layout
from optimizer.recipes import Alpha, Model, Recipe, Step


def recipe_of(steps, models, mapping="supermerger", output=None):
    """Return the recipe of these steps over models whose files have their names; unnamed alphas are 0."""
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
