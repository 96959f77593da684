"""Gram matrices of differences from a reference, in float64."""

from dataclasses import replace

import pytest
import torch
from watching import META, Watching

from optimizer.errors import BlockfitWarning, CheckpointError
from optimizer.events import CallbackEvents
from optimizer.families import load_layout
from optimizer.similarity import (
    grams_on_gpu,
    measure_grams,
    measure_statistics,
    open_comparison,
    statistics,
    statistics_on_gpu,
)
from optimizer.similarity.statistics import _Stage

LAYOUT = load_layout("sd1")
QUERY = "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_q.weight"
BIAS = "model.diffusion_model.output_blocks.2.1.conv.bias"


def gram_matrix(tensors, reference):
    """Return the products of a reference and of tensors' differences from it, by the stage that statistics use."""
    length = next(len(tensor) for tensor in (reference, *tensors) if tensor is not None)
    stage = _Stage(length, torch.float64)
    stage.add(0, reference)
    for row, tensor in enumerate(tensors, start=1):
        if tensor is not None:
            stage.add(row, tensor)
    return stage.gram(1 + len(tensors))


@pytest.mark.parametrize("length", [1, 255, 256, 257, 511, 512, 131071, 131072, 131073, 262400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products_are_exact(length, dtype):
    """The products of the reference and all differences are exact in float64 at every length.

    Missing tensors have zeros.
    """
    vectors = torch.randn(4, length, generator=torch.Generator().manual_seed(length)).to(dtype)
    exact = vectors.double()
    exact[1:] -= exact[0].clone()
    exact[2] = 0

    found = gram_matrix([vectors[1], None, vectors[3]], vectors[0])

    assert found.dtype == torch.float64
    assert torch.allclose(found, exact @ exact.T, rtol=1e-12, atol=1e-12 * length)


def test_products_without_a_reference_are_of_the_tensors():
    """Without a reference the tensors themselves are multiplied."""
    vectors = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))

    found = gram_matrix([vectors[0], vectors[1]], None)

    assert torch.allclose(found[1:, 1:], vectors.double() @ vectors.double().T, rtol=1e-12, atol=1e-12)
    assert float(found[0].abs().sum()) == 0


@pytest.mark.parametrize("length", [131071, 131072, 131073, 262144, 300001])
def test_long_tensors_are_summed_over_chunks(tmp_path, write_sd1, length):
    """A tensor longer than one chunk has the Gram matrix of all its differences from the base, to 1e-12."""
    random = torch.Generator().manual_seed(1)
    first = torch.randn(length, generator=random)
    values = {
        "base": first,
        "x": first + 0.01 * torch.randn(length, generator=random),
        "target": first + 0.01 * torch.randn(length, generator=random),
    }
    for name, value in values.items():
        write_sd1(tmp_path / f"{name}.safetensors", overrides={BIAS: value})
    paths = {name: tmp_path / f"{name}.safetensors" for name in values}
    sources = {"base": paths["base"], "x": paths["x"]}

    with open_comparison(LAYOUT, sources, paths["target"], base=paths["base"]) as comparison:
        statistics = measure_statistics(comparison, ["OUT02"])

    whole = {name: value.double() for name, value in values.items()}
    rows = torch.stack(
        [whole["base"], torch.zeros(length).double(), whole["x"] - whole["base"], whole["target"] - whole["base"]]
    )
    exact = rows @ rows.T
    found = statistics.gram[statistics.names.index(BIAS)]
    size = exact.diagonal().sqrt().clamp_min(1e-300)
    assert float(((found - exact).abs() / (size[:, None] * size[None]))[[0, 2, 3]][:, [0, 2, 3]].max()) < 1e-12
    assert not bool(found[1].any())


def test_merging_tensors_count(kin):
    """All merging tensors of the blocks count except the VAE's; `referenced` marks those that the base holds."""
    sources = {name: kin.paths[name] for name in ("base", "x", "y")}
    with open_comparison(LAYOUT, sources, kin.paths["target"], base=kin.paths["base"]) as comparison:
        statistics = measure_statistics(comparison, ["BASE", "OUT00"])

    assert {name for name, block in zip(statistics.names, statistics.blocks, strict=True) if block == "BASE"} == {
        name for name in kin.tensors["base"] if name.startswith("cond_stage_model.") and "position_ids" not in name
    }
    referenced = dict(zip(statistics.names, statistics.referenced.tolist(), strict=True))
    assert [name for name, held in referenced.items() if not held] == [kin.more]


