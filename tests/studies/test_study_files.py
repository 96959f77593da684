"""Study files: defaults, the searches and scores of each stage, and every mistake by name."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_by_step import BLOCKS

from optimizer.errors import InputError, StudyError
from optimizer.families import load_layout
from optimizer.recipes import described_alphas
from optimizer.similarity import AttentionOptions
from optimizer.studies import load_study
from optimizer.studies.study import study_file

STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: OUT03-OUT05}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], tie: true}}
"""
ATTENTION = (
    *(f"IN{n:02}" for n in (1, 2, 4, 5, 7, 8)),
    "M00",
    *(f"OUT{n:02}" for n in range(3, 12)),
)


@pytest.fixture
def target(pool):
    """A file that can be a target."""
    path = pool.folder / "some_target.safetensors"
    if not path.exists():
        path.write_bytes(pool.paths["z"].read_bytes())
    return path


def test_defaults_take_everything(write_study, target):
    """A stage takes all steps with free alphas and scores all moved blocks that its metric sees."""
    study = load_study(write_study(STEPS, "  - {name: s}\n", target))
    (stage,) = study.stages

    assert (study.base, study.seed, study.target) == ("base", 0, target)
    assert set(study.sources) == {"base", "x", "y"}
    assert stage.steps == ("T1", "T2")
    assert stage.measured == (("explained", BLOCKS),)
    assert (stage.strategy, stage.sampler, stage.options.of(AttentionOptions).seeds) == ("joint", "blockwise", [114514])
    assert [p.name for p in stage.parameters] == ["T1.OUT03", "T1.OUT04", "T1.OUT05", "T2.alpha"]
    assert stage.parameters[3].blocks == BLOCKS


def test_parameters_have_distinct_names(write_study, target):
    """Several tied alphas of one step have their blocks in their names."""
    steps = """\
  - {name: T, mode: weight_sum, a: base, b: y, alpha: {M00: {search: [0, 1], tie: true}, OUT03: {search: [0, 1]},
     OUT04-OUT05: {search: [0, 1], tie: true}}}
"""
    study = load_study(write_study(steps, "  - {name: s}\n", target))
    assert [p.name for p in study.stages[0].parameters] == ["T.alpha.M00", "T.OUT03", "T.alpha.OUT04-OUT05"]


def test_elsewhere_scores_the_other_blocks(write_study, target):
    """`elsewhere` scores the moved blocks that the metric cannot see, after those that it sees."""
    study = load_study(write_study(STEPS, "  - {name: s, metric: attention, elsewhere: delta}\n", target))
    (stage,) = study.stages
    assert stage.measured == (("attention", ATTENTION), ("delta", tuple(b for b in BLOCKS if b not in ATTENTION)))
    assert stage.metric == "attention+delta"


def test_a_stepwise_stage_has_a_search_per_step(write_study, target):
    """A stepwise stage has one search per step, scored on it; a joint stage has one, scored on the last."""
    text = "  - {name: s, strategy: stepwise, blocks: OUT03-OUT05}\n  - {name: j, steps: [T2], blocks: OUT06}\n"
    study = load_study(write_study(STEPS, text, target))
    assert [
        (name, step, [p.name for p in parameters])
        for stage in study.stages
        for name, step, parameters in stage.searches()
    ] == [
        ("s/T1", "T1", ["T1.OUT03", "T1.OUT04", "T1.OUT05"]),
        ("s/T2", "T2", ["T2.alpha"]),
        ("j", "T2", ["T2.alpha"]),
    ]


def test_tied_alpha_moves_more_than_is_scored(write_study, target):
    """A tied alpha may move blocks that no metric scores."""
    stages = "  - {name: s, metric: attention}\n"
    assert load_study(write_study(STEPS, stages, target)).stages[0].blocks == ATTENTION


def test_a_study_is_named_by_folder_or_file(tmp_path):
    """A study is named by its folder or its file."""
    assert study_file(tmp_path) == tmp_path / "study.yaml"
    assert study_file(tmp_path / "other.yaml") == tmp_path / "other.yaml"


def test_with_trials_replaces_the_number_of_every_stage(write_study, target):
    """A new number of trials replaces that of every stage; less than one is refused."""
    study = load_study(write_study(STEPS, "  - {name: s}\n", target))
    assert [stage.trials for stage in study.with_trials(7).stages] == [7]
    with pytest.raises(StudyError, match=r"^trials: received 0; must be at least 1"):
        study.with_trials(0)


