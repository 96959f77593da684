"""Measure a fit at full size, and check its figures against plain recomputation.

    python studies/benchmarks/make_checkpoints.py /tmp/family
    python studies/benchmarks/full_size.py /tmp/family --trials 60 --json figures.json

The script fits a recipe of three steps over six checkpoints to the target on OUT03-OUT11 by `attention`. It reports

* the seconds of each phase,
* the peak of anonymous memory (pages of mapped files do not count, because the system can drop them),
* the time of one trial against the naive comparison of two merged models in memory, side by side in the same run.

It compares the similarities with those of merged tensors, and the fitted coefficients with the planted ones. All files
are read once before anything is timed, so that the page cache holds them if it has room.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import torch
from measuring import AnonymousMemory, report, warm_up
from recording import add_json_option
from timed_fit import Clock
from torch import Tensor

from optimizer.checkpoints import TensorSource, open_checkpoint
from optimizer.merging import merge
from optimizer.recipes import Algebra, Alpha, Free, Recipe, Space, load_recipe, parameters_of, save_recipe
from optimizer.search import FitResult, fit
from optimizer.similarity import (
    AttentionOptions,
    Comparison,
    Metric,
    Options,
    build_metric,
    measure_statistics,
    open_comparison,
)
from optimizer.studies import load_study

BLOCKS = "OUT03-OUT11"
SEED = 114514
STUDY = """\
recipe: recipe.yaml
target: {{file: target.safetensors}}
base: base
stages:
  - {{name: outputs, blocks: {blocks}, metric: attention, strategy: joint, trials: {trials}, seeds: [{seed}]}}
"""
# The candidate whose similarities are checked: {step: alpha in every block}. It is not the planted recipe.
CANDIDATE = {"FIRST": 0.25, "SECOND": 0.35, "THIRD": 0.15}

Weights = tuple[Tensor, Tensor, Tensor]


# --- The fit ----------------------------------------------------------------------------------------------------------


def run_fit(folder: Path, planted: Recipe, trials: int) -> tuple[FitResult, dict[str, object]]:
    """Fit the recipe with free alphas in place of the planted ones; return the result and its figures."""
    blocks = planted.layout.parse_blocks(BLOCKS)
    zeros = {block: 0.0 for block in planted.layout.blocks if block not in blocks}
    free_alpha = Alpha(zeros, (Free(0.0, 1.0, blocks),))
    study_folder = folder / "study"
    study_folder.mkdir(exist_ok=True)
    steps = tuple(replace(step, alpha=free_alpha) for step in planted.steps)
    save_recipe(replace(planted, name="fitted", steps=steps), study_folder / "recipe.yaml")
    text = STUDY.format(blocks=BLOCKS, trials=trials, seed=SEED)
    (study_folder / "study.yaml").write_text(text, encoding="utf-8")
    study = load_study(study_folder, [folder])
    with AnonymousMemory() as memory:
        clock = Clock()
        result = fit(study, fresh=True, events=clock.events())
        phases = clock.phases()
    between = [later - earlier for earlier, later in zip(clock.trials, clock.trials[1:], strict=False)]
    figures: dict[str, object] = {
        "trials": trials,
        "fit: seconds": sum(phases.values()),
        "fit: seconds by phase": phases,
        "fit: seconds of the first trial": clock.trials[0] - clock.opened,
        "fit: median seconds of a trial, Optuna included": statistics.median(between or [float("nan")]),
        "fit: peak of anonymous memory, bytes": memory.peak,
        "fit: anonymous memory before, bytes": memory.before,
    }
    return result, figures


def compare_coefficients(result: FitResult, planted: Recipe, comparison: Comparison) -> dict[str, object]:
    """Return the errors of the coefficients of the best trial and of the exact optima, against the planted ones."""
    blocks = planted.layout.parse_blocks(BLOCKS)
    rows = [row for row, group in enumerate(comparison.groups) if group.block in blocks]
    algebra = Algebra(planted, comparison.groups, tuple(comparison.sources))
    truth = algebra.coefficients(algebra.starting_alphas())[0]
    search = result.searches[-1]
    space = Space(algebra, search.parameters)
    assert search.best is not None
    points = {"best trial": search.best.alphas}
    points |= {f"exact {name}": exact.point for name, exact in search.exact.items()}
    worst = {}
    for name, point in points.items():
        values = torch.tensor([[point[free.name] for free in search.parameters]], dtype=torch.float64)
        worst[name] = float((space.coefficients(values)[0] - truth)[rows].abs().max())
    return {
        "worst difference from the planted coefficients": worst,
        "best trial": f"{search.best.number}, {search.best.origin}",
        "best similarity": search.best.similarity,
    }


# --- The naive way ----------------------------------------------------------------------------------------------------


def attention_weights(checkpoint: TensorSource, blocks: Sequence[str]) -> list[Weights]:
    """Return to_q, to_k and to_v of each block's self-attention, in float32."""
    assert checkpoint.layout is not None
    prefixes = [prefix for block in blocks for prefix in checkpoint.layout.attention[block]]
    return [
        (read("q"), read("k"), read("v"))
        for prefix in prefixes
        for read in [lambda part, prefix=prefix: checkpoint.tensor(f"{prefix}.to_{part}.weight").to(torch.float32)]
    ]


