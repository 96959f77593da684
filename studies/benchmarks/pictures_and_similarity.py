"""Test whether similarity predicts pictures: score random merges of the demo's family by each metric, and draw them.

    python studies/benchmarks/pictures_and_similarity.py --plot figure.png --json figures.json

Every merge takes three of the family's finetunes at random. It adds to the first the differences of the other two from
the base, with alphas that vary from block to block around a random mean. Every metric scores the merge against the
demo's target, on all blocks that the metric sees. The merge and the target draw the ten digits from the same noise. The
distance between two models is the root mean square difference over all pictures, of RGB in [0, 1] and of final latents.

A metric is good if its similarities rank the merges as the distances do. The measure is Spearman's rank correlation of
similarity and nearness (minus the distance), which is 1 if both orders are the same. Its uncertainty is the 95 %
interval of 5,000 bootstrap samples of the merges; the difference from the best metric has an interval from the same
samples. Merges with much of `inverted` draw black on white, far from all others, so the merges without it are also
analysed separately.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import report
from recording import add_json_option
from scipy.stats import rankdata

from optimizer.families import load_layout
from optimizer.merging import merge
from optimizer.pictures import draw, latent_distance, open_pipeline, pixel_distance
from optimizer.recipes import Alpha, Model, Recipe, Step
from optimizer.similarity import METRICS, compare, total_similarity

DEMO = Path(__file__).parents[1] / "demo"
FINETUNES = ("bold", "inverted", "outline", "slanted", "small")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DISTANCES = ("pixels", "latents")
GUIDANCE = 2.5  # that of the demo's pictures
SAMPLES = 5000


def random_recipe(random: np.random.Generator) -> Recipe:
    """Return a recipe of two steps over three random finetunes, with alphas in [0, 1] around a random mean."""
    layout = load_layout("sd1")
    first, second, third = random.choice(FINETUNES, 3, replace=False).tolist()

    def alpha() -> Alpha:
        mean = random.uniform(0.0, 1.0)
        numbers = np.clip(mean + 0.2 * random.standard_normal(len(layout.blocks)), 0.0, 1.0)
        return Alpha(dict(zip(layout.blocks, numbers.tolist(), strict=True)))

    steps = (
        Step("T1", "add_difference", first, second, "base", alpha()),
        Step("T2", "add_difference", "T1", third, "base", alpha()),
    )
    models = {name: Model(f"{name}.safetensors") for name in ("base", first, second, third)}
    return Recipe("random", layout, models, steps, "T2")


def measure(merges: int, seeds: Sequence[int], steps: int, seed: int) -> dict[str, Any]:
    """Score and draw random merges.

    Args:
        merges: The number of merges.
        seeds: Seeds of the pictures' noise.
        steps: Steps of the pictures' sampler.
        seed: The seed of the merges and of the bootstrap samples.

    Returns:
        Similarities by metric and distances, one number per merge, and their rank correlations.

    """
    random, target = np.random.default_rng(seed), DEMO / "target.safetensors"
    base = DEMO / "models" / "base.safetensors"
    prompts = [f"a digit {digit}" for digit in DIGITS]

    def drawn(path: Path) -> list[Any]:
        return draw(open_pipeline(path), prompts=prompts, seeds=seeds, steps=steps, guidance=GUIDANCE)

    expected = drawn(target)
    finetunes: list[list[str]] = []
    similarities: dict[str, list[float]] = {name: [] for name in METRICS}
    distances: dict[str, list[float]] = {name: [] for name in DISTANCES}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merge.safetensors"
        for number in range(merges):
            recipe = random_recipe(random)
            finetunes.append([name for name in recipe.models if name != "base"])
            paths = {name: DEMO / "models" / model.file for name, model in recipe.models.items()}
            merge(recipe, paths, path, dtype=torch.float32, embed_recipe=False)
            for name in METRICS:
                similarities[name].append(total_similarity(compare(path, target, metric=name, base=base)))
            pictures = drawn(path)
            for name, distance in (("pixels", pixel_distance), ("latents", latent_distance)):
                squares = [distance(*pair) ** 2 for pair in zip(pictures, expected, strict=True)]
                distances[name].append(math.sqrt(sum(squares) / len(squares)))
            if sys.stderr.isatty():
                print(f"\r{number + 1}/{merges}", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "pictures of each": len(expected), **judged(finetunes, similarities, distances, seed)}


def judged(
    finetunes: Sequence[Sequence[str]],
    similarities: Mapping[str, Sequence[float]],
    distances: Mapping[str, Sequence[float]],
    seed: int,
) -> dict[str, Any]:
    """Return the measured merges with their rank correlations, over all merges and over those without `inverted`."""
    upright = [number for number, names in enumerate(finetunes) if "inverted" not in names]
    found: dict[str, Any] = {}
    for title, chosen in (("all", range(len(finetunes))), ("without inverted", upright)):
        scores = {name: [values[number] for number in chosen] for name, values in similarities.items()}
        found[title] = {
            name: correlations(scores, [distances[name][number] for number in chosen], seed) for name in DISTANCES
        }
    return {
        "merges": {"all": len(finetunes), "without inverted": len(upright)},
        "finetunes": finetunes,
        "similarity": similarities,
        "distance": distances,
        "rank correlation": found,
    }


def correlations(
    similarities: Mapping[str, Sequence[float]], distance: Sequence[float], seed: int
) -> dict[str, dict[str, Any]]:
    """Return Spearman's `rho` by metric, with its 95 % `interval` and the interval `below the best` metric."""
    names, nearness = list(similarities), -np.asarray(distance)
    scores = np.asarray([similarities[name] for name in names])
    rho = _spearman(scores, nearness)
    best = int(np.argmax(rho))
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(SAMPLES):
        chosen = random.integers(0, len(nearness), len(nearness))
        samples.append(_spearman(scores[:, chosen], nearness[chosen]))
    drawn = np.asarray(samples)

    def interval(values: np.ndarray[Any, Any]) -> list[float]:
        return [float(value) for value in np.nanpercentile(values, (2.5, 97.5))]

    return {
        name: {
            "rho": float(rho[row]),
            "interval": interval(drawn[:, row]),
            "below the best": interval(drawn[:, best] - drawn[:, row]),
        }
        for row, name in enumerate(names)
    }


