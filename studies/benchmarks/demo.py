"""Run the demo as a user would, and compare its recipes with the true one.

    python studies/benchmarks/demo.py

The time is that of the command `blockfit demo`, with its start. A further fit has the hidden finetune among its
sources, so that nothing of the target is unknown.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import report
from recording import add_json_option
from ruamel.yaml import YAML

from optimizer.recipes import Recipe, load_recipe, parameters_of
from optimizer.search import fit
from optimizer.studies import load_study

TITLES = {
    "delta": "delta, joint",
    "attention": "attention, joint",
    "stepwise": "delta, stepwise",
    "article": "the article's three stages",
}
# The source that all recipes have, one that only the searched ones have, and the hidden one.
SOURCES = ("slanted", "inverted", "amber")
MERGED = ("fit.safetensors", "assembled.safetensors", "half.safetensors")
ROWS = 4  # of the sheet: the target and the three merges
DIGITS = 10


def measure(folder: Path) -> dict[str, Any]:
    """Return the figures of the demo, which is written to `folder`."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "optimizer", "demo", str(folder), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")  # noqa: S603
    seconds = time.perf_counter() - start
    found = json.loads(done.stdout)
    if found["pictures"] is None or not all((folder / name).exists() for name in MERGED):
        raise OSError("the demo left out a part; install blockfit[all]")
    true, simple = load_recipe(folder / "answer" / "recipe.yaml"), load_recipe(folder / "best.simple.yaml")
    known = load_recipe(folder / "best.yaml").models
    planted, rounded = (_alphas_of(recipe, SOURCES[0]) for recipe in (true, simple))
    above, number = _above_exact(folder / "attention" / "trials.csv")
    coefficients = found["coefficients"]
    return {
        "seconds": round(seconds, 1),
        "fits": len(found["fits"]),
        "merges": len(MERGED),
        "pictures": ROWS * DIGITS,
        "coefficients": [
            {
                "source": source,
                "true mean": round(coefficients["true"][source]["mean"], 3),
                "known": source in known,
                "errors": {title: round(coefficients[name][source]["error"], 3) for name, title in TITLES.items()},
            }
            for source in SOURCES
        ],
        "attention above the exact optimum of explained": above,
        "trials until then": number,
        "alphas": found["fits"]["attention"]["searches"][0]["alphas"],
        "alphas of slanted to the digit": sum(planted[block] == rounded[block] for block in planted),
        "blocks": len(planted),
        "largest error of an alpha, nothing unknown": round(_largest_error(folder), 4),
    }


def _alphas_of(recipe: Recipe, source: str) -> dict[str, float]:
    """Return the alphas of the step that adds a source, by block."""
    step = next(step for step in recipe.steps if step.b == source)
    return {block: step.alpha.at(block) for block in recipe.layout.blocks}


def _above_exact(table: Path) -> tuple[float, int]:
    """Return the similarity of the best trial above the exact optimum of `explained`, and that trial's number."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["similarity"]))
    (exact,) = (row for row in rows if row["origin"] == "exact explained")
    return round(float(best["similarity"]) - float(exact["similarity"]), 6), int(best["trial"])


def _largest_error(folder: Path) -> float:
    """Return the largest error of an alpha in a joint fit by `delta` of the true recipe's own steps."""
    answer = folder / "answer" / "recipe.yaml"
    content = YAML(typ="safe").load(answer)
    for step in content["steps"]:
        step["alpha"] = {"search": [0, 1]}
    study = {
        "recipe": "searched.yaml",
        "target": {"file": "../target.safetensors"},
        "stages": [{"name": "known", "metric": "delta", "strategy": "joint", "trials": 2}],
    }
    for name, text in (("searched.yaml", content), ("study.yaml", study)):
        with (answer.parent / name).open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(text, file)
    true, found = load_recipe(answer), fit(load_study(answer.parent)).recipe
    free = parameters_of(load_study(answer.parent).recipe, [step.name for step in true.steps])
    return max(
        abs(found.step(alpha.step).alpha.at(block) - true.step(alpha.step).alpha.at(block))
        for alpha in free
        for block in alpha.blocks
    )


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    count = f"{figures['fits']} fits, {figures['merges']} merges, {figures['pictures']} pictures"
    lines = [f"{count}: {figures['seconds']} s", "", "source, true mean, mean error of each fit:"]
    lines += [f"  {row['source']} {row['true mean']}: {row['errors']}" for row in figures["coefficients"]]
    lines += [f"{name}: {figures[name]}" for name in figures if isinstance(figures[name], int | float)]
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print and record the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run the demo and compare its recipes with the true one.")
    add_json_option(parser, "demo")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return report("demo", lambda: measure(Path(folder) / "demo"), as_markdown, given.json)


if __name__ == "__main__":
    sys.exit(main())
