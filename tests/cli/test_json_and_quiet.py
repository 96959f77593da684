"""The command as scripts use it: one JSON value on stdout, no output with --quiet, and exit codes."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from processes import run_command, start_command
from safetensors import safe_open
from waiting import wait_for

from optimizer.cli import main

RECIPE = """
models: {base: {file: base}, one: {file: one}, two: {file: two}}
steps:
  - {name: A, mode: add_difference, a: one, b: two, c: base, alpha: ALPHA}
"""
STUDY = """
recipe: recipe.yaml
target: {file: target}
stages: [{name: all, metric: delta, blocks: OUT03-OUT04, trials: TRIALS}]
"""
FREE = "{search: [0, 1], blocks: OUT03-OUT04}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, write_sd1, sd1_tensors):
    """Return the folder of a study of small checkpoints, with a recipe without free alphas."""
    folder = tmp_path_factory.mktemp("json") / "study"
    folder.mkdir()
    os.environ["BLOCKFIT_CACHE"] = str(folder.parent / "cache")
    around = sd1_tensors(seed=0)
    for seed, name in enumerate(("base", "one", "two", "target")):
        write_sd1(folder / f"{name}.safetensors", seed=seed, around=around, distance=0.2)
    (folder / "recipe.yaml").write_text(RECIPE.replace("ALPHA", FREE), encoding="utf-8")
    (folder / "finished.yaml").write_text(RECIPE.replace("ALPHA", "0.5"), encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY.replace("TRIALS", "3"), encoding="utf-8")
    (folder / "formulas.txt").write_text("one x 0.5 + two x 0.5 = T\n", encoding="utf-8")
    yield folder
    del os.environ["BLOCKFIT_CACHE"]


def run(folder, monkeypatch, *arguments):
    """Run the command in this process and in `folder`; return its exit code."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


COMMANDS = {
    "inspect": ["inspect", "one.safetensors", "--quick"],
    "compare": ["compare", "one", "--target", "target.safetensors", "--blocks", "M00"],
    "merge": ["merge", "finished.yaml", "-o", "merged.safetensors"],
    "import": ["import", "formulas.txt", "-o", "imported.yaml"],
    "export": ["export", "exportable.yaml", "--to", "mecha", "-o", "exported.mecha"],
    "verify": ["verify", "finished.yaml", "--target", "target.safetensors"],
    "simplify": ["simplify", "finished.yaml", "--target", "target.safetensors", "-o", "simple.yaml"],
    "init": ["init", "target.safetensors", "base.safetensors", "one.safetensors", "-o", "NEW"],
    "fit": ["fit", "."],
    "status": ["status", "."],
    "ceiling": ["ceiling", ".", "--metric", "delta"],
    "report": ["report", ".", "-o", "report.html"],
}
KEYS = {
    "inspect": {"file", "layout", "dtypes", "blocks", "sha256"},
    "compare": {"candidate", "file", "metric", "seed", "blocks", "total"},
    "merge": {"output", "step", "dtype", "tensors", "bytes", "sources", "vae"},
    "import": {"steps", "models", "output", "warnings", "not_understood"},
    "export": {"output", "format", "step"},
    "verify": {"step", "metric", "seed", "blocks", "total", "not_measurable"},
    "simplify": {"recipe", "output", "tolerance", "searches", "changed"},
    "init": {"folder", "recipe", "study", "target", "base", "models", "steps", "free_alphas", "tied", "notes"},
    "fit": {"study", "folder", "interrupted", "searches", "steps", "candidates", "written", "unwritten"},
    "status": {"searches", "workers", "seconds_left", "ends"},
    "ceiling": {"metric", "blocks", "total", "sources", "rank"},
    "report": {"report", "study", "complete", "stages", "ceilings", "searches", "sources", "remarks"},
}


