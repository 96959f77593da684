"""Names imported from `optimizer` itself are loaded on first use, and are the same for editors and at run time."""

import ast
import gc
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
    """Return {name: module} as type checkers see it."""
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    found = [(alias, node.module) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    # A stub exports only names with "as".
    assert all(alias.asname == alias.name for alias, _ in found)
    return {alias.name: module or "" for alias, module in found if alias.name != "__version__"}


def test_editors_see_all_names() -> None:
    """`__all__`, the stub and the loaded names agree, in order."""
    assert set(for_editors()) == set(optimizer.__all__)
    assert sorted(optimizer.__all__) == optimizer.__all__
    assert set(optimizer.__all__) <= set(dir(optimizer))
    starred: dict[str, object] = {}
    exec("from optimizer import *", starred)  # noqa: S102  the very statement
    assert set(optimizer.__all__) <= set(starred)


def test_type_checkers_know_the_names(tmp_path: Path) -> None:
    """A user's script is checked with blockfit's types, and its errors are found."""
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(USER + "fit(0)\nfrom optimizer import fitt\n", encoding="utf-8")
    # Libraries are not followed: their types take six times as long as blockfit's, and none occurs in the script.
    libraries = [
        *("torch", "numpy", "scipy", "optuna", "sqlalchemy", "psycopg", "pandas", "matplotlib", "pydantic", "rich"),
        *("typer", "diffusers", "transformers", "IPython"),
    ]
    settings = tmp_path / "mypy.ini"
    modules = ",".join(f"{library}.*" for library in libraries)
    settings.write_text(
        f"[mypy]\nstrict = True\n[mypy-{modules}]\nfollow_imports = skip\nfollow_imports_for_stubs = True\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", settings),
            *("--cache-dir", tmp_path / "cache", script),
        ],
        cwd=STUB.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    messages = [line.partition(": ")[2] for line in done.stdout.splitlines() if script.name in line]
    assert messages == [
        'note: Revealed type is "float"',
        'error: Argument 1 to "fit" has incompatible type "int"; expected "Study | Path | str"  [arg-type]',
        'error: Module "optimizer" has no attribute "fitt"; maybe "fit"?  [attr-defined]',
    ]


@pytest.mark.parametrize("name", optimizer.__all__)
def test_each_name_is_the_object_of_its_module(name: str) -> None:
    """Each name is the very object of its module, and has a docstring."""
    value = getattr(optimizer, name)

    assert value is getattr(importlib.import_module(for_editors()[name]), name)
    assert inspect.getdoc(value)


def test_loading_a_name_leaves_garbage_collection_as_it_was() -> None:
    """Garbage collection is on or off after a name is loaded, or is not found in its module, as it was before."""
    try:
        for switch, expected in ((gc.disable, False), (gc.enable, True)):
            switch()
            optimizer.__getattr__("fit")
            assert gc.isenabled() == expected
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(optimizer._HOMES, "gone", "optimizer.errors")
            with pytest.raises(AttributeError, match="gone"):
                optimizer.__getattr__("gone")
        assert gc.isenabled()
    finally:
        gc.enable()


def test_another_name_is_an_attribute_error() -> None:
    """An unknown name raises AttributeError, as for any module."""
    with pytest.raises(AttributeError, match="module 'optimizer' has no attribute 'fitt'"):
        optimizer.fitt  # noqa: B018


def test_a_name_loads_only_its_own_libraries() -> None:
    """Recipes, sources and families do not load Optuna, matplotlib and diffusers."""
    code = "import sys; from optimizer import new_recipe, load_recipe, BaseSource, register_layout; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"optuna", "pandas", "matplotlib", "diffusers"} & set(loaded.stdout.split())


def test_a_study_loads_no_library_for_work_that_it_may_not_need() -> None:
    """The search loads scipy's modules, alembic and psycopg when they are first used."""
    code = "import sys; import optimizer.search; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"scipy.optimize", "scipy.special", "alembic", "psycopg", "matplotlib"} & set(loaded.stdout.split())
