"""Studies that search BASE by the output of the text encoder."""

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from optimizer.analysis import simplify_file
from optimizer.cli import main
from optimizer.errors import InputError, RecipeError, StudyError
from optimizer.families import load_layout, pipeline_folder
from optimizer.merging import merge
from optimizer.recipes import Alpha, Fitted, Model, Recipe, Step, load_recipe, save_recipe
from optimizer.search import fit
from optimizer.studies import load_study

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
    """A target made of bold and slanted, with alpha 0.3 on BASE and 0.6 on OUT05."""
    path = tmp_path_factory.mktemp("planted") / "target.safetensors"
    step = Step("T", "weight_sum", "bold", "slanted", None, Alpha({"BASE": 0.3, "OUT05": 0.6}))
    recipe = Recipe("r", load_layout("sd1"), {name: Model(str(file)) for name, file in MODELS.items()}, (step,), "T")
    merge(recipe, MODELS, path, dtype=torch.float32)
    return path


def write_study(folder, target, stage, alphas="BASE"):
    """Write a study of one step into a folder and return the folder."""
    models = "".join(f"  {name}: {{file: '{file}'}}\n" for name, file in MODELS.items())
    (folder / "recipe.yaml").write_text(RECIPE.format(models=models, alphas=alphas), encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY.format(target=target, stage=stage), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path, target):
    """A function that writes a study of one step and returns its folder."""
    return partial(write_study, tmp_path, target)


