"""A study started with an earlier version continues: its trials count, and new ones are added."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optimizer.analysis import found_ceilings, simplify_file
from optimizer.recipes import load_recipe
from optimizer.reports.page import write_report
from optimizer.search import fit, found_result, study_status
from optimizer.studies import load_study

# The folder as blockfit at commit 2f17fe0 left it: its YAML files, study.db in the form of `Connection.iterdump`, and
# the output of `blockfit simplify` for best.yaml. The checkpoints must be identical byte for byte, since trials of
# other checkpoints do not count.
BEFORE = Path(__file__).with_name("before")
SEARCHES = {"by steps/A": 3, "by steps/B": 3, "together": 3}


def counted(shapes, seed):
    """Return tensors of these shapes {name: shape} with values from integer arithmetic, equal on every machine."""
    found = {}
    for place, (name, shape) in enumerate(shapes.items()):
        i = torch.arange(shape.numel())
        numbers = (i * i * 31 + i * (place + 17) + seed * seed * 101 + i * seed * 13) % 4001 - 2000
        found[name] = (numbers / 2000).to(torch.float32).reshape(shape)
    return found


@pytest.fixture(scope="module")
def earlier_study(tmp_path_factory, sd1_tensors):
    """The folder of the study as the earlier version left it."""
    folder = tmp_path_factory.mktemp("before") / "study"
    shutil.copytree(BEFORE, folder, ignore=shutil.ignore_patterns("*.sql"))
    database = sqlite3.connect(folder / "study.db")
    database.executescript((BEFORE / "study.sql").read_text(encoding="utf-8"))
    database.close()
    shapes = {name: tensor.shape for name, tensor in sd1_tensors(position_ids=False).items()}
    base, x, y, rest = (counted(shapes, seed) for seed in range(4))
    target = {
        name: (
            value.double()
            + 0.25 * (x[name].double() - value.double())
            + 0.5 * (y[name].double() - value.double())
            + 0.0625 * rest[name].double()
        ).float()
        for name, value in base.items()
    }
    for name, tensors in {"base": base, "x": x, "y": y, "target": target}.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def folder(earlier_study, tmp_path):
    """A copy of the earlier study for one test."""
    return shutil.copytree(earlier_study, tmp_path / "study")


def trials_in(folder):
    """Return the completed trials in order, {name of the Optuna study: [(value, {parameter: value})]}."""
    database = sqlite3.connect(folder / "study.db")
    rows = database.execute(
        "select s.study_name, t.trial_id, v.value from trials t join studies s using (study_id) "
        "join trial_values v using (trial_id) where t.state = 'COMPLETE' order by t.trial_id"
    ).fetchall()
    found = {}
    for name, trial, value in rows:
        params = database.execute("select param_name, param_value from trial_params where trial_id = ?", (trial,))
        found.setdefault(name, []).append((value, dict(params.fetchall())))
    database.close()
    return found


def alphas_in(path):
    """Return the alphas of a recipe's steps in order."""
    return [(step.name, step.alphas) for step in load_recipe(path).steps]


def test_earlier_results_are_read(folder):
    """The status counts the earlier trials, and the result is the earlier best.yaml."""
    study = load_study(folder)
    status = study_status(study)
    found = found_result(study)

    assert {search.search: search.completed for search in status.searches} == SEARCHES
    assert found.result.recipe == load_recipe(BEFORE / "best.yaml")
    assert found.result.similarity == pytest.approx(0.997376535, abs=1e-9)
    assert (found.written, found.moved_on, found.notes) == (True, (), ())


def test_the_study_continues(folder):
    """With two more trials a search has its earlier trials, unchanged, and two new ones."""
    before = trials_in(folder)
    result = fit(load_study(folder).with_trials(5))
    after = trials_in(folder)

    assert {name: len(trials) for name, trials in before.items()} == SEARCHES
    assert set(after) == set(SEARCHES)
    for name, trials in before.items():
        assert after[name][:3] == trials
        assert len(after[name]) == 5
    assert result.similarity >= 0.997376535 - 1e-6
    assert load_recipe(folder / "best.yaml").fitted.complete is True


def test_a_finished_study_adds_no_trials(folder):
    """Without a larger budget a fit stores no trial, and writes the earlier recipe."""
    before = trials_in(folder)
    fit(load_study(folder))

    assert trials_in(folder) == before
    assert alphas_in(folder / "best.yaml") == alphas_in(BEFORE / "best.yaml")


def test_the_earlier_recipe_is_reported_and_simplified(folder):
    """A report is written, and the simplified recipe equals the earlier one."""
    found, ceilings = found_result(load_study(folder)), found_ceilings(folder)
    write_report(found, *ceilings, folder / "report.html", named="before", date="2026-11-27")
    simplify_file(folder / "best.yaml", folder / "simple.yaml")

    assert (folder / "report.html").stat().st_size > 10_000
    assert alphas_in(folder / "simple.yaml") == alphas_in(BEFORE / "simpler.yaml")
