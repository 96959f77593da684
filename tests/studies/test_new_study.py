"""Studies made in Python: the same as from YAML, kept as YAML, resumed, and refused with the argument's name."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from optimizer.errors import InputError, StudyError
from optimizer.merging import merge
from optimizer.recipes import Recipe, load_recipe, new_recipe
from optimizer.search import FitResult, fit, study_status
from optimizer.similarity import AttentionOptions, compare
from optimizer.studies import Study, load_study, new_study
from optimizer.studies.new import StageFields
from optimizer.studies.stage import StageEntry

FREE = {"search": [0, 1], "blocks": "M00,OUT03"}
STEPS = [
    {"name": "A", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": FREE},
    {"name": "B", "mode": "weight_sum", "a": "A", "b": "y", "alpha": {"OUT03": {"search": [0, 1]}}},
]


@pytest.fixture
def here(pool, tmp_path, monkeypatch):
    """The current folder, with models/base, models/x, models/y and target."""
    (tmp_path / "models").mkdir()
    for name in ("base", "x", "y"):
        shutil.copyfile(pool.paths[name], tmp_path / "models" / f"{name}.safetensors")
    planted, _ = pool.plant("made", pool.two_steps({"M00": 0.3, "OUT03": 0.6}, {"OUT03": 0.2}))
    shutil.copyfile(planted, tmp_path / "target.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe() -> Recipe:
    """Two steps with three free alphas, over files relative to the current folder."""
    return new_recipe({name: f"models/{name}.safetensors" for name in ("base", "x", "y")}, STEPS)


def resolved(study: Study) -> Study:
    """Return the study with absolute paths."""
    sources = {name: path.resolve() for name, path in study.sources.items()}
    return replace(study, sources=sources, target=study.target.resolve())


def test_its_folder_holds_the_same_study(here: Path, recipe: Recipe) -> None:
    """The study made equals the study in its YAML files, from any current folder."""
    study = new_study(
        recipe, "target.safetensors", "deep/er/mine", metric="attention", elsewhere="delta", trials=7, seed=3,
        blocks=["M00", "OUT03"], seeds=(1, 2), name="one",
    )  # fmt: skip
    loaded = load_study("deep/er/mine")

    assert resolved(loaded) == resolved(study)
    assert study.recipe.models["x"].file == "../../../models/x.safetensors"
    assert study.target_file == "../../../target.safetensors"
    assert (study.stages[0].name, study.stages[0].trials, study.stages[0].options.of(AttentionOptions).seeds) == (
        "attention",
        7,
        [1, 2],
    )
    assert not any(here.as_posix() in path.read_text("utf-8") for path in (here / "deep/er/mine").iterdir())


def test_files_that_folders_hold_keep_their_names(here: Path) -> None:
    """Names of files found in `folders` stay as given, so that a recipe can be passed on."""
    recipe = new_recipe({"base": "base", "x": "x.safetensors", "y": "y"}, STEPS)
    study = new_study(recipe, here / "target.safetensors", "mine", folders=["models"])

    assert [model.file for model in study.recipe.models.values()] == ["base", "x.safetensors", "y"]
    assert resolved(load_study("mine", ["models"])) == resolved(study)


def test_ambiguous_files_are_named_relative_to_the_study(here: Path) -> None:
    """If `folders` hold several files of a name, the file is named relative to the study's folder."""
    for name in ("one", "two"):
        shutil.copytree(here / "models", here / "pool" / name)
    recipe = new_recipe({name: f"models/{name}.safetensors" for name in ("base", "x", "y")}, STEPS)
    shutil.copyfile(here / "models" / "x.safetensors", here / "x.safetensors")
    recipe = new_recipe({**recipe.models, "x": "x.safetensors"}, STEPS)
    study = new_study(recipe, "target.safetensors", "mine", folders=["pool"])

    assert study.recipe.models["x"].file == "../x.safetensors"
    assert resolved(load_study("mine")) == resolved(study)


