"""Incomplete downloads: zeros where other inputs have numbers."""

import json
import warnings

import pytest
import torch
from building import recipe_of
from safetensors.torch import load_file, save_file
from step_by_step import BLOCKS

from optimizer.checkpoints import is_zero, open_checkpoint, zeros_at_end
from optimizer.errors import BlockfitWarning
from optimizer.library import inspect_checkpoint
from optimizer.merging import CHUNK, merge

UNET = "model.diffusion_model."
OUT = f"{UNET}out.2.weight"
LARGE = f"{UNET}output_blocks.0.large.weight"


def break_off(path, share=0.5):
    """Keep the first `share` of a safetensors file's data, zero the rest, and return the names of the zero tensors."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    kept = start + int((len(content) - start) * share)
    path.write_bytes(content[:kept] + bytes(len(content) - kept))
    header = json.loads(content[8:start])
    return {name for name, entry in header.items() if start + entry["data_offsets"][0] >= kept}


def run(folder, alpha, *names, mode="weight_sum", dtype=torch.float32, **options):
    """Merge in one step, alpha a number or by block; return the tensors written and the warnings."""
    alphas = alpha if isinstance(alpha, dict) else dict.fromkeys(BLOCKS, alpha)
    a, b, c = (*names, None)[:3]
    recipe = recipe_of([{"name": "T", "mode": mode, "a": a, "b": b, "c": c, "alpha": alphas}], names)
    paths = {name: folder / f"{name}.safetensors" for name in names}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BlockfitWarning)
        merge(recipe, paths, folder / "out.safetensors", dtype=dtype, **options)
    return load_file(folder / "out.safetensors"), [str(warning.message) for warning in caught]


@pytest.fixture
def pair(tmp_path, write_sd1):
    """Write two checkpoints with a tensor of several chunks, and return their tensors."""
    large = torch.randn(3 * CHUNK + 5, generator=torch.Generator().manual_seed(3))
    return {
        "a": write_sd1(tmp_path / "a.safetensors", seed=1, overrides={LARGE: large}),
        "b": write_sd1(tmp_path / "b.safetensors", seed=2, overrides={LARGE: large + 1}),
    }


@pytest.mark.parametrize("half", ["a", "b"])
def test_half_a_file_is_one_warning(tmp_path, pair, half):
    """A source whose end is zeros merges as it is, and one warning counts its zero tensors and gives the cause."""
    path = tmp_path / f"{half}.safetensors"
    zero = {name for name in break_off(path, 0.98) if not name.endswith("position_ids")}
    assert len(zero) > 3

    found, (line,) = run(tmp_path, 0.25, "a", "b")

    stored = {name: load_file(tmp_path / f"{name}.safetensors") for name in "ab"}
    torch.testing.assert_close(found[OUT], stored["a"][OUT] * 0.75 + stored["b"][OUT] * 0.25)
    assert line.startswith(f"{path}: {len(zero)} tensors hold nothing but zeros where other inputs hold numbers, '")
    assert line.endswith("first; they reach to the end of the file, so its download was probably broken off: "
                         "download it again")  # fmt: skip


def test_copied_zeros_are_reported(tmp_path, pair, write_sd1):
    """Zeros of A in a block with alpha 0 are reported too, although B is not merged there."""
    write_sd1(tmp_path / "a.safetensors", seed=1, overrides={OUT: torch.zeros(4, 8, 3, 3)})

    found, messages = run(tmp_path, {"IN01": 0.5}, "a", "b")

    assert not found[OUT].any()
    (line,) = messages
    assert line == (
        f"{tmp_path / 'a.safetensors'}: a tensor holds nothing but zeros where other inputs hold numbers, {OUT!r} "
        "first; the file is probably damaged: download it again"
    )


def test_zeros_that_do_not_count_are_not_reported(tmp_path, pair, write_sd1):
    """Zeros in a block where the source has coefficient 0 are not reported."""
    write_sd1(tmp_path / "b.safetensors", seed=1, overrides={OUT: torch.zeros(4, 8, 3, 3)})

    _, messages = run(tmp_path, {"IN01": 0.5}, "a", "b")

    assert messages == []


@pytest.mark.parametrize("zero", ["b", "ab"])
def test_zeros_of_all_inputs_are_not_reported(tmp_path, write_sd1, zero):
    """A bias of zeros in all inputs is taken as trained; in only one input it is reported."""
    name = f"{UNET}out.2.bias"
    for seed, letter in enumerate("ab"):
        overrides = {name: torch.zeros(4)} if letter in zero else {}
        write_sd1(tmp_path / f"{letter}.safetensors", seed=seed, overrides=overrides)

    _, messages = run(tmp_path, 0.5, "a", "b")

    assert len(messages) == (zero == "b")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("place", [None, 0, 63, 64, CHUNK - 1, CHUNK, 3 * CHUNK + 4])
def test_one_number_prevents_the_warning(tmp_path, pair, write_sd1, dtype, place):
    """A single number other than 0 in a tensor of several chunks prevents the warning, in every dtype."""
    almost = torch.zeros(3 * CHUNK + 5)
    almost[CHUNK + 7] = -0.0
    if place is not None:
        almost[place] = 0.5
    write_sd1(tmp_path / "b.safetensors", seed=2, overrides={LARGE: almost.to(dtype)})

    _, messages = run(tmp_path, 0.5, "a", "b", threads=2)

    assert len(messages) == (place is None)


def test_zeros_in_channels_of_inpainting_are_not_reported(tmp_path, write_sd1):
    """Zeros in the channels that an inpainting model adds are not reported."""
    first = f"{UNET}input_blocks.0.0.weight"
    wide = torch.cat([torch.ones(8, 4, 3, 3), torch.zeros(8, 5, 3, 3)], dim=1)
    for name in ("a", "b"):
        write_sd1(tmp_path / f"{name}.safetensors", overrides={first: wide + (name == "b")})
    write_sd1(tmp_path / "c.safetensors")

    found, messages = run(tmp_path, 0.5, "a", "b", "c", mode="add_difference")

    assert found[first].shape == (8, 9, 3, 3)
    assert messages == []


def test_zeros_in_a_baked_vae_are_not_reported(tmp_path, pair, write_sd1):
    """A baked VAE of zeros is not reported: it is not compared with the sources' VAEs, which are not read."""
    save_file({name: torch.zeros_like(tensor) for name, tensor in pair["a"].items()
               if name.startswith("first_stage_model.")}, tmp_path / "vae.safetensors")  # fmt: skip

    _, messages = run(tmp_path, 0.5, "a", "b", vae=tmp_path / "vae.safetensors")

    assert messages == []


