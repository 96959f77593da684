"""The files in configs/, which users copy."""

import re
from pathlib import Path

import pytest

from optimizer.interchange import import_text
from optimizer.recipes import load_recipe
from optimizer.similarity import METRICS, EncoderOptions
from optimizer.studies import load_study

CONFIGS = Path(__file__).parents[2] / "configs"
ARTICLE = Path(__file__).parents[1] / "interchange" / "article.txt"


@pytest.mark.parametrize(("name", "free"), [("recipe.yaml", 0), ("search.yaml", 2)])
def test_recipes_load(name: str, free: int) -> None:
    """Every recipe in configs/ can be read, and has the number of free alphas in its comment."""
    recipe = load_recipe(CONFIGS / name)

    assert sum(len(step.alpha.free) for step in recipe.steps) == free


def test_study_loads() -> None:
    """The study in configs/ can be read; its ten parameters are the free alphas of its recipe."""
    (stage,) = load_study(CONFIGS / "study.yaml", with_files=False).stages

    assert [parameter.name for parameter in stage.parameters] == [
        "TEMP1.alpha", *(f"TEMP2.OUT{number:02}" for number in range(3, 12))
    ]  # fmt: skip


def test_study_names_every_choice(tmp_path: Path) -> None:
    """The study in configs/ names all metrics, and its commented options are valid."""
    text = (CONFIGS / "study.yaml").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("metric:"))
    (tmp_path / "search.yaml").write_text(
        "models: {base: {file: base}, x: {file: x}}\n"
        "steps:\n  - {name: T, mode: weight_sum, a: base, b: x, alpha: {search: [0, 1], blocks: BASE}}\n",
        encoding="utf-8",
    )
    (tmp_path / "mine.txt").write_text("seven\n", encoding="utf-8")
    written = re.sub("(?m)^    # ", "    ", text).replace("OUT03-OUT11 ", "BASE ")
    (tmp_path / "study.yaml").write_text(written.replace("metric: attention", "metric: encoder"), encoding="utf-8")

    (stage,) = load_study(tmp_path / "study.yaml", with_files=False).stages

    assert all(re.search(rf"[|:#] {name}\b", line) for name in METRICS)
    read = stage.options.of(EncoderOptions)
    assert (stage.metric, read.texts, read.clip_skip) == ("encoder", ("seven",), 1)


def test_the_articles_recipe_matches_the_article() -> None:
    """configs/blessingmix-v1.yaml matches the article: 18 steps, ten sources and the target."""
    article = import_text(ARTICLE)
    recipe = load_recipe(CONFIGS / "blessingmix-v1.yaml")

    assert len(recipe.steps) == 18
    read = article.recipe
    assert {step.name: step for step in recipe.steps} == {step.name: step for step in read.steps}
    assert (recipe.models, recipe.output, recipe.mapping) == (read.models, read.output, read.mapping)
    lines = ARTICLE.read_text(encoding="utf-8").splitlines()
    template, in_words = (
        next(number for number, line in enumerate(lines, 1) if part in line)
        for part in ("BASE_FIXED_MODEL =", "BlessingMix V1 = BlessingMixV0 + ")
    )
    assert [text.split(":")[0] for text in article.not_understood] == [f"line {template}", f"line {in_words}"]
    assert ["FINAL_OUTPUTS" in text or "BlessingEncV0" in text for text in article.warnings] == [True, True, False]
    assert {model.license for model in recipe.models.values()} == {"unknown"}
    expected = {step.name: step.expect for step in recipe.steps if step.expect is not None}
    assert list(expected) == [
        *(f"TEMP{n}" for n in range(1, 8)), "FINAL_OUTPUTS", "SAVE1", "SAVE2", "SAVE3", "FINAL_INPUTS"
    ]  # fmt: skip
    # The article's totals are the means of its tables, to the digits that it prints.
    for name, total in (("FINAL_OUTPUTS", 0.985187), ("FINAL_INPUTS", 0.986075)):
        values = list(expected[name].similarities.values())
        assert (expected[name].total, round(sum(values) / len(values), 6)) == (total, total)


def test_the_articles_study_matches_the_article() -> None:
    """studies/blessingmix has the free alphas and the three stages of the article."""
    study = load_study(CONFIGS.parent / "studies" / "blessingmix", with_files=False)
    whole = load_recipe(CONFIGS / "blessingmix-v1.yaml")

    outputs, inputs, base = study.stages
    assert [parameter.name for parameter in outputs.parameters] == [
        *(f"TEMP{n}.alpha" for n in range(1, 7)),
        *(f"TEMP7.OUT{n:02}" for n in range(6, 12)),
        "FINAL_OUTPUTS.OUT03",
        "FINAL_OUTPUTS.OUT04",
    ]
    assert len(inputs.parameters) == 1 + 13 + 4 + 3 + 5
    assert [parameter.name for parameter in base.parameters] == ["TRY1.BASE", "TRY1.beta.BASE", "BlessingEncV0.BASE"]
    for step in study.recipe.steps:
        original = whole.step(step.name)
        assert (step.mode, step.inputs) == (original.mode, original.inputs)
        for name, alpha in original.alphas.items():
            searched = {block for free in step.alphas[name].free for block in free.blocks}
            rest = {block for block, value in alpha.values.items() if value} - searched
            # Of the text encoder's steps only BASE is used.
            unused = step.name in ("TRY1", "BlessingEncV0")
            assert unused or {block: step.alphas[name].at(block) for block in rest} == dict.fromkeys(rest, 1.0)
