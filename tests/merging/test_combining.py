"""Merging in chunks and several threads: the same numbers as for whole tensors, and clean failures."""

import math
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import start_code
from safetensors.torch import load_file, save_file
from step_by_step import merge_by_steps

from optimizer.checkpoints import SafetensorsWriter, TensorSpec, open_checkpoint, safetensors_writer
from optimizer.errors import CheckpointError
from optimizer.families import load_layout
from optimizer.merging import CHUNK, merge
from optimizer.recipes import Alpha, Model, PartReader, Recipe, Step

LAYOUT = load_layout("sd1")
UNET = "model.diffusion_model."
ROOT = Path(__file__).parents[2]

# Sizes around one chunk and three chunks, tensors without elements, and a number without a dimension.
SIZES = {
    f"{UNET}output_blocks.0.{n}.weight": shape
    for n, shape in enumerate(
        [(), (0,), (1,), (3, 0, 2), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (3, CHUNK), (3 * CHUNK + 5,), (7, 11, 13)]
    )
}


def add_difference(alpha):
    """Return the recipe out = base + (x - y) x alpha, for all blocks."""
    models = {name: Model(f"{name}.safetensors") for name in ("base", "x", "y")}
    steps = (Step("OUT", "add_difference", "base", "x", "y", Alpha(dict.fromkeys(LAYOUT.blocks, alpha))),)
    return Recipe(name="r", layout=LAYOUT, models=models, steps=steps, output="OUT")


def run(folder, alpha=0.3, suffix=".safetensors", output="out.safetensors", **options):
    """Merge base, x and y in `folder`, and return the tensors written."""
    paths = {name: folder / f"{name}{suffix}" for name in ("base", "x", "y")}
    merge(add_difference(alpha), paths, folder / output, embed_recipe=False, **options)
    return load_file(folder / output)


@pytest.fixture
def write_family(tmp_path, write_sd1):
    """Return a function that writes base, x and y in given dtypes, with tensors of SIZES, and returns their tensors."""

    def write(dtypes=(torch.float32,) * 3, suffix=".safetensors", **overrides):
        generator = torch.Generator().manual_seed(5)
        family = {}
        for seed, (name, dtype) in enumerate(zip(("base", "x", "y"), dtypes, strict=True)):
            extra = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in SIZES.items()}
            extra |= overrides.get(name, {})
            path = tmp_path / f"{name}{suffix}"
            family[name] = write_sd1(path, seed=seed, dtype=dtype, overrides=extra)
        return family

    return write


def left_behind(folder):
    """Return the names of files in `folder` that are not sources."""
    return sorted(path.name for path in folder.iterdir() if path.stem not in {"base", "x", "y"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32,) * 3, (torch.float16, torch.bfloat16, torch.float64), (torch.bfloat16, torch.float32, torch.half)],
    ids=["fp32", "fp16, bf16, fp64", "bf16, fp32, fp16"],
)
def test_tensors_of_all_sizes_are_merged(tmp_path, write_family, dtypes, dtype):
    """Tensors shorter and longer than a chunk equal the float32 sum of sources of any dtype, rounded once."""
    family = write_family(dtypes)

    found = run(tmp_path, 0.3, dtype=dtype)

    for name, shape in SIZES.items():
        expected = torch.zeros(shape)
        for source, weight in (("base", 1.0), ("x", 0.3), ("y", -0.3)):
            expected.add_(family[source][name].to(torch.float32), alpha=weight)
        assert (found[name].dtype, found[name].shape) == (dtype, shape)
        assert torch.equal(found[name], expected.to(dtype)), name


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_all_kinds_of_files_are_merged(tmp_path, write_family, suffix):
    """Files that cannot be read by offset merge to the formula's values, like those that can."""
    family = write_family(suffix=suffix)
    step = {"name": "OUT", "mode": "add_difference", "a": "base", "b": "x", "c": "y"}

    found = run(tmp_path, 0.25, suffix, dtype=torch.float32)

    alpha = dict.fromkeys(LAYOUT.blocks, 0.25)
    expected = merge_by_steps([{**step, "alpha": alpha}], family)["OUT"]
    assert set(SIZES) < set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=1e-6)


def test_strided_tensors_merge_by_their_values(tmp_path, write_family):
    """A tensor that is stored transposed in a torch file merges by its logical values."""
    name = UNET + "output_blocks.1.0.weight"
    transposed = {key: {name: torch.randn(700, 600).T} for key in ("base", "x", "y")}
    family = write_family(suffix=".ckpt", **transposed)

    found = run(tmp_path, 0.5, ".ckpt", dtype=torch.float32)[name]

    base, x, y = (family[key][name] for key in ("base", "x", "y"))
    torch.testing.assert_close(found, base + (x - y) * 0.5)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_file_does_not_depend_on_the_threads(tmp_path, write_family, threads):
    """The file is the same, byte for byte, for any number of threads."""
    write_family((torch.float16,) * 3)

    run(tmp_path, output="one.safetensors", threads=1)
    run(tmp_path, output="several.safetensors", threads=threads)

    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "several.safetensors").read_bytes()


