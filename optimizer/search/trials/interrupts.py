"""Interruption by Ctrl-C or SIGTERM: a search first finishes and stores its running trial."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["AtOnce", "interruptible", "whole_trial"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


# Seconds after which an interruption that waits for a trial is acknowledged.
_ACKNOWLEDGED = 0.5


class AtOnce(KeyboardInterrupt):
    """Second interruption of a trial: the search ends at once."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM, and Ctrl-Break on Windows, raise KeyboardInterrupt as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS if number != signal.SIGINT}
    # Handlers that the caller has set stay in place.
    changed = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


@contextmanager
def whole_trial(warn: Callable[[str], None]) -> Iterator[None]:
    """Delay an interruption until a trial is scored, stored and reported; a second one raises AtOnce immediately.

    Args:
        warn: Called, in another thread, if the trial goes on for half a second after the interruption.

    Raises:
        KeyboardInterrupt: After the trial, if it was interrupted.
    """
    # Python handles signals in the main thread only; handlers that the caller has set stay in place.
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _SIGNALS if main and signal.getsignal(number) is signal.default_int_handler]
    waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            raise AtOnce
        waiting = True
        acknowledgement.start()

    def acknowledge() -> None:
        warn("interrupted: finishing the running trial, then the best so far is written; a second one ends it at once")

    acknowledgement = threading.Timer(_ACKNOWLEDGED, acknowledge)
    acknowledgement.daemon = True
    for number in ours:
        signal.signal(number, wait)
    try:
        yield
    finally:
        acknowledgement.cancel()
        for number in ours:
            signal.signal(number, signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt
