"""Recipe files: every valid form and every mistake."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_by_step import BLOCKS

from optimizer.errors import InputError, RecipeError
from optimizer.files import read_yaml
from optimizer.library import Library
from optimizer.recipes import Alpha, Free, load_recipe, recipe_as_data, save_recipe

GOOD = """\
models:
  base: {file: base}
  x: {file: x}
  y: {file: y}
steps:
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: 0.5}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: 0.25}
"""


def written(folder, text):
    """Write a recipe file and return its path."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def with_alpha(alpha):
    """Return the text of a recipe of one step with an alpha."""
    return (
        "models: {a: {file: a}, b: {file: b}}\n"
        f"steps:\n  - {{name: T, mode: weight_sum, a: a, b: b, alpha: {alpha}}}\n"
    )


def read_alpha(folder, alpha):
    """Return the alpha read from a text."""
    return load_recipe(written(folder, with_alpha(alpha))).steps[0].alpha


def numbers(**named):
    """Return 26 numbers, 0 except those given."""
    return {block: named.get(block, 0.0) for block in BLOCKS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", dict.fromkeys(BLOCKS, 0.5)),
        ("1", dict.fromkeys(BLOCKS, 1.0)),
        ("-0.25", dict.fromkeys(BLOCKS, -0.25)),
        (str([n / 26 for n in range(26)]), {block: n / 26 for n, block in enumerate(BLOCKS)}),
        ("{OUT03: 0.5}", numbers(OUT03=0.5)),
        ("{OUT03-OUT05: 0.5, M00: 2}", numbers(OUT03=0.5, OUT04=0.5, OUT05=0.5, M00=2.0)),
        ('{"OUT03, IN01-IN02 ,BASE": 0.5}', numbers(OUT03=0.5, IN01=0.5, IN02=0.5, BASE=0.5)),
        ("{MI00: 0.5}", numbers(M00=0.5)),
        ("{mid: 0.5, out03: 0.1}", numbers(M00=0.5, OUT03=0.1)),
        ("{IN11-OUT00: 0.5}", numbers(IN11=0.5, M00=0.5, OUT00=0.5)),
        ("{input: 0.5, middle: 0.1}", numbers(**{f"IN{n:02}": 0.5 for n in range(12)}, M00=0.1)),
        ("{all: 0.5}", dict.fromkeys(BLOCKS, 0.5)),
        ("{}", numbers()),
    ],
)
def test_fixed_alphas_are_read(tmp_path, text, expected):
    """A number, 26 numbers and a mapping are read as one number per block, 0 if absent."""
    alpha = read_alpha(tmp_path, text)

    assert alpha.free == ()
    assert {block: alpha.at(block) for block in BLOCKS} == expected


