"""What a fit found, as plain records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from optimizer.analysis import ExactOptimum, NarrowRange, Simplified
from optimizer.errors import StudyError
from optimizer.recipes import Algebra, Parameter, Recipe
from optimizer.search.trials import best_of, completed
from optimizer.similarity import Combined, Comparison, ExplainedMetric, Measured, Metric, score_step, total_similarity
from optimizer.studies import Stage, StepScores, Study

__all__ = ["Candidate", "FitResult", "Metrics", "SearchResult", "SeedSpread", "score", "standing", "step_scores"]

Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class SearchResult:
    """One Optuna study: what it searched, its trials in order, and the best of them.

    `exact` are the exact optima by metric, as a basis for comparison; `step` is the step that was scored, in the
    `number`-th pass over the stage's steps.
    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    trials: tuple[FrozenTrial, ...]
    exact: Mapping[str, ExactOptimum]
    number: int = 1

    @property
    def searched(self) -> str:
        """What all passes of the search are called: its name without the number of the pass."""
        return self.name.removesuffix(f"/pass {self.number}")

    @property
    def budget(self) -> int:
        """How many completed trials there are to be: one, where all alphas have but one value to take."""
        return self.stage.trials if self.open or not self.trials else min(self.stage.trials, 1)

    @property
    def open(self) -> tuple[Parameter, ...]:
        """The parameters that have more than one value to take; those of blocks that are kept unchanged have one."""
        ranges = self.trials[0].distributions if self.trials else {}
        return tuple(one for one in self.parameters if one.name not in ranges or not ranges[one.name].single())

    @property
    def completed(self) -> tuple[FrozenTrial, ...]:
        """The trials that have a value."""
        return completed(self.trials)

    @property
    def best(self) -> FrozenTrial | None:
        """The best completed trial, as `best_of` ranks them; None if there is none."""
        return best_of(self.completed)


def standing(results: Sequence[SearchResult]) -> tuple[SearchResult, ...]:
    """The searches whose best trials are what the recipe is: of a stage with passes only what ran last."""
    repeated = {one.stage.name for one in results if one.number > 1}
    last = {one.stage.name: one.name for one in results}
    return tuple(one for one in results if one.stage.name not in repeated or one.name == last[one.stage.name])


@dataclass(frozen=True)
class SeedSpread:
    """The similarities of a stage's last step, under the final alphas, on random inputs that were not fitted on.

    `scores` has {block: value} for each of `seeds`, of the blocks that `metric` scores; `fitted` is their mean on the
    inputs that were fitted on.
    """

    stage: str
    step: str
    metric: str
    fitted: float
    seeds: tuple[int, ...]
    scores: tuple[Mapping[str, float], ...]

    @property
    def totals(self) -> tuple[float, ...]:
        """The total for each seed."""
        return tuple(total_similarity(scores) for scores in self.scores)


@dataclass(frozen=True)
class Candidate:
    """One of the next best recipes: the best one but for `search`, whose alphas are those of trial `trial`.

    `loss` is what its `similarity` is below that search's best; `apart` the largest difference of a coefficient from
    the best recipe's.
    """

    number: int
    recipe: Recipe
    search: str
    trial: int
    similarity: float
    loss: float
    apart: float


