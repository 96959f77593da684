"""The file names of a study's folder are defined in one module, and links among them are refused."""

import ast
from functools import cache
from pathlib import Path

import pytest

import optimizer
from optimizer.errors import StudyError
from optimizer.studies import StudyFolder

PACKAGE = Path(optimizer.__file__).parent
# Packages below optimizer.studies define two of the names.
HOMES = {"study.db": "files/links.py", "statistics.safetensors": "checkpoints/other_files.py"}
NAMES = ("best.yaml", "best.simple.yaml", "study.db", "statistics.safetensors", "report.html", "trials.csv", "fit.log",
         "candidate-")  # fmt: skip
TEMPLATE = ("reports/page/writing.py", "report.html")  # a file of the package with the name of its result


def literals(path):
    """Return the string literals of a module, parts of formatted ones included, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in statements
    }


@cache
def all_literals():
    """Return the string literals of each module of the package by its path."""
    return {path.relative_to(PACKAGE).as_posix(): literals(path) for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("name", NAMES)
def test_each_name_stands_in_one_module(name):
    """Only one module contains the name of a file that is written into a study's folder."""
    found = set()
    for module, texts in all_literals().items():
        spelled = {text for text in texts if text == name or (name == "candidate-" and text.startswith(name))}
        if spelled and (module, name) != TEMPLATE:
            found.add(module)
    assert found == {HOMES.get(name, "studies/folder.py")}


def test_candidates_are_numbered(tmp_path):
    """Candidates are listed by number, without other files."""
    for name in ("candidate-10.yaml", "candidate-2.yaml", "candidate-x.yaml", "candidate-2.yaml.bak", "best.yaml"):
        (tmp_path / name).touch()
    folder = StudyFolder(tmp_path)
    assert list(folder.candidates().items()) == [(2, folder.candidate(2)), (10, folder.candidate(10))]


@pytest.mark.parametrize("name", ["best.yaml", "candidate-3.yaml", "study.db", "fit.log", "plots", "study.old.db"])
def test_links_are_refused(tmp_path, name):
    """A link in the place of a written file is refused, with its name."""
    (tmp_path / "study").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir() if name == "plots" else elsewhere.touch()
    (tmp_path / "study" / name).symlink_to(elsewhere)
    with pytest.raises(StudyError, match=name):
        StudyFolder(tmp_path / "study").check()
