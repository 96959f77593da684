"""Fixtures of all tests: tiny checkpoints with the topology of Stable Diffusion 1.x and XL."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browser import chromium, opened_browser
from hypothesis import settings
from planted import finished_study, pool, write_study  # noqa: F401 - fixtures
from postgresql import Server, programs
from safetensors.torch import save_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A process started in the background by a shell ignores Ctrl-C, and so would its children, which tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, so that no test depends on the load of the machine. "nightly" draws ten times as many examples, also for
# properties that set their number of examples.
settings.register_profile("ci", deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=10 * settings().max_examples)
_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(_PROFILE)


# Garbage collection would walk over all modules and tests hundreds of times.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the files of tests in memory where it has room: a search waits for the disk after each trial."""
    memory, variable = Path("/dev/shm"), "PYTEST_DEBUG_TEMPROOT"  # noqa: S108  pytest makes a private folder in it
    chosen = config.option.basetemp is not None or variable in os.environ
    if not chosen and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= 8 << 30:
        os.environ[variable] = str(memory)


def pytest_collection_finish() -> None:
    """Exempt modules and tests from garbage collection."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Draw ten times as many examples in the profile "nightly"."""
    if _PROFILE != "nightly":
        return
    seen = set()
    for item in items:
        test = getattr(getattr(item, "obj", None), "__func__", getattr(item, "obj", None))
        given = getattr(test, "_hypothesis_internal_use_settings", None)
        if given is not None and given is not settings.default and test not in seen:
            seen.add(test)
            more = settings(given, max_examples=10 * given.max_examples)
            test._hypothesis_internal_use_settings = more  # type: ignore[union-attr]


_ATTENTION_BLOCKS = (
    *(f"input_blocks.{n}" for n in (1, 2, 4, 5, 7, 8)),
    "middle_block",
    *(f"output_blocks.{n}" for n in range(3, 12)),
)
_TEXT = "cond_stage_model.transformer.text_model."


def _add_layer(shapes: dict[str, tuple[int, ...]], name: str, *shape: int) -> None:
    shapes[f"{name}.weight"] = shape
    shapes[f"{name}.bias"] = shape[:1]


