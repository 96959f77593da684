"""Words and signs of steps in many spellings: each is read with its meaning, and no step is lost."""

import pytest
import spellings
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings import (
    ADD_DIFFERENCES,
    RISING,
    RISING_TEXT,
    WEIGHT_SUMS,
    add_difference,
    alone,
    assert_coefficients,
    by_block,
    everywhere,
    spelled,
    texts,
    weight_sum,
)
from step_by_step import BLOCKS

from optimizer.errors import RecipeError
from optimizer.interchange import read_notation
from optimizer.recipes import block_coefficients

FIRST = "A x 0.5 + B x 0.5 = T1\n"
T1 = weight_sum(alone("A"), alone("B"), everywhere(0.5))
WEIGHTED = "MIX = T1 x (1-alpha) + C x alpha\n"


def read(text):
    """Read a text below the first step and return the result; every line must be understood."""
    return spellings.read(FIRST + text)


def reported_lines(text):
    """Return the lines that are not understood, from the warnings or from the error."""
    try:
        return read_notation(FIRST + text).not_understood
    except RecipeError as error:
        return error.problems


@pytest.mark.parametrize("template", WEIGHT_SUMS)
def test_weight_sums(template):
    """Every spelling of a weight sum is read as the same step."""
    imported = read(spelled(template, "MIX", {"a": "T1", "b": "C"}, 0.3))

    assert imported.recipe.output == "MIX"
    assert_coefficients(block_coefficients(imported.recipe), weight_sum(T1, alone("C"), everywhere(0.3)))


@pytest.mark.parametrize("template", ADD_DIFFERENCES)
def test_add_differences(template):
    """Every spelling of an add difference is read as the same step."""
    imported = read(spelled(template, "MIX", {"a": "T1", "b": "C", "c": "D"}, 0.3))

    expected = add_difference(T1, alone("C"), alone("D"), everywhere(0.3))
    assert_coefficients(block_coefficients(imported.recipe), expected)


@settings(max_examples=100, deadline=None)
@given(drawn=texts())
def test_texts_in_any_spelling(drawn):
    """A chain of steps in different spellings has the coefficients of its formulas."""
    text, lines, output, expected = drawn

    imported = read_notation(text)

    assert imported.recipe.output == output
    assert len(imported.recipe.steps) == len(lines)
    assert_coefficients(block_coefficients(imported.recipe), expected)


@settings(max_examples=100, deadline=None)
@given(drawn=texts(), data=st.data())
def test_no_step_is_lost(drawn, data):
    """Every damaged step is read or reported with its line."""
    text, starts, _, _ = drawn
    lines = text.split("\n")
    broken = data.draw(st.lists(st.sampled_from(starts), unique=True))
    for line in broken:
        damage = data.draw(st.sampled_from([" x B x 2", " + + Z x 0.5", " (((", " & more x 0.3", " ?? 0.7 x"]))
        lines[line - 1] += damage
    text = "\n".join(lines)
    steps, problems = set(), ()
    try:
        imported = read_notation(text)
        steps, problems = {step.name.split("_")[0] for step in imported.recipe.steps}, imported.not_understood
    except RecipeError as error:
        problems = error.problems

    reported = {line for line in starts if any(f"line {line}:" in problem for problem in problems)}
    # An error prevents the recipe, so it does not list the lines that were understood.
    assert len(steps) + len(reported) == len(starts) if steps else reported.intersection(broken)


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("MIX = T1 x 0.7 + Anything V3 x 0.3", {"Anything V3"}),
        ("MIX = T1 x 0.7 + Stable Diffusion 1.5 x 0.3", {"Stable Diffusion 1.5"}),
        ("0.7(T1) + 0.3(my-model-v2)", {"my-model-v2"}),
        ("0.7(T1) + 0.3(my-model)", {"my-model"}),
        ("T1 + (NAI full - NAI sfw) x 0.3 = MIX", {"NAI full", "NAI sfw"}),
        ("T1 + (NAI-NAISFW) x 0.3 = MIX", {"NAI", "NAISFW"}),
        ("| Weighted Sum @ 0.3 | T1 | Berry's Mix [part 1] | MIX |", {"Berry's Mix [part 1]"}),
    ],
)
def test_names_with_spaces_and_dashes(text, models):
    """A model's name can contain spaces, numbers and dashes where the text is unambiguous."""
    assert set(read(text).recipe.models) == {"A", "B"} | models


def test_names_with_spaces_are_noted():
    """Words that are read as one name are noted, once for each name and line."""
    assert read("MIX = T1 x 0.7 + Anything V3 x 0.3").warnings == ("line 2: 'Anything V3' is taken for one name",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{WEIGHTED}{RISING_TEXT}", RISING),
        (f"{WEIGHTED}weights: {RISING_TEXT}", RISING),
        (f"{WEIGHTED}MBW = [{RISING_TEXT}]", RISING),
        (f"{WEIGHTED}base_alpha: 0.2\nweights: {RISING_TEXT.split(',', 1)[1]}", [0.2, *RISING[1:]]),
        (f"{WEIGHTED}weights:\n{RISING_TEXT}", RISING),
        (f"{WEIGHTED}alpha = ({RISING_TEXT.replace(',', ' ')})", RISING),
        (f"{WEIGHTED}alpha = ({RISING_TEXT.replace(',', ';').replace('.', ',')})", RISING),
        (f"{WEIGHTED}alpha = ({RISING_TEXT.replace(',', ', ').replace('.', ',')})", RISING),
        (f"MIX = T1 x (1-alpha) + C x alpha (0.5,{RISING_TEXT})", RISING),
        (f"MIX = T1 x (1-alpha) + C x alpha (0.5,[{RISING_TEXT.split(',', 1)[1]}])", RISING),
        (f"MIX = T1 x (1-alpha) + C x alpha ({RISING_TEXT}", RISING),
        (f"{WEIGHTED}alpha = 0,3", [0.3] * 26),
        (f"{WEIGHTED}alpha: 30%", [0.3] * 26),
    ],
)
def test_lists_of_numbers(text, expected):
    """Numbers below or after a formula are its alpha, with any usual words and separators."""
    imported = read(text)

    assert_coefficients(block_coefficients(imported.recipe), weight_sum(T1, alone("C"), by_block(expected)))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("① T1 x 0.7 + C x 0.3\n② ① x 0.5 + D x 0.5", {"①": ("T1", "C"), "②": ("①", "D")}),
        ("① = T1 x 0.7 + C x 0.3\n① x 0.5 + D x 0.5 = ②", {"①": ("T1", "C"), "②": ("①", "D")}),
        ("①T1 x 0.7 + C x 0.3 = M1\n②① x 0.5 + D x 0.5 = M2", {"M1": ("T1", "C"), "M2": ("M1", "D")}),
        (
            "Step 1: T1 x 0.7 + C x 0.3 = M1\nStep 2: Step 1 x 0.5 + D x 0.5 = M2",
            {"M1": ("T1", "C"), "M2": ("M1", "D")},
        ),
        ("Step 1: T1 x 0.7 + C x 0.3\nY = Step1 x 0.5 + D x 0.5", {"Step 1": ("T1", "C"), "Y": ("Step 1", "D")}),
        ("M1 = T1 x 0.7 + C x 0.3\nFINAL = M1\nM2 = FINAL x 0.5 + D x 0.5", {"M1": ("T1", "C"), "M2": ("M1", "D")}),
    ],
)
def test_references_by_number_and_label(text, steps):
    """A circled number, a label or a second name refers to the step of its line."""
    found = {step.name: tuple(step.inputs.values()) for step in read(text).recipe.steps}

    assert found == {"T1": ("A", "B")} | steps


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("GRAD_V", {"BASE": 0, "IN00": 1, "IN01": 11 / 12, "M00": 0, "OUT00": 1 / 12, "OUT11": 1}),
        ("FLAT_25", {"BASE": 0, "IN00": 0.25, "OUT11": 0.25}),
        ("WRAP08", {"BASE": 0, "IN03": 1, "IN04": 0, "OUT07": 0, "OUT08": 1}),
        ("MID12_50", {"IN04": 0, "IN05": 0.5, "M00": 0.5, "OUT05": 0.5, "OUT06": 0}),
        ("RING08_SOFT", {"IN04": 0, "IN05": 0.5, "IN06": 1, "IN09": 0.5, "IN10": 0, "OUT02": 0.5}),
        ("SMOOTHSTEP", {"IN01": 0.00506365740740741, "M00": 0.5, "OUT11": 1}),
        ("SMOOTHSTEP*3", {"IN01": 0.0151909722222222, "IN10": 0.871527777777778, "M00": 0.5}),
        ("R_SMOOTHSTEP/2", {"IN00": 1, "IN01": 0.980324074074074, "M00": 0}),
        ("COSINE", {"IN00": 1, "IN01": 0.995722430686905, "OUT11": 0}),
        ("TRUE_CUBIC_HERMITE", {"IN00": 0, "IN01": 0.199031876929012, "OUT10": 0.842634789737655}),
        ("FAKE_REVERSE_CUBIC_HERMITE", {"IN00": 1, "IN01": 0.842423804012346, "OUT11": 0}),
        ("ALL_B", {"BASE": 1, "IN00": 1, "OUT11": 1}),
    ],
)
def test_built_in_presets_of_supermerger(name, values):
    """An alpha can be the name of a SuperMerger preset, with the preset's published numbers."""
    imported = read(f"{WEIGHTED}alpha = {name}")

    found = imported.recipe.step("MIX").alpha
    assert {block: found.at(block) for block in values} == pytest.approx(values, abs=1e-9)
    assert imported.warnings == (f"line 3: {name} is SuperMerger's own preset, BASE {values.get('BASE', 0)}",)