def _spearman(scores: np.ndarray[Any, Any], nearness: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the rank correlation [metrics] of each row of `scores` [metrics, merges] with `nearness` [merges]."""
    ranks, expected = rankdata(scores, axis=1), rankdata(nearness)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    expected = expected - expected.mean()
    # A bootstrap sample that repeats a single merge has no order: its correlation is NaN.
    with np.errstate(invalid="ignore"):
        return np.asarray(ranks @ expected / np.sqrt((ranks**2).sum(axis=1) * (expected**2).sum()))


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    lines = []
    for title, by_distance in figures["rank correlation"].items():
        lines.append(f"| {title}, {figures['merges'][title]} merges | " + " | below the best | ".join(DISTANCES))
        lines[-1] += " | below the best |"
        lines.append("|---|" + "---:|---:|" * len(DISTANCES))
        for metric in figures["similarity"]:
            cells = []
            for name in DISTANCES:
                found = by_distance[name][metric]
                (low, high), (least, most) = found["interval"], found["below the best"]
                off = "best" if least == most == 0 else f"{least:+.2f} to {most:+.2f}"
                cells.append(f"{found['rho']:.2f} ({low:.2f} to {high:.2f}) | {off}")
            lines.append(f"| {metric} | " + " | ".join(cells) + " |")
        lines.append("")
    lines.append(f"{figures['pictures of each']} pictures of each merge, {figures['seconds']:.0f} s.")
    return "\n".join(lines)


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draw similarity against the pictures' distance, one panel per metric."""
    import matplotlib  # noqa: PLC0415  needed for --plot alone

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    names, distances = list(figures["similarity"]), figures["distance"]["pixels"]
    figure, panels = pyplot.subplots(1, len(names), figsize=(3 * len(names), 3.4), sharey=True, layout="constrained")
    for name, panel in zip(names, panels, strict=True):
        for inverted, label, marker in ((False, "without inverted", "o"), (True, "with inverted", "x")):
            chosen = [number for number, names in enumerate(figures["finetunes"]) if ("inverted" in names) == inverted]
            panel.scatter(
                [100 * figures["similarity"][name][number] for number in chosen],
                [distances[number] for number in chosen],
                s=16, marker=marker, label=label,
            )  # fmt: skip
        rho, upright = (figures["rank correlation"][title]["pixels"][name]["rho"] for title in figures["merges"])
        panel.set_title(f"{name}\nrank correlation {rho:.2f}, without inverted {upright:.2f}", fontsize=8)
        panel.set_xlabel("similarity to the target, %")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("distance of the pictures, RGB")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Read the command line, measure, print the tables, draw the plot, and return the exit code."""
    parser = argparse.ArgumentParser(description="Test whether similarity predicts pictures.")
    parser.add_argument("--merges", type=int, default=60, help="number of merges (default 60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7], help="seeds of the pictures' noise (default 7)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the pictures' sampler (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the merges (default 0)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the plot there")
    add_json_option(parser, "pictures_and_similarity")
    given = parser.parse_args()

    def measured() -> dict[str, Any]:
        figures = measure(given.merges, given.seeds, given.steps, given.seed)
        if given.plot:
            plot(figures, given.plot)
        return figures

    return report("pictures_and_similarity", measured, as_markdown, given.json, peers=("diffusers", "transformers"))


if __name__ == "__main__":
    sys.exit(main())