@pytest.mark.parametrize(
    "sampler", ["blockwise", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tpe", "random"))]
)
def test_base_is_searched_like_any_block(folder, sampler):
    """Every sampler finds the planted alpha of BASE with similarity 1, and the recipe records it."""
    made = folder(f"metric: encoder, sampler: {sampler}")

    result = fit(load_study(made))

    (search,) = result.searches
    assert len(search.completed) == 12
    step = load_recipe(made / "best.yaml").step("T")
    assert step.alpha.at("BASE") == pytest.approx(0.3, abs=1e-3)
    assert step.similarity["encoder"]["blocks"] == {"BASE": pytest.approx(1, abs=1e-6)}
    assert {trial.origin for trial in search.completed} >= {"exact explained", sampler}


def test_elsewhere_scores_base_beside_another_metric(folder):
    """As `elsewhere`, the encoder metric scores BASE in a stage whose metric cannot."""
    made = folder("metric: attention, elsewhere: encoder, blocks: 'BASE,OUT05'", "BASE,OUT05")

    fit(load_study(made))

    alpha = load_recipe(made / "best.yaml").step("T").alpha
    assert (alpha.at("BASE"), alpha.at("OUT05")) == pytest.approx((0.3, 0.6), abs=1e-3)


def test_own_prompts_are_bound_and_recorded(folder):
    """The user's prompts and `clip_skip` are part of a study's binding, and the recipe records them."""
    made = folder("metric: encoder, prompts: mine.txt, clip_skip: 2")
    (made / "mine.txt").write_text("seven\na bold three\n", encoding="utf-8")
    fit(load_study(made).with_trials(2))

    noted = load_recipe(made / "best.yaml").fitted.to_data()["searches"][0]
    digest = hashlib.sha256((made / "mine.txt").read_bytes()).hexdigest()
    assert (noted["prompts"], noted["clip_skip"]) == ({"file": "mine.txt", "sha256": digest}, 2)
    (made / "mine.txt").write_bytes(b"\xef\xbb\xbfseven\r\n\r\na bold three")  # the same, saved on Windows
    simplified = simplify_file(made / "best.yaml", made / "simple.yaml", tolerance=1e-6)
    assert simplified.totals["s"][0] == pytest.approx(noted["similarity"], abs=1e-7)
    assert load_recipe(made / "simple.yaml").fitted.to_data()["searches"][0]["prompts"] == noted["prompts"]
    (made / "mine.txt").write_text("seven\na slanted three\n", encoding="utf-8")
    with pytest.raises(StudyError, match=rf"scored with another prompts: .*{digest[:20]}.* then, .* now"):
        fit(load_study(made))
    (made / "study.yaml").write_text(
        (made / "study.yaml").read_text(encoding="utf-8").replace("prompts: mine.txt, clip_skip: 2", "clip_skip: 1"),
        encoding="utf-8",
    )
    with pytest.raises(StudyError) as caught:
        fit(load_study(made))
    assert len(caught.value.problems) == 2


def test_default_prompts_are_bound_too(folder, monkeypatch):
    """A study continues with the prompts of the layout only while they are unchanged."""
    made = folder("metric: encoder")
    fit(load_study(made).with_trials(1))
    fit(load_study(made).with_trials(2))

    changed = shutil.copytree(pipeline_folder("digits"), made / "pipelines" / "digits")
    (changed / "prompts.txt").write_text("seven\n", encoding="utf-8")
    monkeypatch.setattr("optimizer.checkpoints.configuration.pipeline_folder", lambda name: changed)

    with pytest.raises(StudyError, match="scored with another prompts: "):
        fit(load_study(made).with_trials(3))


def test_prompts_are_recorded_by_hash_alone(folder, tmp_path):
    """After a fit with thousands of prompts, neither recipes nor merged files contain any of them."""
    made = folder("metric: encoder, prompts: mine.txt")
    # One word per prompt is one token, which keeps the test fast.
    many = [f"secret{'y' * 400}{number}" for number in range(3000)]
    (made / "mine.txt").write_text("\n".join(many), encoding="utf-8")
    fit(load_study(made).with_trials(1))

    simplify_file(made / "best.yaml", made / "simple.yaml", tolerance=1e-3)

    for name in ("best.yaml", "simple.yaml"):
        (search,) = load_recipe(made / name).fitted.to_data()["searches"]
        assert search["prompts"] == {
            "file": "mine.txt",
            "sha256": hashlib.sha256("".join(f"{prompt}\n" for prompt in many).encode()).hexdigest(),
        }
        merge(load_recipe(made / name), MODELS, made / "merged.safetensors")
        with safe_open(made / "merged.safetensors", "pt") as merged:
            header = "".join(merged.metadata().values())
        assert search["prompts"]["sha256"] in header
        assert "secret" not in header
        assert b"secret" not in (made / name).read_bytes()


@pytest.fixture(scope="module")
def fitted(target, tmp_path_factory):
    """The folder of a fit with the user's prompts, which are in a folder of their own."""
    made = tmp_path_factory.mktemp("fitted")
    write_study(made, target, "metric: encoder, prompts: texts/mine.txt, clip_skip: 2")
    (made / "texts").mkdir()
    (made / "texts" / "mine.txt").write_text("seven\na bold three\n", encoding="utf-8")
    fit(load_study(made).with_trials(2))
    return made


@pytest.fixture
def best(fitted, tmp_path):
    """The best.yaml in a copy of that folder."""
    return shutil.copytree(fitted, tmp_path, dirs_exist_ok=True) / "best.yaml"


def test_prompts_are_found_from_another_folder(best):
    """A simplified recipe in another folder has a relative path to the prompts, and can be simplified again."""
    (best.parent / "elsewhere").mkdir()
    output = best.parent / "elsewhere" / "simple.yaml"

    simplify_file(best, output, tolerance=1e-3)
    again = simplify_file(output, output.with_name("again.yaml"), tolerance=1e-3)

    assert load_recipe(output).fitted.searches[0].prompts.file == "../texts/mine.txt"
    assert output.with_name("again.yaml").read_text("utf-8") == output.read_text("utf-8")
    assert again.totals["s"][0] == load_recipe(output).fitted.searches[0].before


def test_missing_or_changed_prompts_are_refused(best):
    """Missing or changed prompts are refused; `prompts` may name another file with the same prompts."""
    output, prompts = best.with_name("simple.yaml"), best.parent / "texts" / "mine.txt"
    noted = load_recipe(best).fitted.to_data()["searches"][0]
    prompts.write_text("seven\n", encoding="utf-8")
    with pytest.raises(
        RecipeError, match=r"best\.yaml: fitted\.searches\.s\.prompts: .*mine\.txt has changed: received sha256"
    ):
        simplify_file(best, output, tolerance=1e-3)
    prompts.unlink()
    with pytest.raises(RecipeError, match=r"prompts\.file: 'texts/mine\.txt' not found; .*`prompts`"):
        simplify_file(best, output, tolerance=1e-3)
    assert not output.exists()
    (best.parent / "kept.txt").write_text("seven\na bold three\n", encoding="utf-8")
    warnings = []

    found = simplify_file(best, output, tolerance=1e-3, prompts=best.parent / "kept.txt", warn=warnings.append)

    assert found.totals["s"][0] == pytest.approx(noted["similarity"], abs=1e-7)
    assert not warnings
    assert load_recipe(output).fitted.to_data()["searches"][0]["prompts"] == {**noted["prompts"], "file": "kept.txt"}


def test_recipes_that_contain_prompts_are_scored_by_them(best):
    """A recipe that contains the prompts themselves, as in earlier versions, is scored by them."""
    recipe = load_recipe(best)
    (search,) = recipe.fitted.to_data()["searches"]
    fitted = {**recipe.fitted.to_data(), "searches": [{**search, "prompts": ["seven", "a bold three"]}]}
    save_recipe(replace(recipe, fitted=Fitted.from_data(fitted)), best)
    shutil.rmtree(best.parent / "texts")

    found = simplify_file(best, best.with_name("simple.yaml"), tolerance=1e-3)

    assert found.totals["s"][0] == pytest.approx(search["similarity"], abs=1e-7)
    assert load_recipe(best.with_name("simple.yaml")).fitted.to_data()["searches"][0]["prompts"] == [
        "seven",
        "a bold three",
    ]


def test_prompts_without_the_encoder_metric_are_refused(folder, best):
    """Options of the encoder metric are neither recorded for another metric nor accepted when simplifying by it."""
    output = best.with_name("simple.yaml")
    with pytest.raises(InputError, match="prompts: only the metric `encoder` reads prompts"):
        simplify_file(best, output, tolerance=1e-3, metric="delta", prompts=best.parent / "texts" / "mine.txt")
    shutil.rmtree(best.parent / "texts")

    simplify_file(best, output, tolerance=1e-3, metric="delta")

    (search,) = load_recipe(output).fitted.to_data()["searches"]
    assert search["metric"] == "delta"
    assert not {"prompts", "clip_skip", "seeds"} & search.keys()
    recipe = load_recipe(best)
    stale = {**recipe.fitted.to_data()["searches"][0], "metric": "delta", "seeds": [1]}
    save_recipe(replace(recipe, fitted=Fitted.from_data({**recipe.fitted.to_data(), "searches": [stale]})), best)
    simplify_file(best, output, tolerance=1e-3)
    assert not {"prompts", "clip_skip", "seeds"} & load_recipe(output).fitted.to_data()["searches"][0].keys()


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ({"file": "mine.txt"}, "prompts: received {'file': 'mine.txt'}; must be a file and its sha256"),
        ({"file": 3, "sha256": "0"}, "prompts: received {'file': 3, 'sha256': '0'}; must be a file and its sha256"),
        (["seven", 8], "prompts: received ['seven', 8]; must be a file and its sha256"),
        ("mine.txt", "prompts: received 'mine.txt'; must be a file and its sha256"),
        ({"file": "/dev/zero", "sha256": "0"}, "prompts.file: '/dev/zero' not found"),
        ({"file": "a\0b", "sha256": "0"}, r"prompts.file: 'a\x00b' not found"),
    ],
)
def test_invalid_records_of_prompts_are_refused(best, capsys, noted, message):
    """An invalid record of prompts is refused with one line and exit code 2."""
    recipe = load_recipe(best)
    fitted = {**recipe.fitted.to_data(), "searches": [{**recipe.fitted.to_data()["searches"][0], "prompts": noted}]}
    save_recipe(replace(recipe, fitted=Fitted.from_data(fitted)), best)
    capsys.readouterr()

    with pytest.raises(SystemExit) as left:
        main(["simplify", str(best)])

    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    with pytest.raises(SystemExit) as left:
        main(["simplify", str(best), "--prompts", str(best.parent / "texts" / "mine.txt"), "--tolerance", "1e-3"])
    assert left.value.code == (0 if "not found" in message else 2)


