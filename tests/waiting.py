"""Waiting for what other processes do: for longer than the busiest machine takes, and no longer than it takes."""

import time
from collections.abc import Callable

# Seconds after which something is broken rather than slow. Below pytest's own timeout, so that the test says what it
# was waiting for.
PATIENCE = 600


def wait_for(holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something holds; raise AssertionError if it never does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