UNTIED = "  - {name: T, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: OUT03-OUT05}}\n"
TIED = UNTIED.replace("OUT05}", "OUT05, tie: true}")


@pytest.mark.parametrize(
    ("steps", "fields", "trials"),
    [
        (UNTIED, "", 1),
        (UNTIED, ", metric: explained, sampler: tpe", 1),
        # Its search begins with the optimum of `explained`, too.
        (UNTIED, ", metric: delta", 2),
        (UNTIED, ", metric: weights, strategy: stepwise", 2),
        # The second pass begins with the alphas of the first.
        (UNTIED, ", metric: explained, strategy: stepwise, passes: 2", 2),
        (TIED, ", blocks: OUT04", 1),
        (TIED, "", 60),
        (STEPS, "", 60),
        (UNTIED, ", metric: attention", 60),
        (UNTIED, ", metric: elements", 60),
        (UNTIED.replace("OUT03", "OUT02"), ", metric: attention, elsewhere: explained", 60),
        (UNTIED, ", trials: 9", 9),
        (UNTIED, ", metric: attention, trials: 1", 1),
    ],
)
def test_trials_follow_from_what_is_open(write_study, target, steps, fields, trials):
    """Without a number, no trial follows the exact optimum of a stage that has one; a given number is obeyed."""
    study = load_study(write_study(steps, f"  - {{name: s{fields}}}\n", target))

    assert study.stages[0].trials == trials
    assert study.with_trials(7).stages[0].trials == 7


FREE_BASE = STEPS.replace("blocks: OUT03-OUT05", "blocks: OUT00-OUT03")
APART = """\
  - {name: T1, mode: weight_sum, a: base, b: x, alpha: {search: [0, 1]}}
  - {name: T2, mode: weight_sum, a: base, b: y, alpha: {search: [0, 1]}}
"""


@pytest.mark.parametrize(
    ("steps", "stages", "fields", "parts"),
    [
        (STEPS, "  - {name: s, steps: [T9]}\n", {}, ["stages.s.steps", "received 'T9'", "T1, T2"]),
        (STEPS, "  - {name: s, steps: [T9, T8, T9]}\n", {}, ["stages.s.steps", "received 'T9', 'T8'; must be among"]),
        (
            STEPS.replace("{search: [0, 1], tie: true}", "0.5"),
            "  - {name: s, steps: [T2]}\n",
            {},
            ["stages.s.steps", "'T2' has no free alpha"],
        ),
        (STEPS, "  - {name: s, metric: cosine}\n", {}, ["stages.s.metric", "received 'cosine'", "explained, delta"]),
        (
            STEPS,
            "  - {name: s, metric: attention, elsewhere: far}\n",
            {},
            ["stages.s.elsewhere", "received 'far'", "delta"],
        ),
        (
            STEPS,
            "  - {name: s, sampler: best}\n",
            {},
            ["stages.s.sampler", "received 'best'", "blockwise, cmaes, gp, random, tpe"],
        ),
        (STEPS, "  - {name: s, strategy: all}\n", {}, ["stages.s.strategy", "received 'all'", "stepwise, joint"]),
        (STEPS, "  - {name: s, trials: 0}\n", {}, ["stages.s.trials", "received 0", "at least 1"]),
        (STEPS, "  - {name: s, trials: many}\n", {}, ["trials", "received 'many'"]),
        (STEPS, "  - {name: s, trials: 2.5}\n", {}, ["trials", "received 2.5"]),
        (STEPS, "  - {name: s, seeds: []}\n", {}, ["stages.s.seeds", "received []"]),
        (STEPS, "  - {name: s, seeds: [-1]}\n", {}, ["stages.s.seeds", "received [-1]"]),
        (STEPS, "  - {name: s, blocks: OUT99}\n", {}, ["stages.s.blocks", "unknown block 'OUT99'"]),
        (
            STEPS,
            "  - {name: s, metric: attention, blocks: IN09}\n",
            {},
            ["stages.s.blocks", "IN09 cannot be measured by 'attention'", "IN01-IN02", "elsewhere"],
        ),
        (STEPS, "  - {name: s, metrics: delta}\n", {}, ["stages.s.metrics", "unknown field", "metric"]),
        (STEPS, "  - {metric: delta}\n", {}, ["name", "missing"]),
        (STEPS, "  []\n", {}, ["stages: empty"]),
        (STEPS, "  - {name: s}\n  - {name: s}\n", {}, ["stages.s: defined twice"]),
        (STEPS, "  - {name: s}\n", {"base": "basis"}, ["base", "received 'basis'", "base, x, y, z"]),
        (STEPS, "  - {name: s}\n", {"seeds": "1"}, ["seeds", "unknown field", "seed"]),
        (STEPS, "  - {name: s}\n", {"seed": "one"}, ["seed", "received 'one'"]),
        (STEPS, "  - {name: s, steps: []}\n", {}, ["stages.s.steps"]),
        (APART, "  - {name: s}\n", {}, ["stages.s.steps", "'T1' does not lead to 'T2'", "joint"]),
    ],
)
def test_mistakes_are_refused(write_study, target, steps, stages, fields, parts):
    """A mistake is refused in one line with the file, the field, the value received and the values allowed."""
    folder = write_study(steps, stages, target, **fields)

    with pytest.raises(StudyError) as caught:
        load_study(folder)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{folder / 'study.yaml'}:")
    assert "\n" not in problem
    for part in parts:
        assert part in problem


