"""Errors for problems that a user can solve, and the warning for problems that do not stop the work.

Each error is also a subclass of the matching built-in error, so callers can catch it without importing it.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from optimizer.printable import printable

__all__ = ["BlockfitWarning", "CheckpointError", "InputError", "RecipeError", "StudyError", "attempt"]

_Built = TypeVar("_Built")
_LONGEST = 4000  # characters of a problem; longer ones quote a broken file, and their end gives the correct form


class InputError(ValueError):
    """Unusable input; `problems` holds one complete line for each reason.

    `field` is the argument that all problems are about, as spelled in Python (`clip_skip`); None if they are about a
    file. `str(error)` puts its name before each problem; `problems` does not contain it. Other arguments appear in the
    text in backticks, as in Python: `base`, `fresh=True`, `folders=[DIR]`, `merge(step=...)`. The command can therefore
    translate all of them to its options, and a page can show the error beside its field. Control characters in quoted
    input are escaped, and the middle of very long lines is cut out.
    """

    def __init__(self, problems: str | Iterable[str], *, field: str | None = None) -> None:
        given = (problems,) if isinstance(problems, str) else problems
        self.field = field
        self.problems: tuple[str, ...] = tuple(map(_one_line, given))
        super().__init__("\n".join(self.problems if field is None else (f"{field}: {line}" for line in self.problems)))


class CheckpointError(InputError):
    """A checkpoint file that is missing, broken or unsafe, or that does not fit the others."""


class RecipeError(InputError):
    """A recipe that names or asks for something that does not exist or cannot be merged."""


class StudyError(InputError):
    """A study that cannot be run, or cannot be continued with the given files and options."""


class BlockfitWarning(RuntimeWarning):
    """A problem that the user should know of, although the work goes on: one complete line, as the command shows it.

    It is given by `warnings.warn`, in code too deep to be passed a callback.
    """


def attempt(build: Callable[[], _Built], where: object = "", joint: str = ": ", *, field: str | None = None) -> _Built:
    """Return the result of `build()`; if it raises InputError, add the place that the error is about.

    The error raised then has the type of the original one, with `where` and `joint` before each of its problems.

    Args:
        build: The call to attempt.
        where: The place, such as a file name; nothing is added if it is empty.
        joint: The text between the place and each problem.
        field: The argument that the problems are about; by default the error's own.

    Returns:
        The result of `build()`.
    """
    try:
        return build()
    except InputError as error:
        prefix = f"{where}{joint}" if where else ""
        problems = [f"{prefix}{problem}" for problem in error.problems]
        raise type(error)(problems, field=field or error.field) from None


def _one_line(problem: str) -> str:
    if len(problem) > _LONGEST:
        problem = f"{problem[: _LONGEST * 3 // 4]} ... {problem[-_LONGEST // 4 :]}"
    return printable(problem)
