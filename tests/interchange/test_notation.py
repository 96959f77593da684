"""Reading and writing SuperMerger's notation: the article's lines, other spellings, and whole texts."""

# ruff: noqa: RUF001

import string
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_by_step import BLOCKS

from optimizer.errors import RecipeError
from optimizer.families import load_layout
from optimizer.interchange import read_notation, write_notation
from optimizer.recipes import MODES, Alpha, Expected, Free, Model, Recipe, Step, read_presets

LAYOUT = load_layout("sd1")
NUMBERS = ",".join(f"{n / 100:.2f}" for n in range(26))
SPREAD = {block: n / 100 for n, block in enumerate(BLOCKS)}


def only_step(text):
    """Read a text and return its only step; the text must give no warnings."""
    imported = read_notation(text)
    assert (imported.warnings, imported.not_understood) == ((), ())
    (step,) = imported.recipe.steps
    return step


def shown(step):
    """Return a step's name, mode, inputs, and its alpha in OUT03."""
    return step.name, step.mode, *step.inputs.values(), step.alpha.at("OUT03")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "OpenBra + (Evt_V4_e04_ema - v1-5-pruned-emaonly) x 0.08 = TEMP1",
            ("TEMP1", "add_difference", "OpenBra", "Evt_V4_e04_ema", "v1-5-pruned-emaonly", 0.08),
        ),
        (
            "TEMP2 x 0.95 + diamondcoalmix_diamondcoalv2pruned x 0.05 = TEMP3",
            ("TEMP3", "weight_sum", "TEMP2", "diamondcoalmix_diamondcoalv2pruned", 0.05),
        ),
        (
            "OpenBraHalf = OpenBra x 0.5 + v1-5-pruned-emaonly x 0.5",
            ("OpenBraHalf", "weight_sum", "OpenBra", "v1-5-pruned-emaonly", 0.5),
        ),
        (
            "  • TEMP1+ (OpenBra1.1 - base) x 0.1 = TEMP2",
            ("TEMP2", "add_difference", "TEMP1", "OpenBra1.1", "base", 0.1),
        ),
        ("A * 0.9 + B * 0.1 = T", ("T", "weight_sum", "A", "B", 0.1)),
        ("A × 0.9 + B × 0.1 = T", ("T", "weight_sum", "A", "B", 0.1)),
        ("A X 0.9+B X 0.1=T", ("T", "weight_sum", "A", "B", 0.1)),
        ("Ａ　×　０．９　＋　Ｂ　×　０．１　＝　Ｔ", ("T", "weight_sum", "A", "B", 0.1)),
        ("A x 0.9 + B x 0.1 = T", ("T", "weight_sum", "A", "B", 0.1)),
        ("0.9 x A + 0.1 x B = T.", ("T", "weight_sum", "A", "B", 0.1)),
        ("A x .9 + B x .1 = T", ("T", "weight_sum", "A", "B", 0.1)),
        ('"my model (v2)" x 0.9 + “other one” x 0.1 = T', ("T", "weight_sum", "my model (v2)", "other one", 0.1)),
        ("A+(B−C)x0.08=T", ("T", "add_difference", "A", "B", "C", 0.08)),
        ("A + B x 0.3 - C x 0.3 = T", ("T", "add_difference", "A", "B", "C", 0.3)),
        ("A - (B - C) x 0.3 = T", ("T", "add_difference", "A", "B", "C", -0.3)),
        ("A + (B - C) x -0.3 = T", ("T", "add_difference", "A", "B", "C", -0.3)),
        ("A + (B - C) = T", ("T", "add_difference", "A", "B", "C", 1.0)),
        ("(B - C) x 0.3 + A = T", ("T", "add_difference", "A", "B", "C", 0.3)),
        ("A x -0.5 + B x 1.5 = T", ("T", "weight_sum", "A", "B", 1.5)),
        ("T = ((A x 0.9 + (B) x (0.1)))", ("T", "weight_sum", "A", "B", 0.1)),
        ("1. Step one: A x 0.9 + B x 0.1 = T  # a remark", ("T", "weight_sum", "A", "B", 0.1)),
        ("T = A x (1-0.1) + B x 0.1", ("T", "weight_sum", "A", "B", 0.1)),
        ("T = A x (1-alpha) + B x alpha, alpha = 0.1", ("T", "weight_sum", "A", "B", 0.1)),
        ("T = B x alpha + A x (1 - alpha)\nalpha: 0.1", ("T", "weight_sum", "A", "B", 0.1)),
        ("T = A x (1−α) + B x α\nα = 0.1", ("T", "weight_sum", "A", "B", 0.1)),
        (f"T = A x (1-alpha) + B x alpha\nalpha = ({NUMBERS})", ("T", "weight_sum", "A", "B", 0.17)),
        (f"T = A x (1-alpha) + B x alpha ({NUMBERS})", ("T", "weight_sum", "A", "B", 0.17)),
        (f"A x (1-alpha) + B x alpha = T\n  • Add Diff: alpha =({NUMBERS})", ("T", "weight_sum", "A", "B", 0.17)),
        (f"A x (1-alpha) + B x alpha = T\nalpha = {NUMBERS}", ("T", "weight_sum", "A", "B", 0.17)),
        (
            f"A x (1-alpha) + B x alpha = T\nalpha = ({NUMBERS[:40]}\n{NUMBERS[40:]})",
            ("T", "weight_sum", "A", "B", 0.17),
        ),
        ("A + (B - C) x alpha = T\nalpha = {OUT03-OUT04: 0.4}", ("T", "add_difference", "A", "B", "C", 0.4)),
    ],
)
def test_spellings_of_a_formula(text, expected):
    """A formula in any spelling is read as the same step."""
    assert shown(only_step(text)) == expected