@pytest.mark.parametrize("before", [1, 2])
def test_torch_keeps_its_threads(tmp_path, write_family, before):
    """A merge does not change torch's number of threads, neither in this thread nor in new threads."""
    write_family()
    program = """
import sys, threading, torch
from pathlib import Path
from test_combining import run
torch.set_num_threads(int(sys.argv[2]))
run(Path(sys.argv[1]), threads=3)
seen = [torch.get_num_threads()]
thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
thread.start()
thread.join()
print(*seen)
"""
    out, err = start_code(program, tmp_path, before).communicate()

    assert out.split() == [str(before)] * 2, err


def test_threads_share_no_work_of_torch(tmp_path, write_family, monkeypatch):
    """In each merging thread torch uses one thread, from the first tensor to the last."""
    write_family()
    seen, read = {}, PartReader.read

    def watched(reader, part, start, stop):
        if threading.current_thread() is not threading.main_thread():
            numbers = seen.setdefault(threading.get_ident(), [])
            if len(numbers) < 10:
                time.sleep(0.02)  # meanwhile the caller's thread has its number back
            torch.zeros(1).add_(1)
            numbers.append(torch.get_num_threads())
        return read(reader, part, start, stop)

    monkeypatch.setattr(PartReader, "read", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(tmp_path, threads=2)
    finally:
        torch.set_num_threads(before)

    assert len(seen) == 2
    assert {number for numbers in seen.values() for number in numbers} == {1}


def test_sources_without_a_part_are_not_read(tmp_path, write_family):
    """NaN in a source whose coefficient is 0 is not refused and does not reach the output."""
    broken = {name: torch.full(shape, math.nan) for name, shape in SIZES.items()}
    family = write_family((torch.float16,) * 3, x=broken, y=broken)

    found = run(tmp_path, 0.0)

    assert all(torch.equal(found[name], family["base"][name]) for name in SIZES)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, CHUNK, 3 * CHUNK + 4])
@pytest.mark.parametrize("alpha", [0.0, 0.3], ids=["copied", "merged"])
def test_one_bad_number_is_refused(tmp_path, write_family, value, place, alpha):
    """One NaN or Inf in any chunk is refused by file and tensor; the old file stays."""
    name = f"{UNET}output_blocks.0.8.weight"
    bad = torch.zeros(SIZES[name], dtype=torch.float16)
    bad[place] = value
    write_family((torch.float16,) * 3, base={name: bad})
    (tmp_path / "out.safetensors").write_bytes(b"before")

    with pytest.raises(CheckpointError) as caught:
        run(tmp_path, alpha)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'base.safetensors'}: tensor {name!r} holds NaN or Inf")
    assert (tmp_path / "out.safetensors").read_bytes() == b"before"
    assert left_behind(tmp_path) == ["out.safetensors"]


def test_one_number_out_of_range_is_refused(tmp_path, write_family):
    """A sum beyond float16 in a later chunk is refused with its tensor and the largest value."""
    name = f"{UNET}output_blocks.0.8.weight"
    large = torch.zeros(SIZES[name])
    large[CHUNK + 1], large[-1] = 70000.0, -80000.0
    write_family(base={name: large})

    with pytest.raises(
        CheckpointError, match=r"the merge reaches 80000.*; must be at most 65504, the largest float16 number"
    ) as caught:
        run(tmp_path, 0.0)

    assert repr(name) in str(caught.value)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_first_failure_is_reported(tmp_path, write_family, threads):
    """Of several tensors that cannot be merged, the first in the file is reported, for any number of threads."""
    bad = {name: torch.full((8,), math.nan) for name in (f"{UNET}output_blocks.{n}.9.weight" for n in range(12))}
    write_family(x=bad)
    with open_checkpoint(tmp_path / "x.safetensors") as opened:
        first = next(name for name in opened.tensors if name in bad)
    others = {name: torch.zeros(8) for name in bad}
    write_family(base=others, x=bad, y=others)

    for _ in range(10):
        with pytest.raises(CheckpointError, match=f"tensor {first!r} holds NaN"):
            run(tmp_path, threads=threads)

    assert left_behind(tmp_path) == []


def test_a_source_that_shrinks_is_named(tmp_path, write_family):
    """A source that is truncated while it is read is a CheckpointError with its name; the old file stays."""
    write_family()
    (tmp_path / "out.safetensors").write_bytes(b"before")
    source = tmp_path / "x.safetensors"

    def cut(_what, _done, _total):
        os.truncate(source, 100_000)

    with pytest.raises(CheckpointError, match=r"x\.safetensors: was changed while it was being read"):
        run(tmp_path, threads=1, progress=cut)

    assert (tmp_path / "out.safetensors").read_bytes() == b"before"
    assert left_behind(tmp_path) == ["out.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows protects files that are in use")
