"""Imports point one way, as the design says; what a part may not know, it does not import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer

PACKAGE = Path(optimizer.__file__).parent
LAYERS = ("checkpoints", "recipes", "pictures", "similarity", "search", "reports", "exports", "demo", "cli")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """The full names of the modules that a module imports, wherever in it."""
    found = set()
    package = ("optimizer", *path.relative_to(PACKAGE).with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            found |= {module} | ({f"optimizer.{a.name}" for a in node.names} if module == "optimizer" else set())
    return found


def layer(name):
    """The layer that a module's full name lies in; None for what all may use."""
    parts = name.split(".")
    return parts[1] if parts[0] == "optimizer" and len(parts) > 1 and parts[1] in LAYERS else None


def in_layer(name):
    """The modules of one layer."""
    return [path for path in MODULES if path.relative_to(PACKAGE).with_suffix("").parts[0] == name]


@pytest.mark.parametrize("name", LAYERS)
def test_one_way(name):
    """A module imports nothing of a layer above its own."""
    above = LAYERS[LAYERS.index(name) + 1 :]
    for path in in_layer(name):
        wrong = {other for other in imported(path) if layer(other) in above}
        assert not wrong, f"{path} imports {wrong}"


def test_the_layers_are_there():
    """The check looks at modules: every layer up to search has some, and sees their imports."""
    for name in LAYERS[:5]:
        assert len(in_layer(name)) > 3
    assert {layer(other) for path in in_layer("search") for other in imported(path)} >= {"recipes", "similarity"}


@pytest.mark.parametrize(
    ("name", "libraries"),
    [
        ("checkpoints", {"optuna", "pydantic", "scipy", "pandas", "matplotlib", "typer", "rich"}),
        ("recipes", {"optuna", "safetensors", "scipy", "pandas", "matplotlib", "typer", "rich"}),
        ("similarity", {"optuna", "safetensors", "scipy", "pandas", "matplotlib", "typer", "rich"}),
        ("pictures", {"optuna", "safetensors", "scipy", "pandas", "typer", "rich"}),
        ("search", {"safetensors", "pandas", "matplotlib", "typer", "rich"}),
        (
            "exports",
            {"torch", "safetensors", "optuna", "pandas", "matplotlib", "typer", "rich", "sd_mecha", "mergekit"},
        ),
    ],
)
def test_libraries(name, libraries):
    """A layer does not import the libraries that belong to others."""
    for path in in_layer(name):
        wrong = {other for other in imported(path) if other.split(".")[0] in libraries}
        assert not wrong, f"{path} imports {wrong}"


def test_exports_know_recipes_only():
    """What a format says follows from the recipe alone: exports use nothing that measures, searches or reports."""
    for path in in_layer("exports"):
        assert {layer(other) for other in imported(path)} <= {None, "checkpoints", "recipes", "exports"}, path


def test_nothing_of_blockfit_below_checkpoints():
    """Checkpoints use nothing of blockfit but themselves and the errors."""
    for path in in_layer("checkpoints"):
        mine = {other for other in imported(path) if other.startswith("optimizer.")}
        assert all(other.startswith(("optimizer.checkpoints", "optimizer.errors")) for other in mine), path


def test_nothing_comes_in_by_the_front_door():
    """The package's own names, which come from all layers, are for its users: inside, only the version is used."""
    public = {f"optimizer.{name}" for name in optimizer.__all__}
    for path in MODULES:
        if path != PACKAGE / "__init__.py":
            wrong = imported(path) & public
            assert not wrong, f"{path} imports {wrong}"


def test_importing_the_package_is_quick():
    """`import optimizer` loads no heavy library, nor any layer; nor does asking what names there are."""
    code = "import sys, optimizer; dir(optimizer); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    names = set(loaded.stdout.split())
    heavy = {"torch", "optuna", "numpy", "scipy", "pandas", "matplotlib", "PIL", "diffusers", "transformers"}
    assert not (heavy | {"pydantic", "ruamel", "safetensors", "typer", "rich"}) & {name.split(".")[0] for name in names}
    assert {name for name in names if name.split(".")[0] == "optimizer"} == {"optimizer"}
