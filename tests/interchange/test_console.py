"""SuperMerger's console and history, and model-mixer's line: each merge is a step, or refused with the reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings import (
    RISING,
    RISING_TEXT,
    add_difference,
    alone,
    assert_coefficients,
    by_block,
    combined,
    everywhere,
    read,
    weight_sum,
)
from step_by_step import BLOCKS

from optimizer.errors import RecipeError
from optimizer.interchange import read_notation
from optimizer.recipes import block_coefficients

A, B, C = map(alone, ("photoA", "comicB", "toonC"))
TEXT25 = RISING_TEXT.split(",", 1)[1]  # without BASE
ALPHA, BETA = by_block([0.3, *RISING[1:]]), by_block([0.25, *RISING[1:]])
CONSOLE = {
    "model A  \t": "photoA",
    "model B  \t": "comicB",
    "model C  \t": "toonC",
    "alpha,beta\t": "(0.3, 0.25)",
    "weights_alpha\t": TEXT25,
    "weights_beta\t": TEXT25,
    "mode\t\t": "Weight sum:A*(1-alpha)+B*alpha",
    "MBW \t\t": "True",
    "CalcMode \t": "normal",
    "Elemental \t": "",
    "Weights Seed\t": "1220710345",
    "Off \t": "([], '')",
    "Adjust \t": "",
    "Device \t": "cpu",
}
THREE = {
    "Weight sum:A*(1-alpha)+B*alpha": weight_sum(A, B, ALPHA),
    "Add difference:A+(B-C)*alpha": add_difference(A, B, C, ALPHA),
    "Triple sum:A*(1-alpha-beta)+B*alpha+C*beta": combined(
        ({block: 1 - ALPHA[block] - BETA[block] for block in BLOCKS}, A), (ALPHA, B), (BETA, C)
    ),
    "sum Twice:(A*(1-alpha)+B*alpha)*(1-beta)+C*beta": weight_sum(weight_sum(A, B, ALPHA), C, BETA),
}


def console(**changes):
    """Return SuperMerger's output with some values changed; None removes a line."""
    values = {key: changes.get(key.strip(), value) for key, value in CONSOLE.items()}
    return "merging...\n" + "\n".join(f"  {key}: {value}" for key, value in values.items() if value is not None)


def problem(text):
    """Return the first problem of a text that is refused."""
    with pytest.raises(RecipeError) as caught:
        read_notation(text)
    first, *_ = caught.value.problems
    assert first.startswith("line ")
    return first


@pytest.mark.parametrize("mode", THREE)
def test_modes_on_the_console(mode):
    """The settings of each mode give its step, with 25 numbers and the number of BASE."""
    assert_coefficients(block_coefficients(read(console(mode=mode)).recipe), THREE[mode])


def test_26_numbers_on_the_console():
    """A printed list of 26 numbers includes the number of BASE."""
    found = block_coefficients(read(console(weights_alpha=RISING_TEXT)).recipe)

    assert_coefficients(found, weight_sum(A, B, by_block(RISING)))


def test_console_without_blocks():
    """Without block weights the alpha applies to all blocks; settings unknown to older versions may be missing."""
    text = console(MBW="False", weights_alpha="", weights_beta="", Off=None, Device=None, **{"Weights Seed": None})

    assert_coefficients(block_coefficients(read(text).recipe), weight_sum(A, B, everywhere(0.3)))


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ({"Off": "([], '')"}, set(BLOCKS)),
        ({"Off": None, "Adjust": "\n  Exclude \t: (['IN10', 'BASE'], '')"}, set(BLOCKS) - {"IN10", "BASE"}),
        ({"Off": None, "Adjust": "\n  Include \t: (['IN10', 'BASE', 'print'], '')"}, {"IN10", "BASE"}),
    ],
)
def test_excluded_blocks_on_the_console(lines, kept):
    """Excluded blocks remain model A's; "print" is not a block, but an option to print the excluded ones."""
    expected = {block: number if block in kept else 0.0 for block, number in ALPHA.items()}

    assert_coefficients(block_coefficients(read(console(**lines)).recipe), weight_sum(A, B, expected))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CalcMode": "cosineA"}, ["calcmode", "cosineA", "weighted sum"]),
        ({"Elemental": "OUT03:attn1:0.5"}, ["elemental", "OUT03:attn1:0.5"]),
        ({"Adjust": "1,0,0,0,0,0,0,0"}, ["Adjust", "1,0,0,0,0,0,0,0", "after the merge"]),
        ({"mode": "Magic"}, ["mode", "Magic"]),
        ({"weights_alpha": TEXT25[4:]}, ["weights_alpha", "24 numbers"]),
        ({"alpha,beta": "(much, 0.25)"}, ["base_alpha", "much"]),
        ({"mode": "Triple sum", "model C": ""}, ["model C", "missing", "triple_sum"]),
        ({"mode": "Triple sum", "model C": "None"}, ["model C", "missing", "triple_sum"]),
    ],
)
def test_settings_that_cannot_be_expressed(changes, words):
    """A setting that a recipe cannot express is refused with its line and name."""
    line = problem(console(**changes))

    assert all(word in line for word in words), line


