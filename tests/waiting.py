"""Waiting for other processes, with a limit that no busy machine reaches."""

import time
from collections.abc import Callable

# Seconds after which a process is broken rather than slow. Below pytest's timeout, so that the failure is in the test.
PATIENCE = 600


def wait_for(holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until `holds()` is true; raise AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
