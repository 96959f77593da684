"""Alphas by step and block, and their scores in trials: shared by the plots and the report page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optimizer.recipes import Parameter
from optimizer.search import FitResult, Trial
from optimizer.studies import Stage

__all__ = ["AlphaRow", "alpha_rows", "block_score", "envelope", "is_exact", "metric_of", "points_along"]


@dataclass(frozen=True)
class AlphaRow:
    """An alpha of a step: one number per block, in layout order, and whether each was searched."""

    step: str
    alpha: str
    values: tuple[float, ...]
    searched: tuple[bool, ...]

    @property
    def found(self) -> tuple[float, ...]:
        """Numbers of the searched blocks."""
        return tuple(number for number, searched in zip(self.values, self.searched, strict=True) if searched)


def alpha_rows(result: FitResult) -> tuple[AlphaRow, ...]:
    """Return the alphas that differ by block or were free, in the order of evaluation."""
    blocks = result.recipe.layout.blocks
    searches = [search.parameters for search in result.searches if search.best is not None]
    # Without trials, only the recipe is left of the fit: then assume that the stages' free alphas were searched.
    known = searches or [stage.parameters for stage in result.study.stages]
    searched = {(free.step, free.alpha, block) for parameters in known for free in parameters for block in free.blocks}
    evaluated = [step.name for step in result.recipe.ancestors()]
    # Steps that do not lead to the recipe's output may be fitted, too; they come last.
    order = [*evaluated, *(step.name for step in result.recipe.steps if step.name not in evaluated)]
    rows = []
    for name in order:
        for alpha_name, alpha in result.recipe.step(name).alphas.items():
            values = tuple(alpha.at(block) for block in blocks)
            found = tuple((name, alpha_name, block) in searched for block in blocks)
            if any(found) or result.study.recipe.step(name).alphas[alpha_name].free or len(set(values)) > 1:
                rows.append(AlphaRow(name, alpha_name, values, found))
    return tuple(rows)


def block_score(trial: Trial, parameter: Parameter) -> float | None:
    """Return the mean similarity of a free alpha's scored blocks in a trial; None if no block was scored."""
    scores = [trial.block_scores[block] for block in parameter.blocks if block in trial.block_scores]
    return math.fsum(scores) / len(scores) if scores else None


def metric_of(stage: Stage, parameter: Parameter) -> str:
    """Return the metric, or the metrics joined by +, of the blocks that a free alpha moves; "" for no scored block."""
    return "+".join(name for name, blocks in stage.measured if set(blocks) & set(parameter.blocks))


def points_along(trials: Iterable[Trial], parameter: Parameter) -> list[tuple[float, float, Trial]]:
    """Return the alpha of each completed trial and the similarity of its blocks in per cent, with the trial."""
    return [
        (trial.alphas[parameter.name], 100 * score, trial)
        for trial in trials
        if (score := block_score(trial, parameter)) is not None and math.isfinite(score)
    ]


def envelope(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the points of (alpha, score) that none farther from the best one exceeds, by alpha, as two lists."""
    ordered = sorted(points)
    peak = max(range(len(ordered)), key=lambda place: ordered[place][1])
    kept = []
    for side in (ordered[: peak + 1], ordered[:peak:-1]):
        top = -math.inf
        for alpha, score in side:
            if score >= top:
                top = score
                kept.append((alpha, score))
    kept.sort()
    return [alpha for alpha, _ in kept], [score for _, score in kept]


def is_exact(trial: Trial) -> bool:
    """Return whether a trial is at the exact optimum of a metric."""
    return trial.origin.startswith("exact")
