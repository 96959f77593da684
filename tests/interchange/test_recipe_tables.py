"""Tables of steps on model cards: each row is read or reported, for any headers and any order of columns."""

import pytest
import spellings
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings import (
    RISING,
    RISING_TEXT,
    add_difference,
    alone,
    assert_coefficients,
    by_block,
    everywhere,
    weight_sum,
)

from optimizer.errors import RecipeError
from optimizer.interchange import read_notation
from optimizer.recipes import block_coefficients

A, B, C, D = map(alone, "ABCD")
SUM = weight_sum(A, B, everywhere(0.3))
DIFFERENCE = add_difference(A, B, C, everywhere(0.3))
RULE = "| --- | --- | --- | --- | --- |"


def read(*lines):
    """Read a table and return the result; every line must be understood."""
    return spellings.read("\n".join(lines))


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("| Interpolation Method | Primary Model | Secondary Model | Merge Name |",
         "| Weighted Sum @ 0.3 | A | B | MIX |"),
        ("| Step | Interpolation Method | Primary Model (A) | Secondary Model (B) | Tertiary Model (C) | Merge Name |",
         "| 1 | Weighted Sum @ 0.3 | A | B | N/A | MIX |"),
        ("Mix Info | Model A | Model B | Result", "Weighted Sum @ 0.3 | A | B | MIX"),
        ("| A | B | Ratio | Name |", "| A | B | 0.3 | MIX |"),
        ("| Name | Multiplier | B | A |", "| MIX | 30% | B | A |"),
        ("| Output | Mode | A | B | alpha |", "| **MIX** | Weight sum | `A` | [B](https://host.example/b) | 0.3 |"),
        ("| Model: A | Model: B | Base alpha | Interpolation Method | Merge Name |",
         "| A | B |  | Add SUM @ 0.3 | MIX |"),
        ("|Model A|Model B|Model C|Weight|Merge Name|", "|A|B|-|0,3|MIX|"),
        ("| Primary | Secondary | M | New Model |", "| A.safetensors | B | 0.3 | MIX.ckpt |"),
        ("| Interpolation | A | B | Remark | Merged model |", "| SUM @ 0.3 | A | B | soft \\| old | MIX |"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rule", [True, False])
def test_headers_of_weighted_sums(head, row, rule):
    """A row is the same weighted sum under any usual header, with or without a rule below it."""
    imported = read(head, *[RULE] * rule, row)

    assert imported.recipe.output == "MIX"
    assert_coefficients(block_coefficients(imported.recipe), SUM)


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("| Interpolation Method | Primary | Secondary | Tertiary | Merge Name |",
         "| Add Difference @ 0.3 | A | B | C | MIX |"),
        ("| A | B | C | Multiplier | Name |", "| A | B | C | 0.3 | MIX |"),
        ("| C | B | A | Mode | M | Name |", "| C | B | A | add difference | 30 % | MIX |"),
        ("| Method | Model A | Model B | Model C | Name |", "| Difference @ 0.3 | A | B | C | MIX |"),
    ],
)  # fmt: skip
def test_headers_of_add_differences(head, row):
    """A row with a third model, or with the method add difference, is an add difference."""
    imported = read(head, RULE, row)

    assert_coefficients(block_coefficients(imported.recipe), DIFFERENCE)


@pytest.mark.parametrize(
    ("head", "row", "numbers"),
    [
        ("| A | B | Weight | Name |", f"| A | B | {RISING_TEXT} | MIX |", RISING),
        ("| A | B | Weight | Base alpha | Name |", f"| A | B | {RISING_TEXT.split(',', 1)[1]} | 0.2 | MIX |",
         [0.2, *RISING[1:]]),
        ("| A | B | MBW | Base | Name |", f"| A | B | [{RISING_TEXT.split(',', 1)[1]}] | 20% | MIX |",
         [0.2, *RISING[1:]]),
        ("| A | B | Block weights | Name | Interpolation Method |", f"| A | B | {RISING_TEXT} | MIX | Weighted Sum |",
         RISING),
        ("| A | B | Weights alpha | Name |", "| A | B | OUT07 | MIX |", [0] * 19 + [1] * 7),
    ],
)  # fmt: skip
def test_columns_of_block_weights(head, row, numbers):
    """A merge by blocks has a column with 26 numbers, with 25 numbers and a base alpha, or with a preset's name."""
    imported = read(head, RULE, row)

    assert_coefficients(block_coefficients(imported.recipe), weight_sum(A, B, by_block(numbers)))


def test_numbers_of_the_column_override_those_of_the_method():
    """If a row has both, the column of block weights is used, with a note."""
    head = "| Interpolation Method | A | B | Weights | Name |"
    imported = read(head, RULE, f"| Weighted Sum @ 0.5 | A | B | {RISING_TEXT} | MIX |")

    assert_coefficients(block_coefficients(imported.recipe), weight_sum(A, B, by_block(RISING)))
    assert imported.warnings == ("line 3: the numbers of the column are used, not the 0.5 of the method",)


