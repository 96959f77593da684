"""Translation of Python arguments in messages to the command's options: `clip_skip` becomes --clip-skip.

The names of the options come from the commands themselves. Messages write arguments in backticks: see `InputError`.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from types import EllipsisType
from typing import Any

from optimizer.cli.application import State, app
from optimizer.cli.typer_internals import commands_of
from optimizer.errors import InputError
from optimizer.printable import quoted

__all__ = ["in_options", "problems_in_options"]

# Arguments of functions whose command parameter has another name: {argument: parameter}.
_PARAMETERS = {
    "check_hashes": "no_verify",
    "embed_recipe": "no_recipe",
    "folder": "output",
    "folders": "models",
    "format_name": "to",
    "with_sources": "no_sources",
}
# Functions whose command has another name: {function: command}.
_COMMANDS = {"first_study": "init", "import_text": "import"}
_QUOTED = re.compile(r"`([^`\n]+)`")


def problems_in_options(error: InputError) -> list[str]:
    """Return the lines of an error, with arguments replaced by options of the running command."""
    texts = map(in_options, error.problems)
    if error.field is None:
        return list(texts)
    name = _option(error.field, _running_command()) or error.field
    return [f"{name}: {text}" for text in texts]


def in_options(text: str) -> str:
    """Return `text` with arguments in backticks replaced by options.

    `base` becomes --base if the running command has this option. `workers=1` becomes --workers 1 and `merge(step=...)`
    becomes blockfit merge --step for any command. The rest of the text is unchanged.

    Args:
        text: A message, written for Python users.

    Returns:
        The message for users of the command.
    """
    return _QUOTED.sub(lambda match: _translated(match[1]) or match[0], text)


def _translated(argument: str) -> str | None:
    """Return the option or command line for an argument or call; None if the commands have no counterpart."""
    try:
        call = ast.parse(f"_({argument})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    match call:
        case ast.Call(args=[ast.Name(id=name)], keywords=[]):
            return _option(name, _running_command())
        case ast.Call(args=[ast.Call(func=ast.Name(id=name), args=values, keywords=keywords)], keywords=[]):
            command = _commands().get(_COMMANDS.get(name, name))
            if command is None:
                return None
            words = [*map(_word, values), *(_option_and_value(keyword, [command]) for keyword in keywords)]
            return None if None in words else " ".join(("blockfit", command.name, *filter(None, words)))
        case ast.Call(args=[], keywords=[keyword]):
            return _option_and_value(keyword, [*_running_command(), *_commands().values()])
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
    """Return a value as typed on the command line; a name is a placeholder for the user's value."""
    match value:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str() | int() | float() as constant):
            return quoted(str(constant))
    return None


def _option(name: str, commands: Iterable[Any]) -> str | None:
    """Return the option of the first command that has this argument; for a positional argument, its metavar."""
    for command in commands:
        parameters = {parameter.name: parameter for parameter in command.params}
        parameter = parameters.get(name) or parameters.get(_PARAMETERS.get(name, ""))
        if parameter is not None:
            is_argument = parameter.param_type_name == "argument"
            return str(parameter.metavar or parameter.name.upper()) if is_argument else str(parameter.opts[0])
    return None


def _running_command() -> Iterator[Any]:
    """Yield the running command, if any."""
    command = _commands().get(State.command or "")
    if command is not None:
        yield command


@cache
def _commands() -> dict[str, Any]:
    return commands_of(app)
