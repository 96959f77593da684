"""Published recipes in the files of cases/; the expected meaning of each is written out here by hand."""

from pathlib import Path

import pytest
from spellings import (
    RISING,
    RISING_TEXT,
    add_difference,
    alone,
    assert_coefficients,
    by_block,
    combined,
    everywhere,
    weight_sum,
)
from step_by_step import BLOCKS

from optimizer.interchange import import_text, read_notation
from optimizer.recipes import block_coefficients

CASES = Path(__file__).with_name("cases")
BETA = [0.25, *RISING[1:]]  # beta in the case files: alpha's numbers with another BASE


def read(name):
    """Read a case without its first line, if that is a description."""
    text = (CASES / name).read_text(encoding="utf-8")
    return read_notation(text.split("\n", 1)[1] if text.startswith("# ") else text)


T1 = weight_sum(alone("A"), alone("B"), everywhere(0.5))
C, D = alone("C"), alone("D")
LAST_STEPS = {
    "MIX <- T1 x 0.7 + C x 0.3": ("MIX", weight_sum(T1, C, everywhere(0.3))),
    "MIX: T1 (0.7) + C (0.3)": ("MIX", weight_sum(T1, C, everywhere(0.3))),
    "0.7(T1) + 0.3(C)": ("merged", weight_sum(T1, C, everywhere(0.3))),
    f"T1 x (1-alpha) + C x alpha ({RISING_TEXT})": ("merged", weight_sum(T1, C, by_block(RISING))),
    "| Add Difference @ 0.3 | T1 | C | D | MIX |": ("MIX", add_difference(T1, C, D, everywhere(0.3))),
    "T1 + (C - D) x 0,3 → MIX": ("MIX", add_difference(T1, C, D, everywhere(0.3))),
    "MIX = T1 + 0.3C - 0.3D": ("MIX", add_difference(T1, C, D, everywhere(0.3))),
    "MIX = T1 60% + C 40%": ("MIX", weight_sum(T1, C, everywhere(0.4))),
    "MIX is T1 x 0.7 + C x 0.3": ("MIX", weight_sum(T1, C, everywhere(0.3))),
    "T1 + C @0.3 = MIX": ("MIX", weight_sum(T1, C, everywhere(0.3))),
    "MIX = T1 x 1/3 + C x 2/3": ("MIX", weight_sum(T1, C, everywhere(2 / 3))),
}


def test_table_of_last_steps_is_complete():
    """The table of last steps has every line of the file, and no other."""
    assert list(LAST_STEPS) == (CASES / "last-steps.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", LAST_STEPS)
def test_last_steps(line):
    """The last step of a recipe is read in every spelling seen in published recipes."""
    output, expected = LAST_STEPS[line]

    imported = read_notation(f"A x 0.5 + B x 0.5 = T1\n{line}")

    assert imported.not_understood == ()
    assert imported.recipe.output == output
    assert_coefficients(block_coefficients(imported.recipe), expected)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("0.7(T1) + 0.3(C)", "line 2: a step without a name; it is called 'merged'"),
        ("T1 + (C - D) x 0,3 → MIX", "line 2: 0,3 is read as 0.3"),
        ("MIX = T1 + 0.3C - 0.3D", "line 2: 0.3C is read as 0.3 x C"),
        ("T1 + C @0.3 = MIX", "line 2: @0.3 is read as the weight of a weighted sum: T1 x 0.7 + C x 0.3"),
    ],
)
def test_interpretations_are_noted(line, note):
    """An interpretation beyond the literal text is noted with its line."""
    assert note in read_notation(f"A x 0.5 + B x 0.5 = T1\n{line}").warnings


