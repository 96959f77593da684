"""The files in configs/, which users copy."""

from pathlib import Path

import pytest

from optimizer.recipes import load_recipe
from optimizer.search import load_study

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("name", "free"), [("recipe.yaml", 0), ("search.yaml", 2)])
def test_recipes_load(name: str, free: int) -> None:
    """Every recipe in configs/ can be read, and has as many free alphas as it says."""
    recipe = load_recipe(CONFIGS / name)

    assert sum(len(step.alpha.free) for step in recipe.steps) == free


def test_study_loads() -> None:
    """The study in configs/ can be read; its ten parameters are those that its recipe leaves open."""
    (stage,) = load_study(CONFIGS / "study.yaml", with_files=False).stages

    assert [parameter.name for parameter in stage.parameters] == [
        "TEMP1.alpha", *(f"TEMP2.OUT{number:02}" for number in range(3, 12))
    ]  # fmt: skip
