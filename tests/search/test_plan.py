"""The plan of a fit: order, bindings and starting values of the searches, and the alphas of an earlier fit."""

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
def test_searches_follow_stages_passes_and_steps(stages, searches):
    """Searches are ordered by stage as in the study, then by pass, then by step."""
    plan = plan_searches(study(*stages), FILES, {})

    assert [(search.name, search.step, search.number) for search in plan.searches] == searches
    for listed in stages:
        of_passes = [[search.name for search in searches] for searches in plan.passes(listed)]
        assert len(of_passes) == listed.passes
        assert [name for names in of_passes for name in names] == [
            name for name, _, _ in searches if name.startswith(listed.name)
        ]


def test_a_search_is_bound_to_its_files_and_ranges():
    """Another file changes only `file for`, another range only `search space`."""
    plan = plan_searches(study(), FILES, {})
    with_changed_file = plan_searches(study(), {**FILES, "x": "another"}, {})
    narrower = recipe(high=0.5)
    with_changed_range = plan_searches(study(stage(of=narrower), of=narrower), FILES, {})

    assert set(plan.bindings) == {"s/T1", "s/T2"}
    for name, binding in plan.bindings.items():
        assert {key for key in binding if binding[key] != with_changed_file.bindings[name][key]} == {"file for x"}
        assert {key for key in binding if binding[key] != with_changed_range.bindings[name][key]} == {"search space"}


def test_prompts_bind_only_stages_that_read_them():
    """Prompts change the binding of a stage that reads them, and of no other stage."""
    reading = stage("reads", blocks=("BASE",), metric="encoder", strategy="joint")
    both = study(stage(), reading)
    texts = [Options((EncoderOptions().with_texts((text,)),)) for text in ("a cat", "a dog")]
    cat, dog = (plan_searches(both, FILES, {"reads": options, "s": options}).bindings for options in texts)

    assert cat["reads"] != dog["reads"]
    assert cat["s/T1"] == dog["s/T1"]


def test_further_passes_start_at_the_alphas_found():
    """The first pass starts at the recipe's starting values, further ones at the values found."""
    plan = plan_searches(study(stage(passes=2)), FILES, {})
    found = recipe().with_alphas({("T1", "alpha"): {"M00": 0.25, "OUT03": 0.75}})

    starts = {
        search.name: [parameter.free.starting_value for parameter in search.starting_from(found).parameters]
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
def test_stages_that_affect_each_other(stages, moved_later, candidates):
    """A stage affected by a later one is scored at the end; only a stage that affects no other gives candidates."""
    plan = plan_searches(study(*stages), FILES, {})

    assert [plan.is_moved_later(listed) for listed in stages] == moved_later
    assert [plan.has_candidates(listed) for listed in stages] == candidates


def test_candidates_ignore_the_base_under_cosines():
    """If all metrics are cosines of differences, a common scale of the other sources gives no different candidate."""
    plan = plan_searches(study(stage(), stage("explained", metric="explained")), FILES, {})

    assert [plan.candidate_base(planned) for planned in plan.study.stages] == ["base", None]


def test_an_earlier_fit_fills_free_alphas_in_range():
    """Values of an earlier best.yaml are kept only if the range of the free alpha allows all of them."""
    earlier = recipe().with_alphas(
        {("T1", "alpha"): {"M00": 0.4, "OUT03": 0.2}, ("T2", "alpha"): {"M00": 0.9, "OUT03": 0.3}}
    )
    narrower = recipe(high=0.5)
    plan = plan_searches(study(stage(of=narrower), of=narrower), FILES, {}, earlier)

    kept = plan.kept(narrower.with_alphas({("T1", "alpha"): {"M00": 0.1}}))

    assert [kept.step("T1").alpha.at(block) for block in BLOCKS] == [0.1, 0.2]
    assert kept.step("T2") == narrower.step("T2")
    assert plan_searches(study(), FILES, {}).kept(recipe()) == recipe()
