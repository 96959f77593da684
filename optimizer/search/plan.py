"""What a search of a fit begins with: its metrics, where its alphas start, what is still free."""

from collections.abc import Sequence
from dataclasses import replace

from optimizer.recipes import Alpha, Parameter, Recipe
from optimizer.similarity import EXACT_METRICS, METRICS, Comparison, Measured, QuadraticMetric, Statistics, build_metric

__all__ = ["quadratic_metrics", "started_at", "still_free"]


def quadratic_metrics(
    comparison: Comparison | Measured, blocks: Sequence[str], statistics: Statistics
) -> dict[str, QuadraticMetric]:
    """The metrics whose optimum is found exactly, over all of `blocks`; all of them are told of each step."""
    metrics = {}
    for name in EXACT_METRICS:
        if not METRICS[name].needs_base or comparison.base is not None:
            metric = build_metric(name, comparison, blocks, statistics)
            assert isinstance(metric, QuadraticMetric)
            metrics[name] = metric
    return metrics


def still_free(recipe: Recipe, earlier: Recipe) -> dict[tuple[str, str], dict[str, float]]:
    """The numbers that `earlier` has for the holes of `recipe`, as far as they are allowed there."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for step in recipe.steps:
        for name, alpha in step.alphas.items():
            before: Alpha = getattr(earlier.step(step.name), name)
            for hole in alpha.free:
                numbers = {block: before.at(block) for block in hole.blocks}
                if all(hole.low <= number <= hole.high for number in numbers.values()):
                    found.setdefault((step.name, name), {}).update(numbers)
    return found


def started_at(parameters: Sequence[Parameter], recipe: Recipe) -> tuple[Parameter, ...]:
    """The same parameters, starting at the numbers that `recipe` has for them."""
    found = []
    for parameter in parameters:
        now = getattr(recipe.step(parameter.step), parameter.alpha).at(parameter.blocks[0])
        found.append(replace(parameter, free=replace(parameter.free, start=now)))
    return tuple(found)
