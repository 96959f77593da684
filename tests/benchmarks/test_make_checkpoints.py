"""The benchmark's checkpoints have the structure of Stable Diffusion 1.5; benchmarks run through on small ones."""

import json
import math
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from optimizer.checkpoints import open_checkpoint
from optimizer.families import load_layout

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]
SCRIPTS = ROOT / "studies" / "benchmarks"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script `make_checkpoints.py` as a module."""
    import importlib.util

    found = importlib.util.spec_from_file_location("make_checkpoints", SCRIPTS / "make_checkpoints.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        found.loader.exec_module(module)
    return module


def test_full_size_shapes_count_as_stable_diffusion_does(maker: ModuleType) -> None:
    """UNet, text encoder and VAE have the published numbers of tensors and parameters."""
    shapes = maker.FAMILIES["sd1"](1)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    by_prefix = {
        prefix: [size for name, size in sizes.items() if name.startswith(prefix)]
        for prefix in ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")
    }
    assert {prefix: len(found) for prefix, found in by_prefix.items()} == {
        "model.diffusion_model.": 686,
        "cond_stage_model.": 196,
        "first_stage_model.": 248,
    }
    # As published: UNet, CLIP ViT-L/14 text model, autoencoder.
    assert [sum(found) for found in by_prefix.values()] == [859_520_964, 123_060_480, 83_653_863]


def test_full_size_shapes_at_known_places(maker: ModuleType) -> None:
    """Known tensors have their published shapes, and every block of the layout has tensors."""
    shapes = maker.FAMILIES["sd1"](1)
    unet = "model.diffusion_model."
    assert shapes[unet + "output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes[unet + "output_blocks.8.0.skip_connection.weight"] == (640, 960, 1, 1)
    assert shapes[unet + "output_blocks.9.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)
    assert shapes[unet + "input_blocks.6.0.op.bias"] == (640,)
    assert shapes["first_stage_model.decoder.up.1.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    layout = load_layout("sd1")
    assert all(f"{prefix}.to_q.weight" in shapes for (prefix,) in layout.attention.values())
    assert {layout.block_of(name, "supermerger") for name in shapes} == set(layout.blocks)


def test_full_size_shapes_are_those_of_sdxl(maker: ModuleType) -> None:
    """SDXL's tensors are those in sd-mecha's list, but for position ids and schedules, and count as published."""
    from sd_mecha.extensions import model_configs

    shapes = maker.FAMILIES["sdxl"](1)
    listed = {
        name
        for component, keys in model_configs.resolve("sdxl-sgm").components().items()
        for name in keys.keys()  # noqa: SIM118 - no mapping
        if component != "scheduler" and not name.endswith("position_ids")
    }
    layout = load_layout("sdxl")
    assert set(shapes) == listed - set(layout.markers)
    sizes = dict.fromkeys(("model.diff", "conditioner.embedders.0", "conditioner.embedders.1", "first_stage"), 0)
    for name, shape in shapes.items():
        sizes[next(prefix for prefix in sizes if name.startswith(prefix))] += math.prod(shape)
    # As published: UNet, CLIP ViT-L/14 and OpenCLIP ViT-bigG/14 text models, autoencoder.
    assert list(sizes.values()) == [2_567_463_684, 123_060_480, 694_659_841, 83_653_863]
    assert shapes["model.diffusion_model.output_blocks.2.1.transformer_blocks.9.attn2.to_k.weight"] == (1280, 2048)
    assert all(f"{prefix}.to_q.weight" in shapes for prefixes in layout.attention.values() for prefix in prefixes)
    assert {layout.block_of(name, "supermerger") for name in shapes} == {*layout.blocks, None}


def test_a_small_family_of_sdxl_is_made(maker: ModuleType, tmp_path: Path) -> None:
    """Small SDXL files have the layout and every tensor; four sources suffice."""
    maker.make_family(tmp_path, family="sdxl", sources=4, small=True)
    with open_checkpoint(tmp_path / "target.safetensors") as opened:
        assert opened.layout is not None
        assert opened.layout.name == "sdxl"
        assert set(opened.tensors) - set(opened.layout.position_ids) == set(maker.FAMILIES["sdxl"](1))
        assert all(torch.isfinite(opened.tensor(name)).all() for name in opened.tensors)


def test_small_family_has_the_layout_and_all_names(maker: ModuleType, family: Path) -> None:
    """The small files have the layout sd1 and the same tensors as full-size files."""
    names = set(maker.FAMILIES["sd1"](1))
    for name in ("base", "one", "two", "three", "four", "five", "target"):
        with open_checkpoint(family / f"{name}.safetensors") as opened:
            assert opened.layout is not None
            assert opened.layout.name == "sd1"
            floats = {key for key, info in opened.tensors.items() if info.dtype == torch.float16}
            assert floats == names
            assert set(opened.tensors) - floats == set(opened.layout.position_ids)


def test_finetunes_are_near_the_base_and_share_a_direction(family: Path) -> None:
    """A finetune is 3 % away from the base, and two finetunes have a cosine of 0.36."""
    tensor = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"

    def read(name: str) -> torch.Tensor:
        with open_checkpoint(family / f"{name}.safetensors") as opened:
            return opened.tensor(tensor).double().flatten()

    base = read("base")
    one, two = (read(name) - base for name in ("one", "two"))
    assert float(one.norm() / base.norm()) == pytest.approx(0.03, rel=0.02)
    assert float(one @ two / (one.norm() * two.norm())) == pytest.approx(0.36, abs=0.03)


@pytest.mark.slow
def test_the_unknown_part_has_the_requested_size(run: Run, family: Path, tmp_path: Path) -> None:
    """The unknown part of 0.3 is 0.3 times as long as the known part's distance from the base."""
    done = run("make_checkpoints.py", tmp_path, "--small", "--target-unknown", "0.3")
    assert done.returncode == 0, done.stderr
    tensor = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"
    paths = [family / "base.safetensors", family / "target.safetensors", tmp_path / "target.safetensors"]
    values = []
    for path in paths:
        with open_checkpoint(path) as opened:
            values.append(opened.tensor(tensor).double())
    base, known, whole = values
    assert float((whole - known).norm() / (known - base).norm()) == pytest.approx(0.3, rel=0.02)
    assert not (tmp_path / "known.safetensors").exists()


