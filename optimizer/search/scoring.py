"""The metrics of a stage on opened files, and what they score under the alphas of a recipe."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.recipes import Algebra, Parameter, Recipe, Space
from optimizer.search.results import SeedSpread
from optimizer.similarity import (
    EXACT_METRICS,
    METRICS,
    AttentionOptions,
    Combined,
    Comparison,
    ExplainedMetric,
    Measured,
    Metric,
    QuadraticMetric,
    Statistics,
    build_metric,
    score_step,
    total_similarity,
)
from optimizer.studies import OpenStudy, Stage, StepScores

__all__ = ["StageScoring"]

# The number of random inputs that were not fitted on which the result is scored.
_OTHER_SEEDS = 4


@dataclass(frozen=True)
class StageScoring:
    """The metrics of `stage`, built once for its searches and for the scores of its steps.

    Attributes:
        stage: The stage.
        comparison: The opened checkpoints, or what was measured of them.
        metric: The stage's own measure, over its blocks.
        explained: The metric that tells how far a candidate is from the target, over all blocks of the stage.
        quadratic: The metrics whose optimum is found exactly, by name, over all blocks of the stage.

    """

    stage: Stage
    comparison: Comparison | Measured
    metric: Metric
    explained: ExplainedMetric
    quadratic: Mapping[str, QuadraticMetric]

    @classmethod
    def of(cls, stage: Stage, opened: OpenStudy) -> "StageScoring":
        """Build the metrics of a stage.

        Raises CheckpointError for files that a metric cannot be computed from.
        """
        comparison, statistics = opened.comparison, opened.measured.statistics
        if isinstance(comparison, Comparison):
            comparison = replace(comparison, options=stage.options)
        metric = Combined([build_metric(name, comparison, blocks, statistics) for name, blocks in stage.measured])
        quadratic = _quadratic_metrics(comparison, stage.blocks, statistics)
        explained = quadratic["explained"]
        assert isinstance(explained, ExplainedMetric)
        return cls(stage, comparison, metric, explained, quadratic)

    @property
    def opening(self) -> dict[str, QuadraticMetric]:
        """The metrics whose exact optima open every search: `explained`, and those that the stage is measured by."""
        own = {"explained", *(name for name, _ in self.stage.measured)}
        return {name: metric for name, metric in self.quadratic.items() if name in own}

    def algebra(self, recipe: Recipe, step: str) -> Algebra:
        """Return what the alphas of `recipe` mean for the coefficients of a step, or of a model."""
        return Algebra(recipe, self.comparison.groups, tuple(self.comparison.sources), step)

    def space(self, recipe: Recipe, step: str, parameters: Sequence[Parameter]) -> Space:
        """Return the points that a search of `parameters` may try, all other alphas as in `recipe`."""
        return Space(self.algebra(recipe, step), parameters)

    def total(self, recipe: Recipe) -> float:
        """Return the total similarity of the stage's last step by its own measure, in [-1, 1]."""
        return total_similarity(self._score(recipe, self.stage.steps[-1], self.metric))

    def step_scores(self, recipe: Recipe) -> tuple[StepScores, ...]:
        """Return the scores of each step of the stage under the alphas of `recipe`, and of its input a."""
        found = []
        for name in self.stage.steps:
            step = recipe.step(name)
            for label, metric in {self.stage.metric: self.metric, **self.quadratic}.items():
                before, after = (self._score(recipe, output, metric) for output in (step.a, step.name))
                pooled = self._pooled(recipe, name, metric)
                found.append(StepScores(self.stage.name, name, label, before, after, metric.unchanged, pooled))
        return tuple(found)

    def other_seeds(self, recipe: Recipe, scores: Sequence[StepScores]) -> Iterator[SeedSpread]:
        """Yield the scores of the last step on random inputs that were not fitted on, for each metric that draws any.

        `scores` are the stage's own under the same alphas. Raises CheckpointError if the files cannot be read any more.
        """
        stage, step = self.stage, self.stage.steps[-1]
        used = stage.options.of(AttentionOptions).seeds
        seeds = tuple(seed for seed in range(len(used) + _OTHER_SEEDS) if seed not in used)[:_OTHER_SEEDS]
        for name, blocks in stage.measured:
            if (by_seed := METRICS[name].by_seed) is None:
                continue
            assert isinstance(self.comparison, Comparison)
            algebra = self.algebra(recipe, step)
            coefficients = algebra.coefficients(algebra.starting_alphas())[0]
            rows = by_seed(self.comparison, blocks, coefficients, seeds).tolist()
            after = next(one.after for one in reversed(scores) if one.metric == stage.metric)
            fitted = total_similarity({block: after[block] for block in blocks})
            by_block = tuple(dict(zip(blocks, row, strict=True)) for row in rows)
            yield SeedSpread(stage.name, step, name, fitted, seeds, by_block)

    def _score(self, recipe: Recipe, step: str, metric: Metric) -> dict[str, float]:
        return score_step(metric, recipe, step, self.comparison.groups, tuple(self.comparison.sources))

    def _pooled(self, recipe: Recipe, step: str, metric: Metric) -> float | None:
        """Return the share explained of all blocks together, which only the metric `explained` has."""
        if isinstance(metric, Combined) and len(metric.metrics) == 1:
            metric = metric.metrics[0]
        if not isinstance(metric, ExplainedMetric) or not metric.blocks:
            return None
        algebra = self.algebra(recipe, step)
        return float(metric.pooled(algebra.coefficients(algebra.starting_alphas()))[0])


def _quadratic_metrics(
    comparison: Comparison | Measured, blocks: Sequence[str], statistics: Statistics
) -> dict[str, QuadraticMetric]:
    metrics = {}
    for name in EXACT_METRICS:
        if not METRICS[name].needs_base or comparison.base is not None:
            metric = build_metric(name, comparison, blocks, statistics)
            assert isinstance(metric, QuadraticMetric)
            metrics[name] = metric
    return metrics
