"""Exact optima in weight space agree with brute force and planted alphas."""

import numpy as np
import pytest
import torch
from step_by_step import block_of, merge_by_steps, merged_names

from optimizer.analysis import exact_optimum
from optimizer.families import load_layout
from optimizer.recipes import Algebra, Space, load_recipe, parameters_of
from optimizer.similarity import build_metric, measure_statistics, open_comparison

LAYOUT = load_layout("sd1")
ADD = "  - {{name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {}}}\n"
SUM = "  - {{name: T2, mode: weight_sum, a: T1, b: y, alpha: {}}}\n"


def solve(pool, folder, steps, target, metric, blocks):
    """Return the exact optimum of a recipe's text."""
    models = "".join(f"  {name}: {{file: {name}}}\n" for name in pool.paths)
    (folder / "recipe.yaml").write_text(f"models:\n{models}steps:\n{steps}", encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml")
    sources = {name: pool.paths[name] for name in recipe.sources() if name != "base"} | {"base": pool.paths["base"]}
    with open_comparison(LAYOUT, sources, target, base=pool.paths["base"]) as comparison:
        statistics = measure_statistics(comparison, blocks)
        built = build_metric(metric, comparison, blocks, statistics)
        algebra = Algebra(recipe, comparison.groups, tuple(sources))
        parameters = parameters_of(recipe, [step.name for step in recipe.ancestors()])
        return exact_optimum(Space(algebra, parameters), built)


def flat(tensors, block):
    """Return a block's merging tensors as one float64 vector."""
    names = sorted(name for name in merged_names(tensors) if block_of(name) == block and "first_stage" not in name)
    return torch.cat([tensors[name].double().flatten() for name in names]).numpy()


def cosines(candidates, target):
    """Return the cosine of each row with the target."""
    return candidates @ target / np.linalg.norm(candidates, axis=1) / np.linalg.norm(target)


@pytest.fixture(scope="module")
def planted(pool):
    """A target made of x at 0.2 to 0.9 and y at 0.3, with noise."""
    alphas = {"OUT03": 0.6, "OUT06": 0.6, "OUT07": 0.2, "M00": 0.9}
    return pool.plant("noisy", pool.two_steps(alphas, dict.fromkeys(alphas, 0.3)), noise=0.02)


@pytest.mark.parametrize("metric", ["weights", "delta"])
def test_one_alpha_is_the_maximum_of_a_grid(pool, planted, tmp_path, metric):
    """One free alpha of a block, beside a fixed step, equals the maximum of a fine grid in place and value."""
    path, target = planted
    steps = ADD.format("0.5") + SUM.format("{search: [-1, 2], blocks: OUT06}")

    found = solve(pool, tmp_path, steps, path, metric, ["OUT06"])

    base, x, y = (flat(pool.tensors[name], "OUT06") for name in ("base", "x", "y"))
    origin = 0.0 if metric == "weights" else base
    start = base + 0.5 * (x - base)
    grid = np.linspace(-1, 2, 30001)
    values = cosines(start + grid[:, None] * (y - start) - origin, flat(target, "OUT06") - origin)
    assert found.point["T2.OUT06"] == pytest.approx(grid[values.argmax()], abs=2e-4)
    assert found.value == pytest.approx(values.max(), abs=1e-7)
    assert 0.05 < found.point["T2.OUT06"] < 1.5


@pytest.mark.parametrize(("bounds", "expected"), [("[0, 0.1]", 0.1), ("[0.8, 1]", 0.8), ("[-1, -0.5]", -0.5)])
@pytest.mark.parametrize("metric", ["weights", "delta"])
def test_optimum_outside_the_bounds_is_on_the_nearer_bound(pool, planted, tmp_path, metric, bounds, expected):
    """An optimum outside the bounds is exactly on the nearer one, for a single and for a tied alpha."""
    steps = ADD.format("0.6") + SUM.format(f"{{search: {bounds}, blocks: OUT06}}")
    tied = ADD.format("0.6") + SUM.format(f"{{search: {bounds}, blocks: 'OUT06,OUT03', tie: true}}")

    assert solve(pool, tmp_path, steps, planted[0], metric, ["OUT06"]).point == {"T2.OUT06": expected}
    assert solve(pool, tmp_path, tied, planted[0], metric, ["OUT03", "OUT06"]).point == {"T2.alpha": expected}


def test_planted_alphas_are_recovered(pool, tmp_path):
    """The joint optimum of two steps has the alphas that made the target."""
    blocks = ["BASE", "IN03", "M00", "OUT03", "OUT11"]
    first, second = ({block: 0.15 + 0.1 * n + extra for n, block in enumerate(blocks)} for extra in (0.0, 0.2))
    path, _ = pool.plant(
        "exact",
        [
            {"name": "A", "mode": "add_difference", "a": "z", "b": "x", "c": "base", "alpha": first},
            {"name": "B", "mode": "weight_sum", "a": "A", "b": "y", "c": None, "alpha": second},
        ],
    )
    free = "{search: [0, 1], blocks: '" + ",".join(blocks) + "'}"
    steps = ADD.format(free).replace("a: base", "a: z") + SUM.format(free)

    found = solve(pool, tmp_path, steps, path, "delta", blocks)

    expected = {f"T1.{b}": a for b, a in first.items()} | {f"T2.{b}": a for b, a in second.items()}
    assert found.point == pytest.approx(expected, abs=1e-5)
    assert found.value == pytest.approx(1, abs=1e-7)


def test_tied_alpha_maximises_the_mean(pool, planted, tmp_path):
    """A tied alpha is at the maximum of the mean over its blocks."""
    path, target = planted
    blocks = ["M00", "OUT03", "OUT07"]
    steps = ADD.format("{search: [0, 1], blocks: 'M00,OUT03,OUT07', tie: true}") + SUM.format("0.3")

    found = solve(pool, tmp_path, steps, path, "delta", blocks)

    grid = np.linspace(0, 1, 10001)
    values = np.zeros_like(grid)
    for block in blocks:
        base, x, y = (flat(pool.tensors[name], block) for name in ("base", "x", "y"))
        merged = 0.7 * grid[:, None] * (x - base) + 0.3 * (y - base)
        values += cosines(merged, flat(target, block) - base) / 3
    assert found.point == {"T1.alpha": pytest.approx(grid[values.argmax()], abs=2e-4)}
    assert found.value == pytest.approx(values.max(), abs=1e-7)


def test_optimum_with_a_step_is_on_the_grid(pool, planted, tmp_path):
    """With a step, exact optima are on the grid, which begins at the lower bound."""
    steps = ADD.format("0.6") + SUM.format("{search: [0.05, 1], blocks: OUT06, step: 0.2}")
    free = steps.replace(", step: 0.2", "")

    found = solve(pool, tmp_path, steps, planted[0], "delta", ["OUT06"]).point["T2.OUT06"]
    exact = solve(pool, tmp_path, free, planted[0], "delta", ["OUT06"]).point["T2.OUT06"]

    assert found in (0.05, 0.25, 0.45, 0.65, 0.85)
    assert abs(found - exact) <= 0.1 + 1e-9


@pytest.mark.parametrize("start", [0, 1])
def test_equal_cosines_are_decided_by_distance(pool, planted, tmp_path, start):
    """If every alpha gives the same direction, the one with the smallest |merged - target| is taken."""
    path, target = planted
    steps = ADD.format(f"{{search: [0.01, 1], blocks: OUT06, start: {max(start, 0.01)}}}")

    found = solve(pool, tmp_path, steps, path, "delta", ["OUT06"])

    base, x = (flat(pool.tensors[name], "OUT06") for name in ("base", "x"))
    expected = (x - base) @ (flat(target, "OUT06") - base) / ((x - base) @ (x - base))
    assert found.point == {"T1.OUT06": pytest.approx(expected, abs=1e-5)}


def test_indistinguishable_alphas_stay_near_their_start(pool, tmp_path):
    """Two steps that add the same source determine only the sum of their alphas; the nearest to the start are taken."""
    alpha = {"OUT06": 0.5}
    path, _ = pool.plant(
        "twice", [{"name": "A", "mode": "add_difference", "a": "z", "b": "x", "c": "base", "alpha": alpha}]
    )
    free = "{{search: [-1, 1], blocks: OUT06, start: {}}}"
    first = ADD.format(free.format(0.2)).replace("a: base", "a: z")
    second = ADD.format(free.format(0.1)).replace("T1", "T2").replace("a: base", "a: T1")

    found = solve(pool, tmp_path, first + second, path, "delta", ["OUT06"])

    # The start, 0.2 + 0.1, is short of 0.5 by 0.2; the nearest alphas take half of that each.
    assert found.point == pytest.approx({"T1.OUT06": 0.3, "T2.OUT06": 0.2}, abs=1e-5)


def test_planted_tensors_are_the_steps_merge(pool):
    """The planted tensors equal the float64 merge of the steps, so the tests above have the right target."""
    steps = [{"name": "A", "mode": "weight_sum", "a": "base", "b": "x", "c": None, "alpha": {"OUT06": 0.5}}]
    _, merged = pool.plant("oracle", steps)
    name = "model.diffusion_model.output_blocks.6.0.in_layers.0.weight"
    half = (pool.tensors["base"][name].double() + pool.tensors["x"][name].double()) / 2
    assert torch.equal(merged[name], half.float())
    assert torch.equal(merge_by_steps(steps, pool.tensors)["A"][name], half)


@pytest.mark.parametrize("step", [0.5, 0.25])
def test_optimum_is_the_best_point_of_a_grid(pool, planted, tmp_path, step):
    """On a grid the optimum is the best of all points, not just the one nearest to the optimum without a grid."""
    free = f"{{search: [0, 1], blocks: OUT06, step: {step}}}"

    found = solve(pool, tmp_path, ADD.format(free) + SUM.format(free), planted[0], "delta", ["OUT06"])

    base, x, y = (flat(pool.tensors[name], "OUT06") for name in ("base", "x", "y"))
    values = np.arange(0, 1 + step / 2, step)
    points = np.array([(first, second) for first in values for second in values])
    merged = (1 - points[:, 1:]) * points[:, :1] * (x - base) + points[:, 1:] * (y - base)
    aim = flat(planted[1], "OUT06") - base
    lengths = np.linalg.norm(merged, axis=1)
    scores = np.where(lengths > 0, merged @ aim / np.maximum(lengths, 1e-300), 0) / np.linalg.norm(aim)
    assert found.value == pytest.approx(scores.max(), abs=1e-9)