def test_hashes_stay_hashes(here: Path, recipe: Recipe) -> None:
    """A hash stays a hash if it is enough to find the file."""
    digits = hashlib.sha256((here / "models" / "x.safetensors").read_bytes()).hexdigest()[:10]
    study = new_study(
        new_recipe({**recipe.models, "x": digits}, STEPS), "target.safetensors", "mine", folders=["models"]
    )

    assert study.recipe.models["x"].file == digits
    assert study.sources["x"] == Path("models/x.safetensors")


def test_five_lines_fit_and_are_resumed(here: Path, recipe: Recipe) -> None:
    """A study made twice continues where the first fit stopped, and finds the planted alphas."""
    first = fit(new_study(recipe, "target.safetensors", "mine", trials=2))
    result = fit(new_study(recipe, "target.safetensors", "mine", trials=4))

    before, after = (found.searches[0].trials for found in (first, result))
    assert len(before) == 2 < len(after) == 4
    assert after[:2] == before
    assert result.recipe.step("A").alpha.at("M00") == pytest.approx(0.3, abs=1e-4)
    assert result.recipe.step("B").alpha.at("OUT03") == pytest.approx(0.2, abs=1e-4)
    assert result.similarity == pytest.approx(1, abs=1e-6)
    assert result.similarities == {"explained": result.similarity}
    assert load_recipe("mine/best.yaml").step("A") == result.recipe.step("A")
    assert study_status(load_study("mine", with_files=False)).searches[0].completed == 4


def test_metrics_share_a_folder(here: Path, recipe: Recipe) -> None:
    """Fits by different metrics have separate trials, since a single stage is named after its metric."""
    fit(new_study(recipe, "target.safetensors", "mine", metric="delta", trials=1))
    result = fit(new_study(recipe, "target.safetensors", "mine", metric="weights", trials=1))
    fit(new_study(recipe, "target.safetensors", "mine", metric="delta", trials=1))

    assert list(result.similarities) == ["weights"]


def test_stages_have_their_own_fields(here: Path, recipe: Recipe) -> None:
    """Each of `stages` has its own fields; the similarity is that of the last."""
    study = new_study(
        recipe,
        "target.safetensors",
        "mine",
        stages=[
            {"name": "middle", "steps": ["A"], "blocks": "M00", "trials": 1},
            {"name": "output", "blocks": "OUT03", "metric": "weights", "trials": 1},
        ],
    )
    result = fit(study)

    assert [stage.name for stage in load_study("mine").stages] == ["middle", "output"]
    assert list(result.similarities) == ["middle", "output"]
    assert result.similarity == result.similarities["output"]


