"""Every undocumented part of typer that the commands use. Check them when typer is upgraded."""

from collections.abc import Callable
from typing import Any

import typer
from typer.completion import completion_init, get_completion_script, install  # type: ignore[attr-defined]
from typer.core import TyperGroup

__all__ = [
    "CompletedWord",
    "TyperGroup",
    "UsageError",
    "commands_of",
    "completion_init",
    "extend_help",
    "get_completion_script",
    "hide_type",
    "install",
]

# The base class of the errors for a mistyped command or option: click's, or typer's copy of it, by version.
UsageError: Any = typer.BadParameter.__mro__[1]


class CompletedWord(str):
    """A completed word, quoted for the shell."""

    __slots__ = ()

    def startswith(self, *prefixes: Any) -> bool:
        """Return True: typer drops words that do not start with the typed text, as quoted words may not."""
        return True


def commands_of(app: typer.Typer) -> dict[str, Any]:
    """Return the commands of an application by name."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def hide_type(parameter: Any) -> None:
    """Show an argument on help pages without its Python type, <list[Path]> for example."""
    parameter.display_type_rich = lambda ctx: ""


def extend_help(parameter: Any, placeholder: str, text: Callable[[], str]) -> None:
    """Replace a placeholder in an option's help when the help page is shown, since `text` is slow."""
    show = parameter.get_help_record

    def record(ctx: Any) -> Any:
        parameter.help = parameter.help.replace(placeholder, text())
        return show(ctx)

    parameter.get_help_record = record
