"""Further passes of a stepwise stage, from the greedy start to the joint optimum."""

import pytest

from optimizer.analysis import exact_optimum, simplify_file
from optimizer.errors import StudyError
from optimizer.recipes import Algebra, Space, load_recipe, parameters_of
from optimizer.search import FitEvents, fit, study_status
from optimizer.similarity import build_metric, measure_statistics, open_comparison
from optimizer.studies import load_study

BLOCKS = ("OUT03", "OUT06")
PLANTED = {"T1": 0.1, "T2": 0.35, "T3": 0.2}


def steps(alpha):
    """Return three steps over x, y and z with the alphas `alpha(name)`."""
    return "".join(
        f"  - {{name: {name}, mode: add_difference, a: {a}, b: {b}, c: base, alpha: {alpha(name)}}}\n"
        for name, a, b in (("T1", "base", "x"), ("T2", "T1", "y"), ("T3", "T2", "z"))
    )


FREE = steps(lambda name: "{search: [0, 1], blocks: 'OUT03,OUT06'}")
TIED = steps(lambda name: "{search: [0, 1], blocks: 'OUT03,OUT06', tie: true}")


@pytest.fixture(scope="session")
def planted(pool):
    """A target of three steps, with noise."""
    inputs = {"T1": ("base", "x"), "T2": ("T1", "y"), "T3": ("T2", "z")}
    made = [
        {"name": n, "mode": "add_difference", "a": a, "b": b, "c": "base", "alpha": dict.fromkeys(BLOCKS, PLANTED[n])}
        for n, (a, b) in inputs.items()
    ]
    return pool.plant("three_steps", made, noise=0.01)[0]


def stage(**fields):
    """Return a stepwise stage by delta."""
    given = {"name": "s", "metric": "delta", "strategy": "stepwise", "trials": 4, "sampler": "random", **fields}
    return "  - {" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}\n"


def joint_optimum(study):
    """Return the similarity of the joint exact optimum of all alphas."""
    with open_comparison(study.recipe.layout, study.sources, study.target, base=study.sources["base"]) as comparison:
        metric = build_metric("delta", comparison, BLOCKS, measure_statistics(comparison, BLOCKS))
        algebra = Algebra(study.recipe, comparison.groups, tuple(comparison.sources), "T3")
        return exact_optimum(Space(algebra, parameters_of(study.recipe, PLANTED)), metric).value


def total(result):
    """Return the final similarity of the last step by delta."""
    return result.recipe.step("T3").similarity["delta"]["total"]


@pytest.mark.parametrize("text", [FREE, pytest.param(TIED, marks=pytest.mark.slow)])
def test_passes_reach_the_joint_optimum(write_study, planted, text):
    """The greedy start is below the joint optimum; passes never decrease, and end within the tolerance of it."""
    greedy = fit(load_study(write_study(text, stage(), planted, "greedy")))
    study = load_study(write_study(text, stage(passes=40, tolerance="1e-8"), planted))
    best = joint_optimum(study)

    found = fit(study)

    assert total(greedy) < best - 1e-5
    assert best - 1e-6 < total(found) <= best + 1e-9
    later = [search for search in found.searches if "/pass " in search.name]
    values = [search.best.similarity for search in later]
    assert values == sorted(values)
    assert all(search.step == "T3" for search in later)
    assert all(search.trials[0].origin == "incumbent" for search in later)
    last = max(int(search.name.rpartition(" ")[2]) for search in later)
    assert 2 < last < 40


def test_a_tolerance_ends_the_passes(write_study, planted):
    """With a tolerance that no pass reaches, one further pass runs; `status` lists its searches."""
    study = load_study(write_study(FREE, stage(passes=9, tolerance="0.5"), planted))

    names = [search.name for search in fit(study).searches]

    assert names == ["s/T1", "s/T2", "s/T3", "s/T1/pass 2", "s/T2/pass 2", "s/T3/pass 2"]
    assert [search.search for search in study_status(study).searches] == names
    assert {search.completed for search in study_status(study).searches} == {4}


def test_passes_are_resumed(write_study, planted):
    """A second run repeats no trial, and a larger budget gives the same steps as a single run."""
    folder = write_study(FREE, stage(passes=3, tolerance=0), planted)
    first = fit(load_study(folder))
    again = fit(load_study(folder))
    assert again.recipe.steps == first.recipe.steps
    assert [len(search.trials) for search in again.searches] == [4] * 9

    continued = fit(load_study(folder).with_trials(7))
    at_once = fit(load_study(write_study(FREE, stage(passes=3, tolerance=0, trials=7), planted, "other")))
    assert continued.recipe.steps == at_once.recipe.steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passes": 0}, "passes: received 0; must be at least 1"),
        ({"passes": 2, "strategy": "joint"}, "passes: a joint stage searches all alphas at once"),
        ({"passes": 2, "tolerance": -1}, "tolerance: received -1; must be a number, at least 0"),
        ({"passes": 2, "tolerance": ".nan"}, "tolerance: received nan; must be"),
    ],
)
def test_invalid_passes_are_refused(write_study, planted, fields, message):
    """Invalid options of passes are refused by name."""
    with pytest.raises(StudyError, match="stages.s." + message):
        load_study(write_study(FREE, stage(**fields), planted))


def test_every_step_must_lead_to_the_last(write_study, planted):
    """Further passes score the last step, so every step must lead to it."""
    text = FREE + FREE.splitlines(keepends=True)[0].replace("name: T1", "name: APART")
    load_study(write_study(text, stage(), planted))
    with pytest.raises(StudyError, match="'T1', 'T2', 'T3' do not lead to 'APART', which further passes score"):
        load_study(write_study(text, stage(passes=2), planted))


def test_an_interrupted_continuation_keeps_earlier_alphas(write_study, planted):
    """Alphas that a continued fit did not reach before Ctrl-C keep their earlier values, not starting values."""
    folder = write_study(FREE, stage(trials=4), planted)
    before = fit(load_study(folder)).recipe

    def interrupt(progress, trial):
        raise KeyboardInterrupt

    result = fit(load_study(folder).with_trials(6), events=FitEvents(finished=interrupt))

    assert result.interrupted
    written = load_recipe(folder / "best.yaml")
    assert written.fitted.complete is False
    for name in ("T2", "T3"):
        assert written.step(name).alpha == before.step(name).alpha
    assert any(written.step("T3").alpha.values.values())


def test_one_step_needs_no_second_pass(write_study, planted):
    """A stage with one searched step, which is the scored one, runs a single pass."""
    text = steps(lambda name: "{search: [0, 1], blocks: 'OUT03,OUT06'}" if name == "T3" else "0.2")
    result = fit(load_study(write_study(text, stage(passes=4), planted)))
    assert [search.name for search in result.searches] == ["s/T3"]


@pytest.mark.parametrize("metric", ["delta", "attention"])
def test_only_the_last_pass_is_recorded(write_study, planted, metric):
    """Only the last pass is recorded, so that `simplify` compares with no earlier score."""
    study = load_study(write_study(FREE, stage(passes=3, tolerance=0, metric=metric), planted))
    fit(study)
    path = study.folder / "best.yaml"
    warnings = []

    found = simplify_file(path, study.folder / "simple.yaml", warn=warnings.append)

    assert warnings == []
    assert list(found.totals) == ["s/T3/pass 3"]
