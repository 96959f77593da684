"""Ranges of free alphas that are too narrow: better alphas are outside them.

A search never leaves its ranges. A model that the target subtracts, or contains more than once, therefore ends at a
bound, and the result looks as if the model were absent. The optimum of `explained` is exact with and without the
ranges, so comparing the two shows what a range costs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from optimizer.analysis.exact import exact_optimum
from optimizer.analysis.scored_spaces import scored_spaces
from optimizer.families import Layout
from optimizer.recipes import Parameter, Recipe, Space
from optimizer.samplers import connected
from optimizer.similarity import DEFAULT_METRIC, ExplainedMetric, Measured, build_metric
from optimizer.studies import Stage

__all__ = ["NarrowRange", "narrow_ranges", "narrow_ranges_of"]

# The ranges are widened by this much on either side; alphas farther out do not occur in practice.
_OPENED = 10.0
# Alphas nearer to a bound than this share of their range count as at the bound.
_AT_BOUND = 1e-6
# Least gain of wider ranges that is reported: in the explained share (0 to 1), and as a share of the unexplained rest.
_GAIN, _GAIN_OF_REST = 0.001, 0.05
# The input of a step whose weight the alpha is.
_INPUT = {"alpha": "b", "beta": "c"}


@dataclass(frozen=True)
class NarrowRange:
    """A free alpha of `step`, the weight of `source`, that would explain more of the target outside its range.

    On `blocks` the best alphas are `least` to `most`, outside the searched range `low` to `high`. `within` is the mean
    share of these blocks that the best alphas within all ranges explain, `beyond` the share of the best alphas without
    ranges; both are in [-1, 1].
    """

    step: str
    alpha: str
    source: str
    blocks: tuple[str, ...]
    low: float
    high: float
    least: float
    most: float
    within: float
    beyond: float

    @property
    def wider(self) -> tuple[float, float]:
        """The range to search instead: whole numbers around the best alphas on the side that they exceed."""
        low = self.low if self.least >= self.low else float(math.floor(self.least))
        high = self.high if self.most <= self.high else float(math.ceil(self.most))
        return low, high

    def describe(self, layout: Layout) -> str:
        """Return one line: the alpha and its blocks, the cost of the range, and the range to write instead."""
        low, high = self.wider
        lies, best = ("lies", "alpha") if len(self.blocks) == 1 else ("lie", "alphas")
        at = (
            f"{self.least:.2f}" if f"{self.least:.2f}" == f"{self.most:.2f}" else f"{self.least:.2f} to {self.most:.2f}"
        )
        field = "" if self.alpha == "alpha" else f" ({self.alpha})"
        return (
            f"{self.step}{field}: the best {best} of {self.source} {lies} outside search: [{self.low:g}, {self.high:g}]"
            f" on {layout.describe_blocks(self.blocks)}, at {at}; with search: [{low:g}, {high:g}] "
            f"{100 * self.beyond:.2f}% would be explained there, not {100 * self.within:.2f}%"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "step": self.step,
            "alpha": self.alpha,
            "source": self.source,
            "blocks": list(self.blocks),
            "search": [self.low, self.high],
            "least": self.least,
            "most": self.most,
            "explained": self.within,
            "reachable": self.beyond,
            "wider": list(self.wider),
        }


def narrow_ranges(recipe: Recipe, stages: Sequence[Stage], measured: Measured, *, seed: int) -> tuple[NarrowRange, ...]:
    """Return the ranges of free alphas in `recipe` that keep more of the target from being explained.

    Blocks are scored on the steps of `scored_spaces`, as for a ceiling. Only gains beyond rounding and noise are
    reported: at least 0.001 of the explained share, and at least 5 per cent of the unexplained rest.

    Args:
        recipe: The recipe with its free alphas.
        stages: The stages of the study.
        measured: The statistics of the checkpoints.
        seed: The seed of the random starting points.

    Returns:
        One entry for each alpha of a step that has the same range on several blocks.
    """
    found: list[NarrowRange] = []
    for space, blocks in scored_spaces(recipe, stages, measured).values():
        metric = build_metric(DEFAULT_METRIC, measured, blocks, measured.statistics)
        assert isinstance(metric, ExplainedMetric)
        found += narrow_ranges_of(space, metric, seed=seed)
    return tuple(found)


def narrow_ranges_of(space: Space, metric: ExplainedMetric, *, seed: int = 0) -> tuple[NarrowRange, ...]:
    """Return the narrow ranges of free alphas in `space`, its blocks scored by `metric`."""
    space = Space(space.algebra, [alpha for alpha in space.parameters if set(alpha.blocks) & set(metric.blocks)])
    searched = Space(space.algebra, [_in_range(alpha, alpha.free.low, alpha.free.high) for alpha in space.parameters])
    best = exact_optimum(searched, metric, seed=seed).point
    # If the optimum is inside all ranges, wider ones change nothing.
    components = _components(searched.parameters, metric.blocks)
    stopped = [component for component in components if any(_at_bound(alpha, best) for alpha in component)]
    if not stopped:
        return ()
    opened = [
        _in_range(alpha, alpha.free.low - _OPENED, alpha.free.high + _OPENED, start=best[alpha.name])
        for component in stopped
        for alpha in component
    ]
    moved = {block for alpha in opened for block in alpha.blocks}
    part = metric.of_blocks(moved)
    beyond = best | exact_optimum(Space(space.algebra, opened), part, seed=seed).point
    return tuple(_reported(space, metric, best, beyond))


def _reported(
    space: Space, metric: ExplainedMetric, best: Mapping[str, float], beyond: Mapping[str, float]
) -> Iterator[NarrowRange]:
    """Yield the ranges to report, one for each alpha of a step that has the same range on several blocks.

    `best` are the best alphas within all ranges, `beyond` the best ones without ranges.
    """
    within, reached = (_shares(space, metric, point) for point in (best, beyond))
    alike: dict[tuple[str, str, float, float], list[tuple[Parameter, tuple[str, ...]]]] = {}
    for free in space.parameters:
        blocks = tuple(block for block in free.blocks if block in within)
        if not blocks or not _is_outside(free, beyond[free.name]):
            continue
        # The gain may come from other alphas on these blocks. Moving only this one back to its bound must lose it.
        back = _shares(space, metric, {**beyond, free.name: free.free.on_grid(beyond[free.name])})
        before, after, stopped = (
            sum(shares[block] for block in blocks) / len(blocks) for shares in (within, reached, back)
        )
        if after - max(before, stopped) > max(_GAIN, _GAIN_OF_REST * (1 - before)):
            alike.setdefault((free.step, free.alpha, free.free.low, free.free.high), []).append((free, blocks))
    for (step, alpha, low, high), entries in alike.items():
        blocks = tuple(block for block in space.algebra.blocks if any(block in scored for _, scored in entries))
        numbers = [beyond[free.name] for free, _ in entries]
        yield NarrowRange(
            step,
            alpha,
            space.algebra.recipe.step(step).inputs[_INPUT[alpha]],
            blocks,
            low,
            high,
            min(numbers),
            max(numbers),
            within=sum(within[block] for block in blocks) / len(blocks),
            beyond=sum(reached[block] for block in blocks) / len(blocks),
        )


def _shares(space: Space, metric: ExplainedMetric, point: Mapping[str, float]) -> dict[str, float]:
    """Return the share that each block explains at `point`, {free alpha: value}."""
    values = torch.tensor([[point[alpha.name] for alpha in space.parameters]], dtype=torch.float64)
    return dict(zip(metric.blocks, metric.score(space.coefficients(values))[0].tolist(), strict=True))


def _components(parameters: Sequence[Parameter], blocks: Sequence[str]) -> list[list[Parameter]]:
    """Return the free alphas in groups that share no scored block."""
    return [joined for joined, _ in connected((alpha, set(alpha.blocks) & set(blocks)) for alpha in parameters)]


def _in_range(alpha: Parameter, low: float, high: float, start: float | None = None) -> Parameter:
    """Return the free alpha in another range and without a grid; `start` replaces its starting value."""
    return replace(
        alpha,
        free=replace(alpha.free, low=low, high=high, step=None, start=alpha.free.start if start is None else start),
    )


def _at_bound(alpha: Parameter, point: Mapping[str, float]) -> bool:
    low, high = alpha.free.low, alpha.free.high
    return min(point[alpha.name] - low, high - point[alpha.name]) <= _AT_BOUND * (high - low)


def _is_outside(alpha: Parameter, number: float) -> bool:
    rounding = _AT_BOUND * (alpha.free.high - alpha.free.low)
    return not alpha.free.low - rounding <= number <= alpha.free.high + rounding
