"""The demo's figures as JSON: coefficients of the sources beside the true ones."""

import json
from pathlib import Path
from statistics import fmean

import pytest
from ruamel.yaml import YAML

from optimizer.demo import family_folder
from optimizer.demo.running import Demo
from optimizer.recipes import load_recipe


def test_coefficients_beside_the_true_ones():
    """Of each recipe's sources the mean over the blocks, and how far from the true coefficients it is on average."""
    answer = family_folder() / "answer" / "recipe.yaml"
    recipes = {"true": load_recipe(answer), "half": load_recipe(answer.with_name("half.yaml"))}
    amber, slanted = (step["alpha"] for step in YAML(typ="safe").load(answer)["steps"])

    found = Demo({}, recipes, Path("digits.png"), Path("report.html")).as_dict()["coefficients"]

    json.dumps(found, allow_nan=False)
    assert found["true"]["slanted"] == {"mean": pytest.approx(fmean(slanted)), "error": 0}
    assert found["true"]["amber"] == {"mean": pytest.approx(fmean(amber)), "error": 0}
    assert found["half"]["slanted"]["mean"] == 0.5
    assert found["half"]["slanted"]["error"] == pytest.approx(fmean(abs(0.5 - number) for number in slanted))
    assert found["half"]["amber"] == {"mean": 0, "error": pytest.approx(fmean(amber))}