def test_unused_prompts_are_not_recorded(folder):
    """If no block of the encoder metric is scored, its prompts are not recorded."""
    made = folder("metric: attention, elsewhere: encoder, prompts: mine.txt, clip_skip: 2, blocks: OUT05", "OUT05")
    (made / "mine.txt").write_text("seven\n", encoding="utf-8")
    fit(load_study(made).with_trials(1))

    (search,) = load_recipe(made / "best.yaml").fitted.to_data()["searches"]

    assert search["metric"] == "attention"
    assert not {"prompts", "clip_skip"} & search.keys()


def test_later_stages_are_checked_before_the_first_trial(folder, kin_target):
    """A missing layer and an encoder without a known tokenizer are refused before anything is written.

    The stage that needs them may be the last one.
    """
    made = folder("metric: delta, trials: 1}\n  - {name: late, metric: encoder, clip_skip: 3")
    before = sorted(made.iterdir())

    with pytest.raises(InputError) as caught:
        fit(load_study(made))
    assert caught.value.problems == (
        f"{made / 'study.yaml'}: stages.late.clip_skip: received 3; must be from 1, the last layer, to 2",
    )
    assert sorted(made.iterdir()) == before
    study = (made / "study.yaml").read_text(encoding="utf-8")
    target = next(line for line in study.splitlines() if line.startswith("target"))
    (made / "study.yaml").write_text(
        study.replace(target, f"target: {{file: '{kin_target}'}}").replace("clip_skip: 3", "clip_skip: 1"),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match=r"target\.safetensors: the text encoder has 64 tokens; sd1 has tokenizers"):
        fit(load_study(made), fresh=True)
    assert sorted(made.iterdir()) == before