def random_inputs(weights: Sequence[Weights]) -> list[Tensor]:
    """Return the random inputs X [d, d] of each block, drawn in order from one seeded generator."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(value.shape[1], value.shape[1], generator=generator) for _, _, value in weights]


def attention_output(weights: Weights, x: Tensor) -> Tensor:
    """Return the attention output [d, d] of one block on its random inputs, straight from the definition."""
    query, key, value = weights
    return torch.softmax((x @ query.T) @ (x @ key.T).T, dim=-1) * (x @ value.T).sum(dim=0)


def naive(first: Sequence[Weights], second: Sequence[Weights], inputs: Sequence[Tensor]) -> list[float]:
    """Return the similarity of two models for each block, straight from the definition."""
    similarities = []
    for pair, x in zip(zip(first, second, strict=True), inputs, strict=True):
        outputs = [attention_output(weights, x) for weights in pair]
        similarities.append(float(torch.cosine_similarity(outputs[0], outputs[1], dim=-1).mean()))
    return similarities


def time_side_by_side(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each task; tasks take turns, so a busy machine slows them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def time_trials(comparison: Comparison, metric: Metric, recipe: Recipe, repeats: int) -> dict[str, object]:
    """Time a trial against the naive comparison, whose two float32 models and random inputs are in memory."""
    free = parameters_of(recipe, [step.name for step in recipe.steps])
    space = Space(Algebra(recipe, comparison.groups, tuple(comparison.sources)), free)
    base, target = (attention_weights(each, metric.blocks) for each in (comparison.reference, comparison.target))
    inputs = random_inputs(base)
    random = torch.Generator().manual_seed(0)

    def trial() -> None:
        metric.score(space.coefficients(torch.rand(1, len(free), generator=random, dtype=torch.float64)))

    trial()
    seconds = time_side_by_side(
        {"naive": lambda: naive(base, target, inputs), "trial": trial, "drawing": lambda: random_inputs(base)}, repeats
    )
    return {
        "naive comparison: median seconds": seconds["naive"],
        "scoring a trial: median seconds": seconds["trial"],
        "naive / trial": seconds["naive"] / seconds["trial"],
        "drawing the random inputs (not in the naive time): median seconds": seconds["drawing"],
    }


def time_statistics(comparison: Comparison, blocks: Sequence[str], repeats: int) -> dict[str, object]:
    """Time statistics against only reading the same tensors and converting them to float32."""
    parts = comparison.scored_parts(blocks)
    checkpoints = [*comparison.sources.values(), comparison.target]

    def read() -> None:
        for part in parts:
            for checkpoint in checkpoints:
                part.read(checkpoint).to(torch.float32)

    tasks = {"reading": read, "statistics": lambda: measure_statistics(comparison, blocks)}
    seconds = time_side_by_side(tasks, repeats)
    return {
        "statistics: median seconds": seconds["statistics"],
        "reading the same tensors as float32: median seconds": seconds["reading"],
        "reading / statistics": seconds["reading"] / seconds["statistics"],
    }


# --- Checks -----------------------------------------------------------------------------------------------------------


def check(folder: Path, planted: Recipe, comparison: Comparison, attention: Metric) -> dict[str, object]:
    """Return the worst differences between similarities from coefficients and from merged tensors."""
    values = [Alpha(dict.fromkeys(planted.layout.blocks, CANDIDATE[step.name])) for step in planted.steps]
    steps = [replace(step, alpha=alpha) for step, alpha in zip(planted.steps, values, strict=True)]
    recipe = replace(planted, name="candidate", steps=tuple(steps))
    algebra = Algebra(recipe, comparison.groups, tuple(comparison.sources))
    coefficients = algebra.coefficients(algebra.starting_alphas())
    merged = folder / "candidate.safetensors"
    paths = {name: folder / model.file for name, model in recipe.models.items()}
    try:
        with AnonymousMemory() as memory:
            start = time.perf_counter()
            merge(recipe, paths, merged, dtype=torch.float32, embed_recipe=False)
            seconds = time.perf_counter() - start
        with open_checkpoint(merged) as opened:
            found, target = (attention_weights(each, attention.blocks) for each in (opened, comparison.target))
            plain = torch.tensor(naive(found, target, random_inputs(found)), dtype=torch.float64)
    finally:
        merged.unlink(missing_ok=True)
    worst = {"attention": float((attention.score(coefficients)[0] - plain).abs().max())}
    measured = measure_statistics(comparison, attention.blocks)
    exact = float64_cosines(comparison, coefficients[0], attention.blocks)
    for name, expected in exact.items():
        metric = build_metric(name, comparison, attention.blocks, measured)
        scores = dict(zip(metric.blocks, metric.score(coefficients)[0].tolist(), strict=True))
        worst[name] = max(abs(scores[block] - value) for block, value in expected.items())
    return {
        "worst difference from merged tensors": worst,
        "merge in fp32: seconds": seconds,
        "merge in fp32: anonymous memory it adds, bytes": memory.peak - memory.before,
    }


def float64_cosines(comparison: Comparison, coefficients: Tensor, blocks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return `weights` and `delta` for each block, from tensors merged in float64."""
    sums = {name: {block: torch.zeros(3, dtype=torch.float64) for block in blocks} for name in ("weights", "delta")}
    sources = list(comparison.sources.values())
    for part in comparison.scored_parts(blocks):
        row = coefficients[comparison.group_of(part)].tolist()
        merged = torch.zeros(part.shape, dtype=torch.float64)
        for position in part.holders:
            merged.add_(part.read(sources[position]).to(torch.float64), alpha=row[position])
        target = part.read(comparison.target).to(torch.float64)
        base = part.read(comparison.reference).to(torch.float64)
        for name, start in (("weights", torch.zeros_like(base)), ("delta", base)):
            found, expected = (merged - start).flatten(), (target - start).flatten()
            sums[name][part.block] += torch.stack([found @ expected, found @ found, expected @ expected])
    return {
        name: {block: float(both / (first * second).sqrt()) for block, (both, first, second) in of_blocks.items()}
        for name, of_blocks in sums.items()
    }


