"""Shared parts of the export tests: recipes, the expected tensors, and the messages of refusals."""

from pathlib import PurePosixPath

import pytest
import torch
from hypothesis import strategies as st
from step_by_step import BLOCK_OF, BLOCKS, as_dicts, merge_by_steps

from optimizer.errors import RecipeError
from optimizer.families import load_layout
from optimizer.interchange import export_recipe
from optimizer.recipes import Alpha, Model, Recipe, Step

SOURCES = ("base", "x", "y")
RISING = {block: round(0.1 + 0.03 * n, 3) for n, block in enumerate(BLOCKS)}
FALLING = {block: round(0.15 - 0.005 * n, 3) for n, block in enumerate(BLOCKS)}
TIME_EMBED = "model.diffusion_model.time_embed."
VAE = "first_stage_model."
# More models than one chain of model-mixer takes, beside base.
MANY = {f"s{n}": f"s{n}.safetensors" for n in range(1, 7)}


def whole(numbers):
    """Return an alpha from one number for all blocks, or from numbers by block with 0 for the others."""
    given = dict.fromkeys(BLOCKS, float(numbers)) if isinstance(numbers, int | float) else numbers
    return Alpha({block: given.get(block, 0.0) for block in BLOCKS})


def make_step(name, mode, a, b, c=None, alpha=0.0, beta=None):
    """Return a step; its alphas are arguments of `whole`."""
    return Step(name, mode, a, b, c, whole(alpha), None if beta is None else whole(beta))


def make_recipe(*steps, mapping="supermerger", files=None, output=None, vae=None):
    """Return a recipe of these steps on base, x and y, with files NAME.safetensors unless `files` has others."""
    given = {name: f"{name}.safetensors" for name in SOURCES} | (files or {})
    models = {name: Model(file) for name, file in given.items()}
    return Recipe("made", load_layout("sd1"), models, steps, output or steps[-1].name, mapping, vae=vae)


EVERY_MODE = {
    "weight_sum": make_step("T1", "weight_sum", "base", "x", alpha=RISING),
    "add_difference": make_step("T1", "add_difference", "base", "x", "y", alpha=RISING),
    "triple_sum": make_step("T1", "triple_sum", "base", "x", "y", alpha=RISING, beta=FALLING),
    "sum_twice": make_step("T1", "sum_twice", "base", "x", "y", alpha=RISING, beta=FALLING),
}
EVERY_MODE_CHAINED = (
    make_step("T1", "weight_sum", "base", "x", alpha=RISING),
    make_step("T2", "add_difference", "T1", "y", "x", alpha=FALLING),
    make_step("T3", "triple_sum", "T2", "x", "y", alpha=FALLING, beta=RISING),
    make_step("T4", "sum_twice", "T3", "base", "y", alpha=FALLING, beta=RISING),
)
NESTED = (
    make_step("T1", "weight_sum", "base", "x", alpha=RISING),
    make_step("side", "weight_sum", "x", "y", alpha=0.25),
    make_step("T2", "sum_twice", "T1", "y", "side", alpha=FALLING, beta=RISING),
    make_step("T3", "add_difference", "T2", "side", "base", alpha={"OUT06": 0.4, "IN00": 1.0, "BASE": 0.5}),
)


def expected_tensors(recipe, tensors):
    """Return the output's tensors, computed step by step in float64; `tensors` is {file stem: {name: value}}."""
    models = {name: tensors[PurePosixPath(recipe.models[name].file).stem] for name in recipe.sources()}
    merged = merge_by_steps(as_dicts(recipe.ancestors()), models, block=BLOCK_OF[recipe.mapping])[recipe.output]
    if recipe.vae is not None:
        merged |= {name: value for name, value in models[recipe.vae].items() if name.startswith(VAE)}
    return merged


def assert_equal_tensors(found, expected, tolerance=1e-6):
    """Assert that float32 tensors are equal, each to `tolerance` times its largest value."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32, name
        off = float((found[name] - value).abs().max())
        assert off <= tolerance * float(value.abs().max()), f"{name}: off by {off}"


def refused(recipe, format_name):
    """Return the problems with which the export is refused."""
    with pytest.raises(RecipeError) as caught:
        export_recipe(recipe, format_name)
    return caught.value.problems


@st.composite
def recipes(
    draw,
    *,
    modes=tuple(EVERY_MODE),
    low=-0.5,
    high=1.5,
    everywhere=True,
    mappings=tuple(BLOCK_OF),
    vaes=(None,),
    most=3,
):
    """Draw a recipe of one to `most` steps with numbers on some blocks, and some sources without a VAE."""
    numbers = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(low, high).map(lambda value: round(value, 4)))
    some_blocks = ("BASE", "IN00", "IN01", "IN10", "M00", "OUT01", "OUT11")
    steps = []
    for position in range(draw(st.integers(1, most))):
        known = st.sampled_from([*SOURCES, *(step.name for step in steps)])
        mode = draw(st.sampled_from(modes))
        names = [draw(known) for _ in ("a", "b") + (() if mode == "weight_sum" else ("c",))]
        alphas = [
            draw(st.fixed_dictionaries(dict.fromkeys(some_blocks, numbers)))
            for _ in range(2 if mode in ("triple_sum", "sum_twice") else 1)
        ]
        c = names[2] if len(names) > 2 else None
        steps.append(make_step(f"T{position}", mode, names[0], names[1], c, *alphas))
    files = {name: f"{name}-novae.safetensors" for name in SOURCES if not everywhere and draw(st.booleans())}
    return make_recipe(*steps, mapping=draw(st.sampled_from(mappings)), files=files, vae=draw(st.sampled_from(vaes)))
