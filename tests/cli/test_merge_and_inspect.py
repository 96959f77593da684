"""`merge` and `inspect` as users run them: the metadata of merged files, and --vae."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from optimizer.cli import main

Write = Callable[..., dict[str, torch.Tensor]]
PREFIX = "first_stage_model."
RECIPE = """
name: my merge
models: {one: {file: one, license: MIT}, two: {file: two.ckpt, license: MIT}}
steps: [{name: T1, mode: weight_sum, a: one, b: two, alpha: {OUT03: 0.5}}]
"""


@pytest.fixture
def folder(tmp_path: Path, write_sd1: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with two sources that have no VAE, and a VAE."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "models"
    models.mkdir()
    for seed, name in enumerate(("one.safetensors", "two.ckpt")):
        write_sd1(models / name, seed=seed, vae=False)
    vae = {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_out.weight": (3, 8, 3, 3), "quant_conv.weight": (8, 8)}
    torch.save({"state_dict": {name: torch.randn(shape) for name, shape in vae.items()}}, models / "good.vae.pt")
    (models / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return models


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def test_a_merged_file_contains_its_sources(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merged file contains its sources' sha256 and its date; inspect shows both as rows and as JSON."""
    output = folder / "out.safetensors"
    assert run("merge", folder / "recipe.yaml", "-o", output) == 0

    found = metadata(output)
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("one.safetensors", "two.ckpt")]
    assert list(json.loads(found["sd_merge_models"])) == digests
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(found["modelspec.date"]) < timedelta(minutes=5)
    hashed = json.loads((folder.parent / "cache" / "hashes.json").read_text(encoding="utf-8"))["files"]
    assert sorted(entry["sha256"] for entry in hashed.values()) == sorted(digests)
    capsys.readouterr()
    assert run("inspect", output, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["merge"] == {
        "tool": "blockfit",
        "method": ["T1 = weight_sum of one, two, alpha per block", "mapping supermerger"],
        "models": [
            {"name": "one", "short_hash": digests[0][:10]},
            {"name": "two.ckpt", "short_hash": digests[1][:10]},
        ],
        "per_block": True,
        "fields": ["sd_merge_recipe", "sd_merge_models"],
    }
    assert run("inspect", output, folder / "one.safetensors") == 0
    shown = capsys.readouterr().out
    assert shown.count("merged by") == 1
    assert f"two.ckpt [{digests[1][:10]}]" in shown


def test_the_recipe_can_be_left_out(folder: Path) -> None:
    """With --no-recipe the file contains nothing about the recipe, and no file is hashed."""
    assert run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors", "--no-recipe") == 0

    found = metadata(folder / "out.safetensors")
    assert set(found) == {"format", "modelspec.sai_model_spec", "modelspec.architecture"}
    assert not (folder.parent / "cache" / "hashes.json").exists()


def test_a_vae_can_be_added(folder: Path) -> None:
    """--vae adds a VAE to sources without one."""
    output = folder / "out.safetensors"
    assert run("merge", folder / "recipe.yaml", "-o", output, "--vae", folder / "good.vae.pt", "--dtype", "fp32") == 0

    vae = torch.load(folder / "good.vae.pt", weights_only=True)["state_dict"]
    tensors = load_file(output)
    assert {name.removeprefix(PREFIX) for name in tensors if name.startswith(PREFIX)} == set(vae)
    assert all(torch.equal(tensors[PREFIX + name], value) for name, value in vae.items())
    assert json.loads(metadata(output)["sd_merge_recipe"])["vae"]["name"] == "good.vae.pt"


def test_an_unusable_vae_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unusable VAE causes one line and exit code 2, and nothing is written."""
    save_file({"encoder.down_blocks.0.x": torch.ones(1)}, folder / "diffusers.safetensors")
    output = folder / "out.safetensors"

    for name, word in (("none.pt", "no such file"), ("diffusers.safetensors", "diffusers"), ("one.safetensors", "VAE")):
        assert run("merge", folder / "recipe.yaml", "-o", output, "--vae", folder / name) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.removeprefix("blockfit: ").removeprefix("--vae: ").startswith(f"{folder / name}: ")
        assert word in line
        assert not output.exists()


def test_an_imported_recipe_merges_to_the_same_tensors(folder: Path) -> None:
    """The recipe imported from a merged file merges to the same tensors."""
    first, second = folder / "out.safetensors", folder / "again.safetensors"
    assert run("merge", folder / "recipe.yaml", "-o", first) == 0
    assert run("import", first, "-o", folder / "back.yaml") == 0
    assert run("merge", folder / "back.yaml", "-o", second) == 0

    tensors, again = load_file(first), load_file(second)
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


OPEN = """
models: {one: {file: one}, two: {file: two.ckpt}}
steps:
  - {name: T1, mode: weight_sum, a: one, b: two, alpha: 0.5}
  - {name: T2, mode: weight_sum, a: T1, b: two, alpha: {OUT03: {search: [0, 1]}, OUT07-OUT09: {search: [0, 1]}}}
  - {name: T3, mode: sum_twice, a: T2, b: one, c: two, alpha: 0.1, beta: {search: [0, 1], blocks: M00, tie: true}}
"""


@pytest.mark.parametrize("command", ["merge", "export", "simplify", "verify"])
def test_free_alphas_are_refused(folder: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """A recipe with free alphas is refused in one line with steps and blocks; an existing output stays intact."""
    (folder / "open.yaml").write_text(OPEN, encoding="utf-8")
    output = folder / "out.safetensors"
    output.write_bytes(b"old")
    before = sorted(folder.rglob("*"))
    options: dict[str, tuple[object, ...]] = {
        "export": ("--to", "supermerger"),
        "verify": ("--target", folder / "one.safetensors"),
    }
    written = () if command == "verify" else ("-o", output)

    assert run(command, folder / "open.yaml", *options.get(command, ()), *written) == 2

    done = {"merge": "merged", "export": "exported", "simplify": "simplified", "verify": "measured"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"blockfit: {folder / 'open.yaml'}: steps.T2.alpha: free on OUT03,OUT07-OUT09; steps.T3.beta: free on M00, and "
        f"only numbers can be {done[command]}; fit the recipe first (blockfit fit STUDY) and take the best.yaml that "
        "this writes, or put numbers there"
    )
    assert output.read_bytes() == b"old"
    assert sorted(folder.rglob("*")) == before


def test_a_step_without_free_alphas_can_be_merged(folder: Path) -> None:
    """A step that depends on no free alpha can be merged even if other steps have some."""
    (folder / "open.yaml").write_text(OPEN, encoding="utf-8")
    output = folder / "out.safetensors"

    assert run("merge", folder / "open.yaml", "--step", "T1", "--dtype", "fp32", "-o", output) == 0

    name = "model.diffusion_model.out.2.weight"
    one, two = load_file(folder / "one.safetensors"), torch.load(folder / "two.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(load_file(output)[name], (one[name] + two[name]) / 2)
