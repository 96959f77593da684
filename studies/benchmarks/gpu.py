"""Run everything that needs a GPU once, and write its figures: for a machine that is available for minutes.

    make gpu                                   # or, if torch and blockfit's other libraries are installed:
    python studies/benchmarks/gpu.py --json studies/benchmarks/results/gpu.json
    python studies/benchmarks/gpu.py --device cpu --small          # the same script on any machine, in half a minute
    python studies/benchmarks/gpu.py --list                        # the parts
    python studies/benchmarks/gpu.py --part attention --part fit   # some of them
    python studies/benchmarks/gpu.py --table studies/benchmarks/results/gpu.json

The script needs no network. It makes nine full-size checkpoints (19 GB), in memory (/dev/shm) if it has room, and
removes them at the end. Each part runs in a separate process with a time limit. A part that fails, crashes or hangs is
reported, and the other parts still run. All parts together take at most --time seconds (480). Figures are written after
each part. Exit code: 0 if all parts succeeded, 1 if one did not, 2 if the arguments do not fit the machine.

Expected performance
--------------------
An H100 (SXM) has 67 TFLOP/s in float32 without tensor cores, of which products of large matrices reach 50; 3.35 TB/s of
memory bandwidth, of which a copy reaches 3.0; 132 processors x 16 exp2 per clock at 1.755 GHz, or 3.7e12 exp2/s; and
50 MB of cache. Starting an operation from Python takes about 5 us. Copies from pinned memory run at 55 GB/s (PCIe 5),
others at 5 to 12 GB/s.

`attention` over OUT03-OUT11 has three blocks each of width 1280, 640 and 320, so 3 x (1280^2 + 640^2 + 320^2) = 6.45
million logits per candidate, 25.8 MB in float32. Eight sources have 36 pairs. For one of n candidates in a call:

    method                      GFLOP   MB through memory   microseconds                     candidates per second
    along a line, n large       0.04    181 + 103 / n       60 (memory)                      9,000 to 14,000
    anywhere, terms, n large    0.46    181 + 955 / n       60 + 10 (products)               7,000 to 12,000
    anywhere, products          14.6    284 + 439 / n       290 (products) + 95              2,000 to 2,600
    along a line, n = 1         0.04    284                 95; 28 starts on the host        2,000 to 4,000
    anywhere, terms, n = 1      0.46    1,136               380 + starts                     1,200 to 2,200
    anywhere, products, n = 1   14.6    723                 290 + 240 + starts               1,000 to 1,700

6.45 million exps take 1.7 us, which is never the limit.

* The 181 MB are seven passes over the logits. They are written once; read and written by the softmax and by the product
  with the values; and read for the norms and for the products with the target's rows. n candidates share S0, S1, S2
  and the target's outputs (103 MB), the terms (929 MB), or the queries and keys of eight sources (413 MB). The goal
  for "anywhere", with 14.4 GFLOP per candidate, refers to the products. They are used if the terms do not fit into
  memory, and are measured beside the terms.
* An earlier version started each block separately: 180 operations and nine waits per candidate, twelve passes over the
  logits, weights copied block by block. Now blocks of one width share an operation, and a call makes one copy in each
  direction (optimizer/similarity/batched.py).
* A single kernel for logits, softmax and cosines would write nothing to memory: 10 us of products and 2 us of exps,
  more than 40,000 candidates per second. Triton is not available on Windows, `pip install` cannot build CUDA
  everywhere, and no search needs that many candidates. So blockfit has no such kernel.
* Small float64 computations (coefficients, positions on lines) stay on the host. On the GPU only the mean of the 6,720
  cosines is in float64.
* A search asks for one candidate at a time. Optuna takes 10 to 30 ms to propose and store it, the GPU 0.3 to 0.7 ms to
  score it. Batches of proposals, or a CUDA graph of the 28 operations, would change a twentieth of a trial.

Statistics: the UNets of nine files are 15.5 GB. Eight threads read them from memory at 10 to 25 GB/s, and PCIe 5 takes
0.3 s. 860 million columns of ten rows are 172 GFLOP in float64, ten times that in a library's tiles, or 0.05 s at 34
TFLOP/s. Reading is therefore the limit: 0.6 to 1.6 s, against 12 s on two cores.

The cold fit of the article's eight steps: 3 to 5 s to start Python and import, 1 to 2 s to read and multiply, 0.5 s to
project, 1 s for exact optima, 40 trials of 20 ms each (0.7 ms of them for scoring), and 1.5 s for the sha256 of 19 GB
on 16 cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "gpu.json"
SECONDS = 480
# Imported once, by the process that parts are forked from. No import may initialize CUDA: a fork could not use it.
PRELOADED = ["torch", "optuna", "optimizer.search", "optimizer.similarity", "gpu_parts"]
NEEDED = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "safetensors",
    "optuna",
    "cmaes",
    "pydantic",
    "ruamel.yaml",
    "typer",
    "rich",
)
# {small: bytes of a family of nine files and of the other files of parts}
FAMILY_BYTES = {False: 26 << 30, True: 1 << 28}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """The input of a part: the device, whether sizes are small, the family's folder, and a folder for its files."""

    device: str
    small: bool
    family: Path
    work: Path


