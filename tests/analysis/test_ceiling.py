"""Ceilings agree with least squares and grids on flattened merged tensors."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.optimize import lsq_linear
from step_by_step import block_of, merged_names

from optimizer.analysis import study_ceilings
from optimizer.analysis.linear import largest_cosine
from optimizer.cli import main
from optimizer.errors import InputError
from optimizer.search import fit
from optimizer.studies import load_study

STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
"""
STAGE = "  - {name: s, metric: delta, trials: 3}\n"
BLOCKS = ("OUT03", "OUT06")


@pytest.fixture(scope="session")
def far_target(pool):
    """A target with twice x, minus half of y, and noise: beyond the reach of alphas in 0..1."""
    twice = dict.fromkeys(BLOCKS, 2.0)
    steps = [
        {"name": "A", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": twice},
        {"name": "B", "mode": "add_difference", "a": "A", "b": "y", "c": "base", "alpha": dict.fromkeys(BLOCKS, -0.5)},
    ]
    return pool.plant("far", steps, noise=0.05)


@pytest.fixture
def far_study(write_study, far_target):
    """A study of x and y with `far_target`."""
    return load_study(write_study(STEPS, STAGE, far_target[0]))


def flat(tensors, block):
    """Return a block's merging tensors as one float64 vector."""
    names = sorted(name for name in merged_names(tensors) if block_of(name) == block and "first_stage" not in name)
    return torch.cat([tensors[name].double().flatten() for name in names]).numpy()


def cosine(left, right):
    """Return the cosine of two vectors, 0 if one is zero."""
    sizes = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / sizes) if sizes else 0.0


@pytest.mark.parametrize("metric", ["weights", "delta"])
def test_ceilings_equal_least_squares(pool, far_target, far_study, metric):
    """The ceilings equal least squares by numpy and scipy on the flattened tensors, block by block."""
    (found,) = study_ceilings(far_study, metric)

    for block in BLOCKS:
        base, x, y, target = (
            flat(tensors, block) for tensors in (*(pool.tensors[n] for n in ["base", "x", "y"]), far_target[1])
        )
        differences = np.stack([x - base, y - base], axis=1)
        if metric == "delta":
            aim, columns = target - base, differences
            bounded = columns @ lsq_linear(columns, aim, (0, np.inf), method="bvls").x
        else:
            aim, columns = target, np.column_stack([base, differences])
            # The best value of 0 <= y <= s is a convex function of the scale s: use a fine grid around its minimum.
            merged = [
                s * base + differences @ lsq_linear(differences, target - s * base, (0, s), method="bvls").x
                for s in np.linspace(0.9, 1.1, 2001)
            ]
            bounded = max(merged, key=lambda vector: cosine(vector, target))
        free = columns @ np.linalg.lstsq(columns, aim, rcond=None)[0]
        assert found.blocks[block].ceiling == pytest.approx(cosine(free, aim), abs=1e-9)
        assert found.blocks[block].ceiling_bounded == pytest.approx(cosine(bounded, aim), abs=1e-7)
        assert found.blocks[block].ceiling_bounded < found.blocks[block].ceiling - 1e-6
    assert found.total["ceiling"] == pytest.approx(np.mean([found.blocks[block].ceiling for block in BLOCKS]))
    assert found.total["recipe"] is None