# --- Report -----------------------------------------------------------------------------------------------------------


@contextmanager
def opened_family(folder: Path, planted: Recipe) -> Iterator[Comparison]:
    """Open the planted recipe's sources and the target."""
    sources = {name: folder / model.file for name, model in planted.models.items()}
    target = folder / "target.safetensors"
    with open_comparison(
        planted.layout, sources, target, base=sources["base"], options=Options((AttentionOptions(seeds=[SEED]),))
    ) as comparison:
        yield comparison


def measure(folder: Path, trials: int, repeats: int) -> dict[str, object]:
    """Return all figures for a family written by `make_checkpoints.py`."""
    planted = load_recipe(folder / "planted.yaml")
    paths = [*(folder / model.file for model in planted.models.values()), folder / "target.safetensors"]
    figures: dict[str, object] = {
        "files": len(paths),
        "bytes of the files": sum(path.stat().st_size for path in paths),
        "bytes of a file": max(path.stat().st_size for path in paths),
        "bytes hashed": sum(path.stat().st_size for path in paths),
        "steps": len(planted.steps),
        "free alphas of a step": len(planted.layout.parse_blocks(BLOCKS)),
        "first pass over the files: seconds": warm_up(paths),
        "first pass once more, from the page cache: seconds": warm_up(paths),
    }
    result, of_fit = run_fit(folder, planted, trials)
    figures |= of_fit
    with opened_family(folder, planted) as comparison:
        blocks = planted.layout.parse_blocks(BLOCKS)
        figures |= compare_coefficients(result, planted, comparison)
        metric = build_metric("attention", comparison, blocks)
        figures |= time_trials(comparison, metric, result.study.recipe, repeats)
        figures |= time_statistics(comparison, blocks, max(1, repeats // 3))
        figures |= check(folder, planted, comparison, metric)
    return figures


def as_markdown(figures: Mapping[str, object]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| | |", "|---|---|"]

    def add(name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for inner, number in value.items():
                add(f"{name}: {inner}", number)
        elif isinstance(value, float) and name.endswith("bytes"):
            lines.append(f"| {name.removesuffix(', bytes')} | {value / 1e9:.2f} GB |")
        else:
            lines.append(f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |")

    for name, value in figures.items():
        add(name, value)
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure a fit at full size, and check its figures.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7, help="turns of the tasks timed side by side (default 7)")
    add_json_option(parser, "full_size")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return report(
        "full_size",
        lambda: measure(given.folder, given.trials, given.repeats),
        as_markdown,
        given.json,
        peers=("optuna",),
    )


if __name__ == "__main__":
    sys.exit(main())
