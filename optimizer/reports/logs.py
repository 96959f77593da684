"""The log of a fit: lines for people, and lines of JSON for programs."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from optimizer.errors import InputError
from optimizer.search import SearchProgress

__all__ = ["fit_logs", "log_opened", "log_trial", "log_warning"]

_LOGGER = logging.getLogger("blockfit.fit")
_FIELDS = "fields"


@contextmanager
def fit_logs(plain: Path, structured: Path | None = None) -> Iterator[None]:
    """Append what `log_...` is told to these files: a line of text each, and a JSON object a line.

    The objects have "time" (ISO 8601, UTC), "event" (opened, trial, warning) and what there is to say of it; see the
    functions. Raises InputError if `structured`, which the user has asked for, cannot be opened; without `plain` goes
    what cannot have it.
    """
    handlers: list[logging.Handler] = []
    try:
        if structured is not None:
            try:
                handlers.append(_handler(structured, _JsonLines()))
            except OSError as error:
                raise InputError(f"--log-file: {structured}: cannot be written to: {error.strerror}") from error
        try:
            handlers.append(_handler(plain, logging.Formatter("%(asctime)s %(message)s")))
        except OSError as error:
            _LOGGER.warning("%s: cannot be written to: %s", plain, error.strerror)
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
    """A trial has ended: `search`, `trial`, `state`, `origin`, `similarity` or `error`, `seconds`, `params`, and then.

    `block_scores`, `best`, `done`, `budget`, `seconds_left`, `workers` as they are after it.
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


def log_warning(text: str) -> None:
    """What the user was warned of: `text`."""
    _LOGGER.warning(text, extra={_FIELDS: {"event": "warning", "text": text}})


def _handler(path: Path, formatter: logging.Formatter) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(formatter)
    return handler


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, _FIELDS, {"event": "warning", "text": record.getMessage()})
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, **fields}, ensure_ascii=False)
