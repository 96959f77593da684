"""pyproject.toml declares exactly the imported distributions, as dependencies and in extras."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import optimizer
from optimizer.errors import InputError
from optimizer.extras import EXTRAS, require

PACKAGE = Path(optimizer.__file__).parent
ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Declared although blockfit does not import it: Optuna's CmaEsSampler does.
IMPORTED_BY_OTHERS = {"cmaes"}
# Modules that are imported only after a check that their extra is installed.
BEHIND_AN_EXTRA = {"pictures": "optimizer/pictures/", "dashboard": "optimizer/reports/dashboard.py"}


def names_in(requirements):
    """Return the distributions in requirements; blockfit's own extras are resolved."""
    found = set()
    for requirement in map(Requirement, requirements):
        if requirement.name == "blockfit":
            for extra in requirement.extras:
                found |= names_in(PROJECT["optional-dependencies"][extra])
        else:
            found.add(canonicalize_name(requirement.name))
    return found


CORE = names_in(PROJECT["dependencies"])
OPTIONAL = {extra: names_in([f"blockfit[{extra}]"]) for extra in EXTRAS}
DISTRIBUTIONS = metadata.packages_distributions()


def distribution_of(module):
    """Return the distribution that contains a module; None for the standard library and for blockfit."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top == "optimizer":
        return None
    (name,) = set(DISTRIBUTIONS[top])
    return canonicalize_name(name)


def imports_in(path):
    """Yield (distribution, whether it is imported together with the module) for each import of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or typing_only:
            later |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        for name in map(distribution_of, modules):
            if name is not None:
                yield name, id(node) not in later


@cache
def all_imports():
    """Return the imports of each module of the package by its path."""
    return {
        path.relative_to(ROOT).as_posix(): set(imports_in(path))
        for path in sorted(PACKAGE.rglob("*.py"))
        if PACKAGE / "demo" / "family" not in path.parents
    }


def test_imported_distributions_are_declared():
    """Every imported distribution is a dependency or in an extra."""
    declared = CORE.union(*OPTIONAL.values())
    undeclared = {path: {name for name, _ in found} - declared for path, found in all_imports().items()}

    assert {path: names for path, names in undeclared.items() if names} == {}


def test_declared_distributions_are_imported():
    """Every dependency, and every distribution in an extra of a command, is imported somewhere."""
    imported = {name for found in all_imports().values() for name, _ in found}

    assert CORE.union(*OPTIONAL.values()) - imported == IMPORTED_BY_OTHERS


def test_modules_can_be_imported_without_extras():
    """Distributions of extras are imported inside functions, except by modules that only the extra's commands use."""
    for path, found in all_imports().items():
        allowed = CORE.union(*(OPTIONAL[extra] for extra, place in BEHIND_AN_EXTRA.items() if path.startswith(place)))
        assert {name for name, at_once in found if at_once} <= allowed, path


def test_extras_declare_the_modules_that_commands_check():
    """The modules checked by a command belong to the distributions of the named extra; `all` contains every extra."""
    looked_for = {extra: set(map(distribution_of, modules)) for extra, modules in EXTRAS.items()}

    assert looked_for == OPTIONAL
    assert names_in(["blockfit[all]"]) == set().union(*OPTIONAL.values())


def test_declared_distributions_are_pinned():
    """constraints.txt has a sufficient version of each distribution declared for users and tests."""
    lines = re.findall(r"^([^#\s=]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    pinned = {canonicalize_name(name): version for name, version in lines}
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    declared += [text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]]

    for requirement in map(Requirement, declared):
        if requirement.name != "blockfit":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_a_missing_extra_is_named(monkeypatch):
    """The error names all missing distributions and the command that installs them, and no installed one."""
    for module in ("diffusers", "optuna_dashboard"):
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(InputError) as drawing:
        require("pictures", "preview")
    with pytest.raises(InputError) as looking:
        require("dashboard", "dashboard")

    assert drawing.value.problems == (
        'preview needs diffusers, which is not installed: pip install "blockfit[pictures]"',
    )
    assert looking.value.problems == (
        'dashboard needs optuna-dashboard, which is not installed: pip install "blockfit[dashboard]"',
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="needs diffusers and transformers, which are not installed"):
        require("pictures", "preview")
    require("postgresql", "a database")
