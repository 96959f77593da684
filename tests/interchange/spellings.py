"""Steps in many spellings, and their expected numbers and coefficients, computed without the code under test."""

from hypothesis import strategies as st
from step_by_step import BLOCKS

from optimizer.interchange import read_notation

RISING = [0.5, *(n / 20 for n in range(21)), 0.0, 0.0, 0.1, 0.2]  # the 26 numbers of the case files, BASE first
RISING_TEXT = (
    "0.5,0.0,0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4,0.45,0.5,0.55,0.6,0.65,0.7,0.75,0.8,0.85,0.9,0.95,1.0,0.0,0.0,0.1,0.2"
)


def read(text):
    """Read a text and return the result; every line must be understood."""
    imported = read_notation(text)
    assert imported.not_understood == ()
    return imported


def by_block(numbers):
    """Return numbers by block; the first belongs to BASE."""
    return dict(zip(BLOCKS, numbers, strict=True))


def everywhere(number):
    """Return one number for all blocks."""
    return dict.fromkeys(BLOCKS, number)


def combined(*terms):
    """Return the sum of (factor by block, {source: {block: coefficient}}), as coefficients by source and block."""
    sources = dict.fromkeys(name for _, row in terms for name in row)
    return {
        name: {
            block: sum(factor[block] * row.get(name, everywhere(0.0))[block] for factor, row in terms)
            for block in BLOCKS
        }
        for name in sources
    }


def alone(name):
    """Return the coefficients of a single source."""
    return {name: everywhere(1.0)}


def weight_sum(a, b, alpha):
    """Return the coefficients of A x (1 - alpha) + B x alpha."""
    return combined(({block: 1 - n for block, n in alpha.items()}, a), (alpha, b))


def add_difference(a, b, c, alpha):
    """Return the coefficients of A + (B - C) x alpha."""
    return combined((everywhere(1.0), a), (alpha, b), ({block: -n for block, n in alpha.items()}, c))


def assert_coefficients(found, expected):
    """Assert equal coefficients within 1e-9; the coefficients of a missing source are 0."""
    for source in {**found, **expected}:
        actual, target = (rows.get(source, everywhere(0.0)) for rows in (found, expected))
        deviation = max(abs(actual[block] - target[block]) for block in BLOCKS)
        assert deviation < 1e-9, f"{source} deviates by {deviation}"


# --- One step in many spellings: {a} and {b} (and {c}) are models, {n} a number below 1, {r} is 1 - n -----------------

