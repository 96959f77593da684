"""Ctrl-C, and SIGTERM like it, at the right moment: a search finishes and keeps its running trial first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["AtOnce", "interruptible", "whole_trial"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


class AtOnce(KeyboardInterrupt):
    """The second interruption of a trial: the search ends without waiting for anything."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, and Ctrl-Break on Windows, raise KeyboardInterrupt as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS if number != signal.SIGINT}
    # What the caller handles or ignores is the caller's business.
    changed = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


@contextmanager
def whole_trial() -> Iterator[None]:
    """Let an interruption wait until a trial is scored, stored and reported; a second one does not wait."""
    # Python handles signals in the main thread only, and a handler of the caller's own is the caller's business.
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _SIGNALS if main and signal.getsignal(number) is signal.default_int_handler]
    waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            raise AtOnce
        waiting = True

    for number in ours:
        signal.signal(number, wait)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt
