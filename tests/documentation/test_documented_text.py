"""The examples of README.md and docs/ are valid, and their links lead somewhere."""

import posixpath
import re
from pathlib import Path

import pytest
from documented_pages import DOCS, PAGES, ROOT, blocks, read

from optimizer.similarity import EncoderOptions
from optimizer.studies import load_study

RECIPE, STUDY = (
    blocks(DOCS / "reference" / "recipe.md", "yaml")[0],
    blocks(DOCS / "reference" / "study.md", "yaml")[0],
)
LINK = re.compile(r"\]\(((?!https?:|\{\{)[^)\s]+)\)")


def test_the_readme_is_short():
    """README.md has at most 200 lines."""
    assert len(read(ROOT / "README.md").splitlines()) <= 200


def test_the_recipe_and_study_of_the_reference_go_together(tmp_path):
    """The two YAML files in the reference form a valid study."""
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")

    loaded = load_study(tmp_path, with_files=False)

    assert (loaded.name, [stage.name for stage in loaded.stages]) == ("mine", ["outputs"])
    assert loaded.stages[0].steps == ("TEMP1", "TEMP2")


def test_commented_fields_are_those_of_the_encoder_metric(tmp_path):
    """The commented fields in the reference's study are valid in a stage that scores by `encoder`."""
    active = re.sub(r"# (prompts|clip_skip):", r"\1:", STUDY).replace("metric: attention", "metric: encoder")
    active = active.replace("blocks: OUT03-OUT11", "blocks: BASE").replace("[TEMP1, TEMP2]", "[TEMP1]")
    (tmp_path / "study.yaml").write_text(active, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.replace("OUT03-OUT11}}", "BASE}}").replace("{search: [0, 0.5]}", "0.1"), encoding="utf-8"
    )
    (tmp_path / "mine.txt").write_text("a cat\n", encoding="utf-8")

    stage = load_study(tmp_path, with_files=False).stages[0]

    read = stage.options.of(EncoderOptions)
    assert (read.texts, read.clip_skip, stage.metric) == (("a cat",), 1, "encoder")


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS) or page.name == "README.md"])
def test_python_examples_compile(page):
    """Every Python example compiles, and its imports from blockfit exist."""
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")
        for line in re.findall(r"^from (?:optimizer|blockfit).*", code, re.MULTILINE):
            exec(line, {})  # noqa: S102  the project's own text


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    """The files that a page links or shows exist in the repository, and so do the sections that links name."""
    for target in LINK.findall(read(page)):
        file, _, anchor = target.partition("#")
        linked = Path(posixpath.normpath((page.parent / file).as_posix())) if file else page
        assert linked.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(linked), f"{target}: no such section"


def test_every_page_can_be_reached():
    """mkdocs.yml lists exactly the pages of docs/, and two pages of the root."""
    listed = set(re.findall(r"^ +- (?:[^:\n]+: )?([\w/-]+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE))

    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} | {
        "contributing.md",
        "changelog.md",
    }


def test_every_notebook_has_a_page():
    """The tutorial has a page for every notebook."""
    shown = {
        name for page in (DOCS / "tutorial").glob("*.md") for name in re.findall(r'notebook\("([^"]+)"\)', read(page))
    }

    assert shown == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
