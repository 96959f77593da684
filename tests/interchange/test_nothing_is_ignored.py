"""Text beside, after and below a step is read with it, reported, or refused; it is never ignored."""

import re
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from spellings import (
    ANY_ADD_DIFFERENCES,
    ANY_WEIGHT_SUMS,
    LARGE_DIFFERENCES,
    RISING,
    RISING_TEXT,
    SURPLUS,
    add_difference,
    alone,
    assert_coefficients,
    by_block,
    combined,
    everywhere,
    read,
    spelled,
    texts,
    weight_sum,
)
from step_by_step import BLOCKS

from optimizer.errors import RecipeError
from optimizer.interchange import read_notation
from optimizer.recipes import block_coefficients

A, B, C, D = map(alone, "ABCD")
TWELVE = ",".join(f"{n / 20:g}" for n in range(12))
BY_KIND = [0.2, *(n / 20 for n in range(12)), 0.8, *(n / 20 for n in range(12))]
KINDS = [0.2, *[0.5] * 12, 0.1, *[0.3] * 12]
T1 = "T1 = A x 0.5 + B x 0.5\n"
SIMPLE = "MIX = A x 0.7 + B x 0.3"


def refused(text):
    """Return the lines of the error for a text."""
    with pytest.raises(RecipeError) as caught:
        read_notation(text)
    assert all(sign.isprintable() for problem in caught.value.problems for sign in problem)
    return caught.value.problems


def messages(text):
    """Return all messages about a text: warnings, lines not understood, or problems."""
    try:
        imported = read_notation(text)
    except RecipeError as error:
        return error.problems
    return (*imported.warnings, *imported.not_understood)


@pytest.mark.parametrize("template", ANY_WEIGHT_SUMS)
@pytest.mark.parametrize("number", [1.2, -0.5])
def test_weight_sums_beyond_1(template, number):
    """Every spelling keeps the sign and the size of its number."""
    imported = read(spelled(template, "MIX", {"a": "A", "b": "B"}, number))

    assert_coefficients(block_coefficients(imported.recipe), weight_sum(A, B, everywhere(number)))


@pytest.mark.parametrize(
    ("template", "number"),
    [
        *((template, 1.2) for template in ANY_ADD_DIFFERENCES + LARGE_DIFFERENCES),
        *((t, -0.5) for t in ANY_ADD_DIFFERENCES),
    ],
)
def test_add_differences_beyond_1(template, number):
    """A factor above 1 or below 0 is not part of a name, even without a space between them."""
    imported = read(spelled(template, "MIX", {"a": "A", "b": "B", "c": "C"}, number))

    assert_coefficients(block_coefficients(imported.recipe), add_difference(A, B, C, everywhere(number)))


@settings(max_examples=80, deadline=None)
@given(drawn=texts(most=3), data=st.data())
def test_surplus_line_is_read_or_reported(drawn, data):
    """An additional line about a merge is read, reported with its number, or an error."""
    text, starts, output, expected = drawn
    lines = text.split("\n")
    place = data.draw(st.sampled_from([*(start - 1 for start in starts[1:]), len(lines)]))
    lines.insert(place, data.draw(st.sampled_from(SURPLUS)))
    # A remark on blocks is valid below a step that has numbers by block.
    assume("only" not in lines[place] or not re.search(r"IN\b|IN00|\d,[\d-]", text))

    try:
        imported = read_notation("\n".join(lines))
    except RecipeError:
        return
    if not any(f"line {place + 1}:" in line for line in (*imported.warnings, *imported.not_understood)):
        assert "base alpha" in lines[place]  # the number of BASE and of no other block
        found = block_coefficients(imported.recipe, output)
        assert any(found[name]["BASE"] != expected[name]["BASE"] for name in found)
        assert all(found[name]["OUT03"] == pytest.approx(expected[name]["OUT03"]) for name in found)


