"""Bad input to the command: exit code 2, one line per problem that names the culprit, and nothing written."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from optimizer.cli import main

RECIPE = """
models:
  base: {file: base.safetensors}
  one: {file: one.safetensors}
  two: {file: two.safetensors}
steps:
  - {name: STEP, mode: add_difference, a: one, b: two, c: base, alpha: ALPHA}
"""
STUDY = """
recipe: recipe.yaml
target: {file: TARGET}
stages: [{name: stage, STAGE}]
"""
DELTA = "metric: delta, trials: 2"
FREE = "{search: [0, 1]}"
UNET = "model.diffusion_model."

Write = Callable[..., dict[str, torch.Tensor]]
Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def folder(tmp_path: Path, write_sd1: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three sources, a target, and a valid recipe and study."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "models"
    models.mkdir()
    for seed, name in enumerate(("base", "one", "two", "target")):
        write_sd1(models / f"{name}.safetensors", seed=seed)
    write_recipe(models, FREE)
    return models


def write_recipe(
    folder: Path, alpha: str = "0.5", *, stage: str = DELTA, target: str = "target.safetensors", text: str = RECIPE
) -> None:
    (folder / "recipe.yaml").write_text(text.replace("ALPHA", alpha), encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY.replace("TARGET", target).replace("STAGE", stage), encoding="utf-8")


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command and return its exit code and the lines on stderr. It may print and write nothing else."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        written = capsys.readouterr()

        assert written.out == ""
        assert {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))} == before
        return int(left.value.code or 0), written.err.splitlines()

    return run


def refused(outcome: tuple[int, list[str]], *words: object) -> None:
    """Check for exit code 2 and a single line that contains all of `words`."""
    code, lines = outcome
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("blockfit: ")
    for word in words:
        assert str(word) in lines[0]


def test_a_missing_source_is_named(folder: Path, run: Run) -> None:
    """A missing source is reported with its field and the searched folders."""
    (folder / "two.safetensors").unlink()

    refused(run("fit", folder), "recipe.yaml", "models.two.file", "'two.safetensors'", folder)


def test_a_missing_candidate_is_named(folder: Path, run: Run) -> None:
    """A missing checkpoint on the command line is reported by name."""
    refused(run("compare", folder / "nowhere.safetensors", "--target", folder / "target.safetensors"), "nowhere")


@pytest.mark.parametrize("command", ["inspect", "fit", "report", "merge", "import"])
def test_a_name_too_long_for_a_file_is_a_missing_file(folder: Path, run: Run, command: str) -> None:
    """A name longer than any file name is reported as a missing file."""
    output = ("-o", folder / "new.yaml") if command in ("merge", "import") else ()

    refused(run(command, "x" * 300, *output), "x: no such file")


def test_an_output_name_that_is_too_long_is_refused(folder: Path, run: Run) -> None:
    """An output name that is too long is refused before the work, not after."""
    write_recipe(folder)

    refused(run("merge", folder / "recipe.yaml", "-o", folder / f"{'x' * 300}.safetensors"), "cannot be written: ")


def test_candidates_of_one_name_are_told_apart_by_their_folders(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates with the same file name have separate columns, labelled with their folders."""
    monkeypatch.chdir(folder)
    (folder / "new").mkdir()
    shutil.copyfile(folder / "two.safetensors", folder / "new" / "one.safetensors")
    monkeypatch.setenv("COLUMNS", "120")

    with pytest.raises(SystemExit) as left:
        main(["compare", "one.safetensors", str(Path("new", "one.safetensors")), "./two.safetensors",
              "--target", "target.safetensors", "--blocks", "M00"])  # fmt: skip

    assert not left.value.code
    table = capsys.readouterr().out
    assert table.count("one.safetensors") == 2
    assert str(Path("new", "one.safetensors")) in table
    assert table.count("two.safetensors") == 1


def test_a_truncated_file_is_refused(folder: Path, run: Run) -> None:
    """A truncated file is reported with both lengths."""
    path = folder / "two.safetensors"
    whole = path.stat().st_size
    os.truncate(path, whole - 100)

    refused(run("fit", folder), path, f"{whole:,}", f"{whole - 100:,}")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>not found</html>", b"\0" * 64, b"hello"])
def test_a_file_that_is_no_checkpoint_is_named(folder: Path, run: Run, content: bytes) -> None:
    """A file that is not a checkpoint is reported by name, with any extension."""
    (folder / "two.safetensors").write_bytes(content)

    refused(run("fit", folder), "two.safetensors")


