"""The protocol of metrics, and functions over several metrics or steps: combinations, scores, totals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from optimizer.recipes import Algebra, Group, Recipe

__all__ = ["Combined", "Metric", "score_step", "score_steps", "total_similarity"]


class Metric(Protocol):
    """Scorer of candidates given as coefficients; nothing is merged.

    `blocks` are the scored blocks, in the order of the scores' last axis.
    """

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that are scored."""
        ...

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Blocks that are not scored because the target took them over unchanged from the base."""
        ...

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Hint that later candidates lie, block by block, on the lines through these [n, groups, sources].

        This is an optimisation only, and holds until the next call. Scores change by rounding at most.
        """
        ...

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return similarities in [-1, 1], float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        ...


@dataclass(frozen=True)
class Combined:
    """Several metrics with distinct blocks as one metric; blocks are in the order of the metrics."""

    metrics: Sequence[Metric]

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks of all metrics."""
        return tuple(block for metric in self.metrics for block in metric.blocks)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Unchanged blocks of all metrics."""
        return tuple(block for metric in self.metrics for block in metric.unchanged)

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Prepare all metrics."""
        for metric in self.metrics:
            metric.prepare(coefficients)

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        return torch.cat([metric.score(coefficients) for metric in self.metrics], dim=1)


def score_step(
    metric: Metric, recipe: Recipe, step: str, groups: Sequence[Group], sources: Sequence[str]
) -> dict[str, float]:
    """Return the similarities {block: similarity} of one step, or one model, of a recipe.

    Args:
        metric: The metric.
        recipe: The recipe. Its free alphas have their start values.
        step: Name of the step or model.
        groups: Rows of the metric's coefficients.
        sources: Columns of the metric's coefficients.

    Returns:
        Similarity in [-1, 1] by block.
    """
    return score_steps(metric, recipe, [step], groups, sources)[step]


def score_steps(
    metric: Metric, recipe: Recipe, steps: Sequence[str], groups: Sequence[Group], sources: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the similarities {step: {block: similarity}} of several steps of a recipe.

    The recipe is evaluated once, and its steps are scored one after another: the time grows with the number of steps,
    the memory does not.

    Args:
        metric: The metric.
        recipe: The recipe. Its free alphas have their start values.
        steps: Names of one or more steps or models.
        groups: Rows of the metric's coefficients.
        sources: Columns of the metric's coefficients.

    Returns:
        Similarity in [-1, 1] by step and block, in the order of `steps`.
    """
    algebra = Algebra(recipe, groups, sources, steps[0], further=steps[1:])
    found = {
        name: dict(zip(metric.blocks, metric.score(coefficients)[0].tolist(), strict=True))
        for name, coefficients in algebra.each(algebra.starting_alphas())
    }
    return {step: found[step] for step in steps}


def total_similarity(scores: Mapping[str, float | None]) -> float:
    """Return the plain mean over the blocks, as in the article's tables; NaN without a scored block.

    Args:
        scores: Similarity by block. Unchanged blocks have None, and do not count.

    Returns:
        The mean, in [-1, 1].
    """
    values = [value for value in scores.values() if value is not None]
    return math.fsum(values) / len(values) if values else math.nan
