"""Measure how fast the attention metric scores candidates, against one naive comparison of two models.

    python studies/benchmarks/make_checkpoints.py /tmp/family
    python studies/benchmarks/attention_speed.py /tmp/family --repeats 9 --json figures.json

All tasks score OUT03-OUT11 and take turns in one process:

    naive              compare two models, with weights and random inputs in memory: Q, K, V, softmax, cosine
    terms, alone       score one candidate with any coefficients per call; its logits are the sum of stored terms
    terms, together    the same, with many candidates per call
    line, alone        score one candidate on a line of one alpha per call, from three stored matrices
    line, together     the same, with many candidates per call
    exp, exp2          evaluate only exp or exp2 of as many numbers as a candidate has logits: a lower bound

The matrices and terms are computed beforehand and timed separately. Every turn scores new candidates. All times are
seconds per candidate. The JSON has every turn besides the medians, and the machine's load before and after.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from full_size import BLOCKS, attention_weights, naive, opened_family, random_inputs
from measuring import report
from recording import add_json_option
from torch import Tensor

from optimizer.recipes import load_recipe
from optimizer.similarity import build_metric

GOAL = 80


def measure(folder: Path, repeats: int, together: int) -> dict[str, Any]:
    """Return all figures for a family written by `make_checkpoints.py`."""
    planted = load_recipe(folder / "planted.yaml")
    random = torch.Generator().manual_seed(0)
    with opened_family(folder, planted) as comparison:
        groups, sources = len(comparison.groups), len(comparison.sources)

        def anywhere(count: int) -> Tensor:
            drawn = torch.rand(count, groups, sources, generator=random, dtype=torch.float64)
            return drawn / drawn.sum(dim=-1, keepdim=True)

        # The line starts at the model that is compared naively, so one candidate must get the same score.
        start, end = torch.zeros(groups, sources, dtype=torch.float64), anywhere(1)[0]
        start[:, list(comparison.sources.values()).index(comparison.reference)] = 1

        def on_line(count: int) -> Tensor:
            positions = torch.rand(count, 1, 1, generator=random, dtype=torch.float64)
            return start + positions * (end - start)

        load = os.getloadavg()[0]
        metric = build_metric("attention", comparison, planted.layout.parse_blocks(BLOCKS))
        base, target = (attention_weights(each, metric.blocks) for each in (comparison.reference, comparison.target))
        inputs = random_inputs(base)
        exponents = [torch.randn(each.shape).sub_(10) for each in inputs]
        powers = [torch.empty_like(each) for each in exponents]

        def apply(function: Callable[..., Tensor]) -> None:
            for exponent, power in zip(exponents, powers, strict=True):
                function(exponent, out=power)

        first = {
            "making the terms, with two candidates": seconds_of(lambda: metric.score(anywhere(2))),
            "making the line's matrices": seconds_of(lambda: metric.prepare(on_line(3))),
        }
        # (candidates scored per call, task)
        tasks: dict[str, tuple[int, Callable[[], object]]] = {
            "naive": (1, lambda: naive(base, target, inputs)),
            "terms, alone": (1, lambda: metric.score(anywhere(1))),
            "terms, together": (together, lambda: metric.score(anywhere(together))),
            "line, alone": (1, lambda: metric.score(on_line(1))),
            "line, together": (together, lambda: metric.score(on_line(together))),
            "exp": (1, lambda: apply(torch.exp)),
            "exp2": (1, lambda: apply(torch.exp2)),
        }
        turns: dict[str, list[float]] = {name: [] for name in tasks}
        for turn in range(repeats + 1):
            for name, (count, task) in tasks.items():
                seconds = seconds_of(task) / count
                if turn:  # Turn 0 warms up memory and caches.
                    turns[name].append(seconds)
        candidate = on_line(1)
        plain = torch.tensor(naive(base, target, inputs), dtype=torch.float64)
        from_naive = (metric.score(start[None])[0] - plain).abs().max()
        from_together = (metric.score(candidate) - metric.score(candidate.repeat(together, 1, 1))).abs().max()
    median = {name: statistics.median(values) for name, values in turns.items()}
    return {
        "load before and after": [load, os.getloadavg()[0]],
        "sources": sources,
        "repeats": repeats,
        "blocks": len(metric.blocks),
        "candidates in a call, together": together,
        "logits of a candidate": sum(each.numel() for each in inputs),
        "seconds, once": first,
        "seconds": turns,
        "median seconds": median,
        "naive / this": {name: median["naive"] / value for name, value in median.items()},
        "largest difference of a score alone and together": float(from_together),
        "largest difference of a block's score from naive": float(from_naive),
    }


def seconds_of(task: Callable[[], object]) -> float:
    """Return the seconds that the task takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| per candidate | median ms | least | most | naive / this |", "|---|---:|---:|---:|---:|"]
    for name, values in figures["seconds"].items():
        times = " | ".join(f"{1000 * value:.2f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {name} | {times} | {figures['naive / this'][name]:.1f} |")
    lines += ["", f"Goal: {GOAL}. Together: {figures['candidates in a call, together']} candidates per call."]
    lines += [f"{name}: {value:.2f} s." for name, value in figures["seconds, once"].items()]
    lines += [f"{name}: {value:.1e}." for name, value in figures.items() if name.startswith("largest")]
    before, after = figures["load before and after"]
    lines += [f"Load {before:.1f} before, {after:.1f} after."]
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure how fast the attention metric scores candidates.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default 9)")
    parser.add_argument("--together", type=int, default=16, help="candidates per call (default 16)")
    add_json_option(parser, "attention_speed")
    given = parser.parse_args()
    return report(
        "attention_speed", lambda: measure(given.folder, given.repeats, given.together), as_markdown, given.json
    )


if __name__ == "__main__":
    sys.exit(main())
