"""The parts of `gpu.py`, each a function of a context that returns figures.

Sizes are those of Stable Diffusion 1.x, or small ones for testing the parts. With the device "cpu" the GPU code runs on
the CPU.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from article import article_recipe, coefficients, differences, largest
from gpu import ROOT, Context, Figures
from make_checkpoints import make_family
from torch import Tensor

from optimizer.errors import BlockfitWarning, InputError
from optimizer.families import load_layout
from optimizer.merging import merge
from optimizer.recipes import Part as StoredPart
from optimizer.recipes import PartReader, load_recipe, save_recipe
from optimizer.similarity import (
    METRICS,
    AttentionMetric,
    AttentionOptions,
    Comparison,
    Metric,
    MovableMetric,
    Options,
    build_metric,
    float32_products,
    grams_on_gpu,
    measure_grams,
    measure_statistics,
    open_comparison,
    select_device,
    unused_gpu,
)

SOURCES = 8
BLOCKS = "OUT03-OUT11"
SEED = 114514
DEMO = ROOT / "studies" / "demo"
CONFIGURATION = ROOT / "configs" / "blessingmix-v1.yaml"
AGREEMENT = 1e-5  # largest difference of a block's similarity between cpu and cuda
STUDY = """\
recipe: recipe.yaml
target: {{file: "{target}"}}
base: base
stages:
  - {{name: outputs, blocks: {blocks}, metric: attention, strategy: joint, trials: {trials}}}
"""


# --- Shared by parts --------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all operations."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(task: Callable[[], object], device: torch.device, *, budget: float, least: int = 3) -> float:
    """Return the median seconds of a task.

    Args:
        task: The task; it runs once before the clock starts.
        device: The device that the task uses.
        budget: Seconds for all runs.
        least: The least number of runs, of any duration.

    Returns:
        The median of the runs, in seconds.

    """
    task()
    synchronize(device)
    found: list[float] = []
    end = time.perf_counter() + budget
    while len(found) < least or (time.perf_counter() < end and len(found) < 1000):
        start = time.perf_counter()
        task()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def budget(context: Context) -> float:
    """Return the seconds that one figure may take."""
    return 0.01 if context.small else 0.5


@contextmanager
def opened(context: Context, device: str | torch.device | None = None) -> Iterator[Comparison]:
    """Open the family's sources and target for a device (default: the context's)."""
    recipe = load_recipe(context.family / "planted.yaml")
    paths = {name: context.family / model.file for name, model in recipe.models.items()}
    with open_comparison(
        recipe.layout,
        paths,
        context.family / "target.safetensors",
        base=paths["base"],
        device=context.device if device is None else device,
        options=Options((AttentionOptions(seeds=[SEED]),)),
    ) as comparison:
        yield comparison


class Candidates:
    """Random coefficients float64 [n, groups, sources] that sum to 1, anywhere or on one line."""

    def __init__(self, comparison: Comparison) -> None:
        self._shape = len(comparison.groups), len(comparison.sources)
        self._random = torch.Generator().manual_seed(0)
        self._start, self._end = self.anywhere(2)

    def anywhere(self, count: int) -> Tensor:
        """Return `count` new candidates."""
        drawn = torch.rand(count, *self._shape, generator=self._random, dtype=torch.float64)
        return drawn / drawn.sum(dim=-1, keepdim=True)

    def on_line(self, count: int) -> Tensor:
        """Return `count` new candidates on one line per block."""
        positions = torch.rand(count, 1, 1, generator=self._random, dtype=torch.float64)
        return self._start + positions * (self._end - self._start)


def peak_memory(device: torch.device) -> int | None:
    """Return the peak of the bytes that torch has allocated on a GPU; None for a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


# --- Machine, family --------------------------------------------------------------------------------------------------