def test_half_and_half():
    """A + B without numbers is half of each, and the reported similarities belong to the last step."""
    imported = import_text(CASES / "half-and-half.txt")

    half = weight_sum(alone("ember_pov_a"), alone("ember_pov_b"), everywhere(0.5))
    merge1 = weight_sum(alone("filmDiffusion_10"), half, everywhere(0.15))
    fixed = weight_sum(merge1, alone("v1-5-pruned-emaonly"), everywhere(0.05))
    merge2 = add_difference(fixed, alone("P222_v1"), alone("v1-5-pruned-emaonly"), everywhere(1.0))
    assert [step.name for step in imported.recipe.steps] == ["emAB", "MERGE1", "MERGE1Fix", "MERGE2", "MERGE_BASE"]
    assert_coefficients(block_coefficients(imported.recipe), weight_sum(merge2, alone("oak_e4"), everywhere(0.25)))
    assert imported.warnings == ("line 4: ember_pov_a + ember_pov_b without numbers is read as half of each",)
    assert imported.not_understood == ()
    expect = imported.recipe.step("MERGE_BASE").expect
    assert (expect.total, expect.similarities["OUT03"], expect.similarities["OUT11"]) == (0.954978, 0.916694, 0.999055)


def test_tables():
    """Tables of steps and of a block merge form one recipe; the prose beside them is reported."""
    imported = read("tables.md")

    photo = add_difference(
        alone("photo-model-v6e1_50000"), alone("portrait222"), alone("sd1.5_pruned"), everywhere(1.0)
    )
    weights = [0, 1, 0.9, 0.7, 0.5, 0.3, 0.1, *[0] * 13, 0.1, 0.3, 0.5, 0.7, 0.9, 1]
    base = weight_sum(alone("ComicV3.0"), photo, by_block(weights))
    night = add_difference(base, alone("Nov animefull"), alone("Nov sfw"), everywhere(0.3))
    assert (imported.recipe.output, imported.warnings) == ("CitrusMix_Night", ())
    assert_coefficients(block_coefficients(imported.recipe), night)
    assert_coefficients(block_coefficients(imported.recipe, "CitrusMix_base"), base)
    (named,) = imported.not_understood
    assert named.startswith("line 19: ")
    assert "JUST CitrusMix_base+" in named


def test_weights_below_a_formula():
    """A list of 25 numbers called weights and a base alpha are the alpha of the formula above them."""
    imported = read("weights-below.txt")

    expected = weight_sum(alone("photoA"), alone("comicB"), by_block([0.2, *RISING[1:]]))
    assert_coefficients(block_coefficients(imported.recipe), expected)
    assert (imported.recipe.output, imported.warnings, imported.not_understood) == ("MIX", (), ())


def test_supermergers_name_of_a_sum_twice():
    """The numbers after SuperMerger's name of a sum twice are alpha's, then beta's."""
    imported = read("supermerger-twice.txt")

    inner = weight_sum(alone("photoA"), alone("comicB"), by_block(RISING))
    assert [step.mode for step in imported.recipe.steps] == ["sum_twice"]
    assert_coefficients(block_coefficients(imported.recipe), weight_sum(inner, alone("toonC"), by_block(BETA)))


def test_supermergers_name_of_a_triple_sum():
    """The numbers in SuperMerger's name of a triple sum follow `alpha =` and `beta =` in one parenthesis."""
    imported = read("supermerger-triple.txt")

    alpha, beta = by_block(RISING), by_block(BETA)
    rest = {block: 1 - alpha[block] - beta[block] for block in BLOCKS}
    expected = combined((rest, alone("photoA")), (alpha, alone("comicB")), (beta, alone("toonC")))
    assert [step.mode for step in imported.recipe.steps] == ["triple_sum"]
    assert_coefficients(block_coefficients(imported.recipe), expected)


def test_line_of_model_mixer():
    """A line of model-mixer's is two steps with its own mapping; a title with a hash is a model's name and file."""
    imported = read("model-mixer.txt")

    inner = weight_sum(alone("photoA"), alone("comicB"), by_block(RISING))
    expected = add_difference(inner, alone("toonC"), alone("sd15"), by_block(BETA))
    assert_coefficients(block_coefficients(imported.recipe), expected)
    assert imported.recipe.mapping == "model-mixer"
    assert imported.recipe.models["photoA"].file == "photoA.safetensors [0123456789]"
    assert imported.recipe.models["comicB"].file == "comicB.safetensors"


def test_the_console():
    """The console's output is a step: 25 numbers without BASE, whose number is the alpha."""
    imported = read("console.txt")

    expected = weight_sum(alone("photoA"), alone("comicB"), by_block([0.3, *RISING[1:]]))
    assert_coefficients(block_coefficients(imported.recipe), expected)
    assert imported.warnings == ("line 1: a step without a name; it is called 'merged'",)
