"""The demo family: trained checkpoints, small enough for the repository, with a target made as the answer says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from optimizer.demo import family_folder
from optimizer.library import Library, inspect_checkpoint
from optimizer.merging import merge
from optimizer.recipes import load_recipe
from optimizer.search import fit
from optimizer.studies import load_study

FAMILY = family_folder()
FINETUNES = ("bold", "inverted", "outline", "slanted", "small")


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate(
        [
            tensor.double().numpy().ravel()
            for name, tensor in sorted(tensors.items())
            if name.startswith("model.diffusion_model.")
        ]
    )


def test_the_family_fits_into_the_repository() -> None:
    """One base, five finetunes, a hidden one and the target take at most 24 MB."""
    files = sorted(FAMILY.glob("**/*.safetensors"))
    made = {"assembled.safetensors", "fit.safetensors", "half.safetensors", "statistics.safetensors"}
    sizes = {file.name: file.stat().st_size for file in files if file.name not in made}

    assert sorted(sizes) == sorted(
        ["base.safetensors", "target.safetensors", "amber.safetensors", *(f"{name}.safetensors" for name in FINETUNES)]
    )
    assert sum(sizes.values()) <= 24_000_000


@pytest.mark.parametrize("name", ["base", *FINETUNES])
def test_every_checkpoint_has_all_blocks(name: str) -> None:
    """Every checkpoint is SD 1.x in fp16 with all 26 blocks, and unusual at most in lacking the VAE."""
    inspection = inspect_checkpoint(FAMILY / "models" / f"{name}.safetensors")

    assert inspection.layout == "sd1"
    assert all(inspection.blocks[block]["parameters"] > 0 for block in inspection.blocks)
    assert len(inspection.blocks) == 26
    assert inspection.dtypes["float16"] > 600
    assert all("VAE" in sentence for sentence in inspection.unusual)


def test_finetunes_truly_differ() -> None:
    """Finetunes are a few per cent or more away from the base, in directions of their own."""
    base = flat(load_file(FAMILY / "models" / "base.safetensors"))
    deltas = [flat(load_file(FAMILY / "models" / f"{name}.safetensors")) - base for name in FINETUNES]

    assert all(np.linalg.norm(delta) > 0.02 * np.linalg.norm(base) for delta in deltas)
    unit = np.stack([delta / np.linalg.norm(delta) for delta in deltas])
    assert np.abs(unit @ unit.T - np.eye(len(deltas))).max() < 0.9


def test_the_answer_merges_to_the_target(tmp_path: Path) -> None:
    """Merging the answer's recipe gives the target, bit for bit."""
    recipe = load_recipe(FAMILY / "answer" / "recipe.yaml")
    paths = Library().all_models({name: model.file for name, model in recipe.models.items()}, FAMILY / "answer")
    merge(recipe, paths, tmp_path / "again.safetensors")

    again, target = load_file(tmp_path / "again.safetensors"), load_file(FAMILY / "target.safetensors")
    assert again.keys() == target.keys()
    assert all(torch.equal(again[name], target[name]) for name in target)


def test_a_joint_fit_by_delta_recovers_every_alpha(tmp_path: Path) -> None:
    """With all sources known and a recipe of full rank, joint fitting by delta finds every alpha to 0.002."""
    shutil.copytree(FAMILY / "models", tmp_path / "models")
    random = np.random.default_rng(3)
    true = {step: [round(float(alpha), 3) for alpha in random.uniform(0.05, 0.95, 26)] for step in ("ONE", "TWO")}
    text = """
models:
  base: {file: models/base}
  bold: {file: models/bold}
  inverted: {file: models/inverted}
  slanted: {file: models/slanted}
steps:
  - {name: ONE, mode: add_difference, a: bold, b: inverted, c: base, alpha: ALPHA_ONE}
  - {name: TWO, mode: add_difference, a: ONE, b: slanted, c: base, alpha: ALPHA_TWO}
"""
    known = text.replace("ALPHA_ONE", str(true["ONE"])).replace("ALPHA_TWO", str(true["TWO"]))
    (tmp_path / "true.yaml").write_text(known, encoding="utf-8")
    free = text.replace("ALPHA_ONE", "{search: [0, 1]}").replace("ALPHA_TWO", "{search: [0, 1]}")
    (tmp_path / "recipe.yaml").write_text(free, encoding="utf-8")
    (tmp_path / "study.yaml").write_text(
        "recipe: recipe.yaml\ntarget: {file: target.safetensors}\n"
        "stages: [{name: all, metric: delta, strategy: joint, trials: 2}]\n",
        encoding="utf-8",
    )
    recipe = load_recipe(tmp_path / "true.yaml")
    paths = Library().all_models({name: model.file for name, model in recipe.models.items()}, tmp_path)
    merge(recipe, paths, tmp_path / "target.safetensors")

    found = fit(load_study(tmp_path)).recipe

    for step, alphas in true.items():
        assert [found.step(step).alpha.at(block) for block in found.layout.blocks] == pytest.approx(alphas, abs=0.002)