def test_a_full_disk_is_refused_before_anything_is_written(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the family does not fit on the disk, one line names the bytes, and the folder stays empty."""
    usage = namedtuple("usage", "total used free")
    nearly_full: Callable[[object], object] = lambda path: usage(10**12, 10**12 - 1000, 1000)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(maker.InputError, match=r"the disk is too small: .* bytes are needed, 1,000 are free"):
        maker.make_family(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_benchmark_runs_through(run: Run, family: Path, tmp_path: Path) -> None:
    """Scores agree with merged tensors, and the exact optimum with the planted coefficients."""
    report = tmp_path / "figures.json"
    done = run("full_size.py", family, "--trials", 3, "--repeats", 1, "--json", report)
    assert done.returncode == 0, done.stderr
    assert "| naive / trial |" in done.stdout
    figures = json.loads(report.read_text(encoding="utf-8"))["figures"]
    worst = figures["worst difference from merged tensors"]
    assert worst["attention"] < 1e-6
    assert worst["weights"] < 1e-9
    assert worst["delta"] < 1e-9
    assert figures["worst difference from the planted coefficients"]["exact explained"] < 0.01
    assert not (family / "candidate.safetensors").exists()


@pytest.mark.slow
def test_the_attention_benchmark_runs_through(run: Run, family: Path, tmp_path: Path) -> None:
    """A candidate scores the same alone, together with others, and by the naive comparison."""
    report = tmp_path / "figures.json"
    done = run("attention_speed.py", family, "--repeats", 2, "--together", 4, "--json", report)
    assert done.returncode == 0, done.stderr
    assert "| line, together |" in done.stdout
    figures = json.loads(report.read_text(encoding="utf-8"))["figures"]
    assert {len(turns) for turns in figures["seconds"].values()} == {2}
    assert figures["largest difference of a score alone and together"] < 1e-6
    assert figures["largest difference of a block's score from naive"] < 5e-6


@pytest.mark.slow
def test_the_merging_benchmark_runs_through(run: Run, family: Path, tmp_path: Path) -> None:
    """The merges of blockfit and sd-mecha agree to float16, and no file is left behind."""
    before = sorted(family.iterdir())
    report = tmp_path / "figures.json"
    done = run("merging_speed.py", family, "--repeats", 1, "--json", report)
    assert done.returncode == 0, done.stderr
    assert "| sd-mecha |" in done.stdout
    figures = json.loads(report.read_text(encoding="utf-8"))["figures"]
    assert {name: len(runs) for name, runs in figures["runs"].items()} == {"copy": 1, "merge": 1, "sd-mecha": 1}
    # Both round once to float16, whose relative spacing is 2**-10.
    difference = figures["largest difference between the merged files, relative to the tensor's largest value"]
    assert difference <= 2**-10
    assert sorted(family.iterdir()) == before


def test_the_merging_benchmark_names_a_missing_file(run: Run, tmp_path: Path) -> None:
    """Without the family the script ends with exit code 2 and names the missing file."""
    done = run("merging_speed.py", tmp_path, "--repeats", 1)
    assert done.returncode == 2
    assert "base.safetensors" in done.stderr
