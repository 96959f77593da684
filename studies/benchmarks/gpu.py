"""Run everything that needs a card once, and write its figures: for a machine that is at hand for minutes.

    make gpu                                   # or, where torch and blockfit's other libraries are:
    python studies/benchmarks/gpu.py --json studies/benchmarks/results/gpu.json
    python studies/benchmarks/gpu.py --device cpu --small          # the same script on any machine, in half a minute
    python studies/benchmarks/gpu.py --list                        # the parts
    python studies/benchmarks/gpu.py --part attention --part fit   # some of them
    python studies/benchmarks/gpu.py --table studies/benchmarks/results/gpu.json

It needs no network. Nine checkpoints of full size, 19 GB, are made on the spot, in memory where there is room
(/dev/shm), and removed at the end. Each part runs in a process of its own with a time limit: one that fails, crashes or
hangs is reported, and the others run all the same. All of it takes at most --time seconds (480); figures are written
after each part. Exit code: 0 if every part was done, 1 if one was not, 2 if the arguments do not fit the machine.

What the card should reach, worked out beforehand
-------------------------------------------------
An H100 (SXM) has 67 TFLOP/s in float32 without tensor cores, of which products of large matrices get 50; 3.35 TB/s of
memory, of which a copy gets 3.0; 132 processors x 16 exp2 a clock at 1.755 GHz, 3.7e12 exp2/s; 50 MB of cache. Starting
an operation from Python takes some 5 us. Copies from pinned memory run at 55 GB/s (PCIe 5), others at 5 to 12.

`attention` over OUT03-OUT11: three blocks each of width 1280, 640 and 320, so 3 x (1280^2 + 640^2 + 320^2) = 6.45
million logits a candidate, 25.8 MB in float32. Eight sources have 36 pairs. For one of n candidates in a call:

    way                         GFLOP   MB through memory   microseconds                     candidates a second
    along a line, n large       0.04    181 + 103 / n       60 (memory)                      9,000 to 14,000
    anywhere, terms, n large    0.46    181 + 955 / n       60 + 10 (products)               7,000 to 12,000
    anywhere, products          14.6    284 + 439 / n       290 (products) + 95              2,000 to 2,600
    along a line, n = 1         0.04    284                 95, but 28 starts, host's part   2,000 to 4,000
    anywhere, terms, n = 1      0.46    1,136               380 + starts                     1,200 to 2,200
    anywhere, products, n = 1   14.6    723                 290 + 240 + starts               1,000 to 1,700

6.45 million exps are 1.7 us, nowhere the limit.

* The 181 MB are seven passes over the logits: written; read and written by the softmax and by the product with the
  values; read for the norms and for the products with the target's rows. n candidates share S0, S1, S2 and the target's
  outputs (103 MB), the terms (929), or queries and keys of eight sources (413). The "anywhere" that the goal means,
  14.4 GFLOP for each candidate, is the way by products: it is taken where terms find no room, and measured beside them.
* What held this back before: each block was started by itself, 180 operations and nine waits a candidate, twelve
  passes over the logits, weights copied block by block. Now blocks of one width share an operation and a call has one
  copy each way (optimizer/similarity/batched.py).
* A single kernel for logits, softmax and cosines would write nothing: 10 us of products and 2 of exps, 40,000
  candidates a second and more. It would be written in Triton, which Windows lacks, or in CUDA, which `pip install`
  cannot build everywhere, and no search asks for so many. So there is none.
* Float64 stays on the host for what is small, coefficients and places on lines; on the card it is the mean of the 6,720
  cosines.
* A search asks for one candidate at a time. Proposing and storing one takes Optuna 10 to 30 ms, scoring it on the card
  0.3 to 0.7. Batches of proposals or a CUDA graph of the 28 operations would change a twentieth of a trial.

Statistics: the UNets of nine files are 15.5 GB, which eight threads read from memory at 10 to 25 GB/s; over PCIe 5 they
take 0.3 s; 860 million columns of ten rows are 172 GFLOP in float64, ten times that in a library's tiles, 0.05 s at 34
TFLOP/s. So reading is the limit: 0.6 to 1.6 s, against 12 on two cores.

The fit of the article's eight steps, cold: 3 to 5 s to start Python and import, 1 to 2 to read and multiply, 0.5 to
project, 1 for exact optima, 40 trials at 20 ms, 1.5 for the sha256 of 19 GB on 16 cores; scoring is 40 x 0.7 ms.
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
# Loaded once, by the process that parts are forked from. None of it may start the card: a fork could not use it.
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
# Bytes of a family of nine files and of what parts write beside it, by whether it is small.
FAMILY_BYTES = {False: 26 << 30, True: 1 << 28}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What a part is told: the device, whether sizes are small, and the folders of the family and for its own files."""

    device: str
    small: bool
    family: Path
    work: Path


@dataclass(frozen=True)
class Part:
    """One part: a function of a context that returns its figures; `problems` among them make it a failed one.

    `run` is the function, or its name in gpu_parts, which takes seconds to import. `seconds` is the most that the part
    may take; `needs` the part that must have been done before.
    """

    name: str
    title: str
    seconds: float
    run: Callable[[Context], Figures] | str
    needs: str | None = None


@dataclass
class Outcome:
    """What became of a part: done, failed, timed out or skipped."""

    name: str
    title: str
    limit: float
    status: str = "skipped"
    seconds: float = 0.0
    processor_seconds: float | None = None
    error: str | None = None
    output: str | None = None
    figures: Figures = field(default_factory=dict)