@pytest.mark.parametrize(
    ("text", "free_alphas", "fixed"),
    [
        ("{search: [0, 1]}", [Free(0.0, 1.0, BLOCKS)], {}),
        ("{search: [-0.5, 1.5], blocks: OUT03-OUT04}", [Free(-0.5, 1.5, ("OUT03", "OUT04"))], {}),
        ('{search: [0, 1], blocks: "OUT03,MI00"}', [Free(0.0, 1.0, ("M00", "OUT03"))], {}),
        ("{search: [0, 1], blocks: [OUT03, IN01-IN02]}", [Free(0.0, 1.0, ("IN01", "IN02", "OUT03"))], {}),
        ("{search: [0, 1], tie: true}", [Free(0.0, 1.0, BLOCKS, tie=True)], {}),
        ("{search: [0, 1], step: 0.01, start: 0.5}", [Free(0.0, 1.0, BLOCKS, step=0.01, start=0.5)], {}),
        (
            "{IN01: 0.3, OUT03-OUT04: {search: [0, 1]}, OUT05: {search: [0, 2], tie: true, step: 0.5, start: 1}}",
            [Free(0.0, 1.0, ("OUT03", "OUT04")), Free(0.0, 2.0, ("OUT05",), True, 0.5, 1.0)],
            {"IN01": 0.3},
        ),
    ],
)
def test_free_alphas_are_read(tmp_path, text, free_alphas, fixed):
    """Free alphas are read with bounds, blocks, tie, step and start; blocks beside them hold their numbers."""
    alpha = read_alpha(tmp_path, text)

    assert alpha.free == tuple(free_alphas)
    searched = {block for free in free_alphas for block in free.blocks}
    rest = {block: fixed.get(block, 0.0) for block in BLOCKS if block not in searched}
    assert {block: alpha.at(block) for block in rest} == rest


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (Free(0.0, 1.0, BLOCKS), 0.0),
        (Free(-1.0, 1.0, BLOCKS), 0.0),
        (Free(0.2, 1.0, BLOCKS), 0.2),
        (Free(-1.0, -0.5, BLOCKS), -0.5),
        (Free(0.0, 1.0, BLOCKS, start=0.33), 0.33),
        (Free(0.0, 1.0, BLOCKS, step=0.25, start=0.33), 0.25),
        (Free(-0.3, 1.0, BLOCKS, step=0.2), -0.1),
    ],
)
def test_free_alphas_start_nearest_to_0(free, expected):
    """A free alpha starts at its start, else at 0 or the bound nearest to 0, on its grid (ties to even steps)."""
    assert free.starting_value == pytest.approx(expected, abs=1e-12) or (
        free.step == 0.2 and free.starting_value == pytest.approx(0.1)
    )


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(-2, 2),
    width=st.floats(0.01, 3),
    parts=st.floats(1, 40),
    value=st.floats(-5, 5),
)
def test_values_lie_on_the_grid(low, width, parts, value):
    """A value on the grid is the nearest whole number of steps from the lower bound, within the bounds."""
    free = Free(low, low + width, BLOCKS, step=min(width / parts, low + width - low))
    assert free.step is not None

    found = free.on_grid(value)

    steps = (found - low) / free.step
    assert abs(steps - round(steps)) < 1e-6
    assert low - 1e-9 <= found <= free.high + 1e-9
    last = math.floor((free.high - low) / free.step + 1e-9)
    nearest = min((low + n * free.step for n in range(last + 1)), key=lambda point: abs(point - value))
    assert abs(found - value) <= abs(nearest - value) + 1e-9


def test_a_whole_recipe_is_read(tmp_path):
    """Models, steps, layout, mapping and output are read; missing fields have their defaults."""
    recipe = load_recipe(written(tmp_path, GOOD))

    assert (recipe.name, recipe.layout.name, recipe.mapping, recipe.output) == ("recipe", "sd1", "supermerger", "T2")
    assert {name: (model.file, model.license) for name, model in recipe.models.items()} == {
        "base": ("base", "unknown"),
        "x": ("x", "unknown"),
        "y": ("y", "unknown"),
    }
    assert [(s.name, s.mode, s.a, s.b, s.c) for s in recipe.steps] == [
        ("T1", "add_difference", "base", "x", "base"),
        ("T2", "weight_sum", "T1", "y", None),
    ]


def test_a_byte_order_mark_is_accepted(tmp_path):
    """A file that starts with a byte order mark, as Windows editors write it, is read."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())

    assert load_recipe(path).output == "T2"


def test_steps_may_come_in_any_order(tmp_path):
    """Steps may precede their inputs in the file; they are evaluated after them, and only if needed."""
    text = """\
models: {m: {file: m}, n: {file: n}, o: {file: o}}
steps:
  - {name: D, mode: weight_sum, a: C, b: B, alpha: 0.5}
  - {name: C, mode: weight_sum, a: A, b: m, alpha: 0.5}
  - {name: X, mode: weight_sum, a: A, b: o, alpha: 0.5}
  - {name: B, mode: weight_sum, a: A, b: n, alpha: 0.5}
  - {name: A, mode: weight_sum, a: m, b: n, alpha: 0.5}