WEIGHT_SUMS = (
    "{name} = {a} x {r} + {b} x {n}",
    "{a} x {r} + {b} x {n} = {name}",
    "{name}={a}*{r}+{b}*{n}",
    "{r}*{a} + {n}*{b} = {name}",
    "{name} <- {a} x {r} + {b} x {n}",
    "{name} ← {a} × {r} + {b} × {n}",  # noqa: RUF001
    "{a} x {r} + {b} x {n} -> {name}",
    "{a} x {r} + {b} x {n} ⇒ {name}",
    "{a} x {r} + {b} x {n} => {name}",
    "{name} := {a} x {r} + {b} x {n}",
    "{name}: {a} x {r} + {b} x {n}",
    "{name}:{a} x {r} + {b} x {n}",
    "{name}：{a} × {r} ＋ {b} × {n}",  # noqa: RUF001
    "手順：{a} × {r} ＋ {b} × {n} ＝ {name}",  # noqa: RUF001
    "{name} is {a} x {r} + {b} x {n}",
    "{name}: {a} ({r}) + {b} ({n})",
    "{name} = {r}({a}) + {n}({b})",
    "{name} = {a} @{r} + {b} @{n}",
    "{name} = {a} {r%} + {b} {n%}",
    "{r%} {a} + {n%} {b} = {name}",
    "{name} = {r%} of {a} + {n%} of {b}",
    "{a} + {b} @{n} = {name}",
    "{name} = {r}{a} + {n}{b}",
    "{name} = {a} x {r,} + {b} x {n,}",
    "{name} = {a} x{r,} + {b} x{n,}",
    "{name} = {a} x (1-alpha) + {b} x alpha, alpha = {n}",
    "{name} = {a} x (1-alpha) + {b} x alpha\nalpha: {n}",
    "{name} = {a} x (1-alpha) + {b} x alpha ({n})",
    "{name} = {a} x (1 - M) + {b} x M, M = {n}",
    "{name} = {a} * (1 - M) + {b} * M\nmultiplier: {n%}",
    "{name} ≈ {a} ({r}), {b} ({n})",
    "{name}: {r%} {a} & {n%} {b}",
    "{r%} {a} and {n%} {b} → {name}",
    "[7] {name} = {a} x {r} + {b} x {n} (the best!)",
    "b) {a} + {b} = {name}\nweights: {n}{numbers}",
    "{a} + {b} = {name}\nalpha = {n}",
    "{a} + {b} = {name} (alpha = {n})",
    "(Weighted Sum {n}) {a} + {b} = {name}",
    "{name} = weighted_sum({a}, {b}, {n})",
    "{name}: Weighted Sum ({a}, {b}, M={n})",
    "Weighted sum: {a} + {b}, {n%} → {name}",
    "{a} + {b} -> (Weighted sum @ {n}) = {name}",
    "| Weighted Sum @ {n} | {a} | {b} | {name} |",
    "| 1 | Weighted Sum @ {n} | {a} | {b} | N/A | {name} |",
    "Weighted Sum @ {n%}\t{a}\t{b}\t{name}",
    "- **{name}** = `{a}` x {r} + `{b}` x {n}",
    "③ {name} = {a} x {r} + {b} x {n}",
    "Step 3: {name} = {a} x {r} + {b} x {n}",
    "{a} + {b} ({n}) = {name}",
    "{a} + {b} {n%} = {name}",
    "{a} + {b} = {name} ({n})",
    "{a} + {b} = {name} (ratio {n})",
    "{a} + {b}, {n} = {name}",
    "{name} = {a} + {b} (WS {n})",
    "{name} = ({a} x {r}) + ({b} x {n})",
    "{name} = {a}:{r} + {b}:{n}",
    "{name} = {a} {r%} / {b} {n%}",
    "{a} + {b} = {name}\nratio: {n}",
    "{a} + {b} = {name}\nMultiplier (M): {n}",
    "{a} + {b} = {name}\nM {n}",
    "{a} + {b} = {name}\n({n})",
    "{a} + {b} = {name}\n{n%}",
    "{a} + {b} = {name}\n{r:}",
    "{name} = {a} + {b}\nBASE: {n}\nIN: {n}\nM: {n}\nOUT: {n}",
    "{name} = {a} x (1-alpha) + {b} x alpha\nalpha:\nIN00-IN11: {n}\nMID {n}\nOUT: {twelve}\nBASE: {n}",
    "{name}:\n- {a} {r%}\n- {b}: {n}",
    (
        "Primary model (A): {a}\nSecondary model (B): {b}\nMultiplier (M): {n}\n"
        "Interpolation Method: Weighted sum\nCustom Name: {name}"
    ),
    "モデルA：{a}\nモデルB：{b}\n比率：{n}\n→ {name}",  # noqa: RUF001
    "| Weighted Sum @ {n,} | {a} | {b} | {name} |",
    "| Weighted Sum @ {n/} | {a} | {b} | {name} |",
    "{name} = {a} x {r/} + {b} x {n/}",
    "| A | B | Ratio | Name |\n|-|-|-|-|\n| {a} | {b} | {r:} | {name} |",
    "| Step | Recipe | Result |\n|---|---|---|\n| 1 | {a} x {r} + {b} x {n} | {name} |",
)
# Numbers of any size.
ANY_WEIGHT_SUMS = (
    "{name} = {a} x {r} + {b} x {n}",
    "{name} = {a} * ({r}) + {b} * ({n})",
    "{name} = {a} x {r%} + {b} x {n%}",
    "{name} = {a} x {r,} + {b} x {n,}",
    "{name} = {a} x {r/} + {b} x {n/}",
    "{name} = {a} x (1-alpha) + {b} x alpha\nalpha = {n}",
    "| Weighted Sum @ {n} | {a} | {b} | {name} |",
    "| Weighted Sum {n,} | {a} | {b} | {name} |",
    "Weighted sum @ {n%}: {a} + {b} = {name}",
    "| A | B | M | Name |\n| --- | --- | --- | --- |\n| {a} | {b} | {n/} | {name} |",
    "A: {a}\nB: {b}\nM: {n,}\nResult: {name}",
)
ANY_ADD_DIFFERENCES = (
    "{name} = {a} + ({b} - {c}) x {n}",
    "{name} = {a} + [{b} - {c}] x {n}",
    "{name} = {a} + ({b} - {c}) * {n,}",
    "{name} = {a} + ({b} - {c}) x {n/}",
    "Add difference {n}: {a} + {b} + {c} = {name}",
    "| Add Difference @ {n/} | {a} | {b} | {c} | {name} |",
    "| Add Difference @ {n,} | {a} | {b} | {c} | {name} |",
    "{name} = {a} + ({b} - {c})\nalpha: {n}",
)
# Spellings only for numbers above 1.
LARGE_DIFFERENCES = (
    "{name} = {a} + {n}{b} - {n}{c}",
    "{name} = {a} + {n} {b} - {n} {c}",
    "{name}={a}+{b}*{n}-{c}*{n}",
    "{name} = {a} + {n}({b}) - {n}({c})",
)
# Lines below a step that change it, or define another one: each must be reported.
SURPLUS = (
    "base alpha 0.137",  # a number that drawn texts never contain
    "calcmode: cosineA",
    "Exclude: BASE",
    "(only OUT blocks; IN 0)",
    "OUT blocks only",
    "Elemental: OUT03:attn:0.2",
    "IN: 0.1, M: 0.2, OUT: 0.3",
    "Weight: 0.55",
    "0.55",
    "then merged with Z at 30%",
    "and finally add 0.3 of Z",
    "Y 0.7 Z 0.3",
    "train difference",
    "YとZを0.3でマージ",
)
ADD_DIFFERENCES = (
    "{name} = {a} + ({b} - {c}) x {n}",
    "{a} + ({b} - {c}) x {n} = {name}",
    "{a} + {n}({b} - {c}) = {name}",
    "{a} + ({b} - {c}) {n%} → {name}",
    "{a} + ({b} - {c}) x {n,} → {name}",
    "{name} = {a} + {n}{b} - {n}{c}",
    "{name} = {a} + {b} x {n} - {c} x {n}",
    "{name} <= {a} + ({b}-{c})*{n}",
    "{name} is {a} + ({b} - {c}) @{n}",
    "{a} + ({b} - {c}) = {name}\nalpha: {n}",
    "{a} + ({b} - {c}) * M → {name}, M = {n}",
    "{name} = add_difference({a}, {b}, {c}, alpha={n})",
    "(Add Difference {n}) {a} + {b} + {c} = {name}",
    "| Add Difference @ {n} | {a} | {b} | {c} | {name} |",
    "{name} = {a} + ({b} - {c}) x alpha\nalpha = {n}",
)


