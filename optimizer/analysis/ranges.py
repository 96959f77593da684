"""Ranges of free alphas that are too narrow: where the best alphas lie outside, and what that would gain.

A search never leaves its ranges, so a model that the target subtracts, or holds more than once, ends at a bound, and
nothing in the result tells that from a model that is not there. The optimum of `explained` is exact within the ranges
and without them; what lies between the two is told.
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

# The ranges are opened by so much on either side. Alphas beyond that nobody writes.
_OPENED = 10.0
# Alphas nearer to a bound than this share of their range are at it.
_AT_BOUND = 1e-6
# What opening the ranges must gain to be worth a word: of the share explained, and of what is left unexplained.
_GAIN, _GAIN_OF_REST = 0.001, 0.05
# Which input of a step an alpha is the weight of.
_INPUT = {"alpha": "b", "beta": "c"}


@dataclass(frozen=True)
class NarrowRange:
    """An alpha of `step`, the weight of `source`, that would explain more of the target outside its range.

    On `blocks`, the best alphas are `least` to `most`, outside the range that was searched, `low` to `high`. `within`
    is the mean share that the best alphas within all ranges explain of these blocks, `beyond` that of the best ones
    anywhere, both in [-1, 1].
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
        """The range to search instead: whole numbers that hold the best alphas, and -1 where they are negative."""
        low = self.low if self.least >= self.low else float(math.floor(self.least))
        high = self.high if self.most <= self.high else float(math.ceil(self.most))
        return low, high

    def describe(self, layout: Layout) -> str:
        """Return one line: where, what the range costs, and what to write instead."""
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
        """As JSON takes it."""
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
    """Return the ranges in `recipe`, which has free alphas, that keep more of the target from being explained.

    As in a ceiling, blocks are scored on the steps that `scored_spaces` tells. Only what gains more than rounding and
    noise would is told: a tenth of a percent, and a twentieth of what is left unexplained.
    """
    found: list[NarrowRange] = []
    for space, blocks in scored_spaces(recipe, stages, measured).values():
        metric = build_metric(DEFAULT_METRIC, measured, blocks, measured.statistics)
        assert isinstance(metric, ExplainedMetric)
        found += narrow_ranges_of(space, metric, seed=seed)
    return tuple(found)


def narrow_ranges_of(space: Space, metric: ExplainedMetric, *, seed: int = 0) -> tuple[NarrowRange, ...]:
    """The same of the ranges in `space`, its blocks scored by `metric`."""
    space = Space(space.algebra, [one for one in space.parameters if set(one.blocks) & set(metric.blocks)])
    searched = Space(space.algebra, [_anywhere(one, one.free.low, one.free.high) for one in space.parameters])
    best = exact_optimum(searched, metric, seed=seed).point
    # Where the optimum is within all ranges, opening them changes nothing.
    stopped = [one for one in _together(searched.parameters, metric.blocks) if any(_at_bound(p, best) for p in one)]
    if not stopped:
        return ()
    opened = [
        _anywhere(one, one.free.low - _OPENED, one.free.high + _OPENED, start=best[one.name])
        for together in stopped
        for one in together
    ]
    moved = {block for one in opened for block in one.blocks}
    part = metric.of_blocks(moved)
    beyond = best | exact_optimum(Space(space.algebra, opened), part, seed=seed).point
    return tuple(_told(space, metric, best, beyond))


def _told(
    space: Space, metric: ExplainedMetric, best: Mapping[str, float], beyond: Mapping[str, float]
) -> Iterator[NarrowRange]:
    """Yield what is worth a word, one for each alpha of a step that has the same range on several blocks.

    `best` are the best alphas within all ranges, `beyond` those anywhere.
    """
    within, reached = (_shares(space, metric, point) for point in (best, beyond))
    alike: dict[tuple[str, str, float, float], list[tuple[Parameter, tuple[str, ...]]]] = {}
    for one in space.parameters:
        blocks = tuple(block for block in one.blocks if block in within)
        if not blocks or not _is_outside(one, beyond[one.name]):
            continue
        # Others on these blocks may be what gains: back at its bound, an alpha that matters loses.
        back = _shares(space, metric, {**beyond, one.name: one.free.on_grid(beyond[one.name])})
        before, after, stopped = (
            sum(each[block] for block in blocks) / len(blocks) for each in (within, reached, back)
        )
        if after - max(before, stopped) > max(_GAIN, _GAIN_OF_REST * (1 - before)):
            alike.setdefault((one.step, one.alpha, one.free.low, one.free.high), []).append((one, blocks))
    for (step, alpha, low, high), entries in alike.items():
        blocks = tuple(block for block in space.algebra.blocks if any(block in own for _, own in entries))
        numbers = [beyond[one.name] for one, _ in entries]
        mode = space.algebra.recipe.step(step)
        yield NarrowRange(
            step,
            alpha,
            mode.inputs[_INPUT[alpha]],
            blocks,
            low,
            high,
            min(numbers),
            max(numbers),
            within=sum(within[block] for block in blocks) / len(blocks),
            beyond=sum(reached[block] for block in blocks) / len(blocks),
        )


def _shares(space: Space, metric: ExplainedMetric, point: Mapping[str, float]) -> dict[str, float]:
    """What each block explains at `point`, {parameter: value}."""
    values = torch.tensor([[point[one.name] for one in space.parameters]], dtype=torch.float64)
    return dict(zip(metric.blocks, metric.score(space.coefficients(values))[0].tolist(), strict=True))


def _together(parameters: Sequence[Parameter], blocks: Sequence[str]) -> list[list[Parameter]]:
    """The parameters that share scored blocks, each with those that it depends on."""
    return [joined for joined, _ in connected((one, set(one.blocks) & set(blocks)) for one in parameters)]


def _anywhere(one: Parameter, low: float, high: float, start: float | None = None) -> Parameter:
    """The same parameter in another range and on no grid, starting where it did or at `start`."""
    return replace(
        one, free=replace(one.free, low=low, high=high, step=None, start=one.free.start if start is None else start)
    )


def _at_bound(one: Parameter, point: Mapping[str, float]) -> bool:
    low, high = one.free.low, one.free.high
    return min(point[one.name] - low, high - point[one.name]) <= _AT_BOUND * (high - low)


def _is_outside(one: Parameter, number: float) -> bool:
    rounding = _AT_BOUND * (one.free.high - one.free.low)
    return not one.free.low - rounding <= number <= one.free.high + rounding