def test_same_step_name_in_several_tables():
    """Steps of several tables with the same name get different names; each table's rows refer to its own step."""
    head = ("| Interpolation Method | A | B | Name |", RULE)
    imported = read(
        *head,
        "| Weighted Sum @ 0.3 | A | B | part1 |",
        "| Weighted Sum @ 0.5 | part1 | C | FIRST |",
        "",
        *head,
        "| Weighted Sum @ 0.6 | A | D | part1 |",
        "| Weighted Sum @ 0.5 | part1 | FIRST | SECOND |",
    )

    first = weight_sum(SUM, C, everywhere(0.5))
    expected = weight_sum(weight_sum(A, D, everywhere(0.6)), first, everywhere(0.5))
    assert (imported.recipe.output, len(imported.recipe.steps)) == ("SECOND", 4)
    assert_coefficients(block_coefficients(imported.recipe), expected)
    assert any("part1" in warning for warning in imported.warnings)


def test_formulas_and_tables_together():
    """A row can use the result of a formula, and a formula the result of a row."""
    imported = read(
        "T = A x 0.7 + B x 0.3",
        "| Interpolation Method | A | B | Name |",
        RULE,
        "| Weighted Sum @ 0.5 | T | C | U |",
        "",
        "MIX = U x 0.5 + D x 0.5",
    )

    expected = weight_sum(weight_sum(SUM, C, everywhere(0.5)), D, everywhere(0.5))
    assert_coefficients(block_coefficients(imported.recipe), expected)


def test_rows_without_a_header():
    """A row that begins with a method needs no header: A, B, perhaps C, and the name follow."""
    imported = read(
        "| Weighted Sum @ 0.3 | A | B | T |",
        "2) Add difference 1.0\tT\tC\tD\tU",
        "| 3 | Weighted Sum @ 0.5 | U | D | N/A | MIX |",
    )

    added = add_difference(SUM, C, D, everywhere(1.0))
    assert_coefficients(block_coefficients(imported.recipe), weight_sum(added, D, everywhere(0.5)))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("| Train Difference @ 1.0 | T | C | D | MIX |", "'Train Difference @ 1.0' must be weighted sum"),
        ("| No interpolation | T | N/A | N/A | MIX |", "a single model"),
        ("| Add Difference @ 1.0 | T | C | N/A | MIX |", "model C is missing"),
        ("| Weighted Sum @ 0.3 | T | | | MIX |", "model B is missing"),
        ("| Weighted Sum | T | C | | MIX |", "no number for alpha"),
        ("| Weighted Sum @ 0.3 | T | C | | MIX | more |", "6 cells under 5 headers"),
    ],
)
def test_rows_that_are_refused(row, words):
    """An invalid row is reported with the reason; it is an error if it continues from the output."""
    text = f"T = A x 0.7 + B x 0.3\n| Method | A | B | C | Name |\n{RULE}\n{row}"

    with pytest.raises(RecipeError) as caught:
        read_notation(text)

    (problem,) = caught.value.problems
    assert problem.startswith("line 4: not understood: ")
    assert words in problem
    assert "it continues from 'T'" in problem


def test_refused_row_that_another_needs():
    """A refused row that another row needs is reported with the line of the other row."""
    with pytest.raises(RecipeError) as caught:
        read_notation("| Method | A | B | Name |\n| Magic | A | B | T |\n| Weighted Sum @ 0.3 | T | C | MIX |")

    (problem,) = caught.value.problems
    assert "line 2: not understood: the method 'Magic'" in problem
    assert problem.endswith("line 3 needs 'T', which line 2 defines")


def test_other_tables_are_not_reported():
    """Tables of hashes, prices and versions are not steps."""
    text = "T = A x 0.7 + B x 0.3\n| Model | Hash | Size |\n| --- | --- | --- |\n| other | 6ce0161689 | 3.97 GB |\n"

    assert read_notation(text).not_understood == ()


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(["method", "a", "b", "c", "name", "remark"]),
    number=st.integers(0, 100),
    difference=st.booleans(),
    edges=st.booleans(),
)
def test_columns_in_any_order(order, number, difference, edges):
    """The headers identify the columns in any order."""
    heads = {
        "method": "Interpolation Method",
        "a": "Primary Model",
        "b": "Model B",
        "c": "Tertiary",
        "name": "Merge Name",
        "remark": "Remark",
    }
    method = f"{'Add Difference' if difference else 'Weighted Sum'} @ {number / 100}"
    cells = {"method": method, "a": "A", "b": "B", "c": "C" if difference else "N/A", "name": "MIX", "remark": "good"}
    lines = [" | ".join(row[key] for key in order) for row in (heads, cells)]
    if edges:
        lines = [f"| {line} |" for line in lines]

    imported = read_notation("\n".join(lines))

    alpha = everywhere(number / 100)
    expected = add_difference(A, B, C, alpha) if difference else weight_sum(A, B, alpha)
    assert_coefficients(block_coefficients(imported.recipe), expected)
