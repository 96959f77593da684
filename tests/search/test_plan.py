"""The plan of a fit, made of records: order, bindings, starts, and what an earlier fit still gives."""

import pytest
from search_records import BLOCKS, recipe, stage, study

from optimizer.search.plan import plan_searches
from optimizer.similarity import EncoderOptions, Options

FILES = {"base": "b", "x": "1", "y": "2", "the target": "t"}


@pytest.mark.parametrize(
    ("stages", "searches"),
    [
        ([stage()], [("s/T1", "T1", 1), ("s/T2", "T2", 1)]),
        ([stage(strategy="joint")], [("s", "T2", 1)]),
        (
            [stage(passes=2)],
            [("s/T1", "T1", 1), ("s/T2", "T2", 1), ("s/T1/pass 2", "T2", 2), ("s/T2/pass 2", "T2", 2)],
        ),
        ([stage("b", steps=("T1",)), stage("a", strategy="joint")], [("b/T1", "T1", 1), ("a", "T2", 1)]),
    ],
)
def test_order(stages, searches):
    """Stages follow each other as the study lists them, passes within a stage, and steps within a pass."""
    plan = plan_searches(study(*stages), FILES, {})

    assert [(search.name, search.step, search.number) for search in plan.searches] == searches
    for one in stages:
        of_passes = [[search.name for search in searches] for searches in plan.passes(one)]
        assert len(of_passes) == one.passes
        assert [name for names in of_passes for name in names] == [
            name for name, _, _ in searches if name.startswith(one.name)
        ]


def test_bindings():
    """A search is bound to every file and to its own range, and not to another stage's."""
    plan = plan_searches(study(), FILES, {})
    other_file = plan_searches(study(), {**FILES, "x": "another"}, {})
    narrower = recipe(high=0.5)
    other_range = plan_searches(study(stage(of=narrower), of=narrower), FILES, {})

    assert set(plan.bindings) == {"s/T1", "s/T2"}
    for name, binding in plan.bindings.items():
        assert {key for key in binding if binding[key] != other_file.bindings[name][key]} == {"file for x"}
        assert {key for key in binding if binding[key] != other_range.bindings[name][key]} == {"search space"}


def test_prompts_are_bound_where_they_are_read():
    """The prompts of a stage that reads them decide its scores; those of another stage do not."""
    reading = stage("reads", blocks=("BASE",), metric="encoder", strategy="joint")
    both = study(stage(), reading)
    texts = [Options((EncoderOptions().with_texts((text,)),)) for text in ("a cat", "a dog")]
    one, other = (plan_searches(both, FILES, {"reads": options, "s": options}).bindings for options in texts)

    assert one["reads"] != other["reads"]
    assert one["s/T1"] == other["s/T1"]


def test_further_passes_go_on_from_the_recipe():
    """The first pass starts where the recipe says, further ones at the numbers that were found."""
    plan = plan_searches(study(stage(passes=2)), FILES, {})
    found = recipe().with_alphas({("T1", "alpha"): {"M00": 0.25, "OUT03": 0.75}})

    starts = {
        search.name: [parameter.free.starting_value for parameter in search.started_at(found).parameters]
        for search in plan.searches
        if "T1" in search.name
    }

    assert starts["s/T1"] == [parameter.free.starting_value for parameter in stage().parameters[:2]]
    assert starts["s/T1/pass 2"] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("stages", "moved_later", "candidates"),
    [
        ([stage("one"), stage("two", steps=("T1",))], [True, False], [False, False]),
        ([stage("one", blocks=("M00",)), stage("two", blocks=("OUT03",))], [False, False], [True, True]),
        ([stage("one", steps=("T1",)), stage("two", steps=("T1", "T2"))], [True, False], [False, False]),
        ([stage("one")], [False], [True]),
    ],
)
def test_stages_that_move_each_other_s_scores(stages, moved_later, candidates):
    """A stage is scored at the end if a later one moves its blocks; its next best count if no other one scores them."""
    plan = plan_searches(study(*stages), FILES, {})

    assert [plan.is_moved_later(one) for one in stages] == moved_later
    assert [plan.has_candidates(one) for one in stages] == candidates


def test_a_cosine_does_not_see_the_base():
    """Where all metrics are cosines of differences, a common scale of the others makes no different candidate."""
    plan = plan_searches(study(stage(), stage("explained", metric="explained")), FILES, {})

    assert [plan.candidate_base(one) for one in plan.study.stages] == ["base", None]


def test_an_earlier_fit_fills_what_it_may():
    """Numbers of an earlier best.yaml stand where a free alpha's range still allows all of them, and nowhere else."""
    earlier = recipe().with_alphas(
        {("T1", "alpha"): {"M00": 0.4, "OUT03": 0.2}, ("T2", "alpha"): {"M00": 0.9, "OUT03": 0.3}}
    )
    narrower = recipe(high=0.5)
    plan = plan_searches(study(stage(of=narrower), of=narrower), FILES, {}, earlier)

    kept = plan.kept(narrower.with_alphas({("T1", "alpha"): {"M00": 0.1}}))

    assert [kept.step("T1").alpha.at(block) for block in BLOCKS] == [0.1, 0.2]
    assert kept.step("T2") == narrower.step("T2")
    assert plan_searches(study(), FILES, {}).kept(recipe()) == recipe()
