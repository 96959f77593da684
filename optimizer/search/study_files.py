"""What blockfit writes into the folder of a study, and that nothing of it leads anywhere else."""

import os
from pathlib import Path

from optimizer.checkpoints import STATISTICS
from optimizer.errors import InputError, StudyError
from optimizer.files import refuse_links, study_folder_of
from optimizer.search.storage import DATABASE, StorageAddress

__all__ = ["check_storage_files", "check_study_folder"]

# Replaced as a whole: names, or patterns of them.
_REPLACED = ("best.yaml", "best.simple.yaml", "candidate-*.yaml", "trials.csv", "report.html", STATISTICS)
_SET_ASIDE = "study.old*"
_PLOTS = "plots"
_ARTIFACTS = "artifacts"
_LOG = "fit.log"
# What SQLite keeps beside a database: what was not written yet, or is to be undone.
_BESIDE = ("-journal", "-wal", "-shm")
_SQLITE_MAGIC = bytes.fromhex("d9d505f920a163d7")


def check_study_folder(folder: Path) -> None:
    """Raise StudyError, a line for each, for names in a study's folder that would have something else written.

    Nothing that any command writes there may be a link: who gave the folder away may have made it. What is only read,
    the recipe or a checkpoint, may be.
    """
    replaced = [path for name in (*_REPLACED, _SET_ASIDE) for path in (sorted(folder.glob(name)) or [folder / name])]
    replaced += sorted((folder / _PLOTS).glob("*.png"))
    opened, folders = _storage_files(folder / DATABASE)
    try:
        refuse_links(
            folder,
            replaced=replaced,
            opened=[folder / _LOG, *opened],
            folders=[folder / _PLOTS, folder / _ARTIFACTS, *folders],
        )
    except InputError as error:
        raise StudyError(error.problems) from None


def check_storage_files(address: StorageAddress, folder: Path) -> None:
    """Raise StudyError for a file of trials that would have something else written or deleted.

    One in the `folder` of the study may be no link, nor what lies beside it; and no journal of SQLite may lead to
    another file, which opening the database would delete.
    """
    if address.path is None:
        return
    path, owner = address.path, folder
    if not path.is_relative_to(folder):
        path = Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow the links
        owner = study_folder_of(path) or path
    if owner != path:
        opened, folders = _storage_files(path)
        try:
            refuse_links(owner, opened=opened, folders=folders)
        except InputError as error:
            raise StudyError(error.problems) from None
    journal = address.path.with_name(f"{address.path.name}-journal")
    if address.kind == "sqlite" and _leads_elsewhere(journal):
        raise StudyError(
            f"{journal}: leads to another file, which opening the database would delete; blockfit leaves no such "
            "journal: delete it"
        )


def _storage_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a storage that are written into, those of its workers too, and the folders that these lie in."""
    workers = path.with_name(f"{path.name}.workers")
    beside = [path.with_name(f"{path.name}{ending}") for ending in (*_BESIDE, ".lock")]
    return [path, *beside, workers / "turn.lock", *sorted(workers.glob("*.lock"))], [workers]


def _leads_elsewhere(journal: Path) -> bool:
    """Whether a rollback journal of SQLite names a super-journal.

    SQLite writes that for transactions over several databases, of which there are none here. The name stands at the
    file's end, before its length, its checksum and the journal's magic number (https://sqlite.org/fileformat2.html).
    """
    try:
        with journal.open("rb") as file:
            file.seek(-len(_SQLITE_MAGIC), 2)
            return file.read() == _SQLITE_MAGIC
    except OSError:  # there is none, or it is shorter
        return False