def test_shares_of_sources_equal_least_squares(pool, far_target, far_study):
    """Coefficients equal lstsq's, errors come from leaving out each tensor, losses from leaving out a source."""
    (found,) = study_ceilings(far_study, "delta")

    tensors = {name: values for name, values in pool.tensors.items() if name in ("base", "x", "y")} | {
        "t": far_target[1]
    }
    names = [name for name in merged_names(tensors["base"]) if block_of(name) in BLOCKS]
    rows = {
        name: np.stack(
            [(tensors[source][name].double() - tensors["base"][name].double()).flatten().numpy() for source in "xyt"],
            axis=1,
        )
        for name in names
    }

    def solve(left_out=None):
        stacked = np.concatenate([rows[name] for name in names if name != left_out])
        return np.linalg.lstsq(stacked[:, :2], stacked[:, 2], rcond=None)[0]

    left_out = np.array([solve(name) for name in names])
    errors = np.sqrt((len(names) - 1) / len(names) * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    for position, name in enumerate("xy"):
        assert found.sources[name].coefficient == pytest.approx(solve()[position], abs=1e-9)
        assert found.sources[name].error == pytest.approx(errors[position], rel=1e-6)
        assert set(found.sources[name].blocks) == set(BLOCKS)
    without = [
        cosine(flat(tensors["y"], b) - flat(tensors["base"], b), flat(tensors["t"], b) - flat(tensors["base"], b))
        for b in BLOCKS
    ]
    assert found.sources["x"].loss == pytest.approx(found.total["ceiling"] - np.mean(np.abs(without)), abs=1e-9)
    assert 1.5 < found.sources["x"].coefficient < 2.5


def test_weighted_tensors_give_better_coefficients(pool, write_study):
    """If small tensors contain most of the unknown part, weighting recovers the planted coefficients much better.

    The weights equal those of numpy's least squares: a tensor's size over its squared residual.
    """
    alphas = dict.fromkeys(BLOCKS, 0.5)
    steps = [{"name": "A", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": alphas}]
    path, merged = pool.plant("odd", steps)
    random = torch.Generator().manual_seed(3)
    changed = {
        name: tensor + (0.5 if tensor.dim() == 1 else 0.002) * torch.randn(tensor.shape, generator=random)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in merged.items()
    }
    save_file(changed, path)
    study = load_study(write_study(STEPS, STAGE, path))

    (found,) = study_ceilings(study, "delta")

    names = [name for name in merged_names(pool.tensors["base"]) if block_of(name) in BLOCKS]
    base = pool.tensors["base"]
    rows = {
        name: np.stack([(model[name].double() - base[name].double()).flatten().numpy() for model in models], axis=1)
        for models in [[pool.tensors["x"], pool.tensors["y"], changed]]
        for name in names
    }
    weights = dict.fromkeys(names, 1.0)
    for _ in range(5):
        stacked = np.concatenate([math.sqrt(weights[name]) * rows[name] for name in names])
        expected = np.linalg.lstsq(stacked[:, :2], stacked[:, 2], rcond=None)[0]
        weights = {n: len(r) / ((r[:, 2] - r[:, :2] @ expected) ** 2).sum() for n, r in rows.items()}
    x, y = found.sources["x"], found.sources["y"]
    assert (x.weighed, y.weighed) == pytest.approx(tuple(expected), abs=1e-6)
    assert abs(x.weighed - 0.5) < abs(x.coefficient - 0.5) / 5
    assert abs(x.weighed - 0.5) < 4 * x.weighed_error < x.error


def test_recipe_best_and_ceilings_are_ordered(far_study):
    """After a fit, recipe <= best of the free alphas <= bounded ceiling <= ceiling."""
    fit(far_study)
    for found in study_ceilings(far_study, "both"):
        total = found.total
        assert total["recipe"] <= total["best"] + 1e-12
        assert total["best"] <= total["ceiling_bounded"] + 1e-9
        assert total["ceiling_bounded"] <= total["ceiling"] + 1e-12
        assert found.identified.rank == found.identified.alphas == 4
    # The target contains x twice, so the merged difference is too short.
    assert found.blocks["OUT03"].recipe_scale > 1.2


def test_best_recipe_outside_the_ranges_does_not_count(far_study):
    """A best.yaml with alphas outside the recipe's ranges does not count towards the best of the free alphas."""
    fit(far_study)
    recipe = far_study.recipe_path
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("[0, 1]", "[0, 0.05]"), encoding="utf-8")
    narrow = load_study(far_study.folder)
    with_it = study_ceilings(narrow)
    (far_study.folder / "best.yaml").unlink()
    without = study_ceilings(narrow)

    for present, absent in zip(with_it, without, strict=True):
        assert present.total["best"] == pytest.approx(absent.total["best"], abs=1e-12)
    # `explained` comes first: unlike a cosine of differences, it depends on their length.
    assert with_it[0].total["recipe"] > with_it[0].total["best"] + 1e-4


def test_alphas_without_effect_are_idle(write_study, far_target):
    """An alpha without effect on a scored block is listed as idle, not as trading off."""
    text = STEPS.replace("b: x, c: base", "b: base, c: base")
    (found,) = study_ceilings(load_study(write_study(text, STAGE, far_target[0])), "delta")
    assert found.identified.idle == ("T1.OUT03", "T1.OUT06")
    assert found.identified.trade_off == ()
    assert (found.identified.rank, found.identified.alphas) == (2, 4)


def test_alphas_with_the_same_source_trade_off(write_study, far_target):
    """Two steps with the same source move one coefficient; the rank reflects this, and only their alphas are named."""
    again = STEPS.replace("name: T2", "name: T3").replace("a: T1", "a: T2") + STEPS.splitlines()[0].replace(
        "name: T1", "name: T2"
    ).replace("a: base", "a: T1")
    study = load_study(write_study(again, STAGE, far_target[0]))

    (found,) = study_ceilings(study, "delta")

    assert (found.identified.rank, found.identified.alphas) == (4, 6)
    assert set(found.identified.trade_off) == {f"{step}.{block}" for step in ("T1", "T2") for block in BLOCKS}


@example(seed=128, count=3, alike="equal")
@example(seed=2382, count=3, alike="equal")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 3), alike=st.sampled_from(["none", "equal", "base", "target"]))
def test_bounds_are_close_to_grids(seed, count, alike):
    """For drawn vectors, some equal, zero or the target, no grid point exceeds the bound and some come near it."""
    random = np.random.default_rng(seed)
    base, target = random.normal(size=(2, 12))
    target = base + 0.3 * target
    columns = 0.3 * random.normal(size=(12, count))
    if alike == "equal":
        columns[:, -1] = columns[:, 0]
    elif alike == "base":
        columns[:, 0] = 0
    elif alike == "target":
        columns[:, 0] = target - base
    axes = np.meshgrid(*[np.linspace(0, 1, 21)] * count)
    grid = np.stack([axis.ravel() for axis in axes])
    merged = columns @ grid
    lengths = np.linalg.norm(merged, axis=0)
    delta = np.where(
        lengths > 1e-12, (target - base) @ merged / np.maximum(lengths, 1e-12) / np.linalg.norm(target - base), 0
    )
    whole = base[:, None] + merged
    weights = target @ whole / np.linalg.norm(whole, axis=0) / np.linalg.norm(target)

    def bound(matrix, aim, corners):
        def farthest(direction):
            return corners[(corners @ direction).argmax()]

        free = largest_cosine(matrix.T @ matrix, matrix.T @ aim, aim @ aim)
        limited = largest_cosine(matrix.T @ matrix, matrix.T @ aim, aim @ aim, farthest)
        assert limited <= free + 1e-9
        return limited

    of_delta = bound(columns, target - base, np.eye(count))
    box = np.array([(1, *rest) for rest in product((0, 1), repeat=count)])
    of_weights = bound(np.column_stack([base, columns]), target, box)
    assert delta.max() <= of_delta + 1e-9
    assert of_delta <= delta.max() + 0.02
    assert weights.max() <= of_weights + 1e-9
    assert of_weights <= weights.max() + 0.02
    if alike == "target":
        assert of_delta == pytest.approx(1, abs=1e-9)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(1, 10_000),
    lost=st.sampled_from(["", "x", "y", "target"]),
    same=st.sampled_from(["", "base", "x", "target"]),
)
# The only case with a known ceiling is always tried.
@example(seed=1, lost="", same="target")
def test_bounds_hold_for_drawn_families(tmp_path_factory, write_sd1, sd1_tensors, seed, lost, same):
    """Recipe <= best <= ceiling and bounded <= ceiling, for families that lack tensors or contain equal models."""
    folder = tmp_path_factory.mktemp("drawn")
    base = sd1_tensors(seed=0)
    query = "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_q.weight"
    for n, name in enumerate(("base", "x", "y", "target")):
        options = {"seed": seed + n, "distance": 0.2 if n else 0.0}
        if name == "y" and same:
            options = {
                "seed": seed + ("base", "x", "y", "target").index(same),
                "distance": 0.2 if same != "base" else 0.0,
            }
        write_sd1(folder / f"{name}.safetensors", around=base, drop=[query] if name == lost else [], **options)
    models = "".join(f"  {name}: {{file: {name}}}\n" for name in ("base", "x", "y"))
    (folder / "recipe.yaml").write_text(f"models:\n{models}steps:\n{STEPS}", encoding="utf-8")
    text = f"recipe: recipe.yaml\ntarget: {{file: target}}\nstages:\n{STAGE}"
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    study = load_study(folder)

    fit(study)

    for found in study_ceilings(study, "both"):
        for block in found.blocks.values():
            assert block.recipe <= block.best + 1e-9
            assert block.best <= block.ceiling + 1e-9
            assert block.ceiling_bounded <= block.ceiling + 1e-9
        if same == "target" and not lost:
            assert found.total["ceiling_bounded"] == pytest.approx(1, abs=1e-6)
            assert found.sources["y"].coefficient == pytest.approx(1, abs=1e-6)
        assert all(np.isfinite(share.coefficient) for share in found.sources.values())


