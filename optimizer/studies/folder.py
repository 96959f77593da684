"""What blockfit writes into the folder of a study, and that nothing of it leads anywhere else."""

from pathlib import Path

from optimizer.checkpoints import STATISTICS
from optimizer.errors import InputError, StudyError
from optimizer.files import refuse_links

__all__ = ["DATABASE", "check_study_folder", "storage_files"]

DATABASE = "study.db"

# Replaced as a whole: names, or patterns of them.
_REPLACED = ("best.yaml", "best.simple.yaml", "candidate-*.yaml", "trials.csv", "report.html", STATISTICS)
_SET_ASIDE = "study.old*"
_PLOTS = "plots"
_ARTIFACTS = "artifacts"
_LOG = "fit.log"
# What SQLite keeps beside a database: what was not written yet, or is to be undone.
_BESIDE = ("-journal", "-wal", "-shm")


def check_study_folder(folder: Path) -> None:
    """Raise StudyError, a line for each, for names in a study's folder that would have something else written.

    Nothing that any command writes there may be a link: who gave the folder away may have made it. What is only read,
    the recipe or a checkpoint, may be.
    """
    replaced = [path for name in (*_REPLACED, _SET_ASIDE) for path in (sorted(folder.glob(name)) or [folder / name])]
    replaced += sorted((folder / _PLOTS).glob("*.png"))
    opened, folders = storage_files(folder / DATABASE)
    try:
        refuse_links(
            folder,
            replaced=replaced,
            opened=[folder / _LOG, *opened],
            folders=[folder / _PLOTS, folder / _ARTIFACTS, *folders],
        )
    except InputError as error:
        raise StudyError(error.problems) from None


def storage_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a storage that are written into, those of its workers too, and the folders that these lie in."""
    workers = path.with_name(f"{path.name}.workers")
    beside = [path.with_name(f"{path.name}{ending}") for ending in (*_BESIDE, ".lock")]
    return [path, *beside, workers / "turn.lock", *sorted(workers.glob("*.lock"))], [workers]
