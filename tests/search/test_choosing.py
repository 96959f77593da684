"""The choice of a fit's recipes: the best one, candidates, and the recipe after an interruption."""

import pytest
from search_records import BLOCKS, recipe, result, stage, study, trial

from optimizer.search.candidates import Choice
from optimizer.search.choosing import choose
from optimizer.search.findings import Findings
from optimizer.search.plan import plan_searches
from optimizer.search.results import deciding_searches
from optimizer.studies import StepScores

FIRST = result(
    stage(), "T1", trial(0, 0.5, T1_M00=0.1, T1_OUT03=0.2), trial(1, 0.7, T1_M00=0.3, T1_OUT03=0.4), trial(2, None)
)
SECOND = result(stage(), "T2", trial(0, 0.9, T2_M00=0.6, T2_OUT03=0.7), trial(1, 0.8, T2_M00=0.8, T2_OUT03=0.9))


def scores(step, after, name="s"):
    """Return scores of a step under delta, equal on all blocks."""
    return StepScores(name, step, "delta", dict.fromkeys(BLOCKS, 0.1), dict.fromkeys(BLOCKS, after))


def found():
    """Return the findings of a stage of two steps."""
    filled = Findings(recipe()).with_result(FIRST).filled().with_result(SECOND).filled()
    return filled.with_scores([scores("T1", 0.7), scores("T2", 0.9)])


def alphas(of, step):
    """Return the alphas of a step on the searched blocks."""
    return [of.step(step).alpha.at(block) for block in BLOCKS]


def test_findings_fill_the_best_alphas():
    """Each search fills its best alphas into the recipe; a repeated call changes nothing, a later result replaces."""
    assert alphas(found().recipe, "T1") == [0.3, 0.4]
    assert alphas(found().recipe, "T2") == [0.6, 0.7]
    assert found().filled() == found()
    assert [search.name for search in found().with_result(FIRST).results] == ["s/T2", "s/T1"]
    assert not Findings(recipe()).with_result(result(stage(), "T1", trial(0, None))).has_best
    assert Findings(recipe()).filled() == Findings(recipe())


def test_the_best_recipe_records_its_fit():
    """The best recipe has the best trials' alphas, and records these trials, the scores, the hashes and completion."""
    plan = plan_searches(study(), {}, {})

    best = choose(plan, found(), {"x": "f" * 64, "": "e" * 64}).best

    assert (alphas(best, "T1"), alphas(best, "T2")) == ([0.3, 0.4], [0.6, 0.7])
    assert not any(step.alpha.free for step in best.steps)
    assert [(search.name, search.best_trial, search.similarity) for search in best.fitted.searches] == [
        ("s/T1", 1, 0.7),
        ("s/T2", 0, 0.9),
    ]
    assert best.fitted.complete is True
    assert best.models["x"].sha256 == "f" * 64
    assert best.fitted.target.sha256 == "e" * 64
    assert best.step("T2").similarity["delta"]["total"] == 0.9


def test_an_interruption_keeps_earlier_alphas():
    """Alphas not reached before an interruption keep their earlier values, or else their starting values."""
    earlier = recipe().with_alphas(
        {("T1", "alpha"): {"M00": 0.9, "OUT03": 0.9}, ("T2", "alpha"): {"M00": 0.15, "OUT03": 0.25}}
    )
    started = Findings(recipe()).with_result(FIRST).filled()
    halves = [
        choose(plan_searches(study(), {}, {}, before), started, {}, complete=False, interrupted=True, candidates=3)
        for before in (earlier, None)
    ]

    assert [alphas(half.best, "T1") for half in halves] == [[0.3, 0.4], [0.3, 0.4]]
    assert alphas(halves[0].best, "T2") == [0.15, 0.25]
    start = recipe().with_start_values()
    assert alphas(halves[1].best, "T2") == alphas(start, "T2")
    assert [half.best.fitted.complete for half in halves] == [False, False]
    assert [half.candidates for half in halves] == [(), ()]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_candidates_are_ordered_by_their_loss(count):
    """Candidates are ordered by loss, and differ from the best recipe in one trial's alphas and its stage's scores."""
    near, far = (
        trial(number, value, T2_M00=alpha, T2_OUT03=alpha) for number, value, alpha in ((2, 0.85, 0.2), (3, 0.6, 0.0))
    )
    searched = result(stage(), "T2", *SECOND.trials, near, far)
    state = Findings(recipe()).with_result(FIRST).filled().with_result(searched).filled()
    state = state.with_scores([scores("T1", 0.7), scores("T2", 0.9)])
    for chosen in (far, near):
        state = state.with_choice(Choice(searched, chosen, 0.5), [scores("T1", 0.7), scores("T2", chosen.similarity)])

    chosen = choose(plan_searches(study(), {}, {}), state, {}, candidates=count)

    expected = [(2, 2, 0.85), (3, 3, 0.6)][: count - 1]
    assert [(found.number, found.trial, found.similarity) for found in chosen.candidates] == expected
    for candidate in chosen.candidates:
        assert alphas(candidate.recipe, "T1") == alphas(chosen.best, "T1")
        assert alphas(candidate.recipe, "T2") == list(searched.trials[candidate.trial].alphas.values())
        assert candidate.loss == pytest.approx(0.9 - candidate.similarity)
        assert candidate.recipe.fitted.candidate == candidate.number
        assert candidate.recipe.step("T2").similarity["delta"]["total"] == candidate.similarity
    assert chosen.best.fitted.candidate is None


def test_scores_are_in_the_study_s_order():
    """A stage that was scored last keeps its place in the study's order."""
    stages = stage("one", blocks=("M00",)), stage("two", blocks=("OUT03",))
    state = Findings(recipe()).with_scores([scores("T2", 0.2, "two")]).with_scores([scores("T2", 0.1, "one")])

    chosen = choose(plan_searches(study(*stages), {}, {}), state, {})

    assert [scored.stage for scored in chosen.scores] == ["one", "two"]


def test_the_last_search_decides_a_stage_with_passes():
    """In a stage with passes the last search has all final alphas; in other stages each search has its own."""
    once = stage("once")
    of_passes = stage("passes", passes=2)
    results = [
        result(once, "T1"),
        result(once, "T2"),
        *(result(of_passes, step, number=number) for number in (1, 2) for step in ("T1", "T2")),
    ]

    assert [search.name for search in deciding_searches(results)] == ["once/T1", "once/T2", "passes/T2/pass 2"]