def _clip_shapes(prefix: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tiny CLIP text model in transformers' names: 64 tokens, 77 positions."""
    shapes: dict[str, tuple[int, ...]] = {}
    layer = partial(_add_layer, shapes)
    shapes[prefix + "embeddings.token_embedding.weight"] = (64, width)
    shapes[prefix + "embeddings.position_embedding.weight"] = (77, width)
    for n in range(layers):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            layer(f"{prefix}encoder.layers.{n}.{name}", width, width)
        layer(f"{prefix}encoder.layers.{n}.mlp.fc1", 4 * width, width)
        layer(f"{prefix}encoder.layers.{n}.mlp.fc2", width, 4 * width)
        layer(f"{prefix}encoder.layers.{n}.layer_norm1", width)
        layer(f"{prefix}encoder.layers.{n}.layer_norm2", width)
    layer(prefix + "final_layer_norm", width)
    return shapes


def _drawn_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    dtype: torch.dtype,
    around: Mapping[str, torch.Tensor] | None,
    distance: float,
) -> dict[str, torch.Tensor]:
    """Return standard normal tensors from `seed`, or those of `around` plus `distance` times standard normal ones."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if around is not None and name in around:
            values = around[name].double() + distance * values
        tensors[name] = values.to(dtype)
    return tensors


def make_sd1_shapes(*, width: int = 8, text_layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Return the shape of each floating-point tensor of a tiny SD 1.x checkpoint by its LDM name.

    Each of the 26 blocks has at least two tensors. Blocks with self-attention have attn1 to_q, to_k, to_v of
    [width, width]. The text encoder has `text_layers` layers, 64 tokens and 77 positions.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    layer = partial(_add_layer, shapes)
    unet = "model.diffusion_model."
    layer(unet + "time_embed.0", width, width)
    layer(unet + "input_blocks.0.0", width, 4, 3, 3)
    for n in (3, 6, 9):
        layer(unet + f"input_blocks.{n}.0.op", width, width, 3, 3)
    residual = [*(f"input_blocks.{n}.0" for n in (1, 2, 4, 5, 7, 8, 10, 11)), "middle_block.0"]
    for block in [*residual, *(f"output_blocks.{n}.0" for n in range(12))]:
        layer(unet + block + ".in_layers.0", width)
    for block in _ATTENTION_BLOCKS:
        for matrix in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_out.0"):
            shapes[f"{unet}{block}.1.transformer_blocks.0.{matrix}.weight"] = (width, width)
    layer(unet + "output_blocks.2.1.conv", width, width, 3, 3)
    layer(unet + "out.0", width)
    layer(unet + "out.2", 4, width, 3, 3)

    shapes |= _clip_shapes(_TEXT, width, text_layers)

    layer("first_stage_model.encoder.conv_in", width, 3, 3, 3)
    layer("first_stage_model.decoder.conv_out", 3, width, 3, 3)
    return shapes


def make_sd1_tensors(
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    width: int = 8,
    text_layers: int = 2,
    text_encoder: bool = True,
    vae: bool = True,
    position_ids: bool = True,
    ema: bool = False,
    around: Mapping[str, torch.Tensor] | None = None,
    distance: float = 0.1,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a tiny SD 1.x checkpoint by their LDM names.

    Values are standard normal, drawn from `seed`. With `around`, as for finetunes of one model, they are those of
    `around` plus `distance` times standard normal ones. The same seed gives the same values if parts are left
    out. `ema` adds a copy as LDM's training does. `position_ids` are int64 [1, 77].
    """
    shapes = make_sd1_shapes(width=width, text_layers=text_layers)
    tensors = _drawn_tensors(shapes, seed, dtype, around, distance)
    if position_ids:
        tensors[_TEXT + "embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    if ema:
        copies = {name: value for name, value in tensors.items() if name.startswith("model.")}
        for name, value in copies.items():
            tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = value.clone()
        tensors["model_ema.decay"] = torch.tensor(0.9999)
        tensors["model_ema.num_updates"] = torch.tensor(1000, dtype=torch.int32)
    left_out = (*(() if text_encoder else (_TEXT,)), *(() if vae else ("first_stage_model.",)))
    return {name: value for name, value in tensors.items() if not name.startswith(left_out)}


# SDXL's self-attention: the number of transformer blocks in each of its blocks.
SDXL_DEPTHS = {
    **{f"input_blocks.{n}": 2 for n in (4, 5)},
    **{f"input_blocks.{n}": 10 for n in (7, 8)},
    "middle_block": 10,
    **{f"output_blocks.{n}": 10 for n in (0, 1, 2)},
    **{f"output_blocks.{n}": 2 for n in (3, 4, 5)},
}
_CLIP_L, _CLIP_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."


def make_sdxl_shapes(*, width: int = 8, text_layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Return the shape of each floating-point tensor of a tiny SDXL checkpoint by its name in sgm.

    The blocks, and the transformer blocks in each, are those of SDXL; so are the widths of text, 2048, and of the
    conditioning, 2816, by which it is recognised. Each transformer block has attn1 to_q, to_k, to_v of [width, width].
    Both text encoders have `text_layers` layers, 64 tokens and 77 positions.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    layer = partial(_add_layer, shapes)
    unet = "model.diffusion_model."
    layer(unet + "time_embed.0", width, width)
    layer(unet + "label_emb.0.0", width, 2816)
    layer(unet + "label_emb.0.2", width, width)
    layer(unet + "input_blocks.0.0", width, 4, 3, 3)
    for n in (3, 6):
        layer(unet + f"input_blocks.{n}.0.op", width, width, 3, 3)
    residual = [*(f"input_blocks.{n}.0" for n in (1, 2, 4, 5, 7, 8)), "middle_block.0"]
    for block in [*residual, *(f"output_blocks.{n}.0" for n in range(9))]:
        layer(unet + block + ".in_layers.0", width)
    for block, depth in SDXL_DEPTHS.items():
        layer(f"{unet}{block}.1.proj_in", width, width)
        for n in range(depth):
            inner = f"{unet}{block}.1.transformer_blocks.{n}"
            for matrix in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_out.0"):
                shapes[f"{inner}.{matrix}.weight"] = (width, width)
    shapes[unet + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"] = (width, 2048)
    for n in (2, 5):
        layer(unet + f"output_blocks.{n}.2.conv", width, width, 3, 3)
    layer(unet + "out.0", width)
    layer(unet + "out.2", 4, width, 3, 3)

    shapes |= _clip_shapes(_CLIP_L, width, text_layers)

    shapes[_CLIP_G + "token_embedding.weight"] = (64, width)
    shapes[_CLIP_G + "positional_embedding"] = (77, width)
    for n in range(text_layers):
        inner = f"{_CLIP_G}transformer.resblocks.{n}"
        shapes[f"{inner}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{inner}.attn.in_proj_bias"] = (3 * width,)
        layer(f"{inner}.attn.out_proj", width, width)
        layer(f"{inner}.mlp.c_fc", 4 * width, width)
        layer(f"{inner}.mlp.c_proj", width, 4 * width)
        layer(f"{inner}.ln_1", width)
        layer(f"{inner}.ln_2", width)
    layer(_CLIP_G + "ln_final", width)
    shapes[_CLIP_G + "text_projection"] = (width, width)
    shapes[_CLIP_G + "logit_scale"] = ()

    layer("first_stage_model.encoder.conv_in", width, 3, 3, 3)
    layer("first_stage_model.decoder.conv_out", 3, width, 3, 3)
    layer("first_stage_model.quant_conv", width, width, 1, 1)
    return shapes


def make_sdxl_tensors(
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    width: int = 8,
    text_layers: int = 2,
    text_encoders: bool = True,
    vae: bool = True,
    v_prediction: bool = False,
    around: Mapping[str, torch.Tensor] | None = None,
    distance: float = 0.1,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a tiny SDXL checkpoint, some 600 kB in float32, by their names in sgm.

    Values are drawn as in `make_sd1_tensors`. `v_prediction` adds the empty markers v_pred and ztsnr.
    """
    shapes = make_sdxl_shapes(width=width, text_layers=text_layers)
    tensors = _drawn_tensors(shapes, seed, dtype, around, distance)
    tensors[_CLIP_L + "embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    left_out = (*(() if text_encoders else ("conditioner.",)), *(() if vae else ("first_stage_model.",)))
    markers = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)} if v_prediction else {}
    return {name: value for name, value in tensors.items() if not name.startswith(left_out)} | markers


def _write(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    overrides: Mapping[str, torch.Tensor] | None = None,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, torch.Tensor]:
    """Write tensors to `path` and return them as stored; `make_sd1` explains the arguments."""
    stored = {**tensors, **(overrides or {})}
    stored = {name: value for name, value in stored.items() if not name.startswith(tuple(drop))}
    for prefix, replacement in (rename or {}).items():
        stored = {
            replacement + name.removeprefix(prefix) if name.startswith(prefix) else name: value
            for name, value in stored.items()
        }
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in stored.items()}, path, dict(metadata or {}) or None)
    else:
        torch.save({"state_dict": stored, "global_step": 1000}, path)
    return stored


_FILE_OPTIONS = ("overrides", "drop", "rename", "metadata")


def make_sd1(path: Path, **options: object) -> dict[str, torch.Tensor]:
    """Write `make_sd1_tensors(**options)` to `path` and return the tensors as stored.

    `overrides` replaces or adds tensors; then tensors whose names start with one of `drop` are left out; then prefixes
    are replaced by `rename`. A path that ends in .safetensors is written in that format with `metadata`, any other as
    `torch.save({"state_dict": ...})`.
    """
    of_file = {name: options.pop(name) for name in _FILE_OPTIONS if name in options}
    return _write(path, make_sd1_tensors(**options), **of_file)  # type: ignore[arg-type]


def make_sdxl(path: Path, **options: object) -> dict[str, torch.Tensor]:
    """Write `make_sdxl_tensors(**options)` to `path` and return the tensors as stored; see `make_sd1`."""
    of_file = {name: options.pop(name) for name in _FILE_OPTIONS if name in options}
    return _write(path, make_sdxl_tensors(**options), **of_file)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A running PostgreSQL server with its own data."""
    if programs() is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    server = Server()
    yield server
    server.remove()


# Not session-scoped: while it is open, no other test of the process can run an event loop.
@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A running browser."""
    if chromium() is None:
        pytest.skip("no Chromium is installed (Debian: chromium)")
    with opened_browser() as running:
        yield running


@pytest.fixture
def blockfit(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the command in this process, and returns exit code and output as of a process."""
    from optimizer.cli import main

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        code = int(exited.value.code or 0)
        return subprocess.CompletedProcess(arguments, code, written.out, written.err)

    return run


@pytest.fixture(scope="session")
def sd1_tensors() -> Callable[..., dict[str, torch.Tensor]]:
    """The function `make_sd1_tensors`."""
    return make_sd1_tensors


@pytest.fixture(scope="session")
def write_sd1() -> Callable[..., dict[str, torch.Tensor]]:
    """The function `make_sd1`."""
    return make_sd1


@pytest.fixture(scope="session")
def sdxl_tensors() -> Callable[..., dict[str, torch.Tensor]]:
    """The function `make_sdxl_tensors`."""
    return make_sdxl_tensors


@pytest.fixture(scope="session")
def write_sdxl() -> Callable[..., dict[str, torch.Tensor]]:
    """The function `make_sdxl`."""
    return make_sdxl


def start(stack: ExitStack, *command: str | Path, undone_by: Sequence[str | Path]) -> None:
    """Do what only root may do, and undo it when `stack` is closed; skip the test if it is not permitted."""
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"{command[0]} is not allowed here")
    stack.callback(subprocess.run, undone_by, check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB; the test is skipped where mounting is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with ExitStack() as stack:
        start(stack, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder, undone_by=("umount", folder))
        yield folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Mapping[str, str]], Path]]:
    """A function that makes a read-only disk with these texts by name, where mounting is permitted."""
    with ExitStack() as stack:

        def make(texts: Mapping[str, str]) -> Path:
            folder = tmp_path / "read-only"
            folder.mkdir()
            start(stack, "mount", "-t", "tmpfs", "tmpfs", folder, undone_by=("umount", folder))
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            return folder

        yield make


@pytest.fixture
def hold() -> Iterator[Callable[[Path], None]]:
    """A function that makes a file irreplaceable, as on Windows while another program has it open.

    On other systems the file is made immutable, which gives the same error; the test is skipped where that is not
    permitted.
    """
    with ExitStack() as stack:

        def make(path: Path) -> None:
            if sys.platform == "win32":
                stack.enter_context(path.open("rb"))
            else:
                start(stack, "chattr", "+i", path, undone_by=("chattr", "-i", path))

        yield make


@pytest.fixture
def fill() -> Callable[[Path, int], Path]:
    """A function that fills the disk of a folder except for so many bytes, and returns the file that fills it."""

    def make(folder: Path, left: int) -> Path:
        path = folder / "filler"
        path.write_bytes(bytes(shutil.disk_usage(folder).free - left))
        return path

    return make
