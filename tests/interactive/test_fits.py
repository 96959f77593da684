"""Fits from Python take a folder, and their results show, merge, export and report themselves."""

import shutil
from dataclasses import replace
from html.parser import HTMLParser

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
        assert self._open[-1] in ("p", "th", "td")
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
    """Results, studies and ceilings have at most 20 lines, and tables with their verdict."""
    study = optimizer.load_study(folder)
    ceiling = optimizer.study_ceilings(study)[0]
    for shown in (result, study, ceiling):
        assert len(repr(shown).splitlines()) <= 20
        assert len(Cells(shown._repr_html_()).found) > 3
    assert result.verdict.sentences[0] in repr(result)
    assert ceiling.verdict.sentences[0] in Cells(ceiling._repr_html_()).found


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
