"""The data frames for notebooks."""

import numpy as np
import pandas as pd
import pytest
from step_by_step import BLOCKS, merge_by_steps

from optimizer.analysis import study_ceilings
from optimizer.recipes import new_recipe
from optimizer.reports.frames import alphas_frame, ceiling_frame, coefficients_frame, similarity_frame, sources_frame
from optimizer.reports.plots import figures
from optimizer.search import FitResult

STEPS = [
    {"name": "A", "mode": "add_difference", "a": "x", "b": "y", "c": "base", "alpha": {"OUT03": 0.25, "M00": 1}},
    {"name": "B", "mode": "sum_twice", "a": "A", "b": "base", "c": "y", "alpha": 0.5, "beta": {"OUT03": 0.5}},
]


def test_alphas_have_a_row_per_block() -> None:
    """The frame has a row per block and a column per alpha and beta, in the recipe's order."""
    recipe = new_recipe({"base": "b", "x": "x", "y": "y"}, STEPS)
    table = alphas_frame(recipe)

    assert list(table.index) == list(BLOCKS)
    assert list(table.columns) == ["A", "B", "B.beta"]
    assert table.loc["OUT03"].tolist() == [0.25, 0.5, 0.5]
    assert table.loc["BASE"].tolist() == [0, 0.5, 0]
    assert list(alphas_frame(recipe, ["B"]).columns) == ["B", "B.beta"]


def test_coefficients_are_what_a_merge_multiplies_by(sd1_tensors) -> None:
    """The sum of the sources weighted by the coefficients equals the merge, computed step by step."""
    recipe = new_recipe({"base": "b", "x": "x", "y": "y"}, STEPS)
    tensors = {name: sd1_tensors(seed=number) for number, name in enumerate(("base", "x", "y"))}
    plain = [
        {"c": None, **step, **{name: dict(alphas_frame(recipe)[column]) for name, column in columns.items()}}
        for step, columns in zip(STEPS, ({"alpha": "A"}, {"alpha": "B", "beta": "B.beta"}), strict=True)
    ]
    name = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"

    for step in ("A", "B"):
        row = coefficients_frame(recipe, step).loc["OUT03"]
        summed = sum(float(row[source]) * tensors[source][name].double().numpy() for source in row.index)
        expected = merge_by_steps(plain, tensors)[step][name].numpy()
        assert np.abs(summed - expected).max() < 1e-6


def test_similarities_have_a_row_per_step_and_metric(finished_fit: FitResult) -> None:
    """The frame has a row per stage, step, metric and time, and the total is the mean over the blocks."""
    table = similarity_frame(finished_fit)

    assert table.index.names == ["stage", "step", "metric", "when"]
    assert len(table) == 2 * len(finished_fit.scores)
    assert list(table.columns) == ["total", "OUT03", "OUT04", "OUT05"]
    assert table["total"].to_numpy() == pytest.approx(table[["OUT03", "OUT04", "OUT05"]].mean(axis=1).to_numpy())
    last = finished_fit.scores[-1]
    assert table.loc[(last.stage, last.step, last.metric, "after"), "OUT03"] == last.after["OUT03"]


def test_ceilings_bound_the_similarities(finished_fit: FitResult) -> None:
    """The frame has a row per block and the total, none above its ceiling; the sources' frame a row per source."""
    (found,) = study_ceilings(finished_fit.study, "delta")
    table, sources = ceiling_frame(found), sources_frame(found)

    assert list(table.index) == ["OUT03", "OUT04", "OUT05", "total"]
    assert all(pd.api.types.is_float_dtype(kind) for kind in [*table.dtypes, *sources.dtypes])
    assert (table["recipe"] <= table["ceiling"] + 1e-9).all()
    assert table.loc["total", "not_in_sources"] == pytest.approx(1 - table["ceiling"].drop("total").mean())
    assert list(sources.index) == ["x", "y"]
    assert list(sources.columns) == ["coefficient", "error", "weighed", "weighed_error", "loss"]


def test_figures_show_themselves(finished_fit: FitResult) -> None:
    """A notebook displays each figure as a small PNG, without pyplot."""
    drawn = dict(figures(finished_fit))

    assert {"best-so-far", "similarity-per-block", "alphas"} < set(drawn)
    picture = drawn["alphas"]._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000
