"""The moments of merges equal those of vectors that are merged step by step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_by_step import BLOCKS as ALL_BLOCKS

from optimizer.analysis.moments import moments_of
from optimizer.families import load_layout
from optimizer.recipes import Algebra, Alpha, Free, Group, Model, Recipe, Space, Step, parameters_of

BLOCKS = ("IN04", "OUT03")
SOURCES = ("a", "b", "c")
MODES = ("weight_sum", "add_difference")
# Two blocks have at most six free alphas, or more than six.
COUNTS = {"corners": 3, "algebra": 4}


def recipe(modes):
    """Return a recipe of steps s0, s1, ..., each of the result before it, with free alphas on two blocks."""
    others = {block: 0.0 for block in ALL_BLOCKS if block not in BLOCKS}
    free = Alpha(others, (Free(-1.0, 2.0, BLOCKS),))
    steps = [
        Step(
            name=f"s{number}",
            mode=mode,
            a=f"s{number - 1}" if number else "a",
            b="b" if number % 2 else "c",
            c="a" if mode == "add_difference" else None,
            alpha=free,
        )
        for number, mode in enumerate(modes)
    ]
    return Recipe(
        name="drawn",
        layout=load_layout("sd1"),
        models={name: Model(name) for name in SOURCES},
        steps=tuple(steps),
        output=steps[-1].name,
    )


def merged(modes, vectors, alphas):
    """Return the merge of the vectors {source: vector}, step by step."""
    result = vectors["a"]
    for number, (mode, alpha) in enumerate(zip(modes, alphas, strict=True)):
        other = vectors["b" if number % 2 else "c"]
        result = (
            (1 - alpha) * result + alpha * other if mode == "weight_sum" else result + alpha * (other - vectors["a"])
        )
    return result


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
@settings(max_examples=30)
@given(data=st.data())
def test_moments_are_those_of_merged_vectors(count, data):
    """Moments and derivatives are those of merged vectors; a derivative is the difference between alphas of 1 and 0."""
    modes = data.draw(st.lists(st.sampled_from(MODES), min_size=count, max_size=count))
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    vectors = {block: {name: random.normal(size=7) for name in SOURCES} for block in BLOCKS}
    targets = {block: random.normal(size=7) for block in BLOCKS}
    point = random.uniform(-1, 2, size=2 * count)
    groups = [Group(block, (0, 1, 2)) for block in BLOCKS]
    algebra = Algebra(recipe(modes), groups, SOURCES)
    space = Space(algebra, parameters_of(algebra.recipe, [step.name for step in algebra.recipe.steps]))
    stacked = np.stack([np.stack([vectors[block][name] for name in SOURCES]) for block in BLOCKS])
    metric = SimpleNamespace(
        products=torch.from_numpy(stacked @ stacked.transpose(0, 2, 1)),
        with_target=torch.from_numpy(np.einsum("bkd,bd->bk", stacked, np.stack(list(targets.values())))),
    )

    found = moments_of(space, metric, [0, 1], [0, 1])

    names = [parameter.name for parameter in space.parameters]

    def at(position, value=None):
        """Return the merge of each block at the point, with one alpha replaced."""
        moved = point.copy()
        if value is not None:
            moved[position] = value
        by_name = dict(zip(names, moved, strict=True))
        return [
            merged(modes, vectors[block], [by_name[f"s{number}.{block}"] for number in range(count)])
            for block in BLOCKS
        ]

    whole = at(None)
    slopes = [
        [one - zero for one, zero in zip(at(position, 1.0), at(position, 0.0), strict=True)]
        for position in range(len(names))
    ]
    linear, quadratic = found.at(point[None])
    derivatives, curvature = found.derivatives(point), found.curvature(point)
    for index, block in enumerate(BLOCKS):
        close = {"rtol": 1e-9, "atol": 1e-9}
        np.testing.assert_allclose(linear[0, index], whole[index] @ targets[block], **close)
        np.testing.assert_allclose(quadratic[0, index], whole[index] @ whole[index], **close)
        np.testing.assert_allclose(derivatives.linear[index], linear[0, index], **close)
        np.testing.assert_allclose(derivatives.quadratic[index], quadratic[0, index], **close)
        columns = np.stack([slope[index] for slope in slopes])
        np.testing.assert_allclose(derivatives.pulled[:, index], columns @ targets[block], **close)
        np.testing.assert_allclose(derivatives.along[:, index], columns @ whole[index], **close)
        np.testing.assert_allclose(curvature[..., index], columns @ columns.T, **close)