def test_refused_merge_on_the_console_beside_others():
    """A merge that a recipe cannot express is reported, and the other steps are read."""
    imported = read_notation("MIX = A x 0.5 + B x 0.5\n" + console(CalcMode="cosineA"))

    assert [step.name for step in imported.recipe.steps] == ["MIX"]
    (line,) = imported.not_understood
    assert line.startswith("line 3: ")


def history(name, mode, **changes):
    """Return a row of mergehistory.csv in SuperMerger's format."""
    values = {
        "weights alpha": TEXT25,
        "weights beta": TEXT25,
        "a": "6ce0161689",
        "b": "0123456789",
        "c": "aabbccddee",
        "alpha": 0.3,
        "beta": 0.25,
        "mode": mode,
        "mbw": True,
        "custom name": "",
        "save": "['overwrite', 'safetensors']",
        "ids": [],
        "elemental": "",
        "calcmode": "normal",
        "seed": 0,
        "adjust": "",
        "value": "",
        "inex": "Off",
        "blocks": [],
        "elements": "",
    } | {key: value for key, value in changes.items() if value is not ...}
    cells = [name, *values.values()]
    quoted = [f'"{cell}"' if "," in str(cell) or "\n" in str(cell) else str(cell) for cell in cells]
    return "1,2023.04.05 12.34.56," + ",".join(quoted)


HEADER = (
    '"ID","time","name","weights alpha","weights beta","model A","model B","model C","alpha","beta","mode","use MBW",'
    '"plus lora","custum name","save setting","use ID"'
)
NAMES = {
    "Weight sum": f"photoA x (1-alpha) + comicB x alpha (0.3,{TEXT25})",
    "Add difference": f"photoA + (comicB - toonC) x alpha (0.3,{TEXT25})",
    "Triple sum": "photoA x (1-alpha-beta) + comicB x alpha + toonC x beta "
    f"(alpha = 0.3,{TEXT25},beta = 0.25,{TEXT25})",
    "sum Twice": f"(photoA x (1-alpha) + comicB x alpha)x(1-beta)+  toonC x beta (0.3,{TEXT25})_(0.25,{TEXT25})",
}


@pytest.mark.parametrize("mode", THREE)
def test_modes_in_the_history(mode):
    """Each row is a step; its models have the names in the merge's name, and the row's short hashes."""
    imported = read(f"{HEADER}\n{history(NAMES[mode.split(':')[0]], mode)}")

    assert_coefficients(block_coefficients(imported.recipe), THREE[mode])
    assert imported.recipe.models["photoA"].file == "photoA.safetensors [6ce0161689]"
    assert imported.recipe.models["comicB"].file == "comicB.safetensors [0123456789]"
    assert [step.name for step in imported.recipe.steps] == ["merged"]


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("photoA x 0.7 + comicB x 0.3", "Weight sum:A*(1-alpha)+B*alpha", weight_sum(A, B, everywhere(0.3))),
        ("photoA + (comicB -  toonC) x 0.3", "Add difference:A+(B-C)*alpha",
         add_difference(A, B, C, everywhere(0.3))),
        ("photoA x 0.45 + comicB x 0.3 + toonC x 0.25", "Triple sum:A*(1-alpha-beta)+B*alpha+C*beta",
         combined((everywhere(0.45), A), (everywhere(0.3), B), (everywhere(0.25), C))),
        ("(photoA x 0.7 +comicB x 0.3) x 0.75 + toonC x 0.25", "sum Twice:(A*(1-alpha)+B*alpha)*(1-beta)+C*beta",
         weight_sum(weight_sum(A, B, everywhere(0.3)), C, everywhere(0.25))),
    ],
)  # fmt: skip
def test_history_without_blocks(name, mode, expected):
    """A row without block weights has one number for all blocks."""
    row = history(name, mode, **{"weights alpha": "", "weights beta": "", "mbw": False})

    assert_coefficients(block_coefficients(read(row).recipe), expected)