def test_alpha_lines_have_26_numbers_base_first():
    """The 26 numbers of an alpha line belong to BASE, IN00-IN11, M00, OUT00-OUT11, in this order."""
    step = only_step(f"A + (B - C) x alpha = T\nalpha = ({NUMBERS})")

    assert dict(step.alpha.values) == SPREAD


def test_25_numbers_and_a_base_alpha():
    """A list of 25 numbers belongs to IN00-OUT11, and the base alpha belongs to BASE."""
    step = only_step(f"A + (B - C) x alpha = T\nbase alpha = 0.7\nalpha = ({NUMBERS.split(',', 1)[1]})")

    assert dict(step.alpha.values) == SPREAD | {"BASE": 0.7}


@pytest.mark.parametrize(
    ("formula", "mode", "inputs", "alpha", "beta"),
    [
        ("(d x 0.5 +e x 0.5) x 0.25 + f x 0.75", "sum_twice", ["d", "e", "f"], 0.5, 0.75),
        ("(A x (1-alpha) + B x alpha) x (1-beta) + C x beta", "sum_twice", list("ABC"), 0.2, 0.3),
        ("A x (1-alpha-beta) + B x alpha + C x beta", "triple_sum", list("ABC"), 0.2, 0.3),
        ("C x beta + A x (1 - alpha - beta) + B x alpha", "triple_sum", list("ACB"), 0.3, 0.2),
        ("A x 0.5 + B x 0.3 + C x 0.2", "triple_sum", list("ABC"), 0.3, 0.2),
    ],
)
def test_modes_with_beta(formula, mode, inputs, alpha, beta):
    """A sum of sums is sum twice, and a sum of three models is triple sum, with their alpha and beta."""
    given_alphas = ", alpha = 0.2, beta = 0.3" if "alpha" in formula else ""
    step = only_step(f"{formula} = T{given_alphas}")

    assert (step.mode, list(step.inputs.values())) == (mode, inputs)
    assert (step.alpha.at("M00"), step.beta.at("M00")) == (alpha, beta)


