"""The files of a storage of trials: nothing is written or deleted through them elsewhere."""

import os
from pathlib import Path

from optimizer.errors import InputError, StudyError
from optimizer.files import refuse_links, study_folder_of
from optimizer.search.trials.storage import StorageAddress
from optimizer.studies import storage_files

__all__ = ["check_storage_files"]

_SQLITE_MAGIC = bytes.fromhex("d9d505f920a163d7")


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
        opened, folders = storage_files(path)
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