@pytest.fixture
def arguments(prepared, tmp_path):
    """Return a function that returns the arguments of a command."""
    text = RECIPE.replace("ALPHA", "0.5")
    for name in ("base", "one", "two"):
        text = text.replace(f"file: {name}}}", f'file: "{name}.safetensors [0123456789]"}}')
    (prepared / "exportable.yaml").write_text(text, encoding="utf-8")
    return lambda command: [str(tmp_path / "new") if word == "NEW" else word for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_value_with_the_documented_keys(prepared, arguments, command, capsys, monkeypatch):
    """With --json stdout has one JSON value, and the help lists its keys."""
    assert run(prepared, monkeypatch, *arguments(command), "--json") == 0

    found = json.loads(capsys.readouterr().out)
    (found,) = found if isinstance(found, list) else [found]
    assert KEYS[command] <= set(found)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = capsys.readouterr().out.split("With --json")[1].split("Arguments:")[0]
    assert all(key in page for key in KEYS[command])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("before", [True, False])
def test_quiet_prints_nothing(prepared, arguments, command, before, capsys, monkeypatch):
    """With --quiet, before or after the command's name, only the JSON of --json is printed."""
    words = arguments(command)

    assert run(prepared, monkeypatch, *(["-q", *words] if before else [*words, "--quiet"])) == 0

    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    if command != "init":
        assert run(prepared, monkeypatch, "-q", *words, "--json") == 0
        json.loads(capsys.readouterr().out)


def test_quiet_ends_with_its_command(prepared, capsys, monkeypatch):
    """--quiet of one command does not silence the next command in the same process."""
    run(prepared, monkeypatch, "-q", "status", ".")
    run(prepared, monkeypatch, "status", ".")

    assert "3/3" in capsys.readouterr().out


def test_quiet_keeps_errors_and_warnings(prepared, capsys, monkeypatch):
    """Errors and warnings are printed with --quiet, too."""
    (prepared / "half.txt").write_text("one x 0.5 + two x 0.5 = T\nmodel x = ?\n", encoding="utf-8")

    assert run(prepared, monkeypatch, "-q", "status", "nowhere") == 2
    assert run(prepared, monkeypatch, "-q", "import", "half.txt", "-o", "half.yaml") == 0

    problem, warning = capsys.readouterr().err.splitlines()
    assert "nowhere" in problem
    assert "warning" in warning


def test_json_of_a_fit_agrees_with_its_files(prepared, capsys, monkeypatch):
    """The JSON of a fit agrees with its files: best trial, similarities by step and metric, files written."""
    assert run(prepared, monkeypatch, "fit", ".", "--candidates", "2", "--plots", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    (search,) = found["searches"]
    assert (search["search"], search["stage"], search["step"], search["alphas"]) == ("all", "all", "A", 2)
    assert (search["completed"], search["trials"], found["interrupted"]) == (3, 3, False)
    rows = (prepared / "trials.csv").read_text(encoding="utf-8").splitlines()
    names = rows[0].split(",")
    values = {int(row.split(",")[names.index("trial")]): row.split(",")[names.index("similarity")] for row in rows[1:]}
    assert search["best"] == max(map(float, values.values())) == float(values[search["trial"]])
    totals = {(entry["step"], entry["metric"]): entry for entry in found["steps"]}
    assert set(totals) == {("A", "explained"), ("A", "delta"), ("A", "weights")}
    assert totals["A", "delta"]["after"] == pytest.approx(search["best"], abs=1e-9)
    assert totals["A", "delta"]["before"] < totals["A", "delta"]["after"]
    assert found["unwritten"] == []
    assert {Path(path).name for path in found["written"]} >= {"best.yaml", "trials.csv", "plots"}
    assert all((prepared / path).exists() for path in found["written"])


def test_json_of_a_merge_agrees_with_its_file(prepared, capsys, monkeypatch):
    """The JSON of a merge agrees with the merged file."""
    assert run(prepared, monkeypatch, "merge", "finished.yaml", "-o", "m.safetensors", "--dtype", "fp32", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    with safe_open(prepared / "m.safetensors", "pt") as file:
        assert found["tensors"] == len(file.keys())
    assert found["bytes"] == (prepared / "m.safetensors").stat().st_size
    assert (found["output"], found["step"], found["dtype"], found["vae"]) == ("m.safetensors", "A", "fp32", None)
    assert found["sources"] == {name: f"{name}.safetensors" for name in ("base", "one", "two")}


def test_exports_leave_hashes_out(prepared, arguments, capsys, monkeypatch):
    """Exports contain the file's name without the hash that follows it in the recipe."""
    assert run(prepared, monkeypatch, *arguments("export")) == 0

    exported = (prepared / "exported.mecha").read_text(encoding="utf-8")
    assert "one.safetensors" in exported
    assert "0123456789" not in exported


def test_exit_codes_show_the_kind_of_failure(prepared, tmp_path, blockfit):
    """The exit code is 0 if done, 1 if a table cannot be written, 2 for bad input; JSON is printed with 0 and 1."""
    study = tmp_path / "study"
    (study / "trials.csv").mkdir(parents=True)
    (study / "study.yaml").write_text(
        STUDY.replace("TRIALS", "1").replace("recipe.yaml", str(prepared / "recipe.yaml").replace("\\", "/")),
        encoding="utf-8",
    )

    done = blockfit("status", prepared, "--json")
    failed = blockfit("fit", study, "--models", prepared, "--json")
    refused = run_command("status", "nowhere", "--json")

    assert (done.returncode, failed.returncode, refused.returncode) == (0, 1, 2)
    assert json.loads(done.stdout)["searches"]
    assert done.stderr == ""
    found = json.loads(failed.stdout)
    assert "trials.csv" in found["unwritten"][0]
    assert str(study / "best.yaml") in found["written"]
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
def test_an_interrupted_fit_prints_json(prepared, tmp_path):
    """Ctrl-C gives exit code 130, and the JSON has the results until then."""
    for name in ("recipe.yaml", "study.yaml"):
        text = (prepared / name).read_text(encoding="utf-8").replace("trials: 3", "trials: 100000")
        (tmp_path / name).write_text(text, encoding="utf-8")
    process = start_command("fit", tmp_path, "--models", prepared, "--json", "-q")
    log = tmp_path / "fit.log"
    wait_for(lambda: log.exists() and log.read_text(encoding="utf-8").count("COMPLETE") > 2)
    process.send_signal(signal.SIGINT)
    try:
        printed, problems = process.communicate()
    finally:
        process.kill()

    assert process.returncode == 130
    found = json.loads(printed)
    assert found["interrupted"] is True
    assert found["searches"][0]["completed"] > 2
    assert len(problems.splitlines()) == 1
