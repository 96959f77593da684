"""The errors that every part of blockfit raises for what a user can put right, and the warning that goes on past one.

Each error is also the built-in error that fits, so callers need not import these to catch them.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from optimizer.printable import printable

__all__ = ["BlockfitWarning", "CheckpointError", "InputError", "RecipeError", "StudyError", "attempt"]

_Built = TypeVar("_Built")
_LONGEST = 4000  # characters of a problem; more than that is what a broken file held, and its end tells what is right


class InputError(ValueError):
    """What the user gave cannot be used; `problems` holds one complete line for each reason.

    `field` names the argument that all of them are about, as Python spells it (`clip_skip`); None if they are about a
    file. Its name stands before each problem in `str(error)`, not in `problems`. Other arguments stand in the text in
    backticks and as Python has them: `base`, `fresh=True`, `folders=[DIR]`, `merge(step=...)`. So a command can show
    all of them as its options, and a page can show the error beside its field. Control characters that came with what
    was received are escaped, and the middle of endless lines is cut out.
    """

    def __init__(self, problems: str | Iterable[str], *, field: str | None = None) -> None:
        given = (problems,) if isinstance(problems, str) else problems
        self.field = field
        self.problems: tuple[str, ...] = tuple(map(_one_line, given))
        super().__init__("\n".join(self.problems if field is None else (f"{field}: {one}" for one in self.problems)))


class CheckpointError(InputError):
    """A checkpoint file is missing, broken, unsafe, or does not fit the others."""


class RecipeError(InputError):
    """A recipe names or asks for something that does not exist or cannot be merged."""


class StudyError(InputError):
    """A study cannot be run, or cannot be continued with what it is given now."""


class BlockfitWarning(RuntimeWarning):
    """Something that a user has to know of, though the work goes on: one complete line, as the command shows it.

    For what lies too deep to be handed a callback; given by `warnings.warn`.
    """


def attempt(build: Callable[[], _Built], where: object = "", joint: str = ": ", *, field: str | None = None) -> _Built:
    """Return what `build` gives, and say of an InputError that it raises what it is about.

    `where`, if it is given, and `joint` are put before each of the problems. `field` names the argument that they are
    about; without it the error keeps its own.
    """
    try:
        return build()
    except InputError as error:
        place = f"{where}{joint}" if where else ""
        problems = [f"{place}{problem}" for problem in error.problems]
        raise type(error)(problems, field=field or error.field) from None


def _one_line(problem: str) -> str:
    if len(problem) > _LONGEST:
        problem = f"{problem[: _LONGEST * 3 // 4]} ... {problem[-_LONGEST // 4 :]}"
    return printable(problem)
