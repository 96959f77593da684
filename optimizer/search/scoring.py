"""The metrics of a stage on opened files, and its scores under the alphas of a recipe."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optimizer.recipes import Algebra, Parameter, Recipe, Space
from optimizer.search.results import SeedSpread
from optimizer.similarity import (
    EXACT_METRICS,
    METRICS,
    AttentionOptions,
    Combined,
    ExplainedMetric,
    Metric,
    QuadraticMetric,
    Scorable,
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
        scorable: The opened checkpoints, or the statistics measured of them.
        metric: The metric of the stage, over its blocks.
        explained: The metric `explained`, which also gives the distance from the target, over all blocks of the stage.
        quadratic: The metrics with an exact optimum, by name, over all blocks of the stage.

    """

    stage: Stage
    scorable: Scorable
    metric: Metric
    explained: ExplainedMetric
    quadratic: Mapping[str, QuadraticMetric]

    @classmethod
    def of(cls, stage: Stage, opened: OpenStudy) -> "StageScoring":
        """Build the metrics of a stage.

        CheckpointError passes through for files that a metric cannot read.

        Args:
            stage: The stage.
            opened: The opened study.

        Returns:
            The metrics.

        """
        scorable, statistics = opened.scorable.with_options(stage.options), opened.measured.statistics
        metric = Combined([build_metric(name, scorable, blocks, statistics) for name, blocks in stage.measured])
        quadratic = _quadratic_metrics(scorable, stage.blocks, statistics)
        explained = quadratic["explained"]
        assert isinstance(explained, ExplainedMetric)
        return cls(stage, scorable, metric, explained, quadratic)

    @property
    def opening(self) -> dict[str, QuadraticMetric]:
        """Metrics whose exact optima open every search: `explained`, and the exact ones among the stage's metrics."""
        names = {"explained", *(name for name, _ in self.stage.measured)}
        return {name: metric for name, metric in self.quadratic.items() if name in names}

    def algebra(self, recipe: Recipe, step: str) -> Algebra:
        """Return the map from the alphas of `recipe` to the coefficients of a step or of a model."""
        return Algebra(recipe, self.scorable.groups, tuple(self.scorable.sources), step)

    def space(self, recipe: Recipe, step: str, parameters: Sequence[Parameter]) -> Space:
        """Return the space of the free alphas `parameters`; all other alphas are those of `recipe`."""
        return Space(self.algebra(recipe, step), parameters)

    def total(self, recipe: Recipe) -> float:
        """Return the total similarity of the stage's last step by the stage's metric, in [-1, 1]."""
        return total_similarity(self._score(recipe, self.stage.steps[-1], self.metric))

    def step_scores(self, recipe: Recipe) -> tuple[StepScores, ...]:
        """Return the scores of each step of the stage, and of its input a, under the alphas of `recipe`."""
        found = []
        for name in self.stage.steps:
            step = recipe.step(name)
            for label, metric in {self.stage.metric: self.metric, **self.quadratic}.items():
                before, after = (self._score(recipe, output, metric) for output in (step.a, step.name))
                pooled = self._pooled(recipe, name, metric)
                found.append(StepScores(self.stage.name, name, label, before, after, metric.unchanged, pooled))
        return tuple(found)

    def other_seeds(self, recipe: Recipe, scores: Sequence[StepScores]) -> Iterator[SeedSpread]:
        """Score the last step on random inputs that were not fitted on.

        CheckpointError passes through if the files can no longer be read.

        Args:
            recipe: The recipe with the final alphas.
            scores: The scores of the stage under the same alphas.

        Yields:
            The scores of each metric of the stage that has random inputs.

        """
        stage, step = self.stage, self.stage.steps[-1]
        used = stage.options.of(AttentionOptions).seeds
        seeds = tuple(seed for seed in range(len(used) + _OTHER_SEEDS) if seed not in used)[:_OTHER_SEEDS]
        for name, blocks in stage.measured:
            if (by_seed := METRICS[name].by_seed) is None:
                continue
            algebra = self.algebra(recipe, step)
            coefficients = algebra.coefficients(algebra.starting_alphas())[0]
            rows = by_seed(self.scorable.opened(f"the metric `{name}`"), blocks, coefficients, seeds).tolist()
            after = next(scored.after for scored in reversed(scores) if scored.metric == stage.metric)
            fitted = total_similarity({block: after[block] for block in blocks})
            by_block = tuple(dict(zip(blocks, row, strict=True)) for row in rows)
            yield SeedSpread(stage.name, step, name, fitted, seeds, by_block)

    def _score(self, recipe: Recipe, step: str, metric: Metric) -> dict[str, float]:
        return score_step(metric, recipe, step, self.scorable.groups, tuple(self.scorable.sources))

    def _pooled(self, recipe: Recipe, step: str, metric: Metric) -> float | None:
        """Return the explained share (0 to 1) of all blocks together; None for metrics other than `explained`."""
        if isinstance(metric, Combined) and len(metric.metrics) == 1:
            metric = metric.metrics[0]
        if not isinstance(metric, ExplainedMetric) or not metric.blocks:
            return None
        algebra = self.algebra(recipe, step)
        return float(metric.pooled(algebra.coefficients(algebra.starting_alphas()))[0])


def _quadratic_metrics(scorable: Scorable, blocks: Sequence[str], statistics: Statistics) -> dict[str, QuadraticMetric]:
    metrics = {}
    for name in EXACT_METRICS:
        if not METRICS[name].needs_base or scorable.base is not None:
            metric = build_metric(name, scorable, blocks, statistics)
            assert isinstance(metric, QuadraticMetric)
            metrics[name] = metric
    return metrics
