"""What can be imported from `optimizer` itself: loaded when asked for, the same for editors as at run time."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer

STUB = Path(optimizer.__file__).with_suffix(".pyi")
USER = """
from optimizer import Alpha, Recipe, fit, load_recipe, merge, new_recipe, new_study

recipe: Recipe = new_recipe({"a": "a.safetensors"}, steps=[])
alpha: Alpha = recipe.step("T").alpha
result = fit(new_study(recipe, target="t.safetensors", folder="mine"))
reveal_type(result.similarity)
merge(load_recipe("best.yaml"), ".", "out.safetensors")
"""


def for_editors() -> dict[str, str]:
    """Each name that type checkers see, and the module that they take it from."""
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    found = [(alias, node.module) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    # Without its "as", a name in a stub is not offered.
    assert all(alias.asname == alias.name for alias, _ in found)
    return {alias.name: module or "" for alias, module in found if alias.name != "__version__"}


def test_editors_see_what_there_is() -> None:
    """`__all__`, what type checkers are told and what is loaded name the same things, in order."""
    assert set(for_editors()) == set(optimizer.__all__)
    assert sorted(optimizer.__all__) == optimizer.__all__
    assert set(optimizer.__all__) <= set(dir(optimizer))
    starred: dict[str, object] = {}
    exec("from optimizer import *", starred)  # noqa: S102  the very statement
    assert set(optimizer.__all__) <= set(starred)


def test_type_checkers_know_the_names(tmp_path: Path) -> None:
    """A user's script is checked with our types, and what is wrong in it is found."""
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(USER + "fit(0)\nfrom optimizer import fitt\n", encoding="utf-8")
    cache = STUB.parent.parent / ".mypy_cache"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", cache, "--no-error-summary", script],
        cwd=STUB.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = [line.partition(": ")[2] for line in done.stdout.splitlines() if script.name in line]
    assert told == [
        'note: Revealed type is "float"',
        'error: Argument 1 to "fit" has incompatible type "int"; expected "Study"  [arg-type]',
        'error: Module "optimizer" has no attribute "fitt"; maybe "fit"?  [attr-defined]',
    ]


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
