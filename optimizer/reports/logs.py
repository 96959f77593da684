"""The log of a fit: lines for people, and lines of JSON for programs."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from optimizer.errors import BlockfitWarning, InputError, attempt
from optimizer.files import check_output, open_in_place, study_folder_of
from optimizer.printable import printable
from optimizer.search import FitResult, SearchProgress

__all__ = ["LogFile", "fit_logs", "log_end", "log_opened", "log_trial", "log_warning"]

_LOGGER = logging.getLogger("blockfit.fit")
_FIELDS = "fields"


@contextmanager
def fit_logs(plain: Path, log_file: Path | None = None) -> Iterator[None]:
    """Append what `log_...` is told to these files: a line of text each, and a JSON object a line.

    The objects have "time" (ISO 8601, UTC), "event" (opened, trial, warning, end) and what there is to say of it: see
    the functions. Raises InputError if `log_file`, which the user has asked for, cannot be opened, or is a link in
    the folder of a study.
    """
    handlers = [LogFile(plain, _OneLine("%(asctime)s %(message)s"), own=True)]
    if log_file is not None:
        attempt(lambda: check_output(log_file, opened=True), field="log_file")
        try:
            log_file.open("a", encoding="utf-8").close()
        except OSError as error:
            raise InputError(f"{log_file}: cannot be written ({error.strerror})", field="log_file") from error
        handlers.append(LogFile(log_file, _JsonLines(), own=study_folder_of(log_file) is not None))
    try:
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.propagate = False
        for handler in handlers:
            _LOGGER.addHandler(handler)
        yield
    finally:
        for handler in handlers:
            _LOGGER.removeHandler(handler)
            handler.close()


def log_opened(progress: SearchProgress) -> None:
    """A search begins or goes on: `search`, `done`, `budget`, `best`."""
    fields = {"search": progress.search, "done": progress.done, "budget": progress.budget, "best": progress.best}
    text = f"{progress.search}: {progress.done} of {progress.budget} trials done"
    _LOGGER.info(text, extra={_FIELDS: {"event": "opened", **fields}})


def log_trial(progress: SearchProgress, trial: FrozenTrial) -> None:
    """A trial has ended: `search`, `trial`, `state`, `origin`, `similarity` or `error`, `seconds`, `params`.

    Also its `block_scores`, and how the search stands then: `best`, `done`, `budget`, `seconds_left`, `workers`.
    """
    similarity = trial.values[0] if trial.values else None
    error, origin = trial.user_attrs.get("error"), trial.user_attrs.get("origin", "")
    value = error or "failed" if similarity is None else f"{similarity:.8f}"
    best = "-" if progress.best is None else f"{progress.best:.8f}"
    fields = {
        "search": progress.search,
        "trial": trial.number,
        "state": trial.state.name,
        "origin": origin,
        **({"error": error} if similarity is None else {"similarity": similarity}),
        "seconds": None if trial.duration is None else trial.duration.total_seconds(),
        "params": trial.params,
        "block_scores": trial.user_attrs.get("block_scores"),
        "best": progress.best,
        "done": progress.done,
        "budget": progress.budget,
        "seconds_left": progress.seconds_left,
        "workers": progress.workers,
    }
    text = f"{progress.search}: trial {trial.number} ({origin}) {trial.state.name} {value}, best {best}"
    _LOGGER.info(text, extra={_FIELDS: {"event": "trial", **fields}})


def log_end(result: FitResult) -> None:
    """The fit has ended: `interrupted`, and of every search `best` and `trials`, the completed ones."""
    searches = {
        one.name: {"best": None if one.best is None else one.best.values[0], "trials": len(one.completed)}
        for one in result.searches
    }
    text = "interrupted" if result.interrupted else "done"
    _LOGGER.info(text, extra={_FIELDS: {"event": "end", "interrupted": result.interrupted, "searches": searches}})


def log_warning(text: str) -> None:
    """What the user was warned of: `text`."""
    _LOGGER.warning(text, extra={_FIELDS: {"event": "warning", "text": text}})


class LogFile(logging.Handler):
    """Appends records to a file, UTF-8. If that cannot be written, a BlockfitWarning says so, once.

    A log is no reason to stop what it tells of; the handlers of Python raise where a file cannot be opened, and print
    tracebacks where a disk is full. `own`: the file lies in a study's folder, and is not written into if it leads
    elsewhere.
    """

    def __init__(self, path: Path, formatter: logging.Formatter, *, own: bool = False) -> None:
        super().__init__()
        self._opener = open_in_place if own else None
        self.setFormatter(formatter)
        self._path = path
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        line = self.format(record)
        try:
            # Opened for each line, so that what cannot be written shows here and not when the program ends.
            with open(self._path, "a", encoding="utf-8", opener=self._opener) as file:
                file.write(line + "\n")
        except OSError as error:
            if not self._told:
                self._told = True
                text = f"{self._path}: cannot be written ({error.strerror}); the work goes on without it"
                warnings.warn(text, BlockfitWarning, stacklevel=2)


class _OneLine(logging.Formatter):
    """Log lines whose names, out of somebody's files, can neither pass for lines of their own nor move a cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, _FIELDS, {"event": "warning", "text": record.getMessage()})
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, **fields}, ensure_ascii=False)
