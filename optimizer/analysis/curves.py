"""Similarity as a function of one alpha while all others stay, without a trial."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.recipes import Parameter, Space
from optimizer.similarity import Metric

__all__ = ["Curve", "curves_along"]

# Points of a curve besides the one that it runs through.
_POINTS = 100


@dataclass(frozen=True)
class Curve:
    """The mean similarity of a free alpha's blocks at some of its values, all other alphas held.

    Attributes:
        alphas: Values of the alpha, ascending from one end of its range to the other, float64 [n].
        similarities: Similarities, float64 [n] in [-1, 1].
    """

    alphas: NDArray[np.float64]
    similarities: NDArray[np.float64]

    def at(self, alpha: float) -> float:
        """Return the similarity at a value, linear between the points."""
        return float(np.interp(alpha, self.alphas, self.similarities))


def curves_along(space: Space, metric: Metric, point: Mapping[str, float]) -> dict[str, Curve]:
    """Return the similarity along each free alpha, through a point.

        curves_along(space, build_metric("explained", measured, blocks, measured.statistics), best.alphas)

    Alphas that share no block are moved together, since blocks are independent: the alphas of a step cost no more than
    one of them.

    Args:
        space: The space of the free alphas.
        metric: The metric, over blocks of the space.
        point: The value of every free alpha, {free alpha: value}.

    Returns:
        {free alpha: its curve}, for those that move a block of the metric.
    """
    moving = [parameter for parameter in space.parameters if set(parameter.blocks) & set(metric.blocks)]
    curves: dict[str, Curve] = {}
    for apart in _without_shared_blocks(moving):
        values = {
            parameter.name: np.sort(
                np.append(np.linspace(parameter.free.low, parameter.free.high, _POINTS), point[parameter.name])
            )
            for parameter in apart
        }
        held = [np.full(_POINTS + 1, point[parameter.name]) for parameter in space.parameters]
        columns = [values.get(parameter.name, held[place]) for place, parameter in enumerate(space.parameters)]
        scores = metric.score(space.coefficients(torch.from_numpy(np.stack(columns, axis=1)))).numpy()
        for parameter in apart:
            scored = [column for column, block in enumerate(metric.blocks) if block in parameter.blocks]
            curves[parameter.name] = Curve(values[parameter.name], scores[:, scored].mean(axis=1))
    return {parameter.name: curves[parameter.name] for parameter in moving}


def _without_shared_blocks(parameters: list[Parameter]) -> list[list[Parameter]]:
    """Return the free alphas in groups, in each of which no two move the same block."""
    groups: list[tuple[set[str], list[Parameter]]] = []
    for parameter in parameters:
        for moved, group in groups:
            if not moved & set(parameter.blocks):
                moved.update(parameter.blocks)
                group.append(parameter)
                break
        else:
            groups.append((set(parameter.blocks), [parameter]))
    return [group for _, group in groups]
