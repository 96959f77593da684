"""Fits from Python take a folder, and their results show, merge, export and report themselves."""

import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import blockfit
import optimizer


class Cells(HTMLParser):
    """The texts of a table's cells and of the paragraphs."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Open an element."""
        self._open.append(tag)

    def handle_endtag(self, tag):
        """Close the innermost element."""
        assert self._open.pop() == tag

    def handle_data(self, data):
        """Keep a text."""
        assert self._open[-1] in ("p", "th", "td", "strong")
        self.found.append(data)


@pytest.fixture
def folder(finished_study, tmp_path):
    """A copy of a fitted study."""
    return shutil.copytree(finished_study, tmp_path / "study")


@pytest.fixture
def result(folder):
    """Its result."""
    return blockfit.fit(folder)


def test_a_folder_is_fitted_like_its_study(folder, result):
    """A folder, its text and its study give the same result, and a number of trials replaces the study's."""
    study = optimizer.load_study(folder)

    assert optimizer.fit(str(folder)).recipe == optimizer.fit(study).recipe == result.recipe
    assert [len(search.completed) for search in result.searches] == [4, 4]
    assert [len(search.completed) for search in optimizer.fit(folder, trials=5).searches] == [5, 5]


def test_a_result_merges_its_rounded_recipe(result, tmp_path):
    """`merge` writes the rounded recipe or, on request, the exact one, as the function `merge` does."""
    for simple, recipe in ((True, result.simple.recipe), (False, result.recipe)):
        written = result.merge(tmp_path / "clone.safetensors", simple=simple, dtype=torch.float32)
        optimizer.merge(recipe, result.study.sources, tmp_path / "same.safetensors", dtype=torch.float32)
        first, second = load_file(written), load_file(tmp_path / "same.safetensors")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_result_exports_and_reports_itself(result, tmp_path):
    """`export` returns and writes a text that is read again as the recipe; `report` writes the page."""
    text = result.export("supermerger", tmp_path / "recipe.txt", simple=False)

    assert (tmp_path / "recipe.txt").read_text(encoding="utf-8") == text
    assert "<!doctype html>" in result.report().read_text(encoding="utf-8")
    assert result.report(tmp_path / "page.html") == tmp_path / "page.html"
    with pytest.raises(optimizer.InputError, match="html"):
        result.report(tmp_path / "page.txt")


def test_objects_are_short_in_a_shell_and_tables_in_a_notebook(folder, result):
    """What the functions return has at most 20 lines in a shell; results, studies and ceilings are tables."""
    study = optimizer.load_study(folder)
    ceilings = optimizer.study_ceilings(study)
    inspection = optimizer.inspect_checkpoint(study.target)
    tables = (result, study, ceilings, ceilings[0])
    for each in (*tables, result.verdict, result.recipe, study.recipe, result.simple, inspection):
        assert 1 <= len(repr(each).splitlines()) <= 20
        assert max(map(len, repr(each).splitlines())) < 300
    for each in tables:
        assert len(Cells(each._repr_html_()).found) > 3
    sentence = result.verdict.sentences[0]
    for each in (result, result.verdict, ceilings, ceilings[0]):
        assert repr(each).count(sentence) == 1
        assert Cells(each._repr_html_()).found.count(sentence) == 1


def test_warnings_of_a_verdict_stand_out(result):
    """A warning begins with a word that nobody overlooks."""
    warned = replace(result.verdict, warnings=("The length is off.",))

    assert repr(warned).splitlines()[0] == "ATTENTION: The length is off."
    assert Cells(warned._repr_html_()).found[:2] == ["Attention:", " The length is off."]


def test_a_recipe_shows_its_formulas(result):
    """A recipe is shown as formulas, with the numbers or the ranges of its alphas."""
    free, filled = repr(result.study.recipe).splitlines(), repr(result.recipe).splitlines()

    assert free[1] == "  A = base + (x - base) x alpha, alpha 0 to 1 (free) on OUT03,OUT06"
    assert free[2] == "  B = A x (1-alpha) + y x alpha, alpha 0 to 1 (free) on OUT03,OUT06"
    numbers = [result.recipe.step("A").alpha.at(block) for block in result.recipe.layout.blocks]
    assert filled[1] == f"  A = base + (x - base) x alpha, alpha 0 to {max(numbers):.6g}"


def test_an_interrupted_result_says_so(result):
    """A result that is not finished says how to continue."""
    stopped = replace(result, interrupted=True)

    assert "interrupted; the same call continues it" in repr(stopped)
    assert "interrupted; the same call continues it" in stopped._repr_html_()


def test_files_are_found_as_by_the_commands(folder, tmp_path, monkeypatch):
    """A folder's checkpoints are found in the folders that are named, and in those of BLOCKFIT_MODELS."""
    models = tmp_path / "models"
    models.mkdir()
    study = optimizer.load_study(folder)
    recipe = folder / "recipe.yaml"
    for file in study.sources.values():
        moved = shutil.copy(file, models)
        recipe.write_text(recipe.read_text(encoding="utf-8").replace(str(file), Path(moved).name), encoding="utf-8")
    with pytest.raises(optimizer.InputError, match="not found"):
        optimizer.fit(folder)

    assert optimizer.fit(folder, folders=[models]).similarity > 0
    monkeypatch.setenv("BLOCKFIT_MODELS", str(models))
    assert optimizer.fit(folder).similarity > 0
    monkeypatch.setenv("BLOCKFIT_MODELS", str(tmp_path / "none"))
    with pytest.warns(optimizer.BlockfitWarning, match="BLOCKFIT_MODELS"), pytest.raises(optimizer.InputError):
        optimizer.fit(folder)


def test_names_in_tables_are_text(finished_study, tmp_path):
    """A name cannot add tags to a notebook."""
    folder = shutil.copytree(finished_study, tmp_path / "<b>study")

    assert "<b>" not in optimizer.load_study(folder)._repr_html_()


def test_blockfit_has_the_names_of_optimizer():
    """`blockfit` hands on every public name, lists them, and knows no other."""
    assert blockfit.__all__ == optimizer.__all__
    assert set(optimizer.__all__) <= set(dir(blockfit))
    assert all(getattr(blockfit, name) is getattr(optimizer, name) for name in optimizer.__all__)
    with pytest.raises(AttributeError, match="fitt"):
        _ = blockfit.fitt


def test_a_registered_metric_is_used_by_its_name(folder):
    """A study names a registered metric like any other; a name that is taken or unusable is refused."""
    kind = replace(optimizer.METRICS["delta"], name="mine", exact=False)
    optimizer.register_metric(kind)
    try:
        path = folder / "study.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("metric: delta", "metric: mine"), encoding="utf-8")
        found = optimizer.fit(folder, fresh=True)
        assert {search.stage.metric for search in found.searches} == {"mine"}
        assert found.similarity == pytest.approx(optimizer.study_ceilings(found.study, "delta")[0].total["recipe"])
        for name in ("mine", "two words"):
            with pytest.raises(optimizer.StudyError, match=name):
                optimizer.register_metric(replace(kind, name=name))
    finally:
        del optimizer.METRICS["mine"]