# --- Numbers by block below a formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        (f"BASE: 0.2\nIN: {TWELVE}\nM: 0.8\nOUT: {TWELVE}", BY_KIND),
        (f"BASE: 0.2\nIN: {TWELVE}\nM00: 0.8\nOUT: {TWELVE}", BY_KIND),
        (f"- IN: [{TWELVE}]\n- MID: 0.8\n- OUT: [{TWELVE}]\n- BASE: 20%", BY_KIND),
        (f"base_alpha: 0.2\nIN: {TWELVE}\nM00: 0.8\nOUT: {TWELVE}", BY_KIND),
        (f"alpha:\nBASE: 0.2\nIN: {TWELVE}\nM00: 0.8\nOUT: {TWELVE}", BY_KIND),
        ("BASE 0.2\nIN 0.5\nMID 0.1\nOUT 0.3", KINDS),
        ("BASE: 0.2, IN: 0.5, M00: 0.1, OUT: 0.3", KINDS),
        ("alpha = BASE: 0.2, IN: 0.5, MID: 0.1, OUT: 0.3", KINDS),
        ("\n".join(f"{block}: {number}" for block, number in zip(BLOCKS, RISING, strict=True)), RISING),
        ("alpha = 0.3\nBASE: 0.1", [0.1, *[0.3] * 25]),
    ],
)
@pytest.mark.parametrize("formula", ["MIX = A + B", "MIX = A x (1-alpha) + B x alpha"])
def test_numbers_by_block(formula, below, expected):
    """Lines of blocks and numbers are the alpha of the formula above; M is the middle block among other blocks."""
    imported = read(f"{formula}\n{below}")

    assert_coefficients(block_coefficients(imported.recipe), weight_sum(A, B, by_block(expected)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"MIX = A + B\nIN: {TWELVE}\nM: 0.8\nOUT: {TWELVE}", "received 25 numbers; must be 26, BASE first"),
        ("MIX = A + B\nIN: 0.1\nOUT: 0.3\nBASE: 0.2", "no number for M00"),
        ("MIX = A + B\nIN: 0.1,0.2\nM: 0.3\nOUT: 0.3", "IN has 12 blocks in sd1, received 2 numbers"),
        ("MIX = A + B\nIN: 0.1\nIN00: 0.2\nM: 0.3\nOUT: 0.3", "IN00 has two numbers"),
        (f"{SIMPLE}\nIN: {TWELVE}\nM00: 0.8\nOUT: {TWELVE}", "the formula above already has its numbers"),
        (f"{SIMPLE}\nIN00: 0.5", "the formula above already has its numbers"),
        (
            "| Weighted Sum @ 0.3 | A | B | MIX |\nIN: 0.1\nM00: 0.8\nOUT: 0.3",
            "the formula above already has its numbers",
        ),
    ],
)
def test_invalid_numbers_by_block(text, words):
    """Numbers by block that are too few, repeated, or in addition to others are an error."""
    assert any(words in problem for problem in refused(text))


# --- Numbers beside and below two models ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "MIX = A + B\n0.3",
        "MIX = A + B\n(0.3)",
        "MIX = A + B\n30%",
        "MIX = A + B\nratio: 0.3",
        "MIX = A + B\nM 0.3",
        "MIX = A + B\nMultiplier (M): 0.3",
        "MIX = A + B\nWeight: 0.3",
        "MIX = A + B\nalpha 0.3",
        "MIX = A + B\n70:30",
        "MIX = A + B\n0.7 / 0.3",
        "MIX = A + B\nA 0.7, B 0.3",
        "A + B = MIX 0.3",
        "A + B = MIX at 0.3",
        "A + B = MIX weight 0.3",
        "Weighted sum: A + B = MIX\n0.3",
        "A + B 3/10 = MIX",
        "A + B 7:3 = MIX",
        "MIX = A + B\nweights: 0,3",
    ],
)
def test_numbers_for_two_models(text):
    """A number beside or below two models is the weight of the second model."""
    assert_coefficients(block_coefficients(read(text).recipe), weight_sum(A, B, everywhere(0.3)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MIX = A + B\nsome number 0.3 here", "line 2: not understood: a number"),
        ("MIX = A + B\n\nMerged at 0.3.", "line 3: not understood: a number"),
        ("MIX = A + B\nA 70%\nB 30%", "line 2: not understood: a number"),
        ("MIX = A + B\nA: 70, B: 30", "line 2: not understood: a number"),
        ("MIX = A + B\n7/3", "line 2: not understood: a number"),
        ("A + B = MIX using preset GRAD_V", "a step is a formula"),
        ("Weighted sum: A + B = MIX", "MIX.alpha: never given"),
        ("A + B = MIX # 0.3", "the comment '0.3' may be it"),
        ("A + B = MIX (1.5)", "a step is a formula"),
        ("MIX=A+B-C", "'B-C' is one name or a difference"),
        (f"{T1}T2 = A x 0.2 + B x 0.8\nMIX = T1 + T2-C", "'T2-C' is one name or a difference"),
        ("A + 2B - 2C = MIX", "'2B' was taken for a name"),
        ("A + 10B - 10C = MIX", "'10B' was taken for a name"),
        ("A + Bx0.3 - Cx0.3 = MIX", "'Bx0.3' was taken for a name"),
        (f"{T1}T1 + (Cx0.3 - Dx0.3) = MIX", "'Cx0.3' was taken for a name"),
        ("A + (1.2B - 1.2C) = MIX", "the factors add up to 2"),
        ("A + (anything-v3) * 0.5 = MIX", "the factors add up to 1.5"),
        ("MIX = A + B x 0.3", "a weighted sum is A x 0.7 + B x 0.3"),
        ("A x 0.3 + B x 0.7 = X", "'X' is read as part of a formula"),
        ("F = MIX x 0.5 + D x 0.5\nMIX = A x 0.5 + B x 0.5\nMIX = MIX x 0.7 + C x 0.3", "'MIX' is defined differently"),
        ("2A - B = MIX", "'2A' was taken for a name"),
    ],
)
def test_ambiguous_sums(text, words):
    """A sum is refused with a reason if a missing number makes it half of each, or a missing space makes it a name."""
    assert any(words in problem for problem in refused(text))