def test_target_equal_to_the_base_leaves_blocks_unchanged(write_study, pool, tmp_path):
    """If target and base are equal, all blocks are unchanged, and `weights` scores 1."""
    target = tmp_path / "same.safetensors"
    target.write_bytes(pool.paths["base"].read_bytes())
    study = load_study(write_study(STEPS, STAGE, target))

    explained, delta, weights = study_ceilings(study)

    for found in (explained, delta):
        assert (dict(found.blocks), found.unchanged) == ({}, BLOCKS)
        assert found.as_dict()["blocks"] == dict.fromkeys(BLOCKS)
        assert set(found.total.values()) == {None}
        assert found.sources["x"].coefficient == 0
    assert weights.total["ceiling_bounded"] == pytest.approx(1, abs=1e-12)


def test_study_without_a_base_starts_from_its_first_source(write_study, far_target, pool):
    """Without a base, the first source takes its place, `delta` is refused, and bounds cover convex combinations."""
    steps = (
        "  - {name: T1, mode: weight_sum, a: x, b: y, alpha: {search: [0, 1], blocks: OUT03}}\n"
        "  - {name: T2, mode: weight_sum, a: T1, b: z, alpha: {search: [0, 1], blocks: OUT03}}\n"
    )
    folder = write_study(steps, "  - {name: s, metric: weights, trials: 3}\n", far_target[0])
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text("".join(line for line in text.splitlines(keepends=True) if "base:" not in line), encoding="utf-8")
    study = load_study(folder)

    explained, found = study_ceilings(study)

    sources = np.stack([flat(pool.tensors[name], "OUT03") for name in "xyz"])
    shares = np.linspace(0, 1, 101)
    weights = np.array([(a, b, 1 - a - b) for a in shares for b in shares if a + b <= 1])
    grid = weights @ sources
    target = flat(far_target[1], "OUT03")
    values = grid @ target / np.linalg.norm(grid, axis=1) / np.linalg.norm(target)
    assert found.metric == "weights"
    assert values.max() - 1e-12 <= found.total["ceiling_bounded"] <= values.max() + 1e-5
    assert set(found.sources) == {"y", "z"}
    left = ((grid - target) ** 2).sum(axis=1) / ((sources[0] - target) ** 2).sum()
    assert explained.metric == "explained"
    # The first source's coefficient is free, so all convex combinations are allowed.
    assert explained.total["ceiling_bounded"] >= 1 - left.min() - 1e-12
    with pytest.raises(InputError, match="needs `base`"):
        study_ceilings(study, "delta")