@pytest.mark.parametrize("which", ["base", "x", "target"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(tmp_path, write_sd1, which, value):
    """NaN or Inf in any compared tensor is refused by file and tensor."""
    for n, name in enumerate(("base", "x", "target")):
        broken = {QUERY: torch.full((8, 8), value)} if name == which else {}
        write_sd1(tmp_path / f"{name}.safetensors", seed=n, overrides=broken)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "x", "target")}
    sources = {name: paths[name] for name in ("base", "x")}

    with open_comparison(LAYOUT, sources, paths["target"], base=paths["base"]) as comparison:
        with pytest.raises(CheckpointError) as caught:
            measure_statistics(comparison, ["OUT06"])
        measure_statistics(comparison, ["OUT07"])

    assert caught.value.problems[0].startswith(f"{paths[which]}: tensor {QUERY!r} holds NaN or Inf")


def test_unfit_target_is_refused(tmp_path, write_sd1):
    """A target with another shape, or without tensors of a block, is refused by file, tensor and block."""
    write_sd1(tmp_path / "x.safetensors")
    write_sd1(tmp_path / "narrow.safetensors", overrides={QUERY: torch.zeros(4, 4)})
    write_sd1(tmp_path / "bare.safetensors", text_encoder=False)
    sources = {"x": tmp_path / "x.safetensors"}

    with (
        open_comparison(LAYOUT, sources, tmp_path / "narrow.safetensors") as comparison,
        pytest.raises(CheckpointError) as shape,
    ):
        measure_statistics(comparison, ["OUT06"])
    with (
        open_comparison(LAYOUT, sources, tmp_path / "bare.safetensors") as comparison,
        pytest.raises(CheckpointError) as nothing,
    ):
        measure_statistics(comparison, ["BASE", "OUT06"])

    assert all(text in str(shape.value) for text in ("narrow", repr(QUERY), "[4, 4]", "[8, 8]"))
    assert "bare.safetensors: contains no tensor of BASE" in str(nothing.value)


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, write_sd1, sd1_tensors):
    """Return files of every dtype, one a .ckpt that lacks a tensor, with a tensor longer than a segment."""
    folder, base = tmp_path_factory.mktemp("mixed"), sd1_tensors(seed=0)
    options = {
        "base": {"distance": 0.0},
        "x": {"seed": 1, "dtype": torch.float16},
        "y": {"seed": 2, "dtype": torch.bfloat16, "drop": [QUERY]},
        "z": {"seed": 3, "dtype": torch.float64},
        "target": {"seed": 4, "dtype": torch.float16},
    }
    paths = {name: folder / f"{name}.{'ckpt' if name == 'y' else 'safetensors'}" for name in options}
    for number, (name, option) in enumerate(options.items()):
        long = torch.randn(9000, generator=torch.Generator().manual_seed(number)).to(option.get("dtype"))
        write_sd1(paths[name], around=base, **option, overrides={BIAS: long})
    return paths


@pytest.mark.parametrize("base", ["base", None])
@pytest.mark.parametrize(("segment", "piece"), [(1 << 20, 4096), (4096, 64), (4096, 4096)])
def test_gpu_matrices_equal_those_of_the_cpu(mixed, monkeypatch, base, segment, piece):
    """The GPU's matrices equal the CPU's to 1e-12 of each product, for any dtypes; threads change no bit."""
    monkeypatch.setattr(statistics_on_gpu, "_SEGMENT", segment)
    monkeypatch.setattr(statistics_on_gpu, "_PIECE", piece)
    sources = {name: mixed[name] for name in ("base", "x", "y", "z")}
    calls = []
    with open_comparison(LAYOUT, sources, mixed["target"], base=mixed.get(base)) as opened:
        comparison = replace(opened, events=CallbackEvents(lambda what, done, total: calls.append((what, done, total))))
        parts = comparison.scored_parts(LAYOUT.blocks)
        exact = measure_grams(opened, parts)
        found = grams_on_gpu(comparison, parts, torch.device("cpu"), threads=1)
        again = grams_on_gpu(opened, parts, torch.device("cpu"), threads=3)

    size = exact.diagonal(dim1=1, dim2=2).sqrt()
    assert float(((found - exact).abs() / (size[:, :, None] * size[:, None]).clamp_min(1e-300)).max()) < 1e-12
    assert torch.equal(found == 0, exact == 0)
    assert torch.equal(found, again)
    # The base is one of the sources, and its file counts once.
    size = sum(
        torch.Size(part.shape).numel() * checkpoint.tensors[part.name].dtype.itemsize
        for part in parts
        for checkpoint in (*opened.sources.values(), opened.target)
        if part.held_by(checkpoint)
    )
    assert calls[-1] == ("reading the checkpoints", size, size)


