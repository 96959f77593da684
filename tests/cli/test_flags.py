"""Errors contain Python's arguments; the command shows the same lines with its options."""

import ast
import re
from pathlib import Path

import pytest

import optimizer
from optimizer.analysis import simplify_file, study_ceilings
from optimizer.cli import main
from optimizer.cli.application import State
from optimizer.cli.flags import in_options
from optimizer.errors import InputError, StudyError, attempt
from optimizer.library import Library
from optimizer.search import fit
from optimizer.similarity import compare
from optimizer.studies import first_study, load_study

PACKAGE = Path(optimizer.__file__).parent
# Modules whose texts contain options: the command itself, and the report page's list of commands.
FACES = (PACKAGE / "cli", PACKAGE / "demo", PACKAGE / "reports" / "page" / "first_screen.py")
OTHER_PROGRAMS = ("pip install ", "optuna storage upgrade ")

FAMILY = Path(__file__).parents[2] / "studies" / "demo"
TARGET = FAMILY / "target.safetensors"
BASE = FAMILY / "models" / "base.safetensors"
METRICS = "explained, delta, weights, elements, attention, encoder"
ADDRESS = "must be sqlite:///FILE, journal:FILE or postgresql://USER@HOST/DATABASE"


def texts_of(path):
    """Yield the string constants of a module, docstrings included, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_flags_are_words_of_the_command():
    """No text outside of `FACES` contains an option of the command; options of other programs are allowed."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not any(path.is_relative_to(face) for face in FACES)
        for line, text in texts_of(path)
        if re.search(r"(?<![\w-])--[a-z]", text) and not any(program in text for program in OTHER_PROGRAMS)
    ]
    assert found == []
    # The names of families are texts, too.
    assert not re.search(r"[ \"(]--[a-z]", (PACKAGE / "families" / "kinds.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of the demo's family in a new folder, as `init` writes it."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    first_study(TARGET, [BASE, FAMILY / "models" / "bold.safetensors"], tmp_path / "mine")
    return tmp_path / "mine"


def line_of(capsys, *arguments):
    """Run the command, check for exit code 2 and return its single line on stderr."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("call", "arguments", "field", "text", "shown"),
    [
        (
            lambda: compare(BASE, TARGET, metric="x"),
            ("compare", BASE, "--target", TARGET, "--metric", "x"),
            "metric",
            f"received 'x'; must be one of {METRICS}",
            None,
        ),
        (
            lambda: compare(BASE, TARGET, metric="delta"),
            ("compare", BASE, "--target", TARGET, "--metric", "delta"),
            "base",
            "missing; the metric 'delta' compares differences from a base model",
            None,
        ),
        (
            lambda: compare(BASE, TARGET, metric="encoder", clip_skip=9),
            ("compare", BASE, "--target", TARGET, "--metric", "encoder", "--clip-skip", 9),
            "clip_skip",
            "received 9; must be from 1, the last layer, to 2",
            None,
        ),
        (
            lambda: compare(BASE, TARGET, metric="weights", clip_skip=1),
            ("compare", BASE, "--target", TARGET, "--metric", "weights", "--clip-skip", 1),
            "clip_skip",
            "only the metric `encoder` reads prompts; leave it out, or write `metric='encoder'`",
            "only the metric `encoder` reads prompts; leave it out, or write --metric encoder",
        ),
        (
            lambda: compare(BASE, TARGET, metric="encoder", blocks="output"),
            ("compare", BASE, "--target", TARGET, "--metric", "encoder", "--blocks", "output"),
            "blocks",
            "output contains no block that 'encoder' sees; it sees BASE",
            None,
        ),
        (
            lambda: compare(BASE, TARGET, device="gpu"),
            ("compare", BASE, "--target", TARGET, "--device", "gpu"),
            "device",
            "received 'gpu'; must be one of auto, cpu, cuda",
            None,
        ),
        (
            lambda: first_study(TARGET, [BASE, BASE], mode="x"),
            ("init", TARGET, BASE, "--mode", "x"),
            "mode",
            "received 'x'; must be one of add_difference, weight_sum",
            None,
        ),
        (
            lambda: first_study(TARGET, [TARGET]),
            ("init", TARGET, TARGET),
            "sources",
            f"{TARGET}: is the target itself; the sources are what it was made from",
            None,
        ),
    ],
)
def test_arguments_are_shown_as_options(capsys, call, arguments, field, text, shown):
    """Python shows the argument's name, the command its option; the rest of the line is the same."""
    with pytest.raises(InputError) as caught:
        call()

    assert (caught.value.field, caught.value.problems) == (field, (text,))
    assert str(caught.value) == f"{field}: {text}"
    name = "SOURCE" if field == "sources" else f"--{field.replace('_', '-')}"
    assert line_of(capsys, *arguments) == f"blockfit: {name}: {shown or text}"


def test_arguments_of_studies_are_shown_as_options(capsys, study):
    """The same holds for commands on studies, whose functions take the loaded study."""
    loaded = load_study(study)
    for call, arguments, field, text in (
        (lambda: fit(loaded, workers=0), ("fit", study, "--workers", 0), "workers", "received 0; must be at least 1"),
        (lambda: fit(loaded, candidates=0), ("fit", study, "--candidates", 0), "candidates", "received 0; must be at"),
        (lambda: loaded.with_trials(0), ("fit", study, "--trials", 0), "trials", "received 0; must be at least 1"),
        (
            lambda: fit(loaded, storage="x:y"),
            ("fit", study, "--storage", "x:y"),
            "storage",
            f"received 'x:y'; {ADDRESS}",
        ),
        (lambda: study_ceilings(loaded, "x"), ("ceiling", study, "--metric", "x"), "metric", "received 'x'; must be"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.field == field
        assert str(caught.value).startswith(f"{field}: {text}")
        assert line_of(capsys, *arguments).startswith(f"blockfit: --{field}: {text}")


def test_folders_are_shown_as_models(capsys, tmp_path, study):
    """The argument `folders` is shown as --models."""
    missing = tmp_path / "no"
    with pytest.raises(InputError) as caught:
        first_study(TARGET, [BASE], library=Library((missing,)))

    assert str(caught.value) == f"folders: {missing}: no such folder"
    assert line_of(capsys, "fit", study, "--models", missing) == f"blockfit: --models: {missing}: no such folder"


def test_a_place_in_a_file_is_no_argument(capsys, study):
    """A problem in a file is reported with its place in the file, and the remedy's argument in the text."""
    best = study / "best.yaml"
    text = re.sub(r"alpha: .*", "alpha: 0.5", (study / "recipe.yaml").read_text(encoding="utf-8"))
    best.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        simplify_file(best, study / "simple.yaml")

    where = f"{best}: fitted.target: missing; name the checkpoint to score against"
    assert (caught.value.field, str(caught.value)) == (None, f"{where} (`target`)")
    assert line_of(capsys, "simplify", best) == f"blockfit: {where} (--target)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("name it (`storage`)", "name it (--storage)"),
        ("`fresh=True` starts anew", "--fresh starts anew"),
        ("continue anyway (`check_hashes=False`)", "continue anyway (--no-verify)"),
        ("`workers=1` joins in", "--workers 1 joins in"),
        ("`folders=[DIR]` names more", "--models DIR names more"),
        ("merge with `vae='a b.pt'`", 'merge with --vae "a b.pt"'),
        ("merge with `vae=...`", "merge with --vae"),
        ("make a file first (`merge(step=...)`)", "make a file first (blockfit merge --step)"),
        ("`first_study(TARGET, SOURCE, folder=FOLDER)` makes one", "blockfit init TARGET SOURCE -o FOLDER makes one"),
        ("`merge()` writes .safetensors", "blockfit merge writes .safetensors"),
        # Not options of this command: a field of a file, a value, another program's line, incomplete calls.
        ("another `name` in its YAML file", None),
        ("needs `base`, the model", None),
        ("the metric `encoder`", None),
        ("write `tie: true`", None),
        ("`pip install x`", None),
        ("`no_such(a=1)`", None),
        ("`workers=1", None),
        ("`" + "(" * 500 + "`", None),
    ],
)
def test_arguments_in_texts_become_options(monkeypatch, text, shown):
    """Arguments in backticks become options of the running command; the rest of the text is unchanged."""
    monkeypatch.setattr(State, "command", "fit")
    assert in_options(text) == (text if shown is None else shown)


def test_attempts_keep_the_field():
    """A place in front of the problems keeps their field, unless another field is given."""

    def fail():
        raise StudyError(["one", "two"], field="trials")

    for named, expected in ((None, "trials"), ("metric", "metric")):
        with pytest.raises(StudyError) as caught:
            attempt(fail, "x.yaml", field=named)
        assert (caught.value.field, caught.value.problems) == (expected, ("x.yaml: one", "x.yaml: two"))
    with pytest.raises(StudyError) as caught:
        attempt(fail)
    assert str(caught.value) == "trials: one\ntrials: two"
