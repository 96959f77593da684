"""The command as users run it: results on stdout, files beside the study, exit codes."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from waiting import PATIENCE, wait_for

from optimizer.cli import main

Write = Callable[..., dict[str, torch.Tensor]]
RECIPE = """
models: {base: {file: base}, one: {file: one}, two: {file: two.ckpt}}
steps:
  - {name: A, mode: add_difference, a: one, b: two, c: base, alpha: {search: [0, 1], blocks: OUT03-OUT05}}
"""
STUDY = """
recipe: recipe.yaml
target: {file: target}
stages: [{name: outputs, metric: attention, strategy: stepwise, trials: TRIALS}]
"""


@pytest.fixture
def folder(tmp_path: Path, write_sd1: Write, sd1_tensors: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small study: three sources (one of them a .ckpt), a target and two searched steps."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "a folder"
    models.mkdir()
    around = sd1_tensors(seed=0)
    for seed, name in enumerate(("base.safetensors", "one.safetensors", "two.ckpt", "target.safetensors")):
        write_sd1(models / name, seed=seed, around=around, distance=0.2)
    (models / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (models / "study.yaml").write_text(STUDY.replace("TRIALS", "6"), encoding="utf-8")
    return models


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_fit_writes_its_results_and_continues(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fit writes a recipe without free alphas, one row per trial, a log and no plots; a second fit adds nothing."""
    assert run("fit", folder) == 0
    rows = trials(folder)
    assert len(rows) == 6
    assert "search:" not in (folder / "best.yaml").read_text(encoding="utf-8")
    assert not (folder / "plots").exists()
    *_, look, use = capsys.readouterr().out.splitlines()
    assert look == f'look at it: blockfit report "{folder}", blockfit plots "{folder}"'
    assert use == f'use it: blockfit merge "{folder / "best.simple.yaml"}" -o clone.safetensors'
    assert (folder / "fit.log").read_text(encoding="utf-8").count(" COMPLETE ") == 6

    assert run("fit", folder) == 0
    assert trials(folder) == rows
    assert "nothing was left to do" in capsys.readouterr().out
    assert run("fit", folder, "--trials", 8) == 0
    assert len(trials(folder)) == 8
    capsys.readouterr()

    assert run("status", folder, "--json") == 0
    (status,) = json.loads(capsys.readouterr().out)["searches"]
    assert (status["search"], status["completed"], status["budget"]) == ("outputs/A", 8, 8)
    assert status["best"] == max(float(row["similarity"]) for row in rows)
    assert run("merge", folder / "best.yaml", "-o", folder / "fit.safetensors", "--dtype", "fp32") == 0
    assert len(load_file(folder / "fit.safetensors")) == len(load_file(folder / "one.safetensors"))