def test_a_file_of_another_family_is_refused(folder: Path, run: Run, write_sdxl: Write) -> None:
    """An SDXL file in place of an SD 1.x file is reported as SDXL."""
    write_sdxl(folder / "two.safetensors")

    refused(run("fit", folder), "two.safetensors: is an SDXL checkpoint", "layout sdxl; must", "(layout sd1)")


def test_differing_shapes_are_refused(folder: Path, run: Run, write_sd1: Write) -> None:
    """A tensor with a different shape is reported with both files."""
    name = f"{UNET}output_blocks.2.1.conv.weight"
    write_sd1(folder / "two.safetensors", overrides={name: torch.zeros(4, 8, 3, 3)})

    refused(run("fit", folder), "two.safetensors", "base.safetensors", name, "[4, 8, 3, 3]", "[8, 8, 3, 3]")


def test_a_target_of_another_shape_is_refused(folder: Path, run: Run, write_sd1: Write) -> None:
    """A target's tensor with a different shape is reported with both files."""
    name = f"{UNET}output_blocks.2.1.conv.weight"
    write_sd1(folder / "target.safetensors", overrides={name: torch.zeros(4, 8, 3, 3)})

    refused(run("fit", folder), "target.safetensors", "base.safetensors", name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(folder: Path, run: Run, write_sd1: Write, bad: float) -> None:
    """NaN or Inf in a used tensor is reported by fit and merge, with file and tensor."""
    name = f"{UNET}out.2.weight"
    values = torch.zeros(4, 8, 3, 3)
    values[1, 2, 0, 0] = bad
    write_sd1(folder / "two.safetensors", overrides={name: values})
    refused(run("fit", folder), "two.safetensors", name)
    write_recipe(folder)
    refused(run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors"), "two.safetensors", name)


class Gadget:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_a_call_is_not_run(folder: Path, run: Run, zipped: bool) -> None:
    """A pickle that contains a call is refused, and the call is not executed."""
    trap = folder / "trap"
    (folder / "two.safetensors").unlink()
    path = folder / "two.ckpt"
    if zipped:
        torch.save({"state_dict": {"x": torch.zeros(2)}}, path)
        with zipfile.ZipFile(path) as archive:
            files = {entry: archive.read(entry) for entry in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for entry, data in files.items():
                archive.writestr(entry, pickle.dumps(Gadget(trap), 2) if entry.endswith("data.pkl") else data)
    else:
        path.write_bytes(pickle.dumps(Gadget(trap), 2))
    text = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("two.safetensors", "two.ckpt")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")

    refused(run("fit", folder), "two.ckpt")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        ("[0.5, 0.5]", ["2 numbers", "26"]),
        (str([0.5] * 25), ["25 numbers", "26"]),
        ("{OUT12: 0.5}", ["OUT12"]),
        ("{OUT06-OUT04: 0.5}", ["OUT06-OUT04", "backwards"]),
        ("{OUT03-OUT05: 0.5, OUT04: 0.1}", ["OUT04", "more than once"]),
        ("{search: [1, 0]}", ["[1, 0]", "low"]),
        ("{search: [0, 1], block: OUT03}", ["'block'", "blocks"]),
        ("{search: 3}", ["search", "3"]),
        (".nan", ["finite"]),
        ("much", ["'much'"]),
        ("true", ["True"]),
    ],
)
def test_an_invalid_alpha_is_refused(folder: Path, run: Run, alpha: str, words: list[str]) -> None:
    """An invalid alpha is reported with its step, the received value and the valid ones."""
    write_recipe(folder, alpha)

    refused(run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors"), "recipe.yaml", "STEP.alpha", *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("b: two", "b: too", ["steps.STEP.b", "'too'", "'two'"]),
        ("mode: add_difference", "mode: mix", ["STEP.mode", "'mix'", "weight_sum"]),
        (", c: base", "", ["STEP.c", "missing"]),
        ("a: one", "a: STEP", ["cycle", "STEP -> STEP"]),
        ("alpha: 0.5", "alhpa: 0.5, alpha: 0.5", ["alhpa", "unknown field"]),
        ("models:", "models: {}\nmodels:", ["models"]),
        ("file: two.safetensors", "path: two.safetensors", ["models.two"]),
        ("steps:", "layout: sd9\nsteps:", ["sd9", "sd1"]),
        ("steps:", "mapping: mine\nsteps:", ["mapping", "mine", "supermerger"]),
        ("steps:", "output: LAST\nsteps:", ["output", "LAST"]),
    ],
)
def test_unknown_names_in_a_recipe_are_refused(folder: Path, run: Run, old: str, new: str, words: list[str]) -> None:
    """A recipe with names that do not exist is refused; every line contains the file and the field."""
    write_recipe(folder, "0.5", text=RECIPE.replace("ALPHA", "0.5").replace(old, new))

    code, lines = run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors")

    assert code == 2
    assert all("recipe.yaml" in line for line in lines)
    for word in words:
        assert word in "\n".join(lines)


