"""The application that commands register with, and what holds for all of them."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.completion import completion_init, get_completion_script, install  # type: ignore[attr-defined]
from typer.core import TyperGroup

from optimizer.cli.completing import COMPLETION_VARIABLE, SHELLS, shells
from optimizer.errors import InputError
from optimizer.version import __version__

__all__ = ["Quiet", "State", "app", "examples"]

_DETECTED = "detected"  # what stands for a shell that was not named


class State:
    """What was asked for that concerns all that is printed.

    `command` is the name of the command that was run. `quiet` leaves errors, warnings and JSON; `json` keeps stdout for
    one JSON value. `told_missing` are the folders of BLOCKFIT_MODELS that were said to be missing.
    """

    command: str | None = None

    debug = False
    quiet = False
    json = False
    told_missing: ClassVar[set[Path]] = set()


class _Group(TyperGroup):
    """Shows its help where nothing is asked for, and takes completion options with and without a shell's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments before the command's name."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(2)
        first, *others = args or [""]
        alone = not others or others[0].startswith("-")
        if first in ("--install-completion", "--show-completion") and alone and not ctx.resilient_parsing:
            args = [first, _DETECTED, *others]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name."""
        command = super().get_command(ctx, cmd_name)
        for parameter in command.params if command is not None else ():
            if parameter.param_type_name == "argument":
                # Its name says what is wanted; typer would add Python's type, such as <list[Path]>.
                parameter.display_type_rich = lambda ctx: ""  # type: ignore[attr-defined]
        return command


def examples(*lines: str) -> str:
    """The end of a help page: `blockfit` with each of these arguments on a line of its own, as it is typed."""
    return "\n".join(("\b", "Examples:", *(f"  blockfit {line}" for line in lines)))


_EXIT_CODES = """\b
Exit codes:
  0    done
  1    failed, though the input was in order
  2    bad input: each problem is one line on stderr, nothing is written
  130  interrupted (Ctrl-C); a fit has written its best so far"""

app = typer.Typer(
    name="blockfit",
    help="Fit the recipe of a closed model merge, block by block.",
    epilog=examples(
        "init closed.safetensors D:/webui/models/Stable-diffusion -o mine",
        "fit mine",
        "merge mine/best.yaml -o clone.safetensors",
        "compare clone.safetensors --target closed.safetensors",
        "COMMAND --help",
    )
    + "\n\n"
    + _EXIT_CODES,
    cls=_Group,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
completion_init()


def _version(ctx: typer.Context, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        typer.echo(f"blockfit {__version__}")
        raise typer.Exit


def _shell(option: str, value: str) -> str | None:
    """The shell that was named, or None for the one that blockfit runs in. Raises InputError for others."""
    if value != _DETECTED and value not in SHELLS:
        raise InputError(f"{option}: received {value!r}; must be one of {', '.join(SHELLS)}")
    return None if value == _DETECTED else value


def _detected_shell(option: str) -> str:
    from shellingham import ShellDetectionFailure, detect_shell  # noqa: PLC0415

    try:
        name = str(detect_shell()[0])
    except ShellDetectionFailure:
        name = ""
    if name not in SHELLS:
        raise InputError(f"{option}: the shell is not known ({name or 'none found'}); name it: {', '.join(SHELLS)}")
    return name


# Resilient parsing is that of a line which is being completed: nothing is done then.
def _install_completion(ctx: typer.Context, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        option = "--install-completion"
        shell = _shell(option, value) or _detected_shell(option)
        _, path = install(shell=shell, prog_name="blockfit", complete_var=COMPLETION_VARIABLE)
        if not ctx.params.get("quiet"):
            typer.echo(f"completion for {shell}: {path}; open a new terminal to use it")
        raise typer.Exit


def _show_completion(ctx: typer.Context, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        option = "--show-completion"
        shell = _shell(option, value) or _detected_shell(option)
        typer.echo(get_completion_script(prog_name="blockfit", complete_var=COMPLETION_VARIABLE, shell=shell))
        raise typer.Exit


def _be_quiet(value: bool) -> bool:
    State.quiet |= value
    return value


Quiet = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        callback=_be_quiet,
        is_eager=True,  # known before --install-completion would print
        help="Print errors and warnings only, and JSON if asked for.",
    ),
]


@app.callback()
def _options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            "--install-completion",
            metavar="[SHELL]",
            callback=_install_completion,
            autocompletion=shells,
            help=f"Complete by Tab from now on: {', '.join(SHELLS[:-1])}; default: this shell.",
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            metavar="[SHELL]",
            callback=_show_completion,
            is_eager=True,
            autocompletion=shells,
            help="Print what completes, to look at or to install by hand.",
        ),
    ] = None,
) -> None:
    """Fit the recipe of a closed model merge, block by block."""
    State.command = ctx.invoked_subcommand
    State.debug = debug
    State.quiet = quiet
    State.json = False
    State.told_missing.clear()
