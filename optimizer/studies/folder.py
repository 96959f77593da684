"""The folder of a study: the names of what blockfit writes into it, and the check that none leads elsewhere."""

import re
from dataclasses import dataclass
from pathlib import Path

from optimizer.checkpoints import STATISTICS
from optimizer.errors import InputError, StudyError
from optimizer.files import DATABASE, refuse_links

__all__ = ["DATABASE", "StudyFolder", "check_study_folder", "storage_files"]

# What SQLite keeps beside a database: what was not written yet, or is to be undone.
_BESIDE = ("-journal", "-wal", "-shm")
_CANDIDATE = re.compile(r"candidate-(\d+)\.yaml")


@dataclass(frozen=True)
class StudyFolder:
    """The paths of what blockfit writes into the folder `path` of a study; none of them need exist."""

    path: Path

    @property
    def best(self) -> Path:
        """The best recipe found."""
        return self.path / "best.yaml"

    @property
    def simple(self) -> Path:
        """The best recipe with numbers as people choose them."""
        return self.path / "best.simple.yaml"

    @property
    def database(self) -> Path:
        """The SQLite database of the trials, unless a study has its trials elsewhere."""
        return self.path / DATABASE

    @property
    def statistics(self) -> Path:
        """What was measured of the checkpoints, so that a later run need not read them."""
        return self.path / STATISTICS

    @property
    def report(self) -> Path:
        """The page that `blockfit report` writes."""
        return self.path / "report.html"

    @property
    def trials_table(self) -> Path:
        """Every trial, as a table."""
        return self.path / "trials.csv"

    @property
    def log(self) -> Path:
        """The log of the fits."""
        return self.path / "fit.log"

    @property
    def plots(self) -> Path:
        """The folder of the plots."""
        return self.path / "plots"

    @property
    def artifacts(self) -> Path:
        """The folder of what Optuna's dashboard keeps."""
        return self.path / "artifacts"

    def candidate(self, number: int) -> Path:
        """Return the recipe that is the `number`-th best, from 2 up."""
        return self.path / f"candidate-{number}.yaml"

    def candidates(self) -> dict[int, Path]:
        """Return the candidates that are there, {number: path}, in order."""
        found = {int(match[1]): path for path in self.path.glob("candidate-*.yaml")
                 if (match := _CANDIDATE.fullmatch(path.name))}  # fmt: skip
        return dict(sorted(found.items()))

    def check(self) -> None:
        """Raise StudyError, a line for each, for names in the folder that would have something else written.

        Nothing that any command writes there may be a link: who gave the folder away may have made it. What is only
        read, the recipe or a checkpoint, may be.
        """
        files = (self.best, self.simple, self.trials_table, self.report, self.statistics)
        patterns = ("candidate-*.yaml", "study.old*")
        replaced = [*files, *(path for pattern in patterns for path in sorted(self.path.glob(pattern)))]
        replaced += sorted(self.plots.glob("*.png"))
        opened, folders = storage_files(self.database)
        try:
            refuse_links(
                self.path,
                replaced=replaced,
                opened=[self.log, *opened],
                folders=[self.plots, self.artifacts, *folders],
            )
        except InputError as error:
            raise StudyError(error.problems) from None


def check_study_folder(folder: Path) -> None:
    """Raise StudyError for links in a study's folder, as `StudyFolder.check` does."""
    StudyFolder(folder).check()


def storage_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a storage that are written into, those of its workers too, and the folders that these lie in."""
    workers = path.with_name(f"{path.name}.workers")
    beside = [path.with_name(f"{path.name}{ending}") for ending in (*_BESIDE, ".lock")]
    return [path, *beside, workers / "turn.lock", *sorted(workers.glob("*.lock"))], [workers]