def test_each_segment_is_sent_to_the_gpu_once(mixed):
    """A segment of all files is one copy and a few operations; all matrices come back in one copy."""
    sources = {name: mixed[name] for name in ("base", "x", "y", "z")}
    with open_comparison(LAYOUT, sources, mixed["target"]) as comparison, pytest.MonkeyPatch.context() as patch:
        # In this thread, where operations can be counted.
        patch.setattr(statistics_on_gpu, "ThreadPoolExecutor", InThisThread)
        parts = comparison.scored_parts(["OUT02", "OUT06"])
        with Watching() as gpu:
            grams_on_gpu(comparison, parts, META)

    assert gpu.to_gpu == len(parts)
    assert gpu.to_host == 1
    # A zero for the padding, four dtypes converted to float64, the differences, the products and their sum.
    assert sum(gpu.operations.values()) <= len(parts) * (1 + 4 + 1 + 2)


class InThisThread:
    """Stand-in for a pool of threads that works in the calling thread."""

    def __init__(self, count, name):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, values):
        """Apply the function to each value."""
        return map(function, values)

    def shutdown(self, *, cancel_futures):
        """Do nothing: no work runs on."""


def test_cpu_repeats_the_pass_of_a_full_gpu(kin, monkeypatch):
    """If the GPU's memory does not suffice, the result is the CPU's bit for bit, with a warning of one line."""
    sources = {name: kin.paths[name] for name in ("base", "x", "y")}

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(statistics, "grams_on_gpu", full)
    with open_comparison(LAYOUT, sources, kin.paths["target"]) as comparison:
        expected = measure_statistics(comparison, ["OUT02"])
        with pytest.warns(BlockfitWarning, match="inner products of the checkpoints: the CPU computes it"):
            found = measure_statistics(replace(comparison, device=torch.device("cuda")), ["OUT02"])

    assert torch.equal(found.gram, expected.gram)


def test_gpu_error_leaves_the_threads(kin, monkeypatch):
    """The error that leaves the threads is the GPU's own, which moves the pass to the CPU."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 MiB.")

    def fails(*_):
        raise full

    monkeypatch.setattr(statistics_on_gpu._Buffer, "of", fails)
    with open_comparison(LAYOUT, {"x": kin.paths["x"]}, kin.paths["target"]) as comparison:
        parts = comparison.scored_parts(["OUT02"])
        with pytest.raises(torch.OutOfMemoryError):
            grams_on_gpu(comparison, parts, torch.device("cpu"), threads=2)


def test_file_that_changes_during_a_gpu_pass_is_refused(kin, tmp_path, monkeypatch):
    """A file that changes is refused by name, as on the CPU, and no thread is left."""
    changing = tmp_path / "x.safetensors"
    changing.write_bytes(kin.paths["x"].read_bytes())
    with open_comparison(LAYOUT, {"x": changing}, kin.paths["target"]) as comparison:
        parts = comparison.scored_parts(["OUT02"])
        changing.write_bytes(b"something else")
        with pytest.raises(CheckpointError, match=r"x\.safetensors: was changed while it was being read"):
            grams_on_gpu(comparison, parts, torch.device("cpu"), threads=2)


def test_blocks_that_the_target_lacks_are_named(tmp_path, write_sd1):
    """Blocks that the target lacks are named in one line, as a list."""
    write_sd1(tmp_path / "x.safetensors")
    layers = [
        f"model.diffusion_model.{name}" for name in ("input_blocks.1.0.", "input_blocks.2.0.", "output_blocks.0.")
    ]
    blocks = [f"model.diffusion_model.input_blocks.{n}.1." for n in (1, 2)]
    write_sd1(tmp_path / "bare.safetensors", drop=[*layers, *blocks])

    with (
        open_comparison(LAYOUT, {"x": tmp_path / "x.safetensors"}, tmp_path / "bare.safetensors") as comparison,
        pytest.raises(CheckpointError) as caught,
    ):
        measure_statistics(comparison, LAYOUT.blocks)

    (problem,) = caught.value.problems
    assert problem.endswith(
        "contains no tensor of IN01-IN02,OUT00 that a source contains too, so IN01-IN02,OUT00 cannot be scored"
    )
