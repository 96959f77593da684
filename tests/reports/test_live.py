"""The live table of a running fit."""

import io

import pytest
from rich.console import Console

from optimizer.reports import LiveFit
from optimizer.search import SearchProgress

BLOCKS = ["BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))]
SIMILARITIES = {block: 0.9 + 0.004 * position for position, block in enumerate(BLOCKS)}


def progress(search="outputs/TEMP1", done=33, *, workers=1, best=0.95, blocks=SIMILARITIES, left=3600.0):
    return SearchProgress(search, search.split("/")[-1], "attention", done, 60, best, blocks, 0.0471, left, workers)


@pytest.fixture
def drawn():
    """Return the lines that a window of this size and encoding shows after these reports."""

    def drawn(*reports, width=100, height=40, encoding="utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        table = LiveFit()
        for report in reports:
            table.show(report)
        console = Console(file=stream, width=width, height=height, legacy_windows=False)
        console.print(table)
        stream.flush()
        return stream.buffer.getvalue().decode(encoding).splitlines()

    return drawn


def test_every_search_has_a_row(drawn):
    """Every search has a row with its step, trials, budget, best similarity and time."""
    lines = drawn(progress("inputs/FIRST", 60, best=0.9), progress(), width=120)

    rows = [line.replace("│", " ").split() for line in lines if "attention" in line]
    assert rows[0] == ["inputs/FIRST", "FIRST", "attention", "60/60", "90.0000%", "0.047", "done"]
    assert rows[1][:6] == ["outputs/TEMP1", "TEMP1", "attention", "33/60", "95.0000%", "0.047"]


def test_several_workers_have_a_column(drawn):
    """The number of workers has a column if a search has more than one."""
    assert not any("workers" in line for line in drawn(progress()))
    assert any("workers" in line for line in drawn(progress(workers=3)))


def test_every_block_has_a_bar(drawn):
    """Every scored block has its similarity and a bar; the lowest fills a fifth, 100 % the whole bar."""
    lines = drawn(progress(), width=55, height=60, encoding="ascii")

    bars = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] and line.split()[0] in BLOCKS}
    assert {block: f"{100 * value:.4f}%" for block, value in SIMILARITIES.items()} == {
        block: cells[1] for block, cells in bars.items()
    }
    assert "Similarity by block, bars from 87.5 % to 100 %:" in lines
    # 90 % fills a fifth of twelve letters, 100 % (OUT11) all of them.
    assert bars["BASE"][0] == "##.........."
    assert bars["OUT11"][0] == "############"


@pytest.mark.parametrize(("width", "height"), [(30, 12), (40, 24), (60, 10), (80, 24), (120, 50), (12, 3)])
@pytest.mark.parametrize("encoding", ["utf-8", "cp932"])
@pytest.mark.parametrize("left", [60.0, 100_000.0])  # until today, most of the time, and until another day
def test_the_table_fits_the_window(drawn, width, height, encoding, left):
    """Twelve searches with long names fit the window in height and width."""
    long = "outputs/a step with a name that is far too long for any window, however wide it may be"
    lines = drawn(
        *(progress(f"outputs/STEP{n}", 60) for n in range(11)), progress(long, left=left), width=width, height=height,
        encoding=encoding,
    )  # fmt: skip

    assert max(len(line) for line in lines) <= width
    assert len(lines) < max(height, 7)
    # The trials of the running search are shown if any row fits.
    assert any("33/60" in line for line in lines) or width < 20


def test_the_table_is_ascii_on_other_consoles(drawn):
    """A console with another encoding shows only letters of that encoding."""
    assert all(line.isascii() for line in drawn(progress(), encoding="cp949"))


@pytest.mark.parametrize("blocks", [{}, {"OUT03": float("nan")}, {"OUT03": 1.0}, {"OUT03": -1.0, "OUT04": 1.0}])
def test_any_similarity_can_be_drawn(drawn, blocks):
    """Missing, perfect and opposite similarities are drawn."""
    lines = drawn(progress(blocks=blocks, best=None))

    assert any("33/60" in line for line in lines)


def test_no_table_is_drawn_before_the_first_search(drawn):
    """Before the first search no table is drawn."""
    assert drawn() == []


def test_hostile_names_stay_text(drawn):
    """A name with control characters or rich's markup is shown literally."""
    lines = drawn(progress("\x1b[2Jout/[red]TEMP"), width=120)

    assert any(r"\x1b[2Jout/[red]TEMP" in line for line in lines)
