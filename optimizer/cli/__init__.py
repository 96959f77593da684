"""The command `blockfit`: reads arguments and the environment, calls, prints. Nothing is computed here.

`--quiet` leaves errors, warnings and JSON. Tab asks this same command what may follow (`completing`).

Exit codes: 0 done; 1 something failed that is not the user's input; 2 bad input, one line a problem on stderr, nothing
written; 130 interrupted, the best so far exported. Tracebacks only with `--debug`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

# Importing their modules registers the commands, in the order in which the help lists them.
from optimizer.cli import checkpoints, pictures, recipes, studies  # noqa: F401
from optimizer.cli.application import State, app
from optimizer.cli.completing import COMPLETION_VARIABLE
from optimizer.cli.flags import problems_in_options
from optimizer.cli.printing import say_problem, use_utf8, warnings_as_lines
from optimizer.errors import InputError

__all__ = ["app", "main"]

# What typer raises for a mistyped command or option; depending on its version click's class, or its own copy of it.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
_MOST_PROBLEMS = 100  # lines; more scroll away what they are about


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and leave with its exit code."""
    use_utf8()
    given = list(arguments) if arguments is not None else None
    if os.environ.get(COMPLETION_VARIABLE):
        _complete(given)
    try:
        with warnings_as_lines():
            code = app(args=given, prog_name="blockfit", standalone_mode=False)
    except InputError as error:
        _leave(2, problems_in_options(error))
    except (KeyboardInterrupt, typer.Abort):
        _leave(130, ["interrupted"])
    except BrokenPipeError:
        _leave(1, [])
    except _USAGE_ERROR as error:
        _leave(2, [_in_one_line(error)])
    except Exception as error:
        if State.debug:
            raise
        _leave(1, [f"{type(error).__name__}: {error}".splitlines()[0] + " (--debug shows where)"])
    sys.exit(code if isinstance(code, int) else 0)


def _complete(arguments: list[str] | None) -> NoReturn:
    """Answer a shell that asks what may follow. Half a line may hold anything: what is wrong with it is not said."""
    try:
        app(args=arguments, prog_name="blockfit", complete_var=COMPLETION_VARIABLE, standalone_mode=False)
    except Exception:
        sys.exit(1)
    sys.exit(0)


def _in_one_line(error: Any) -> str:
    """What is wrong with the line that was typed, and which command's help tells what would be right."""
    text = str(error.format_message())
    command = error.ctx.command_path if error.ctx is not None else "blockfit"
    return f"{text.removesuffix('.')}{' ' if text.endswith('?') else '; '}{command} --help tells more"


def _leave(code: int, problems: Sequence[str]) -> NoReturn:
    if State.debug and sys.exc_info()[0] is not None and code != 130:
        raise  # noqa: PLE0704
    for problem in problems[:_MOST_PROBLEMS]:
        say_problem(problem)
    if len(problems) > _MOST_PROBLEMS:
        say_problem(f"{len(problems) - _MOST_PROBLEMS:,} more problems")
    sys.exit(code)