def test_command_prints_json_and_tables(far_study, capsys, monkeypatch, tmp_path):
    """`--json` prints one object with the other metrics inside it; the table names the loss without each source."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["ceiling", str(far_study.folder), *arguments])
        return left.value.code, capsys.readouterr().out

    code, text = run("--json", "--metric", "delta")
    data = json.loads(text)
    assert code == 0
    assert set(data) >= {"metric", "blocks", "total", "sources", "rank", "alphas", "trade_off"}
    assert set(data["blocks"]["OUT03"]) >= {"recipe", "best", "ceiling", "ceiling_bounded"}
    assert data["total"]["recipe"] is None
    both = json.loads(run("--json")[1])
    assert both["metric"] == "explained"
    assert [ceiling["metric"] for ceiling in both["other_metrics"]] == ["delta", "weights"]
    assert both["other_metrics"][0] == data
    assert json.loads(run("--json", "--metric", "both")[1])["metric"] == "delta"
    assert "loses without" in run()[1]
    assert "OUT03" not in run()[1].partition("narrow")[0]
    assert "ceiling loses without" in run("--blocks")[1]
    assert "OUT03" in run("--blocks")[1]
    assert run("--metric", "attention")[0] == 2


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ("  - {name: s}\n", ""),
        ("  - {name: s, metric: attention, blocks: OUT03}\n", "attention, which does not compare weights"),
        (
            "  - {name: s, metric: attention, elsewhere: encoder, blocks: 'BASE,OUT03'}\n",
            "attention and encoder, which do not compare weights",
        ),
    ],
)
def test_metrics_without_a_bound_are_named(write_study, far_target, stages, named):
    """The note names metrics of the study that do not compare weights, since ceilings do not bound them."""
    steps = "  - {name: T, mode: weight_sum, a: base, b: x, alpha: {search: [0, 1], blocks: 'BASE,OUT03'}}\n"
    if "encoder" not in named:
        steps = steps.replace("'BASE,OUT03'", "OUT03")

    (found,) = study_ceilings(load_study(write_study(steps, stages, far_target[0])), "delta")

    assert found.note == (named and f"these figures do not bound {named}")


def test_metric_without_a_ceiling_is_refused(far_study):
    """A metric other than the exact ones is refused by name."""
    with pytest.raises(InputError, match="attention"):
        study_ceilings(far_study, "attention")
