"""The command `simplify`: simpler recipes from finished ones, and bad input refused with nothing written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from optimizer.cli import main
from optimizer.recipes import load_recipe
from optimizer.search import fit
from optimizer.studies import load_study

RECIPE = """
models: {base: {file: base}, x: {file: x}, y: {file: y}, idle: {file: idle}}
steps:
  - {name: A, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: "M00,OUT03-OUT06"}}
  - {name: N, mode: weight_sum, a: A, b: idle, alpha: {search: [0, 1], blocks: "M00,OUT03-OUT06", tie: true}}
  - {name: B, mode: weight_sum, a: N, b: y, alpha: {search: [0, 1], blocks: "M00,OUT03-OUT06"}}
"""
STUDY = (
    "recipe: recipe.yaml\ntarget: {file: target}\nstages:\n  - {name: s, metric: METRIC, trials: 4, sampler: random}\n"
)
SCORED = ("M00", "OUT03", "OUT04", "OUT05", "OUT06")


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_sd1, sd1_tensors):
    """A study whose target adds x by 0.6 and then y by 0.25, with noise; `idle` is not part of the target."""
    path = tmp_path_factory.mktemp("simplify")
    around = sd1_tensors(seed=0)
    base, x, y, _ = (
        write_sd1(path / f"{name}.safetensors", seed=seed, around=around, distance=0.2 if seed else 0.0)
        for seed, name in enumerate(("base", "x", "y", "idle"))
    )
    random = torch.Generator().manual_seed(1)
    target = {}
    for name, value in base.items():
        target[name] = value.clone()
        if value.is_floating_point():
            merged = (value + 0.6 * (x[name] - value)) * 0.75 + y[name] * 0.25
            target[name] = merged + 0.01 * torch.randn(value.shape, generator=random)
    save_file(target, path / "target.safetensors")
    (path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (path / "study.yaml").write_text(STUDY.replace("METRIC", "delta"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fitted(study, tmp_path_factory):
    """A copy of the study after a fit."""
    path = tmp_path_factory.mktemp("fitted") / "study"
    shutil.copytree(study, path)
    fit(load_study(path))
    return path


@pytest.fixture
def folder(study, tmp_path, monkeypatch):
    """A copy of the study, and a cache of its own."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(study, tmp_path / "study")


@pytest.fixture
def run(capsys):
    """Run the command and return its exit code, stdout and the lines on stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err.splitlines()

    return run


@pytest.fixture
def best(fitted, folder):
    """The best.yaml of a fit of the copied study."""
    return shutil.copytree(fitted, folder, dirs_exist_ok=True) / "best.yaml"


def test_a_fit_is_simplified(best, run):
    """Simplifying a fit leaves the planted numbers and the target's two steps; both recipes are kept."""
    before = best.read_bytes()

    code, out, problems = run("simplify", best, "--tolerance", "1e-3")

    assert (code, problems) == (0, [])
    assert best.read_bytes() == before
    found = load_recipe(best.with_name("best.simple.yaml"))
    assert [step.name for step in found.steps] == ["A", "B"]
    assert set(found.models) == {"base", "x", "y"}
    assert {found.step("A").alpha.at(block) for block in SCORED} == {0.6}
    assert {found.step("B").alpha.at(block) for block in SCORED} == {0.25}
    for words in (
        ("steps dropped", "N"),
        ("sources dropped", "idle"),
        ("similarity, s", "99."),
        ("distinct numbers", "3"),
    ):
        assert any(all(word in line for word in words) for line in out.splitlines()), words


def test_json_and_verify_agree(best, run, tmp_path):
    """The similarities of --json before and after equal those that `verify` measures for the files."""
    output = tmp_path / "elsewhere" / "simple.yaml"
    output.parent.mkdir()

    code, out, _ = run("simplify", best, "-o", output, "--tolerance", "1e-3", "--json")

    assert code == 0
    values = json.loads(out)
    (search,) = values["searches"].values()
    measured = []
    for recipe, name in ((best, "before"), (output, "after")):
        merged = tmp_path / f"{name}.safetensors"
        assert run("merge", recipe, "-o", merged, "--dtype", "fp32")[0] == 0
        target, base = (best.with_name(f"{file}.safetensors") for file in ("target", "base"))
        compared = run("compare", merged, "--target", target, "--base", base, "--metric", "delta", "--blocks",
            ",".join(SCORED), "--json")  # fmt: skip
        measured.append(json.loads(compared[1])[0]["total"])
    assert measured == pytest.approx([search["before"], search["after"]], abs=1e-6)
    assert measured[1] >= measured[0] - 1e-3
    assert values["dropped"] == {"sources": ["idle"], "steps": ["N"]}
    assert values["grids"]["finer"]["after"] == 0
    assert values["distinct_numbers"]["after"] == 3


@pytest.mark.parametrize("metric", ["attention", pytest.param("delta", marks=pytest.mark.slow)])
def test_again_changes_nothing(folder, run, metric):
    """Simplifying a simplified recipe changes nothing: losses count from the fit in both cases."""
    (folder / "study.yaml").write_text(STUDY.replace("METRIC", f"{metric}, strategy: stepwise"), encoding="utf-8")
    assert run("fit", folder, "--device", "cpu")[0] == 0
    assert run("simplify", folder / "best.yaml", "--tolerance", "5e-3")[0] == 0
    first = folder / "best.simple.yaml"

    code, out, problems = run("simplify", first, "--tolerance", "5e-3", "-o", folder / "second.yaml", "--json")

    assert (code, problems) == (0, [])
    assert json.loads(out)["changed"] == []
    assert (folder / "second.yaml").read_text("utf-8") == first.read_text("utf-8")