output: D
"""
    recipe = load_recipe(written(tmp_path, text))

    order = [step.name for step in recipe.ancestors()]
    assert sorted(order) == ["A", "B", "C", "D"]
    assert order[0] == "A"
    assert order[-1] == "D"
    assert [step.name for step in recipe.ancestors("B")] == ["A", "B"]
    assert recipe.sources() == ("m", "n")
    assert recipe.sources("X") == ("m", "n", "o")
    assert recipe.sources("A") == ("m", "n")


@pytest.mark.parametrize(
    ("alpha", "parts"),
    [
        ("[0.1, 0.2]", ["steps.T.alpha", "received 2 numbers", "26 blocks", "BASE first"]),
        (str([0.0] * 25), ["received 25 numbers"]),
        (str([0.0] * 27), ["received 27 numbers"]),
        ("{OUT12: 0.5}", ["steps.T.alpha.OUT12", "unknown block 'OUT12'", "OUT00-OUT11"]),
        ("{OUT05-OUT03: 0.5}", ["steps.T.alpha.OUT05-OUT03", "backwards", "OUT03-OUT05"]),
        ("{OUT03-OUT05: 0.5, OUT05: 0.1}", ["steps.T.alpha.OUT05", "OUT05 given more than once"]),
        ("{OUT02-OUT05: 0.5, OUT03-OUT09: 0.1}", ["steps.T.alpha.OUT03-OUT09: OUT03-OUT05 given more than once"]),
        ("{M00: 0.5, MI00: 0.1}", ["steps.T.alpha.MI00", "M00 given more than once"]),
        ("{'OUT03,OUT03': 0.5}", ["OUT03 is listed twice"]),
        ("{OUT03: 0.5, OUT03-OUT04: {search: [0, 1]}}", ["OUT03 given more than once"]),
        ("{OUT03: half}", ["steps.T.alpha.OUT03", "received 'half'", "must be a number"]),
        ("{OUT03: {low: 0}}", ["steps.T.alpha.OUT03", "unknown field 'low'", "search"]),
        ("{OUT03: {start: 0}}", ["steps.T.alpha.OUT03", "{search: [low, high]}"]),
        ("{OUT03: {search: [0, 1], blocks: OUT04}}", ["steps.T.alpha.OUT03.blocks", "received 'OUT04'"]),
        ("0.5x", ["steps.T.alpha", "received '0.5x'", "26 numbers"]),
        ("true", ["steps.T.alpha", "received True", "must be a number"]),
        ("&here true", ["steps.T.alpha", "must be a number"]),
        ("null", ["steps.T.alpha", "received None"]),
        (".nan", ["steps.T.alpha", "received nan", "finite"]),
        (".inf", ["steps.T.alpha", "received inf", "finite"]),
        ("1" + "0" * 400, ["steps.T.alpha", "finite"]),
        ("{OUT03: .nan}", ["steps.T.alpha.OUT03", "received nan", "finite"]),
        ("{OUT03: true}", ["steps.T.alpha.OUT03", "received True", "must be a number"]),
        (str([True] + [0.0] * 25).lower(), ["steps.T.alpha.BASE", "received True", "must be a number"]),
        ("{search: [1, 0]}", ["steps.T.alpha.search", "received [1, 0]", "lower bound comes first"]),
        ("{search: [1, 1]}", ["steps.T.alpha.search", "received [1, 1]", "lower bound comes first"]),
        ("{search: [0, .inf]}", ["steps.T.alpha.search", "received inf", "finite"]),
        ("{search: [0, .nan]}", ["steps.T.alpha.search", "received nan", "finite"]),
        ("{search: [0, true]}", ["steps.T.alpha.search", "two numbers, [low, high]"]),
        ("{search: 1}", ["steps.T.alpha.search", "received 1", "two numbers, [low, high]"]),
        ("{search: [0, 1, 2]}", ["steps.T.alpha.search", "received [0, 1, 2]", "[low, high]"]),
        ("{search: [0, 1], step: 0}", ["steps.T.alpha.step", "received 0", "above 0"]),
        ("{search: [0, 1], step: 2}", ["steps.T.alpha.step", "received 2", "at most 1"]),
        ("{search: [0, 1], step: fine}", ["steps.T.alpha.step", "received 'fine'", "must be a number"]),
        ("{search: [0, 1], start: 2}", ["steps.T.alpha.start", "received 2", "[0, 1]"]),
        ("{search: [0, 1], start: .nan}", ["steps.T.alpha.start", "received nan", "finite"]),
        ("{search: [0, 1], tie: maybe}", ["steps.T.alpha", "tie", "received 'maybe'"]),
        ("{search: [0, 1], bloks: OUT03}", ["steps.T.alpha", "unknown field 'bloks'", "blocks"]),
        ("{search: [0, 1], blocks: OUT99}", ["steps.T.alpha.blocks", "unknown block 'OUT99'"]),
        ("{search: [0, 1], blocks: []}", ["steps.T.alpha.blocks", "received []"]),
        ("{search: [0, 1], blocks: 5}", ["steps.T.alpha.blocks", "received 5"]),
        ("{search: [0, 1], blocks: [5]}", ["steps.T.alpha.blocks", "received [5]"]),
    ],
)
def test_wrong_alphas_are_refused(tmp_path, alpha, parts):
    """A wrong alpha is refused in one line with the file, its line, the field, the value and the values allowed."""
    path = written(tmp_path, with_alpha(alpha))

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: line 3: steps.T.alpha")
    assert "\n" not in problem
    assert ": .:" not in problem
    for part in parts:
        assert part in problem


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        ("a: T1", "a: T9", ["steps.T2.a", "received 'T9'", "must be one of T1, T2, base, x, y"]),
        ("b: y", "b: zebra", ["steps.T2.b", "received 'zebra'", "neither a model nor a step"]),
        ("c: base, ", "", ["steps.T1.c", "missing", "A + (B - C) x alpha"]),
        ("b: y,", "b: y, c: x,", ["steps.T2.c", "received 'x'", "weight_sum takes no third input"]),
        ("weight_sum", "weight_sun", ["steps.T2.mode", "received 'weight_sun'", "weight_sum, add_difference"]),
        ("name: T2", "name: T1", ["steps.T1", "defined twice"]),
        ("b: x, c: base", "b: z, c: z", ["steps.T1.b, steps.T1.c: received 'z'; neither a model nor a step"]),
        ("a: T1", "a: bases", ["steps.T2.a", "received 'bases'", "did you mean 'base'"]),
        ("name: T2", "name: base", ["steps.base", "a model has this name too"]),
        ("a: base", "a: T2", ["cycle", "T1", "T2", "may not need itself"]),
        ("a: T1", "a: T2", ["cycle", "T2 -> T2"]),
        ("alpha: 0.25", "alpha: 0.25, weight: 3", ["steps.T2.weight", "line 7", "unknown field", "alpha"]),
        ("alpha: 0.25", "", ["steps.T2.alpha", "missing"]),
        ("mode: weight_sum, ", "", ["steps.T2.mode", "missing"]),
        ("name: T2, ", "", ["name", "missing"]),
        ("{file: x}", "{}", ["models.x.file", "missing"]),
        ("{file: x}", "{file: x, licence: y}", ["models.x.licence", "unknown field", "license"]),
        ("{file: x}", "{file: ''}", ["models.x.file", "received ''"]),
        ("{file: x}", "{file: 15}", ["models.x.file", "received 15"]),
        ("models:", "layout: sd9\nmodels:", ["layout", "unknown layout 'sd9'", "sd1"]),
        ("models:", "mapping: mine\nmodels:", ["mapping", "received 'mine'", "supermerger"]),
        ("models:", "output: T7\nmodels:", ["output", "received 'T7'", "T2"]),
        ("models:", "output: base\nmodels:", ["output", "received 'base'"]),
        ("models:", "modles: {}\nmodels:", ["modles", "unknown field", "models"]),
        ("models:", "name: [1]\nmodels:", ["name", "received [1]"]),
    ],
)
def test_wrong_fields_are_refused(tmp_path, before, after, parts):
    """A wrong, missing or unknown field is refused in one line with the file, the field and the values allowed."""
    assert GOOD.count(before) == 1 or before == "a: base"
    path = written(tmp_path, GOOD.replace(before, after, 1))

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:")
    assert "\n" not in problem
    for part in parts:
        assert part in problem


def test_every_problem_is_named(tmp_path):
    """Several mistakes are reported together, one line each."""
    text = with_alpha("{OUT99: 1, OUT03: half}") + "  - {name: U, mode: weight_sum, a: a, b: b, alpha: [1]}\n"

    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text))

    assert len(caught.value.problems) == 3
    assert "steps.U.alpha: received 1 numbers" in caught.value.problems[2]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"steps: []\nmodels: {a: {file: a}}\n", ["steps: empty", "at least one step"]),
        (b"models: {a: {file: a}}\n", ["steps: missing"]),
        (b"", ["received nothing"]),
        (b"- 1\n- 2\n", ["received a list"]),
        (b"just words\n", ["received a"]),
        (b"a: [1, 2\n", ["not readable as YAML"]),
        (b"a: {b: 1}}\n", ["not readable as YAML"]),
        (b"name: x\nname: y\n", ["line 2", "not readable as YAML", "duplicate key"]),
        (b"models: {a: {file: a}, a: {file: b}}\n", ["duplicate key"]),
        (b"name: caf\xe9\n", ["not UTF-8 text", "byte 9"]),
        (b"PK\x03\x04\x00\x00", ["not readable as YAML"]),
        (b"name: 2022-13-45\n", ["not readable as YAML"]),
        (b"a: 1\n---\nb: 2\n", ["not readable as YAML"]),
        (b"a: !!python/object/apply:os.system [x]\n", ["line 1", "the tag", "python/object/apply:os.system"]),
        (b"a: !!python/name:os.system x\n", ["the tag", "python/name:os.system"]),
        (b"a: !mine {b: 1}\n", ["the tag '!mine'"]),
        (
            b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + b"".join(
                b"a%d: &a%d [" % (n, n) + b", ".join([b"*a%s" % (b"%d" % (n - 1) if n else b"")] * 10) + b"]\n"
                for n in range(9)
            ),
            ["100,000 values", "aliases"],
        ),
        (b"a: " + b"[" * 60 + b"]" * 60, ["nested more than 40 deep"]),
        (b"a:\n" + b"".join(b" " * n + b"a:\n" for n in range(1, 60)), ["nested more than 40 deep"]),
        (b"a:\n  " + b"- " * 60, ["nested more than 40 deep"]),
        (b"a: [" + b"1, " * 100_000 + b"1]", ["more than 100,000 values"]),
        (b"a: " + b"x" * (1 << 20), ["more than 1,048,576 bytes"]),
    ],
)
def test_unreadable_files_are_refused(tmp_path, content, parts):
    """A file that is no recipe, no YAML or no text is refused in one line."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    problem = caught.value.problems[0]
    assert len(caught.value.problems) == 1
    assert problem.startswith(f"{path}:")
    assert "\n" not in problem
    for part in parts:
        assert part in problem


