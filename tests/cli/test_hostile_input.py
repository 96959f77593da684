"""Untrusted files, given to the command: each is refused in one line or read in seconds, and none runs anything."""

import csv
import itertools
import json
import os
import re
import struct
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from step_by_step import explained_by_definition

from optimizer.checkpoints import open_checkpoint
from optimizer.cli import main
from optimizer.studies import load_study

Write = Callable[..., dict[str, torch.Tensor]]
Run = Callable[..., tuple[int, list[str], list[str]]]

MODELS = "models:\n  one: {file: one.safetensors}\n  two: {file: two.safetensors}\nsteps:\n"
STUDY = """recipe: recipe.yaml
target: {file: target.safetensors}
stages: [{name: STAGE, metric: weights, trials: 2, strategy: stepwise}]
"""


def step(name: str, a: str = "one", b: str = "two", alpha: str = "0.5") -> str:
    """Return the line of a step in a recipe."""
    return f"  - {{name: {name}, mode: weight_sum, a: {a}, b: {b}, alpha: {alpha}}}\n"


def chain(count: int, b: str | None = None) -> str:
    """Return a recipe of steps that each merge the step before with `b`, or with itself, which doubles the formula."""
    names = ["one", *(f"S{number}" for number in range(count))]
    return MODELS + "".join(step(name, before, b or before) for before, name in itertools.pairwise(names))


@pytest.fixture
def folder(tmp_path: Path, write_sd1: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two sources and a target."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "models"
    models.mkdir()
    for seed, name in enumerate(("one", "two", "target")):
        write_sd1(models / f"{name}.safetensors", seed=seed)
    return models


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command and returns its exit code and lines; none may act on a terminal."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        for text in written:
            control = [
                letter for letter in text if unicodedata.category(letter) in ("Cc", "Zl", "Zp") and letter != "\n"
            ]
            assert not control
            assert "\u202e" not in text
        return int(left.value.code or 0), written.out.splitlines(), written.err.splitlines()

    return run


def files_in(folder: Path) -> dict[Path, int]:
    """Return the modification time of every file below a folder, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refused(run: Run, folder: Path, *arguments: object, seconds: float = 10) -> str:
    """Return the line with which the command refuses, within `seconds` of processor time, without writing a file."""
    before, started = files_in(folder), time.process_time()
    code, out, err = run(*arguments)
    assert time.process_time() - started < seconds
    assert (code, out, len(err)) == (2, [], 1)
    assert files_in(folder) == before
    return err[0]


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
INNER_BOMB = (
    "{IN00: &a0 [0, 0], " + ", ".join(f"IN{n:02}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)) + "}"
)
HUGE = {
    "10,000 steps": chain(10_000, "two"),
    "10,000 steps, each twice the one before": chain(10_000),
    "a bomb of aliases": BOMB + MODELS + step("S"),
    "a bomb as an alpha": MODELS + step("S", alpha=INNER_BOMB),
    "a bomb among ignored fields": MODELS + step("S") + "fitted:\n" + "".join(f"  {x}\n" for x in BOMB.splitlines()),
    "a list in a list in a list": "fitted: {x: " + "[" * 3000 + "]" * 3000 + "}\n" + MODELS + step("S"),
    "a text of 3 MB": f"name: {'x' * 3_000_000}\n" + MODELS + step("S"),
    "a million blocks": MODELS + step("S", alpha='{? "' + ",".join(["IN00"] * 200_000) + '" : 0.5}'),
    "a block's name of a million letters": MODELS + step("S", alpha='{? "' + "Q" * 1_000_000 + '" : 0.5}'),
    "100,000 unknown blocks": MODELS + step("S", alpha="{" + ", ".join(f"Q{n}: 1" for n in range(100_000)) + "}"),
    "10,000 unknown models": MODELS + "".join(step(f"S{n}", f"no{n}") for n in range(10_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_huge_recipes_are_refused(folder: Path, run: Run, name: str) -> None:
    """A recipe that would take hours or all memory is refused at once by every command that reads it."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(HUGE[name], encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")

    assert "recipe.yaml" in refused(run, folder, "merge", recipe, "-o", folder / "out.safetensors")
    assert "recipe.yaml" in refused(run, folder, "export", recipe, "--to", "supermerger", "-o", folder / "out.txt")
    assert "recipe.yaml" in refused(run, folder, "verify", recipe, "--target", folder / "target.safetensors")
    assert "recipe.yaml" in refused(run, folder, "fit", folder)
    assert "recipe.yaml" in refused(run, folder, "status", folder)


