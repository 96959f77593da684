"""Measurement of a finished recipe against a target, step by step, beside the similarities reported for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from optimizer.errors import RecipeError
from optimizer.events import ProgressOption
from optimizer.families import Layout
from optimizer.library import HashCache, Library
from optimizer.merging import check_noted_hashes
from optimizer.recipes import Expected, Recipe
from optimizer.similarity import (
    DEFAULT_METRIC,
    METRICS,
    AttentionOptions,
    Comparison,
    Metric,
    Options,
    build_metric,
    check_installed,
    measure_statistics,
    open_recipe_comparison,
    score_steps,
    total_similarity,
)

__all__ = ["Verified", "verify"]

# Maximum number of different metrics, seeds and block lists in one call; each reads all sources once.
_MOST_KINDS = 100


@dataclass(frozen=True)
class Verified:
    """One measured step of a recipe: similarities in [-1, 1] by block, and the expected ones.

    `not_measurable` are the blocks that the metric does not cover, and the blocks in which the target equals the base.
    `expected` is None if no similarity was reported.
    """

    step: str
    metric: str
    seed: int
    measured: Mapping[str, float]
    not_measurable: tuple[str, ...]
    expected: Expected | None

    @property
    def total(self) -> float:
        """Mean over the measured blocks; NaN if no block was measured."""
        return total_similarity(self.measured)

    def as_dict(self) -> dict[str, object]:
        """Return the fields for JSON; `blocks` has null for blocks that are not measurable."""
        expected = self.expected or Expected(())
        reported = expected.similarities
        names = dict.fromkeys([*self.measured, *self.not_measurable])
        return {
            "step": self.step,
            "metric": self.metric,
            "seed": self.seed,
            "blocks": {name: {"measured": self.measured.get(name), "expected": reported.get(name)} for name in names},
            "total": {"measured": self.total if self.measured else None, "expected": expected.total},
            "not_measurable": list(self.not_measurable),
        }


def verify(
    recipe: Recipe,
    paths: Mapping[str, Path],
    target: Path | str,
    *,
    base: str | None = None,
    check_hashes: bool = True,
    hashes: HashCache | None = None,
    device: torch.device | str = "auto",
    progress: ProgressOption = None,
) -> tuple[Verified, ...]:
    """Measure the similarity of every step to a target, on the blocks and by the metric of the step's expectation.

        verify(recipe, study.sources, "closed.safetensors")[-1].total

    Steps without an expectation are measured by `explained` on all blocks that the target contains. Files are read
    once, and nothing is merged. CheckpointError is raised for files that do not fit.

    Args:
        recipe: A recipe without free alphas.
        paths: The file of each model, by its name in the recipe.
        target: The checkpoint to compare with.
        base: The model that `explained` and `delta` take differences from. By default the base noted in the recipe, the
            model called base, or for `explained` the first model.
        check_hashes: Whether the files must have the SHA-256 noted in the recipe.
        hashes: A cache of hashes.
        device: The device to measure on: a torch device, or auto (a GPU if one is available), cpu or cuda.
        progress: A callback for progress.

    Returns:
        One entry for each step, in the order of the recipe.

    Raises:
        RecipeError: The recipe has free alphas, expects an unknown metric, needs a base that is not known, or asks for
            more than 100 different measurements.
    """
    library = Library.of((), hashes, progress)
    target, layout = Path(target), recipe.layout
    recipe.check_finished("measured", *(step.name for step in recipe.steps))
    base = recipe.noted_base if base is None else base
    standard = Expected((), metric=DEFAULT_METRIC)
    reported = {step.name: step.expect for step in recipe.steps}
    expected = {name: expect or standard for name, expect in reported.items()}
    unknown: dict[str, list[str]] = {}
    for name, expect in expected.items():
        if expect.metric not in METRICS:
            unknown.setdefault(expect.metric, []).append(f"steps.{name}.expect.metric")
    problems = [
        f"{', '.join(places)}: received {metric!r}; must be one of {', '.join(METRICS)}"
        for metric, places in unknown.items()
    ]
    needing = [
        name for name, expect in expected.items() if expect.metric in METRICS and METRICS[expect.metric].needs_base
    ]
    if needing and base is None:
        first = needing[0]
        problems.append(f"steps.{first}.expect.metric: {expected[first].metric} needs a base; name it (`base`)")
    if problems:
        raise RecipeError(problems)
    if (kinds := len(set(_alike(expected, layout)))) > _MOST_KINDS:
        raise RecipeError(
            f"steps: received {kinds:,} different metrics, seeds and block lists to measure by; must be at most "
            f"{_MOST_KINDS}; leave `expect` out of some steps"
        )
    check_installed(expect.metric for expect in expected.values())
    sources = {name: paths[name] for name in recipe.models if name in paths}
    if check_hashes:
        check_noted_hashes(recipe.models, sources, library)
    with open_recipe_comparison(recipe, sources, target, base=base, device=device, events=library.events) as comparison:
        verified: dict[str, Verified] = {}
        held = {part.block for part in comparison.parts if part.scored and part.held_by(comparison.target)}
        standard = replace(standard, blocks=tuple(block for block in layout.blocks if block in held))
        expected = {name: expect or standard for name, expect in reported.items()}
        # Grouped by metric and blocks, so that only one metric's projections are in memory at a time.
        alike = _alike(expected, layout)
        for (kind, seed, blocks), names in alike.items():
            metric = _metric(comparison, expected[names[0]], blocks) if blocks else None
            order = tuple(comparison.sources)
            measured = {} if metric is None else score_steps(metric, recipe, names, comparison.groups, order)
            unchanged = () if metric is None else metric.unchanged
            for name in names:
                unseen = tuple(block for block in expected[name].blocks if block not in blocks or block in unchanged)
                verified[name] = Verified(name, kind, seed, measured.get(name, {}), unseen, reported[name])
    return tuple(verified[step.name] for step in recipe.steps)


def _alike(expected: Mapping[str, Expected], layout: Layout) -> dict[tuple[str, int, tuple[str, ...]], list[str]]:
    """Return the steps in groups that are measured alike, {(metric, seed, blocks): steps}."""
    alike: dict[tuple[str, int, tuple[str, ...]], list[str]] = {}
    for name, expect in expected.items():
        visible = METRICS[expect.metric].sees(layout)
        blocks = tuple(block for block in expect.blocks if block in visible)
        alike.setdefault((expect.metric, expect.seed, blocks), []).append(name)
    return alike


def _metric(comparison: Comparison, expect: Expected, blocks: tuple[str, ...]) -> Metric:
    comparison = replace(comparison, options=Options((AttentionOptions(seeds=[expect.seed]),)))
    statistics = measure_statistics(comparison, blocks) if METRICS[expect.metric].reads_statistics else None
    return build_metric(expect.metric, comparison, blocks, statistics)