@dataclass(frozen=True)
class FitResult:
    """What a fit found: `recipe` with the holes filled, the searches, and the similarities of every step.

    `spread` tells of metrics with random inputs how the result does on others; `candidates` are the next best recipes
    that differ, if they were asked for. `simple` is the recipe with numbers as people choose them, as best.simple.yaml
    has it; None of a fit that was interrupted. `narrow` are the ranges outside of which the best alphas lie.
    """

    study: Study
    recipe: Recipe
    searches: tuple[SearchResult, ...]
    scores: tuple[StepScores, ...]
    interrupted: bool = False
    spread: tuple[SeedSpread, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    simple: Simplified | None = None
    narrow: tuple[NarrowRange, ...] = ()

    @property
    def similarities(self) -> dict[str, float]:
        """What each stage reached, {stage: the total of its last step by its own metric, in [-1, 1]}.

        Under the final alphas. Of an interrupted fit only the stages that were come to.
        """
        return {
            stage.name: total_similarity(scores.after)
            for stage in self.study.stages
            for scores in self.scores
            if (scores.stage, scores.step, scores.metric) == (stage.name, stage.steps[-1], stage.metric)
        }

    @property
    def similarity(self) -> float:
        """What the last stage reached: the total of its last step by its own metric, in [-1, 1].

            result = fit(study)
            print(f"{result.similarity:.4%}")

        Raises StudyError if no stage was fitted to its end.
        """
        reached = tuple(self.similarities.values())
        if not reached:
            raise StudyError(f"{self.study.folder}: no stage was fitted to its end; fit it first")
        return reached[-1]

    def as_dict(self) -> dict[str, Any]:
        """The figures, as JSON takes them; similarities are totals, None where there is none."""
        return {
            "study": self.study.name,
            "folder": str(self.study.folder),
            "recipe": str(self.study.recipe_path),
            "target": str(self.study.target),
            "interrupted": self.interrupted,
            "searches": [_search_as_dict(search) for search in self.searches],
            "steps": [
                {
                    "stage": scores.stage,
                    "step": scores.step,
                    "metric": scores.metric,
                    "before": _total(scores.before),
                    "after": _total(scores.after),
                    "blocks": {**scores.after, **dict.fromkeys(scores.unchanged)},
                    **({} if scores.pooled is None else {"pooled": scores.pooled}),
                }
                for scores in self.scores
            ],
            "other_random_inputs": [
                {
                    "stage": one.stage,
                    "step": one.step,
                    "metric": one.metric,
                    "fitted": one.fitted,
                    "seeds": list(one.seeds),
                    "totals": list(one.totals),
                }
                for one in self.spread
            ],
            "simple": None if self.simple is None else self.simple.as_dict(),
            "narrow_ranges": [one.as_dict() for one in self.narrow],
            "candidates": [
                {
                    "number": one.number,
                    "search": one.search,
                    "trial": one.trial,
                    "similarity": one.similarity,
                    "loss": one.loss,
                    "apart": one.apart,
                }
                for one in self.candidates
            ],
        }


def _search_as_dict(search: SearchResult) -> dict[str, Any]:
    best = search.best
    return {
        "search": search.name,
        "stage": search.stage.name,
        "step": search.step,
        "metric": search.stage.metric,
        "alphas": len(search.parameters),
        "best": None if best is None else best.values[0],
        "trial": None if best is None else best.number,
        "completed": len(search.completed),
        "trials": len(search.trials),
    }


def _total(scores: Mapping[str, float]) -> float | None:
    return total_similarity(scores) if scores else None


def step_scores(recipe: Recipe, stage: Stage, comparison: Comparison | Measured, metrics: Metrics) -> list[StepScores]:
    """What each step of the stage scores under the alphas of `recipe`, and what its input a does."""
    found = []
    for name in stage.steps:
        step = recipe.step(name)
        for label, metric in metrics.items():
            before, after = (score(recipe, output, comparison, metric) for output in (step.a, step.name))
            pooled = _pooled(recipe, name, comparison, metric)
            found.append(StepScores(stage.name, name, label, before, after, metric.unchanged, pooled))
    return found


def _pooled(recipe: Recipe, step: str, comparison: Comparison | Measured, metric: Metric) -> float | None:
    """The share explained of all blocks together, of the metric `explained` alone."""
    if isinstance(metric, Combined) and len(metric.metrics) == 1:
        metric = metric.metrics[0]
    if not isinstance(metric, ExplainedMetric) or not metric.blocks:
        return None
    algebra = Algebra(recipe, comparison.groups, tuple(comparison.sources), step)
    return float(metric.pooled(algebra.coefficients(algebra.starting_alphas()))[0])


def score(recipe: Recipe, step: str, comparison: Comparison | Measured, metric: Metric) -> dict[str, float]:
    """Return what a step, or a model, of `recipe` scores by `metric`, {block: similarity}."""
    return score_step(metric, recipe, step, comparison.groups, tuple(comparison.sources))
