"""Measure how fast the encoder metric scores candidates, against a forward pass over prompts padded to 77 tokens.

    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 3
    python studies/benchmarks/encoder_speed.py /tmp/family --repeats 5 --json figures.json

All tasks score BASE on the 64 prompts that come with the layout, and take turns in one process:

    padded             transformers' CLIPTextModel with weights in memory: all prompts in one batch of 77 tokens each
    line               a trial along one free alpha, prepared beforehand: add up the weights, then encode the prompts
    anywhere           a trial with any coefficients: read and add up the weights of every source first
    line, clip skip 2  a trial that uses the last layer but one

The peak of anonymous memory covers building the metric, preparing it, and one trial of each kind, before anything else
is measured in the process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from full_size import opened_family
from measuring import AnonymousMemory, report
from recording import add_json_option
from torch import Tensor

from optimizer.checkpoints import pipeline_of
from optimizer.families import load_tokenizer, prompts_file, stored_part
from optimizer.recipes import load_recipe
from optimizer.similarity import EncoderOptions, Options, build_metric, read_prompts

GOAL, MEMORY_GOAL = 3, 3.0


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Return all figures for a family written by `make_checkpoints.py`."""
    from transformers import CLIPTextConfig, CLIPTextModel  # noqa: PLC0415  takes seconds

    planted = load_recipe(folder / "planted.yaml")
    random = torch.Generator().manual_seed(0)
    with opened_family(folder, planted) as comparison:
        groups, sources = len(comparison.groups), len(comparison.sources)
        start, end = torch.zeros(groups, sources, dtype=torch.float64), torch.rand(groups, sources, generator=random)
        start[:, list(comparison.sources.values()).index(comparison.reference)] = 1
        end = (end / end.sum(dim=-1, keepdim=True)).to(torch.float64)

        def on_line(count: int) -> Tensor:
            positions = torch.rand(count, 1, 1, generator=random, dtype=torch.float64)
            return start + positions * (end - start)

        def anywhere() -> Tensor:
            drawn = torch.rand(1, groups, sources, generator=random, dtype=torch.float64)
            return drawn / drawn.sum(dim=-1, keepdim=True)

        block = planted.layout.blocks[:1]
        load, once = os.getloadavg()[0], {}
        with AnonymousMemory() as memory:
            begin = time.perf_counter()
            metric = build_metric("encoder", comparison, block)
            once["making the metric"] = time.perf_counter() - begin
            once["preparing a line"] = seconds_of(lambda: metric.prepare(on_line(3)))
            metric.score(on_line(1))
            metric.score(anywhere())
        peak = memory.peak
        skipping = build_metric("encoder", replace(comparison, options=Options((EncoderOptions(clip_skip=2),))), block)
        skipping.prepare(on_line(3))

        pipeline = pipeline_of(comparison.target, planted.layout)
        config = CLIPTextConfig.from_pretrained(pipeline / "text_encoder", local_files_only=True)
        model = stored_part(CLIPTextModel(config)).eval()
        weights = {
            name: comparison.reference.tensor(planted.layout.readable_encoder.model + name).float()
            for name in model.state_dict()
        }
        model.load_state_dict(weights)
        prompts = list(read_prompts(prompts_file(pipeline)))
        tokenizer = load_tokenizer(pipeline)
        lengths = [len(tokens) for tokens in tokenizer(prompts)["input_ids"]]
        limit = config.max_position_embeddings
        padded = tokenizer(prompts, padding="max_length", max_length=limit, return_tensors="pt")["input_ids"]

        @torch.no_grad()
        def forward() -> Tensor:
            states: Tensor = model(padded).last_hidden_state
            return states

        tasks: dict[str, Callable[[], object]] = {
            "padded": forward,
            "line": lambda: metric.score(on_line(1)),
            "anywhere": lambda: metric.score(anywhere()),
            "line, clip skip 2": lambda: skipping.score(on_line(1)),
        }
        turns: dict[str, list[float]] = {name: [] for name in tasks}
        for turn in range(repeats + 1):
            for name, task in tasks.items():
                seconds = seconds_of(task)
                if turn:  # Turn 0 warms up memory and caches.
                    turns[name].append(seconds)
        # Scoring the reference itself must give the padded pass's cosine of reference and target.
        reference_states = forward()
        model.load_state_dict(
            {
                name: comparison.target.tensor(planted.layout.readable_encoder.model + name).float()
                for name in model.state_dict()
            }
        )
        cosines = torch.nn.functional.cosine_similarity(reference_states, forward(), dim=-1).double()
        plain = sum(float(row[:length].mean()) for row, length in zip(cosines, lengths, strict=True)) / len(lengths)
        difference = abs(float(metric.score(start[None])[0, 0]) - plain)
    median = {name: statistics.median(values) for name, values in turns.items()}
    return {
        "load before and after": [load, os.getloadavg()[0]],
        "sources": sources,
        "repeats": repeats,
        "prompts": len(prompts),
        "tokens": sum(lengths),
        "tokens of a padded prompt": limit,
        "parameters": sum(weight.numel() for weight in weights.values()),
        "anonymous memory, GB": peak / 1e9,
        "seconds, once": once,
        "seconds": turns,
        "median seconds": median,
        "least seconds": {name: min(values) for name, values in turns.items()},
        "padded / this": {name: median["padded"] / value for name, value in median.items()},
        "largest difference of a score from the padded pass": difference,
    }


def seconds_of(task: Callable[[], object]) -> float:
    """Return the seconds that the task takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| | median s | least | most | padded / this |", "|---|---:|---:|---:|---:|"]
    for name, values in figures["seconds"].items():
        times = " | ".join(f"{value:.2f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {name} | {times} | {figures['padded / this'][name]:.1f} |")
    lines += ["", f"Goal: {GOAL}. {figures['prompts']} prompts of {figures['tokens']} tokens in all."]
    lines += [f"{figures['parameters']:,} parameters, {figures['sources']} sources."]
    lines += [f"{name}: {value:.2f} s." for name, value in figures["seconds, once"].items()]
    lines += [f"Peak of anonymous memory: {figures['anonymous memory, GB']:.2f} GB (goal {MEMORY_GOAL:g})."]
    lines += [f"{name}: {value:.1e}." for name, value in figures.items() if name.startswith("largest")]
    before, after = figures["load before and after"]
    lines += [f"Load {before:.1f} before, {after:.1f} after."]
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure how fast the encoder metric scores candidates.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    add_json_option(parser, "encoder_speed")
    given = parser.parse_args()
    return report(
        "encoder_speed", lambda: measure(given.folder, given.repeats), as_markdown, given.json, peers=("transformers",)
    )


if __name__ == "__main__":
    sys.exit(main())
