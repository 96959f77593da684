"""Facts about one model family are in optimizer/families, and nowhere else in the package."""

import ast
import re
from pathlib import Path

import pytest

import optimizer

PACKAGE = Path(optimizer.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "families" not in path.relative_to(PACKAGE).parts)
# Names of tensors, blocks, files and layouts of Stable Diffusion 1.x and XL, and the number of blocks of the first.
LITERAL = re.compile(
    r"model\.diffusion_model|first_stage_model|cond_stage_model|input_blocks|output_blocks|middle_block|time_embed|label_emb"
    r"|\bsd1\b|sd1-|_sd1_|v1-5|\b(IN|OUT)[01]\d|\bM00|\bBASE\b|Stable Diffusion|\bSD ?1|ModelMergeSD"
    r"|sdxl|SDXL|sd_xl|conditioner\.|embedders|resblocks|\b(in_proj|text_projection|positional_embedding|logit_scale)"
)
COUNTS = {25, 26, 49408}
# Functions, and arguments of any, whose texts are what a user may type, and so name blocks and files of the family that
# most people have.
EXAMPLES = {"examples", "Option", "Argument"}
# What is about something else: a program's name, an offset in a ZIP archive.
ABOUT_OTHERS = {("library/provenance.py", "Stable Diffusion WebUI"), ("checkpoints/torch_files.py", 26)}


def literals(source):
    """Yield (line, literal) of a module's code, without docstrings and the texts of examples."""
    tree = ast.parse(source)
    passed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                passed.add(first.value)
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in EXAMPLES:
                passed.update(ast.walk(node))
        if isinstance(node, ast.keyword) and node.arg in EXAMPLES:
            passed.update(ast.walk(node))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or node in passed:
            continue
        if (isinstance(node.value, str) and LITERAL.search(node.value)) or (
            type(node.value) is int and node.value in COUNTS
        ):
            yield node.lineno, node.value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_names_a_family(path):
    """A module outside families names no tensor, block, file or number of one family."""
    inside = path.relative_to(PACKAGE).as_posix()
    found = [(line, text) for line, text in literals(path.read_text(encoding="utf-8"))]

    assert [one for one in found if (inside, one[1]) not in ABOUT_OTHERS] == []


def test_the_check_finds_literals():
    """The check finds literals in plain and in formatted texts, and ignores docstrings."""
    code = '"""In a docstring: OUT03."""\nx = f"no {x} in model.diffusion_model."\ny = ("M00", 26)\nexamples("OUT03")\n'
    code += 'f(examples=["M00"])\n'

    assert [line for line, _ in literals(code)] == [2, 3, 3]
    assert [text for _, text in literals("load_layout('sd1')")] == ["sd1"]
