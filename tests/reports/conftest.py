"""A small finished fit for the reports: real checkpoints, real trials, names that are awkward to print."""

from collections.abc import Callable

import pytest
import torch

from optimizer.search import FitResult, fit
from optimizer.studies import load_study

AWKWARD = "out $x_1$/<é漢>%"
_RECIPE = f"""
models: {{base: {{file: base}}, x: {{file: x}}, y: {{file: y}}}}
steps:
  - {{name: first, mode: weight_sum, a: base, b: x, alpha: {{M00: 0.25, OUT03-OUT05: {{search: [0, 1]}}}}}}
  - {{name: "{AWKWARD}", mode: weight_sum, a: first, b: y, alpha: {{OUT03-OUT05: {{search: [0, 1], tie: true}}}}}}
"""
_STUDY = """
recipe: recipe.yaml
target: {file: target}
stages:
  - {name: "one $ each", metric: attention, strategy: stepwise, trials: 5}
  - {name: together, metric: delta, strategy: joint, trials: 4, sampler: random}
"""


@pytest.fixture(scope="session")
def finished_fit(
    write_sd1: Callable[..., dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> FitResult:
    """Two steps with four alphas, fitted step by step (5 trials each) and then together (4 trials)."""
    folder = tmp_path_factory.mktemp("finished")
    base = write_sd1(folder / "base.safetensors", seed=0)
    for seed, name in enumerate(("x", "y", "target"), start=1):
        write_sd1(folder / f"{name}.safetensors", seed=seed, around=base)
    (folder / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    (folder / "study.yaml").write_text(_STUDY, encoding="utf-8")
    return fit(load_study(folder))