@pytest.mark.parametrize("how", ["replaced by another file", "changed", "deleted or moved"])
@pytest.mark.parametrize(("suffix", "late"), [(".safetensors", False), (".safetensors", True), (".ckpt", True)])
def test_a_source_that_changes_is_named(tmp_path, write_family, how, suffix, late):
    """A source that changes early or late during the merge is named; the old output stays."""
    write_family(suffix=suffix)
    out, source, other = (tmp_path / name for name in ("out.safetensors", f"x{suffix}", "other"))
    out.write_bytes(b"before")
    shutil.copyfile(source, other)
    os.utime(source, (1, 1))  # older than any change

    def change(_what, done, total):
        if done < total and late:
            return
        if how == "changed":
            with source.open("r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(bytes(1000))
        elif how.startswith("deleted"):
            source.unlink(missing_ok=True)
        elif other.exists():
            other.replace(source)

    with pytest.raises(CheckpointError) as caught:
        run(tmp_path, threads=1, suffix=suffix, progress=change)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{source}: ")
    assert how in problem or not late
    assert out.read_bytes() == b"before"
    assert not [name for name in left_behind(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("x")])
def test_an_error_of_progress_passes(tmp_path, write_family, failure):
    """An error from `progress` passes through and stops all threads; the old file stays, no temporary file is left."""
    write_family()
    (tmp_path / "out.safetensors").write_bytes(b"before")
    calls = []

    def stop(_what, done, _total):
        calls.append(done)
        if len(calls) == 20:
            raise failure

    with pytest.raises(type(failure)) as caught:
        run(tmp_path, progress=stop)

    assert failure is caught.value
    assert len(calls) == 20
    assert (tmp_path / "out.safetensors").read_bytes() == b"before"
    assert left_behind(tmp_path) == ["out.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_no_temporary_file(tmp_path, write_sd1):
    """Ctrl-C during endless merges ends them with KeyboardInterrupt and leaves no temporary file."""
    large = {f"{UNET}output_blocks.0.{n}.weight": torch.zeros(20 * CHUNK) for n in range(5)}
    for name in ("base", "x", "y"):
        write_sd1(tmp_path / f"{name}.safetensors", overrides=large)
    (tmp_path / "out.safetensors").write_bytes(b"before")
    program = """
import sys
from pathlib import Path
from test_combining import run
while True:
    run(Path(sys.argv[1]), progress=lambda what, done, total: print(done, flush=True), output="other.safetensors")
"""
    merging = start_code(program, tmp_path)
    merging.wait_for("\n")
    time.sleep(0.2)
    merging.send_signal(signal.SIGINT)
    _, errors = merging.communicate()

    assert "KeyboardInterrupt" in errors
    assert merging.returncode != 0
    assert set(left_behind(tmp_path)) <= {"out.safetensors", "other.safetensors"}


class TestSafetensorsWriter:
    """Files whose tensors are written in pieces."""

    def test_pieces_may_come_in_any_order(self, tmp_path):
        """Pieces of several tensors in any order give the tensors that the safetensors library reads."""
        one, two = torch.arange(10.0).reshape(5, 2), torch.arange(6, dtype=torch.int64)
        specs = [TensorSpec("one", one.dtype, (5, 2)), TensorSpec("two", two.dtype, (6,))]

        with safetensors_writer(tmp_path / "a", specs, {"format": "pt"}) as file:
            file.write("two", two[4:], start=4)
            file.write("one", one.reshape(-1)[7:], start=7)
            file.write("two", two[:4])
            file.write("one", one.reshape(-1)[:7])

        found = load_file(tmp_path / "a")
        assert torch.equal(found["one"], one)
        assert torch.equal(found["two"], two)
        save_file({"one": one, "two": two}, tmp_path / "b", {"format": "pt"})
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize(
        ("pieces", "message"),
        [
            ([(0, torch.zeros(3))], "8 bytes of tensor 'm' were not written"),
            ([(0, torch.zeros(5)), (3, torch.zeros(2))], "or written twice"),
            ([(3, torch.zeros(3))], "but 3 elements of torch.float32 were given from number 3 on"),
            ([(-1, torch.zeros(3))], "from number -1 on"),
            ([(0, torch.zeros(5).half())], "announced as torch.float32"),
        ],
    )
    def test_unannounced_pieces_are_refused(self, tmp_path, pieces, message):
        """Pieces that differ from the announced tensor are a ValueError, and no file is left in the folder."""

        def write(file: SafetensorsWriter):
            for start, piece in pieces:
                file.write("m", piece, start)

        specs = [TensorSpec("m", torch.float32, (5,))]
        with pytest.raises(ValueError, match=message), safetensors_writer(tmp_path / "a", specs, {}) as file:
            write(file)

        assert list(tmp_path.iterdir()) == []
