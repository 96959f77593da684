"""A Chromium of the system for the tests, driven by playwright; nothing is downloaded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_USUAL = (
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# The sandbox is unavailable to root and in containers. The other arguments keep the browser from going online.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    found = next((path for name in _NAMES if (path := shutil.which(name)) is not None), None)
    return found or next((path for path in _USUAL if Path(path).is_file()), None)


@contextmanager
def opened_browser() -> Iterator["Browser"]:
    """Yield a running browser without a window."""
    from playwright.sync_api import sync_playwright

    # Debian's start script reads CHROMIUM_FLAGS.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHROMIUM")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS, env=environment)
        try:
            yield browser
        finally:
            browser.close()
