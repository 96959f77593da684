"""Long work shows its progress in a notebook's cell or on a terminal, and can be interrupted there."""

import io
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from rich.console import Console

from optimizer.bars import bar_updates, describe_amount, describe_seconds, progress_bars
from optimizer.interactive.progress import PROGRESS_OUTPUT

# Seconds that no busy machine needs.
_PATIENCE = 120


class Kernel:
    """A kernel of this Python, in a folder."""

    def __init__(self, folder):
        self.manager = KernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        environment = {**os.environ, "IPYTHONDIR": str(folder), "BLOCKFIT_CACHE": str(folder / "cache")}
        self.manager.start_kernel(cwd=str(folder), env=environment, extra_arguments=["--log-level=ERROR"])
        self._client = self.manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=_PATIENCE)

    def run(self, code, *, during=lambda message: None):
        """Run a cell; return its messages, after each of which `during` is called."""
        cell = self._client.execute(code)
        messages, ends = [], time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            try:
                message = self._client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return messages
            messages.append(message)
            during(message)
        raise TimeoutError(code)

    def close(self):
        """End the kernel."""
        self._client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel in which blockfit is imported."""
    found = Kernel(tmp_path_factory.mktemp("kernel"))
    found.run("import blockfit")
    yield found
    found.close()


@pytest.fixture
def folder(finished_study, tmp_path):
    """A study with quick trials, of which none is left."""
    made = shutil.copytree(finished_study, tmp_path / "study")
    for path in made.glob("study.db*"):
        path.unlink()
    text = (made / "study.yaml").read_text(encoding="utf-8")
    (made / "study.yaml").write_text(text.replace("sampler: blockwise", "sampler: random"), encoding="utf-8")
    return made


def displays(messages):
    """Return the contents of the messages that show progress, in order."""
    found = [message["content"] for message in messages if message["msg_type"].endswith("display_data")]
    return [content for content in found if PROGRESS_OUTPUT in content["metadata"]]


def printed(messages):
    """Return what a cell printed."""
    return "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")


def test_a_fit_is_shown_in_place(kernel, folder):
    """A cell has one display, which is updated: the search with its trials, and at the end one line."""
    messages = kernel.run(f"result = blockfit.fit({str(folder)!r}, trials=60)")

    kinds = [message["msg_type"] for message in messages if message["msg_type"].endswith("display_data")]
    shown = displays(messages)
    assert kinds == ["display_data"] + ["update_display_data"] * (len(kinds) - 1)
    assert len({content["transient"]["display_id"] for content in shown}) == 1
    assert any(" of 60</td>" in content["data"]["text/html"] for content in shown)
    assert "trials" in shown[-1]["data"]["text/plain"]
    assert "Done:" in shown[-1]["data"]["text/html"]
    assert "<table>" not in shown[-1]["data"]["text/html"]


def test_a_finished_fit_says_so(kernel, folder):
    """A fit without a trial left says that, if it takes long enough to be shown."""
    code = f"""
blockfit.fit({str(folder)!r}, trials=4, progress=False)
from optimizer.interactive import progress
progress._PATIENCE, before = 0, progress._PATIENCE
try:
    blockfit.fit({str(folder)!r}, trials=4)
finally:
    progress._PATIENCE = before
"""
    *_, last = displays(kernel.run(code))

    assert last["data"]["text/plain"].startswith("Done: nothing was left to do")


def test_silence_can_be_asked_for(kernel, folder):
    """Without progress a cell shows nothing but what it returns."""
    messages = kernel.run(f"result = blockfit.fit({str(folder)!r}, trials=60, progress=False)")

    assert displays(messages) == []
    assert printed(messages) == ""


def test_the_stop_button_gives_the_best_so_far(kernel, folder):
    """An interrupted cell goes on to its next line with a result that is marked, and says how to continue."""
    pressed = []

    def stop(message):
        shown = message["msg_type"].endswith("display_data")
        if shown and not pressed and " of 100000" in message["content"]["data"]["text/html"]:
            pressed.append(message)
            kernel.manager.interrupt_kernel()

    code = f"result = blockfit.fit({str(folder)!r}, trials=100_000)\nprint(result.interrupted, result.similarity > 0)"
    messages = kernel.run(code, during=stop)

    assert pressed
    assert printed(messages) == "True True\n"
    assert "Interrupted: the best so far is in" in displays(messages)[-1]["data"]["text/html"]
    assert (folder / "best.yaml").is_file()


def test_files_show_bytes_and_rate(kernel, tmp_path):
    """The display of files has their amount, rate and the time left; names cannot add tags."""
    code = """
