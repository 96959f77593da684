"""Coefficients, compared with merging step by step."""

import pytest
import torch
from building import recipe_of
from hypothesis import given, settings
from hypothesis import strategies as st
from step_by_step import BLOCKS, merge_by_steps

from optimizer.errors import RecipeError
from optimizer.recipes import Algebra, Group

CHOSEN = ("BASE", "IN04", "M00", "OUT11")
NUMBERS = st.floats(-2, 3, allow_nan=False)


@st.composite
def recipes(draw, models=3, most_steps=4):
    """Draw steps over m0, m1, ... as plain dicts, with earlier names as inputs and alphas on the blocks of CHOSEN."""
    names = [f"m{n}" for n in range(models)]
    steps = []
    for number in range(draw(st.integers(1, most_steps))):
        mode = draw(st.sampled_from(["weight_sum", "add_difference", "triple_sum", "sum_twice"]))
        given_names = [draw(st.sampled_from(names)) for _ in range(3)]
        steps.append(
            {
                "name": f"s{number}",
                "mode": mode,
                "a": given_names[0],
                "b": given_names[1],
                "c": given_names[2] if mode != "weight_sum" else None,
                "alpha": {block: draw(NUMBERS) for block in CHOSEN},
            }
        )
        if mode in ("triple_sum", "sum_twice"):
            steps[-1]["beta"] = {block: draw(NUMBERS) for block in CHOSEN}
        names.append(f"s{number}")
    return steps


MODELS = ("m0", "m1", "m2")
PRESENCE = [tuple(n for n in range(3) if bits >> n & 1) for bits in range(1, 8)]
GROUPS = [Group(block, holders) for block in (*CHOSEN, None) for holders in PRESENCE]


def compile_all(steps):
    """Return an algebra over every presence pattern of three sources in every chosen block."""
    return Algebra(recipe_of(steps, MODELS), GROUPS, ("m0", "m1", "m2"))


@settings(max_examples=60, deadline=None)
@given(steps=recipes(), data=st.data())
def test_one_pass_gives_the_coefficients_of_all_steps(steps, data):
    """One pass gives several steps and models the coefficients of each alone, bitwise, and these are the merge."""
    names = [*MODELS, *(step["name"] for step in steps)]
    outputs = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    recipe = recipe_of(steps, MODELS)
    algebra = Algebra(recipe, GROUPS, MODELS, outputs[0], outputs[1:])

    found = dict(algebra.each(algebra.starting_alphas()))

    assert set(found) == set(outputs)
    place = {f"{group.block}/{row}.weight": group for row, group in enumerate(GROUPS)}
    # With unit vectors for tensors, the merge is the coefficients.
    models = {
        model: {
            name: torch.eye(3, dtype=torch.float64)[number] for name, group in place.items() if number in group.holders
        }
        for number, model in enumerate(MODELS)
    }
    merged = models | merge_by_steps(steps, models, block=lambda name: place[name].block)
    for name in outputs:
        alone = Algebra(recipe, GROUPS, MODELS, name)
        assert torch.equal(found[name], alone.coefficients(alone.starting_alphas()))
        assert torch.equal(algebra.presences[name], alone.present)
        for row, tensor in enumerate(place):
            expected = merged[name].get(tensor, torch.zeros(3, dtype=torch.float64))
            size = 1 + float(expected.abs().sum())
            torch.testing.assert_close(found[name][0, row], expected, rtol=0, atol=1e-11 * size**2)
            assert bool(algebra.presences[name][row]) == (tensor in merged[name])


@settings(max_examples=60, deadline=None)
@given(steps=recipes())
def test_coefficients_are_the_merge(steps):
    """Sources combined by coefficients equal the tensors merged step by step, for every set of holders."""
    random = torch.Generator().manual_seed(5)
    place = {f"{group.block}/{row}.weight": group for row, group in enumerate(GROUPS)}
    models = {
        f"m{n}": {
            name: torch.randn(6, generator=random, dtype=torch.float64)
            for name, group in place.items()
            if n in group.holders
        }
        for n in range(3)
    }
    expected = merge_by_steps(steps, models, block=lambda name: place[name].block)[steps[-1]["name"]]

    algebra = compile_all(steps)
    rows = algebra.coefficients(algebra.starting_alphas())[0]

    assert set(expected) == {name for name, here in zip(place, algebra.present.tolist(), strict=True) if here}
    for name, row in zip(place, rows, strict=True):
        if name in expected:
            total = sum((row[n] * models[f"m{n}"][name] for n in place[name].holders), torch.zeros(6).double())
            size = 1 + float(row.abs().sum())
            torch.testing.assert_close(total, expected[name], rtol=0, atol=1e-11 * size**2)


@settings(max_examples=60, deadline=None)
@given(steps=recipes())
def test_rows_sum_to_one(steps):
    """A row sums to 1, or is 0 if the output lacks the group; a source that lacks it has coefficient 0."""
    algebra = compile_all(steps)
    rows = algebra.coefficients(algebra.starting_alphas())[0]

    sizes = rows.abs().sum(dim=1).clamp_min(1)
    assert bool(((rows.sum(dim=1) - algebra.present.double()).abs() <= 1e-12 * sizes**2).all())
    assert not bool(rows[~algebra.present].any())
    for row, group in zip(rows, GROUPS, strict=True):
        assert all(float(row[n]) == 0 for n in range(3) if n not in group.holders)