def test_too_many_steps_or_models_are_refused_with_the_limit(folder: Path, run: Run) -> None:
    """More steps or models than a recipe may have are refused with their number and the limit."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(chain(2001, "two"), encoding="utf-8")
    assert "steps: received 2,001; a recipe has at most 2,000" in refused(
        run, folder, "merge", recipe, "-o", folder / "out.safetensors", seconds=30
    )
    many = "".join(f"  m{n}: {{file: one.safetensors}}\n" for n in range(5001))
    recipe.write_text(MODELS.replace("models:\n", f"models:\n{many}") + step("S"), encoding="utf-8")
    assert "models: received 5,003; a recipe has at most 5,000" in refused(
        run, folder, "merge", recipe, "-o", folder / "out.safetensors", seconds=30
    )


def test_a_recipe_of_five_hundred_sources_is_merged(folder: Path, run: Run) -> None:
    """Five hundred sources in a chain of as many steps are merged; earlier steps are not merged separately."""
    save = folder / "recipe.yaml"
    models = "".join(f"  m{n}: {{file: {('one', 'two')[n % 2]}.safetensors}}\n" for n in range(500))
    steps = "".join(step(f"S{n}", f"S{n - 1}" if n > 1 else "m0", f"m{n}", "0.5") for n in range(1, 500))
    save.write_text(f"models:\n{models}steps:\n{steps}", encoding="utf-8")
    started = time.process_time()

    code, _, _ = run("merge", save, "-o", folder / "out.safetensors", "--dtype", "fp32")

    assert code == 0
    assert time.process_time() - started < 60
    name = "model.diffusion_model.out.2.weight"
    one, two, made = (open_checkpoint(folder / f"{file}.safetensors").tensor(name) for file in ("one", "two", "out"))
    # The last source has the weight 1/2, the source before 1/4, and so on; m499 is `two`.
    expected = (2 * two.double() + one.double()) / 3
    assert torch.allclose(made.double(), expected, atol=1e-6)


def test_a_recipe_of_many_sources_is_verified(folder: Path, run: Run) -> None:
    """Every step of a chain of two hundred sources is measured in seconds, and agrees with the definition."""
    models = "".join(f"  m{n}: {{file: {('one', 'two')[n % 2]}.safetensors}}\n" for n in range(200))
    steps = "".join(step(f"S{n}", f"S{n - 1}" if n > 1 else "m0", f"m{n}") for n in range(1, 200))
    (folder / "recipe.yaml").write_text(f"models:\n{models}steps:\n{steps}", encoding="utf-8")
    started = time.process_time()

    code, out, _ = run("verify", folder / "recipe.yaml", "--target", folder / "target.safetensors", "--json")

    assert code == 0
    assert time.process_time() - started < 30
    found = json.loads("".join(out))
    assert [entry["step"] for entry in found] == [f"S{n}" for n in range(1, 200)]
    one, two, target = (load_file(folder / f"{file}.safetensors") for file in ("one", "two", "target"))
    # The share of `two`: one half, one quarter, five eighths, ... and two thirds or one third in the end.
    for place, share in ((0, 1 / 2), (1, 1 / 4), (2, 5 / 8), (197, 1 / 3), (198, 2 / 3)):
        merged = {name: (1 - share) * one[name].double() + share * two[name].double() for name in one}
        expected = explained_by_definition(merged, target, one)
        measured = {block: entry["measured"] for block, entry in found[place]["blocks"].items()}
        assert measured == pytest.approx(expected, abs=2e-6)


def test_a_recipe_of_many_steps_is_verified(folder: Path, run: Run) -> None:
    """Each of a thousand steps is measured in a time that is linear in their number, not quadratic."""
    (folder / "recipe.yaml").write_text(chain(1000, "two"), encoding="utf-8")
    started = time.process_time()

    code, out, _ = run("verify", folder / "recipe.yaml", "--target", folder / "target.safetensors", "--json")

    assert code == 0
    assert time.process_time() - started < 30
    found = json.loads("".join(out))
    assert [entry["step"] for entry in found] == [f"S{n}" for n in range(1000)]
    one, two, target = (load_file(folder / f"{file}.safetensors") for file in ("one", "two", "target"))
    # After a thousand halvings the weight of `one` is zero.
    expected = explained_by_definition(two, target, one)
    measured = {block: entry["measured"] for block, entry in found[-1]["blocks"].items()}
    assert measured == pytest.approx(expected, abs=2e-6)


def test_too_many_metrics_and_seeds_are_refused(folder: Path, run: Run) -> None:
    """Steps that each need other random inputs, and would read all sources again, are refused with the limit."""
    expecting = "".join(step(f"S{n}").replace("}\n", f", expect: {{blocks: OUT03, seed: {n}}}}}\n") for n in range(101))
    (folder / "recipe.yaml").write_text(MODELS + expecting, encoding="utf-8")

    line = refused(run, folder, "verify", folder / "recipe.yaml", "--target", folder / "target.safetensors")

    assert "steps: received 101 different metrics, seeds and block lists to measure by; must be at most 100" in line


def test_too_many_steps_to_simplify_are_refused(folder: Path, run: Run) -> None:
    """A recipe of more steps than can be simplified in a minute is refused with the limit and a remedy."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(chain(101, "two"), encoding="utf-8")

    line = refused(run, folder, "simplify", recipe, "--target", folder / "target.safetensors", "-o", folder / "s.yaml")

    assert "recipe.yaml: steps: received 101; must be at most 100 to be simplified; merge the first ones" in line


