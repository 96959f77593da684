"""The log of a fit: lines for people, and lines of JSON for programs."""

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
    """Writes what a fit reports to log files, a record each; `opened`, `finished` and `warn` are events of a fit."""

    def __init__(self, files: Sequence[logging.Handler]) -> None:
        self._files = tuple(files)

    def opened(self, progress: SearchProgress) -> None:
        """Note that a search begins or goes on: `search`, `done`, `budget`, `best`."""
        fields = {"search": progress.search, "done": progress.done, "budget": progress.budget, "best": progress.best}
        self._write("opened", f"{progress.search}: {progress.done} of {progress.budget} trials done", fields)

    def finished(self, progress: SearchProgress, trial: Trial) -> None:
        """Note a trial: `search`, `trial`, `state`, `origin`, `similarity` or `error`, `seconds`, `params`.

        Also its `block_scores`, and how the search stands then: `best`, `done`, `budget`, `seconds_left`, `workers`.
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
        """Note a warning: `text`."""
        self._write("warning", text, {"text": text}, logging.WARNING)

    def ended(self, result: FitResult) -> None:
        """Note the end of the fit: `interrupted`, and of every search `best` and `trials`, the completed ones."""
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
    """Give a log that appends to these files: a line of text each, and a JSON object a line.

    The objects have "time" (ISO 8601, UTC), "event" (opened, trial, warning, end) and the fields that the methods of
    `FitLog` name. Raises InputError if `log_file`, which the user has asked for, cannot be opened, or is a link in
    the folder of a study.
    """
    files = [LogFile(plain, _OneLine("%(asctime)s %(message)s"), own=True)]
    if log_file is not None:
        attempt(lambda: check_output(log_file, opened=True), field="log_file")
        try:
            log_file.open("a", encoding="utf-8").close()
        except OSError as error:
            raise InputError(f"{log_file}: cannot be written ({error.strerror})", field="log_file") from error
        files.append(LogFile(log_file, _JsonLines(), own=study_folder_of(log_file) is not None))
    try:
        yield FitLog(files)
    finally:
        for file in files:
            file.close()


class LogFile(logging.Handler):
    """Appends records to a file, UTF-8. If that cannot be written, a BlockfitWarning says so, once.

    A log is no reason to stop the work that it reports; the handlers of Python raise where a file cannot be opened, and
    print tracebacks where a disk is full. `own`: the file lies in a study's folder, and is not written into if it leads
    elsewhere.
    """

    def __init__(self, path: Path, formatter: logging.Formatter, *, own: bool = False) -> None:
        super().__init__()
        self._opener = open_in_place if own else None
        self.setFormatter(formatter)
        self._path = path
        self._warned = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        line = self.format(record)
        try:
            # Opened for each line, so that what cannot be written shows here and not when the program ends.
            with open(self._path, "a", encoding="utf-8", opener=self._opener) as file:
                file.write(line + "\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                text = f"{self._path}: cannot be written ({error.strerror}); the work goes on without it"
                warnings.warn(text, BlockfitWarning, stacklevel=2)


class _OneLine(logging.Formatter):
    """Log lines whose names, out of somebody's files, can neither pass for lines of their own nor move a cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, _FIELDS)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, **fields}, ensure_ascii=False)
