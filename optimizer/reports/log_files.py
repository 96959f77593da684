"""A log file that does without itself where it cannot be written."""

import logging
import warnings
from pathlib import Path

from optimizer.errors import BlockfitWarning

__all__ = ["LogFile"]


class LogFile(logging.Handler):
    """Appends records to a file, UTF-8. If that cannot be written, a BlockfitWarning says so, once.

    A log is no reason to stop what it tells of; the handlers of Python raise where a file cannot be opened, and print
    tracebacks where a disk is full.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        line = self.format(record)
        try:
            # Opened for each line, so that what cannot be written shows here and not when the program ends.
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            if not self._told:
                self._told = True
                text = f"{self._path}: cannot be written ({error.strerror}); the work goes on without it"
                warnings.warn(text, BlockfitWarning, stacklevel=2)