def test_status_before_the_first_trial_creates_no_database(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The status of a study that was never fitted is 0 trials, and no database is created."""
    assert run("status", folder, "--json") == 0

    (status,) = json.loads(capsys.readouterr().out)["searches"]
    assert (status["completed"], status["best"]) == (0, None)
    assert not (folder / "study.db").exists()


def test_compare_prints_every_documented_field(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`compare --json` prints a list with every field of the contract, and the total is the plain mean."""
    one, two, target = folder / "one.safetensors", folder / "two.ckpt", folder / "target.safetensors"
    assert run("compare", one, two, "--target", target, "--blocks", "input", "--json") == 0

    first, second = json.loads(capsys.readouterr().out)
    assert (first["candidate"], first["metric"], first["seed"]) == (str(one), "attention", 114514)
    assert list(second["blocks"]) == ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00"]
    assert first["total"] == pytest.approx(sum(first["blocks"].values()) / 7, abs=1e-15)


@pytest.mark.parametrize(("metric", "count"), [("weights", 26), ("delta", 26), ("elements", 26), ("attention", 16)])
def test_a_checkpoint_equals_itself(folder: Path, capsys: pytest.CaptureFixture[str], metric: str, count: int) -> None:
    """A checkpoint compared with itself scores 1 in every block."""
    one = folder / "one.safetensors"
    assert (
        run("compare", one, "--target", one, "--base", folder / "base.safetensors", "--metric", metric, "--json") == 0
    )

    (found,) = json.loads(capsys.readouterr().out)
    assert list(found["blocks"].values()) == pytest.approx([1.0] * count, abs=1e-6)


def test_inspect_prints_one_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect --json` prints one entry per file, .safetensors or .ckpt."""
    assert run("inspect", folder / "one.safetensors", folder / "two.ckpt", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert [entry["layout"] for entry in found] == ["sd1", "sd1"]
    assert all(len(entry["short_hash"]) == 10 for entry in found)


def test_tables_are_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json the commands print tables: similarities in per cent, and the contents of a file."""
    assert run("compare", folder / "one.safetensors", "--target", folder / "target.safetensors") == 0
    assert run("inspect", folder / "one.safetensors") == 0
    assert run("status", folder) == 0

    shown = capsys.readouterr().out
    assert "OUT11" in shown
    assert "%" in shown
    assert "0/6" in shown


def test_help_of_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """--help prints an example for every command."""
    for command in ("inspect", "compare", "fit", "merge", "preview", "status", "demo"):
        assert run(command, "--help") == 0
        assert f"blockfit {command} " in capsys.readouterr().out.replace("Examples:", "Example:").split("Example:")[1]


def test_plots_are_drawn_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fit --plots` and `plots` draw the same pictures; `plots` may write them to another folder, also as JSON says."""
    assert run("fit", folder, "--plots") == 0
    assert f"plots: {folder / 'plots'}" in capsys.readouterr().out.splitlines()
    assert run("plots", folder, "-o", folder.parent / "drawn", "--json") == 0
    found = json.loads(capsys.readouterr().out)

    drawn = {path.name: path.read_bytes() for path in (folder / "plots").iterdir()}
    assert len(drawn) >= 4
    assert {path.name: path.read_bytes() for path in (folder.parent / "drawn").iterdir()} == drawn
    assert found["plots"] == str(folder.parent / "drawn")
    assert {Path(path).name for path in found["written"]} == set(drawn)


def test_plots_need_a_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plots` of a study that was never fitted is refused in one line, and writes nothing."""
    assert run("plots", folder) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "not fitted yet" in line
    assert not (folder / "plots").exists()


def test_models_are_found_in_named_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are found by name without extension in the folders of --models and BLOCKFIT_MODELS."""
    recipe = folder.parent / "elsewhere" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(RECIPE.replace("{search: [0, 1], blocks: OUT03-OUT05}", "0.5"), encoding="utf-8")
    output = folder / "merged.safetensors"

    assert run("merge", recipe, "-o", output) == 2
    assert run("merge", recipe, "-o", output, "--models", folder.parent) == 0
    monkeypatch.setenv("BLOCKFIT_MODELS", os.pathsep.join(["nowhere", str(folder)]))
    assert run("merge", recipe, "-o", output) == 0


def test_tables_are_ascii_on_other_consoles(folder: Path) -> None:
    """On a Japanese Windows console tables are drawn in ASCII."""
    done = subprocess.run(
        [sys.executable, "-m", "optimizer", "status", str(folder)],
        capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "cp932"},
    )  # fmt: skip

    assert "outputs/A" in done.stdout.decode("cp932")
    assert done.stdout.isascii()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
def test_ctrl_c_exports_the_best_so_far(folder: Path) -> None:
    """Ctrl-C ends a long fit with exit code 130 and the best recipe so far; the same command continues the fit."""
    (folder / "study.yaml").write_text(STUDY.replace("TRIALS", "100000"), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "optimizer", "fit", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log = folder / "fit.log"
    wait_for(lambda: log.exists() and log.read_text(encoding="utf-8").count("COMPLETE") > 3)
    process.send_signal(signal.SIGINT)
    try:
        _, problems = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()

    assert process.returncode == 130
    assert problems.decode().splitlines() == [
        "blockfit: interrupted; the best so far is in best.yaml, and the same command continues"
    ]
    done = log.read_text(encoding="utf-8").count("COMPLETE")
    assert "complete: false" in (folder / "best.yaml").read_text(encoding="utf-8")
    assert run("fit", folder, "--trials", done + 2) == 0
    assert log.read_text(encoding="utf-8").count("COMPLETE") == done + 2


# Raises SIGINT in trial 3, and prints at the end which of the slow libraries are loaded.
INTERRUPTED_IN_TRIAL_3 = """
import atexit, signal, sys
from optimizer.cli import main, studies

class Events(studies.TerminalEvents):
    def finished(self, progress, trial, /):
        super().finished(progress, trial)
        if trial.number == 3:
            signal.raise_signal(signal.SIGINT)

studies.TerminalEvents = Events
atexit.register(lambda: print({"matplotlib", "pandas"} & set(sys.modules), file=sys.stderr))
main(sys.argv[1:])
"""


def test_after_ctrl_c_only_the_result_is_written(folder: Path) -> None:
    """After Ctrl-C no further trial begins, nothing is rounded or drawn, and no library is loaded for the results."""
    command = [sys.executable, "-c", INTERRUPTED_IN_TRIAL_3, "fit", str(folder), "--trials", "100000", "--plots"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "set()")
    assert [row["trial"] for row in trials(folder)] == ["0", "1", "2", "3"]
    written = {path.name for path in folder.iterdir()}
    assert {"best.yaml", "trials.csv", "study.db", "fit.log"} <= written
    assert written.isdisjoint({"plots", "report.html", "best.simple.yaml"})


def test_the_end_of_a_command_walks_over_no_module() -> None:
    """When the interpreter ends, its last garbage collection has nothing to walk over: the prompt is back at once."""
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(len(gc.get_objects()) < 1000 < gc.get_freeze_count()))\n"
        "from optimizer.cli import main\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"