def test_a_study_can_be_extended(here: Path, recipe: Recipe) -> None:
    """The sources and steps of a study can be used in a larger one elsewhere, without the notes of the fit."""
    study = new_study(recipe, "target.safetensors", "mine", trials=1)
    result = fit(study)
    further = {"name": "C", "mode": "weight_sum", "a": "B", "b": "x", "alpha": {"M00": {"search": [0, 1]}}}
    larger = new_recipe(study.sources, [*result.recipe.steps, further])
    extended = new_study(larger, "target.safetensors", "far/away")

    assert resolved(extended).sources == resolved(study).sources
    assert all(step.similarity is None for step in extended.recipe.steps)
    assert extended.stages[0].steps == ("C",)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"metric": "cosine"}, "metric: received 'cosine'; must be one of explained, delta"),
        ({"trials": "many"}, "trials: received 'many'"),
        ({"trials": 0}, "trials: received 0; must be at least 1"),
        ({"trails": 3}, "trails: unknown field; must be one of name, steps, blocks, metric"),
        ({"blocks": "OUT33"}, "blocks: unknown block 'OUT33'"),
        ({"steps": ["Z"]}, "steps: received 'Z'; must be among the recipe's steps: A, B"),
        ({"base": "nobody"}, "base: received 'nobody'; must be one of the recipe's models: base, x, y"),
        ({"seed": -1}, "seed: received -1"),
        ({"name": "a b"}, "name: received 'a b'"),
        ({"stages": []}, "stages: empty"),
        ({"stages": ["x"]}, "stages.0: received 'x'; must be a mapping with name, steps"),
        ({"stages": {"name": "x"}}, "stages: received {'name': 'x'}; "),
        ({"stages": 3}, "stages: received 3; "),
        ({"metric": ["delta"]}, "metric: received ['delta']; "),
        ({"recipe": "recipe.yaml"}, "recipe: received 'recipe.yaml'; must be a Recipe: load_recipe reads one"),
        ({"folder": 3}, "folder: received 3; must be a path"),
        ({"folders": "models"}, "folders: received 'models'; must be a list of paths"),
        ({"stages": [{"name": "s", "trials": 0}]}, "stages.s.trials: received 0"),
        ({"stages": [{"name": "s"}], "trials": 3}, "stages: received beside trials; give each stage its own"),
        ({"target": "models/x"}, "target: 'models/x' is the recipe's source 'x' too"),
        ({"target": "nowhere"}, "target: 'nowhere' not found; looked in ., mine"),
        ({"metric": "encoder", "prompts": "none.txt"}, "prompts: "),
    ],
)
def test_mistakes_name_the_argument(here: Path, recipe: Recipe, given: dict, problem: str) -> None:
    """A problem is a line that names the function and the argument; nothing is written."""
    with pytest.raises(InputError) as raised:
        new_study(**{"recipe": recipe, "target": "target.safetensors", "folder": "mine", **given})

    assert raised.value.problems[0].startswith(f"new_study: {problem}")
    assert not (here / "mine").exists()


def test_a_missing_model_is_named(here: Path, recipe: Recipe) -> None:
    """A missing source is named with the folders searched."""
    (here / "models" / "y.safetensors").unlink()
    with pytest.raises(InputError) as raised:
        new_study(recipe, "target.safetensors", "mine", folders=["models"])
    assert raised.value.problems == (
        (
            "new_study: recipe: models.y.file: 'models/y.safetensors' not found; looked in ., mine (no such folder), "
            "models"
        ),
    )


def test_a_study_by_hand_is_left_alone(here: Path, recipe: Recipe) -> None:
    """A study.yaml without the first line of `new_study` is not replaced."""
    study = new_study(recipe, "target.safetensors", "mine")
    path = study.folder / "study.yaml"
    path.write_text(path.read_text("utf-8").split("\n", 1)[1], encoding="utf-8")
    edited = path.read_text("utf-8")

    with pytest.raises(StudyError, match=r"new_study: folder: .*study\.yaml exists, and new_study did not write it"):
        new_study(recipe, "target.safetensors", "mine", trials=3)
    assert path.read_text("utf-8") == edited


def test_paths_may_be_text(here: Path, recipe: Recipe) -> None:
    """The result is merged from the study's sources and compared with the target, with all paths as text."""
    study = new_study(recipe, "target.safetensors", "mine", trials=1)
    result = fit(study)
    merge(result.recipe, study.sources, "clone.safetensors", dtype=torch.float32)
    merge(result.recipe, "mine", "same.safetensors", dtype=torch.float32)
    scores = compare("clone.safetensors", "target.safetensors", metric="delta", base="models/base.safetensors")

    assert min(scores["M00"], scores["OUT03"]) > 0.99999
    assert load_file("clone.safetensors").keys() == load_file("same.safetensors").keys()


def test_the_fields_of_a_stage_are_those_of_the_file() -> None:
    """The typed arguments are the fields of study.yaml."""
    assert set(get_type_hints(StageFields)) == set(StageEntry.model_fields)


def test_a_device_may_be_named(here: Path, recipe: Recipe) -> None:
    """A device may be named; another name is refused before anything is read."""
    study = new_study(recipe, "target.safetensors", "mine", trials=1)

    assert isinstance(fit(study, device="cpu"), FitResult)
    with pytest.raises(InputError, match="received 'gpu'; must be one of auto, cpu, cuda"):
        fit(study, device="gpu")