def test_split_name_is_noted():
    """A name in parentheses with one dash is a difference, with a note."""
    imported = read("A + (Realistic-Vision) x 0.3 = MIX")

    expected = add_difference(A, alone("Realistic"), alone("Vision"), everywhere(0.3))
    assert_coefficients(block_coefficients(imported.recipe), expected)
    assert imported.warnings == ("line 1: (Realistic-Vision) is read as a difference; a name needs quotation marks",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("| Weighted Sum @ 0.3~0.5 | A | B | MIX |", "line 1: "),
        ("| Weighted Sum (0.3, OUT only) | A | B | MIX |", "'OUT only' is about some blocks alone"),
        ("| Weighted Sum @ 0.3 (and 0.2) | A | B | MIX |", "beside the method is not understood"),
        (
            "| Method | A | B | Name |\n|-|-|-|-|\n| Weighted Sum @ 0.3~0.5 | A | B | MIX |",
            "'0.3~0.5' after the method",
        ),
        ("| A | B | Ratio | Name |\n|-|-|-|-|\n| A | B | 7/3 | MIX |", "MIX.alpha: received '7/3'"),
        ("Weighted sum 0.3/0.5/0.2: A + B = MIX", "line 1: "),
    ],
)
def test_malformed_numbers(text, words):
    """A number that continues as something else is never truncated."""
    assert any(words in problem for problem in refused(text))


# --- Per cent ---------------------------------------------------------------------------------------------------------

HEAD = "| Model A | Model B | {} | Result |\n|-|-|-|-|\n| A | B | {} | MIX |"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (HEAD.format("Weight (%)", "30"), 0.3),
        (HEAD.format("Weight %", "30%"), 0.3),
        (HEAD.format("Ratio in percent", "12,5"), 0.125),
        (HEAD.format("M (per cent)", "70:30"), 0.3),
        (HEAD.format("Weight (%)", "0"), 0.0),
        (HEAD.format("MBW (%)", ",".join(["30"] * 26)), 0.3),
        ("A: A\nB: B\nMultiplier (%): 30\nResult: MIX", 0.3),
        ("MIX = A + B\nWeight (%): 30", 0.3),
        ("MIX = A + B\nratio %: 30", 0.3),
    ],
)
def test_per_cent_in_a_header(text, number):
    """A per cent sign in a column's header, or in a key, applies to each number below or after it."""
    assert_coefficients(block_coefficients(read(text).recipe), weight_sum(A, B, everywhere(number)))


@pytest.mark.parametrize(
    "text",
    [
        HEAD.format("Weight", "30"),
        "(Weighted Sum 30) A + B = MIX",
        "A x (1-alpha) + B x alpha = MIX\nalpha = 30",
        "A x (1-alpha) + B x alpha = MIX, alpha = 30",
        "A + B = MIX\nM: 30",
        "A + B @30 = MIX",
        "A + B @30",
        "| Weighted Sum @ 30 | A | B | MIX |",
        "A: A\nB: B\nM: 30\nResult: MIX",
        "MIX = A + B\nIN: 0.3\nM00: 30\nOUT: 0.3\nBASE: 0.1",
        "Add difference 30: A + B + C = MIX",
        "MIX = A + (B - C) x 30",
    ],
)
def test_per_cent_without_its_sign(text):
    """A weight beyond the usual range is refused with a question, anywhere in a text."""
    assert any("as a weight? write 0.3 or 30 %" in problem for problem in refused(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD.format("Weight (%)", "0.3"), "0.3 as per cent? write 0.3 % or 30 %"),
        ("A: A\nB: B\nMultiplier (%): 0.3\nResult: MIX", "0.3 as per cent? write 0.3 % or 30 %"),
        ("MIX = A + B\nWeight (%): 0.3", "0.3 as per cent? write 0.3 % or 30 %"),
        ("MIX = A + B\n30", "line 1 has none, and would be half of each"),
        ("| A (%) | B (%) | Weight | Result |\n|-|-|-|-|\n| 70 | 30 | 1 | MIX |", "no formula was found"),
    ],
)
def test_numbers_that_may_be_per_cent(text, words):
    """A number that is ambiguous between share and per cent is refused with a question."""
    assert any(words in problem for problem in refused(text))


