"""Options and arguments that several commands share, and the values that they stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.choices import DeviceName, MetricName, listed
from optimizer.cli import completing
from optimizer.cli.application import MAPPINGS, Quiet, State
from optimizer.cli.printing import say_warning
from optimizer.environment import folders_of_environment
from optimizer.errors import InputError, attempt
from optimizer.events import Progress
from optimizer.extras import require

if TYPE_CHECKING:
    import torch

    from optimizer.library import HashCache, Library

__all__ = [
    "BaseName",
    "Device",
    "FinishedRecipePath",
    "Json",
    "Mapping",
    "Models",
    "NoVerify",
    "Prompts",
    "Quiet",
    "RecipePath",
    "Storage",
    "StudyPath",
    "Target",
    "checkpoint_argument",
    "checkpoint_finder",
    "checkpoint_library",
    "checkpoint_option",
    "chosen_device",
    "hash_cache",
    "metric_option",
    "model_folders",
    "output_option",
    "seed_option",
]

# ruff: noqa: PLC0415

_LARGEST_SEED = 2**63 - 1


def checkpoint_argument(metavar: str, help_text: str = "Checkpoints: files, or names in --models.") -> Any:
    """Return the argument for one or several checkpoints."""
    return typer.Argument(metavar=metavar, help=help_text, autocompletion=completing.checkpoints)


def checkpoint_option(name: str, help_text: str, *, metavar: str | None = None) -> Any:
    """Return an option for a checkpoint: a file, or a name in --models."""
    return typer.Option(name, metavar=metavar, help=help_text, autocompletion=completing.checkpoints)


def output_option(help_text: str, *, metavar: str | None = None) -> Any:
    """Return the option for the file or folder to write."""
    return typer.Option("-o", "--output", metavar=metavar, help=help_text)


def metric_option(default: str = "") -> Any:
    """Return the option for a metric; `default` describes a default that depends on other input."""
    text = f"Metric: {listed(MetricName)}" + (f"; default: {default}" if default else "")
    return typer.Option("--metric", help=f"{text}.", autocompletion=completing.metrics)


def seed_option(help_text: str) -> Any:
    """Return the option for a seed from 0 to 2**63 - 1."""
    return typer.Option("--seed", min=0, max=_LARGEST_SEED, help=help_text)


Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--models",
        metavar="DIR",
        help="Folder to search for checkpoints by name or hash, including sub-folders; may be repeated. "
        "BLOCKFIT_MODELS adds folders.",
    ),
]


def _keep_stdout_for_json(value: bool) -> bool:
    State.json |= value
    return value


Json = Annotated[
    bool,
    typer.Option("--json", callback=_keep_stdout_for_json, help="Print one JSON value on stdout and nothing else."),
]

Device = Annotated[
    str,
    typer.Option("--device", help=f"Device to compute on: {listed(DeviceName)}.", autocompletion=completing.devices),
]


def _require_driver(storage: str | None) -> str | None:
    """Check before the study is read, since its files may be large, that the storage's packages are installed."""
    if storage is not None and storage.startswith("postgres"):
        require("postgresql", "a PostgreSQL database", field="storage")
    return storage


Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        callback=_require_driver,
        help="Storage of the trials: postgresql://USER@HOST/DATABASE, journal:FILE or sqlite:///FILE (a URL: write %20 "
        "for a space, %3F for ?); default: study.db in the study's folder.",
        autocompletion=completing.storages,
    ),
]

StudyPath = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="The study's YAML file, or the folder that contains study.yaml.",
        autocompletion=completing.studies,
    ),
]

Target = Annotated[Path, checkpoint_option("--target", "The checkpoint to compare with.")]

NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Accept files whose hashes differ from those noted in the recipe.")
]

BaseName = Annotated[
    str | None, typer.Option("--base", help="The recipe's model that differences are taken from, for delta.")
]

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.", autocompletion=completing.recipes)
]

FinishedRecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="The recipe's YAML file, with a number for every alpha, as in best.yaml.",
        autocompletion=completing.recipes,
    ),
]

Mapping = Annotated[
    str | None,
    typer.Option(
        "--mapping",
        help=f"Assign time_embed and the VAE to blocks as this tool does: {MAPPINGS}; default: the layout's first.",
        autocompletion=completing.mappings,
    ),
]

Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Text file with one prompt per line, for the metric encoder.")
]


def model_folders(models: list[Path] | None) -> list[Path]:
    """Return the checkpoint folders of --models, then those of BLOCKFIT_MODELS.

    Raises InputError if a folder of --models is missing. A missing folder of BLOCKFIT_MODELS is skipped with a warning,
    since the command may not need it.

    Args:
        models: The folders of --models.

    Returns:
        The folders, in the order of search.
    """
    from optimizer.library import check_folders

    found = list(models or [])
    check_folders(found)
    for folder in folders_of_environment():
        try:
            check_folders([folder])
        except InputError as error:
            if folder not in State.warned_missing:
                State.warned_missing.add(folder)
                say_warning(f"BLOCKFIT_MODELS: {error.problems[0]}")
            continue
        found.append(folder)
    return found


def checkpoint_library(models: list[Path] | None, progress: Progress | None = None) -> "Library":
    """Return the library of the folders of --models and BLOCKFIT_MODELS, with the user's cache of hashes."""
    from optimizer.library import Library

    return Library.of(model_folders(models), hash_cache(), progress)


def checkpoint_finder(models: list[Path] | None, progress: Progress | None = None) -> Callable[..., Path]:
    """Return a function that finds a checkpoint by its path, or by its name or hash in the folders.

    Args:
        models: The folders of --models; those of BLOCKFIT_MODELS are added.
        progress: Callback for the progress of hashing: (task, bytes done, bytes in total).

    Returns:
        A function of the text on the command line and, for messages, the Python name of the option it was given to.
    """
    library = checkpoint_library(models, progress)

    def find(name: Path, field: str | None = None) -> Path:
        return attempt(lambda: library.find_given(name), field=field)

    return find


def hash_cache() -> "HashCache":
    """Return the cache of checkpoint hashes in the user's cache folder."""
    from optimizer.library import HashCache

    return HashCache.of_user()


def chosen_device(name: str) -> "torch.device":
    """Return the device for --device; for auto, warn about a GPU that cannot be used."""
    from optimizer.similarity import select_device, unused_gpu

    device = select_device(name)
    if name == "auto" and (advice := unused_gpu()):
        say_warning(advice)
    return device