def test_row_of_the_history_with_a_custom_name():
    """A custom name is the step's name, which later rows and formulas can use."""
    row = history(NAMES["Weight sum"], "Weight sum", **{"custom name": "MIX"})

    imported = read(f"{row}\nLAST = MIX x 0.5 + toonC x 0.5")

    expected = weight_sum(weight_sum(A, B, ALPHA), C, everywhere(0.5))
    assert_coefficients(block_coefficients(imported.recipe), expected)


def test_row_whose_name_does_not_contain_the_models():
    """If the merge's name does not contain its models, their short hashes are their names."""
    imported = read(history("whatever", "Weight sum"))

    assert {name: model.file for name, model in imported.recipe.models.items()} == {
        "6ce0161689": "6ce0161689",
        "0123456789": "0123456789",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calcmode": "tensor"}, ["calcmode", "tensor"]),
        ({"adjust": "1,0,0"}, ["Adjust", "1,0,0"]),
        ({"elemental": "OUT03:attn1:0.5"}, ["elemental"]),
        ({"inex": "Exclude", "blocks": ["IN00"], "elements": "attn"}, ["Exclude", "attn"]),
    ],
)
def test_rows_of_the_history_that_cannot_be_expressed(changes, words):
    """A row that a recipe cannot express is refused with its line."""
    line = problem(history(NAMES["Weight sum"], "Weight sum", **changes))

    assert all(word in line for word in words), line


def test_excluded_blocks_in_the_history():
    """Blocks that a row excludes remain model A's."""
    row = history(NAMES["Weight sum"], "Weight sum", inex="Exclude", blocks=["IN00", "IN05"])

    expected = ALPHA | {"IN00": 0.0, "IN05": 0.0}
    assert_coefficients(block_coefficients(read(row).recipe), weight_sum(A, B, expected))


MIXER = "Model recipe: (photoA.safetensors [0123456789] * (1 - alpha_0) + comicB * alpha_0)"


@pytest.mark.parametrize("comma", [",", ", ", " "])
@pytest.mark.parametrize("adjust", ["", " @0,0,0,0"])
def test_line_of_model_mixer_in_pictures(comma, adjust):
    """In pictures, spaces replace the line's commas; an adjustment of zeros has no effect."""
    numbers = RISING_TEXT.replace(",", comma)
    imported = read(f"{MIXER} + (toonC - sd15) * alpha_1({numbers}),({numbers}){adjust}")

    rising = by_block(RISING)
    inner = weight_sum(A, B, rising)
    assert_coefficients(block_coefficients(imported.recipe), add_difference(inner, C, alone("sd15"), rising))
    assert imported.recipe.mapping == "model-mixer"


def test_line_of_model_mixer_with_single_alphas():
    """Without block weights model-mixer merges all tensors, including the VAE, as SuperMerger does."""
    line = MIXER.replace(": (", ": ((") + " * (1 - alpha_1) + toonC * alpha_1)(0.3),(0.25)"
    imported = read(line)

    expected = weight_sum(weight_sum(A, B, everywhere(0.3)), C, everywhere(0.25))
    assert_coefficients(block_coefficients(imported.recipe), expected)
    assert imported.recipe.mapping == "supermerger"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{MIXER}(0.5) @0.1,0,0", ["adjustment", "@0.1,0,0"]),
        (f"{MIXER}(0.5),(0.3)", ["2 lists of numbers for 1 alphas"]),
        (MIXER, ["their numbers in parentheses"]),
        (f"{MIXER} + dare_weights(toonC, 0.5) * alpha_1(0.5),(0.5)", ["DARE"]),
        (f"{MIXER}(0.5,0.5,0.5)", ["3 numbers"]),
    ],
)
def test_lines_of_model_mixer_that_cannot_be_expressed(line, words):
    """A line of model-mixer's that a recipe cannot express is refused with the reason."""
    assert all(word in problem(line) for word in words), problem(line)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(list(CONSOLE)),
    value=st.text(alphabet="()[]{}'\",:;-+.0123456789eE naINOUTBSE", max_size=60),
    row=st.text(alphabet="()[]{}'\",:;-+.0123456789eE naINOUTBSE\n", max_size=60),
)
def test_any_settings_are_read_or_refused(key, value, row):
    """Any value of a setting, and any row, gives a recipe or a RecipeError."""
    for text in (console(**{key.strip(): value}), f"1,2023.04.05 12.34.56,{row}"):
        try:
            read_notation(text)
        except RecipeError:
            continue
