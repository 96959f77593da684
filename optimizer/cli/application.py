"""The application that commands register with, and what holds for all of them."""

from typing import Annotated

import typer

from optimizer import __version__

__all__ = ["State", "app"]


app = typer.Typer(
    name="blockfit",
    help="Fit the recipe of a closed model merge, block by block.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"blockfit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Fit the recipe of a closed model merge, block by block."""
    State.debug = debug


class State:
    """What was asked for before the command's name."""

    debug = False
