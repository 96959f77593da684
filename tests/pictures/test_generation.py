"""Pictures from the demo's trained checkpoints, and the sheets that show them."""

import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from optimizer.errors import CheckpointError
from optimizer.pictures import contact_sheet, generate

MODELS = Path(__file__).parents[2] / "studies" / "demo" / "models"
BASE = MODELS / "base.safetensors"
WITHOUT_VAE = MODELS / "outline.safetensors"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def difference(first: Image.Image, second: Image.Image) -> float:
    """The mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def labels_like(pictures: Sequence[Image.Image]) -> list[int]:
    """For each picture the digit whose real examples have the nearest mean, both seen at 8 x 8 and unit length."""
    digits = load_digits()
    means = np.stack([digits.data[digits.target == digit].mean(0) for digit in range(10)])
    # The demo's digits fill the middle 24 x 24 pixels: three pixels for each one of the real examples.
    middles = np.stack([np.asarray(picture.convert("L"), float)[4:28, 4:28] for picture in pictures])
    drawn = middles.reshape(-1, 8, 3, 8, 3).mean((2, 4)).reshape(-1, 64)
    likeness = (drawn / np.linalg.norm(drawn, axis=1)[:, None]) @ (means / np.linalg.norm(means, axis=1)[:, None]).T
    return list(likeness.argmax(1))


def test_base_draws_the_digits_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    """Most of the base's pictures of ten digits are nearest to the real digits of that kind, and nothing is printed."""
    pictures = generate(BASE, prompts=[f"a digit {name}" for name in DIGITS], seeds=[0])

    right = sum(label == digit for digit, label in enumerate(labels_like(pictures)))
    assert right >= 8
    assert {picture.size for picture in pictures} == {(32, 32)}
    assert capfd.readouterr() == ("", "")


def test_seed_decides_the_picture() -> None:
    """The same prompt and seed give the same picture again, another seed gives another one, prompts come first."""
    first = generate(BASE, prompts=["a digit three", "a digit eight"], seeds=[1, 2], steps=4)
    again = generate(BASE, prompts=["a digit three", "a digit eight"], seeds=[1, 2], steps=4)
    eight = generate(BASE, prompts=["a digit eight"], seeds=[1], steps=4)

    assert [np.asarray(picture).tolist() for picture in first] == [np.asarray(picture).tolist() for picture in again]
    assert difference(first[0], first[1]) > 5
    assert difference(first[2], eight[0]) < 1


def test_checkpoint_without_vae_borrows_one() -> None:
    """A file without VAE is refused with advice, and draws with the VAE of another file."""
    with pytest.raises(CheckpointError, match=r"has no VAE .*vae_from"):
        generate(WITHOUT_VAE, prompts=["one"], seeds=[0], steps=1)

    assert len(generate(WITHOUT_VAE, prompts=["one"], seeds=[0], steps=1, vae_from=BASE)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("remove", "has 685 model.diffusion_model.* tensors, unet needs 686"),
        ("widen", "does not fit the pipeline configuration 'digits'"),
        ("truncate", "cannot be read"),
        ("delete", "cannot be read"),
    ],
)
def test_unfit_checkpoint_is_refused(tmp_path: Path, change: str, message: str) -> None:
    """A file that lacks a tensor, has another shape, is cut short or missing is refused, never drawn from by chance."""
    path = tmp_path / "unfit.safetensors"
    tensors = load_file(BASE)
    if change == "remove":
        del tensors["model.diffusion_model.output_blocks.5.1.proj_in.bias"]
    if change == "widen":
        tensors["model.diffusion_model.out.2.weight"] = torch.zeros(4, 320, 3, 3)
    save_file(tensors, path)
    if change == "truncate":
        path.write_bytes(path.read_bytes()[:-1000])
    if change == "delete":
        path.unlink()

    with pytest.raises(CheckpointError) as caught:
        generate(path, prompts=["one"], seeds=[0], steps=1)

    assert message in str(caught.value)


def test_steps_must_be_positive() -> None:
    """Zero steps are refused by name before anything is opened."""
    with pytest.raises(ValueError, match="steps must be at least 1, received 0"):
        generate(Path("missing"), prompts=["one"], seeds=[0], steps=0)


@pytest.mark.parametrize("columns", [["one", "two"], ["a handwritten seven", "extraordinarily-long-words wrap"]])
def test_sheet_holds_pictures_and_labels(columns: Sequence[str]) -> None:
    """A sheet has the pictures' sizes plus room for labels, and labels touch no picture, other label or edge."""
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
    # Row labels end before the pictures begin, column labels above them; both keep off the edges.
    assert not is_ink[rows[0] :, across[0] - 4 :].any()
    assert not is_ink[rows[0] - 4 : rows[0]].any()
    assert not is_ink[0].any()
    assert not is_ink[:, [0, 1, -1]].any()
    # Between the two columns there is a gap that no column label reaches into.
    between = slice(starts[1] - 8, starts[1]) if columns[0] == "one" else slice(sheet.width - 8, sheet.width)
    assert not is_ink[:, between].any()


def test_sheet_refuses_what_does_not_line_up() -> None:
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
    """What the sheet shows of a picture is that picture, enlarged."""
    half = Image.new("RGB", (8, 8), "white")
    half.paste("black", (0, 0, 4, 8))
    sheet = contact_sheet({"a": [half]}, ["b"], 4)
    shown = sheet.crop((sheet.width - 8 - 32, sheet.height - 8 - 32, sheet.width - 8, sheet.height - 8))

    expected = half.resize((32, 32), Image.Resampling.BICUBIC)
    assert ImageChops.difference(shown, expected).getbbox() is None