def test_sum_in_second_place_becomes_a_separate_step():
    """Only a sum in place A is sum twice; elsewhere a missing tensor would come from another model."""
    recipe = read_notation("T = f x 0.75 + (d x 0.5 + e x 0.5) x 0.25").recipe

    assert [shown(step) for step in recipe.steps] == [
        ("T_1", "weight_sum", "d", "e", 0.5),
        ("T", "weight_sum", "f", "T_1", 0.25),
    ]


def test_several_differences_are_added_in_order():
    """In A + (B - C) x 0.3 + (D - C) x 0.2 the second difference is added to the result of the first."""
    recipe = read_notation("T = A + (B - C)*0.3 + (D - C)*0.2").recipe

    assert [shown(step) for step in recipe.steps] == [
        ("T_1", "add_difference", "A", "B", "C", 0.3),
        ("T", "add_difference", "T_1", "D", "C", 0.2),
    ]


@pytest.mark.parametrize(
    "lines",
    [
        "T = A x 0.5 +\n  B x 0.5",
        "T =\n  A x 0.5 + B x 0.5",
        "T = A x 0.5\n  + B x 0.5",
        "T = (A x 0.5\n  + B x 0.5)",
        "A x 0.5 +\nB x 0.5 = T",
        "T = A x 0.5 x\n 1 + B x 0.5\n- a remark",
        "T = A x 0.5 + B x 0.5\n- Add Difference (B)",
    ],
)
def test_formulas_over_several_lines(lines):
    """A formula that continues on further lines is read whole; list items after it are not part of it."""
    assert shown(only_step(lines)) == ("T", "weight_sum", "A", "B", 0.5)


def test_differences_on_the_next_line():
    """A line that begins with a sign belongs to the formula above, and is never dropped."""
    recipe = read_notation("T = A + (B - C) x 0.3\r\n  + (D - C) x 0.2\r\n").recipe
    assert [step.alpha.at("M00") for step in recipe.steps] == [0.3, 0.2]

    (problem,) = problems_of("A x 0.5 + B x 0.5 = T\n  + (C - D) x 0.3")
    assert problem.startswith(
        "line 2: not understood: a formula without a name; write = NAME after it, in '+ (C - D) x 0.3'; it continues"
    )


@pytest.mark.parametrize(
    "text",
    [
        "A x 0.5 + B x 0.5 -> T",
        "A x 0.5 + B x 0.5 → T",
        "T: A x 0.5 + B x 0.5",
        "T := A x 50% + B x 50%",
        "| 1 | T = A * 0.5 + B * 0.5 | half |",
        "> + `T = A * 0.5 + B * 0.5`",
        "**T = A * 0.5 + B * 0.5**",
        "T = 'A' x 0.5 + 「B」 x 0.5  // half",
        "T = A [6ce0161689] x 0.5 + B\u200b x 0.5",
        "T = (A + B) x 0.5",
    ],
)
def test_spellings_of_model_cards(text):
    """Arrows, tables, code, bold text, percentages, hashes and comments of model cards are read."""
    assert shown(only_step(text)) == ("T", "weight_sum", "A", "B", 0.5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"[{NUMBERS}]", 0.17),
        (f"{NUMBERS[:50]}\n{NUMBERS[50:]}", 0.17),
        (f"\n({NUMBERS})", 0.17),
        ("30%", 0.3),
        ("OUT03-OUT05: 0.3", 0.3),
        ("{OUT03: 0.3}", 0.3),
        ("MY PRESET", 0.17),
    ],
)
def test_ways_to_write_an_alpha(value, expected):
    """Lists in square brackets or over lines, percentages, mappings of blocks and presets with spaces are alphas."""
    step = only_step(f"T = A x (1-alpha) + B x alpha\nalpha = {value}\nMY PRESET\t{NUMBERS}")

    assert step.alpha.at("OUT03") == expected


