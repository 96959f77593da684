"""The files of a storage of trials: no write or deletion through them may reach another file."""

import os
from pathlib import Path

from optimizer.errors import InputError, StudyError
from optimizer.files import refuse_links, study_folder_of
from optimizer.search.trials.storage import StorageAddress
from optimizer.studies import storage_files

__all__ = ["check_storage_files"]

_SQLITE_MAGIC = bytes.fromhex("d9d505f920a163d7")


def check_storage_files(address: StorageAddress, folder: Path) -> None:
    """Refuse a file of trials through which another file would be written or deleted.

    In a study's folder neither the file nor its companions may be links. SQLite's rollback journal must not name
    another file, because opening the database would delete that file.

    Args:
        address: The address of the storage.
        folder: The study's folder.

    Raises:
        StudyError: The file, or a companion, is a link or names another file.

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
    if address.kind == "sqlite" and _names_another_file(journal):
        raise StudyError(
            f"{journal}: names another file, which opening the database would delete; blockfit writes no such "
            "journal: delete it"
        )


def _names_another_file(journal: Path) -> bool:
    """Return whether a rollback journal of SQLite names a super-journal.

    SQLite writes the name for transactions over several databases, which blockfit does not use. It is at the end of the
    file, before its length, its checksum and the journal's magic number (https://sqlite.org/fileformat2.html).

    Args:
        journal: The path of the journal; it may be missing.

    Returns:
        Whether the file ends with the magic number.

    """
    try:
        with journal.open("rb") as file:
            file.seek(-len(_SQLITE_MAGIC), 2)
            return file.read() == _SQLITE_MAGIC
    except OSError:  # missing, or shorter than the magic number
        return False