@dataclass(frozen=True)
class Part:
    """One part of the run.

    Attributes:
        name: The name for --part.
        title: The title in tables.
        seconds: The time limit, in seconds.
        run: A function of a context that returns figures, or its name in gpu_parts, which takes seconds to import. A
            part fails if the figures hold `problems`.
        needs: The part that must have succeeded before.

    """

    name: str
    title: str
    seconds: float
    run: Callable[[Context], Figures] | str
    needs: str | None = None


@dataclass
class Outcome:
    """The outcome of a part, whose status is done, failed, timed out or skipped."""

    name: str
    title: str
    limit: float
    status: str = "skipped"
    seconds: float = 0.0
    processor_seconds: float | None = None
    error: str | None = None
    output: str | None = None
    figures: Figures = field(default_factory=dict)


# The most valuable parts come first, because the time may not suffice for the last.
PARTS = (
    Part("machine", "", 60, "machine"),
    Part("limits", "the GPU's own limits", 20, "limits"),
    Part("family", "nine checkpoints", 45, "family"),
    Part("attention", "`attention`, candidates per second", 50, "attention", "family"),
    Part("tests", "the tests marked cuda", 70, "tests"),
    Part("agreement", "cpu and cuda, metric by metric", 55, "agreement", "family"),
    Part("statistics", "statistics from memory", 35, "inner_products", "family"),
    Part("fit", "a cold fit of the article's eight output steps", 60, "fitting", "family"),
    Part("encoder", "`encoder`, candidates per second", 30, "encoder", "family"),
    Part("memory", "scoring with little free GPU memory", 20, "memory", "family"),
    Part("merge", "a merge of eight sources", 20, "merging", "family"),
    Part("preview", "a preview, in float16 on a GPU", 40, "pictures", "family"),
)


# --- Running parts ----------------------------------------------------------------------------------------------------


def load_parts(extra: Sequence[Path]) -> dict[str, Part]:
    """Return all parts by name, in order; the parts in the lists PARTS of the files `extra` come last."""
    further: list[Part] = [part for path in extra for part in _module(path).PARTS]
    return {part.name: part for part in (*PARTS, *further)}


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_here(name: str, extra: Sequence[Path], context: Context, answer: Path) -> None:
    """Run a part in this process, which was started for it, and write its outcome to `answer`."""
    if hasattr(os, "setsid"):
        # A process group of its own lets the runner end all processes that the part starts.
        os.setsid()
    with answer.with_suffix(".log").open("w", encoding="utf-8", errors="replace") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            function = load_parts(extra)[name].run
            if isinstance(function, str):
                import gpu_parts  # noqa: PLC0415  takes seconds

                function = getattr(gpu_parts, function)
            figures = function(context)
            problems = figures.pop("problems", [])
            found = {
                "status": "failed" if problems else "done",
                "error": "; ".join(problems) or None,
                "figures": figures,
            }
        except BaseException as error:  # every error is reported
            traceback.print_exc()
            found = {"status": "failed", "error": f"{type(error).__name__}: {error}", "figures": {}}
        sys.stdout.flush()
        sys.stderr.flush()
        found["processor_seconds"] = sum(os.times()[:4])
        partial = answer.with_suffix(".part")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(answer)