def test_base_alpha_beside_one_number():
    """A base alpha beside one number belongs to BASE, and the number to all other blocks."""
    step = only_step("T = A x (1-alpha) + B x alpha\nalpha = 0.3\nbase alpha = 0.5")

    assert (step.alpha.at("BASE"), step.alpha.at("IN00"), step.alpha.at("OUT11")) == (0.5, 0.3, 0.3)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("0.5,", "received 1 numbers; sd1 has 26 blocks"),
        ("1e400", "must be finite numbers"),
        ("0.3 (only OUT)", "received '0.3 (only OUT)'; must be 26 numbers in parentheses"),
        ("0.9 0.1 0.5", "received '0.9 0.1 0.5'; must be 26 numbers"),
        ("0.3 beta = 0.2", "line 2: not understood"),
    ],
)
def test_invalid_alphas(value, part):
    """An invalid alpha is reported with its line; no part of it is read."""
    problems = problems_of(f"T = A x (1-alpha) + B x alpha\nalpha = {value}")

    assert part in problems[0]
    assert problems[0].startswith("line 2: ")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("A + (B-C)*0.3", "a formula without a name; write = NAME after it"),
        ("# U = A x 0.5 + B x 0.5", "a comment or heading"),
        ("Cosine similarity of output_blocks: 250%", "250 % is not a similarity; it must be from -100 to 100 %"),
        ("| OUT03 | OUT04 |\n| -250% | 90% |", "-250 % is not a similarity; it must be from -100 to 100 %"),
        ("| OUT03 | OUT04 |\n| 95% | 90% |\nTotal: 250%", "250 % is not a similarity; it must be from -100 to 100 %"),
        (f"MINE\t{NUMBERS}\nMINE\t{NUMBERS.replace('0.17', '0.18')}", "preset 'MINE' has other numbers on line 3"),
        ("A x 0.7 + (B - C) x 0.3 = U", "one model or a sum must have the factor 1"),
        ("Mix of V3 x 0.5 + B x 0.5 = U", "a name with spaces needs quotation marks"),
        ("best one + B = U", "a name with spaces needs quotation marks where there are no numbers"),
        ("Ax0.5+Bx0.5 = U", "if 'Ax0.5' is not one name, write spaces"),
    ],
)
def test_more_lines_that_are_reported(line, part):
    """Formulas without a name, in comments, or with impossible values are reported."""
    imported = read_notation(f"G x 0.5 + H x 0.5 = GOOD\nsome prose\n{line}\nmore prose")

    assert [step.name for step in imported.recipe.steps] == ["GOOD"]
    (message,) = imported.not_understood
    assert part in message


@pytest.mark.parametrize(
    "line",
    [
        "Cosine similarity of output_blocks: 1.2.3%",
        "| 5..0% |",
        'model A: "\\q"',
        'model A: "C:\\models\\a.ckpt"',
        "alpha",
    ],
)
def test_malformed_lines_do_not_stop_the_reader(line):
    """Lines that resemble reports, or contain a Windows path instead of escapes, do not stop the reader."""
    assert read_notation(f"A x 0.5 + B x 0.5 = T\n{line}").recipe.steps[0].name == "T"


def test_alphas_above_their_formula():
    """An alpha above every formula is an error if a formula below has an alpha, since its step is ambiguous."""
    (first, *_) = problems_of("alpha = 0.3\nT1 = A x (1-alpha) + B x alpha\nalpha = 0.6\nT2 = T1 x 0.5 + C x 0.5")

    assert "line 1: " in first
    assert any(
        "alpha is above the formula of line 2" in problem
        for problem in problems_of("alpha = 0.3\nT1 = A x (1-alpha) + B x alpha\nalpha = 0.6\nT2 = T1 x 0.5 + C x 0.5")
    )


def test_long_texts_are_read_in_time():
    """Two thousand steps with their own models, names with spaces, and long prose take at most a few seconds."""
    steps = [f'"model a{n}" x (1-alpha) + modelb_{n} x alpha = "step {n}"\nalpha = 0.{n:04}' for n in range(2000)]
    prose = "similarity of a " + "between a " * 10000
    started = time.process_time()

    recipe = read_notation("\n".join([prose, *steps])).recipe

    assert len(recipe.steps) == 2000
    assert len(recipe.models) == 4000
    assert time.process_time() - started < 20


