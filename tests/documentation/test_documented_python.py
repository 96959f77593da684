"""The Python on the pages for users runs as it is written, from top to bottom, on the demo family."""

import builtins
import shutil

import pytest
from documented_pages import DOCS, ROOT, blocks

from optimizer.demo import copy_family

FILES = {"base": "models/base", "bra": "models/slanted", "closed": "target"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which has checkpoints of the pages' names."""
    copy_family(tmp_path / "demo")
    for name, file in FILES.items():
        shutil.copy(tmp_path / "demo" / f"{file}.safetensors", tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [DOCS / "reference" / "python.md", ROOT / "README.md"], ids=lambda page: page.name)
def test_the_examples_run(page, folder, monkeypatch):
    """Each example runs after those before it, and what it prints is short."""
    printed = []
    monkeypatch.setattr(builtins, "print", lambda *values: printed.append(" ".join(map(str, values))))
    examples = blocks(page, "python")
    names = {}

    for code in examples:
        exec(compile(code, str(page), "exec"), names)  # noqa: S102  the project's own text

    assert examples
    assert "explains" in printed[0]
    assert len(printed[0].splitlines()) <= 20
    assert (folder / "clone.safetensors").is_file()
    assert (folder / "my-study" / "best.yaml").is_file()