def machine(context: Context) -> Figures:
    """Return the description of the machine, with the `device` that the other parts use.

    Args:
        context: The context.

    Returns:
        The figures.

    Raises:
        InputError: If torch can use no GPU, and neither `--device cpu` nor `--small` is given.
        RuntimeError: If CUDA was initialized before this process was forked, which is a bug.

    """
    device = select_device(context.device)
    if context.device == "auto" and device.type == "cpu" and not context.small:
        reason = unused_gpu() or "this machine has no NVIDIA GPU that torch can see"
        raise InputError(f"--device: {reason}; --device cpu --small tries the script without one")
    found: Figures = {
        "device": device.type,
        "card": None,
        "driver": None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
    }
    if device.type == "cuda":
        if getattr(torch.cuda, "_is_in_bad_fork", lambda: False)():
            raise RuntimeError("CUDA was initialized before this process was forked: report this, with the versions")
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory, bytes": total,
            "memory free at the start, bytes": free,
            "driver": _driver(),
        }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
        return done.stdout.split()[0]
    return None


def family(context: Context) -> Figures:
    """Write nine checkpoints: eight sources, and a target merged by the article's eight output steps."""
    device, start = torch.device(context.device), time.perf_counter()
    recipe = article_recipe(CONFIGURATION)
    make_family(context.family, sources=SOURCES, small=context.small, device=device, recipe=recipe)
    seconds = time.perf_counter() - start
    written = sum(path.stat().st_size for path in context.family.glob("*.safetensors"))
    return {"files": SOURCES + 1, "bytes": written, "seconds": seconds}


# --- The tests --------------------------------------------------------------------------------------------------------


def tests(context: Context) -> Figures:
    """Run every test that is marked cuda, in the files that have one; others may import libraries that are missing."""
    marked = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text(encoding="utf-8")
    ]
    # Without a GPU the tests are skipped, and one file shows that as well as all.
    chosen = marked[-1:] if context.small else marked
    report = context.work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "-q", f"--junitxml={report}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*command, *map(str, chosen)], cwd=ROOT, env=environment, check=False)  # noqa: S603
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    counted = {
        key: int((re.findall(rf'{key}="(\d+)"', text) or ["0"])[0])
        for key in ("tests", "errors", "failures", "skipped")
    }
    failed = re.findall(r'<testcase classname="([^"]+)" name="([^"]+)"[^>]*><(?:failure|error)', text)
    problems = [f"{name} failed" for _, name in failed]
    if not text or counted["errors"]:
        problems.append(f"pytest ended with exit code {done.returncode}")
    if counted["skipped"] and context.device == "cuda":
        problems.append(f"{counted['skipped']} were skipped")
    passed = counted["tests"] - counted["errors"] - counted["failures"] - counted["skipped"]
    if context.device == "cuda" and not passed:
        problems.append("none passed")
    return {"files": len(chosen), "passed": passed, "failed": counted["errors"] + counted["failures"],
            "skipped": counted["skipped"], "problems": problems}  # fmt: skip


# --- The GPU's own limits ---------------------------------------------------------------------------------------------


Rate = Callable[[float, Callable[[], object]], float]