def test_deeper_nesting_becomes_separate_steps():
    """A formula beyond a single mode becomes several steps, named after the step that contains them."""
    recipe = read_notation("A + ((B x 0.5 + C x 0.5) - (D + (E - F) x 0.2)) x 0.3 = T").recipe

    assert [(step.name, step.mode, *step.inputs.values()) for step in recipe.steps] == [
        ("T_1", "weight_sum", "B", "C"),
        ("T_2", "add_difference", "D", "E", "F"),
        ("T", "add_difference", "A", "T_1", "T_2"),
    ]
    assert recipe.output == "T"


def test_known_names_need_no_spaces():
    """A name defined on another line needs no spaces between it and operators."""
    recipe = read_notation("A-1 x 0.5 + B x 0.5 = TEMP1\nTEMP1x0.9+B x0.1=TEMP2\nTEMP2+(TEMP1-B)x0.5=TEMP3").recipe

    assert recipe.step("TEMP2").inputs == {"a": "TEMP1", "b": "B"}
    assert recipe.step("TEMP3").inputs == {"a": "TEMP2", "b": "TEMP1", "c": "B"}
    assert list(recipe.models) == ["A-1", "B"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("A x 0.3 + B x 0.3 = T", "add up to 0.6"),
        ("A x 0.5 + B x 0.5 - only BASE = T", "'BASE'"),
        ("A x 0.5 + = T", "breaks off"),
        ("A x 0.5 + (B x 0.5 = T", "breaks off"),
        ("A ** B = T", "'* B'"),
        ("A x B + C = T", "multiplies models"),
        ("A & B = T", "'& B'"),
        ("A = T", "nothing to merge"),
        ("A x 1 = T", "a single model"),
        ("A x 0.25 + B x 0.25 + C x 0.25 + D x 0.2 = T", "the factors add up to 0.95"),
        ("A x 0.5 + B x 0.5 = T = U", "more than one `=`"),
        ("A x 0.5 + B x 0.5 = 0.7", "a step is a formula, `=` and a name"),
        ("alpha = (1, 2)", "no formula above contains alpha"),
        (f"A x 0.5 + B x 0.5 = T2, alpha = ({NUMBERS})", "the formula does not have"),
    ],
)
def test_lines_not_understood_are_reported(line, part):
    """A line with a malformed formula is reported with its number and the malformed part."""
    imported = read_notation(f"G x 0.5 + H x 0.5 = GOOD\nsome prose\n{line}\nmore prose")

    assert [step.name for step in imported.recipe.steps] == ["GOOD"]
    (message,) = imported.not_understood
    assert message.startswith("line 3: not understood: ")
    assert part in message