def spelled(template, name, models, number):
    """Return the text of a step, a template with its names and number filled in."""
    rest = round(1 - number, 2)
    values = {"name": name, **models, "n": f"{number:.2f}", "r": f"{rest:.2f}"}
    values |= {"n%": f"{number:.0%}", "r%": f"{rest:.0%}", "n,": f"{number:.2f}", "r,": f"{rest:.2f}"}
    values |= {key: values[key].replace(".", ",") for key in ("n,", "r,")}
    values |= {"n/": f"{round(number * 100)}/100", "r/": f"{round(rest * 100)}/100"}
    values["r:"] = f"{round(rest * 100)}:{round(number * 100)}"
    values["twelve"] = ",".join([values["n"]] * 12)
    values["numbers"] = f",{values['n']}" * 25  # after the first
    text = template
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    return text


@st.composite
def texts(draw, most=5):
    """Draw a text of steps T1, T2, ... in random spellings, each of which uses the step before it.

    Returns:
        The text; the line numbers of its steps; and the last step's name and coefficients.
    """
    lines, starts = [], []
    rows = {"A": alone("A")}
    previous = "A"
    words = draw(st.sampled_from([("B", "C"), ("photoB", "F222_"), ("Anything_v", "sd1.5e"), ("B_", "real_pruned")]))
    for position in range(1, draw(st.integers(1, most)) + 1):
        name = f"T{position}"
        number = (
            draw(st.one_of(st.integers(1, 99), st.integers(1, 99), st.integers(-150, 250).filter(bool))) / 100
        )  # never 0, since 0/100 is a ratio of two models
        usual = 0 < number < 1
        models = [f"{word}{position}" for word in words]
        rows |= {model: alone(model) for model in models}
        if draw(st.booleans()):
            template = draw(st.sampled_from(WEIGHT_SUMS if usual else ANY_WEIGHT_SUMS))
            rows[name] = weight_sum(rows[previous], rows[models[0]], everywhere(number))
        else:
            large = LARGE_DIFFERENCES if number > 1 else ()
            template = draw(st.sampled_from(ADD_DIFFERENCES if usual else ANY_ADD_DIFFERENCES + large))
            rows[name] = add_difference(rows[previous], rows[models[0]], rows[models[1]], everywhere(number))
        starts.append(len(lines) + 1)
        lines += spelled(template, name, {"a": previous, "b": models[0], "c": models[1]}, number).split("\n")
        lines += [""] if lines[-1].startswith("|") else []  # the end of a table
        previous = name
    return "\n".join(lines), starts, previous, rows[previous]
