"""The folder of a study: the paths that blockfit writes, and the check that none of them is a link."""

import re
from dataclasses import dataclass
from pathlib import Path

from optimizer.checkpoints import STATISTICS
from optimizer.errors import InputError, StudyError
from optimizer.files import DATABASE, refuse_links

__all__ = ["DATABASE", "StudyFolder", "check_study_folder", "storage_files"]

# Endings of the files that SQLite keeps beside a database while it writes.
_BESIDE = ("-journal", "-wal", "-shm")
_CANDIDATE = re.compile(r"candidate-(\d+)\.yaml")


@dataclass(frozen=True)
class StudyFolder:
    """The paths of the files that blockfit writes into the folder `path` of a study, whether they exist or not."""

    path: Path

    @property
    def best(self) -> Path:
        """The best recipe."""
        return self.path / "best.yaml"

    @property
    def simple(self) -> Path:
        """The best recipe with simplified numbers."""
        return self.path / "best.simple.yaml"

    @property
    def database(self) -> Path:
        """The SQLite database of the trials, the default storage of a study."""
        return self.path / DATABASE

    @property
    def statistics(self) -> Path:
        """The statistics of the checkpoints, which spare a later run from reading them."""
        return self.path / STATISTICS

    @property
    def report(self) -> Path:
        """The page that `blockfit report` writes."""
        return self.path / "report.html"

    @property
    def pictures(self) -> Path:
        """The pictures of target and clone that the last preview left for the report."""
        return self.path / "pictures.json"

    @property
    def trials_table(self) -> Path:
        """The table of all trials."""
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
        """The folder of the artifacts of Optuna's dashboard."""
        return self.path / "artifacts"

    def candidate(self, number: int) -> Path:
        """Return the path of the `number`-th best recipe, from 2 up."""
        return self.path / f"candidate-{number}.yaml"

    def candidates(self) -> dict[int, Path]:
        """Return the candidates in the folder, {number: path}, in ascending order."""
        found = {int(match[1]): path for path in self.path.glob("candidate-*.yaml")
                 if (match := _CANDIDATE.fullmatch(path.name))}  # fmt: skip
        return dict(sorted(found.items()))

    def check(self) -> None:
        """Raise StudyError if a file that blockfit writes into the folder is a link.

        A stranger who passes the folder on may have made such a link to have another file overwritten. Files that are
        only read, the recipe and the checkpoints, may be links.

        Raises:
            StudyError: One line for each link.
        """
        files = (self.best, self.simple, self.trials_table, self.report, self.statistics, self.pictures)
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
    """Raise StudyError if a file that blockfit writes into a study's folder is a link."""
    StudyFolder(folder).check()


def storage_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that a storage and its workers write, and the folders of these files."""
    workers = path.with_name(f"{path.name}.workers")
    beside = [path.with_name(f"{path.name}{ending}") for ending in (*_BESIDE, ".lock")]
    return [path, *beside, workers / "turn.lock", *sorted(workers.glob("*.lock"))], [workers]