def problems_of(text, **options):
    """Return the lines of the error for a text."""
    with pytest.raises(RecipeError) as caught:
        read_notation(text, **options)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_problems_of_a_text():
    """A problem that prevents a recipe is one line with the line's number and the correction."""
    (count,) = problems_of("A x (1-alpha) + B x alpha = T\nalpha = (" + ",".join(["0"] * 24) + ")")
    assert count.startswith("line 2: T.alpha: received 24 numbers; sd1 has 26 blocks, BASE first, OUT11 last")
    (never,) = problems_of("A x (1-alpha) + B x alpha = T")
    assert never == "line 1: T.alpha: never given; write alpha = (26 numbers) below the formula"
    (base,) = problems_of(f"A x (1-alpha) + B x alpha = T\nalpha = ({NUMBERS.split(',', 1)[1]})")
    assert "received 25 numbers; must be 26, BASE first, or base_alpha beside them" in base
    (twice,) = problems_of("A x 0.5 + B x 0.5 = T\nA x 0.4 + B x 0.6 = T\n")
    assert twice == "line 2: 'T' is defined differently on line 1; a name must have one definition"
    (needed,) = problems_of("A x 0.3 + B x 0.3 = T\nT x 0.5 + B x 0.5 = U")
    assert needed.startswith("line 1: not understood: the factors add up to 0.6")
    assert needed.endswith("line 2 needs 'T', which line 1 defines")
    (cycle,) = problems_of("U x 0.5 + B x 0.5 = T\nT x 0.5 + B x 0.5 = U")
    assert "cycle" in cycle
    assert list(problems_of("nothing but prose")) == [
        "no formula was found; a step is a line such as A x 0.9 + B x 0.1 = TEMP1"
    ]
    (output,) = problems_of('A x 0.5 + B x 0.5 = T\noutput: "U"')
    assert "output: received 'U'" in output
    (unknown,) = problems_of("A x (1-alpha) + B x alpha = T, alpha = GRAD")
    assert "T.alpha: received 'GRAD'" in unknown
    # Two formulas followed by their numbers: the assignment is ambiguous.
    both = "A x (1-alpha) + B x alpha = T\nT x (1-alpha) + C x alpha = U\nalpha = 0.1\nalpha = 0.2"
    already, never = problems_of(both)
    assert never == "line 1: T.alpha: never given; write alpha = (26 numbers) below the formula"
    assert already == "line 4: not understood: 'U' already has its alpha from line 3, in 'alpha = 0.2'"
    (broken,) = problems_of("A x (1-alpha) + B x alpha = T, alpha = {OUT99: 1}")
    assert "unknown block 'OUT99'" in broken


def test_presets_in_a_text_and_beside_it():
    """An alpha can be a preset's name, and the preset can be in the text or in a file."""
    text = f"A x (1-alpha) + B x alpha = T\nalpha = GRAD_V\n\npreset_name\tpreset_weights\nGRAD_V\t{NUMBERS}\n"
    assert dict(only_step(text).alpha.values) == SPREAD

    presets = read_presets(f"preset_name\tpreset_weights\nMINE:{NUMBERS}\nRANDOM\t{'R,' * 25}R\n")
    recipe = read_notation("A x (1-alpha) + B x alpha = T\nalpha = MINE", presets=presets).recipe
    assert dict(recipe.steps[0].alpha.values) == SPREAD
    (random,) = problems_of("A x (1-alpha) + B x alpha = T\nalpha = RANDOM", presets=presets)
    assert "preset 'RANDOM', line 3: value 1 is 'R'; must be a number" in random


def test_a_preset_with_24_values():
    """A preset of 24 values is reported with its line, and is an error where an alpha refers to it."""
    short = ",".join(["0.5"] * 24)
    imported = read_notation(f"A x 0.5 + B x 0.5 = T\nSHORT\t{short}")
    assert [message.split(";")[0] for message in imported.not_understood] == [
        "line 2: not understood: preset 'SHORT', line 2: received 24 numbers"
    ]
    named, needed = problems_of(f"A x (1-alpha) + B x alpha = T, alpha = SHORT\nSHORT\t{short}")
    assert "line 2: not understood: preset 'SHORT'" in named
    assert "line 1: T.alpha: preset 'SHORT', line 2: received 24 numbers" in needed


def test_near_miss_names():
    """A name that nearly matches an unused step is read as that step, with a warning; other names are models."""
    imported = read_notation("A x 0.5 + B x 0.5 = FINAL_OUTPUTS\nFINAL_OUTPUT x 0.5 + OpenBra x 0.5 = T")
    assert imported.recipe.step("T").a == "FINAL_OUTPUTS"
    assert imported.warnings == ("line 2: 'FINAL_OUTPUT' is taken for the step 'FINAL_OUTPUTS', which no formula uses",)

    # Two models of one formula, or names with different numbers, are never equal.
    imported = read_notation(
        "Any_v3 x 0.5 + any-v3 x 0.5 = T1\nmodelv1.1 x 0.5 + modelv11 x 0.5 = T2\nT1 x 0.5 + T2 x 0.5 = T"
    )
    assert list(imported.recipe.models) == ["Any_v3", "any-v3", "modelv1.1", "modelv11"]
    assert imported.warnings == ()

    imported = read_notation("OpenBra x 0.5 + B x 0.5 = OpenBra2\nOpenBra2 x 0.5 + openbra x 0.5 = T")
    assert list(imported.recipe.models) == ["OpenBra", "B"]
    assert imported.warnings == ("line 2: 'openbra' is taken for the model 'OpenBra'",)

    imported = read_notation("TEMP x 0.5 + B x 0.5 = TEMP1\nnewAge1 x 0.5 + newEra1 x 0.5 = OTHER")
    assert list(imported.recipe.models) == ["TEMP", "B", "newAge1", "newEra1"]