@pytest.mark.parametrize("number", [-3.0, 2.5, 3.0])
def test_usual_weights(number):
    """A weight of up to three times a difference is valid."""
    imported = read(f"MIX = A + (B - C) x alpha\nalpha = {number}")

    assert_coefficients(block_coefficients(imported.recipe), add_difference(A, B, C, everywhere(number)))


def test_numbers_of_tools_are_read_and_noted():
    """The notation of this package and SuperMerger's console contain exact numbers, which are read at any size."""
    ours = read('recipe: "r"\nA x (1-alpha) + B x alpha = MIX\nalpha = 30')
    console = read("  model A  : A\n  model B  : B\n  alpha,beta : (30, 0)\n  mode : Weight sum\n  MBW : False")

    for imported, line in ((ours, "line 3: MIX.alpha"), (console, "line 1: merged.alpha")):
        assert_coefficients(block_coefficients(imported.recipe), weight_sum(A, B, everywhere(30.0)))
        assert f"{line}: the weight 30 is beyond 3; is it per cent?" in imported.warnings


# --- An arrow and a name on a separate line ---------------------------------------------------------------------------

CHAIN = weight_sum(weight_sum(A, B, everywhere(0.3)), C, everywhere(0.5))


@pytest.mark.parametrize("arrow", ["→ ", "-> ", "=> ", "⇒ ", "↓ ", "↓\n", "= ", "⬇️ ", "  - → ", "\n--> "])
def test_names_on_separate_lines(arrow):
    """A name after an arrow on a separate line names the formula above it, also the last formula."""
    imported = read(f"A x 0.7 + B x 0.3\n{arrow}T1\nT1 x 0.5 + C x 0.5\n{arrow}MIX")

    assert [step.name for step in imported.recipe.steps] == ["T1", "MIX"]
    assert imported.warnings == ()
    assert_coefficients(block_coefficients(imported.recipe), CHAIN)


@pytest.mark.parametrize(
    "text",
    [
        "A x 0.7 + B x 0.3 = T1\nT1 x 0.5 + C x 0.5\n→ MIX",
        "A x 0.7 + B x 0.3 →\nT1\nT1 x 0.5 + C x 0.5 →\nMIX",
        "1. A x 0.7 + B x 0.3\n   → `T1`\n2. T1 x 0.5 + C x 0.5\n   → **MIX**",
        "① A x 0.7 + B x 0.3\n→ T1\n② ① x 0.5 + C x 0.5\n→ MIX",
        "Step 1: A x 0.7 + B x 0.3\n→ T1\nStep 2: T1 x 0.5 + C x 0.5\n→ MIX",
        "(Weighted Sum 0.3) A + B\n→ T1\n(Weighted Sum 0.5) T1 + C\n→ MIX",
        "A x (1-alpha) + B x alpha\nalpha = 0.3\n→ T1\nT1 x (1-alpha) + C x alpha\n→ MIX\nalpha = 0.5",
    ],
)
def test_names_below_steps_of_any_kind(text):
    """Numbers, labels, methods and bullets do not separate a formula from the name below it."""
    imported = read(text)

    assert [step.name for step in imported.recipe.steps] == ["T1", "MIX"]
    assert_coefficients(block_coefficients(imported.recipe), CHAIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("→ T1\nA x 0.7 + B x 0.3\n→ MIX\nT1 x 0.5 + C x 0.5", "an arrow and a name above the formula as well"),
        ("A x 0.7 + B x 0.3\n→ T1 → T2", "line 2: not understood: more than one arrow"),
        ("A x 0.7 + B x 0.3\n> T1\nT1 x 0.5 + C x 0.5", "the name of the formula above? write = T1 after it"),
        ("A x 0.7 + B x 0.3\nT1\nT1 x 0.5 + C x 0.5", "the name of the formula above? write = T1 after it"),
    ],
)
def test_ambiguous_names_on_separate_lines(text, words):
    """A name on a separate line is refused if it may belong to another formula, or has no sign before it."""
    assert any(words in problem for problem in refused(text))


def test_second_name_after_an_arrow():
    """A formula keeps its own name; a second name is reported."""
    assert read(f"{SIMPLE}\n→ T2").warnings == ("line 2: 'T2' is ignored: the formula above is called 'MIX'",)