def test_missing_files_and_folders_are_named(tmp_path):
    """A missing path, and a folder, is named."""
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("abT12 :-{}[],'\"&*!|>#?%@\n\t0.~\x00\x85é"), max_size=40))
@example(text="? [a]\n: b")
@example(text="<<: 1")
@example(text="a: !!int x")
@example(text="a: !!float x")
@example(text="a: !!timestamp x")
@example(text="a: &a [*a]")
@example(text="{? {a: 1} : 2}")
@example(text="[" * 1200)
@example(text="name: 0x" + "f" * 4000)
@example(text="<<: &a [*a]")
@example(text="presets: '\\0'\nmodels: {a: {file: a}}\nsteps: []")
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    """Any text is either read as a mapping or refused with an InputError."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        read_yaml(path, RecipeError)
        load_recipe(path)
    except InputError as error:
        assert all(problem.startswith(str(path)) and "\n" not in problem for problem in error.problems)  # noqa: PT017


BLOCK_LISTS = st.lists(st.sampled_from(BLOCKS), min_size=1, unique=True)
SIGNS = st.sampled_from("abcXYZ019 _-:#{}[]'\"é毛,&*!|>%@`~.?\\")
# Names have no spaces around them.
NAMES = st.text(SIGNS, min_size=1, max_size=8).map(str.strip).filter(bool)


@st.composite
def free_alphas(draw, *, with_blocks):
    """Draw a free alpha as data."""
    low = draw(st.floats(-2, 1))
    high = low + draw(st.floats(0.01, 3))
    data = {"search": [low, high]}
    if with_blocks and draw(st.booleans()):
        data["blocks"] = draw(BLOCK_LISTS)
    if draw(st.booleans()):
        data["tie"] = draw(st.booleans())
    if draw(st.booleans()):
        data["step"] = (high - low) / draw(st.integers(1, 50))
    if draw(st.booleans()):
        data["start"] = draw(st.floats(low, high))
    return data


@st.composite
def alphas(draw):
    """Draw an alpha as data, in any of its forms."""
    kind = draw(st.sampled_from(["number", "numbers", "free", "mapping", "mapping"]))
    number = st.one_of(st.floats(-3, 3, allow_nan=False), st.sampled_from([0.0, 1.0, 0.5, 1e-7, 1e22, -0.0]))
    if kind == "number":
        return draw(number)
    if kind == "numbers":
        return draw(st.lists(number, min_size=26, max_size=26))
    if kind == "free":
        return draw(free_alphas(with_blocks=True))
    blocks, data = draw(BLOCK_LISTS), {}
    while blocks:
        taken = draw(st.integers(1, len(blocks)))
        data[",".join(blocks[:taken])] = draw(st.one_of(number, free_alphas(with_blocks=False)))
        blocks = blocks[taken:]
    return data


@settings(max_examples=60, deadline=None)
@given(
    models=st.lists(NAMES, min_size=2, max_size=3, unique=True),
    drawn=st.lists(alphas(), min_size=1, max_size=3),
    texts=st.tuples(NAMES, NAMES, NAMES),
)
def test_a_recipe_survives_a_round_trip(tmp_path_factory, models, drawn, texts):
    """A recipe with any names, files and alphas survives saving and loading, and any YAML reader reads the file."""
    from ruamel.yaml import YAML

    folder = tmp_path_factory.getbasetemp()
    data = {
        "name": texts[0],
        "models": {name: {"file": texts[1], "license": texts[2]} for name in models},
        "steps": [
            {"name": f"step {n}", "mode": "weight_sum", "a": models[0], "b": models[1], "alpha": alpha}
            for n, alpha in enumerate(drawn)
        ],
    }
    (folder / "drawn.yaml").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    recipe = load_recipe(folder / "drawn.yaml")

    save_recipe(recipe, folder / "saved.yaml")

    assert load_recipe(folder / "saved.yaml") == recipe
    assert {name: model.file for name, model in recipe.models.items()} == dict.fromkeys(models, texts[1])
    with (folder / "saved.yaml").open(encoding="utf-8") as file:
        assert YAML(typ="safe").load(file) == recipe_as_data(recipe)


def test_notes_survive_a_round_trip(tmp_path):
    """The notes of a fit (hashes, similarities, target) are kept."""
    text = GOOD.replace("{file: x}", "{file: x, sha256: abc}").replace(
        "alpha: 0.25}", "alpha: 0.25, similarity: {delta: {total: 0.5, blocks: {OUT03: 0.5}}}}"
    )
    recipe = load_recipe(written(tmp_path, text + "fitted: {by: blockfit, searches: [{name: s, trials: 3}]}\n"))

    save_recipe(recipe, tmp_path / "again.yaml")
    again = load_recipe(tmp_path / "again.yaml")

    assert again.models["x"].sha256 == "abc"
    assert again.steps[1].similarity == {"delta": {"total": 0.5, "blocks": {"OUT03": 0.5}}}
    assert again.fitted.to_data() == {"by": "blockfit", "searches": [{"name": "s", "trials": 3}]}


def test_recipes_are_written_as_people_write(tmp_path):
    """Equal alphas are written as one number, others as 26 on one line, and free alphas as free."""
    text = """\