def test_a_block_that_no_metric_sees_is_refused(write_study, target):
    """Per-block alphas on blocks that no metric sees are refused in one line; with `elsewhere` they are accepted."""
    folder = write_study(FREE_BASE, "  - {name: s, metric: attention}\n", target)
    with pytest.raises(StudyError) as caught:
        load_study(folder)
    (problem,) = caught.value.problems
    assert "no metric sees OUT00-OUT02, where T1.OUT00-OUT02 would be searched: 'attention' sees IN01-IN02," in problem
    folder = write_study(FREE_BASE, "  - {name: s, metric: attention, blocks: OUT00-OUT05}\n", target)
    with pytest.raises(StudyError) as caught:
        load_study(folder)
    assert ["OUT00-OUT02" in problem for problem in caught.value.problems] == [True, True]

    folder = write_study(FREE_BASE, "  - {name: s, metric: attention, elsewhere: weights}\n", target)
    assert {"OUT00", "OUT01", "OUT02"} <= set(load_study(folder).stages[0].measured[1][1])


def test_alphas_are_described_by_block_lists():
    """Alphas that differ only in the block are joined with a block list; others keep their names."""
    names = ["T1.OUT03", "T1.OUT04", "T2.alpha", "T1.beta.IN00", "T1.OUT08", "a.b.IN01", "T3.alpha.OUT03-OUT04"]

    assert described_alphas(names, load_layout("sd1")) == (
        "T1.OUT03-OUT04,OUT08",
        "T2.alpha",
        "T1.beta.IN00",
        "a.b.IN01",
        "T3.alpha.OUT03-OUT04",
    )


def test_an_alpha_that_no_stage_scores_is_named(write_study, target):
    """A per-block alpha that no stage scores is named."""
    folder = write_study(STEPS, "  - {name: s, blocks: OUT03-OUT04}\n", target)
    with pytest.raises(StudyError, match=r"T1\.OUT05: no stage scores OUT05"):
        load_study(folder)
    with pytest.raises(StudyError) as caught:
        load_study(write_study(STEPS, "  - {name: s, blocks: OUT03}\n", target))
    (problem,) = caught.value.problems
    assert problem.split("study.yaml: ")[1].startswith("T1.OUT04-OUT05: no stage scores OUT04-OUT05; add")
    both = "  - {name: s, blocks: OUT03-OUT04}\n  - {name: t, blocks: OUT05}\n"
    assert len(load_study(write_study(STEPS, both, target)).stages) == 2


def test_a_recipe_without_free_alphas_is_refused(write_study, target):
    """A recipe without free alphas is refused, with an example of one."""
    steps = "  - {name: T, mode: weight_sum, a: base, b: x, alpha: 0.5}\n"
    with pytest.raises(StudyError, match=r"no free alpha; write `alpha: \{search"):
        load_study(write_study(steps, "  - {name: s}\n", target))


def test_a_target_among_the_sources_is_refused(write_study, pool, target):
    """The target may not be a source of the recipe under any path; an unused model is no source."""
    here = pool.folder / ".." / pool.folder.name / "y.safetensors"
    with pytest.raises(StudyError, match="is the recipe's source 'y' too"):
        load_study(write_study(STEPS, "  - {name: s}\n", here))
    assert "z" not in load_study(write_study(STEPS, "  - {name: s}\n", pool.paths["z"])).sources


