"""The logs of a fit: lines of text for people and lines of JSON for programs."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.errors import BlockfitWarning, InputError, attempt
from optimizer.files import check_output, open_in_place, study_folder_of
from optimizer.printable import printable
from optimizer.search import FitResult, SearchProgress, Trial

__all__ = ["FitLog", "LogFile", "open_fit_log"]

_FIELDS = "fields"


class FitLog:
    """A log that writes one record per event of a fit to each of its files."""

    def __init__(self, files: Sequence[logging.Handler]) -> None:
        self._files = tuple(files)

    def opened(self, progress: SearchProgress) -> None:
        """Write that a search starts or resumes; fields: `search`, `done`, `budget`, `best`."""
        fields = {"search": progress.search, "done": progress.done, "budget": progress.budget, "best": progress.best}
        self._write("opened", f"{progress.search}: {progress.done} of {progress.budget} trials done", fields)

    def finished(self, progress: SearchProgress, trial: Trial) -> None:
        """Write a finished trial, and the state of its search.

        The trial's fields are `search`, `trial` (its number), `state`, `origin`, `similarity` in [-1, 1] or `error`,
        `seconds`, `params` (alphas by name) and `block_scores`. The search's are `best`, `done`, `budget`,
        `seconds_left` and `workers`.

        Args:
            progress: The state of the search after the trial.
            trial: The trial.
        """
        failed = trial.similarity is None
        value = trial.error or "failed" if failed else f"{trial.similarity:.8f}"
        best = "-" if progress.best is None else f"{progress.best:.8f}"
        fields = {
            "search": progress.search,
            "trial": trial.number,
            "state": str(trial.state),
            "origin": trial.origin,
            **({"error": trial.error} if failed else {"similarity": trial.similarity}),
            "seconds": trial.seconds,
            "params": dict(trial.alphas),
            "block_scores": None if failed else dict(trial.block_scores),
            "best": progress.best,
            "done": progress.done,
            "budget": progress.budget,
            "seconds_left": progress.seconds_left,
            "workers": progress.workers,
        }
        text = f"{progress.search}: trial {trial.number} ({trial.origin}) {trial.state} {value}, best {best}"
        self._write("trial", text, fields)

    def warn(self, text: str) -> None:
        """Write a warning; field: `text`."""
        self._write("warning", text, {"text": text}, logging.WARNING)

    def ended(self, result: FitResult) -> None:
        """Write the end of the fit; fields: `interrupted`, and the `best` and completed `trials` of every search."""
        searches = {
            search.name: {
                "best": None if search.best is None else search.best.similarity,
                "trials": len(search.completed),
            }
            for search in result.searches
        }
        text = "interrupted" if result.interrupted else "done"
        self._write("end", text, {"interrupted": result.interrupted, "searches": searches})

    def _write(self, event: str, text: str, fields: Mapping[str, Any], level: int = logging.INFO) -> None:
        record = logging.makeLogRecord(
            {"name": "blockfit.fit", "msg": text, "levelno": level, _FIELDS: {"event": event, **fields}}
        )
        for file in self._files:
            file.handle(record)


@contextmanager
def open_fit_log(plain: Path, log_file: Path | None = None) -> Iterator[FitLog]:
    """Open a log that appends lines of text to one file and lines of JSON to another.

    A JSON object has "time" (ISO 8601, UTC), "event" (opened, trial, warning, end) and the fields listed at the methods
    of `FitLog`.

    Args:
        plain: File for the lines of text, in the study's folder.
        log_file: File for the lines of JSON, named by the user; None for none.

    Yields:
        The log. Its files are closed after the with block.

    Raises:
        InputError: If `log_file` cannot be opened, or is a link in a study's folder.
    """
    files = [LogFile(plain, _OneLine("%(asctime)s %(message)s"), in_study=True)]
    if log_file is not None:
        attempt(lambda: check_output(log_file, opened=True), field="log_file")
        try:
            log_file.open("a", encoding="utf-8").close()
        except OSError as error:
            raise InputError(f"{log_file}: cannot be written ({error.strerror})", field="log_file") from error
        files.append(LogFile(log_file, _JsonLines(), in_study=study_folder_of(log_file) is not None))
    try:
        yield FitLog(files)
    finally:
        for file in files:
            file.close()


class LogFile(logging.Handler):
    """A logging handler that appends to a UTF-8 file; if that fails, it issues one BlockfitWarning and continues.

    Python's own handlers raise an error if a file cannot be opened and print tracebacks if the disk is full. A log must
    not stop a fit. With `in_study`, the file is in a study's folder and links are not followed.
    """

    def __init__(self, path: Path, formatter: logging.Formatter, *, in_study: bool = False) -> None:
        super().__init__()
        self._opener = open_in_place if in_study else None
        self.setFormatter(formatter)
        self._path = path
        self._warned = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record as a line."""
        line = self.format(record)
        try:
            # Opened for each line: a buffered file would fail only when the program ends.
            with open(self._path, "a", encoding="utf-8", opener=self._opener) as file:
                file.write(line + "\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                text = f"{self._path}: cannot be written ({error.strerror}); the fit continues without it"
                warnings.warn(text, BlockfitWarning, stacklevel=2)


class _OneLine(logging.Formatter):
    """A formatter that escapes line ends and control characters, since names in the text come from others' files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _JsonLines(logging.Formatter):
    """A formatter for lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, _FIELDS)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, **fields}, ensure_ascii=False)
