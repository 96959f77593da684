"""What README.md tells people to write and type is right."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from optimizer.cli import app
from optimizer.similarity import EncoderOptions
from optimizer.studies import load_study

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_recipe_and_study_of_the_reference_go_together(tmp_path):
    """The two YAML files that README.md explains are a study, as they stand there."""
    recipe, study = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "study.yaml").write_text(study, encoding="utf-8")

    loaded = load_study(tmp_path, with_files=False)

    assert (loaded.name, [stage.name for stage in loaded.stages]) == ("mine", ["outputs"])
    assert loaded.stages[0].steps == ("TEMP1", "TEMP2")


def test_commented_fields_are_right_where_they_belong(tmp_path):
    """The fields that stand there as comments are those of a stage that scores by `encoder`."""
    recipe, study = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    active = re.sub(r"# (prompts|clip_skip):", r"\1:", study).replace("metric: attention", "metric: encoder")
    active = active.replace("blocks: OUT03-OUT11", "blocks: BASE").replace("[TEMP1, TEMP2]", "[TEMP1]")
    (tmp_path / "study.yaml").write_text(active, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        recipe.replace("OUT03-OUT11}}", "BASE}}").replace("{search: [0, 0.5]}", "0.1"), encoding="utf-8"
    )
    (tmp_path / "mine.txt").write_text("a cat\n", encoding="utf-8")

    stage = load_study(tmp_path, with_files=False).stages[0]

    read = stage.options.of(EncoderOptions)
    assert (read.texts, read.clip_skip, stage.metric) == (("a cat",), 1, "encoder")


def test_python_of_the_reference_is_python():
    """Every Python example compiles, and what it imports from blockfit is there."""
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        compile(code, "README.md", "exec")
        for line in re.findall(r"^from optimizer.*", code, re.MULTILINE):
            exec(line, {})  # noqa: S102  the project's own text


def test_every_command_is_in_the_table():
    """The table of commands names every command there is, and none that is not."""
    table = TEXT[TEXT.index("## Commands") : TEXT.index("`blockfit COMMAND --help`")]
    named = set(re.findall(r"[`(, ]([a-z]+)(?= [A-Z\[]|`,)", " ".join(re.findall(r"`[^`]+`,?", table))))

    assert named == set(get_command(app).commands)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\(((?!http|#)[^)]+)\)", TEXT))))
def test_links_lead_somewhere(name):
    """What README.md links or shows is in the repository."""
    assert (ROOT / name).exists()


def test_links_within_the_page():
    """Links to sections name sections."""
    sections = {
        re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)", TEXT, re.MULTILINE)
    }

    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= sections
