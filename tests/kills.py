"""Kills a process at each of the moments at which it is about to change a file, one after the other."""

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

# Python tells of these before they are done. What is opened for reading changes nothing.
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
    """A process that has imported everything, and forks one that calls a function of `code` with a folder's path."""

    def __init__(self, code: str) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("Windows cannot fork")
        text = _CODE.replace("{code}", textwrap.dedent(code))
        self._process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def run(self, name: str, folder: Path, change: int = 0) -> tuple[str, Any]:
        """Call a function, and kill it before its `change`-th change of a file in the folder (0: never).

        Gives what became of it, killed, done or failed, and what it gave or why it failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, str(folder), change]) + "\n")
        self._process.stdin.flush()
        became, given = json.loads(self._process.stdout.readline())
        return became, given

    def everywhere(self, name: str, template: Path, scratch: Path, *, every: int = 1) -> Iterator[Path]:
        """Give copies of a folder in which a function was killed, before its first change, its second, and so on.

        Or before every second, third ... of its changes.
        """
        for change in count(1, every):
            folder = scratch / f"killed-{change}"
            shutil.copytree(template, folder)
            became, given = self.run(name, folder, change)
            if became == "done":
                break
            assert became == "killed", given
            yield folder
        # Otherwise nothing was tried.
        assert change > 1

    def close(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()
