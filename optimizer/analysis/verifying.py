"""Measuring a finished recipe against a target, step by step, beside what somebody reported for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.library import HashCache
from optimizer.merging import check_noted_hashes
from optimizer.recipes import Expected, Recipe
from optimizer.similarity import (
    DEFAULT_METRIC,
    METRICS,
    AttentionOptions,
    Comparison,
    Metric,
    Options,
    Progress,
    build_metric,
    check_installed,
    measure_statistics,
    open_recipe_comparison,
    score_steps,
    total_similarity,
)

__all__ = ["Verified", "verify"]

# Different metrics, seeds and block lists that are measured in one go: each takes its own reading of all sources.
_MOST_KINDS = 100


@dataclass(frozen=True)
class Verified:
    """One step of a recipe, measured: similarities in [-1, 1] by block, and what was expected of them.

    `not_measurable` are the blocks that the metric cannot see, or that the target has unchanged from the base so that
    it sees nothing there; `expected` is None where nothing was reported.
    """

    step: str
    metric: str
    seed: int
    measured: Mapping[str, float]
    not_measurable: tuple[str, ...]
    expected: Expected | None

    @property
    def total(self) -> float:
        """The mean over the measured blocks; NaN if there is none."""
        return total_similarity(self.measured)

    def as_dict(self) -> dict[str, object]:
        """The fields by name, as JSON takes them; `blocks` has null where a block is not measurable."""
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
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> tuple[Verified, ...]:
    """Every step's similarity to `target`, on the blocks and by the metric that the recipe expects for it.

        verify(recipe, study.sources, "closed.safetensors")[-1].total

    Steps without expectations are measured by `explained` on all blocks that the target holds. `base` is the model that
    `explained` and `delta` take differences from; default: the one that the recipe notes, the one called base, for
    `explained` the first. The files are read once; nothing is merged. With `check_hashes` they must have the sha256
    that the recipe notes of them; `hashes` keeps those.

    Raises RecipeError for free alphas, an expectation by an unknown metric or more than 100 different ones, and
    CheckpointError for files that do not fit.
    """
    target, layout = Path(target), recipe.layout
    recipe.check_finished("measured", *(step.name for step in recipe.steps))
    base = recipe.noted_base if base is None else base
    standard = Expected((), metric=DEFAULT_METRIC)
    reported = {step.name: step.expect for step in recipe.steps}
    wanted = {name: expect or standard for name, expect in reported.items()}
    unknown: dict[str, list[str]] = {}
    for name, expect in wanted.items():
        if expect.metric not in METRICS:
            unknown.setdefault(expect.metric, []).append(f"steps.{name}.expect.metric")
    problems = [
        f"{', '.join(places)}: received {metric!r}; must be one of {', '.join(METRICS)}"
        for metric, places in unknown.items()
    ]
    needing = [
        name for name, expect in wanted.items() if expect.metric in METRICS and METRICS[expect.metric].needs_base
    ]
    if needing and base is None:
        problems.append(f"steps.{needing[0]}.expect.metric: {wanted[needing[0]].metric} needs a base; name it (`base`)")
    if problems:
        raise RecipeError(problems)
    if (kinds := len(set(_alike(wanted, layout)))) > _MOST_KINDS:
        raise RecipeError(
            f"steps: {kinds:,} different metrics, seeds and block lists to measure by; there can be at most "
            f"{_MOST_KINDS}; leave `expect` out of some steps"
        )
    check_installed(expect.metric for expect in wanted.values())
    sources = {name: paths[name] for name in recipe.models if name in paths}
    if check_hashes:
        check_noted_hashes(recipe.models, sources, hashes=hashes, progress=progress)
    with open_recipe_comparison(recipe, sources, target, base=base, device=device, progress=progress) as comparison:
        found: dict[str, Verified] = {}
        held = {part.block for part in comparison.parts if part.scored and part.held_by(comparison.target)}
        standard = replace(standard, blocks=tuple(block for block in layout.blocks if block in held))
        wanted = {name: expect or standard for name, expect in reported.items()}
        # By metric and blocks, so that only one metric's projections are held at a time.
        alike = _alike(wanted, layout)
        for (kind, seed, blocks), names in alike.items():
            metric = _metric(comparison, wanted[names[0]], blocks) if blocks else None
            order = tuple(comparison.sources)
            measured = {} if metric is None else score_steps(metric, recipe, names, comparison.groups, order)
            unchanged = () if metric is None else metric.unchanged
            for name in names:
                unseen = tuple(block for block in wanted[name].blocks if block not in blocks or block in unchanged)
                found[name] = Verified(name, kind, seed, measured.get(name, {}), unseen, reported[name])
    return tuple(found[step.name] for step in recipe.steps)


def _alike(wanted: Mapping[str, Expected], layout: Layout) -> dict[tuple[str, int, tuple[str, ...]], list[str]]:
    """The steps that are measured alike, {(metric, seed, blocks): steps}."""
    found: dict[tuple[str, int, tuple[str, ...]], list[str]] = {}
    for name, expect in wanted.items():
        visible = METRICS[expect.metric].sees(layout)
        blocks = tuple(block for block in expect.blocks if block in visible)
        found.setdefault((expect.metric, expect.seed, blocks), []).append(name)
    return found


def _metric(comparison: Comparison, expect: Expected, blocks: tuple[str, ...]) -> Metric:
    comparison = replace(comparison, options=Options((AttentionOptions(seeds=[expect.seed]),)))
    statistics = measure_statistics(comparison, blocks) if METRICS[expect.metric].reads_statistics else None
    return build_metric(expect.metric, comparison, blocks, statistics)
