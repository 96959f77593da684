"""Options that several commands have, and what their values stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.choices import DeviceName, listed
from optimizer.cli import completing
from optimizer.cli.application import Quiet, State
from optimizer.cli.environment import folders_of_environment
from optimizer.cli.printing import say_warning
from optimizer.errors import InputError, attempt
from optimizer.extras import require

if TYPE_CHECKING:
    import torch

    from optimizer.library import HashCache

__all__ = [
    "LARGEST_SEED",
    "BaseName",
    "Device",
    "Json",
    "Models",
    "NoVerify",
    "Quiet",
    "RecipePath",
    "Storage",
    "StudyPath",
    "Target",
    "checkpoint_finder",
    "chosen_device",
    "hash_cache",
    "model_folders",
]

# ruff: noqa: PLC0415


LARGEST_SEED = 2**63 - 1

Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--models",
        metavar="DIR",
        help="Folder to find checkpoints in by name or hash, sub-folders too; may be repeated. Also BLOCKFIT_MODELS.",
    ),
]


def _keep_stdout_for_json(value: bool) -> bool:
    State.json |= value
    return value


Json = Annotated[
    bool,
    typer.Option("--json", callback=_keep_stdout_for_json, help="Print one JSON value on stdout, nothing else."),
]

Device = Annotated[str, typer.Option("--device", help=f"{listed(DeviceName)}.", autocompletion=completing.devices)]


def _reachable(storage: str | None) -> str | None:
    # Before a study is read: its files may be large.
    if storage is not None and storage.startswith("postgres"):
        require("postgresql", "a PostgreSQL database", field="storage")
    return storage


Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        callback=_reachable,
        help="Where the trials are: postgresql://USER@HOST/DATABASE, journal:FILE or sqlite:///FILE (a URL: %20 is a "
        "space, %3F a ?); default: study.db in the study's folder.",
        autocompletion=completing.storages,
    ),
]

StudyPath = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="The study's YAML file, or the folder with study.yaml.",
        autocompletion=completing.studies,
    ),
]

Target = Annotated[
    Path, typer.Option("--target", help="The checkpoint to come close to.", autocompletion=completing.checkpoints)
]

NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Take files that have other hashes than the recipe notes of them.")
]

BaseName = Annotated[str | None, typer.Option("--base", help="The model that delta takes differences from.")]

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.", autocompletion=completing.recipes)
]


def model_folders(models: list[Path] | None) -> list[Path]:
    """The checkpoint folders of --models, then of BLOCKFIT_MODELS, which may list several.

    Raises InputError for a folder of --models that is missing. One of BLOCKFIT_MODELS, which commands are given whether
    they need it or not, is left out with a warning.
    """
    from optimizer.library import check_folders

    found = list(models or [])
    check_folders(found)
    for folder in folders_of_environment():
        try:
            check_folders([folder])
        except InputError as error:
            if folder not in State.told_missing:
                State.told_missing.add(folder)
                say_warning(f"BLOCKFIT_MODELS: {error.problems[0]}")
            continue
        found.append(folder)
    return found


def checkpoint_finder(
    models: list[Path] | None, progress: Callable[[str, int, int], None] | None = None
) -> Callable[..., Path]:
    """A function that finds a checkpoint which the command line names: a path, or a name or hash in the folders.

    Its second argument names the option that the name was given to, as Python spells it.
    """
    from optimizer.library import locate_given

    folders, hashes = model_folders(models), hash_cache()

    def find(given: Path, field: str | None = None) -> Path:
        return attempt(lambda: locate_given(given, folders, hashes=hashes, progress=progress), field=field)

    return find


def hash_cache() -> "HashCache":
    """The hashes of checkpoints that are known, in the user's cache folder."""
    from optimizer.library import HashCache, default_cache_folder

    return HashCache(default_cache_folder() / "hashes.json")


def chosen_device(name: str) -> "torch.device":
    """The device for --device; for auto with a warning about a card that cannot be used."""
    from optimizer.similarity import select_device, unused_gpu

    device = select_device(name)
    if name == "auto" and (advice := unused_gpu()):
        say_warning(advice)
    return device