import time
from optimizer.interactive.progress import shown_progress
with shown_progress() as display:
    display.progress("hashing <b>.ckpt", 0, 4_000_000_000)
    time.sleep(1)
    display.progress("hashing <b>.ckpt", 1_000_000_000, 4_000_000_000)
"""
    first, *_, last = displays(kernel.run(code))

    html = first["data"]["text/html"]
    assert "hashing &lt;b&gt;.ckpt" in html
    assert "1.0 of 4.0 GB, " in html
    assert "MB/s" in html
    assert "s left" in html
    assert last["data"]["text/plain"].startswith("Done: hashing <b>.ckpt")


def test_a_failure_does_not_look_like_success(kernel):
    """A display ends with the error that ended the work."""
    code = """
from optimizer.interactive.progress import shown_progress
with shown_progress() as display:
    display.warn("careful")
    raise ValueError
"""
    *_, last = displays(kernel.run(code))

    assert last["data"]["text/plain"].startswith("careful\nStopped by an error after")


@pytest.mark.skipif(sys.platform == "win32", reason="opens a pseudo-terminal")
def test_a_terminal_shows_the_live_table(folder):
    """A script shows the search on stderr if that is a terminal, and nothing on stdout."""
    import pty

    reader, writer = pty.openpty()
    code = f"import blockfit; blockfit.fit({str(folder)!r}, trials=60)"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "BLOCKFIT_CACHE": str(folder / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, env=environment
    ) as process:
        os.close(writer)
        shown = b""
        while True:
            try:
                part = os.read(reader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout.read() == b""
    os.close(reader)

    assert process.returncode == 0, shown.decode()
    assert "/60" in shown.decode()


def test_a_pipe_shows_nothing(folder, tmp_path):
    """A script whose stderr is no terminal prints nothing, and needs no IPython."""
    (tmp_path / "IPython.py").write_text("raise ImportError\n", encoding="utf-8")
    code = f"import blockfit; blockfit.fit({str(folder)!r}, trials=3)"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]),
        "BLOCKFIT_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_amounts_and_durations_in_words():
    """Counts are counts, bytes have units and, after half a second, a rate."""
    assert describe_amount(3, 8, 60) == "3 of 8"
    assert describe_amount(1_200_000_000, 15_000_000_000, 3) == "1.2 of 15.0 GB, 400 MB/s"
    assert describe_amount(2_500_000, 2_500_000, 0.1) == "2.5 MB"
    assert [describe_seconds(seconds) for seconds in (3.21, 12.4, 59.6, 72, 7500)] == [
        *("3.2 s", "12 s", "1 min 0 s", "1 min 12 s", "2 h 5 min"),
    ]


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_bars_fit_into_the_window(width):
    """Whatever the window's width, amount and rate are whole, and the name is shortened."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    bars = progress_bars(console, shown=True)
    update = bar_updates(bars)
    name = "hashing " + "v1-5-pruned-emaonly" * 4
    update(name, 0, 4_000_000_000)
    bars.tasks[0].start_time = bars.get_time() - 10
    update(name, 1_000_000_000, 4_000_000_000)

    console.print(bars.get_renderable())

    (line,) = console.file.getvalue().splitlines()
    assert len(line) <= width
    assert re.search(r"hashing v1.*…  *\S* *25% 1\.0 of 4\.0 GB, \d+ MB/s", line)