@settings(max_examples=25, deadline=None)
@given(steps=recipes())
def test_sources_of_other_shapes_count_as_holders(steps):
    """A source that holds a tensor in another shape counts as a holder for the presence rules."""
    shapes = [Group(group.block, group.holders[1:], group.holders[:1]) for group in GROUPS]
    algebra = Algebra(recipe_of(steps, MODELS), shapes, MODELS)

    found = algebra.coefficients(algebra.starting_alphas())

    assert torch.equal(found, compile_all(steps).coefficients(algebra.starting_alphas()))
    assert torch.equal(algebra.present, compile_all(steps).present)


@settings(max_examples=25, deadline=None)
@given(steps=recipes(), seed=st.integers(0, 1000))
def test_derivatives_agree(steps, seed):
    """`jacobian`, autograd and finite differences agree, by the alpha of each group's block."""
    algebra = compile_all(steps)
    at = (
        torch.rand(len(algebra.alphas), 26, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
        - 0.5
    )
    values, slopes = algebra.jacobian(at)

    leaf = at.clone()[None].requires_grad_()
    result = algebra.coefficients(leaf)[0]
    torch.testing.assert_close(values, result.detach(), rtol=1e-12, atol=1e-12)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (result * weights).sum().backward()
    by_autograd = leaf.grad[0]
    by_jacobian = torch.zeros_like(by_autograd)
    for row, group in enumerate(GROUPS):
        if group.block is None:
            assert not bool(slopes[:, row].any())
        else:
            by_jacobian[:, BLOCKS.index(group.block)] += (slopes[:, row] * weights[row]).sum(dim=-1)
    torch.testing.assert_close(by_jacobian, by_autograd, rtol=1e-9, atol=1e-9)

    # Coefficients are affine in each alpha: a difference over any step is the derivative, up to rounding.
    for index in range(len(algebra.alphas)):
        moved = at.clone()
        moved[index] += 0.5
        difference = (algebra.coefficients(moved[None])[0] - algebra.coefficients(at[None])[0]) / 0.5
        torch.testing.assert_close(slopes[index], difference, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(steps=recipes(), count=st.integers(1, 5))
def test_many_candidates_have_the_coefficients_of_each_alone(steps, count):
    """Candidates computed together have the coefficients of each alone."""
    algebra = compile_all(steps)
    alphas = torch.randn(
        count, len(algebra.alphas), 26, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    together = algebra.coefficients(alphas)

    assert together.shape == (count, len(GROUPS), 3)
    for number in range(count):
        assert torch.equal(together[number], algebra.coefficients(alphas[number : number + 1])[0])


def test_starting_alphas_come_in_order():
    """Alphas are in the order of evaluation, blocks in layout order."""
    steps = [
        {"name": "s0", "mode": "weight_sum", "a": "m0", "b": "m1", "c": None, "alpha": {"IN04": 0.25}},
        {"name": "s1", "mode": "weight_sum", "a": "s0", "b": "m2", "c": None, "alpha": {"OUT11": -0.5}},
    ]
    recipe = recipe_of(list(reversed(steps)), MODELS, output="s1")
    algebra = Algebra(recipe, GROUPS, ("m0", "m1", "m2"))

    assert algebra.alphas == (("s0", "alpha"), ("s1", "alpha"))
    expected = torch.zeros(1, 2, 26, dtype=torch.float64)
    expected[0, 0, 5], expected[0, 1, 25] = 0.25, -0.5
    assert torch.equal(algebra.starting_alphas(), expected)


def test_output_may_be_a_source_or_an_inner_step():
    """The output may be a source, or an inner step, which ignores later steps."""
    steps = [
        {"name": "s0", "mode": "weight_sum", "a": "m0", "b": "m1", "c": None, "alpha": dict.fromkeys(CHOSEN, 0.25)},
        {"name": "s1", "mode": "weight_sum", "a": "s0", "b": "m2", "c": None, "alpha": dict.fromkeys(CHOSEN, 0.5)},
    ]
    group = [Group("M00", (0, 1, 2))]
    source = Algebra(recipe_of(steps, MODELS), group, ("m0", "m1", "m2"), "m1")
    inner = Algebra(recipe_of(steps, MODELS), group, ("m0", "m1", "m2"), "s0")

    assert source.alphas == ()
    assert source.coefficients(source.starting_alphas()).tolist() == [[[0, 1, 0]]]
    assert inner.coefficients(inner.starting_alphas()).tolist() == [[[0.75, 0.25, 0]]]


def test_a_missing_source_is_refused():
    """A missing source that the output needs is refused by name."""
    steps = [{"name": "s0", "mode": "weight_sum", "a": "m0", "b": "m2", "c": None, "alpha": {}}]
    with pytest.raises(RecipeError, match="s0: needs 'm2', which is not among m0, m1"):
        Algebra(recipe_of(steps, MODELS), [Group("M00", (0, 1))], ("m0", "m1"))


def test_alphas_of_another_shape_are_refused():
    """Alphas of another recipe's shape are refused, not broadcast."""
    steps = [{"name": "s0", "mode": "weight_sum", "a": "m0", "b": "m1", "c": None, "alpha": {}}]
    with pytest.raises(ValueError, match=r"must be \[n, 1, 26\]"):
        compile_all(steps).coefficients(torch.zeros(1, 1, 1, dtype=torch.float64))
