"""The command's output when a disk is full, a folder read-only, an output in use, or a checkpoint disappears."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import start_command
from waiting import wait_for

from optimizer.recipes import load_recipe

RECIPE = """
models: {base: {file: base}, one: {file: one}, two: {file: two}}
steps:
  - {name: A, mode: add_difference, a: one, b: two, c: base, alpha: {search: [0, 1], blocks: OUT03-OUT05}}
"""
STUDY = """
recipe: recipe.yaml
target: {file: target}
stages: [{name: outputs, metric: attention, strategy: stepwise, trials: 4}]
"""
TEXTS = {"recipe.yaml": RECIPE, "study.yaml": STUDY}
PLOTS = {"alphas.png", "best-so-far.png", "similarity-against-alpha-outputs-A.png", "similarity-per-block.png"}

Blockfit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def models(
    tmp_path: Path, write_sd1: Callable[..., object], sd1_tensors: Callable[..., dict[str, torch.Tensor]]
) -> Path:
    """A folder with three sources and a target."""
    folder = tmp_path / "models"
    folder.mkdir()
    around = sd1_tensors(seed=0)
    for seed, name in enumerate(("base", "one", "two", "target")):
        write_sd1(folder / f"{name}.safetensors", seed=seed, around=around, distance=0.2)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a study."""
    folder = tmp_path / "study"
    folder.mkdir()
    write(folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the command, in this process and in others."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BLOCKFIT_MODELS", str(models))
    return dict(os.environ)


@pytest.fixture
def fit(environment: dict[str, str], blockfit: Blockfit) -> Callable[[Path], tuple[int, list[str]]]:
    """Fit a study with the command and return the exit code and the lines on stderr."""

    def fit(folder: Path) -> tuple[int, list[str]]:
        done = blockfit("fit", folder, "--plots")
        return done.returncode, done.stderr.splitlines()

    return fit


Fit = Callable[[Path], tuple[int, list[str]]]


def write(folder: Path, trials: int = 4) -> None:
    for name, text in TEXTS.items():
        (folder / name).write_text(text.replace("trials: 4", f"trials: {trials}"), encoding="utf-8")


def rows(folder: Path) -> list[str]:
    return (folder / "trials.csv").read_text(encoding="utf-8").splitlines()[1:]


def plots(folder: Path) -> set[str]:
    return {path.name for path in (folder / "plots").iterdir()}


@pytest.mark.slow
def test_plots_on_a_full_disk_cost_no_result(fit: Fit, small_disk: Path, fill: Callable[[Path, int], Path]) -> None:
    """Result and trials are kept; each plot without space causes a line; with space the command writes the rest."""
    write(small_disk, trials=3)
    assert fit(small_disk) == (0, [])
    shutil.rmtree(small_disk / "plots")
    write(small_disk)
    filler = fill(small_disk, 110 << 10)

    code, lines = fit(small_disk)

    drawn = plots(small_disk)
    assert code == 1
    assert drawn < PLOTS
    assert len(lines) == len(PLOTS - drawn) + 1
    for name, line in zip(sorted(PLOTS - drawn), lines, strict=False):
        assert line.startswith(f"blockfit: {small_disk / 'plots' / name}: the disk is full")
    best = small_disk / "best.yaml"
    assert (
        lines[-1] == f"blockfit: the search is done, its result is in {best}; the same command writes the missing files"
    )
    before = load_recipe(best)
    assert before.fitted is not None
    assert before.fitted.complete
    kept = rows(small_disk)
    assert len(kept) == 4

    filler.unlink()
    assert fit(small_disk) == (0, [])
    assert plots(small_disk) == PLOTS
    assert rows(small_disk) == kept
    assert load_recipe(best) == before


def test_a_read_only_folder_is_refused(fit: Fit, read_only: Callable[[dict[str, str]], Path], tmp_path: Path) -> None:
    """A study in a read-only folder is refused in one line, before a checkpoint is read."""
    folder = read_only(TEXTS)

    reason = "the folder cannot be written to (Read-only file system); copy its contents to a writable folder"
    assert fit(folder) == (2, [f"blockfit: {folder}: {reason}"])
    assert not (tmp_path / "cache").exists()


def test_a_table_that_cannot_be_replaced_is_reported(fit: Fit, study: Path, hold: Callable[[Path], None]) -> None:
    """A trials.csv that cannot be replaced is reported and kept; best.yaml and the plots are still written."""
    (study / "trials.csv").write_text("old", encoding="utf-8")
    hold(study / "trials.csv")

    code, lines = fit(study)

    assert code == 1
    assert len(lines) == 2
    assert f"{study / 'trials.csv'}: cannot be replaced" in lines[0]
    assert (study / "trials.csv").read_text(encoding="utf-8") == "old"
    assert plots(study) == PLOTS
    assert load_recipe(study / "best.yaml").fitted is not None


def test_a_recipe_that_cannot_be_replaced_is_reported(
    fit: Fit, study: Path, hold: Callable[[Path], None], blockfit: Blockfit
) -> None:
    """A best.yaml that cannot be replaced is reported and kept, as are the trials."""
    (study / "best.yaml").write_text("old", encoding="utf-8")
    hold(study / "best.yaml")

    code, lines = fit(study)

    assert code == 2
    assert len(lines) == 1
    assert f"{study / 'best.yaml'}: cannot be replaced" in lines[0]
    assert (study / "best.yaml").read_text(encoding="utf-8") == "old"
    assert '"completed": 4' in blockfit("status", study, "--json").stdout


def test_a_log_that_cannot_be_written_is_a_warning(fit: Fit, study: Path) -> None:
    """A log that cannot be written causes one warning, and the fit completes."""
    (study / "fit.log").mkdir()

    code, lines = fit(study)

    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith(f"blockfit: warning: {study / 'fit.log'}: cannot be written (")
    assert len(rows(study)) == 4
    assert plots(study) == PLOTS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody replace an open file, and has no SIGINT")
def test_checkpoints_changed_during_the_search_are_reported(
    study: Path, models: Path, environment: dict[str, str], blockfit: Blockfit
) -> None:
    """Checkpoints replaced or deleted during a fit are reported and their hashes not noted; the trials are kept."""
    assert blockfit("inspect", *models.iterdir()).returncode == 0  # so that all hashes are known
    write(study, trials=100000)
    process = start_command("fit", study)
    log = study / "fit.log"
    try:
        wait_for(lambda: log.exists() and "COMPLETE" in log.read_text(encoding="utf-8"))
        shutil.copyfile(models / "one.safetensors", models / "copy.safetensors")
        (models / "copy.safetensors").replace(models / "target.safetensors")
        (models / "two.safetensors").unlink()
        process.send_signal(signal.SIGINT)
        _, problems = process.communicate()
    finally:
        process.kill()

    assert process.returncode == 130
    two, target, interrupted = problems.splitlines()
    rest = "during the fit: the result is of the file as it was before, and best.yaml notes no hash of it"
    assert two == f"blockfit: warning: {models / 'two.safetensors'}: was deleted or moved {rest}"
    assert target == f"blockfit: warning: {models / 'target.safetensors'}: was replaced by another file {rest}"
    assert "interrupted" in interrupted
    best = load_recipe(study / "best.yaml")
    assert best.fitted is not None
    assert {name for name, model in best.models.items() if model.sha256} == {"base", "one"}
    assert best.fitted.target.sha256 is None
