"""Checkpoints by name and by hash, in the folders of --models and BLOCKFIT_MODELS, for every command."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from optimizer.cli import main
from optimizer.recipes import load_recipe

RECIPE = """
models:
  base: {file: base}
  one: {file: "one.safetensors [ONE]"}
  two: {file: "[TWO]"}
steps:
  - {name: A, mode: add_difference, a: one, b: two, c: base, alpha: ALPHA}
"""
STUDY = """
recipe: recipe.yaml
target: {file: "closed [TARGET]"}
stages: [{name: all, metric: delta, blocks: OUT03, trials: 2}]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_sd1, sd1_tensors):
    """A WebUI's folder of checkpoints in sub-folders, with one name twice."""
    folder = tmp_path_factory.mktemp("webui") / "Stable-diffusion"
    around = sd1_tensors(seed=0)
    for seed, name in enumerate(("base", "mine/one", "mine/two", "theirs/closed", "mine/same", "theirs/same")):
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sd1(path, seed=seed, around=around, distance=0.2)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    return folder


def short(path: Path) -> str:
    """Return the short hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def hashed(text: str, store: Path) -> str:
    """Return a recipe or study with the files' hashes inserted."""
    for place, name in (("ONE", "mine/one"), ("TWO", "mine/two"), ("TARGET", "theirs/closed")):
        text = text.replace(f"[{place}]", f"[{short(store / f'{name}.safetensors')}]")
    return text


def run(*arguments):
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_commands_accept_names_and_hashes(here, store, capsys, monkeypatch):
    """compare, inspect, verify, simplify, merge --vae and import accept names, names with hash, and hashes."""
    closed = store / "theirs" / "closed.safetensors"
    monkeypatch.setenv("BLOCKFIT_MODELS", str(store))
    (here / "recipe.yaml").write_text(hashed(RECIPE, store).replace("ALPHA", "0.5"), encoding="utf-8")

    assert run("compare", "one", f"same [{short(store / 'theirs' / 'same.safetensors')}]", "--target", short(closed),
               "--base", "base", "--metric", "delta", "--blocks", "M00", "--json") == 0  # fmt: skip
    first, second = json.loads(capsys.readouterr().out)
    assert (first["candidate"], first["file"]) == ("one", str(store / "mine" / "one.safetensors"))
    assert second["file"] == str(store / "theirs" / "same.safetensors")
    for arguments in (
        ("inspect", f"closed.safetensors [{short(closed)}]", "--quick"),
        ("verify", "recipe.yaml", "--target", "closed"),
        ("simplify", "recipe.yaml", "--target", f"[{short(closed)}]", "-o", "simple.yaml"),
        ("merge", "recipe.yaml", "-o", "merged.safetensors", "--vae", "theirs/closed"),
        ("import", "merged", "-o", "again.yaml"),
    ):
        assert run(*arguments) == 0, arguments
    assert load_recipe(here / "again.yaml").step("A").alpha.at("M00") == 0.5


def test_recipes_and_studies_accept_hashes(here, store, capsys):
    """A study that names its files by hash is fitted and merged, and best.yaml keeps the names."""
    recipe = hashed(RECIPE, store)
    (here / "recipe.yaml").write_text(recipe.replace("ALPHA", "{search: [0, 1], blocks: OUT03}"), encoding="utf-8")
    (here / "study.yaml").write_text(hashed(STUDY, store), encoding="utf-8")

    assert run("fit", here, "--models", store, "-q") == 0
    assert run("merge", here / "best.yaml", "-o", "merged.safetensors", "--models", store, "-q") == 0

    best = load_recipe(here / "best.yaml")
    assert [model.file for model in best.models.values()] == [
        "base",
        f"one.safetensors [{short(store / 'mine' / 'one.safetensors')}]",
        f"[{short(store / 'mine' / 'two.safetensors')}]",
    ]
    assert best.fitted is not None
    assert best.fitted.target.file == f"closed [{short(store / 'theirs' / 'closed.safetensors')}]"