def test_preset_of_the_text_overrides_supermergers():
    """A preset in the text overrides SuperMerger's preset of the same name."""
    imported = read(f"{WEIGHTED}weights: OUT07\nOUT07\t{RISING_TEXT}")

    assert [imported.recipe.step("MIX").alpha.at(block) for block in BLOCKS] == RISING
    assert imported.warnings == ()


@pytest.mark.parametrize(
    "line",
    [
        "T1 0.7 C 0.3",
        "then T1 with 30% of C on top",
        "I mixed photoA 70% and comicB 30%",
        "photoA 0.6 + comicB (0.2)",
        "Weighted Sum @ 0.05 to make tempmodel1",
        f"some numbers: {RISING_TEXT}",
        " ".join(["0.25"] * 21),
        "| T1 | C | 0.3 | MIX |",
        "| a | b | Add Difference @ 0.4 |",
        "MIX <- T1 x 0.7 + C x 0.2",
        "MIX = T1 x 0.7 + C x 0.2",
        "T1:C 7:3 → MIX",
        "T1を0.7、Cを0.3でマージ",
        "MIX = T1 & C x 0.3",
        "MIX = T1(70%) C(30%)",
        "MIX = T1 + 0.3C",
        "GRAD_V",
        "MIX = T1 x (1-a) + C x a, a = 0.3",
        "MIX = T1 x 0.7 + C x 0.3 (BASE only)",
        "(Smooth Add Difference 0.3) T1 + C + D = MIX",
        "(Weighted sum cosineA 0.3) T1 + C = MIX",
        "Train difference @ 1.0: T1 + C + D = MIX",
        "alpha_0 and dare_weights(diff C, drop=0.5) * alpha_1 (0.5),(0.5)",
    ],
)
def test_lines_that_look_like_a_step_are_reported(line):
    """A line that looks like a step but cannot be read is reported, never ignored."""
    assert any("line 2: " in problem for problem in reported_lines(line))


@pytest.mark.parametrize(
    "line",
    [
        "T1 is the first of my merges.",
        "## T1 (the first one)",
        "Thanks to all who made A and B!",
        "Steps: 28, Sampler: DPM++ SDE Karras, CFG scale: 8, Model: T1, Denoising strength: 0.6",
        "(worst quality, low quality:1.4), (depth of field, blurry:1.2)",
        "Released on 2023.05.01, version 2.0",
        '<img src="https://x.example/a.png?b=c" width="1000">',
        "[download T1](https://x.example/download?id=3&x=0.5)",
        "Ctrl + C -> copy",
        "| Step | Model |",
        "| --- | --- |",
        "Weight: 3.97 GB",
        "Weighted sum and add difference were used.",
    ],
)
def test_prose_is_not_reported(line):
    """Sentences, headings, prompts, links and settings of pictures are not steps, even with a step's name."""
    imported = read_notation(f"{FIRST}{line}")

    assert (imported.warnings, imported.not_understood) == ((), ())


@pytest.mark.parametrize(
    "line",
    [
        "MIX = T1 x 0.7 + C x 0.2",
        "MIX = T1 + C + D",
        "T1 x 0.7 + C x 0.3 = MIX = BEST",
        "T1 & C x 0.3 = MIX",
        "MIX = T1(70%) C(30%)",
        "Merge T1 and C at 0.3 = MIX",
        "T1:C 7:3 → MIX",
        "MIX = T1 x 0.7 + models/C.safetensors x 0.3",
        "MIX: T1 x 0.7 + C x 0.2",
        "MIX = weighted_sum(a=T1, b=C, alpha=0.3)",
    ],
)
def test_lost_last_step_is_an_error(line):
    """A line that continues from the output but is not understood is an error, since the recipe would end early."""
    with pytest.raises(RecipeError) as caught:
        read_notation(FIRST + line)

    (problem,) = caught.value.problems
    assert problem.startswith("line 2: not understood: ")
    assert "it continues from 'T1', and the recipe would end a step too early" in problem


