"""Studies that search BASE by what the text encoder says."""

import hashlib
import json
import shutil
from dataclasses import replace
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


@pytest.mark.parametrize(
    "sampler", ["blockwise", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tpe", "random"))]
)
def test_base_is_searched_like_any_block(folder, sampler):
    """The planted alpha of BASE is found, its similarity 1, by whichever sampler, and the recipe notes it."""
    made = folder(f"metric: encoder, sampler: {sampler}")

    result = fit(load_study(made))

    (search,) = result.searches
    assert len(search.completed) == 12
    step = load_recipe(made / "best.yaml").step("T")
    assert step.alpha.at("BASE") == pytest.approx(0.3, abs=1e-3)
    assert step.similarity["encoder"]["blocks"] == {"BASE": pytest.approx(1, abs=1e-6)}
    assert {trial.origin for trial in search.completed} >= {"exact explained", sampler}


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


def test_prompts_that_ship_are_bound_too(folder, monkeypatch):
    """A study goes on with the prompts that came with the layout as long as these are the same."""
    made = folder("metric: encoder")
    fit(load_study(made).with_trials(1))
    fit(load_study(made).with_trials(2))

    changed = shutil.copytree(pipeline_folder("digits"), made / "pipelines" / "digits")
    (changed / "prompts.txt").write_text("seven\n", encoding="utf-8")
    monkeypatch.setattr("optimizer.checkpoints.configuration.pipeline_folder", lambda name: changed)

    with pytest.raises(StudyError, match="scored with another prompts: "):
        fit(load_study(made).with_trials(3))


def test_thousands_of_prompts(folder, tmp_path):
    """However many prompts were read, what a fit writes is read again, and neither it nor a merge tells any of them."""
    made = folder("metric: encoder, prompts: mine.txt")
    # A word each, which is one token, so that it takes no time.
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


@pytest.fixture
def best(folder):
    """The best.yaml of a fit with prompts of its own, which a recipe on its way to another folder leaves behind."""
    made = folder("metric: encoder, prompts: texts/mine.txt, clip_skip: 2")
    (made / "texts").mkdir()
    (made / "texts" / "mine.txt").write_text("seven\na bold three\n", encoding="utf-8")
    fit(load_study(made).with_trials(2))
    return made / "best.yaml"


def test_prompts_are_found_from_another_folder(best):
    """The simpler recipe names the file of prompts as it lies from there, and is simplified again."""
    (best.parent / "elsewhere").mkdir()
    output = best.parent / "elsewhere" / "simple.yaml"

    simplify_file(best, output, tolerance=1e-3)
    again = simplify_file(output, output.with_name("again.yaml"), tolerance=1e-3)

    assert load_recipe(output).fitted.searches[0].prompts.file == "../texts/mine.txt"
    assert output.with_name("again.yaml").read_text("utf-8") == output.read_text("utf-8")
    assert again.totals["s"][0] == load_recipe(output).fitted.searches[0].before


def test_prompts_that_are_gone_or_others(best):
    """Prompts that were noted and are not there any more, or were changed, are refused; others may be named."""
    output, prompts = best.with_name("simple.yaml"), best.parent / "texts" / "mine.txt"
    noted = load_recipe(best).fitted.to_data()["searches"][0]
    prompts.write_text("seven\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"best\.yaml: fitted\.searches\.s\.prompts: .*mine\.txt holds other prompts"):
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


def test_recipes_that_hold_the_prompts(best):
    """A recipe that holds the prompts themselves, as they once did, is scored by them."""
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


def test_prompts_that_nothing_reads(folder, best):
    """What only the encoder metric reads is not noted of a search by another, and no option of simplifying one."""
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
    ("noted", "said"),
    [
        ({"file": "mine.txt"}, "prompts: received {'file': 'mine.txt'}; must be a file and its sha256"),
        ({"file": 3, "sha256": "0"}, "prompts: received {'file': 3, 'sha256': '0'}; must be a file and its sha256"),
        (["seven", 8], "prompts: received ['seven', 8]; must be a file and its sha256"),
        ("mine.txt", "prompts: received 'mine.txt'; must be a file and its sha256"),
        ({"file": "/dev/zero", "sha256": "0"}, "prompts.file: '/dev/zero' not found"),
        ({"file": "a\0b", "sha256": "0"}, r"prompts.file: 'a\x00b' not found"),
    ],
)
def test_notes_by_strangers(best, capsys, noted, said):
    """What is noted of prompts in another way than a fit does is refused in a line, with exit code 2."""
    recipe = load_recipe(best)
    fitted = {**recipe.fitted.to_data(), "searches": [{**recipe.fitted.to_data()["searches"][0], "prompts": noted}]}
    save_recipe(replace(recipe, fitted=Fitted.from_data(fitted)), best)
    capsys.readouterr()

    with pytest.raises(SystemExit) as left:
        main(["simplify", str(best)])

    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    with pytest.raises(SystemExit) as left:
        main(["simplify", str(best), "--prompts", str(best.parent / "texts" / "mine.txt"), "--tolerance", "1e-3"])
    assert left.value.code == (0 if "not found" in said else 2)


def test_stage_that_reads_nothing_notes_nothing(folder):
    """Where no block that the encoder metric sees is scored, its prompts are not noted."""
    made = folder("metric: attention, elsewhere: encoder, prompts: mine.txt, clip_skip: 2, blocks: OUT05", "OUT05")
    (made / "mine.txt").write_text("seven\n", encoding="utf-8")
    fit(load_study(made).with_trials(1))

    (search,) = load_recipe(made / "best.yaml").fitted.to_data()["searches"]

    assert search["metric"] == "attention"
    assert not {"prompts", "clip_skip"} & search.keys()


def test_later_stages_are_checked_before_anything_is_stored(folder, kin_target):
    """Layers that a target's encoder has not, and encoders without a known tokenizer, are refused with nothing written.

    However late the stage is that would read them.
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
    """A target whose text encoder goes with no tokenizer that is known."""
    path = tmp_path_factory.mktemp("kin") / "target.safetensors"
    write_sd1(path, seed=0)
    return path


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
    assert (told["prompts"], told["clip_skip"]) == (str(prompts), 2)
    assert code(*arguments, "--clip-skip", "3") == 2
    assert capsys.readouterr().err.splitlines() == [
        "blockfit: --clip-skip: received 3; must be from 1, the last layer, to 2"
    ]
    assert code(*arguments[:-2], "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["prompts"], told["clip_skip"]) == (None, 1)
    others = [*arguments[:5], "weights", *arguments[6:]]
    assert code(*others, "--clip-skip", "1") == 2
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"blockfit: {option}: only the metric `encoder` reads prompts" for option in ("--prompts", "--clip-skip")
    ]
    assert code(*others[:-2], "--json") == 0
    assert not {"prompts", "clip_skip"} & json.loads(capsys.readouterr().out)[0].keys()
    prompts.write_text("\n", encoding="utf-8")
    assert code(*arguments) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"blockfit: --prompts: {prompts}: contains no prompt; must contain 1 to 10,000 prompts, one a line"
    ]
