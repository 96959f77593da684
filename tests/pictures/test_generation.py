"""Pictures from the demo's trained checkpoints."""

import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from optimizer.errors import CheckpointError, InputError
from optimizer.families import pipeline_folder
from optimizer.pictures import generate
from optimizer.pictures.drawing import check_steps
from optimizer.pictures.opening import open_scheduler

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
    """Return the mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def labels_like(pictures: Sequence[Image.Image]) -> list[int]:
    """Return, for each picture, the digit whose real examples have the nearest mean, at 8 x 8 and unit length."""
    digits = load_digits()
    means = np.stack([digits.data[digits.target == digit].mean(0) for digit in range(10)])
    # The demo's digits fill the middle 24 x 24 pixels: 3 x 3 pixels for each pixel of the real examples.
    middles = np.stack([np.asarray(picture.convert("L"), float)[4:28, 4:28] for picture in pictures])
    drawn = middles.reshape(-1, 8, 3, 8, 3).mean((2, 4)).reshape(-1, 64)
    likeness = (drawn / np.linalg.norm(drawn, axis=1)[:, None]) @ (means / np.linalg.norm(means, axis=1)[:, None]).T
    return list(likeness.argmax(1))


def test_base_draws_the_digits_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    """At least 8 of the base's 10 digits are nearest to the real digits of their kind, and nothing is printed."""
    pictures = generate(BASE, prompts=[f"a digit {name}" for name in DIGITS], seeds=[0])

    right = sum(label == digit for digit, label in enumerate(labels_like(pictures)))
    assert right >= 8
    assert {picture.size for picture in pictures} == {(32, 32)}
    assert capfd.readouterr() == ("", "")


def test_seed_decides_the_picture() -> None:
    """The same prompt and seed give the same picture, another seed another picture; prompts vary slowest."""
    first = generate(BASE, prompts=["a digit three", "a digit eight"], seeds=[1, 2], steps=4)
    again = generate(BASE, prompts=["a digit three", "a digit eight"], seeds=[1, 2], steps=4)
    eight = generate(BASE, prompts=["a digit eight"], seeds=[1], steps=4)

    assert [np.asarray(picture).tolist() for picture in first] == [np.asarray(picture).tolist() for picture in again]
    assert difference(first[0], first[1]) > 5
    assert difference(first[2], eight[0]) < 1


def test_checkpoint_without_vae_borrows_one() -> None:
    """A file without VAE is refused with advice, and draws with another file's VAE."""
    with pytest.raises(CheckpointError, match=r"has no VAE .*`vae_from=FILE`"):
        generate(WITHOUT_VAE, prompts=["one"], seeds=[0], steps=1)

    assert len(generate(WITHOUT_VAE, prompts=["one"], seeds=[0], steps=1, vae_from=BASE)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("remove", "has 685 model.diffusion_model.* tensors, but the unet needs 686"),
        ("rename", "the unet's conv_out.bias is missing, or"),
        ("widen", "does not fit the pipeline configuration 'digits'"),
        ("truncate", "truncated"),
        ("delete", "no such file"),
    ],
)
def test_unfit_checkpoint_is_refused(tmp_path: Path, change: str, message: str) -> None:
    """A file that lacks a tensor, has another shape, is cut short or is missing is refused, not drawn from."""
    path = tmp_path / "unfit.safetensors"
    tensors = load_file(BASE)
    if change == "remove":
        del tensors["model.diffusion_model.output_blocks.5.1.proj_in.bias"]
    if change == "rename":
        tensors["model.diffusion_model.no_such.bias"] = tensors.pop("model.diffusion_model.out.2.bias")
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


def test_steps_begin_in_noise() -> None:
    """Numbers of steps at which Stable Diffusion's sampler would not begin near level 999 are refused.

    Its first time step is (n - 1) * (1000 // n) + 1. The demo's sampler always begins at 999.
    """
    refused = set()
    for steps in range(1, 1001):
        first = (steps - 1) * (1000 // steps) + 1
        scheduler = open_scheduler(pipeline_folder("sd1"))
        try:
            check_steps(scheduler, steps)
        except InputError:
            refused.add(steps)
        else:
            scheduler.set_timesteps(steps)
            assert int(scheduler.timesteps[0]) == first <= 999
            assert first >= 899 - 1000 / steps

    assert refused >= {201, 224, 251, 299, 334, 400, 448, 501, 750, 897, 1000}
    assert not refused & {*range(1, 112), 120, 150, 200, 250, 333, 500, 999}
    for steps in (1, 201, 1000):
        check_steps(open_scheduler(pipeline_folder("digits")), steps)
    with pytest.raises(
        InputError, match=r"received 1000; the sampler would not begin in pure noise; must be 999, for example"
    ):
        check_steps(open_scheduler(pipeline_folder("sd1")), 1000)
    with pytest.raises(InputError, match=r"received 210; .*; must be 200 or 225, for example"):
        check_steps(open_scheduler(pipeline_folder("sd1")), 210)


def test_steps_must_be_positive() -> None:
    """Zero steps are refused by name before any file is opened."""
    with pytest.raises(ValueError, match="steps must be at least 1, received 0"):
        generate(Path("missing"), prompts=["one"], seeds=[0], steps=0)