def limits(context: Context) -> Figures:
    """Measure rates of products, exp and copies, and the errors of float32 products against float64."""
    device, allowed = torch.device(context.device), budget(context)

    def rate(amount: float, task: Callable[[], object]) -> float:
        return amount / seconds_of(task, device, budget=allowed)

    found: Figures = {}
    divisor, many = (16, 2) if context.small else (1, 48)
    large, middle = (128, 64) if context.small else (8192, 2048)
    with float32_products(tf32=False):
        for count, size in ((1, large), *((many, width // divisor) for width in (1280, 640, 320))):
            name = f"float32 products, {count} of {size}, TFLOP/s"
            found[name] = _product_rate(device, rate, count, size, torch.float32)
        found["errors of float32 products"] = _product_error(device, middle)
    with float32_products(tf32=True):
        found["errors of tf32 products"] = _product_error(device, middle)
    found["float64 products, TFLOP/s"] = _product_rate(device, rate, 1, 2 * middle, torch.float64)
    in_cache, in_memory = (1 << 10, 1 << 14) if context.small else (1 << 21, 1 << 28)
    found["exp in the cache, billions a second"] = _exp_rate(device, rate, in_cache)
    found["exp in memory, billions a second"] = _exp_rate(device, rate, in_memory)
    found |= _row_rates(device, rate, max(1, in_memory // 1280))
    found |= _transfers(device, rate, 1 << (12 if context.small else 28))
    return found | _latencies(device, rate, 10 if context.small else 1000)


def _product_rate(device: torch.device, rate: Rate, count: int, size: int, dtype: torch.dtype) -> float:
    first, second = (torch.randn(count, size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(first)
    return rate(2e-12 * count * size**3, lambda: torch.bmm(first, second, out=out))


def _product_error(device: torch.device, size: int) -> float:
    """Return the relative error, in the Frobenius norm, of a product of this size."""
    first, second = (torch.randn(size, size, device=device) for _ in range(2))
    exact = first.double() @ second.double()
    return float(((first @ second).double() - exact).norm() / exact.norm())


def _exp_rate(device: torch.device, rate: Rate, count: int) -> float:
    numbers = torch.randn(count, device=device)
    out = torch.empty_like(numbers)
    return rate(1e-9 * count, lambda: torch.exp(numbers, out=out))


def _row_rates(device: torch.device, rate: Rate, count: int) -> Figures:
    rows = torch.randn(count, 1280, device=device)
    copy, moved = torch.empty_like(rows), 8e-9 * rows.numel()
    return {
        "softmax of rows of 1280, GB/s": rate(moved, lambda: torch.softmax(rows, dim=-1)),
        "copy on the device, GB/s read and written": rate(moved, lambda: copy.copy_(rows)),
    }


def _transfers(device: torch.device, rate: Rate, size: int) -> Figures:
    found: Figures = {}
    on_device = torch.empty(size, dtype=torch.uint8, device=device)
    for kind in ("pinned", "pageable"):
        try:
            host = torch.zeros(size, dtype=torch.uint8, pin_memory=kind == "pinned" and device.type == "cuda")
        except RuntimeError as error:
            found["pinning memory was refused"] = str(error).splitlines()[0]
            continue
        to_device, from_device = (lambda host=host: on_device.copy_(host)), (lambda host=host: host.copy_(on_device))
        found[f"copy to the device, {kind}, GB/s"] = rate(1e-9 * size, to_device)
        found[f"copy from the device, {kind}, GB/s"] = rate(1e-9 * size, from_device)
    return found


def _latencies(device: torch.device, rate: Rate, count: int) -> Figures:
    tiny = torch.zeros(1, device=device)

    def starts() -> None:
        for _ in range(count):
            tiny.add_(1)

    return {
        "starting an operation, us": 1e6 / rate(count, starts),
        "waiting for a number, us": 1e6 / rate(1, tiny.item),
    }


# --- attention --------------------------------------------------------------------------------------------------------


def attention(context: Context) -> Figures:
    """Measure candidates of `attention` per second over the nine output blocks, singly and in batches."""
    device, allowed = torch.device(context.device), budget(context)
    counts = (1, 4) if context.small else (1, 16, 64, 256, 1024)
    seconds: Figures = {}
    rates: dict[str, dict[str, float]] = {}
    with opened(context) as comparison:
        candidates = Candidates(comparison)
        blocks = comparison.layout.parse_blocks(BLOCKS)

        def built(*, tf32: bool = False, **keywords: Any) -> AttentionMetric:
            options = Options((AttentionOptions(seeds=[SEED], tf32=tf32),))
            return AttentionMetric(replace(comparison, options=options), blocks, batched=True, **keywords)

        def measured(name: str, metric: AttentionMetric, make: Callable[[int], Tensor], sizes: Sequence[int]) -> None:
            for count in sizes:
                given = make(count)
                taken = seconds_of(lambda m=metric, g=given: m.score(g), device, budget=allowed)
                rates.setdefault(name, {})[str(count)] = count / taken

        def timed(name: str, task: Callable[[], Any]) -> Any:
            synchronize(device)
            start = time.perf_counter()
            result = task()
            synchronize(device)
            seconds[name] = time.perf_counter() - start
            return result

        given = candidates.anywhere(4)

        def with_terms() -> tuple[Tensor, bool, int | None]:
            metric = timed("reading, projecting and the terms", built)
            timed("the line's matrices", lambda: metric.prepare(candidates.on_line(3)))
            measured("along a line", metric, candidates.on_line, counts)
            measured("anywhere", metric, candidates.anywhere, counts)
            by_terms = all(family.terms is not None for family in metric._scorer._families)
            return metric.score(given), by_terms, peak_memory(device)

        def without_terms() -> tuple[Tensor, Tensor]:
            metric = timed("reading and projecting", lambda: built(keep_terms=False))
            measured("anywhere, by products", metric, candidates.anywhere, counts[:3])
            fast = built(tf32=True, keep_terms=False)
            measured("anywhere, by products in tf32", fast, candidates.anywhere, counts[1:3])
            return metric.score(given), fast.score(given)

        exact, by_terms, memory = with_terms()
        in_products, in_tf32 = without_terms()
    logits = sum(_widths(context.small))
    difference = float((in_products - exact).abs().max())
    problems = [] if difference <= AGREEMENT else [f"terms and products differ by {difference:.1e}"]
    return {
        "candidates a second": rates,
        "most candidates a second": {name: max(each.values()) for name, each in rates.items()},
        "seconds, once": seconds,
        "logits of a candidate": logits,
        "terms were kept": by_terms,
        "peak of the GPU's memory, bytes": memory,
        "largest difference of terms and products": difference,
        "largest difference in tf32": float((in_tf32 - exact).abs().max()),
        "problems": problems,
    }


def _widths(small: bool) -> list[int]:
    """Return the number of logits of each of the nine output blocks."""
    return [(width // (16 if small else 1)) ** 2 for width in (1280, 640, 320) for _ in range(3)]


# --- Agreement --------------------------------------------------------------------------------------------------------


def agreement(context: Context) -> Figures:
    """Compare each metric on the device with the CPU, block by block; `encoder` has its own part."""
    device = torch.device(context.device)
    differences: dict[str, dict[str, float]] = {}
    seconds: dict[str, dict[str, float]] = {}
    with opened(context, "cpu") as comparison:
        layout = comparison.layout
        parts = comparison.scored_parts(layout.blocks)
        start = time.perf_counter()
        on_cpu = measure_statistics(comparison, layout.blocks)
        middle = time.perf_counter()
        exact, found = on_cpu.gram, grams_on_gpu(comparison, parts, device)
        seconds["statistics"] = {"processor": middle - start, "device": time.perf_counter() - middle}
        size = exact.diagonal(dim1=1, dim2=2).sqrt()
        relative = (found - exact).abs() / (size[:, :, None] * size[:, None]).clamp_min(1e-300)
        measured = {"processor": on_cpu, "device": replace(on_cpu, gram=found)}
        given = Candidates(comparison).anywhere(4)
        for name, kind in METRICS.items():
            if not kind.reads_statistics and name != "attention":
                continue
            scores: list[Tensor] = []
            blocks = kind.sees(layout)
            for place in ("processor", "device"):
                start = time.perf_counter()
                metric: Metric
                if name == "attention":
                    placed = replace(comparison, device=device) if place == "device" else comparison
                    metric = AttentionMetric(placed, blocks, batched=place == "device")
                else:
                    metric = build_metric(name, comparison, blocks, measured[place])
                scores.append(metric.score(given))
                seconds.setdefault(name, {})[place] = time.perf_counter() - start
            differences[name] = _largest(*scores, metric.blocks)
    worst = {name: max(of_blocks.values()) for name, of_blocks in differences.items()}
    problems = [f"{name} differs by {value:.1e}" for name, value in worst.items() if not value <= AGREEMENT]
    return {
        "largest difference of a metric": worst,
        "largest difference by block": differences,
        "largest relative difference of an inner product": float(relative.max()),
        "seconds": seconds,
        "problems": problems,
    }


def _largest(first: Tensor, second: Tensor, blocks: Sequence[str]) -> dict[str, float]:
    return dict(zip(blocks, (first - second).abs().amax(dim=0).tolist(), strict=True))


@contextmanager
def _encoder_comparison(context: Context) -> Iterator[Comparison]:
    """Open the family, or the demo's if sizes are small: small random text encoders have no tokenizer."""
    if not context.small:
        with opened(context) as comparison:
            yield comparison
        return
    paths = {name: DEMO / "models" / f"{name}.safetensors" for name in ("base", "bold", "slanted")}
    target = DEMO / "target.safetensors"
    with open_comparison(load_layout("sd1"), paths, target, base=paths["base"], device=context.device) as comparison:
        yield comparison


# --- Statistics, merge, fit -------------------------------------------------------------------------------------------


def inner_products(context: Context) -> Figures:
    """Measure the Gram matrices of all UNet tensors, from the page cache, on the device and on the CPU."""
    device = torch.device(context.device)
    with opened(context, "cpu") as comparison:
        blocks = [block for block in comparison.layout.blocks if block != comparison.layout.blocks[0]]
        parts = comparison.scored_parts(blocks)
        files = [*comparison.sources.values(), comparison.target]
        numbers = len(files) * sum(math.prod(part.shape) for part in parts)
        size = sum(math.prod(part.shape) * file.tensors[part.name].dtype.itemsize for part in parts for file in files)
        most = os.cpu_count() or 1
        seconds: dict[str, float] = {}

        def timed(name: str, task: Callable[[], object]) -> None:
            start = time.perf_counter()
            task()
            seconds[name] = time.perf_counter() - start

        threads = min(8, most)
        timed("first", lambda: grams_on_gpu(comparison, parts, device))
        for count in sorted({1, threads} if context.small else {1, 2, 4, threads}):
            timed(
                f"device, {count} threads", lambda count=count: grams_on_gpu(comparison, parts, device, threads=count)
            )
        timed(f"only reading, {threads} threads", lambda: _read(comparison, parts, threads))
        timed("processor", lambda: measure_grams(comparison, parts))
    best = min(value for name, value in seconds.items() if name.startswith("device"))
    return {
        "seconds": seconds,
        "numbers": numbers,
        "bytes": size,
        "GB/s": 1e-9 * size / best,
        "processor / device": seconds["processor"] / best,
        "peak of the GPU's memory, bytes": peak_memory(device),
    }


def _read(comparison: Comparison, parts: Sequence[StoredPart], threads: int) -> None:
    """Read all parts of all files once, and discard them."""
    files, length = [*comparison.sources.values(), comparison.target], 1 << 20

    def of_thread(number: int) -> None:
        buffer = torch.empty(8 * length, dtype=torch.uint8)
        readers = [PartReader(file, buffer) for file in files]
        for part in parts[number::threads]:
            size = math.prod(part.shape)
            for start in range(0, size, length):
                for reader in readers:
                    reader.read(part, start, min(start + length, size))
        for reader in readers:
            reader.close()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(of_thread, range(threads)))


def merging(context: Context) -> Figures:
    """Merge the article's eight output steps in float16, on the CPU."""
    recipe = load_recipe(context.family / "planted.yaml")
    output = context.family / "merged.safetensors"
    try:
        start = time.perf_counter()
        merge(recipe, context.family, output, embed_recipe=False)
        seconds = time.perf_counter() - start
        size = output.stat().st_size
        # The target was merged by the same recipe.
        same = _same_bytes(output, context.family / "target.safetensors")
    finally:
        output.unlink(missing_ok=True)
    return {"seconds": seconds, "bytes written": size, "GB/s written": 1e-9 * size / seconds,
            "problems": [] if same else ["the merge differs from the target"]}  # fmt: skip


def _same_bytes(first: Path, second: Path) -> bool:
    with first.open("rb") as first_file, second.open("rb") as second_file:
        while True:
            block = first_file.read(1 << 22)
            if block != second_file.read(1 << 22):
                return False
            if not block:
                return True


def fitting(context: Context) -> Figures:
    """Fit the article's eight output steps cold: by the command, then by `timed_fit.py`, which measures phases.

    Args:
        context: The context.

    Returns:
        The figures.

    Raises:
        RuntimeError: If a process fails.

    """
    trials = 3 if context.small else 40
    recipe = load_recipe(context.family / "planted.yaml")
    found: Figures = {"trials": trials}
    for number, name in enumerate(("command", "phases")):
        study = context.work / f"study-{name}"
        study.mkdir()
        save_recipe(article_recipe(ROOT / "studies" / "blessingmix" / "recipe.yaml"), study / "recipe.yaml")
        target = (context.family / "target.safetensors").as_posix()
        text = STUDY.format(target=target, blocks=BLOCKS, trials=trials)
        (study / "study.yaml").write_text(text, encoding="utf-8")
        options = [str(study), "--models", str(context.family), "--device", context.device]
        script = [str(ROOT / "studies" / "benchmarks" / "timed_fit.py")]
        if context.small and number == 0:
            # Other tests cover the command.
            continue
        command = [sys.executable, *(["-m", "optimizer", "fit"] if number == 0 else script), *options]
        if number == 1:
            command += ["--started", repr(time.time())]
        # An empty cache makes the fit compute the hashes.
        environment = {**os.environ, "BLOCKFIT_CACHE": str(study / "cache"),
                       "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:4])} ended with exit code {done.returncode}")
        if number == 0:
            found["seconds of the command"] = seconds
        else:
            found |= json.loads(done.stdout.splitlines()[-1])
        planted = coefficients(recipe, recipe.layout.parse_blocks(BLOCKS))
        best = coefficients(load_recipe(study / "best.yaml"), recipe.layout.parse_blocks(BLOCKS))
        found["largest error of a coefficient"] = largest(differences(best, planted))
    phases: Mapping[str, float] = found["seconds by phase"]
    found["reading, seconds"] = sum(
        phases.get(name, 0.0) for name in ("opening, fingerprints", "statistics", "projecting", "sha256 of all files")
    )
    return found


# --- encoder, pictures, memory ----------------------------------------------------------------------------------------


def encoder(context: Context) -> Figures:
    """Measure candidates of `encoder` per second on the shipped prompts; compare its scores with the CPU's."""
    device, allowed = torch.device(context.device), budget(context)
    with _encoder_comparison(context) as comparison:
        candidates, block = Candidates(comparison), comparison.layout.blocks[:1]
        start = time.perf_counter()
        metric = build_metric("encoder", comparison, block)
        synchronize(device)
        seconds = {"reading": time.perf_counter() - start}
        start = time.perf_counter()
        metric.prepare(candidates.on_line(3))
        synchronize(device)
        seconds["preparing a line"] = time.perf_counter() - start
        rates: Figures = {}
        for name, make in (("along a line", candidates.on_line), ("anywhere", candidates.anywhere)):
            for count in (1, 2) if context.small else (1, 8):
                given = make(count)
                taken = seconds_of(lambda g=given: metric.score(g), device, budget=allowed)
                rates.setdefault(name, {})[str(count)] = count / taken
        given = candidates.anywhere(2)
        on_cpu = build_metric("encoder", replace(comparison, device=torch.device("cpu")), block)
        difference = float((metric.score(given) - on_cpu.score(given)).abs().max())
        return {
            "candidates a second": rates,
            "seconds, once": seconds,
            "sources": len(comparison.sources),
            "peak of the GPU's memory, bytes": peak_memory(device),
            "largest difference from the processor": difference,
            "problems": [] if difference <= AGREEMENT else [f"encoder differs by {difference:.1e}"],
        }


def pictures(context: Context) -> Figures:
    """Draw a contact sheet of the target and one source, in float16 on a GPU."""
    from optimizer.pictures import preview  # noqa: PLC0415  takes seconds

    if context.small:
        target, candidate, steps, prompts = (
            DEMO / "target.safetensors",
            DEMO / "models" / "base.safetensors",
            1,
            ["one"],
        )
    else:
        target, candidate, steps = context.family / "target.safetensors", context.family / "one.safetensors", 20
        prompts = ["a lighthouse in a storm, oil painting"]
    start = time.perf_counter()
    found = preview(
        target, [candidate], context.work / "sheet.png", prompts=prompts, seeds=[0], steps=steps, device=context.device
    )
    seconds = time.perf_counter() - start
    device = torch.device(context.device)
    distance = found.latent_distances(found.others[0])[0]
    return {
        "seconds, two columns": seconds,
        "steps": steps,
        "side of a picture": found.target.drawn[0].picture.width,
        "latent distance": distance,
        "peak of the GPU's memory, bytes": peak_memory(device),
        "problems": [] if math.isfinite(distance) else ["the latents are not finite"],
    }


def memory(context: Context) -> Figures:
    """Score with little free GPU memory (fewer candidates at a time) and with none (on the CPU)."""
    device = torch.device(context.device)
    count = 8 if context.small else 256
    with opened(context) as comparison:
        blocks = comparison.layout.parse_blocks("OUT09-OUT11")
        given = Candidates(comparison).anywhere(count)
        with opened(context, "cpu") as on_cpu:
            exact = AttentionMetric(on_cpu, blocks).score(given[:4])

        def build(device_: torch.device) -> Metric:
            return AttentionMetric(replace(comparison, device=device_), blocks)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if device.type == "cpu":
                figures = _with_a_full_processor(build, given)
            else:
                figures = _with_a_full_gpu(build, given, device)
    after, moved = figures.pop("scores with little memory"), figures.pop("scores with none")
    messages = {str(each.message) for each in caught if issubclass(each.category, BlockfitWarning)}
    roomy = figures.pop("scores")
    figures["largest difference with little memory"] = float((after - roomy).abs().max())
    figures["largest difference of the processor's"] = float((moved - exact).abs().max())
    problems = []
    if figures["largest difference with little memory"] > AGREEMENT:
        problems.append("the scores change with little memory")
    if figures["largest difference of the processor's"] > 0:
        problems.append("the scores without memory differ from the processor's")
    if len(messages) != 1:
        problems.append(f"{len(messages)} warnings were given; one was expected")
    return {**figures, "problems": problems}


def _with_a_full_gpu(build: Callable[[torch.device], Metric], given: Tensor, device: torch.device) -> Figures:
    metric = MovableMetric(build, device, "the attention metric")
    roomy = metric.score(given)
    taken: list[Tensor] = []

    def take(leave: int) -> int:
        torch.cuda.empty_cache()
        while (free := torch.cuda.mem_get_info(device)[0]) > leave + (1 << 20):
            try:
                taken.append(torch.empty(max(1 << 20, (free - leave) // 2), dtype=torch.uint8, device=device))
            except torch.OutOfMemoryError:
                break
        return torch.cuda.mem_get_info(device)[0]

    before = torch.cuda.memory_stats(device).get("num_ooms", 0)
    left = take(96 << 20)
    # Torch relies on the driver's figure of free memory; if less is free, batches are halved.
    few = metric.score(given)
    halved = torch.cuda.memory_stats(device).get("num_ooms", 0) - before
    take(0)
    with suppress(torch.OutOfMemoryError):
        while True:
            taken.append(torch.empty(1 << 16, dtype=torch.uint8, device=device))
    moved = metric.score(given[:4])
    taken.clear()
    torch.cuda.empty_cache()
    return {"scores": roomy, "scores with little memory": few, "scores with none": moved,
            "bytes left": left, "times memory did not suffice": halved}  # fmt: skip


def _with_a_full_processor(build: Callable[[torch.device], Metric], given: Tensor) -> Figures:
    """Do the same without a GPU: a stand-in metric raises the error that a full GPU would raise."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    class Failing:
        """A metric that scores once and then runs out of memory."""

        def __init__(self, metric: Metric) -> None:
            self.metric, self.blocks, self.left = metric, metric.blocks, 1

        def prepare(self, coefficients: Tensor) -> None:
            self.metric.prepare(coefficients)

        def score(self, coefficients: Tensor) -> Tensor:
            self.left -= 1
            if self.left < 0:
                raise full
            return self.metric.score(coefficients)

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    metric = MovableMetric(lambda device: Failing(build(cpu)) if device == gpu else build(device), gpu, "it")
    scores = metric.score(given)
    moved = metric.score(given[:4])
    return {"scores": scores, "scores with little memory": scores, "scores with none": moved, "bytes left": None,
            "times memory did not suffice": 1}  # fmt: skip