models: {a: {file: a}, b: {file: b}}
steps:
  - {name: T, mode: weight_sum, a: a, b: b, alpha: {all: 0.5}}
  - {name: U, mode: weight_sum, a: T, b: b, alpha: {OUT03-OUT11: 0.15}}
  - {name: V, mode: weight_sum, a: U, b: b, alpha: {IN01: 0.3, OUT03-OUT11: {search: [0, 1]}}}
"""
    save_recipe(load_recipe(written(tmp_path, text)), tmp_path / "saved.yaml")

    lines = [line.strip() for line in (tmp_path / "saved.yaml").read_text(encoding="utf-8").splitlines()]
    assert "alpha: 0.5" in lines
    row = ", ".join(["0.0"] * 17 + ["0.15"] * 9)
    assert f"alpha: [{row}]" in lines
    assert "alpha: {IN01: 0.3, OUT03-OUT11: {search: [0.0, 1.0]}}" in lines


def test_free_alphas_are_filled(tmp_path):
    """Filled blocks are numbers, the others stay free; `with_start_values` leaves none free."""
    text = with_alpha("{OUT03-OUT05: {search: [0, 1], start: 0.5}, M00: 0.1}")
    recipe = load_recipe(written(tmp_path, text))

    part = recipe.with_alphas({("T", "alpha"): {"OUT04": 0.7}}).step("T").alpha
    whole = recipe.with_start_values().step("T").alpha

    assert part.free == (Free(0.0, 1.0, ("OUT03", "OUT05"), start=0.5),)
    assert part.at("OUT04") == 0.7
    assert whole == Alpha(numbers(OUT03=0.5, OUT04=0.5, OUT05=0.5, M00=0.1))


def test_files_are_found_beside_the_recipe_first(tmp_path):
    """Files are found beside the recipe first, then in the folders and below, with or without extension."""
    beside, store = tmp_path / "beside", tmp_path / "store"
    (store / "deep" / "deeper").mkdir(parents=True)
    beside.mkdir()
    for path in (
        beside / "one.safetensors",
        store / "one.safetensors",
        store / "two.ckpt",
        store / "deep" / "deeper" / "v1.5.safetensors",
    ):
        path.write_bytes(b"")

    assert Library.of([store]).find("one", beside) == beside / "one.safetensors"
    assert Library.of([]).find("one.safetensors", store) == store / "one.safetensors"
    assert Library.of([store]).find("two", beside) == store / "two.ckpt"
    assert Library.of([store]).find("v1.5", beside) == store / "deep" / "deeper" / "v1.5.safetensors"
    assert Library.of([store]).find("deep\\deeper\\v1.5", beside) == store / "deep" / "deeper" / "v1.5.safetensors"
    assert Library.of([store]).find("deeper/two", beside) is None
    assert Library.of([store]).find("three", beside) is None
    assert Library().find(str(store / "two.ckpt"), beside) == Path(store / "two.ckpt")


def test_all_models_names_every_missing_file(tmp_path):
    """All missing files are named, with the folders searched."""
    (tmp_path / "here.ckpt").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        Library().all_models({"a": "here", "b": "gone", "c": "lost"}, tmp_path, named_in="recipe.yaml")

    first, second = caught.value.problems
    assert first.startswith("recipe.yaml: models.b.file: 'gone' not found; looked in")
    assert "models.c.file: 'lost'" in second
    assert str(tmp_path) in second


def test_steps_come_in_the_recipes_order(tmp_path):
    """Steps are evaluated in the recipe's order if possible, and always after their inputs."""
    recipe = load_recipe(
        written(
            tmp_path,
            "models: {a: {file: a}, b: {file: b}}\nsteps:\n"
            + "".join(
                f"  - {{name: {name}, mode: weight_sum, a: {first}, b: {second}, alpha: 0.5}}\n"
                for name, first, second in (("T2", "T1", "b"), ("X", "a", "b"), ("T1", "a", "b"), ("U", "X", "T2"))
            )
            + "output: U\n",
        )
    )

    assert [step.name for step in recipe.ancestors()] == ["X", "T1", "T2", "U"]
    assert [step.name for step in recipe.ancestors("T2")] == ["T1", "T2"]


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "0x" + "f" * 300])
def test_a_base_alpha_must_be_finite(tmp_path, number):
    """A base alpha beside 25 numbers must be finite."""
    alpha = f"[{', '.join(['0.5'] * 25)}], base_alpha: {number}"

    with pytest.raises(RecipeError, match="base_alpha"):
        load_recipe(written(tmp_path, with_alpha(alpha)))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused(tmp_path, seed):
    """A seed out of range is refused with its field."""
    text = with_alpha(f"0.5, expect: {{blocks: IN01, seed: {seed}}}")

    with pytest.raises(RecipeError, match=r"expect\.seed"):
        load_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    "file",
    [".", "..", "/", "../..", "*", "?.safetensors", "**", "[a].safetensors", "a/..", "x" * 5000],
    ids=lambda file: file[:20],
)
def test_patterns_and_folders_are_no_files(tmp_path, file):
    """A file's name is no pattern, and folders, empty and endless names are not found."""
    (tmp_path / "models" / "below").mkdir(parents=True)
    (tmp_path / "models" / "below" / "a.safetensors").touch()

    assert Library.of([tmp_path / "models"]).find(file, tmp_path) is None


def test_brackets_are_ordinary_letters(tmp_path):
    """Brackets in a name are ordinary letters."""
    (tmp_path / "models" / "below").mkdir(parents=True)
    path = tmp_path / "models" / "below" / "a [b].safetensors"
    path.touch()

    assert Library.of([tmp_path / "models"]).find("a [b]", tmp_path) == path


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [("name: T2", 'name: " T2"', "steps. T2"), ("  y:", '  "y ":', "models.y "), ("name: T2", 'name: " "', "steps. ")],
)
def test_spaces_around_names_are_refused(tmp_path, old, new, where):
    """A model's or step's name that begins or ends with a space is refused, since a formula would hide it."""
    with pytest.raises(RecipeError) as raised:
        load_recipe(written(tmp_path, GOOD.replace(old, new)))

    assert any(f"{where}: received" in problem and "a space" in problem for problem in raised.value.problems)