@pytest.fixture
def kin_target(tmp_path_factory, write_sd1):
    """A target whose text encoder matches no known tokenizer."""
    path = tmp_path_factory.mktemp("kin") / "target.safetensors"
    write_sd1(path, seed=0)
    return path


@pytest.mark.parametrize(
    ("stage", "message"),
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
def test_invalid_encoder_stages_are_refused(folder, stage, message):
    """Options that the metric cannot use are refused when the study is read."""
    with pytest.raises(StudyError, match=message):
        load_study(folder(stage))


def test_compare_by_the_encoder_metric(target, tmp_path, capsys):
    """`compare --metric encoder` prints the score of BASE; invalid options are one line and exit code 2."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("seven\n", encoding="utf-8")
    arguments = ["compare", str(target), "--target", str(target), "--metric", "encoder", "--prompts", str(prompts)]

    def code(*given):
        with pytest.raises(SystemExit) as left:
            main(list(given))
        return left.value.code or 0

    assert code(*arguments, "--clip-skip", "2", "--json") == 0
    (compared,) = json.loads(capsys.readouterr().out)
    assert compared["blocks"] == {"BASE": pytest.approx(1, abs=1e-7)}
    assert (compared["prompts"], compared["clip_skip"]) == (str(prompts), 2)
    assert code(*arguments, "--clip-skip", "3") == 2
    assert capsys.readouterr().err.splitlines() == [
        "blockfit: --clip-skip: received 3; must be from 1, the last layer, to 2"
    ]
    assert code(*arguments[:-2], "--json") == 0
    (compared,) = json.loads(capsys.readouterr().out)
    assert (compared["prompts"], compared["clip_skip"]) == (None, 1)
    by_weights = [*arguments[:5], "weights", *arguments[6:]]
    assert code(*by_weights, "--clip-skip", "1") == 2
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"blockfit: {option}: only the metric `encoder` reads prompts" for option in ("--prompts", "--clip-skip")
    ]
    assert code(*by_weights[:-2], "--json") == 0
    assert not {"prompts", "clip_skip"} & json.loads(capsys.readouterr().out)[0].keys()
    prompts.write_text("\n", encoding="utf-8")
    assert code(*arguments) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"blockfit: --prompts: {prompts}: contains no prompt; must contain 1 to 10,000 prompts, one a line"
    ]