class Runner:
    """Runner of parts, one after another, for `seconds` from now; the parts' limits are scaled by seconds / SECONDS."""

    def __init__(self, seconds: float, extra: Sequence[Path]) -> None:
        self._end, self._scale = time.monotonic() + seconds, seconds / SECONDS
        self._extra = [path.resolve() for path in extra]
        paths = [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        self._context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self._context.set_forkserver_preload(PRELOADED)
        self.parts = load_parts(self._extra)

    def run(self, name: str, context: Context) -> Outcome:
        """Run a part within its limit and the remaining time, and end all processes that it started."""
        part = self.parts[name]
        outcome = Outcome(name, part.title, part.seconds * self._scale)
        left = self._end - time.monotonic()
        if left < 1:
            outcome.error = "no time was left"
            return outcome
        limit = min(outcome.limit, left)
        answer = context.work / f"{name}.json"
        process = self._context.Process(target=_run_here, args=(name, self._extra, context, answer), name=name)
        start = time.monotonic()
        process.start()
        try:
            process.join(limit)
            timed_out = process.is_alive()
        finally:
            _end(process.pid)
            process.join(10)
        outcome.seconds = time.monotonic() - start
        log = answer.with_suffix(".log")
        outcome.output = _tail(log) or None
        if answer.exists():
            found = json.loads(answer.read_text(encoding="utf-8"))
            for key, value in found.items():
                setattr(outcome, key, value)
        elif timed_out:
            outcome.status, outcome.error = "timed out", f"took longer than {limit:.0f} s"
        else:
            outcome.status, outcome.error = "failed", f"its process ended with exit code {process.exitcode}"
        return outcome


def _end(pid: int | None) -> None:
    """End a process, if it runs, and all processes that it started."""
    if pid is None:
        return
    if sys.platform == "win32":
        command = ["taskkill", "/F", "/T", "/PID", str(pid)]
        subprocess.run(command, capture_output=True, check=False)  # noqa: S603
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _tail(path: Path, length: int = 4000) -> str:
    """Return the last `length` characters of a text file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-length:]
    except OSError:
        return ""


# --- Where checkpoints go ---------------------------------------------------------------------------------------------


def choose_folder(needed: int) -> Path:
    """Return the fastest folder for temporary files that has room for `needed` bytes.

    Args:
        needed: Bytes of the files.

    Returns:
        The folder; /dev/shm, which is memory, counts like the others.

    Raises:
        OSError: If no folder has room.

    """
    places = [Path("/dev/shm"), Path(tempfile.gettempdir()), Path.cwd()]  # noqa: S108
    free = {place: shutil.disk_usage(place).free for place in dict.fromkeys(places) if place.is_dir()}
    memory = _available_memory()
    if memory is not None and places[0] in free:
        # Files in /dev/shm take memory that programs need too.
        free[places[0]] = min(free[places[0]], memory - (16 << 30) if needed > 1 << 30 else memory)
    roomy = [place for place, bytes_ in free.items() if bytes_ >= needed and os.access(place, os.W_OK)]
    if not roomy:
        listed = ", ".join(f"{place}: {bytes_:,}" for place, bytes_ in free.items())
        raise OSError(f"--folder: {needed:,} bytes are needed, but only these are free: {listed}; name another folder")
    return roomy[0] if len(roomy) == 1 or needed < 1 << 30 else max(roomy, key=_writing_rate)


def _available_memory() -> int | None:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return None


def _writing_rate(folder: Path, size: int = 1 << 28) -> float:
    """Return the rate in bytes per second at which a file can be written there and flushed to the disk."""
    start = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        block = memoryview(bytes(1 << 22))
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size / (time.perf_counter() - start)


@contextmanager
def family_folder(given: Path | None, *, small: bool, keep: bool) -> Iterator[Path]:
    """Yield a new folder for checkpoints, below `given` or on the fastest disk; remove it at the end unless `keep`."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    parent = choose_folder(FAMILY_BYTES[small]) if given is None else given
    folder = Path(tempfile.mkdtemp(prefix="blockfit-gpu-", dir=parent))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


# --- The run ----------------------------------------------------------------------------------------------------------


def run(given: argparse.Namespace) -> Figures:
    """Run the parts and return all figures; they are written to --json after each part.

    Args:
        given: The command line.

    Returns:
        The figures, as the JSON has them.

    Raises:
        ValueError: If the arguments do not fit the machine.

    """
    # Imported here because --table does not need them.
    from gpu_report import goals  # noqa: PLC0415
    from recording import command_line, commit  # noqa: PLC0415

    start = time.monotonic()
    runner = Runner(given.time, given.extra)
    parts = runner.parts
    chosen = given.part or [name for name in parts if parts[name].title]
    if unknown := [name for name in chosen if name not in parts]:
        raise ValueError(f"--part: received {unknown[0]!r}; must be one of {', '.join(parts)}")
    needed = [need for name in chosen if (need := parts[name].needs) and need not in chosen]
    order = [name for name in parts if name in chosen or name in needed]
    with family_folder(given.folder, small=given.small, keep=given.keep) as folder:
        context = Context(given.device, given.small, folder / "family", folder / "work")
        context.work.mkdir()
        machine = runner.run("machine", context)
        if machine.status == "skipped":
            raise ValueError(f"--time: received {given.time:g}; must be long enough to begin")
        if machine.status != "done":
            raise ValueError((machine.error or "").removeprefix("InputError: "))
        context = Context(machine.figures.pop("device"), given.small, context.family, context.work)
        figures: Figures = {
            "format": 1,
            "commands": [command_line()],
            "commit": commit(),
            "machine": machine.figures,
            "device": context.device,
            "small": given.small,
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "folder": str(folder.parent),
            "seconds": 0.0,
            "goals": [],
            "parts": [],
        }
        done: dict[str, str] = {"machine": "done"}
        for name in order:
            need = parts[name].needs
            if need and done.get(need) != "done":
                outcome = Outcome(name, parts[name].title, parts[name].seconds, error=f"needs {need}")
            else:
                outcome = runner.run(name, context)
            done[name] = outcome.status
            figures["parts"].append(vars(outcome))
            figures["seconds"] = time.monotonic() - start
            figures["goals"] = goals(figures)
            _write(figures, given.json)
            error = f": {outcome.error}" if outcome.error else ""
            print(f"{name}: {outcome.status}, {outcome.seconds:.1f} s{error}", file=sys.stderr, flush=True)
    return figures


def _write(figures: Figures, path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def missing_library() -> str | None:
    """Return a line that names the libraries that are not installed, or None."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name.split(".")[0]) is None]
    if not missing:
        return None
    wheels = "make gpu-wheels fetches their wheels elsewhere, make gpu WHEELS=FOLDER installs them here"
    return f"not installed: {', '.join(missing)} ({wheels})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run the parts, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run everything that needs a GPU, and write its figures.")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cuda", "cpu"], help="default: a GPU that torch can use"
    )
    parser.add_argument("--small", action="store_true", help="use small sizes, which test the script and not the speed")
    parser.add_argument(
        "--part", action="append", metavar="NAME", help="run only this part and its needs; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument(
        "--time", type=float, default=SECONDS, metavar="SECONDS",
        help=f"time for all parts (default {SECONDS}); the limit of each part scales with it",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="folder for checkpoints (default: memory, or the fastest disk)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the table of such a file")
    parser.add_argument("--extra", type=Path, action="append", default=[], help=argparse.SUPPRESS)  # parts for tests
    given = parser.parse_args(arguments)
    sys.path[:0] = [path for path in (str(HERE), str(ROOT)) if path not in sys.path]
    from gpu_report import as_markdown  # noqa: PLC0415

    if given.table:
        try:
            print(as_markdown(json.loads(given.table.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"--table: {given.table}: cannot be read as figures of this script ({error})", file=sys.stderr)
            return 2
        return 0
    if missing := missing_library():
        print(missing, file=sys.stderr)
        return 2
    if given.list:
        for part in load_parts(given.extra).values():
            if part.title:
                print(f"{part.name:<12}{part.seconds:>4.0f} s  {part.title}")
        return 0
    # SIGTERM removes the checkpoints, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        figures = run(given)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(as_markdown(figures))
    return 0 if all(part["status"] == "done" for part in figures["parts"]) else 1


if __name__ == "__main__":
    sys.exit(main())
