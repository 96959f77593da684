"""What the statistics beside a study tell without a trial: similarity along each alpha, and the ceilings."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from optimizer.analysis import Curve, curves_along, largest_similarity
from optimizer.errors import InputError
from optimizer.library import Library
from optimizer.recipes import Algebra, Parameter, Recipe, Space
from optimizer.reports.alphas import block_score, points_along
from optimizer.reports.scales import Span
from optimizer.search import FitResult, SearchResult
from optimizer.similarity import EXACT_METRICS, METRICS, Combined, Measured, build_metric, total_similarity
from optimizer.studies import Stage, open_study

__all__ = ["Landscape"]

# A curve that misses the best trial's score by more belongs to other alphas of earlier steps, or to other files.
_SAME = 1e-4


@dataclass(frozen=True)
class Landscape:
    """Similarities that the statistics of the checkpoints give; empty if a study's folder has no statistics.

    Attributes:
        curves: The similarity along each free alpha, all others as in the best trial, {search: {free alpha: curve}}.
            Curves are missing for metrics that need the checkpoints.
        ceilings: The highest similarity of each block that any merge of the sources reaches, {metric: {block:
            similarity}}, by the metrics for which it is known.
    """

    curves: Mapping[str, Mapping[str, Curve]]
    ceilings: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, result: FitResult) -> "Landscape":
        """Read the statistics in the folder of a fitted study; the checkpoints themselves are not read."""
        study = result.study.without_files()
        try:
            with open_study(study, Library(), blocks=(), device=torch.device("cpu"), tensors=False) as opened:
                measured = opened.measured
        except InputError:
            return cls({}, {})
        scored: dict[str, set[str]] = {}
        for stage in study.stages:
            for name, blocks in stage.measured:
                if name in EXACT_METRICS:
                    scored.setdefault(name, set()).update(blocks)
        return cls(
            {search.name: _curves(search, result.recipe, measured) for search in result.searches},
            {name: _ceilings(measured, name, blocks) for name, blocks in scored.items()},
        )

    def ceiling_of(self, metric: str, blocks: Iterable[str]) -> float | None:
        """Return the mean ceiling of some blocks by one metric; None if that of a block is unknown."""
        known = self.ceilings.get(metric, {})
        wanted = list(blocks)
        if not wanted or any(block not in known for block in wanted):
            return None
        return total_similarity({block: known[block] for block in wanted})

    def total_ceiling(self, stage: Stage) -> float | None:
        """Return the ceiling of a stage's total similarity, in [-1, 1]; None if one of its metrics has none."""
        found: dict[str, float] = {}
        for name, blocks in stage.measured:
            known = self.ceilings.get(name, {})
            if not known:
                return None
            # Blocks that the target left unchanged do not count.
            found |= {block: known[block] for block in blocks if block in known}
        return total_similarity(found)

    def history_spans(self, searches: Sequence[SearchResult]) -> dict[str, Span]:
        """Return the axis of similarity against trial by metric: all searches by a metric have the same."""
        values: dict[str, list[float]] = {}
        for search in searches:
            shown = values.setdefault(search.stage.metric, [])
            ceiling = self.total_ceiling(search.stage)
            shown += [] if ceiling is None else [100 * ceiling]
            if search.completed:
                totals = [100 * trial.total for trial in search.completed]
                # A few trials far below would leave no room for the others.
                shown += [max(totals[0], median(totals))]
        return {metric: Span.of(numbers) for metric, numbers in values.items()}

    def span_along(self, search: SearchResult, metric: str, parameters: Iterable[Parameter]) -> Span:
        """Return the common axis of similarity against these free alphas, all of blocks by one metric."""
        curves = self.curves.get(search.name, {})
        values: list[float] = []
        for parameter in parameters:
            values += [score for _, score, _ in points_along(search.completed, parameter)]
            if parameter.name in curves:
                values += (100 * curves[parameter.name].similarities).tolist()
        return Span.of(values, metric)


def _ceilings(measured: Measured, metric: str, blocks: Collection[str]) -> dict[str, float]:
    found = {block: largest_similarity(measured, metric, block) for block in measured.blocks if block in blocks}
    return {block: value for block, value in found.items() if math.isfinite(value)}


def _curves(search: SearchResult, recipe: Recipe, measured: Measured) -> dict[str, Curve]:
    """Return the curves of a search through its best trial, without those that miss the trial's scores."""
    best = search.best
    if best is None:
        return {}
    from_statistics = [
        build_metric(name, measured, [block for block in blocks if block in measured.blocks], measured.statistics)
        for name, blocks in search.stage.measured
        if METRICS[name].reads_statistics
    ]
    if not from_statistics:
        return {}
    metric = Combined(from_statistics)
    space = Space(Algebra(recipe, measured.groups, tuple(measured.sources), search.step), search.parameters)
    found = {}
    for name, curve in curves_along(space, metric, best.alphas).items():
        (parameter,) = (parameter for parameter in search.parameters if parameter.name == name)
        score = block_score(best, parameter)
        if score is not None and abs(curve.at(best.alphas[name]) - score) <= _SAME:
            found[name] = curve
    return found