def test_is_zero_is_true_for_zeros_only():
    """`is_zero` is true for tensors of zeros only, and false for a tensor without elements."""
    assert is_zero(torch.zeros(3, 100))
    assert is_zero(-torch.zeros(3))
    assert is_zero(torch.zeros(200).to(torch.float8_e5m2))
    assert not is_zero(torch.zeros(0))
    assert not is_zero(torch.tensor([0.0] * 99 + [1e-45]))
    assert not is_zero(torch.tensor([float("nan")]))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_zeros_at_the_end_of_a_file_are_reported(tmp_path, write_sd1, suffix):
    """Zero tensors after the last number of a file are reported if a matrix is among them."""
    path = tmp_path / f"a{suffix}"
    tensors = write_sd1(path)
    with open_checkpoint(path) as checkpoint:
        merging = [name for name in checkpoint.tensors if checkpoint.layout.merges(name)]
        assert zeros_at_end(checkpoint) == ()
    single = next(name for name in merging if name.endswith(".weight"))
    zeros = {name: torch.zeros_like(tensors[name]) for name in (*merging[-4:], single)}
    assert any(tensor.dim() > 1 for tensor in zeros.values())
    write_sd1(path, overrides=zeros)
    with open_checkpoint(path) as checkpoint:
        assert zeros_at_end(checkpoint) == tuple(reversed(merging[-4:]))

    (at_end, elsewhere) = inspect_checkpoint(path).unusual

    assert at_end == (
        f"nothing but zeros in the last 4 tensors of the file, from {merging[-4]!r} on: its download was probably "
        "broken off; download it again"
    )
    assert elsewhere == f"nothing but zeros in {single!r}"


def test_a_bias_at_the_end_is_not_reported(tmp_path, write_sd1):
    """A bias of zeros at the end of a file is not reported."""
    last = {"model.diffusion_model.out.zz.bias": torch.zeros(2, dtype=torch.float16)}
    write_sd1(tmp_path / "a.safetensors", overrides=last)

    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert list(checkpoint.tensors)[-1] == next(iter(last))
        assert zeros_at_end(checkpoint) == ()
