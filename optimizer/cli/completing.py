"""Tab completion: the values of options, and the files that arguments name.

The user waits for the answer, so this module imports nothing slow: words come from `choices`, blocks and mappings from
the layouts, which are read on demand. After an error the answer is empty and nothing is printed.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from optimizer.choices import (
    CeilingMetric,
    DeviceName,
    FirstMode,
    FormatName,
    MetricName,
    ShellName,
    words_of,
)
from optimizer.cli.typer_internals import CompletedWord
from optimizer.environment import folders_of_environment

if TYPE_CHECKING:
    from optimizer.families import Layout

__all__ = [
    "COMPLETION_VARIABLE",
    "SHELLS",
    "block_lists",
    "candidates",
    "ceiling_metrics",
    "checkpoints",
    "devices",
    "formats",
    "mapping_names",
    "mappings",
    "metrics",
    "modes",
    "recipes",
    "shells",
    "storages",
    "studies",
    "texts_and_checkpoints",
]

# ruff: noqa: PLC0415

# The variable that a shell sets to request completions; its value names the shell.
COMPLETION_VARIABLE = "_BLOCKFIT_COMPLETE"
SHELLS = words_of(ShellName)

_RECIPE_SUFFIXES = (".yaml", ".yml")
_TEXT_SUFFIXES = (".txt", ".md", ".mecha", ".json", ".csv", *_RECIPE_SUFFIXES)
_STORAGES = (
    "journal:",
    "journal:trials.log",
    "postgresql://",
    "postgresql://USER@HOST/DATABASE",
    "sqlite:///",
    "sqlite:///study.db",
)
_MOST_FILES = 20_000  # entries examined below the checkpoint folders
_DEEPEST = 20  # nested folders, each with a single folder inside, that one completion descends

Complete = Callable[[typer.Context, str], list[str]]


def _completes(find: Callable[[typer.Context, str], Iterable[str]]) -> Complete:
    """Return a typer callback for a function of the context and the typed word; it quotes words and hides errors."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        typed = incomplete.lstrip("'\"")
        try:
            return [CompletedWord(_quoted(word)) for word in dict.fromkeys(find(ctx, typed))]
        except Exception:  # a traceback would appear in the middle of the user's line
            return []

    complete.__doc__ = find.__doc__
    return complete


def _quoted(word: str) -> str:
    """Return `word` quoted for a shell that does not quote completions itself."""
    shell = os.environ.get(COMPLETION_VARIABLE, "")
    if shell == "complete_bash":
        line, position = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", "0"))
        open_quote = len(line) > position and line[position][:1] in ("'", '"')
        return word if open_quote else re.sub(r"([^\w@%+=:,./~-])", r"\\\1", word)
    if shell in ("complete_powershell", "complete_pwsh") and shlex.quote(word) != word:
        return "'" + word.replace("'", "''") + "'"
    return word


def _one_of(*names: str) -> Complete:
    return _completes(lambda _, typed: (name for name in names if name.startswith(typed)))


metrics = _one_of(*words_of(MetricName))
ceiling_metrics = _one_of(*words_of(CeilingMetric))
formats = _one_of(*words_of(FormatName))
devices = _one_of(*words_of(DeviceName))
modes = _one_of(*words_of(FirstMode))
shells = _one_of(*SHELLS)
storages = _one_of(*_STORAGES)


@_completes
def mappings(_: typer.Context, typed: str) -> Iterator[str]:
    """Yield the mappings of all layouts."""
    yield from (name for name in mapping_names() if name.startswith(typed))


def mapping_names() -> tuple[str, ...]:
    """Return the mappings of all layouts, each once."""
    return tuple(dict.fromkeys(name for layout in _layouts() for name in layout.mappings))


@_completes
def layouts(_: typer.Context, typed: str) -> Iterator[str]:
    """Yield the names of all layouts."""
    yield from (layout.name for layout in _layouts() if layout.name.startswith(typed))


@_completes
def block_lists(_: typer.Context, typed: str) -> Iterator[str]:
    """Yield block lists, OUT03-OUT11,M00 for example, with the last part completed."""
    *before, last = typed.split(",")
    start = "".join(f"{part}," for part in before)
    first, dash, end = last.upper().partition("-")
    for layout in _layouts():
        blocks = layout.blocks
        if dash and first in blocks:
            later = blocks[blocks.index(first) + 1 :]
            yield from (f"{start}{first}-{block}" for block in later if block.startswith(end))
            continue
        names = (*(() if before else ("all", *layout.groups)), *blocks)
        listed = {part.upper() for part in before}
        yield from (start + name for name in names if name.upper().startswith(first) and name.upper() not in listed)


