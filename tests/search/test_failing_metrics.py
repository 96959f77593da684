"""Failed trials and metrics with a bug: trials stored, log, files written, and the end of the fit."""

import logging

import optuna
import pytest
import torch
from databases import sqlite_url

from optimizer.cli import main
from optimizer.errors import CheckpointError
from optimizer.recipes import load_recipe
from optimizer.search import FitEvents, TrialState, fit
from optimizer.similarity import METRICS, MetricKind
from optimizer.similarity.quadratic import ElementsMetric
from optimizer.studies import load_study

STEPS = "  - {name: T, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: 'M00,OUT03'}}\n"
STAGE = "  - {name: s, metric: newcomer, trials: 6, sampler: random}\n"


class Newcomer(ElementsMetric):
    """A metric whose trial number `after` + 1 raises `error`, and with `always` all later trials too."""

    after, error, always = 0, None, False
    calls = 0

    def score(self, coefficients):
        """Return the scores, or raise the error."""
        cls = type(self)
        cls.calls += 1
        if cls.error is not None and (cls.calls > cls.after if cls.always else cls.calls == cls.after + 1):
            raise cls.error
        return super().score(coefficients)


@pytest.fixture
def newcomer(monkeypatch):
    """The metric, registered as in CONTRIBUTING."""

    def build(comparison, statistics, blocks):
        return Newcomer(statistics, comparison.groups, blocks)

    kind = MetricKind("newcomer", "a metric of a newcomer", lambda layout: layout.blocks, build)
    monkeypatch.setitem(METRICS, "newcomer", kind)
    for name in ("after", "error", "always", "calls"):
        monkeypatch.setattr(Newcomer, name, getattr(Newcomer, name))
    return Newcomer


@pytest.fixture
def folder(write_study, pool, newcomer):
    """A study with the new metric."""
    target = pool.plant("newcomer", pool.two_steps({"M00": 0.3, "OUT03": 0.6}, {}), noise=0.05)[0]
    return write_study(STEPS, STAGE, target)


def stored(folder):
    """Return state and error of each trial in the database."""
    study = optuna.load_study(
        study_name="s", storage=sqlite_url(folder / "study.db"), sampler=optuna.samplers.RandomSampler()
    )
    return [(trial.state.name, trial.user_attrs.get("error")) for trial in study.trials]


@pytest.mark.parametrize(
    "bug", [TypeError("no such argument"), AssertionError("shapes"), NotImplementedError("later"), KeyError("OUT03")]
)
def test_a_bug_ends_the_fit(folder, newcomer, bug, caplog):
    """A bug of the metric ends the fit at once with its own error; the trial is failed and the best recipe written."""
    newcomer.after, newcomer.error, newcomer.always = 3, bug, True
    seen = []

    with pytest.raises(type(bug)) as raised, caplog.at_level(logging.ERROR, "blockfit"):
        fit(load_study(folder), events=FitEvents(finished=lambda progress, trial: seen.append(trial)))

    assert raised.value is bug
    assert stored(folder) == [("COMPLETE", None)] * 3 + [("FAIL", f"{type(bug).__name__}: {bug}")]
    assert [trial.state for trial in seen] == [TrialState.COMPLETE] * 3 + [TrialState.FAILED]
    recipe = load_recipe(folder / "best.yaml")
    assert recipe.fitted.complete is False
    best = max(seen[:3], key=lambda trial: trial.similarity)
    assert [recipe.step("T").alpha.at(block) for block in ("M00", "OUT03")] == list(best.alphas.values())
    assert caplog.records[0].name == "blockfit.search"
    assert "in score" in caplog.text

    newcomer.error = None
    assert [len(search.completed) for search in fit(load_study(folder)).searches] == [6]


def test_a_bug_in_the_first_trial_writes_no_recipe(folder, newcomer):
    """A bug in the first trial leaves no best.yaml; the failed trial records the error."""
    newcomer.error, newcomer.always = TypeError("no such argument"), True

    with pytest.raises(TypeError, match="no such argument"):
        fit(load_study(folder))

    assert stored(folder) == [("FAIL", "TypeError: no such argument")]
    assert not (folder / "best.yaml").exists()


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError(5, "Input/output error"),
        CheckpointError("x.safetensors: was deleted while it was being read; run again"),
        FloatingPointError("overflow"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_temporary_failure_costs_one_trial(folder, newcomer, failure, caplog):
    """A temporary failure costs one trial, its traceback is logged, and the budget is met."""
    newcomer.after, newcomer.error = 2, failure

    with caplog.at_level(logging.ERROR, "blockfit"):
        result = fit(load_study(folder))

    assert len(result.searches[0].completed) == 6
    assert stored(folder)[2] == ("FAIL", f"{type(failure).__name__}: {failure}")
    assert result.searches[0].trials[2].error == f"{type(failure).__name__}: {failure}"
    (record,) = caplog.records
    assert record.exc_info[1] is failure


def test_a_bug_is_one_line_of_the_command(folder, newcomer, capsys):
    """A bug is one line and exit code 1; with --debug it is raised with its traceback."""
    newcomer.after, newcomer.error, newcomer.always = 2, TypeError("no such argument"), True

    with pytest.raises(SystemExit) as left:
        main(["fit", str(folder)])
    plain = capsys.readouterr()
    newcomer.calls = 0
    with pytest.raises(TypeError, match="no such argument"):
        main(["--debug", "fit", str(folder)])
    debugged = capsys.readouterr()

    assert left.value.code == 1
    assert plain.err.splitlines() == ["blockfit: TypeError: no such argument (--debug shows where)"]
    assert "Traceback (most recent call last):" in debugged.err
    assert "in score" in debugged.err
    assert (folder / "best.yaml").exists()