# --- Names that may be differences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "T1 = A x 0.5 + B x 0.5\nT2 = A x 0.2 + C x 0.8\nMIX = 0.7*A + 0.3*(T1-T2)",
        "T1 = A x 0.5 + B x 0.5\nMIX = 0.7*T1 + 0.3*(A-B)",
        "T1 = A x 0.5 + B x 0.5\nMIX = T1 x 0.7 + A-B x 0.3",
    ],
)
def test_differences_are_not_names(text):
    """If both sides of a dash are names in the text, the whole is not a name."""
    assert any("is one name or a difference" in problem for problem in refused(text))


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("MIX = 0.7*A + 0.3*(B-C)", ("line 1: 'B-C' is taken for one name",)),
        ('MIX = 0.7*A + 0.3*("B-C")', ()),
        ("MIX = 0.7*A + 0.3*(anything-v3)", ()),
        ('model B: "b"\nmodel C: "c"\nmodel B-C: "d"\nMIX = A x 0.7 + B-C x 0.3', ()),
    ],
)
def test_names_with_a_dash(text, warnings):
    """A name that can only be a name is read, and noted if it looks like a difference."""
    imported = read(text)

    assert imported.warnings == warnings
    assert imported.recipe.steps[0].b in ("B-C", "anything-v3")


# --- Numbers twice, and after the name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "A x (1-alpha) + B x alpha = MIX\nalpha = 0.3\nalpha = 0.4",
        "A x (1-alpha) + B x alpha = MIX, alpha = 0.3\nalpha = 0.4",
        "A x (1-alpha) + B x alpha = MIX, alpha = 0.3, alpha = 0.4",
    ],
)
def test_two_numbers_for_one_step(text):
    """Two different numbers for one step are ambiguous and refused."""
    assert any("has its alpha" in problem or "two numbers for alpha" in problem for problem in refused(text))


@pytest.mark.parametrize(
    "text",
    [
        "A x (1-alpha) + B x alpha = MIX  alpha = 30%",
        "A + B = MIX  alpha = 0.3",
        "MIX = A x (1-alpha) + B x alpha  alpha: 0,3",
        "A x (1-alpha) + B x alpha → MIX weight = 0.3",
        f"A x (1-alpha) + B x alpha = MIX alpha = ({','.join(['0.3'] * 26)})",
        "A x (1-alpha) + B x alpha = MIX\nalpha = 0.3\nalpha = 0.3",
    ],
)
def test_numbers_after_the_name(text):
    """A number on the line of its step needs no comma before it."""
    assert_coefficients(block_coefficients(read(text).recipe), weight_sum(A, B, everywhere(0.3)))


def test_output_of_several_endings():
    """Of the steps that need the same number of others, the last is the output; unused steps are reported."""
    tie = read("A x 0.7 + B x 0.3 = T1\nC x 0.7 + B x 0.3 = T2").warnings
    longest = read(f"{T1}T2 = T1 x 0.5 + C x 0.5\nT3 = C x 0.5 + D x 0.5").warnings
    some = read(f"{T1}T2 = T1 x 0.5 + C x 0.5\nT3 = T1 x 0.5 + D x 0.5\nT4 = C x 0.5 + D x 0.5").warnings

    assert "; 'T3', the last of them that need the most steps, is the output, and nothing uses 'T2', 'T4'" in some[0]
    assert tie == ("the text ends in 'T1', 'T2'; 'T2', the last of them, is the output, and nothing uses 'T1'",)
    assert longest == (
        "the text ends in 'T2', 'T3'; 'T2', which needs the most steps, is the output, and nothing uses 'T3'",
    )