def write_joint_study(folder: Path, count: int, alpha: str) -> Path:
    """Write a study that searches `count` steps at once; return its file."""
    steps = "".join(step(f"S{n}", f"S{n - 1}" if n else "one", alpha=alpha) for n in range(count))
    (folder / "recipe.yaml").write_text(MODELS + steps, encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY.replace("stepwise", "joint"), encoding="utf-8")
    return folder / "study.yaml"


def test_too_many_alphas_to_search_at_once_are_refused(folder: Path, run: Run) -> None:
    """A joint stage may have 416 alphas; more than 100 steps or 600 alphas are refused with a remedy."""
    assert len(load_study(write_joint_study(folder, 16, "{search: [0, 1]}")).stages[0].parameters) == 416
    assert len(load_study(write_joint_study(folder, 100, "{search: [0, 1], tie: true}")).stages[0].parameters) == 100

    write_joint_study(folder, 300, "{search: [0, 1], tie: true}")
    line = refused(run, folder, "fit", folder)
    assert "study.yaml: stages.STAGE.steps: 300 steps with free alphas; a stage searches at most 100; search" in line
    write_joint_study(folder, 24, "{search: [0, 1]}")
    line = refused(run, folder, "fit", folder)
    assert "stages.STAGE.strategy: 624 free alphas at once; a joint stage searches at most 600; search them in" in line
    assert "several stages" in line
    assert "tie: true" in line


