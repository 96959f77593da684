"""Progress and warnings of long work: one protocol for terminals, web pages and logs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["LOGGED", "CallbackEvents", "Events", "Progress", "ProgressOption"]

Progress = Callable[[str, int, int], None]
# Where None leaves the choice to the function, False asks for silence.
ProgressOption = Progress | Literal[False] | None
_logger = logging.getLogger("blockfit")
# Silent unless the program that uses blockfit asks for its log: https://docs.python.org/3/howto/logging.html
_logger.addHandler(logging.NullHandler())


class Events(Protocol):
    """Receiver of the progress and the warnings of long work."""

    def progress(self, what: str, done: int, total: int, /) -> None:
        """Report that `done` of `total` units of `what` are finished: bytes, or a count of files, tensors or steps."""
        ...

    def warn(self, text: str, /) -> None:
        """Report in one complete line what the user should know though the work goes on."""
        ...


def _log_progress(what: str, done: int, total: int) -> None:
    _logger.debug("%s: %d of %d", what, done, total)


def _log_warning(text: str) -> None:
    _logger.warning("%s", text)


@dataclass(frozen=True)
class CallbackEvents:
    """Events passed on to callbacks; those without a callback go to Python's log under the name `blockfit`."""

    progress: Progress = _log_progress
    warn: Callable[[str], None] = _log_warning

    @classmethod
    def of(cls, progress: ProgressOption = None, warn: Callable[[str], None] | None = None) -> "CallbackEvents":
        """Return events with these callbacks; None or False stands for Python's log."""
        return cls(progress or _log_progress, warn or _log_warning)


LOGGED: Events = CallbackEvents()
