"""Fixtures of several folders: checkpoints to search among, and studies written beside them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from step_by_step import merge_by_steps

MODELS = "base", "x", "y", "z"


@pytest.fixture(scope="session", autouse=True)
def quiet_optuna():
    """Silence Optuna's line for each trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="session")
def pool(tmp_path_factory, write_sd1, sd1_tensors):
    """Base and its finetunes x, y, z, as paths and tensors; `plant(name, steps)` writes the merge of steps."""
    folder = tmp_path_factory.mktemp("pool")
    base = sd1_tensors(seed=0)
    tensors = {
        name: write_sd1(folder / f"{name}.safetensors", seed=n, around=base, distance=0.2 if n else 0.0)
        for n, name in enumerate(MODELS)
    }
    paths = {name: folder / f"{name}.safetensors" for name in MODELS}

    def plant(name: str, steps: list[dict], noise: float = 0.0) -> tuple[Path, dict[str, torch.Tensor]]:
        random = torch.Generator().manual_seed(len(name))
        merged = {
            key: (value + noise * torch.randn(value.shape, generator=random, dtype=torch.float64)).float().contiguous()
            for key, value in merge_by_steps(steps, tensors)[steps[-1]["name"]].items()
        }
        path = folder / f"{name}.safetensors"
        save_file(merged, path)
        return path, merged

    def two_steps(first: dict[str, float], second: dict[str, float]) -> list[dict]:
        """Return steps that add x's difference from the base by the first alphas, and y by the second."""
        return [
            {"name": "A", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": first},
            {"name": "B", "mode": "weight_sum", "a": "A", "b": "y", "c": None, "alpha": second},
        ]

    return SimpleNamespace(folder=folder, paths=paths, tensors=tensors, plant=plant, two_steps=two_steps)


@pytest.fixture
def write_study(pool, tmp_path):
    """A function that writes a study of these steps and stages in a new folder, and returns the folder."""

    def write(steps, stages, target, folder="study", **fields):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        models = "".join(f"  {name}: {{file: '{file}'}}\n" for name, file in pool.paths.items())
        (path / "recipe.yaml").write_text(f"models:\n{models}steps:\n{steps}", encoding="utf-8")
        more = "".join(f"{key}: {value}\n" for key, value in fields.items())
        text = f"recipe: recipe.yaml\ntarget: {{file: '{target}'}}\n{more}stages:\n{stages}"
        (path / "study.yaml").write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def finished_study(pool, tmp_path_factory):
    """The folder of a fitted study: two searches, s/A and s/B, on OUT03 and OUT06, with four trials each."""
    from optimizer.search import fit
    from optimizer.studies import load_study

    folder = tmp_path_factory.mktemp("finished") / "study"
    folder.mkdir()
    alphas = {"OUT03": 0.3, "OUT06": 0.6}
    target = pool.plant("finished", pool.two_steps(alphas, alphas), noise=0.05)[0]
    models = "".join(f"  {name}: {{file: '{file}'}}\n" for name, file in pool.paths.items())
    free = 'alpha: {search: [0, 1], blocks: "OUT03,OUT06"}'
    steps = (
        f"  - {{name: A, mode: add_difference, a: base, b: x, c: base, {free}}}\n"
        f"  - {{name: B, mode: weight_sum, a: A, b: y, {free}}}\n"
    )
    stage = "{name: s, metric: delta, strategy: stepwise, trials: 4, sampler: blockwise}"
    (folder / "recipe.yaml").write_text(f"models:\n{models}steps:\n{steps}", encoding="utf-8")
    study = f"recipe: recipe.yaml\ntarget: {{file: '{target}'}}\nstages: [{stage}]\n"
    (folder / "study.yaml").write_text(study, encoding="utf-8")
    fit(load_study(folder))
    return folder