_names = st.one_of(
    st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=12),
    # Names in recipes have no control characters and no surrounding spaces.
    st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), min_size=1, max_size=8)
    .map(str.strip)
    .filter(bool),
    st.sampled_from(
        ["x", "alpha", "1-alpha", "Beta", "0.5", "ax0.5", "a b", "a=b", 'a"b', "a,b", "é", "1", "a\\", "#", ":"]
    ),
)
_factors = st.one_of(st.floats(0, 1), st.floats(-3, 3), st.sampled_from([0.0, 1.0, 0.1, 0.05]))


@st.composite
def _alphas(draw):
    kind = draw(st.sampled_from(["one", "many", "free"]))
    if kind == "one":
        return Alpha(dict.fromkeys(BLOCKS, draw(_factors)))
    if kind == "many":
        return Alpha(dict(zip(BLOCKS, draw(st.lists(_factors, min_size=26, max_size=26)), strict=True)))
    chosen = draw(st.sets(st.sampled_from(BLOCKS), min_size=1))
    blocks = tuple(block for block in BLOCKS if block in chosen)
    low = draw(st.floats(-1, 0.5))
    free = Free(low, low + 1.0, blocks, draw(st.booleans()), draw(st.sampled_from([None, 0.01])), None)
    rest = draw(_factors)
    return Alpha({block: rest for block in BLOCKS if block not in blocks}, (free,))


@st.composite
def _expected(draw):
    chosen = draw(st.sets(st.sampled_from(BLOCKS), min_size=1))
    blocks = tuple(block for block in BLOCKS if block in chosen)
    similarity = st.floats(-1, 1)
    values = {block: draw(similarity) for block in blocks} if draw(st.booleans()) else {}
    total = draw(st.none() | similarity)
    metric, seed = draw(st.sampled_from([("attention", 114514), ("delta", 3)]))
    return Expected(blocks, values, total, metric, seed)


@st.composite
def _recipes(draw):
    names = draw(st.lists(_names, min_size=4, max_size=9, unique_by=lambda name: name.casefold()))
    count = draw(st.integers(1, len(names) - 2))
    step_names, model_names = names[:count], names[count:]
    steps = []
    for place, name in enumerate(step_names):
        mode = draw(st.sampled_from(list(MODES)))
        inputs = [draw(st.sampled_from([*model_names, *step_names[:place]])) for _ in MODES[mode].inputs]
        beta = draw(_alphas()) if "beta" in MODES[mode].alphas else None
        third = inputs[2] if len(inputs) > 2 else None
        expect = draw(st.none() | _expected())
        steps.append(Step(name, mode, inputs[0], inputs[1], third, draw(_alphas()), beta, expect))
    steps = draw(st.permutations(steps))
    models = {
        name: Model(
            draw(st.sampled_from([f"{name}.safetensors", "folder/other.ckpt"])),
            draw(st.sampled_from(["unknown", "creativeml-openrail-m", 'a "licence"'])),
            draw(st.sampled_from([None, "ab" * 32])),
        )
        for name in model_names
    }
    mapping = draw(st.sampled_from(list(LAYOUT.mappings)))
    return Recipe(draw(_names), LAYOUT, models, tuple(steps), draw(st.sampled_from(step_names)), mapping)


