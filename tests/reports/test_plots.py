"""Plots of a fit: their files, sizes and contents, with any names."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from optimizer.errors import InputError
from optimizer.reports.plots import write_plots
from optimizer.search import FitResult, Trial, TrialState


@pytest.fixture(scope="module")
def plots(finished_fit: FitResult, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The plots of the finished fit, written by another thread into a new folder."""
    settings = dict(mpl.rcParams)
    folder = tmp_path_factory.mktemp("plots") / "new" / "plots"
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write_plots, finished_fit, folder).result()
    assert dict(mpl.rcParams) == settings
    return written


def colours(path: Path) -> int:
    """Return the number of different colours in a picture."""
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(image.width * image.height) or ())


def test_every_plot_is_written(plots: list[Path]) -> None:
    """The folder contains one file per kind of plot and search, and nothing else."""
    assert [path.name for path in plots] == [
        "best-so-far.png",
        "similarity-per-block.png",
        "alphas.png",
        "similarity-against-alpha-one-each-first.png",
        "similarity-against-alpha-one-each-out-x_1-é漢.png",
        "similarity-against-alpha-together.png",
    ]
    assert sorted(plots) == sorted(plots[0].parent.iterdir())


def test_plots_show_something_at_the_expected_size(plots: list[Path]) -> None:
    """The PNG files have 150 dots per inch, enough size for their contents, and are not blank."""
    sizes = {}
    for path in plots:
        with Image.open(path) as image:
            sizes[path.name] = image.size
            assert image.format == "PNG"
            assert [round(dots) for dots in image.info["dpi"]] == [150, 150]
        assert colours(path) > 50
    # Three panels in two rows of two, each of at least three inches by two; 26 columns of at least a third of an inch,
    # in which a number of four digits can be read, and two rows. No side is beyond what a page shows.
    width, height = sizes["best-so-far.png"]
    assert 2 * 3 * 150 <= width <= 12 * 150
    assert 2 * 2 * 150 <= height <= 9 * 150
    width, height = sizes["alphas.png"]
    assert 26 * 50 <= width <= 26 * 150
    assert 2 * 50 <= height <= 5 * 150


def test_searches_with_similar_names_have_separate_files(finished_fit: FitResult, tmp_path: Path) -> None:
    """Names that differ only in case or in characters that a file name cannot contain have separate files."""
    search = finished_fit.searches[1]
    names = ("a/b", "A:b", "...")
    written = write_plots(
        replace(finished_fit, searches=tuple(replace(search, name=name) for name in names), scores=()), tmp_path
    )
    assert [path.name for path in written if "against" in path.name] == [
        "similarity-against-alpha-a-b.png",
        "similarity-against-alpha-A-b-2.png",
        "similarity-against-alpha-unnamed.png",
    ]


def test_failed_trials_are_marked(finished_fit: FitResult, tmp_path: Path) -> None:
    """A search without completed trials is drawn with its failed ones."""
    search = finished_fit.searches[0]
    failed = Trial(4, TrialState.FAILED, search.trials[0].alphas, error="ArithmeticError: no number")
    broken = replace(finished_fit, searches=(replace(search, trials=(failed,)),), scores=())
    written = write_plots(broken, tmp_path)

    assert [path.name for path in written] == ["best-so-far.png", "alphas.png"]
    with Image.open(written[0]) as image:
        vermilion = (np.asarray(image.convert("RGB")) == (0xD5, 0x5E, 0x00)).all(axis=2)
    assert vermilion.sum() > 20


def test_folder_that_cannot_be_made_is_named(finished_fit: FitResult, tmp_path: Path) -> None:
    """A file in place of the folder is reported by name and stays."""
    (tmp_path / "plots").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="plots"):
        write_plots(finished_fit, tmp_path / "plots")
    assert (tmp_path / "plots").read_text(encoding="utf-8") == "mine"