# --- Words that change the merge --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "train difference",
        "cosineA",
        "DARE",
        "Smooth Add",
        "OUT blocks only",
        "UNet only",
        "MBW GRAD_V",
        "except BASE",
        "without CLIP",
        "text encoder of A",
        "only IN",
        "TIES",
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "{words}: MIX = A x 0.7 + B x 0.3",
        "MIX = A x 0.7 + B x 0.3 ({words})",
        "A x 0.7 + B x 0.3 = MIX ({words})",
        "A x 0.7 + B x 0.3 = MIX {words}",
        "A x 0.7 + B x 0.3 = MIX using {words}",
        "MIX = A x 0.7 + B x 0.3 # {words}",
        "MIX = A x 0.7 + B x 0.3  // {words}",
        "| A | B | M | How | Name |\n|-|-|-|-|-|\n| A | B | 0.3 | {words} | MIX |",
        "| Weighted Sum @ 0.3 ({words}) | A | B | MIX |",
        "| Weighted Sum @ 0.3 | A | B ({words}) | MIX |",
        "A: A\nB: B\nM: 0.3\nCalc mode: {words}\nResult: MIX",
    ],
)
def test_words_that_change_the_merge(text, words):
    """Words for another method anywhere beside a formula refuse the step, since its result would differ."""
    assert any("line" in problem for problem in refused(text.replace("{words}", words)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{SIMPLE}\ncalcmode: cosineA", 2),
        (f"{SIMPLE}\nExclude: BASE", 2),
        (f"{SIMPLE}\nElemental: OUT03:attn:0.2", 2),
        (f"{SIMPLE}\n(only OUT blocks; IN 0)", 2),
        (f"{SIMPLE}\nOnly the OUT blocks were merged.", 2),
        (f"{SIMPLE}\nbase alpha 0.1", 2),
        (f"{SIMPLE}\nexcept BASE", 2),
        (f"{SIMPLE}\nwithout text encoder", 2),
        (f"{SIMPLE}\nAdjust: 1,0,0", 2),
        (f"{SIMPLE}\nLoRA: detail:0.5", 2),
        (f"{SIMPLE}\nWeight: 0.5", 2),
        (f"Train difference\n{SIMPLE}", 1),
        (f"### cosineA\n{SIMPLE}", 1),
        ("A x (1-alpha) + B x alpha = T1\nalpha = 0.3\nT1 x 0.5 + D x 0.5 = T2\nbase_alpha = 0.1", 4),
    ],
)
def test_remarks_that_change_a_step(text, line):
    """Lines above and below a formula that would change it are reported."""
    assert any(f"line {line}: not understood" in named for named in read_notation(text).not_understood)


def test_base_alpha_belongs_to_the_formula_above():
    """A base alpha never goes to an earlier formula that has its own numbers."""
    problems = refused("A x (1-alpha) + B x alpha = T1\nalpha = 0.3\nC + D = T2\nbase_alpha = 0.1")

    assert problems == ("line 3: T2.alpha: never given; write alpha = (26 numbers) below the formula",)


@pytest.mark.parametrize(
    "text",
    [
        f"{SIMPLE}\ncalcmode: normal",
        f"{SIMPLE}\nExclude:",
        f"{SIMPLE} # the best",
        f"{SIMPLE}  // by hand",
        "A x 0.7 + B x 0.3 = Smooth Mix",
        f"{SIMPLE}\nAdjust: 0",
        f"{SIMPLE}\n## Recommended settings\nSmooth skin",
        f"MIX = A x (1-alpha) + B x alpha ({RISING_TEXT})\nOUT06~OUT11 only",
        f"{SIMPLE}\nTrained by the author of A over many months, self made, smooth faces.",
    ],
)
def test_remarks_are_not_reported(text):
    """Settings without effect, comments without numbers, and prose are not reported."""
    assert messages(text) == ()


def test_number_in_a_comment_is_noted():
    """A comment with a number after a complete formula is ignored, with a note."""
    assert read(f"{SIMPLE} # 97.5% similar").warnings == ("line 1: the comment '97.5% similar' is ignored",)


@pytest.mark.parametrize(
    "text",
    [
        "T1 = A x 0.5 + B x 0.5 // T2 = T1 x 0.7 + C x 0.3",
        f"{SIMPLE} # then + C x 0.2",
        "MIX = A x (1-alpha) + B x alpha\nalpha: 0.3 # OUT only; IN 0",
    ],
)
def test_comments_that_may_be_steps(text):
    """A comment with a step, or about blocks, is never ignored."""
    assert any("comment" in problem or "some blocks alone" in problem for problem in refused(text))


# --- Steps that would be lost -----------------------------------------------------------------------------------------

XY = weight_sum(alone("X"), alone("Y"), everywhere(0.3))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Primary model (A): X\nSecondary model (B): Y\nMultiplier (M): 0.3\nCustom Name: MIX", XY),
        ("A: X\nB: Y\nM: 0.3\nResult: MIX", XY),
        ("MIX:\n- X 70%\n- Y 30%", XY),
        ("MIX:\n  X: 0.7\n  Y: 0.3", XY),
        ("モデルA：X\nモデルB：Y\n比率：0.3\n→ MIX", XY),  # noqa: RUF001
        ("name: MIX\nmode: weighted_sum\na: X\nb: Y\nalpha: 0.3", XY),
        ("Model A: X\nModel B: Y\nModel C: C\nM: 0,3\nMethod: Add difference\nSave as float16: yes\nName: MIX",
         add_difference(alone("X"), alone("Y"), C, everywhere(0.3))),
        ('"X" x 0.7 + Y x 0.3 = MIX fp16 pruned', XY),
        ("| Step | Recipe | Result |\n|---|---|---|\n| 1 | \"X\" x 0.7 + Y x 0.3 | MIX |", XY),
        ("M1 = Y x 0.5 + Y2 x 0.5; MIX = \"X\" x 0.7 + Y x 0.3", XY),
    ],
)  # fmt: skip
def test_steps_over_several_lines(text, first):
    """The settings of a merger, or models below a heading, are a step that later formulas can use."""
    imported = read(f"{text}\nF = MIX x 0.5 + D x 0.5")

    assert_coefficients(block_coefficients(imported.recipe, "F"), weight_sum(first, D, everywhere(0.5)))


