"""Kills a process before each of its changes to files, one change at a time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

# Audit events that Python raises before a change. Opening a file for reading is no change.
_CODE = """
import json, os, signal, sys, traceback
import torch
torch.set_num_threads(1)
CHANGES = {
    "os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree",
    "sqlite3.connect",
}

def kill_before(change, folder):
    done = 0
    def hook(event, arguments):
        nonlocal done
        if event == "open":
            path, mode, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event not in CHANGES:
            return
        if arguments and isinstance(arguments[0], (str, bytes, os.PathLike)):
            if os.fsdecode(arguments[0]).startswith(folder):
                done += 1
                if done == change:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

{code}

for line in sys.stdin:
    name, folder, change = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            if change:
                kill_before(change, folder)
            print(json.dumps(["done", globals()[name](folder)]), flush=True)
            os._exit(0)
        except BaseException as error:
            print(json.dumps(["failed", f"{type(error).__name__}: {error}"]), flush=True)
            os._exit(1)
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        print(json.dumps(["killed", None]), flush=True)
"""


class Killing:
    """A process that has imported all modules, and whose children call functions of `code` with a folder's path."""

    def __init__(self, code: str) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("Windows cannot fork")
        text = _CODE.replace("{code}", textwrap.dedent(code))
        self._process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def run(self, name: str, folder: Path, change: int = 0) -> tuple[str, Any]:
        """Call a function, and kill it before its `change`-th change of a file in the folder (0: never).

        Return its end (killed, done or failed), and its result or the reason of the failure.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, str(folder), change]) + "\n")
        self._process.stdin.flush()
        ending, result = json.loads(self._process.stdout.readline())
        return ending, result

    def everywhere(self, name: str, template: Path, scratch: Path, *, every: int = 1) -> Iterator[Path]:
        """Yield copies of a folder in which a function was killed before its first change, its second, and so on.

        With `every`, only every second, third, ... change is tried.
        """
        for change in count(1, every):
            folder = scratch / f"killed-{change}"
            shutil.copytree(template, folder)
            ending, result = self.run(name, folder, change)
            if ending == "done":
                break
            assert ending == "killed", result
            yield folder
        # A function without a change would test nothing.
        assert change > 1

    def close(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()
