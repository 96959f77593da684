"""Options that several commands have, and what their values stand for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli.printing import say_problem
from optimizer.errors import InputError

if TYPE_CHECKING:
    import torch

    from optimizer.checkpoints import HashCache

__all__ = [
    "LARGEST_SEED",
    "Device",
    "Json",
    "Models",
    "Storage",
    "StudyPath",
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
        help="Folder with checkpoints, sub-folders too; may be repeated. Also BLOCKFIT_MODELS.",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, nothing else.")]

Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]

Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Where the trials are: postgresql://USER@HOST/DATABASE, journal:FILE or sqlite:///FILE; "
        "default: study.db in the study's folder.",
    ),
]

StudyPath = Annotated[
    Path, typer.Argument(metavar="STUDY", help="The study's YAML file, or the folder with study.yaml.")
]


def model_folders(models: list[Path] | None) -> list[Path]:
    """The checkpoint folders of --models, then of BLOCKFIT_MODELS, which may list several."""
    found = list(models or [])
    if missing := [folder for folder in found if not folder.is_dir()]:
        raise InputError(f"--models: {folder} is not a folder" for folder in missing)
    return found + [Path(part) for part in os.environ.get("BLOCKFIT_MODELS", "").split(os.pathsep) if part]


def hash_cache() -> "HashCache":
    """The hashes of checkpoints that are known, in the user's cache folder."""
    from optimizer.checkpoints import HashCache, default_cache_folder

    return HashCache(default_cache_folder() / "hashes.json")


def chosen_device(name: str) -> "torch.device":
    """The device for --device; for auto with a warning about a card that cannot be used."""
    from optimizer.similarity import select_device, unused_card

    device = select_device(name)
    if name == "auto" and (advice := unused_card()):
        say_problem(f"warning: {advice}")
    return device
