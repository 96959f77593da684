"""Every output of blockfit on a full disk or over an irreplaceable file: the old file stays intact."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measured_files import load_measured

from optimizer.checkpoints import STATISTICS
from optimizer.errors import InputError
from optimizer.files import replace_text
from optimizer.merging import merge
from optimizer.recipes import save_recipe
from optimizer.reports.plots import write_plots
from optimizer.reports.trials import write_trials
from optimizer.search import FitResult
from optimizer.similarity import save_measured

Write = Callable[[FitResult, Path], object]


def _merge(result: FitResult, path: Path) -> None:
    merge(result.recipe, result.study.sources, path, dtype=torch.float32)


def _statistics(result: FitResult, path: Path) -> None:
    measured = load_measured(result.study.folder / STATISTICS)
    assert measured is not None
    save_measured(measured, path)


OUTPUTS: dict[str, Write] = {
    "best.yaml": lambda result, path: save_recipe(result.recipe, path),
    "out.safetensors": _merge,
    "statistics.safetensors": _statistics,
    "trials.csv": write_trials,
    "export.txt": lambda result, path: replace_text(path, "1,0.5\n" * 1000),
}
PLOTS = ["alphas", "best-so-far", "similarity-per-block"]
INTACT = "the old file is intact"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_leaves_the_old_file(
    finished_fit: FitResult, small_disk: Path, fill: Callable[[Path, int], Path], name: str
) -> None:
    """On a full disk the error names the output, the old file stays intact, and no other file remains."""
    old = small_disk / name
    old.write_bytes(b"old")
    filler = fill(small_disk, 0)

    with pytest.raises(InputError) as caught:
        OUTPUTS[name](finished_fit, old)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{old}: the disk is full")
    assert problem.endswith(INTACT)
    filler.unlink()
    assert contents(small_disk) == {name: b"old"}
    OUTPUTS[name](finished_fit, old)
    assert old.stat().st_size > 500


@pytest.mark.parametrize("left", [pytest.param(0, marks=pytest.mark.slow), 20_000])
def test_plots_on_a_full_disk_are_reported(
    finished_fit: FitResult, small_disk: Path, fill: Callable[[Path, int], Path], left: int
) -> None:
    """Each plot without disk space causes one line, and old plots stay intact; with space all are drawn."""
    folder = small_disk / "plots"
    folder.mkdir()
    for name in PLOTS:
        (folder / f"{name}.png").write_bytes(b"old")
    filler = fill(small_disk, left)

    with pytest.raises(InputError) as caught:
        write_plots(finished_fit, folder)

    assert contents(folder) == {f"{name}.png": b"old" for name in PLOTS}
    assert len(caught.value.problems) == 6
    for name in PLOTS:
        (problem,) = (line for line in caught.value.problems if line.startswith(f"{folder / name}.png: "))
        assert re.search(r": the disk is full .* bytes are free; the old file is intact$", problem)
    filler.unlink()
    assert len(write_plots(finished_fit, folder)) == 6


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_that_cannot_be_replaced_is_reported(
    finished_fit: FitResult, tmp_path: Path, hold: Callable[[Path], None], name: str
) -> None:
    """An output that is write-protected or open in another program is reported with a remedy and stays intact."""
    old = tmp_path / name
    old.write_bytes(b"old")
    hold(old)

    with pytest.raises(InputError) as caught:
        OUTPUTS[name](finished_fit, old)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{old}: cannot be replaced (")
    assert "another program has it open" in problem
    assert problem.endswith(INTACT)
    assert contents(tmp_path) == {name: b"old"}


def test_a_plot_that_cannot_be_replaced_is_reported(
    finished_fit: FitResult, tmp_path: Path, hold: Callable[[Path], None]
) -> None:
    """A plot that is open in a viewer is reported; all others are written."""
    (tmp_path / "alphas.png").write_bytes(b"old")
    hold(tmp_path / "alphas.png")

    with pytest.raises(InputError, match=r"alphas\.png: cannot be replaced") as caught:
        write_plots(finished_fit, tmp_path)

    assert len(caught.value.problems) == 1
    written = contents(tmp_path)
    assert len(written) == 6
    assert [name for name, content in written.items() if content == b"old"] == ["alphas.png"]


def test_a_file_in_place_of_the_folder_is_reported(finished_fit: FitResult, tmp_path: Path) -> None:
    """A file in place of the plots' folder is reported by name."""
    (tmp_path / "plots").write_bytes(b"old")

    with pytest.raises(InputError, match="the folder for the plots cannot be made"):
        write_plots(finished_fit, tmp_path / "plots")

    assert (tmp_path / "plots").read_bytes() == b"old"
