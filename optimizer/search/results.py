"""Records of the results of a fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.analysis import ExactOptimum, NarrowRange, Simplified, Verdict
from optimizer.errors import StudyError
from optimizer.recipes import Parameter, Recipe
from optimizer.search.trials import Trial, best_of, completed
from optimizer.similarity import total_similarity
from optimizer.studies import Stage, StepScores, Study

__all__ = ["Candidate", "FitResult", "SearchResult", "SeedSpread", "deciding_searches"]


@dataclass(frozen=True)
class SearchResult:
    """The result of one search, which is one Optuna study.

    Attributes:
        name: The name of the search.
        stage: Its stage.
        step: The step that was scored.
        parameters: The free alphas that were searched.
        trials: All trials in order.
        exact: The exact optima by metric, for comparison.
        number: The pass over the stage's steps, from 1.

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
        """Name without the number of the pass, common to all passes of the search."""
        return self.name.removesuffix(f"/pass {self.number}")

    @property
    def budget(self) -> int:
        """Number of completed trials to reach; at most one if every alpha has a single possible value."""
        return self.stage.trials if self.open or not self.trials else min(self.stage.trials, 1)

    @property
    def open(self) -> tuple[Parameter, ...]:
        """Free alphas with more than one possible value; alphas of unchanged blocks have one."""
        fixed = self.trials[0].fixed if self.trials else frozenset()
        return tuple(parameter for parameter in self.parameters if parameter.name not in fixed)

    @property
    def completed(self) -> tuple[Trial, ...]:
        """Trials that have a similarity."""
        return completed(self.trials)

    @property
    def best(self) -> Trial | None:
        """Best completed trial by `best_of`; None without a completed trial."""
        return best_of(self.completed)


def deciding_searches(results: Sequence[SearchResult]) -> tuple[SearchResult, ...]:
    """Return the searches that determine the recipe; in a stage with several passes only the last search run."""
    repeated = {search.stage.name for search in results if search.number > 1}
    last = {search.stage.name: search.name for search in results}
    return tuple(
        search for search in results if search.stage.name not in repeated or search.name == last[search.stage.name]
    )


@dataclass(frozen=True)
class SeedSpread:
    """Similarities of a stage's last step, under the final alphas, on random inputs that were not fitted on.

    Attributes:
        stage: The name of the stage.
        step: Its last step.
        metric: The metric.
        fitted: The total similarity on the inputs that were fitted on, in [-1, 1].
        seeds: The seeds of the random inputs.
        scores: The similarities for each seed, {block: similarity}, of the blocks that the metric scores.

    """

    stage: str
    step: str
    metric: str
    fitted: float
    seeds: tuple[int, ...]
    scores: tuple[Mapping[str, float], ...]

    @property
    def totals(self) -> tuple[float, ...]:
        """Total similarity for each seed, in [-1, 1]."""
        return tuple(total_similarity(scores) for scores in self.scores)


@dataclass(frozen=True)
class Candidate:
    """One of the next best recipes, which differs from the best one in the alphas of one search.

    Attributes:
        number: The rank of the recipe, from 2.
        recipe: The recipe.
        search: The search with other alphas.
        trial: The number of the trial whose alphas it has.
        similarity: The total similarity of that trial, in [-1, 1].
        loss: The similarity lost against the search's best trial (>= 0).
        distance: The largest difference of a coefficient from the best recipe's.

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
    """The result of a fit.

    Attributes:
        study: The study.
        recipe: The best recipe, without free alphas.
        searches: The searches with their trials.
        scores: The similarities of every step.
        interrupted: Whether the fit was stopped before its end.
        spread: The scores on random inputs that were not fitted on, for metrics with random inputs.
        candidates: The next best recipes that differ, if requested.
        simple: The recipe of best.simple.yaml, with rounded numbers; None if it was not written.
        narrow: The search ranges that exclude the best alphas.
        verdict: The verdict on the recipe and its sources.

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
    verdict: Verdict | None = None

    @property
    def similarities(self) -> dict[str, float]:
        """Total similarity of each stage's last step by the stage's metric, {stage: similarity in [-1, 1]}.

        All are under the final alphas. After an interruption only the stages that were reached are present.
        """
        return {
            stage.name: total_similarity(scores.after)
            for stage in self.study.stages
            for scores in self.scores
            if (scores.stage, scores.step, scores.metric) == (stage.name, stage.steps[-1], stage.metric)
        }

    @property
    def similarity(self) -> float:
        """Total similarity of the last stage's last step by the stage's metric, in [-1, 1].

            result = fit(study)
            print(f"{result.similarity:.4%}")

        Raises:
            StudyError: No stage was fitted to its end.

        """
        reached = tuple(self.similarities.values())
        if not reached:
            raise StudyError(f"{self.study.folder}: no stage was fitted to its end; fit it first")
        return reached[-1]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; similarities are totals in [-1, 1], None if unknown."""
        return {
            "study": self.study.name,
            "folder": str(self.study.folder),
            "recipe": str(self.study.recipe_path),
            "target": str(self.study.target),
            "interrupted": self.interrupted,
            "verdict": None if self.verdict is None else self.verdict.as_dict(),
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
                    "stage": spread.stage,
                    "step": spread.step,
                    "metric": spread.metric,
                    "fitted": spread.fitted,
                    "seeds": list(spread.seeds),
                    "totals": list(spread.totals),
                }
                for spread in self.spread
            ],
            "simple": None if self.simple is None else self.simple.as_dict(),
            "narrow_ranges": [narrow.as_dict() for narrow in self.narrow],
            "candidates": [
                {
                    "number": candidate.number,
                    "search": candidate.search,
                    "trial": candidate.trial,
                    "similarity": candidate.similarity,
                    "loss": candidate.loss,
                    "apart": candidate.distance,
                }
                for candidate in self.candidates
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