@settings(max_examples=200, deadline=None)
@given(recipe=_recipes())
def test_printing_and_reading_again(recipe):
    """A recipe that is printed and read again is unchanged, and every line is understood."""
    imported = read_notation(write_notation(recipe))

    assert imported.recipe == recipe
    assert list(imported.recipe.models) == list(recipe.models)
    assert imported.not_understood == ()


def test_alphas_of_some_blocks_are_0_elsewhere():
    """An alpha for some blocks is printed with 0 for the others, not as one number for all."""
    models = {name: Model(f"{name}.safetensors") for name in "ab"}
    step = Step("T", "weight_sum", "a", "b", None, Alpha({"OUT03": 0.5}))

    (read,) = read_notation(write_notation(Recipe("r", LAYOUT, models, (step,), "T"))).recipe.steps

    assert {block: read.alpha.at(block) for block in BLOCKS} == dict.fromkeys(BLOCKS, 0.0) | {"OUT03": 0.5}


SIGNS = st.text(st.sampled_from('AB xX=+-*()0.5,:|%"\n\talphbet{}[]#•'), max_size=60)
WORDS = [
    "A",
    "B",
    "T",
    " ",
    " x ",
    " + ",
    " - ",
    " = ",
    "(",
    ")",
    "1",
    "0.5",
    "alpha",
    "(1-alpha)",
    ",",
    "\n",
    "%",
    "#",
]


@settings(max_examples=300, deadline=None)
@given(text=SIGNS | st.lists(st.sampled_from(WORDS), max_size=20).map("".join))
@example(text="A x 0.5 + B x 0.5 = T")
@example(text="A x (1-alpha) + B x alpha = T\nalpha = 0.5")
def test_any_text_is_read_or_refused(text):
    """Any text gives a recipe or an error for the user."""
    try:
        imported = read_notation(text)
    except RecipeError:
        return
    assert imported.recipe.steps


@pytest.mark.parametrize(
    "text",
    [
        "A x 1e999% + B x 1% = T",
        "A x 1e99999999999999999999% + B x 1% = T",
        "A x 0.5 + B x 0.5 = T\nsimilarity of OUT03: 1e999999999%",
        "A x 0.5 + B x 0.5 = T\nsimilarity of OUT03: 50%\ntotal: 1e99999999999999999999%",
        "A x 0.5 + B x 0.5 = T\n| OUT03 |\n| 1e-99999999999999999999% |",
        "A x (1-alpha x alpha) + B x alpha x alpha = T\nalpha = 1e300",
        f"A x {'- ' * 900}0.5 + B x 0.5 = T",
        f"A + {' + '.join(f'(B{n} - C) x 0.1' for n in range(300))} = T",
        f"A x {'(1+alpha+beta) x ' * 300}1 + B x 0.5 = T\nalpha = 0.1\nbeta = 0.1",
        f"A x {'9' * 9_900} + B x 0.5 = T",
    ],
    ids=lambda text: text[:40],
)
def test_extreme_numbers_and_formulas(text):
    """Numbers beyond floats and very long formulas are read or refused at once, without other errors."""
    started = time.process_time()
    try:
        read_notation(text)
    except RecipeError as error:
        assert all("\n" not in problem for problem in error.problems)  # noqa: PT017
    assert time.process_time() - started < 2


def test_thousands_of_similar_names():
    """Thousands of steps and models with similar names are compared in a few seconds."""
    steps = [f"A x 0.5 + B x 0.5 = abcdxxxxxxxx{n:04}yyyy" for n in range(900)]
    users = [f"A x 0.5 + abcdxxxxxxxx{n:04}zzzz x 0.5 = U{n}" for n in range(900)]
    started = time.process_time()

    read_notation("\n".join([*steps, *users]))

    assert time.process_time() - started < 20


def test_seed_beyond_every_generator():
    """A reported seed of twenty digits is prose, since such a similarity cannot be measured again."""
    (step,) = read_notation(f"A x 0.5 + B x 0.5 = T\nSimilarity of OUT03 (delta, seed {10**19}): 50%").recipe.steps

    assert step.expect is None