TEXTS = {
    "10,000 steps": "\n".join(f"S{n} x 0.9 + B x 0.1 = S{n + 1}" for n in range(10_000)),
    "10,000 steps, each twice the one before": "\n".join(f"S{n} x 0.9 + S{n} x 0.1 = S{n + 1}" for n in range(10_000)),
    "parentheses 10,000 deep": f"A x 0.5 + {'(' * 10_000}B{')' * 10_000} x 0.5 = T",
    "10,000 signs": f"A x {'-' * 9_000}0.5 + B x 0.5 = T x",
    "500 differences": "A + " + " + ".join(f"(B{n} - C) x 0.1" for n in range(500)) + " = T",
    "alpha to the 500th power": "A x " + "(1+alpha+beta) x " * 500 + "1 + B x 0.5 = T\nalpha = 0.1\nbeta = 0.1",
    "a number of 100,000 digits": f"A x {'9' * 100_000} + B x 0.5 = T",
    "a million blocks": f"A x (1-alpha) + B x alpha = T\nalpha = {{'{'IN00,' * 200_000}': 1}}",
    "a bomb of aliases": f"A x (1-alpha) + B x alpha = T\nalpha = {INNER_BOMB}",
    "two million empty lines": "\n" * 2_000_000,
    "a million lines": "A\n" * 520_000,
    "a text of 3 MB": "x" * 3_000_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_huge_texts_are_refused(folder: Path, run: Run, name: str) -> None:
    """A text that would take hours or all memory is refused in seconds."""
    (folder / "text.txt").write_text(TEXTS[name], encoding="utf-8")
    before, started = files_in(folder), time.process_time()

    code, out, err = run("import", folder / "text.txt", "-o", folder / "recipe.yaml")

    assert time.process_time() - started < 15
    assert (code, out) == (2, [])
    assert err
    assert all("text.txt" in line and len(line) < 5000 for line in err)
    assert files_in(folder) == before


def test_a_text_of_five_hundred_sources_is_imported(folder: Path, run: Run) -> None:
    """A text of five hundred sources and steps becomes a recipe that can be read again."""
    lines = [f"S{n} x 0.9 + model{n} x 0.1 = S{n + 1}" for n in range(500)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")

    code, out, _ = run("import", folder / "text.txt", "-o", folder / "recipe.yaml", "--json")
    assert code == 0
    code, out, _ = run("export", folder / "recipe.yaml", "--to", "supermerger", "-o", folder / "out.txt")
    assert code == 0
    assert out == [f"S500 -> {folder / 'out.txt'}"]


TAGS = {
    "!!python/object/apply:os.system ['touch trap']": "python/object/apply:os.system",
    "!!python/object/new:os.system ['touch trap']": "python/object/new:os.system",
    "!!python/name:os.system x": "python/name:os.system",
    "!anything {a: 1}": "!anything",
    "!anything 5": "!anything",
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("file", ["recipe.yaml", "study.yaml", "text.txt"])
def test_tags_are_refused(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tag: str, file: str) -> None:
    """A YAML tag, which other parsers turn into an object or a call, is refused by its name."""
    monkeypatch.chdir(folder)
    recipe = MODELS + step("S", alpha=tag if file == "recipe.yaml" else "0.5")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    study = STUDY.replace("weights", tag.replace("{a: 1}", "x")) if file == "study.yaml" else STUDY
    (folder / "study.yaml").write_text(study.replace("[{", "\n  - {").replace("}]", "}"), encoding="utf-8")
    (folder / "text.txt").write_text(f"A x (1-alpha) + B x alpha = T\nalpha = {{IN00: {tag}}}", encoding="utf-8")

    if file == "text.txt":
        assert "must be a mapping of blocks" in refused(run, folder, "import", "text.txt", "-o", "new.yaml")
    else:
        line = refused(run, folder, "fit", folder)
        assert file in line
        assert TAGS[tag] in line
    assert not (folder / "trap").exists()


CONTROL = ["\x1b[2J", "\x1b]0;title\x07", "\n", "\r", "\x00", "\x7f", "\x9b31m", "\u2028", "\u202e", "\b"]


@pytest.mark.parametrize("sign", CONTROL, ids=ascii)
@pytest.mark.parametrize(
    "place",
    [
        lambda name: MODELS + step(name),
        lambda name: MODELS + step("S", a=name),
        lambda name: MODELS.replace("two:", f"{name}:") + step("S", b=name),
        lambda name: MODELS.replace("one.safetensors", name) + step("S"),
        lambda name: MODELS.replace("one.safetensors", f"one.safetensors, license: {name}") + step("S"),
        lambda name: f"name: {name}\n" + MODELS + step("S"),
        lambda name: f"{name}: 1\n" + MODELS + step("S"),
        lambda name: f"layout: {name}\n" + MODELS + step("S"),
        lambda name: f"mapping: {name}\n" + MODELS + step("S"),
        lambda name: f"output: {name}\n" + MODELS + step("S"),
        lambda name: f"presets: {name}\n" + MODELS + step("S"),
        lambda name: MODELS + step("S", alpha=f"{{{name}: 1}}"),
        lambda name: MODELS + step("S", alpha=name),
        lambda name: MODELS + step("S", alpha=f"{{search: [0, 1], blocks: {name}}}"),
        lambda name: MODELS + step("S").replace("weight_sum", name),
    ],
)
def test_control_characters_in_a_recipe_are_escaped(
    folder: Path, run: Run, sign: str, place: Callable[[str], str]
) -> None:
    """Escape sequences, line ends and text direction marks in any field of a recipe never reach the terminal."""
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in sign)
    (folder / "recipe.yaml").write_text(place(f'"a{escaped}b"'), encoding="utf-8")

    code, out, err = run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors")

    assert (code, out) == (2, [])
    assert err
    assert all(line.startswith("blockfit: ") and "recipe.yaml" in line for line in err)


@pytest.mark.parametrize("sign", CONTROL, ids=ascii)
def test_control_characters_in_other_files_are_escaped(folder: Path, run: Run, write_sd1: Write, sign: str) -> None:
    """Control characters in a study, in a text to import and in a merged file's metadata are escaped."""
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in sign)
    (folder / "recipe.yaml").write_text(MODELS + step("S", alpha="{search: [0, 1]}"), encoding="utf-8")
    study = STUDY.replace("STAGE", f'"a{escaped}b"')
    (folder / "study.yaml").write_text(study, encoding="utf-8")
    assert "the name contains the character" in refused(run, folder, "status", folder)

    (folder / "text.txt").write_text(f'"a{escaped}b" x 0.5 + B x 0.5 = T\nB x 0.5 = {sign.strip()}c', encoding="utf-8")
    code, _, err = run("import", folder / "text.txt", "-o", folder / "new.yaml")
    assert code == 2
    assert err
    assert all(line.startswith("blockfit: ") for line in err)

    metadata = {f"x{sign}y": f"a{sign}b", "sd_merge_recipe": json.dumps({"type": f"webui{sign}"})}
    write_sd1(folder / "merged.safetensors", metadata=metadata, overrides={f"te{sign}st": torch.zeros(3)})
    for option in ([], ["--json"]):
        code, out, _ = run("inspect", folder / "merged.safetensors", *option)
        assert code == 0
        assert out
    code, _, err = run("import", folder / "merged.safetensors", "-o", folder / "new.yaml")
    assert (code, len(err)) == (2, 1)


# One name of each kind, and further ones.
SOME_NAMES = [
    *("../../escaped", f"{tempfile.gettempdir()}/blockfit-escaped", "..\\..\\escaped", "nul.txt"),
    *("[red]x[/]", "=1+1", "a" * 400, "'; DROP TABLE trials; --"),
]
MORE_NAMES = [
    *("..", ".", "~", "C:\\escaped", "\\\\host\\share\\x", "CON", "a:b"),
    *("<script>alert(1)</script>", "+1", "-1+1", "@SUM(A1)", "$(touch x)", "%s%n"),
]


def quoted(text: str) -> str:
    """Return a text as a double-quoted YAML scalar."""
    return f'"{text}"'.replace("\\", "\\\\")


@pytest.mark.parametrize("names", [SOME_NAMES, pytest.param(MORE_NAMES, marks=pytest.mark.slow)], ids=["some", "more"])
def test_names_write_no_files_elsewhere(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """Names of steps and stages that look like paths or commands add no file beside those of a fit."""
    elsewhere = folder.parent / "working"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    free = "".join(step(quoted(name), alpha="{search: [0, 1], tie: true}") for name in names)
    (folder / "recipe.yaml").write_text(MODELS + free, encoding="utf-8")
    # Each stage has the name of its step, without "/", which a stage's name cannot contain.
    stages = "".join(
        f"  - {{name: {quoted(name.replace('/', '_'))}, metric: weights, trials: 2, steps: [{quoted(name)}]}}\n"
        for name in names
    )
    (folder / "study.yaml").write_text(STUDY[: STUDY.index("[{")].rstrip() + "\n" + stages, encoding="utf-8")
    before, escaped = files_in(folder.parent), Path(tempfile.gettempdir()) / "blockfit-escaped"

    code, out, _ = run("fit", folder, "--plots")

    assert code == 0
    made = {path.relative_to(folder.parent).as_posix() for path in files_in(folder.parent).keys() - before.keys()}
    drawn = {path for path in made if "similarity-against-alpha" in path}
    assert len(drawn) == len(names)
    for plot in drawn:
        assert re.fullmatch(r"models/plots/similarity-against-alpha-[\w.-]{1,40}\.png", plot)
    expected = {"study.db", "best.yaml", "best.simple.yaml", "trials.csv", "fit.log", "statistics.safetensors"}
    plots = {"best-so-far.png", "similarity-per-block.png", "alphas.png"}
    assert {path for path in made if not path.startswith("cache/")} - drawn <= (
        {f"models/{file}" for file in expected} | {f"models/plots/{file}" for file in plots}
    )
    assert not list(elsewhere.iterdir())
    assert not escaped.exists()
    assert any("best.yaml" in line for line in out)

    rows = list(csv.reader((folder / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert not any(cell.startswith(("=", "+", "-", "@")) and not is_number(cell) for row in rows for cell in row)
    for name in names:
        assert any(f"{name}.alpha" in cell for cell in rows[0])


def is_number(text: str) -> bool:
    """Return True if a cell is a number, which may begin with a sign."""
    return re.fullmatch(r"[-+]?[\d.]+(e[-+]\d+)?", text) is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes among files")
@pytest.mark.parametrize("named", ["pipe", "/dev/zero", "/dev/stdin", "/dev/tty"])
def test_pipes_and_devices_are_refused(folder: Path, run: Run, named: str) -> None:
    """A recipe or study that names a pipe or a device is refused, because reading it might never end."""
    os.mkfifo(folder / "pipe")
    fixed, free = step("S"), step("S", alpha="{search: [0, 1]}")
    (folder / "study.yaml").write_text(STUDY.replace("recipe.yaml", named), encoding="utf-8")
    assert "no such file" in refused(run, folder, "fit", folder)
    (folder / "recipe.yaml").write_text(f"presets: {named}\n" + MODELS + fixed, encoding="utf-8")
    output = folder / "out.safetensors"
    assert "presets" in refused(run, folder, "merge", folder / "recipe.yaml", "-o", output)
    (folder / "recipe.yaml").write_text(MODELS.replace("one.safetensors", named) + fixed, encoding="utf-8")
    assert "models.one.file" in refused(run, folder, "merge", folder / "recipe.yaml", "-o", output)
    (folder / "recipe.yaml").write_text(MODELS + free, encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY.replace("target.safetensors", named), encoding="utf-8")
    assert "target.file" in refused(run, folder, "fit", folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes among files")
@pytest.mark.parametrize("named", ["pipe", "/dev/zero", "/dev/stdin", '"a\\0b"', "a" * 5000, "../models"])
def test_prompts_that_are_no_file_are_refused(folder: Path, run: Run, named: str) -> None:
    """Prompts are read from regular files only, also by commands that need no checkpoint."""
    os.mkfifo(folder / "pipe")
    (folder / "recipe.yaml").write_text(MODELS + step("S", alpha="{search: [0, 1]}"), encoding="utf-8")
    study = STUDY.replace("STAGE, metric: weights", f"s, metric: encoder, prompts: {named}")
    (folder / "study.yaml").write_text(study, encoding="utf-8")

    for command in ("status", "fit"):
        line = refused(run, folder, command, folder)
        assert "study.yaml: stages.s.prompts: " in line
        assert "no such file" in line


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices among files")
def test_endless_prompts_are_refused(folder: Path, run: Run) -> None:
    """An endless file of prompts is read up to the limit and refused."""
    target = folder / "target.safetensors"
    arguments = (target, "--target", target, "--metric", "encoder", "--prompts", "/dev/zero")

    assert "/dev/zero: received more than 4,194,304 bytes" in refused(run, folder, "compare", *arguments)


def test_recipes_may_name_files_elsewhere(folder: Path, run: Run) -> None:
    """A recipe's `file` may lead out of its folder: the file is read, and only the output is written."""
    below = folder / "recipes" / "mine"
    below.mkdir(parents=True)
    text = MODELS.replace("one.safetensors", "../../one.safetensors").replace("two.sa", f"{folder.as_posix()}/two.sa")
    (below / "recipe.yaml").write_text(text + step("S"), encoding="utf-8")
    before = files_in(folder)

    code, _, _ = run("merge", below / "recipe.yaml", "-o", folder / "out.safetensors")

    assert code == 0
    assert files_in(folder).keys() - before.keys() == {folder / "out.safetensors"}


def test_at_most_a_hundred_problems_are_shown(folder: Path, run: Run) -> None:
    """The first hundred problems are shown, then the number of the others."""
    (folder / "recipe.yaml").write_text(
        "".join(f"f{n}: 1\n" for n in range(500)) + MODELS + step("S"), encoding="utf-8"
    )

    code, _, err = run("merge", folder / "recipe.yaml", "-o", folder / "out.safetensors")

    assert (code, len(err)) == (2, 101)
    assert err[-1] == "blockfit: 400 more problems"


@pytest.mark.parametrize(
    "field", ["seeds: [9223372036854775808]", "passes: 1000000000", "trials: 10000000000000000000000"]
)
def test_numbers_that_are_too_large_are_refused(folder: Path, run: Run, field: str) -> None:
    """A seed beyond the generator's range and a count that would take years are refused with their field."""
    (folder / "recipe.yaml").write_text(MODELS + step("S", alpha="{search: [0, 1]}"), encoding="utf-8")
    study = STUDY.replace("STAGE, metric: weights, trials: 2", f"s, metric: attention, {field}")
    (folder / "study.yaml").write_text(study, encoding="utf-8")

    assert field.split(":", maxsplit=1)[0] in refused(run, folder, "fit", folder)


def test_damaged_headers_are_refused(folder: Path, run: Run) -> None:
    """A header of 100 GB, of 100,000 levels or with a repeated name is refused by every command that reads it."""
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    headers = {
        "100,000,000,000 bytes": struct.pack("<Q", 10**11) + b"{}",
        "nested": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "given twice": f'{{"a":{entry},"a":{entry}}}'.encode(),
    }
    (folder / "recipe.yaml").write_text(MODELS + step("S"), encoding="utf-8")
    for words, header in headers.items():
        whole = header if header[8:9] == b"{" else struct.pack("<Q", len(header)) + header + bytes(4)
        (folder / "two.safetensors").write_bytes(whole)
        assert words in refused(run, folder, "inspect", folder / "two.safetensors")
        output = folder / "out.safetensors"
        assert words in refused(run, folder, "merge", folder / "recipe.yaml", "-o", output)


def test_unknown_tensor_names_are_shown_harmlessly(folder: Path, run: Run) -> None:
    """A file without a known layout is shown, with its tensors' names escaped."""
    save_file({"\x1b[31m\n../x": torch.zeros(2), "<script>": torch.zeros(2)}, folder / "odd.safetensors")

    code, out, _ = run("inspect", folder / "odd.safetensors")

    assert code == 0
    assert out
