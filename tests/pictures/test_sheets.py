"""Contact sheets: pictures, labels, captions and titles, each in its place and without overlap."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageChops

from optimizer.pictures import contact_sheet

RED = Image.new("RGB", (32, 32), "red")


def parts(sheet: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of red pictures and of grey letters on a sheet, each [height, width]."""
    pixels = np.asarray(sheet).astype(int)
    is_picture = pixels[..., 0] > pixels[..., 1]
    return is_picture, (pixels < 250).any(2) & ~is_picture


def lines(ink: np.ndarray) -> int:
    """Return the number of lines of text in a mask: runs of rows with ink, at least 2 pixels apart."""
    rows = np.flatnonzero(ink.any(1))
    return int((np.diff(rows, prepend=-10) > 2).sum())


@pytest.mark.parametrize("columns", [["one", "two"], ["a handwritten seven", "extraordinarily-long-words wrap"]])
def test_sheet_holds_pictures_and_labels(columns: Sequence[str]) -> None:
    """A sheet has room for pictures and labels; labels touch no picture, no other label and no edge."""
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    sheet = contact_sheet({"target": [grey, grey], "without search": [grey, grey]}, columns, 3)

    pixels = np.asarray(sheet)
    is_picture = (pixels == 128).all(2)
    is_ink = (pixels < 250).any(2) & ~is_picture
    rows, across = np.flatnonzero(is_picture.any(1)), np.flatnonzero(is_picture.any(0))
    starts = across[np.flatnonzero(np.diff(across, prepend=-2) > 1)]
    assert is_picture.sum() == 4 * 96 * 96
    assert len(starts) == 2
    assert sheet.width >= across[-1] + 8
    # Row labels end left of the pictures, column labels above them; neither touches an edge.
    assert not is_ink[rows[0] :, across[0] - 4 :].any()
    assert not is_ink[rows[0] - 4 : rows[0]].any()
    assert not is_ink[0].any()
    assert not is_ink[:, [0, 1, -1]].any()
    # No column label reaches into the gap between the two columns.
    between = slice(starts[1] - 8, starts[1]) if columns[0] == "one" else slice(sheet.width - 8, sheet.width)
    assert not is_ink[:, between].any()


def test_sheet_refuses_incomplete_tables() -> None:
    """Rows with too few pictures, pictures of several sizes, no pictures and a scale of 0 are refused by name."""
    small, large = Image.new("RGB", (8, 8)), Image.new("RGB", (16, 16))

    with pytest.raises(ValueError, match="row 'target' has 1 pictures for 2 columns"):
        contact_sheet({"target": [small]}, ["one", "two"], 1)
    with pytest.raises(ValueError, match="one size"):
        contact_sheet({"target": [small, large]}, ["one", "two"], 1)
    with pytest.raises(ValueError, match="no picture"):
        contact_sheet({}, [], 1)
    with pytest.raises(ValueError, match="scale must be at least 1"):
        contact_sheet({"target": [small]}, ["one"], 0)


def test_sheet_shows_the_pictures_enlarged() -> None:
    """The sheet shows each picture enlarged."""
    half = Image.new("RGB", (8, 8), "white")
    half.paste("black", (0, 0, 4, 8))
    sheet = contact_sheet({"a": [half]}, ["b"], 4)
    shown = sheet.crop((sheet.width - 8 - 32, sheet.height - 8 - 32, sheet.width - 8, sheet.height - 8))

    expected = half.resize((32, 32), Image.Resampling.BICUBIC)
    assert ImageChops.difference(shown, expected).getbbox() is None


def test_captions_and_title_are_in_their_places() -> None:
    """Captions are below their own pictures and the title above the table; texts do not touch and are not cut."""
    rows = {"one": [RED, RED], "two": [RED, RED]}
    plain = contact_sheet(rows, ["a", "b"], 4)
    sheet = contact_sheet(
        rows, ["a", "b"], 4, captions={"one": ["", "latent 0.123\npixel 0.4"]}, title="First line.\nSecond line."
    )

    is_picture, is_ink = parts(sheet)
    assert sheet.width == plain.width
    assert sheet.height == plain.height + 4 * 20 + 16
    down = np.flatnonzero(is_picture.any(1))
    starts = down[np.flatnonzero(np.diff(down, prepend=-2) > 1)]
    across = np.flatnonzero(is_picture.any(0))
    second = across[np.flatnonzero(np.diff(across, prepend=-2) > 1)][1]
    below_first = slice(starts[0] + 128, starts[1])
    assert lines(is_ink[below_first, second - 4 :]) == 2
    assert not is_ink[below_first, : second - 4].any()
    assert not is_ink[starts[1] + 128 :].any()
    assert lines(is_ink[: starts[0]]) == 3
    assert not is_ink[[0, 1, -1, -2]].any()
    assert not is_ink[:, [0, 1, -1, -2]].any()


@pytest.mark.parametrize("label", ["many words " * 30, "word" * 80, "some-long_file.name/" * 12, "漢字仮名" * 40])
def test_long_labels_are_broken(label: str) -> None:
    """Labels, headings and captions that are too wide take several lines; none reaches a picture or an edge."""
    sheet = contact_sheet({label: [RED], "short": [RED]}, [label], 4, captions={label: [label[:40]]}, title=label)

    is_picture, is_ink = parts(sheet)
    across, down = np.flatnonzero(is_picture.any(0)), np.flatnonzero(is_picture.any(1))
    assert sheet.width < 600
    # Only letters surround the pictures' column, with a gap beside it.
    assert is_picture.sum() == 2 * 128 * 128
    assert not is_ink[down[0] :, across[0] - 3 : across[0]].any()
    assert lines(is_ink[down[0] :, : across[0]]) > 3
    assert lines(is_ink[: down[0]]) > 3
    assert not is_ink[[0, 1, -1, -2]].any()
    assert not is_ink[:, [0, 1, -1, -2]].any()


def test_endless_label_is_cut_off() -> None:
    """A label of thousands of words takes 24 lines; its next paragraph is still shown."""
    endless = contact_sheet({"word " * 5000 + "\nseed 1": [RED]}, ["a"], 1)
    shorter = contact_sheet({"word " * 4000 + "\nseed 1": [RED]}, ["a"], 1)
    without = contact_sheet({"word " * 4000: [RED]}, ["a"], 1)

    assert ImageChops.difference(endless, shorter).getbbox() is None
    assert endless.height == without.height + 20


def test_captions_must_line_up() -> None:
    """A row with too few captions is refused by name."""
    with pytest.raises(ValueError, match="row 'a' has 1 captions for 2 columns"):
        contact_sheet({"a": [RED, RED]}, ["one", "two"], 1, captions={"a": ["x"]})