def test_missing_files_are_named(write_study, target, tmp_path):
    """A missing target, source or recipe is named."""
    with pytest.raises(StudyError, match=r"target\.file: '.*gone' not found; looked in"):
        load_study(write_study(STEPS, "  - {name: s}\n", "gone"))
    folder = write_study(STEPS, "  - {name: s}\n", target)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe.replace("x.safetensors", "xx.safetensors"), encoding="utf-8")
    with pytest.raises(InputError, match=r"models\.x\.file: '.*xx.safetensors' not found"):
        load_study(folder)
    (folder / "recipe.yaml").unlink()
    with pytest.raises(InputError, match=r"recipe\.yaml: no such file"):
        load_study(folder)
    with pytest.raises(StudyError, match="no such file"):
        load_study(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("{name: a/b}", "stages.a/b: the name contains a '/'"),
        ("{name: a, seeds: [1, 1]}", "seeds: received .1, 1.; must be one or more different"),
        ("{name: a, blocks: OUT09}", "stages.a.blocks: no free alpha of T1 moves OUT09"),
    ],
)
def test_invalid_stages_are_refused(write_study, target, stage, expected):
    """Invalid stages are refused by name before any work."""
    steps = "  - {name: T1, mode: weight_sum, a: x, b: y, alpha: {search: [0, 1], blocks: OUT03}}\n"
    with pytest.raises(StudyError, match=expected):
        load_study(write_study(steps, f"  - {stage}\n", target))


VALUES = (
    *(
        "x",
        "S",
        "delta",
        "OUT03-OUT11",
        "joint",
        "",
        "1e999",
        "~",
        "true",
        ".nan",
        "-1",
        "0",
        "5",
        "9" * 20,
        "[]",
        "[x]",
    ),
    *("[1, 1]", "{}", "{file: t}", "[[x]]", "&a [*a]", "!!set {a}", "!x y", "2022-01-01", '"\\e"'),
)
FIELDS = (
    *("recipe", "target", "base", "seed", "stages", "steps", "blocks", "metric", "elsewhere", "strategy", "passes"),
    *("trials", "tolerance", "sampler", "seeds", "tf32", "name", "nonsense"),
)
GIVEN = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(VALUES), max_size=4)
RECIPE = "models: {x: {file: x}}\nsteps: [{name: S, mode: weight_sum, a: x, b: x, alpha: {search: [0, 1]}}]\n"


@settings(max_examples=150, deadline=None)
@given(outer=GIVEN, inner=GIVEN)
def test_any_study_is_read_or_refused(tmp_path_factory, outer, inner):
    """A study with any fields is read or refused, with one printable line per problem."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "recipe.yaml").write_text(RECIPE)
    stage = ", ".join(f"{field}: {value}" for field, value in ({"name": "s"} | inner).items())
    fields = {"recipe": "recipe.yaml", "target": "{file: t}", "stages": f"[{{{stage}}}]"} | outer
    path = folder / "any_study.yaml"
    path.write_text("\n".join(f"{field}: {value}" for field, value in fields.items()))
    try:
        study = load_study(path, with_files=False)
    except InputError as error:
        assert all(line.isprintable() for line in error.problems)  # noqa: PT017
        return
    assert study.stages


def test_folders_without_a_study_are_refused(pool, tmp_path):
    """A folder without study.yaml is refused with its contents and the way to make a study."""
    made = "`first_study(TARGET, SOURCE, folder=FOLDER)` makes a study, which is a folder of its own"
    two, one, other = (tmp_path / name for name in ("two", "one", "other"))
    for folder in (two, one, other):
        folder.mkdir()
    for path in (two / "x.safetensors", two / "y.ckpt", one / "x.safetensors"):
        shutil.copy(pool.paths["x"], path)
    (other / "study.yml").write_text("", encoding="utf-8")

    for folder, contents in (
        (two, "it holds 2 checkpoints and lacks study.yaml (no such file)"),
        (one, "it holds a checkpoint and lacks study.yaml (no such file)"),
        (other, "it lacks study.yaml (no such file, but 'study.yml' exists)"),
    ):
        with pytest.raises(StudyError) as caught:
            load_study(folder)
        assert caught.value.problems == (f"{folder}: is not a study: {contents}; {made}",)
