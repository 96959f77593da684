"""What the statistics beside a study tell without a trial: similarity along each alpha, and the ceilings."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from optimizer.analysis import Curve, curves_along, largest_similarity
from optimizer.errors import InputError
from optimizer.library import Library
from optimizer.recipes import Algebra, Recipe, Space
from optimizer.reports.alphas import block_score
from optimizer.search import FitResult, SearchResult
from optimizer.similarity import EXACT_METRICS, METRICS, Combined, Measured, build_metric, total_similarity
from optimizer.studies import open_study

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
        used = {name: blocks for stage in study.stages for name, blocks in stage.measured}
        blocks = {
            name: {
                block
                for stage in study.stages
                for metric, scored in stage.measured
                if metric == name
                for block in scored
            }
            for name in used
            if name in EXACT_METRICS
        }
        return cls(
            {search.name: _curves(search, result.recipe, measured) for search in result.searches},
            {name: _ceilings(measured, name, scored) for name, scored in blocks.items()},
        )

    def ceiling_of(self, metric: str, blocks: Iterable[str]) -> float | None:
        """Return the mean ceiling of some blocks by one metric; None if that of a block is unknown."""
        known = self.ceilings.get(metric, {})
        wanted = list(blocks)
        if not wanted or any(block not in known for block in wanted):
            return None
        return total_similarity({block: known[block] for block in wanted})


def _ceilings(measured: Measured, metric: str, blocks: Iterable[str]) -> dict[str, float]:
    found = {block: largest_similarity(measured, metric, block) for block in measured.blocks if block in set(blocks)}
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
