"""Ranges that are too narrow are found, in agreement with least squares on flattened merged tensors."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from step_by_step import block_of, merged_names

from optimizer.analysis import NarrowRange, study_ceilings
from optimizer.cli import main
from optimizer.families import load_layout
from optimizer.search import fit
from optimizer.studies import load_study

BLOCKS = ("OUT03", "OUT06")
SEARCH = "{search: [0, 1], blocks: 'OUT03,OUT06'}"
ADD = "  - {{name: {name}, mode: add_difference, a: {a}, b: {b}, c: base, alpha: {alpha}}}\n"
STAGE = "  - {name: s, trials: 2, strategy: joint}\n"


def add(name, a, b, alpha):
    """Return a step that adds a model's difference from the base, for `merge_by_steps`."""
    return {"name": name, "mode": "add_difference", "a": a, "b": b, "c": "base", "alpha": dict.fromkeys(BLOCKS, alpha)}


def flat(tensors, block):
    """Return a block's merging tensors as one float64 vector."""
    names = sorted(name for name in merged_names(tensors) if block_of(name) == block and "first_stage" not in name)
    return torch.cat([tensors[name].double().flatten() for name in names]).numpy()


@pytest.fixture
def least_squares(pool):
    """A function that returns the best bounded coefficients of sources on a block, and their explained share."""

    def solve(target, sources, block, bounds=(-np.inf, np.inf)):
        base = flat(pool.tensors["base"], block)
        columns = np.stack([flat(pool.tensors[name], block) - base for name in sources], axis=1)
        aim = flat(target, block) - base
        found = lsq_linear(columns, aim, bounds, method="bvls").x
        return found, 1 - ((columns @ found - aim) ** 2).sum() / (aim**2).sum()

    return solve


def run(capsys, *arguments):
    """Return the output of a command that succeeds."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert not left.value.code
    return capsys.readouterr().out


def test_subtracted_model_is_reported(pool, write_study, least_squares, capsys, monkeypatch, tmp_path):
    """For x - 0.5 y in ranges 0..1, fit, ceiling and report name y, its blocks, the loss and the range to write."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    target, merged = pool.plant("away", [add("A", "base", "x", 0.8), add("B", "A", "y", -0.5)], noise=0.01)
    steps = ADD.format(name="T1", a="base", b="x", alpha=SEARCH) + ADD.format(name="T2", a="T1", b="y", alpha=SEARCH)
    folder = write_study(steps, STAGE, target)

    (narrow,) = json.loads(run(capsys, "fit", folder, "--json"))["narrow_ranges"]

    free = {block: least_squares(merged, ("x", "y"), block) for block in BLOCKS}
    bounded = {block: least_squares(merged, ("x", "y"), block, (0, 1)) for block in BLOCKS}
    numbers = [alphas[1] for alphas, _ in free.values()]
    assert all(number < -0.4 for number in numbers)
    assert narrow == {
        "step": "T2",
        "alpha": "alpha",
        "source": "y",
        "blocks": list(BLOCKS),
        "search": [0.0, 1.0],
        "least": pytest.approx(min(numbers), abs=1e-6),
        "most": pytest.approx(max(numbers), abs=1e-6),
        "explained": pytest.approx(np.mean([share for _, share in bounded.values()]), abs=1e-6),
        "reachable": pytest.approx(np.mean([share for _, share in free.values()]), abs=1e-6),
        "wider": [-1.0, 1.0],
    }
    assert json.loads(run(capsys, "ceiling", folder, "--json"))["narrow_ranges"] == [narrow]
    line = "T2: the best alphas of y lie outside search: [0, 1] on OUT03,OUT06"
    assert f"range too narrow: {line}" in run(capsys, "fit", folder)
    assert line in " ".join(run(capsys, "ceiling", folder, "--metric", "explained").split())
    assert "Ranges are too narrow" in json.loads(run(capsys, "report", folder, "--json"))["remarks"]
    assert "with search: [-1, 1]" in (folder / "report.html").read_text(encoding="utf-8")

    wide = write_study(steps.replace("[0, 1]", "[-1, 1]"), STAGE, target, "wide")
    found = fit(load_study(wide))
    assert found.narrow == ()
    assert found.recipe.step("T2").alpha.at("OUT03") == pytest.approx(free["OUT03"][0][1], abs=1e-6)


