"""The records of what a fit found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.analysis import ExactOptimum, NarrowRange, Simplified
from optimizer.errors import StudyError
from optimizer.recipes import Parameter, Recipe
from optimizer.search.trials import Trial, best_of, completed
from optimizer.similarity import total_similarity
from optimizer.studies import Stage, StepScores, Study

__all__ = ["Candidate", "FitResult", "SearchResult", "SeedSpread", "deciding_searches"]


@dataclass(frozen=True)
class SearchResult:
    """One Optuna study: the alphas it searched and its trials in order.

    `exact` are the exact optima by metric, for comparison; `step` is the step that was scored, in pass `number` over
    the stage's steps.
    """

    name: str
    stage: Stage
    step: str
    parameters: tuple[Parameter, ...]
    trials: tuple[Trial, ...]
    exact: Mapping[str, ExactOptimum]
    number: int = 1

    @property
    def searched(self) -> str:
        """The name that all passes of the search share: its own without the number of the pass."""
        return self.name.removesuffix(f"/pass {self.number}")

    @property
    def budget(self) -> int:
        """The number of completed trials that is aimed at: one where all alphas have but one value to take."""
        return self.stage.trials if self.open or not self.trials else min(self.stage.trials, 1)

    @property
    def open(self) -> tuple[Parameter, ...]:
        """The parameters that have more than one value to take; those of blocks that are kept unchanged have one."""
        fixed = self.trials[0].fixed if self.trials else frozenset()
        return tuple(parameter for parameter in self.parameters if parameter.name not in fixed)

    @property
    def completed(self) -> tuple[Trial, ...]:
        """The trials that have a similarity."""
        return completed(self.trials)

    @property
    def best(self) -> Trial | None:
        """The best completed trial, as `best_of` ranks them; None if there is none."""
        return best_of(self.completed)


def deciding_searches(results: Sequence[SearchResult]) -> tuple[SearchResult, ...]:
    """Return the searches that determine the recipe; in a stage with several passes that is the last search run."""
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

    `loss` is the similarity lost against that search's best trial (>= 0); `distance` the largest difference of a
    coefficient from the best recipe's.
    """

    number: int
    recipe: Recipe
    search: str
    trial: int
    similarity: float
    loss: float
    distance: float


@dataclass(frozen=True)
class FitResult:
    """The result of a fit: `recipe` with its free alphas filled, the searches, and the similarities of every step.

    `spread` holds the scores on random inputs that were not fitted on, for metrics that draw any; `candidates` are the
    next best recipes that differ, if asked for. `simple` is the recipe with numbers as people choose them, as in
    best.simple.yaml; None after an interruption. `narrow` are the ranges outside of which the best alphas lie.
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
        """The total of each stage's last step by its own metric, {stage: similarity in [-1, 1]}.

        Under the final alphas. After an interruption only the stages that were reached.
        """
        return {
            stage.name: total_similarity(scores.after)
            for stage in self.study.stages
            for scores in self.scores
            if (scores.stage, scores.step, scores.metric) == (stage.name, stage.steps[-1], stage.metric)
        }

    @property
    def similarity(self) -> float:
        """The total of the last stage's last step by its own metric, in [-1, 1].

            result = fit(study)
            print(f"{result.similarity:.4%}")

        Raises StudyError if no stage was fitted to its end.
        """
        reached = tuple(self.similarities.values())
        if not reached:
            raise StudyError(f"{self.study.folder}: no stage was fitted to its end; fit it first")
        return reached[-1]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; similarities are totals, None where there is none."""
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
                    "apart": one.distance,
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
        "best": None if best is None else best.similarity,
        "trial": None if best is None else best.number,
        "completed": len(search.completed),
        "trials": len(search.trials),
    }


def _total(scores: Mapping[str, float]) -> float | None:
    return total_similarity(scores) if scores else None