@pytest.mark.parametrize(
    "line",
    [
        "T1 similarity = 0.95",
        "M2 = A x 0.7 + C x 0.2",
        "# MIX = T1 x 0.7 + C x 0.2",
        "| T1 | 97.5% | good |",
        "T1 settings: steps = 20, cfg = 7",
    ],
)
def test_remarks_and_unused_steps_are_warnings(line):
    """Remarks on the output, unused steps and comments are reported, and the recipe is returned."""
    imported = read_notation(FIRST + line)

    assert imported.recipe.output == "T1"
    assert [problem.split(":")[0] for problem in imported.not_understood] == ["line 2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"T1 + C = MIX\nweights: {RISING_TEXT}", weight_sum(T1, alone("C"), by_block(RISING))),
        (
            f"T1 + C = MIX\nbase_alpha: 0.2\nweights: {RISING_TEXT.split(',', 1)[1]}",
            weight_sum(T1, alone("C"), by_block([0.2, *RISING[1:]])),
        ),
        (f"T1 + (C - D) = MIX\nalpha = ({RISING_TEXT})", add_difference(T1, alone("C"), alone("D"), by_block(RISING))),
        (f"MIX = T1 + C - D, alpha = ({RISING_TEXT})", add_difference(T1, alone("C"), alone("D"), by_block(RISING))),
        ("T1 + C = MIX (OUT07)", weight_sum(T1, alone("C"), by_block([0] * 19 + [1] * 7))),
        (
            f"M1 = T1 x (1-alpha) + C x alpha\nalpha: 0.3\nM1 + D = MIX\nweights: {RISING_TEXT}",
            weight_sum(weight_sum(T1, alone("C"), everywhere(0.3)), alone("D"), by_block(RISING)),
        ),
    ],
)
def test_numbers_for_a_formula_without_any(text, expected):
    """Two or three models without a number take the numbers beside or below them as their alpha, with a note."""
    imported = read(text)

    assert_coefficients(block_coefficients(imported.recipe), expected)
    assert any("is read as" in warning for warning in imported.warnings)


@pytest.mark.parametrize(
    ("text", "models", "steps"),
    [
        ("MIX.safetensors = T1.safetensors x 0.7 + C.ckpt x 0.3", ["A", "B", "C.ckpt"], ["T1", "MIX.safetensors"]),
        ("M.ckpt = T1 x 0.7 + C x 0.3\nMIX = M x 0.5 + C.safetensors x 0.5", ["A", "B", "C"], ["T1", "M.ckpt", "MIX"]),
        ("MIX = T1 x 0.7 + A.safetensors x 0.3", ["A", "B"], ["T1", "MIX"]),
    ],
)
def test_names_with_and_without_an_extension(text, models, steps):
    """A step or model is the same with and without the extension of its file, with a note."""
    imported = read(text)

    assert (list(imported.recipe.models), [step.name for step in imported.recipe.steps]) == (models, steps)
    assert any("is taken for the" in warning for warning in imported.warnings)


def test_hashes_after_names():
    """A short hash after a model's name becomes part of its file, to find and check the checkpoint."""
    imported = read('MIX = T1 [0123456789] x 0.7 + C [6ce0161689] x 0.2 + "D e" [6CE01616] x 0.1')

    files = {name: model.file for name, model in imported.recipe.models.items()}
    assert files == {
        "A": "A.safetensors",
        "B": "B.safetensors",
        "C": "C.safetensors [6ce0161689]",
        "D e": "D e.safetensors [6ce01616]",
    }


def test_formula_without_a_name_that_has_one_elsewhere():
    """A formula that is repeated without its name is not a second step."""
    imported = read("MIX = T1 x 0.7 + C x 0.3\nT1 x 0.7 + C x 0.3")

    assert [step.name for step in imported.recipe.steps] == ["T1", "MIX"]


def test_names_of_merges_by_webuis():
    """The names that the WebUI and SuperMerger give to merges are steps without a name."""
    imported = read_notation("0.7(photo-real) + 0.3(comic)\np + 0.5(q - r)")

    assert [(step.name, step.mode) for step in imported.recipe.steps] == [
        ("merged", "weight_sum"),
        ("merged-2", "add_difference"),
    ]


@pytest.mark.parametrize(
    ("words", "left"), [("(baked VAE)", True), ("(BASE only)", False), ("(IN blocks)", False), ("(0.5)", False)]
)
def test_words_after_the_name(words, left):
    """Words in parentheses after a step's name are ignored, with a note, unless they are about blocks."""
    text = f"T1 x 0.7 + C x 0.3 = MIX {words}"

    if left:
        assert read(text).warnings == (f"line 2: '{words}' is ignored",)
    else:
        assert any("line 2: " in problem for problem in reported_lines(text))