@pytest.mark.parametrize("metric", ["weights", "delta", "elements", "attention"])
def test_a_recipe_that_notes_nothing(folder, run, metric):
    """A handwritten recipe takes target and metric from the options and notes them for the next run."""
    path = folder / "hand.yaml"
    path.write_text(
        "models: {base: {file: base}, x: {file: x}, y: {file: y}}\nsteps:\n"
        "  - {name: A, mode: weight_sum, a: base, b: x, alpha: 0.60003}\n"
        "  - {name: B, mode: weight_sum, a: A, b: y, alpha: {OUT03-OUT06: 0.24998, IN01: 0.123456}}\n",
        encoding="utf-8",
    )

    code, _, problems = run(
        "simplify", path, "--target", folder / "target.safetensors", "--metric", metric, "--tolerance", "1e-4"
    )

    assert (code, problems) == (0, [])
    found = load_recipe(folder / "hand.simple.yaml")
    assert found.fitted.searches[0].metric == metric
    assert run("simplify", folder / "hand.simple.yaml", "--tolerance", "1e-4", "--json")[0] == 0
    if metric != "attention":
        assert {found.step("A").alpha.at(block) for block in found.layout.blocks} == {0.6}


def test_another_target_and_other_inputs_are_reported(best, run, folder):
    """A recipe that does not reach its noted similarity, with other inputs for example, causes a warning."""
    text = best.read_text("utf-8").replace("  similarity: 0.", "  similarity: 0.1")
    changed = folder / "changed.yaml"
    changed.write_text(text, encoding="utf-8")
    code, _, problems = run("simplify", changed)
    assert code == 0
    assert len(problems) == 1
    assert "fitted.searches.s: measured 0." in problems[0]


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        (
            "recipe.yaml",
            (),
            [
                "recipe.yaml: steps.A.alpha, steps.N.alpha, steps.B.alpha: free on M00,OUT03-OUT06",
                "fit the recipe first",
            ],
        ),
        ("done.yaml", ("--share", "inf"), ["--share: received inf; must be a finite number, at least 0"]),
        ("done.yaml", ("--share=-1",), ["--share: received -1; must be a finite number, at least 0"]),
        ("done.yaml", ("--tolerance=-1",), ["--tolerance: received -1; must be a finite number, at least 0"]),
        ("done.yaml", ("--tolerance", "nan"), ["--tolerance: received nan"]),
        ("done.yaml", (), ["done.yaml: fitted.target: missing", "--target"]),
        ("done.yaml", ("--target", "nowhere.safetensors"), ["nowhere.safetensors"]),
        (
            "done.yaml",
            ("--target", "TARGET", "--metric", "beauty"),
            ["--metric: received 'beauty'; must be one of explained"],
        ),
        ("done.yaml", ("--target", "TARGET", "--base", "z"), ["--base: received 'z'; must be one of x, y"]),
        ("done.yaml", ("--target", "TARGET", "--metric", "delta"), ["done.yaml: delta needs a base", "--base"]),
        ("done.yaml", ("--target", "TARGET", "-o", "SELF"), ["is the recipe itself; write to another file"]),
        ("done.yaml", ("--target", "TARGET", "-o", "nowhere/out.yaml"), ["the folder", "does not exist"]),
        ("gone.yaml", ("--target", "TARGET"), ["models.z.file: 'z' not found"]),
        ("noted.yaml", (), ["fitted.target.file: 'lost' not found", "--target"]),
        ("odd.yaml", (), ["odd.yaml: fitted.searches[0].metric: received 'beauty'; must be one of explained"]),
        ("unseen.yaml", (), ["fitted.searches[0].blocks: OUT00 cannot be measured by 'attention'"]),
    ],
)
def test_bad_input(folder, run, recipe, options, words):
    """Bad input causes one line with the problem and the valid values, exit code 2, and nothing is written."""
    steps = "steps:\n  - {name: T, mode: weight_sum, a: x, b: y, alpha: 0.5}\n"
    done = "models: {x: {file: x}, y: {file: y}}\n" + steps
    search = (
        "fitted: {target: {file: TARGET}, searches: [{name: T, metric: METRIC, strategy: joint, blocks: BLOCKS}]}\n"
    )
    for name, text in {
        "done": done,
        "gone": done.replace("y: {file: y}", "y: {file: y}, z: {file: z}").replace("b: y", "b: z"),
        "noted": done + search.replace("TARGET", "lost").replace("METRIC", "weights").replace("BLOCKS", "OUT03"),
        "odd": done + search.replace("TARGET", "target").replace("METRIC", "beauty").replace("BLOCKS", "OUT03"),
        "unseen": done + search.replace("TARGET", "target").replace("METRIC", "attention").replace("BLOCKS", "OUT00"),
    }.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    places = {"TARGET": folder / "target.safetensors", "SELF": folder / recipe}

    code, out, problems = run("simplify", folder / recipe, *(places.get(option, option) for option in options))

    assert (code, out, len(problems)) == (2, "", 1)
    for word in words:
        assert word in problems[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
