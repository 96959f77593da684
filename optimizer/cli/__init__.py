"""The command `blockfit`: reads arguments and the environment, calls the package and prints. Computes nothing itself.

`--quiet` leaves errors, warnings and JSON. For Tab completion a shell runs this same command (see `completing`).

Exit codes: 0 success; 1 a failure that the input did not cause; 2 bad input: one line per problem on stderr, nothing
written; 130 interrupted, the best recipe so far exported. Tracebacks are shown with `--debug` only.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

# Importing these modules registers the commands, in the order of the help page.
from optimizer.cli import checkpoints, pictures, recipes, studies  # noqa: F401
from optimizer.cli.application import State, app
from optimizer.cli.completing import COMPLETION_VARIABLE
from optimizer.cli.flags import problems_in_options
from optimizer.cli.printing import say_problem, use_utf8, warnings_as_lines
from optimizer.cli.typer_internals import UsageError
from optimizer.errors import InputError

__all__ = ["app", "main"]

_MOST_PROBLEMS = 100  # lines; more would scroll the first ones off the screen


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process with its exit code."""
    use_utf8()
    # The interpreter's last collection would walk over all modules, which keeps the prompt waiting for half a second.
    atexit.register(gc.freeze)
    words = list(arguments) if arguments is not None else None
    if os.environ.get(COMPLETION_VARIABLE):
        _complete(words)
    try:
        with warnings_as_lines():
            code = app(args=words, prog_name="blockfit", standalone_mode=False)
    except InputError as error:
        _leave(2, problems_in_options(error))
    except (KeyboardInterrupt, typer.Abort):
        _leave(130, ["interrupted"])
    except BrokenPipeError:
        _leave(1, [])
    except UsageError as error:
        _leave(2, [_in_one_line(error)])
    except Exception as error:  # the last resort: any error becomes one line and exit code 1
        if State.debug:
            raise
        _leave(1, [f"{type(error).__name__}: {error}".splitlines()[0] + " (--debug shows where)"])
    sys.exit(code if isinstance(code, int) else 0)


def _complete(arguments: list[str] | None) -> NoReturn:
    """Answer a shell's request for completions; an unfinished line may be wrong in any way, so errors are not shown."""
    try:
        app(args=arguments, prog_name="blockfit", complete_var=COMPLETION_VARIABLE, standalone_mode=False)
    except Exception:  # a traceback would appear in the middle of the user's line
        sys.exit(1)
    sys.exit(0)


def _in_one_line(error: Any) -> str:
    """Return a usage error as one line that ends with the help command to run."""
    text = str(error.format_message())
    command = error.ctx.command_path if error.ctx is not None else "blockfit"
    return f"{text.removesuffix('.')}{' See' if text.endswith('?') else '; see'} {command} --help"


def _leave(code: int, problems: Sequence[str]) -> NoReturn:
    """Print the problems and exit; with --debug raise the current exception again."""
    if State.debug and sys.exc_info()[0] is not None and code != 130:
        raise  # noqa: PLE0704
    for problem in problems[:_MOST_PROBLEMS]:
        say_problem(problem)
    if len(problems) > _MOST_PROBLEMS:
        say_problem(f"{len(problems) - _MOST_PROBLEMS:,} more problems")
    sys.exit(code)