@pytest.mark.parametrize(("alpha", "wider"), [(1.4, (0, 2)), (-0.3, (-1, 1)), (2.6, (0, 3))])
@pytest.mark.parametrize("tie", [False, True])
def test_weight_beyond_a_whole_model_is_reported(pool, write_study, alpha, wider, tie):
    """A weight sum beyond its range is reported with the planted alpha, single or tied."""
    step = {"name": "A", "mode": "weight_sum", "a": "base", "b": "x", "c": None, "alpha": dict.fromkeys(BLOCKS, alpha)}
    target, _ = pool.plant(f"whole{alpha}", [step])
    search = SEARCH.replace("}", ", tie: true}") if tie else SEARCH
    steps = f"  - {{name: T, mode: weight_sum, a: base, b: x, alpha: {search}}}\n"

    (narrow,) = fit(load_study(write_study(steps, STAGE, target))).narrow

    assert (narrow.step, narrow.source, narrow.blocks, narrow.wider) == ("T", "x", BLOCKS, wider)
    assert (narrow.least, narrow.most) == pytest.approx((alpha, alpha), abs=1e-5)
    assert narrow.beyond == pytest.approx(1, abs=1e-9)
    # The best alpha within the range is at a bound, 0 or 1.
    nearest = min(max(alpha, 0.0), 1.0)
    assert narrow.within == pytest.approx(1 - (nearest - alpha) ** 2 / alpha**2, abs=1e-6)


def test_beta_is_named_by_its_model(pool, write_study):
    """The beta of a triple sum is reported as the weight of c."""
    steps = [add("A", "base", "x", 0.5), add("B", "A", "y", -0.4)]
    target, _ = pool.plant("beta", steps)
    step = f"  - {{name: T, mode: triple_sum, a: base, b: x, c: y, alpha: {SEARCH}, beta: {SEARCH}}}\n"

    (narrow,) = fit(load_study(write_study(step, STAGE, target))).narrow

    assert (narrow.alpha, narrow.source) == ("beta", "y")
    assert narrow.describe(load_layout("sd1")).startswith(
        "T (beta): the best alphas of y lie outside search: [0, 1] on "
    )


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_noise_is_not_reported(pool, write_study, noise):
    """A decoy whose best alpha is below 0 only through noise is not reported, nor is an alpha within its range."""
    target, _ = pool.plant(f"inside{noise}", [add("A", "base", "x", 0.4)], noise=noise)
    steps = ADD.format(name="T1", a="base", b="x", alpha=SEARCH) + ADD.format(name="T2", a="T1", b="y", alpha=SEARCH)

    ceilings = study_ceilings(load_study(write_study(steps, STAGE, target)))

    assert all(ceiling.narrow == () for ceiling in ceilings)


def test_range_without_gain_is_not_reported(pool, write_study):
    """Beside an alpha beyond its range, a decoy barely below 0 on the same blocks is not reported."""
    target, _ = pool.plant("beside", [add("A", "base", "x", 1.5), add("B", "A", "y", -0.005)])
    steps = ADD.format(name="T1", a="base", b="x", alpha=SEARCH) + ADD.format(name="T2", a="T1", b="y", alpha=SEARCH)

    found = fit(load_study(write_study(steps, STAGE, target))).narrow

    assert [(narrow.step, narrow.source) for narrow in found] == [("T1", "x")]


def test_description_is_one_line_with_numbers():
    """A range is described in one line with its block, its best alpha, its loss and the range to write."""
    narrow = NarrowRange("T2", "alpha", "c", ("OUT03",), 0.0, 1.0, -0.412, -0.412, 0.8941, 0.99999)

    assert narrow.describe(load_layout("sd1")) == (
        "T2: the best alpha of c lies outside search: [0, 1] on OUT03, at -0.41; with search: [-1, 1] 100.00% would be "
        "explained there, not 89.41%"
    )