def test_number_above_settings():
    """A number between a formula and the settings of another merge belongs to the formula."""
    imported = read("T + (B - C) = M\nalpha: 0.1\nModel A: M\nModel B: D\nMultiplier (M): 0.3\nCustom name: MIX")

    first = add_difference(alone("T"), B, C, everywhere(0.1))
    assert_coefficients(block_coefficients(imported.recipe), weight_sum(first, D, everywhere(0.3)))


@pytest.mark.parametrize(
    "line",
    [
        "AとBを0.3でマージしてMIX。",
        "AとBを7:3で混ぜる → MIX",
        "→ MIX",
        "MIX:",
        "Custom name: MIX",
        "A and B were merged into MIX",
        "MIX 0.3",
    ],
)
def test_lines_that_may_define_a_source(line):
    """A line that may define a name that later formulas use as a source is reported."""
    named = read_notation(f"{line}\nF = MIX x 0.5 + C x 0.5").not_understood

    assert [text.split(":")[0] for text in named] == ["line 1"]


@pytest.mark.parametrize(
    "line",
    [
        "T1 + C",
        "T1 x 0.7\n+ C x 0.3\n= T2",
        "+ (C - D) x 0.3 = T2",
        "Merge T1 with C half and half = T2",
        "Finally T1 and C were merged with weighted sum 0.3.",
        "then merged with C at 30%",
        "and finally add 0.3 of C",
        "2. (1) x 0.7 + C x 0.3",
        "MIX: T1 x 0.99 + B x 0.01 x C",
    ],
)
def test_lines_that_continue_from_the_output(line):
    """A line that is not understood but continues from the last step is an error."""
    assert any("it continues from 'T1'" in problem for problem in refused(T1 + line))


def test_table_with_a_column_of_formulas():
    """Each row is a formula and its name, in the order of the table."""
    imported = read(
        "| Step | Recipe | Result |\n|---|---|---|\n| 1 | A x 0.5 + B x 0.5 | T1 |\n| 2 | T1 x 0.7 + C x 0.3 | T2 |"
    )

    expected = weight_sum(weight_sum(A, B, everywhere(0.5)), C, everywhere(0.3))
    assert [step.name for step in imported.recipe.steps] == ["T1", "T2"]
    assert_coefficients(block_coefficients(imported.recipe), expected)


# --- Spellings that are read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIX: 40% A, 30% B, 20% C, 10% D", {"A": 0.4, "B": 0.3, "C": 0.2, "D": 0.1}),
        ("MIX = A*0.25 + B*0.25 + C*0.25 + D*0.25", {"A": 0.25, "B": 0.25, "C": 0.25, "D": 0.25}),
        ("MIX = A*0.5 + B*0.5 + (C - D)*0.3", {"A": 0.5, "B": 0.5, "C": 0.3, "D": -0.3}),
        ("MIX = A + 0.5*B + 0.3*D - 0.8*C", {"A": 1.0, "B": 0.5, "C": -0.8, "D": 0.3}),
        ("MIX = A + 0.5*B - 0.1*C - 0.4*D", {"A": 1.0, "B": 0.5, "C": -0.1, "D": -0.4}),
        ("MIX = 1.3A - 0.3B", {"A": 1.3, "B": -0.3}),
        ("MIX = 1.5 A - 0.5 B", {"A": 1.5, "B": -0.5}),
        ("MIX = A + (B-C) 1.0", {"A": 1.0, "B": 1.0, "C": -1.0}),
        ("mix1+mix2=MIX", {"mix1": 0.5, "mix2": 0.5}),
        ("T = A x (1-alpha1) + B x alpha1\nMIX = T x (1-alpha2) + C x alpha2\nalpha1 = 0.3\nalpha2 = 0.4",
         {"A": 0.42, "B": 0.18, "C": 0.4}),
        ("MIX = A x 0.5 + B x 0.5\nMIX = MIX x 0.7 + C x 0.3\nMIX = MIX x 0.5 + D x 0.5",
         {"A": 0.175, "B": 0.175, "C": 0.15, "D": 0.5}),
        ("#1 A x 0.5 + B x 0.5 = MIX", {"A": 0.5, "B": 0.5}),
        ("✅ A x 0.5 + B x 0.5 = MIX", {"A": 0.5, "B": 0.5}),
    ],
)  # fmt: skip
def test_sums_of_any_kind(text, expected):
    """A sum of any number of models whose factors add up to 1 becomes several steps of two or three."""
    found = block_coefficients(read(text).recipe)

    assert_coefficients(found, combined(*((everywhere(number), alone(name)) for name, number in expected.items())))