def test_a_missing_folder_of_the_environment_is_a_warning(here, store, capsys, monkeypatch):
    """A missing folder of BLOCKFIT_MODELS causes one warning; the others are used, with or without quotation marks."""
    missing, file = here / "unplugged", store / "base.safetensors"
    monkeypatch.setenv("BLOCKFIT_MODELS", os.pathsep.join((str(missing), f'"{store}"', str(file))))
    (here / "recipe.yaml").write_text(RECIPE.replace("ALPHA", "0.5").replace('"one.safetensors [ONE]"', "one")
                                      .replace('"[TWO]"', "two"), encoding="utf-8")  # fmt: skip

    assert run("merge", "recipe.yaml", "-o", "merged.safetensors", "--vae", "closed") == 0

    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"blockfit: warning: BLOCKFIT_MODELS: {missing}: no such folder",
        f"blockfit: warning: BLOCKFIT_MODELS: {file}: is a file; name the folder that contains it",
    ]
    assert run("compare", "one", "--target", "closed", "--json", "--blocks", "M00") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)
    assert printed.err.count("no such folder") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "closd"], ["closd: no such file; did you mean 'closed.safetensors'?; looked in"]),
        (
            ["compare", "one", "--target", "Closed_"],
            ["--target: Closed_: no such file; did you mean 'closed.safetensors'?"],
        ),
        (["inspect", "clsed [0123456789]"], ["no file has this name or hash; did you mean 'closed.safetensors'?"]),
        (
            ["merge", "near.yaml", "-o", "x.safetensors"],
            ["near.yaml: models.one.file: 'onee' not found; did you mean 'one."],
        ),
        (["merge", "recip.yaml", "-o", "x.safetensors"], ["recip.yaml: no such file; did you mean 'recipe.yaml'?"]),
        (["fit", "study.yml"], ["study.yml: no such file, but 'study.yaml' exists"]),
        (["inspect", "same"], ["2 files have this name", "mine", "theirs"]),
        (["inspect", "one [0123456789]"], ["one.safetensors: has the hash", "not 0123456789"]),
        (["inspect", "0123456789"], ["no file has this name or hash", "looked in"]),
        (["compare", "one", "--target", "gone"], ["--target: gone: no such file", "looked in"]),
        (["compare", "one", "--target", "one", "--base", "gone"], ["--base: gone"]),
        (["merge", "done.yaml", "-o", "x.safetensors", "--vae", "gone"], ["--vae: gone"]),
        (["merge", "ambiguous.yaml", "-o", "x.safetensors"], ["ambiguous.yaml: models.one.file: 'same': 2 files"]),
        (["fit", "study.yaml"], ["study.yaml: target.file: ", "has the hash", "not 0123456789"]),
        (["inspect", "one", "--models", "nowhere"], ["--models: nowhere: no such folder"]),
    ],
)
def test_missing_ambiguous_and_wrong_files_are_refused(here, store, capsys, monkeypatch, arguments, words):
    """A missing, ambiguous or wrong file causes one line with the option or field, and exit code 2."""
    monkeypatch.setenv("BLOCKFIT_MODELS", str(store))
    recipe = hashed(RECIPE, store)
    (here / "recipe.yaml").write_text(recipe.replace("ALPHA", "{search: [0, 1], blocks: OUT03}"), encoding="utf-8")
    (here / "done.yaml").write_text(recipe.replace("ALPHA", "0.5"), encoding="utf-8")
    (here / "ambiguous.yaml").write_text(
        RECIPE.replace("ALPHA", "0.5").replace('"one.safetensors [ONE]"', "same").replace('"[TWO]"', "base"),
        encoding="utf-8",
    )
    near = RECIPE.replace("ALPHA", "0.5").replace('"one.safetensors [ONE]"', "onee").replace('"[TWO]"', "two")
    (here / "near.yaml").write_text(near, encoding="utf-8")
    (here / "study.yaml").write_text(STUDY.replace("[TARGET]", "[0123456789]"), encoding="utf-8")

    assert run(*arguments) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert not list(here.glob("*.safetensors"))
