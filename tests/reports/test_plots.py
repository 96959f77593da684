"""Plots of a fit: their files, sizes and contents, with any names."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from optimizer.errors import InputError
from optimizer.reports.palette import LIGHT
from optimizer.reports.plots import figures, write_plots
from optimizer.search import FitResult, Trial, TrialState
from optimizer.studies import Study


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


def legend(figure: Figure) -> list[str]:
    """Return the texts of a figure's legend."""
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def without_statistics(study: Study, folder: Path) -> Study:
    """Return a study whose folder holds no statistics."""
    return replace(study, folder=folder)


def test_blocks_have_their_known_curves_and_ceilings(finished_fit: FitResult) -> None:
    """A panel by `delta` has a line of 101 points through its best trial, below the ceiling, and a legend of both."""
    figure = dict(figures(finished_fit))["similarity-against-alpha-together"]
    best = finished_fit.searches[2].best
    assert best is not None

    assert {"similarity along this alpha", "ceiling: the best of any merge of the sources"} <= set(legend(figure))
    assert len(figure.axes) == 4
    for axes, (alpha, block) in zip(
        figure.axes,
        [("first.OUT03", "OUT03"), ("first.OUT04", "OUT04"), ("first.OUT05", "OUT05"), (None, None)],
        strict=True,
    ):
        curve, ceiling = (
            next(line for line in axes.lines if len(line.get_xdata()) == count and line.get_linestyle() == style)
            for count, style in ((101, "-"), (2, "--"))
        )
        assert max(curve.get_ydata()) <= ceiling.get_ydata()[0] + 1e-9
        if alpha is not None:
            found = dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True))
            assert found[best.alphas[alpha]] == pytest.approx(100 * best.block_scores[block], abs=1e-9)


def test_without_statistics_trials_have_an_envelope(finished_fit: FitResult, tmp_path: Path) -> None:
    """Without statistics, and by `attention`, no trial lies above the line that joins the best of them; it says so."""
    bare = replace(finished_fit, study=without_statistics(finished_fit.study, tmp_path))
    for found, name in (
        (bare, "similarity-against-alpha-together"),
        (finished_fit, "similarity-against-alpha-one-each-first"),
    ):
        figure = dict(figures(found))[name]

        assert "upper envelope of the trials" in legend(figure)
        assert not [text for text in legend(figure) if "ceiling" in text]
        assert any("upper envelope" in text.get_text() for text in figure.texts)
        for axes in figure.axes:
            (envelope,) = (line for line in axes.lines if line.get_linestyle() == ":")
            (dots,) = (line for line in axes.lines if line.get_marker() == "o")
            edge = np.interp(dots.get_xdata(), envelope.get_xdata(), envelope.get_ydata())
            # At one alpha the envelope is its highest trial.
            highest = {x: max(y for at, y in zip(*dots.get_data(), strict=True) if at == x) for x in dots.get_xdata()}
            assert all(highest[x] <= y + 1e-9 for x, y in zip(dots.get_xdata(), edge, strict=True))


def test_panels_of_a_figure_have_the_same_axis(finished_fit: FitResult) -> None:
    """All panels of similarity against alpha begin and end at the same fixed similarities; alphas have their range."""
    for name, figure in figures(finished_fit):
        if "against-alpha" in name:
            (span,) = {axes.get_ylim() for axes in figure.axes}
            low = span[0] + 0.06 / 1.19 * (span[1] - span[0])
            assert round(low, 6) in {-100, 0, 50, 90, 99, 99.9, 99.99}
            assert [axes.get_xlim() for axes in figure.axes] == [pytest.approx((-0.04, 1.04))] * len(figure.axes)


def test_plots_have_the_colours_of_the_report(finished_fit: FitResult) -> None:
    """Every line of every plot has a colour of the palette that the report's stylesheet is made from."""
    known = {to_hex(colour) for colour in LIGHT.values() if colour.startswith("#")}
    lines = [line for _, figure in figures(finished_fit) for axes in figure.axes for line in axes.lines]

    assert lines
    assert {to_hex(line.get_color()) for line in lines} <= known


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
        crossed = (np.asarray(image.convert("RGB")) == (0xC2, 0x4A, 0x00)).all(axis=2)
    assert crossed.sum() > 20


def test_folder_that_cannot_be_made_is_named(finished_fit: FitResult, tmp_path: Path) -> None:
    """A file in place of the folder is reported by name and stays."""
    (tmp_path / "plots").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="plots"):
        write_plots(finished_fit, tmp_path / "plots")
    assert (tmp_path / "plots").read_text(encoding="utf-8") == "mine"
