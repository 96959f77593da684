"""The examples in CONTRIBUTING.md work as described there."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optimizer.checkpoints import open_checkpoint
from optimizer.interchange import EXPORTS, Export, export_recipe
from optimizer.recipes import load_recipe
from optimizer.similarity import METRICS, MetricKind, compare
from optimizer.similarity.registry import _everything, _from_statistics

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DEMO = ROOT / "studies" / "demo"


@pytest.fixture(scope="module")
def examples():
    """The definitions of the examples, by name."""
    found = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, found)  # noqa: S102  the project's own text
    return found


@pytest.fixture
def registered(examples, monkeypatch):
    """A function that evaluates the line which registers an example in the text, and fills its registry."""

    def registered(registry, start):
        line = next(line.strip().rstrip(",") for line in TEXT.splitlines() if line.strip().startswith(start))
        names = {"MetricKind": MetricKind, "Export": Export, "_everything": _everything}
        entry = eval(line, {**examples, **names, "_from_statistics": _from_statistics})
        monkeypatch.setitem(registry, entry.name, entry)

    return registered


def test_example_metric_follows_its_formula(registered):
    """The example's metric is 1 - |merged - target| / |target - base| of a block's tensors."""
    registered(METRICS, "MetricKind(")
    files = {name: DEMO / f"models/{name}.safetensors" for name in ("base", "slanted")}
    found = compare(
        files["slanted"], DEMO / "target.safetensors", metric="nearness", blocks="OUT03", base=files["base"]
    )

    base, candidate = (load_file(path) for path in files.values())
    target = load_file(DEMO / "target.safetensors")
    names = [
        name
        for name in target
        if name.startswith("model.diffusion_model.output_blocks.3.") and name.endswith(("weight", "bias"))
    ]

    def distance(left, right):
        return torch.cat([(left[name].double() - right[name].double()).flatten() for name in names]).norm()

    assert names
    expected = 1 - distance(candidate, target) / distance(target, base)
    assert found == pytest.approx({"OUT03": float(expected)}, abs=1e-9)


def test_example_checkpoint_compares_like_a_file(examples):
    """The example's checkpoint is compared like a file with the means of both files' tensors."""
    files = {name: DEMO / f"models/{name}.safetensors" for name in ("base", "slanted", "bold")}
    base, slanted, bold = (load_file(path) for path in files.values())
    target = load_file(DEMO / "target.safetensors")
    with open_checkpoint(files["slanted"]) as first, open_checkpoint(files["bold"]) as second:
        mean = examples["Mean"](first, second)
        found = compare(mean, DEMO / "target.safetensors", metric="delta", blocks="OUT03", base=files["base"])

    names = [
        name
        for name in target
        if name.startswith("model.diffusion_model.output_blocks.3.") and name.endswith(("weight", "bias"))
    ]
    towards = torch.cat([(target[name].double() - base[name].double()).flatten() for name in names])
    halves = [((slanted[name].float() + bold[name].float()) / 2).half().double() for name in names]
    moved = torch.cat([(half - base[name].double()).flatten() for half, name in zip(halves, names, strict=True)])
    expected = torch.nn.functional.cosine_similarity(moved, towards, dim=0)
    assert found == pytest.approx({"OUT03": float(expected)}, abs=1e-9)


def test_example_export_writes_every_step(registered):
    """The example's export is offered as a format, and writes the numbers of every step."""
    registered(EXPORTS, "Export(")
    recipe = load_recipe(DEMO / "answer" / "recipe.yaml")
    head, *lines = export_recipe(recipe, "csv").splitlines()

    assert head.split(",")[:3] == ["step", "BASE", "IN00"]
    assert [line.split(",")[0] for line in lines] == [f"{step.name}.alpha" for step in recipe.ancestors()]
    assert [float(number) for number in lines[0].split(",")[1:]] == [
        recipe.ancestors()[0].alpha.at(block) for block in recipe.layout.blocks
    ]


def test_the_map_lists_the_existing_folders():
    """Every folder in the map exists, and the map is complete."""
    named = set(re.findall(r"^    optimizer/(\w+) ", TEXT, re.MULTILINE))
    existing = {path.parent.name for path in (ROOT / "optimizer").glob("*/__init__.py")}

    assert named == existing


def test_make_targets_exist():
    """Every make target named in the text is in the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert set(re.findall(r"^    make ([\w-]+)", TEXT, re.MULTILINE)) <= targets
