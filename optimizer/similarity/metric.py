"""What every metric offers, and what is made of several: combined metrics, totals, similarities of steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from optimizer.recipes import Algebra, Group, Recipe

__all__ = ["Combined", "Metric", "score_step", "score_steps", "total_similarity"]


class Metric(Protocol):
    """Scores candidates given as coefficients; nothing is merged.

    `blocks` are the blocks it scores, in the order of the scores' last axis.
    """

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that are scored."""
        ...

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The blocks that are not scored because the target took them over unchanged from the base."""
        ...

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Candidates to come lie, block by block, on the lines that these [n, groups, sources] lie on.

        For what that saves; it changes no score, but for rounding, and holds until the next call.
        """
        ...

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities in [-1, 1], float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        ...


@dataclass(frozen=True)
class Combined:
    """Several metrics, each on blocks of its own, as one; blocks in the order of the metrics."""

    metrics: Sequence[Metric]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks of all metrics."""
        return tuple(block for metric in self.metrics for block in metric.blocks)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The unchanged blocks of all metrics."""
        return tuple(block for metric in self.metrics for block in metric.unchanged)

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Prepare all metrics."""
        for metric in self.metrics:
            metric.prepare(coefficients)

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        return torch.cat([metric.score(coefficients) for metric in self.metrics], dim=1)


def score_step(
    metric: Metric, recipe: Recipe, step: str, groups: Sequence[Group], sources: Sequence[str]
) -> dict[str, float]:
    """What a step, or a model, of `recipe` scores as its alphas are, {block: similarity}; free ones where they start.

    `groups` and `sources` are those that the metric's coefficients are about.
    """
    return score_steps(metric, recipe, [step], groups, sources)[step]


def score_steps(
    metric: Metric, recipe: Recipe, steps: Sequence[str], groups: Sequence[Group], sources: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What several steps, one at least, score as `score_step` says, {step: {block: similarity}}.

    The recipe is gone through once for all of them, and one after another is scored, so that the time grows with the
    number of steps and the memory does not.
    """
    algebra = Algebra(recipe, groups, sources, steps[0], further=steps[1:])
    found = {
        name: dict(zip(metric.blocks, metric.score(coefficients)[0].tolist(), strict=True))
        for name, coefficients in algebra.each(algebra.starting_alphas())
    }
    return {step: found[step] for step in steps}


def total_similarity(scores: Mapping[str, float | None]) -> float:
    """Return the plain mean over the blocks, as the article's tables have it; NaN if there is none.

    Unchanged blocks, which have None, do not count.
    """
    values = [value for value in scores.values() if value is not None]
    return math.fsum(values) / len(values) if values else math.nan