def _layouts() -> "Iterator[Layout]":
    from optimizer.families import layout_names, load_layout

    return map(load_layout, layout_names())


@_completes
def studies(_: typer.Context, typed: str) -> Iterator[str]:
    """Return folders with study.yaml, and YAML files."""
    return _files(typed, _is_recipe, _is_study)


@_completes
def recipes(_: typer.Context, typed: str) -> Iterator[str]:
    """Return YAML files."""
    return _files(typed, _is_recipe)


@_completes
def checkpoints(ctx: typer.Context, typed: str) -> Iterator[str]:
    """Yield checkpoints in the current folder, then names of those in the folders of --models and BLOCKFIT_MODELS."""
    yield from _files(typed, _is_checkpoint)
    yield from _names_in_folders(ctx, typed)


@_completes
def candidates(ctx: typer.Context, typed: str) -> Iterator[str]:
    """Yield recipes and checkpoints."""
    yield from _files(typed, lambda name: _is_recipe(name) or _is_checkpoint(name))
    yield from _names_in_folders(ctx, typed)


@_completes
def texts_and_checkpoints(ctx: typer.Context, typed: str) -> Iterator[str]:
    """Yield texts and checkpoints."""
    yield from _files(typed, lambda name: name.lower().endswith(_TEXT_SUFFIXES) or _is_checkpoint(name))
    yield from _names_in_folders(ctx, typed)


def _files(
    typed: str, accepts: Callable[[str], bool], is_hit: Callable[[Path], bool] = lambda folder: False
) -> Iterator[str]:
    """Yield the paths that start with `typed`: files with accepted names, folders that are hits, folders to descend.

    If a folder is the only choice, yield its contents instead: the shell would otherwise treat it as the complete word.

    Yields:
        Paths as the user types them; a folder to descend ends with "/".
    """
    for _ in range(_DEEPEST):
        found = list(_entries(typed, accepts, is_hit))
        if len(found) != 1 or not found[0].endswith("/"):
            break
        typed = found[0]
    yield from found


def _entries(typed: str, accepts: Callable[[str], bool], is_hit: Callable[[Path], bool]) -> Iterator[str]:
    """Yield the matching entries of a single folder."""
    cut = max(typed.rfind(sign) for sign in ("/", os.sep)) + 1
    head, tail = typed[:cut], typed[cut:]
    # `typed` is cut after a slash, since "D:" alone would mean the drive's current folder.
    folder = Path(head or ".").expanduser()
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = entry.name
        if not os.path.normcase(name).startswith(os.path.normcase(tail)) or name.startswith(".") > tail.startswith("."):
            continue
        if entry.is_dir():
            hit = is_hit(entry)
            if hit:
                yield head + name
            # A study's folder contains results; descending it is useful only if it contains other studies.
            if not hit or any(is_hit(inner) for inner in entry.iterdir() if inner.is_dir()):
                yield head + name + "/"
        elif accepts(name):
            yield head + name


def _names_in_folders(ctx: typer.Context, typed: str) -> Iterator[str]:
    """Yield a name for each checkpoint in the folders: its stem if that is unique, else its path below the folder."""
    given = [Path(folder) for folder in ctx.params.get("models") or ()]
    found: list[tuple[Path, Path]] = []
    left = _MOST_FILES
    for folder in (*given, *folders_of_environment()):
        for place, inner, names in os.walk(folder, followlinks=True):
            inner.sort()
            left -= len(names) + len(inner)
            if left < 0:
                break
            found += [(folder, Path(place, name)) for name in sorted(names) if _is_checkpoint(name)]
    stems = Counter(os.path.normcase(path.stem) for _, path in found)
    for folder, path in found:
        alone = stems[os.path.normcase(path.stem)] == 1
        name = path.stem if alone else path.relative_to(folder).as_posix()
        if name.casefold().startswith(typed.casefold()):
            yield name


def _is_checkpoint(name: str) -> bool:
    from optimizer.files import CHECKPOINT_SUFFIXES

    return name.lower().endswith(CHECKPOINT_SUFFIXES)


def _is_recipe(name: str) -> bool:
    return name.lower().endswith(_RECIPE_SUFFIXES)


def _is_study(folder: Path) -> bool:
    return (folder / "study.yaml").is_file()
