"""Curves of similarity along one alpha against merges made tensor by tensor."""

import pytest
import torch
from safetensors.torch import load_file
from step_by_step import block_of, merge_by_steps, merged_names

from optimizer.analysis import curves_along, largest_similarity, study_ceilings
from optimizer.recipes import Algebra, Space, parameters_of
from optimizer.similarity import build_metric, read_measured
from optimizer.studies import load_study

STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [-1, 1], blocks: OUT03-OUT04}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: OUT03-OUT05, tie: true}}
"""
POINT = {"T1.OUT03": 0.4, "T1.OUT04": -0.25, "T2.alpha": 0.3}


@pytest.fixture
def measured_study(write_study, pool):
    """A study with statistics in its folder, and its checkpoints by name."""
    target, _ = pool.plant(
        "curves", pool.two_steps(dict.fromkeys(("OUT03", "OUT04", "OUT05"), 0.5), {"OUT04": 0.2}), noise=0.05
    )
    study = load_study(write_study(STEPS, "  - {name: s, metric: delta}\n", target))
    ceilings = study_ceilings(study, "all")
    return (
        study,
        ceilings,
        {"target": load_file(target), **{name: load_file(pool.paths[name]) for name in ("base", "x", "y")}},
    )


def similarities(tensors, merged, block):
    """Return the share explained of a block and the cosine of its difference from the base, {metric: similarity}."""
    names = [name for name in merged_names(tensors["base"]) if block_of(name) == block]
    base, target, found = (
        torch.cat([source[name].double().flatten() for name in names])
        for source in (tensors["base"], tensors["target"], merged)
    )
    moved, wanted = found - base, target - base
    return {
        "explained": max(1 - float((moved - wanted) @ (moved - wanted) / (wanted @ wanted)), -1.0),
        # The cosine with a zero vector is 0.
        "delta": float(moved @ wanted / (moved.norm() * wanted.norm()).clamp_min(1e-300)),
    }


@pytest.mark.parametrize("metric", ["explained", "delta"])
def test_curves_are_scores_of_merges(measured_study, metric):
    """A curve has the scores of merges with one other alpha, runs through the point, and from end to end of a range."""
    study, _, tensors = measured_study
    measured = read_measured(study.outputs.statistics)
    blocks = ("OUT03", "OUT04", "OUT05")
    space = Space(
        Algebra(study.recipe, measured.groups, tuple(measured.sources), "T2"), parameters_of(study.recipe, ["T1", "T2"])
    )
    curves = curves_along(space, build_metric(metric, measured, blocks, measured.statistics), POINT)

    assert list(curves) == ["T1.OUT03", "T1.OUT04", "T2.alpha"]
    for name, moved in (("T1.OUT03", ["OUT03"]), ("T1.OUT04", ["OUT04"]), ("T2.alpha", list(blocks))):
        curve = curves[name]
        assert (len(curve.alphas), curve.alphas[-1]) == (101, 1)
        assert curve.alphas[0] == (-1 if name.startswith("T1") else 0)
        assert POINT[name] in curve.alphas
        for place in (0, 33, 100):
            alphas = {**POINT, name: curve.alphas[place]}
            steps = [
                {"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "base",
                 "alpha": {"OUT03": alphas["T1.OUT03"], "OUT04": alphas["T1.OUT04"]}},
                {"name": "T2", "mode": "weight_sum", "a": "T1", "b": "y",
                 "alpha": dict.fromkeys(blocks, alphas["T2.alpha"])},
            ]  # fmt: skip
            models = {model: tensors[model] for model in ("base", "x", "y")}
            merged = merge_by_steps(steps, models)["T2"]
            wanted = sum(similarities(tensors, merged, block)[metric] for block in moved) / len(moved)
            assert curve.similarities[place] == pytest.approx(wanted, abs=1e-6)


def test_no_curve_exceeds_the_largest_similarity(measured_study):
    """The largest similarity of a block is the ceiling of `blockfit ceiling`, and a study's curves stay below it."""
    study, ceilings, _ = measured_study
    measured = read_measured(study.outputs.statistics)
    space = Space(
        Algebra(study.recipe, measured.groups, tuple(measured.sources), "T2"), parameters_of(study.recipe, ["T1", "T2"])
    )
    for ceiling in ceilings:
        metric = build_metric(ceiling.metric, measured, ["OUT03"], measured.statistics)
        largest = largest_similarity(measured, ceiling.metric, "OUT03")

        assert largest == pytest.approx(ceiling.blocks["OUT03"].ceiling, abs=1e-9)
        assert max(curves_along(space, metric, POINT)["T1.OUT03"].similarities) <= largest + 1e-9
