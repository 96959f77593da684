"""Measure how fast candidates of the attention metric are scored, against one naive pairwise comparison.

    python studies/benchmarks/make_checkpoints.py /tmp/family
    python studies/benchmarks/attention_speed.py /tmp/family --repeats 9 --json figures.json

On OUT03-OUT11, in turns in one process:

    naive              two models whose weights and random inputs are in memory: Q, K, V, softmax, cosine
    terms, alone       a candidate anywhere, one in a call: its logits are added up from their terms
    terms, together    the same, many in a call
    line, alone        a candidate that differs from others by one alpha, one in a call: from three matrices
    line, together     the same, many in a call
    exp, exp2          nothing but these of as many numbers as a candidate has logits: what no way can do without

The matrices and terms are made beforehand, which is timed apart. Candidates are new in each turn. All seconds are for
one candidate. Besides the medians all turns are kept, with the machine's load before and after.
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
    """All figures of a family that `make_checkpoints.py` made."""
    planted = load_recipe(folder / "planted.yaml")
    random = torch.Generator().manual_seed(0)
    with opened_family(folder, planted) as comparison:
        groups, sources = len(comparison.groups), len(comparison.sources)

        def anywhere(count: int) -> Tensor:
            drawn = torch.rand(count, groups, sources, generator=random, dtype=torch.float64)
            return drawn / drawn.sum(dim=-1, keepdim=True)

        # From the very model that is compared naively, so that one candidate must score what it does.
        start, end = torch.zeros(groups, sources, dtype=torch.float64), anywhere(1)[0]
        start[:, list(comparison.sources.values()).index(comparison.reference)] = 1

        def on_line(count: int) -> Tensor:
            positions = torch.rand(count, 1, 1, generator=random, dtype=torch.float64)
            return start + positions * (end - start)

        load = os.getloadavg()[0]
        metric = build_metric("attention", comparison, planted.layout.parse_blocks(BLOCKS))
        one, other = (attention_weights(each, metric.blocks) for each in (comparison.reference, comparison.target))
        inputs = random_inputs(one)
        exponents = [torch.randn(each.shape).sub_(10) for each in inputs]
        powers = [torch.empty_like(each) for each in exponents]

        def apply(function: Callable[..., Tensor]) -> None:
            for exponent, power in zip(exponents, powers, strict=True):
                function(exponent, out=power)

        first = {
            "making the terms, with two candidates": seconds_of(lambda: metric.score(anywhere(2))),
            "making the line's matrices": seconds_of(lambda: metric.prepare(on_line(3))),
        }
        # Each with the number of candidates that one call scores.
        tasks: dict[str, tuple[int, Callable[[], object]]] = {
            "naive": (1, lambda: naive(one, other, inputs)),
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
                if turn:  # The first one finds memory and caches as no later one does.
                    turns[name].append(seconds)
        candidate = on_line(1)
        plain = torch.tensor(naive(one, other, inputs), dtype=torch.float64)
        from_naive = (metric.score(start[None])[0] - plain).abs().max()
        from_company = (metric.score(candidate) - metric.score(candidate.repeat(together, 1, 1))).abs().max()
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
        "largest difference of a score alone and together": float(from_company),
        "largest difference of a block's score from naive": float(from_naive),
    }


def seconds_of(task: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def as_markdown(figures: Mapping[str, Any]) -> str:
    """The figures as a table."""
    lines = ["| per candidate | median ms | least | most | naive / this |", "|---|---:|---:|---:|---:|"]
    for name, values in figures["seconds"].items():
        times = " | ".join(f"{1000 * value:.2f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {name} | {times} | {figures['naive / this'][name]:.1f} |")
    lines += ["", f"Goal: {GOAL}. {figures['candidates in a call, together']} candidates in a call, together."]
    lines += [f"{name}: {value:.2f} s." for name, value in figures["seconds, once"].items()]
    lines += [f"{name}: {value:.1e}." for name, value in figures.items() if name.startswith("largest")]
    before, after = figures["load before and after"]
    lines += [f"Load {before:.1f} before, {after:.1f} after."]
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description="Measure how fast the attention metric scores candidates.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default 9)")
    parser.add_argument("--together", type=int, default=16, help="candidates in a call (default 16)")
    add_json_option(parser, "attention_speed")
    given = parser.parse_args()
    return report(
        "attention_speed", lambda: measure(given.folder, given.repeats, given.together), as_markdown, given.json
    )


if __name__ == "__main__":
    sys.exit(main())
