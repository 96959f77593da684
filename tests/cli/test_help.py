"""Help pages: readable at 80 columns, with examples to type and the exit codes."""

import re
import shlex
import subprocess
import sys

import pytest

from optimizer.cli import app, main
from optimizer.printable import quoted

COMMANDS = tuple(command.name or command.callback.__name__ for command in app.registered_commands)


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Return the help page of a command at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def page(*command: str) -> str:
        with pytest.raises(SystemExit) as left:
            main([*command, "--help"])
        assert left.value.code == 0
        return capsys.readouterr().out

    return page


def examples(page: str) -> list[str]:
    """Return the examples of a page, one line each."""
    part = page.partition("  Examples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in part.splitlines()]


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_pages_fit_80_columns(page, command):
    """Every line of a help page fits 80 columns."""
    assert max(map(len, page(*command).splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_name_no_python_types(page, command):
    """Arguments are described without names of Python types."""
    arguments = page(command).partition("\nArguments:\n")[2].partition("\nOptions:\n")[0]
    assert not re.search(r"<\w+(\[\w+\])?>", arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_can_be_typed(page, command):
    """Every command has examples, one line each, with existing arguments and options."""
    text = page(command)
    assert len(examples(text)) >= 2
    for line in examples(text):
        name, called, *words = shlex.split(line)
        assert (name, called) == ("blockfit", command)
        options = [word for word in words if word.startswith("-")]
        assert all(re.search(rf"(^|[ ,]){option}[ ,\n]", text, re.MULTILINE) for option in options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet(page, command):
    """-q is an option of every command."""
    assert "-q, --quiet" in page(command)


def test_the_overview_is_complete(page):
    """The overview has examples, exit codes and a complete line about each command."""
    text = page()
    listed = text.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert not [line for line in listed if line.endswith("...")]
    assert len(examples(text)) >= 3
    assert re.findall(r"^ +(\d+)  ", text.split("Exit codes:\n")[1], re.MULTILINE) == ["0", "1", "2", "130"]


def test_no_arguments_print_the_help():
    """Without arguments the command prints its help to stderr and exits as for bad input."""
    done = subprocess.run([sys.executable, "-m", "optimizer"], capture_output=True, encoding="utf-8", check=False)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: blockfit [OPTIONS] COMMAND")
    assert "\nCommands:\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fti"], "blockfit: No such command 'fti'. Did you mean 'fit'? See blockfit --help"),
        (["fit"], "blockfit: Missing argument 'STUDY'; see blockfit fit --help"),
        (["merge", "x", "--dtype", "fp8", "-o", "y"], "blockfit: Invalid value for '--dtype'"),
    ],
)
def test_mistyped_lines_refer_to_the_help(capsys, arguments, line):
    """A mistyped line causes one line that refers to the right help page."""
    with pytest.raises(SystemExit) as left:
        main(arguments)

    assert left.value.code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(line)


@pytest.mark.parametrize(
    ("path", "typed"),
    [("a/b.yaml", "a/b.yaml"), ("my models", '"my models"'), ("x(1)", '"x(1)"'), ("D:\\x y", '"D:\\x y"')],
)
def test_printed_paths_can_be_typed(path, typed):
    """A path printed as part of a command can be typed as printed."""
    assert quoted(path) == typed
