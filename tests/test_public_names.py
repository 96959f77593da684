"""What can be imported from `optimizer` itself: loaded when asked for, the same for editors as at run time."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer

TREE = ast.parse(Path(optimizer.__file__).read_text(encoding="utf-8"))


def for_editors() -> dict[str, str]:
    """Each name that type checkers see, and the module that they take it from."""
    (checked,) = (node for node in TREE.body if isinstance(node, ast.If))
    return {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def test_editors_see_what_there_is() -> None:
    """`__all__`, what type checkers are told and what is loaded name the same things, in order."""
    assert set(for_editors()) == set(optimizer.__all__)
    assert sorted(optimizer.__all__) == optimizer.__all__
    assert set(optimizer.__all__) <= set(dir(optimizer))


@pytest.mark.parametrize("name", optimizer.__all__)
def test_names_are_those_of_their_parts(name: str) -> None:
    """Each is the very object that its part of the package has, documented."""
    value = getattr(optimizer, name)

    assert value is getattr(importlib.import_module(for_editors()[name]), name)
    assert inspect.getdoc(value)


def test_another_name_is_an_attribute_error() -> None:
    """What there is not is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'optimizer' has no attribute 'fitt'"):
        optimizer.fitt  # noqa: B018


def test_a_name_loads_its_part_alone() -> None:
    """A recipe can be made without Optuna, matplotlib and pictures."""
    code = "import sys; from optimizer import new_recipe, load_recipe; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"optuna", "pandas", "matplotlib", "diffusers"} & set(loaded.stdout.split())
