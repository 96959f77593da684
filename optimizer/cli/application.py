"""The application that the commands register with, and the options and state that all commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from optimizer.cli.completing import COMPLETION_VARIABLE, SHELLS, mapping_names, shells
from optimizer.cli.typer_internals import (
    TyperGroup,
    completion_init,
    extend_help,
    get_completion_script,
    hide_type,
    install,
)
from optimizer.errors import InputError
from optimizer.version import __version__

__all__ = ["MAPPINGS", "Quiet", "State", "app", "examples"]

# Placeholder for a shell that the user did not name.
_DETECTED = "detected"
# Placeholder in help texts for the mappings of the layouts: reading the layouts is too slow for every start.
MAPPINGS = "{mappings}"


class State:
    """The options of the running command that affect everything it prints.

    `command` is the command's name. With `quiet` only errors, warnings and JSON are printed; `json` reserves stdout for
    one JSON value. `warned_missing` are the folders of BLOCKFIT_MODELS whose absence was reported already.
    """

    command: str | None = None

    debug = False
    quiet = False
    json = False
    warned_missing: ClassVar[set[Path]] = set()


class _Group(TyperGroup):
    """The command group: shows its help without arguments; the completion options' value is optional."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the command's name."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(2)
        first, *others = args or [""]
        alone = not others or others[0].startswith("-")
        if first in ("--install-completion", "--show-completion") and alone and not ctx.resilient_parsing:
            args = [first, _DETECTED, *others]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, with its help page prepared, or None."""
        command = super().get_command(ctx, cmd_name)
        for parameter in command.params if command is not None else ():
            if parameter.param_type_name == "argument":
                hide_type(parameter)
            if MAPPINGS in (getattr(parameter, "help", None) or ""):
                extend_help(parameter, MAPPINGS, lambda: _either(mapping_names()))
        return command


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def examples(*lines: str) -> str:
    """Return the examples of a help page: one line per example, `blockfit` followed by its arguments."""
    return "\n".join(("\b", "Examples:", *(f"  blockfit {line}" for line in lines)))


_EXIT_CODES = """\b
Exit codes:
  0    success
  1    failed, although the input was valid
  2    bad input: one line per problem on stderr, nothing is written
  130  interrupted (Ctrl-C); a fit has written its best recipe so far"""

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
    """Return the shell that the user named, or None for the current one; raise InputError if it is not supported."""
    if value != _DETECTED and value not in SHELLS:
        raise InputError(f"{option}: received {value!r}; must be one of {', '.join(SHELLS)}")
    return None if value == _DETECTED else value


def _detected_shell(option: str) -> str:
    """Return the shell that blockfit runs in; raise InputError if it is unknown or not supported."""
    from shellingham import ShellDetectionFailure, detect_shell  # noqa: PLC0415

    try:
        name = str(detect_shell()[0])
    except ShellDetectionFailure:
        name = ""
    if name not in SHELLS:
        raise InputError(
            f"{option}: the shell was not recognised ({name or 'none found'}); name it: {', '.join(SHELLS)}"
        )
    return name


# Resilient parsing means that a shell completes the line: the callbacks do nothing then.
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
        is_eager=True,  # must be set before --install-completion prints
        help="Print errors, warnings and requested JSON only.",
    ),
]


@app.callback()
def _options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            "--install-completion",
            metavar="[SHELL]",
            callback=_install_completion,
            autocompletion=shells,
            help=f"Install Tab completion for {_either(SHELLS[:-1])}; default: this shell.",
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
            help="Print the completion script, to read it or to install it by hand.",
        ),
    ] = None,
) -> None:
    """Fit the recipe of a closed model merge, block by block."""
    State.command = ctx.invoked_subcommand
    State.debug = debug
    State.quiet = quiet
    State.json = False
    State.warned_missing.clear()
