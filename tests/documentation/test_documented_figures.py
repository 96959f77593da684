"""The figures of README.md and docs/ come from the benchmarks' JSON; none is typed."""

import json
import re
import sys

import pytest
from documented_pages import DOCS, ROOT, read

BENCHMARKS = ROOT / "studies" / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
FIGURES = sorted((DOCS / "figures").glob("*.md"))
# Names with digits, and terms of statistics, which are not figures.
NAMES = re.compile(
    r"\b(OUT03-OUT11|Stable Diffusion 1\.5|fp16|[Ff]loat(16|32|64)|95 %|1e-6|near 0|coefficient 0|1 is|1 -)"
)


@pytest.fixture
def generating(monkeypatch):
    """The package that generates the pages, with its modules imported."""
    monkeypatch.syspath_prepend(DOCS)
    import generating.content
    import generating.figures  # noqa: F401  used as an attribute of the package
    import generating.readme  # noqa: F401

    return generating


@pytest.mark.parametrize("page", FIGURES, ids=lambda page: page.stem)
def test_no_figure_is_typed(page):
    """Apart from names and values of results, a page on figures has no digit."""
    text = re.sub(r"\A---.*?^---", "", read(page), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|<!--.*?-->", "", text, flags=re.DOTALL)

    assert re.findall(r".*\d.*", NAMES.sub("", text)) == []


# gpu_report.py makes the tables of the page on GPUs; tests/benchmarks/test_gpu.py tests it.
@pytest.mark.parametrize("page", [page for page in FIGURES if page.stem != "gpu"], ids=lambda page: page.stem)
def test_every_figure_comes_from_a_result(page, generating):
    """Each number in a rendered table changes if the results change."""
    source = read(page)
    environment = generating.content.environment()
    shown = environment.from_string(source).render()
    environment.globals["results"] = {
        name: {**each, "figures": changed(each["figures"])} for name, each in environment.globals["results"].items()
    }
    after_change = environment.from_string(source).render()

    for before, after in zip(rows(shown), rows(after_change), strict=True):
        for cell, changed_cell in zip(before, after, strict=True):
            if re.fullmatch(r"[\d.,e<% +-]*\d[\d.,e% -]*", cell.strip(" *")):
                assert cell != changed_cell, f"{cell} does not come from a result"


def rows(text):
    """Return the cells of the rows of all tables, without the first cell of each row."""
    return [line.split("|")[2:-1] for line in text.splitlines() if line.startswith("| ")]


def changed(value):
    """Return figures with every number x replaced by 7 x + 3; names and null stay."""
    if isinstance(value, dict):
        return {key: changed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [changed(each) for each in value]
    return 7 * value + 3 if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_the_readme_has_the_table_of_the_results(generating):
    """README.md's table of results is up to date; `python docs/generating/readme.py` updates it."""
    text = read(ROOT / "README.md")

    assert generating.readme.with_table(text) == text
    assert "17.5 times faster" in generating.readme.table()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_has_its_origin(path):
    """Each result has the command, the date, the machine and the versions; unknown values are null."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if path.stem == "gpu":
        assert result["machine"]
        return

    assert set(result) == {"benchmark", "commands", "date", "machine", "versions", "figures"}
    assert result["benchmark"] == path.stem
    assert result["commands"]
    assert result["date"] is None or re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert {"processor", "cores", "memory, bytes", "system", "note"} <= set(result["machine"])
    assert {"python", "torch", "blockfit", "commit"} <= set(result["versions"])


def test_figures_are_recorded_with_their_origin(tmp_path, monkeypatch):
    """A benchmark's figures are written with the command, the machine, and the versions of installed distributions."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import torch
    from recording import record

    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "workers.py"), "--seconds", "8 or so"])
    record("workers", {"rate": 1.5}, tmp_path / "new" / "workers.json", peers=("optuna", "not-installed"))

    (written,) = (tmp_path / "new").iterdir()
    result = json.loads(written.read_text(encoding="utf-8"))
    assert result["commands"] == ["python studies/benchmarks/workers.py --seconds '8 or so'"]
    assert result["versions"]["torch"] == torch.__version__
    assert result["versions"]["not-installed"] is None
    assert result["machine"]["cores"] >= 1
    assert result["figures"] == {"rate": 1.5}
