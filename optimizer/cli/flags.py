"""Arguments as Python has them, told as the options of the command: errors name `clip_skip`, a user types --clip-skip.

What the options are called comes from the commands themselves. In texts arguments stand in backticks: see `InputError`.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from types import EllipsisType
from typing import Any

import typer.main

from optimizer.cli.application import State, app
from optimizer.errors import InputError
from optimizer.printable import quoted

__all__ = ["in_options", "problems_in_options"]

# Arguments of functions that the commands call otherwise, by the names of the commands' own parameters.
_PARAMETERS = {
    "check_hashes": "no_verify",
    "embed_recipe": "no_recipe",
    "folder": "output",
    "folders": "models",
    "format_name": "to",
    "with_sources": "no_sources",
}
# Functions that are commands of another name.
_COMMANDS = {"first_study": "init", "import_text": "import"}
_QUOTED = re.compile(r"`([^`\n]+)`")


def problems_in_options(error: InputError) -> list[str]:
    """Return the lines of an error as the command that was run shows them."""
    texts = map(in_options, error.problems)
    if error.field is None:
        return list(texts)
    name = _option(error.field, _own()) or error.field
    return [f"{name}: {text}" for text in texts]


def in_options(text: str) -> str:
    """Return `text` with the arguments in it told as options.

    `base` becomes --base if the command that was run has this option; `workers=1` becomes --workers 1, and
    `merge(step=...)` blockfit merge --step, whatever was run. All else stays as it is.
    """
    return _QUOTED.sub(lambda found: _told(found[1]) or found[0], text)


def _told(argument: str) -> str | None:
    try:
        call = ast.parse(f"_({argument})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    match call:
        case ast.Call(args=[ast.Name(id=name)], keywords=[]):
            return _option(name, _own())
        case ast.Call(args=[ast.Call(func=ast.Name(id=name), args=values, keywords=keywords)], keywords=[]):
            command = _commands().get(_COMMANDS.get(name, name))
            if command is None:
                return None
            words = [*map(_word, values), *(_option_and_value(one, [command]) for one in keywords)]
            return None if None in words else " ".join(("blockfit", command.name, *filter(None, words)))
        case ast.Call(args=[], keywords=[keyword]):
            return _option_and_value(keyword, [*_own(), *_commands().values()])
    return None


def _option_and_value(keyword: ast.keyword, commands: Iterable[Any]) -> str | None:
    option = _option(keyword.arg or "", commands)
    if option is None or (
        isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool | EllipsisType)
    ):
        return option
    values = keyword.value.elts if isinstance(keyword.value, ast.List) else [keyword.value]
    words = list(map(_word, values))
    return None if None in words else " ".join(f"{option} {word}" for word in words)


def _word(value: ast.expr) -> str | None:
    """The word that is typed for a value: a name stands for what the user puts there."""
    match value:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str() | int() | float() as constant):
            return quoted(str(constant))
    return None


def _option(name: str, commands: Iterable[Any]) -> str | None:
    """The option for an argument in the first of the commands that has one; of a positional argument its metavar."""
    for command in commands:
        parameters = {parameter.name: parameter for parameter in command.params}
        parameter = parameters.get(name) or parameters.get(_PARAMETERS.get(name, ""))
        if parameter is not None:
            is_argument = parameter.param_type_name == "argument"
            return str(parameter.metavar or parameter.name.upper()) if is_argument else str(parameter.opts[0])
    return None


def _own() -> Iterator[Any]:
    """The command that was run, if one was."""
    command = _commands().get(State.command or "")
    if command is not None:
        yield command


@cache
def _commands() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
