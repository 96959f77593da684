"""Fuzz the YAML of recipes and studies: `load_recipe`, writing and reading the recipe again, and `load_study`."""

from collections.abc import Iterator
from pathlib import Path

import atheris
from fuzzing import fuzz

with atheris.instrument_imports(include=["optimizer.files", "optimizer.recipes", "optimizer.studies"]):
    from optimizer.recipes import load_recipe, save_recipe
    from optimizer.studies import load_study

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """models: {a: {file: a}, b: {file: b, license: mit, sha256: "00"}, c: {file: c}}
steps:
  - {name: S, mode: weight_sum, a: a, b: b, alpha: 0.5}
  - {name: T, mode: add_difference, a: S, b: b, c: c, alpha: {IN01: 0.3, OUT03-OUT11: {search: [0, 1]}}}
  - {name: U, mode: triple_sum, a: T, b: b, c: c, alpha: [NUMBERS], beta: {search: [-1, 1], tie: true, start: 0}}
  - {name: V, mode: sum_twice, a: U, b: b, c: c, alpha: 1, beta: {M00: 2}, expect: {blocks: {IN01: 0.9}}}
output: V
""".replace("NUMBERS", ", ".join(["0.5"] * 26))
STUDY = """recipe: recipe.yaml
target: {file: t.safetensors}
seed: 3
stages:
  - {name: one, steps: [T], blocks: OUT03-OUT11, metric: attention, strategy: stepwise, trials: 5, seeds: [1, 2]}
  - {name: two, metric: weights, elsewhere: delta, passes: 2, tolerance: 1e-6, sampler: tpe, tf32: true}
"""
WORDS = [
    *("models", "steps", "name", "mode", "alpha", "beta", "search", "blocks", "tie", "start", "expect", "similarity"),
    *("weight_sum", "add_difference", "triple_sum", "sum_twice", "fitted", "presets", "layout", "mapping", "output"),
    *("recipe", "target", "stages", "passes", "seeds", "metric", "elsewhere", "sampler", "base_alpha", "total"),
    *("&a", "*a", "<<: *a", "!!python/object/apply:os.system", "!!set", "!!omap", "!!binary", "!!timestamp", "!x"),
    *(".nan", ".inf", "1e999", "0x", "2022-01-01", "---", "...", "%YAML 1.1", "? ", "- ", ": ", "|", ">", "\\e", "\\0"),
    *("BASE", "IN00-IN11", "M00", "OUT11", "all", "input", "../", "[", "]", "{", "}", "~", "null", "true"),
]


def seeds() -> Iterator[bytes]:
    """Yield valid recipes and studies; the first byte is R for a recipe and S for a study."""
    for path in (*ROOT.glob("configs/*.yaml"), *ROOT.glob("studies/demo/**/recipe.yaml")):
        yield b"R" + path.read_bytes()
    yield b"R" + RECIPE.encode()
    yield b"R&a" + RECIPE.encode()
    yield b"S" + STUDY.encode()
    yield from (b"S" + path.read_bytes() for path in ROOT.glob("studies/demo/**/study.yaml"))


def read(path: Path) -> None:
    """Read the file as a recipe or a study, by its first byte."""
    content = path.read_bytes()
    if content.startswith(b"S"):
        (path.parent / "recipe.yaml").write_text(RECIPE)
        (path.parent / "study.yaml").write_bytes(content[1:])
        load_study(path.parent, with_files=False)
        return
    path.write_bytes(content[1:])
    recipe = load_recipe(path)
    written = path.with_name("written.yaml")
    save_recipe(recipe, written)
    again = load_recipe(written)
    assert (again.name, again.models, again.output, again.formulas) == (
        recipe.name,
        recipe.models,
        recipe.output,
        recipe.formulas,
    )


if __name__ == "__main__":
    fuzz(read, seeds(), WORDS, suffix=".yaml", longest=8192)