@pytest.mark.parametrize("label", ["T1: ", "T1 alpha: ", "alpha of T1: "])
def test_numbers_named_after_their_step(label):
    """A list of 26 numbers below all formulas, named after a step, is the step's alpha."""
    imported = read(f"T1 = A x (1-alpha) + B x alpha\nT2 = T1 x 0.5 + C x 0.5\n{label}{RISING_TEXT}")

    assert_coefficients(block_coefficients(imported.recipe, "T1"), weight_sum(A, B, by_block(RISING)))


def test_numbers_after_two_models():
    """A list of 26 numbers in parentheses after two models and their name is the weight of the second model."""
    imported = read(f"A + B = MIX ({RISING_TEXT})")

    assert_coefficients(block_coefficients(imported.recipe), weight_sum(A, B, by_block(RISING)))


# --- Crashes and hangs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['" " = A x 0.5 + B x 0.5', '"" x 0.5 + B x 0.5 = MIX', '" " x 0.5 + B x 0.5 = MIX'])
def test_empty_names(text):
    """A name of only spaces is not a name."""
    assert refused(text)


def test_brackets_in_a_name_are_kept():
    """Text in quotation marks is never changed."""
    assert set(read('"a ()" x 0.5 + "alpha(0.3)" x 0.5 = MIX').recipe.models) == {"a ()", "alpha(0.3)"}


@pytest.mark.parametrize(
    "text",
    [
        f"{SIMPLE} ({' ' * 9000}y",
        '"a\\' * 3300,
        "MIX = " + '"a\\' * 3000,
        SIMPLE + " # " * 3000 + '"',
        f"weighted sum{' ' * 9000}z",
        f"[a]({' ' * 9000}",
        "A + B = MIX " + "at " * 3000,
        "IN 0.5 " * 1400,
        "MIX:\n" + "\n".join("- " + "a " * 140 + "0.5" for _ in range(20)),
        "A x 0.5 + (" + "B-" * 4000 + "C) = T",
    ],
    ids=lambda text: text[:20],
)
def test_no_line_takes_long(text):
    """Very long lines of signs are read or refused at once."""
    started = time.process_time()
    messages(text)
    assert time.process_time() - started < 2


# --- Regressions found by drawn texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [" x B x 2", " + + Z x 0.5", " (((", " & more x 0.3"])
def test_heading_with_more_than_a_name(more):
    """Models with weights below a malformed heading are reported with its line, with or without other steps."""
    why = "not understood: models with weights follow below 'T1', but "
    assert any(line.startswith(f"line 1: {why}") for line in refused(f"T1:{more}\n- A 70%\n- B 30%"))
    assert any(line.startswith(f"line 2: {why}") for line in messages(f"{SIMPLE}\nT1:{more}\n- C 70%\n- D 30%"))


@pytest.mark.parametrize(
    "second", ["T2:T1 x 0.7 + C x 0.3", "T2:\n- T1 70%\n- C 30%", "Model A: T1\nModel B: C\nM: 0.3"]
)
def test_line_that_ends_in_a_sign(second):
    """A step that ends in a sign does not absorb the next step."""
    (broken,) = [line for line in messages(f"{SIMPLE}\nT1 = A x 0.5 + B x 0.5 x\n{second}") if "line 2: not" in line]

    assert second.split("\n")[0] not in broken


def test_setting_below_numbers_by_block():
    """The setting `Exclude: BASE` is reported below numbers by block as well."""
    text = "T1 = A + B\nBASE: 0.1\nIN: 0.1\nM: 0.1\nOUT: 0.1\nExclude: BASE"

    assert any("line 6:" in line for line in messages(text))


def test_numbers_below_attached_factors():
    """A formula whose factors are attached to its names takes no numbers from below."""
    (problem,) = refused("MIX = 0.7A + 0.3B\nIN: 0.1, M: 0.2, OUT: 0.3")

    assert problem.startswith("line 2: not understood: no formula above contains alpha")