# The most valuable come first, as what is left of the time may not suffice for the last.
PARTS = (
    Part("machine", "", 60, "machine"),
    Part("limits", "the card's own limits", 20, "limits"),
    Part("family", "nine checkpoints", 45, "family"),
    Part("attention", "`attention`, candidates a second", 50, "attention", "family"),
    Part("tests", "the tests marked cuda", 70, "tests"),
    Part("agreement", "cpu and cuda, metric by metric", 55, "agreement", "family"),
    Part("statistics", "statistics from memory", 35, "inner_products", "family"),
    Part("fit", "the article's eight output steps fitted, cold", 60, "fitting", "family"),
    Part("encoder", "`encoder`, candidates a second", 30, "encoder", "family"),
    Part("memory", "scoring with most of the card taken", 20, "memory", "family"),
    Part("merge", "a merge of eight sources", 20, "merging", "family"),
    Part("preview", "a preview, in float16 on a card", 40, "pictures", "family"),
)


# --- Running parts ----------------------------------------------------------------------------------------------------


def load_parts(extra: Sequence[Path]) -> dict[str, Part]:
    """Return all parts by name, in the order in which they run; those of the files `extra`, with a list PARTS, last."""
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
    """Run a part in this process, which is its own, and write what became of it to `answer`."""
    if hasattr(os, "setsid"):
        # Whatever it starts can then be ended with it.
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
        except BaseException as error:  # whatever it is, it is reported
            traceback.print_exc()
            found = {"status": "failed", "error": f"{type(error).__name__}: {error}", "figures": {}}
        sys.stdout.flush()
        sys.stderr.flush()
        found["processor_seconds"] = sum(os.times()[:4])
        partial = answer.with_suffix(".part")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(answer)


class Runner:
    """Runs parts one after another for `seconds` from now; limits of parts are those for SECONDS, scaled."""

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
        """Run a part within its limit and the time that is left; what it has started ends with it."""
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
    """End a process, if it runs, and all that it has started."""
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
    """Return the end of a text file, as far as it is there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-length:]
    except OSError:
        return ""


# --- Where checkpoints go ---------------------------------------------------------------------------------------------


def choose_folder(needed: int) -> Path:
    """Return the fastest of the folders for temporary files that has room for `needed` bytes, memory if it has.

    Raises OSError if none has.
    """
    places = [Path("/dev/shm"), Path(tempfile.gettempdir()), Path.cwd()]  # noqa: S108
    free = {place: shutil.disk_usage(place).free for place in dict.fromkeys(places) if place.is_dir()}
    memory = _available_memory()
    if memory is not None and places[0] in free:
        # What lies there is memory that programs want too.
        free[places[0]] = min(free[places[0]], memory - (16 << 30) if needed > 1 << 30 else memory)
    roomy = [place for place, bytes_ in free.items() if bytes_ >= needed and os.access(place, os.W_OK)]
    if not roomy:
        told = ", ".join(f"{place}: {bytes_:,}" for place, bytes_ in free.items())
        raise OSError(f"--folder: {needed:,} bytes are needed, free are {told}; name another folder")
    return roomy[0] if len(roomy) == 1 or needed < 1 << 30 else max(roomy, key=_writing_rate)


def _available_memory() -> int | None:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return None


def _writing_rate(folder: Path, size: int = 1 << 28) -> float:
    """Return bytes a second at which a file can be written there, flushed to the disk."""
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
    """The folder for checkpoints, a new one below `given` or where it is fastest; removed at the end unless kept."""
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
    """Run the parts and return all figures, which are written to --json as they come."""
    # Here, and not above: for --table nothing else is needed.
    from gpu_report import goals  # noqa: PLC0415
    from recording import command_line, commit  # noqa: PLC0415

    begun = time.monotonic()
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
            raise ValueError(f"--time: received {given.time:g}; that is too little to begin")
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
            figures["seconds"] = time.monotonic() - begun
            figures["goals"] = goals(figures)
            _write(figures, given.json)
            said = f": {outcome.error}" if outcome.error else ""
            print(f"{name}: {outcome.status}, {outcome.seconds:.1f} s{said}", file=sys.stderr, flush=True)
    return figures


def _write(figures: Figures, path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def missing_library() -> str | None:
    """Return a line that names what cannot be imported, or None."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name.split(".")[0]) is None]
    if not missing:
        return None
    wheels = "make gpu-wheels fetches their wheels elsewhere, make gpu WHEELS=FOLDER installs them here"
    return f"not installed: {', '.join(missing)} ({wheels})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run the parts, print the table."""
    parser = argparse.ArgumentParser(description="Run everything that needs a card, and write its figures.")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cuda", "cpu"], help="default: a card if there is one"
    )
    parser.add_argument("--small", action="store_true", help="small sizes: whether the script works, not how fast")
    parser.add_argument(
        "--part", action="append", metavar="NAME", help="only this part, and what it needs; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument(
        "--time", type=float, default=SECONDS, metavar="SECONDS",
        help=f"for all parts (default {SECONDS}); the limit of each grows with it",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="for checkpoints (default: memory, or the fastest disk)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of such a file and do nothing else")
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
    # Ended by a signal, it removes its checkpoints as after Ctrl-C.
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