def test_every_problem_is_named(folder: Path, run: Run) -> None:
    """A recipe with three mistakes causes three lines."""
    text = RECIPE.replace("a: one", "a: won").replace("b: two", "b: too").replace("c: base", "c: bass")
    write_recipe(folder, text=text)

    code, lines = run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors")

    assert (code, len(lines)) == (2, 3)


def test_a_target_among_the_sources_is_refused(folder: Path, run: Run) -> None:
    """A target among the sources is refused."""
    write_recipe(folder, FREE, target="two.safetensors")

    refused(run("fit", folder), "study.yaml", "target.file", "'two'")


def test_an_alpha_on_an_unscored_block_is_refused(folder: Path, run: Run) -> None:
    """A separate alpha for a block that the metric cannot score is refused, with a remedy."""
    write_recipe(folder, "{search: [0, 1], blocks: 'OUT02-OUT03'}", stage="metric: attention")

    refused(run("fit", folder), "OUT02", "STEP.OUT02", "attention", "elsewhere")


def test_a_block_without_attention_is_refused(folder: Path, run: Run) -> None:
    """IN09 has no attention: studies and comparisons by attention that include it are refused."""
    write_recipe(folder, "{search: [0, 1], blocks: 'IN08'}", stage="metric: attention, blocks: 'IN08,IN09'")

    refused(run("fit", folder), "study.yaml", "stages.stage", "IN09", "attention")
    candidate, target = folder / "one.safetensors", folder / "target.safetensors"
    refused(run("compare", candidate, "--target", target, "--blocks", "IN09"), "IN09", "attention")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("metric: cosine", ["metric", "cosine", "attention"]),
        ("sampler: magic", ["sampler", "magic", "tpe"]),
        ("strategy: greedy", ["strategy", "stepwise"]),
        ("steps: [OTHER]", ["steps", "OTHER", "STEP"]),
        ("trials: 0", ["trials", "0"]),
        ("trails: 9", ["trails", "trials"]),
    ],
)
def test_an_invalid_study_is_refused(folder: Path, run: Run, stage: str, words: list[str]) -> None:
    """An invalid field of a study is reported with the valid values."""
    write_recipe(folder, FREE, stage=stage)

    refused(run("fit", folder), "study.yaml", "stage", *words)


def test_a_missing_output_folder_is_refused(folder: Path, run: Run) -> None:
    """A merge into a missing folder is refused before any file is read."""
    write_recipe(folder)

    refused(run("merge", folder / "recipe.yaml", "-o", folder / "none" / "out.safetensors"), folder / "none")


def test_an_output_that_is_a_source_is_refused(folder: Path, run: Run) -> None:
    """A merge does not overwrite a file that it reads."""
    write_recipe(folder)

    refused(run("merge", folder / "recipe.yaml", "-o", folder / "one.safetensors"), "one.safetensors", "source")


def test_an_output_of_another_format_is_refused(folder: Path, run: Run) -> None:
    """A merge to another format than safetensors is refused."""
    write_recipe(folder)

    refused(run("merge", folder / "recipe.yaml", "-o", folder / "out.ckpt"), "out.ckpt", ".safetensors")


def test_a_missing_step_is_named(folder: Path, run: Run) -> None:
    """A missing step is reported with the recipe's steps."""
    write_recipe(folder)

    refused(run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors", "--step", "TEMP9"), "TEMP9", "STEP")


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("mount"), reason="needs a small file system to fill")
def test_a_full_disk_is_reported(folder: Path, run: Run, tmp_path: Path) -> None:
    """A full disk is reported, and the old file stays intact."""
    write_recipe(folder)
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        old = small / "out.safetensors"
        old.write_bytes(struct.pack("<Q", 2) + b"{}")

        refused(run("merge", folder / "recipe.yaml", "-o", old), old, "disk is full", "intact")
        assert [path.name for path in small.iterdir()] == ["out.safetensors"]
        assert old.read_bytes() == struct.pack("<Q", 2) + b"{}"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_unknown_option_is_one_line(folder: Path, run: Run) -> None:
    """A mistyped option causes one line, too."""
    refused(run("fit", folder, "--trails", "3"), "--trails")


def test_a_missing_gpu_is_refused(folder: Path, run: Run) -> None:
    """A GPU that torch cannot use is refused; the work does not silently run on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("torch can use a GPU")

    refused(run("fit", folder, "--device", "cuda"), "cuda")
