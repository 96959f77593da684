"""Studies that search BASE by what the text encoder says."""

import json
from pathlib import Path

import pytest
import torch

from optimizer.checkpoints import load_layout
from optimizer.cli import main
from optimizer.errors import StudyError
from optimizer.recipes import Alpha, Model, Recipe, Step, load_recipe, merge
from optimizer.search import fit, load_study, simplify_file

DEMO = Path(__file__).parents[2] / "studies" / "demo"
MODELS = {name: DEMO / "models" / f"{name}.safetensors" for name in ("base", "bold", "slanted")}
RECIPE = """\
models:
{models}steps:
  - {{name: T, mode: weight_sum, a: bold, b: slanted, alpha: {{'{alphas}': {{search: [0, 1]}}}}}}
"""
STUDY = """\
recipe: recipe.yaml
target: {{file: '{target}'}}
base: base
stages:
  - {{name: s, {stage}, trials: 12}}
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target that is 0.7 bold and 0.3 slanted, its text encoder and one block."""
    path = tmp_path_factory.mktemp("planted") / "target.safetensors"
    step = Step("T", "weight_sum", "bold", "slanted", None, Alpha({"BASE": 0.3, "OUT05": 0.6}))
    recipe = Recipe("r", load_layout("sd1"), {name: Model(str(file)) for name, file in MODELS.items()}, (step,), "T")
    merge(recipe, MODELS, path, dtype=torch.float32)
    return path


@pytest.fixture
def folder(tmp_path, target):
    """Writes a study of one step, and gives its folder."""

    def write(stage, alphas="BASE"):
        models = "".join(f"  {name}: {{file: '{file}'}}\n" for name, file in MODELS.items())
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(models=models, alphas=alphas), encoding="utf-8")
        (tmp_path / "study.yaml").write_text(STUDY.format(target=target, stage=stage), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("sampler", ["blockwise", "tpe", "random"])
def test_base_is_searched_like_any_block(folder, sampler):
    """The planted alpha of BASE is found, its similarity 1, by whichever sampler, and the recipe notes it."""
    made = folder(f"metric: encoder, sampler: {sampler}")

    result = fit(load_study(made))

    (search,) = result.searches
    assert len(search.completed) == 12
    step = load_recipe(made / "best.yaml").step("T")
    assert step.alpha.at("BASE") == pytest.approx(0.3, abs=1e-3)
    assert step.similarity["encoder"]["blocks"] == {"BASE": pytest.approx(1, abs=1e-6)}
    assert {trial.user_attrs["origin"] for trial in search.completed} >= {"exact delta", sampler}


def test_beside_another_metric(folder):
    """As `elsewhere` it scores BASE in a stage whose metric cannot see it."""
    made = folder("metric: attention, elsewhere: encoder, blocks: 'BASE,OUT05'", "BASE,OUT05")

    fit(load_study(made))

    alpha = load_recipe(made / "best.yaml").step("T").alpha
    assert (alpha.at("BASE"), alpha.at("OUT05")) == pytest.approx((0.3, 0.6), abs=1e-3)


def test_own_prompts(folder):
    """Prompts of the user's own and the layer that is read are part of what a study is bound to, and are noted."""
    made = folder("metric: encoder, prompts: mine.txt, clip_skip: 2")
    (made / "mine.txt").write_text("seven\na bold three\n", encoding="utf-8")
    fit(load_study(made).with_trials(2))

    noted = load_recipe(made / "best.yaml").fitted["searches"][0]
    assert (noted["prompts"], noted["clip_skip"]) == (["seven", "a bold three"], 2)
    simplified = simplify_file(made / "best.yaml", made / "simple.yaml", tolerance=1e-6)
    assert simplified.before["s"] == pytest.approx(noted["similarity"], abs=1e-7)
    assert load_recipe(made / "simple.yaml").fitted["searches"][0]["prompts"] == noted["prompts"]
    (made / "mine.txt").write_text("seven\na slanted three\n", encoding="utf-8")
    with pytest.raises(StudyError, match=r"scored with another prompts: .*bold three.* then, .*slanted three.* now"):
        fit(load_study(made))
    (made / "study.yaml").write_text(
        (made / "study.yaml").read_text(encoding="utf-8").replace("prompts: mine.txt, clip_skip: 2", "clip_skip: 1"),
        encoding="utf-8",
    )
    with pytest.raises(StudyError) as caught:
        fit(load_study(made))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            "metric: encoder, prompts: none.txt",
            r"stages\.s\.prompts: .*none\.txt: no such file",
        ),
        ("metric: encoder, clip_skip: 0", r"stages\.s\.clip_skip: received 0; must be 1, the last layer, or 2 to 12"),
        ("metric: delta, clip_skip: 2", r"stages\.s\.clip_skip: only the metric `encoder` reads prompts; leave it out"),
        (
            "metric: encoder, blocks: OUT05",
            r"stages\.s\.blocks: OUT05 cannot be measured by 'encoder', which sees",
        ),
    ],
)
def test_stages_that_cannot_be(folder, stage, said):
    """What the metric cannot do is refused when the study is read."""
    with pytest.raises(StudyError, match=said):
        load_study(folder(stage))


def test_compare_command(target, tmp_path, capsys):
    """`compare --metric encoder` gives the score of BASE; what is no file of prompts is a line and exit code 2."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("seven\n", encoding="utf-8")
    arguments = ["compare", str(target), "--target", str(target), "--metric", "encoder", "--prompts", str(prompts)]

    def code(*given):
        with pytest.raises(SystemExit) as left:
            main(list(given))
        return left.value.code or 0

    assert code(*arguments, "--clip-skip", "2", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["blocks"] == {"BASE": pytest.approx(1, abs=1e-7)}
    prompts.write_text("\n", encoding="utf-8")
    assert code(*arguments) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"blockfit: {prompts}: holds no prompt; there must be at least one, a line each, at most 10,000"
    ]
