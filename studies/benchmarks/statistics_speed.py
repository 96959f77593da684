"""Measure the pass that computes Gram matrices against passes that only read the same tensors.

    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 8
    python studies/benchmarks/statistics_speed.py /tmp/family --repeats 5 --json figures.json

The passes take turns over the UNet tensors of eight sources and the target, which are in the page cache:

    buffered    a thread per core reads chunks into a buffer and converts them to float32: the fastest way to read
    mapped      convert each tensor of the mapped files to float32, the obvious way: `tensor.to(float32)`
    statistics  compute the Gram matrices of all sources and the target, in float64 throughout

Rates are medians over the repeats, in numbers read per second. Nothing is written to FOLDER.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measuring import report, warm_up
from recording import add_json_option

from optimizer.checkpoints import TensorSource
from optimizer.families import load_layout
from optimizer.merging import CHUNK
from optimizer.recipes import Part, PartReader
from optimizer.similarity import Comparison, measure_statistics, open_comparison

NAMES = ("base", "one", "two", "three", "four", "five", "six", "seven")
GOAL = 0.5


def read_buffered(checkpoints: Sequence[TensorSource], parts: Sequence[Part]) -> None:
    """Read all `parts` of all `checkpoints` in chunks and convert them to float32, with one thread per core."""

    def work(share: Sequence[Part]) -> None:
        torch.get_num_threads()  # without this call, a new thread adopts the process's count later
        torch.set_num_threads(1)
        buffer = torch.empty(CHUNK * 8, dtype=torch.uint8)
        readers = [PartReader(checkpoint, buffer) for checkpoint in checkpoints]
        converted = torch.empty(CHUNK, dtype=torch.float32)
        for part in share:
            size = torch.Size(part.shape).numel()
            for start in range(0, size, CHUNK):
                stop = min(start + CHUNK, size)
                for reader in readers:
                    converted[: stop - start].copy_(reader.read(part, start, stop))
        for reader in readers:
            reader.close()

    threads = os.cpu_count() or 1
    largest_first = sorted(parts, key=lambda part: -torch.Size(part.shape).numel())
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, largest_first[number::threads]) for number in range(threads)]:
            done.result()


def read_mapped(checkpoints: Sequence[TensorSource], parts: Sequence[Part]) -> None:
    """Convert all `parts` of all `checkpoints` to float32."""
    for part in parts:
        for checkpoint in checkpoints:
            part.read(checkpoint).to(torch.float32)


def measure(folder: Path, repeats: int, blocks: str) -> dict[str, Any]:
    """Return all figures for a family written by `make_checkpoints.py`."""
    layout = load_layout("sd1")
    paths = {name: folder / f"{name}.safetensors" for name in NAMES}
    chosen = layout.parse_blocks(blocks)
    warm_up([*paths.values(), folder / "target.safetensors"])
    threads = torch.get_num_threads()
    seconds: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    with open_comparison(layout, paths, folder / "target.safetensors", base=paths["base"]) as comparison:
        parts = comparison.scored_parts(chosen)
        checkpoints = [*comparison.sources.values(), comparison.target]
        numbers = len(checkpoints) * sum(torch.Size(part.shape).numel() for part in parts)
        passes = contenders(comparison, checkpoints, parts, chosen)
        for _ in range(repeats):
            for name, run in passes.items():
                torch.set_num_threads(threads)
                start, of_cpu = time.perf_counter(), time.process_time()
                run()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                processor.setdefault(name, []).append(time.process_time() - of_cpu)
                print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "load of the machine": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "sources": len(NAMES),
        "numbers read": numbers,
        "goal": GOAL,
        "median seconds": median,
        "least seconds": {name: min(each) for name, each in seconds.items()},
        "most seconds": {name: max(each) for name, each in seconds.items()},
        "median processor seconds": {name: statistics.median(each) for name, each in processor.items()},
        "seconds": seconds,
        "seconds of processor time": processor,
        "share of the rate of buffered": median["buffered"] / median["statistics"],
        "share of the rate of mapped": median["mapped"] / median["statistics"],
    }


def contenders(
    comparison: Comparison, checkpoints: Sequence[TensorSource], parts: Sequence[Part], blocks: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """Return the passes to be timed, by name."""
    return {
        "buffered": lambda: read_buffered(checkpoints, parts),
        "mapped": lambda: read_mapped(checkpoints, parts),
        "statistics": lambda: measure_statistics(comparison, blocks),
    }


def as_text(figures: Mapping[str, Any]) -> str:
    """Return the figures as a table, followed by the ratios and their goal."""
    lines = [
        f"load {figures['load of the machine']}",
        f"{figures['numbers read']:,} numbers read by each pass",
        "",
        "| | median s | all, s | processor s | millions a second |",
        "|---|---|---|---|---|",
    ]
    for name, each in figures["seconds"].items():
        middle = statistics.median(each)
        cpu = statistics.median(figures["seconds of processor time"][name])
        every = " ".join(f"{value:.2f}" for value in each)
        lines.append(f"| {name} | {middle:.2f} | {every} | {cpu:.2f} | {figures['numbers read'] / middle / 1e6:,.0f} |")
    shares = {name: 100 * figures[f"share of the rate of {name}"] for name in ("buffered", "mapped")}
    goal = f"(goal: at least {100 * GOAL:.0f} %)"
    lines += ["", *(f"statistics reach {share:.0f} % of the rate of {name} {goal}" for name, share in shares.items())]
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure the pass for statistics against passes that only read.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py --sources 8")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each pass (default 5)")
    parser.add_argument("--blocks", default="input,middle,output", help="blocks to read (default: the UNet)")
    add_json_option(parser, "statistics_speed")
    given = parser.parse_args()
    return report("statistics_speed", lambda: measure(given.folder, given.repeats, given.blocks), as_text, given.json)


if __name__ == "__main__":
    sys.exit(main())
