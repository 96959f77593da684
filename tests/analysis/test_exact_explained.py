"""The exact optimum of `explained` agrees with least squares on the tensors, and keeps unchanged blocks."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import lsq_linear, minimize
from test_exact import flat, solve

from optimizer.recipes import load_recipe
from optimizer.search import fit
from optimizer.studies import load_study

MIDDLE = "model.diffusion_model.middle_block."
ADDED = "".join(
    f"  - {{{{name: T{n}, mode: add_difference, a: {a}, b: {b}, c: base, alpha: {{{{search: [{{low}}, {{high}}], "
    "blocks: 'M00,OUT03'}}}}\n"
    for n, (a, b) in enumerate([("base", "x"), ("T0", "y"), ("T1", "z")])
)
SUMMED = ADDED.replace("add_difference", "weight_sum").replace(", c: base", "")


@pytest.fixture(scope="module")
def noisy(pool):
    """A target made of x and y, with a large part that is in no source."""
    alphas = dict.fromkeys(("M00", "OUT03"), 0.6)
    return pool.plant("explained_noisy", pool.two_steps(alphas, dict.fromkeys(alphas, 0.3)), noise=0.1)


def problem(pool, target, block):
    """Return the sources' differences from the base as columns, and the target's difference."""
    base = flat(pool.tensors["base"], block)
    return np.stack([flat(pool.tensors[name], block) - base for name in "xyz"], axis=1), flat(target, block) - base


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2, 2), (0.1, 0.25), (0.35, 1)])
def test_optimum_equals_bounded_least_squares(pool, noisy, tmp_path, low, high):
    """If steps add differences, the optimum equals bounded least squares block by block, exactly at its bounds."""
    path, target = noisy
    found = solve(pool, tmp_path, ADDED.format(low=low, high=high), path, "explained", ["M00", "OUT03"])

    for block in ("M00", "OUT03"):
        columns, aim = problem(pool, target, block)
        best = lsq_linear(columns, aim, bounds=(low, high), method="bvls", tol=1e-14).x
        point = np.array([found.point[f"T{n}.{block}"] for n in range(3)])
        assert point == pytest.approx(best, abs=1e-6)
        at_bound = np.isin(best, (low, high))
        assert np.array_equal(point[at_bound], best[at_bound])
    left = [
        ((columns @ [found.point[f"T{n}.{block}"] for n in range(3)] - aim) ** 2).sum() / (aim**2).sum()
        for block in ("M00", "OUT03")
        for columns, aim in [problem(pool, target, block)]
    ]
    assert found.value == pytest.approx(1 - sum(left) / 2, abs=1e-9)


def test_chain_of_weight_sums_reaches_its_simplex(pool, noisy, tmp_path):
    """A chain of weight sums reaches the best coefficients of its simplex, as found from many starts."""
    path, target = noisy
    found = solve(pool, tmp_path, SUMMED.format(low=0, high=1), path, "explained", ["OUT03"])

    columns, aim = problem(pool, target, "OUT03")

    def left(alphas):
        x, y, z = alphas
        merged = columns @ [x * (1 - y) * (1 - z), y * (1 - z), z]
        return ((merged - aim) ** 2).sum() / (aim**2).sum()

    starts = np.random.default_rng(0).uniform(0, 1, (20, 3))
    best = min(minimize(left, start, bounds=[(0, 1)] * 3, options={"ftol": 1e-15}).fun for start in starts)
    assert found.value == pytest.approx(1 - best, abs=1e-8)


def test_a_block_can_be_given_up(pool, tmp_path):
    """One alpha for two opposed blocks takes the best mean, in which a similarity counts at least -1."""
    alphas = {"M00": 1.0, "OUT03": -4.0}
    steps = [{"name": "T", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": alphas}]
    path, target = pool.plant("torn", steps)
    text = "  - {name: T, mode: add_difference, a: base, b: x, c: base, alpha: {search: [-1, 40], blocks: 'M00,OUT03',"

    found = solve(pool, tmp_path, text + " tie: true}}\n", path, "explained", ["M00", "OUT03"])

    grid = np.linspace(-1, 40, 41001)
    base, x = ({block: flat(pool.tensors[name], block) for block in alphas} for name in ("base", "x"))
    shares = []
    for block in alphas:
        direction, aim = x[block] - base[block], flat(target, block) - base[block]
        whole, along, length = aim @ aim, direction @ aim, direction @ direction
        shares.append(np.maximum(1 - (whole - 2 * grid * along + grid**2 * length) / whole, -1))
    values = np.mean(shares, axis=0)
    assert found.value == pytest.approx(values.max(), abs=1e-6)
    assert found.point["T.alpha"] == pytest.approx(grid[values.argmax()], abs=2e-3)


def test_alpha_of_a_small_source_is_determined(pool, tmp_path, write_sd1):
    """The alpha of a source a thousand times nearer to the base than another one is found as well."""
    near = {name: value + 0.0 for name, value in pool.tensors["base"].items()}
    random = torch.Generator().manual_seed(5)
    difference = {n: torch.randn(v.shape, generator=random) for n, v in near.items() if v.is_floating_point()}
    tiny = {n: (v + 2e-4 * difference[n] if n in difference else v) for n, v in near.items()}
    x = pool.tensors["x"]
    target = {
        n: (v.double() + 0.4 * (x[n].double() - v.double()) + 0.7 * (tiny[n].double() - v.double())
            if n in difference else v) for n, v in near.items()}  # fmt: skip
    save_file(tiny, tmp_path / "tiny.safetensors")
    save_file(target, tmp_path / "target.safetensors")
    (tmp_path / "recipe.yaml").write_text(
        f"models: {{base: {{file: '{pool.paths['base']}'}}, x: {{file: '{pool.paths['x']}'}}, tiny: {{file: tiny}}}}\n"
        "steps:\n"
        "  - {name: A, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: M00}}\n"
        "  - {name: B, mode: add_difference, a: A, b: tiny, c: base, alpha: {search: [0, 1], blocks: M00}}\n",
        encoding="utf-8",
    )
    (tmp_path / "study.yaml").write_text(
        "recipe: recipe.yaml\ntarget: {file: target}\nstages: [{name: s, trials: 1}]\n", encoding="utf-8"
    )

    found = fit(load_study(tmp_path)).recipe

    assert found.step("A").alpha.at("M00") == pytest.approx(0.4, abs=1e-6)
    assert found.step("B").alpha.at("M00") == pytest.approx(0.7, abs=1e-3)


@pytest.fixture
def half_kept(pool, tmp_path):
    """A target with M00 from the base, and the other tensors halfway to x."""
    base, x = pool.tensors["base"], pool.tensors["x"]
    mixed = {
        name: (value + 0.5 * (x[name] - value) if value.is_floating_point() and not name.startswith(MIDDLE) else value)
        for name, value in base.items()
    }
    save_file({name: value.contiguous() for name, value in mixed.items()}, tmp_path / "half.safetensors")
    return tmp_path / "half.safetensors"


QUICK = {("explained", "blockwise"), ("delta", "tpe")}


@pytest.mark.parametrize(
    ("metric", "sampler"),
    [
        pytest.param(metric, sampler, marks=() if (metric, sampler) in QUICK else pytest.mark.slow)
        for metric in ("explained", "delta")
        for sampler in ("random", "blockwise", "tpe", "cmaes", "gp")
    ],
)
def test_unchanged_block_is_kept_by_every_trial(write_study, half_kept, metric, sampler):
    """Every trial keeps an unchanged block by fixed alphas, and its similarity is null everywhere."""
    steps = (
        "  - {name: A, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: 'M00,OUT03'}}\n"
        "  - {name: B, mode: weight_sum, a: A, b: y, alpha: {search: [0, 1], start: 0.4, blocks: 'M00,OUT03'}}\n"
    )
    study = load_study(
        write_study(steps, f"  - {{name: s, metric: {metric}, trials: 12, sampler: {sampler}}}\n", half_kept)
    )

    (search,) = fit(study).searches

    assert {(trial.alphas["A.M00"], trial.alphas["B.M00"]) for trial in search.trials} == {(0.0, 0.0)}
    assert len({trial.alphas["A.OUT03"] for trial in search.trials}) > 5
    assert {tuple(trial.block_scores) for trial in search.trials} == {("OUT03",)}
    noted = load_recipe(study.folder / "best.yaml").step("B").similarity[metric]["blocks"]
    assert noted["M00"] is None
    assert noted["OUT03"] == pytest.approx(1, abs=1e-6)


def test_one_trial_is_enough_for_unchanged_blocks(write_study, half_kept):
    """If all scored blocks are unchanged, the search has one trial, with the alphas that keep them."""
    steps = "  - {name: A, mode: weight_sum, a: x, b: base, alpha: {search: [0.2, 1], start: 0.5, blocks: M00}}\n"
    study = load_study(write_study(steps, "  - {name: s, trials: 9}\n", half_kept))

    result = fit(study)

    (trial,) = result.searches[0].trials
    assert trial.alphas == {"A.M00": 1.0}
    assert (result.searches[0].budget, result.recipe.step("A").alpha.at("M00")) == (1, 1.0)
    assert result.as_dict()["steps"][0]["after"] is None
