"""blockfit: fit the recipe of a closed merge from its sources, block by block.

    from optimizer import fit, new_recipe, new_study

    recipe = new_recipe(
        {"base": "base.safetensors", "bra": "bra.safetensors"},
        steps=[dict(name="OUT", mode="add_difference", a="base", b="bra", c="base", alpha={"search": [0, 1]})],
    )
    study = new_study(recipe, target="closed.safetensors", folder="my-study", trials=40)
    result = fit(study)
    print(result.similarity, result.recipe.step("OUT").alpha)

All names of `__all__` can be imported from here; `__init__.pyi` lists the module of each. A name and the libraries that
it needs are loaded on first use, so `import optimizer` alone is fast. See `help(optimizer.new_study)` for an example.

Imports point one way, see CONTRIBUTING.md: files, families, checkpoints, library and recipes, merging, interchange and
similarity, pictures, samplers, studies, analysis, search, reports, demo, cli.
"""

import ast
import gc
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimizer.version import __version__  # noqa: F401  as `optimizer.__version__`


def _homes() -> dict[str, str]:
    """Return the module of each public name, as the stub beside this file lists it."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names if alias.name != "__version__"}


_HOMES = _homes()
__all__ = sorted(_HOMES)  # noqa: PLE0605  a list


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings(), _without_collections():
        # tqdm warns in notebooks without ipywidgets, though no progress bar of a library is shown.
        warnings.filterwarnings("ignore", "IProgress not found")
        value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


@contextmanager
def _without_collections() -> Iterator[None]:
    """Leave out garbage collections: during imports they find nothing, and take a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})
