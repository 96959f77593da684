"""The next best recipes among the trials of finished searches.

Two recipes differ if some scored block mixes the sources differently. Different alphas can describe the same mix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from optimizer.recipes import Space, filled_alphas
from optimizer.search.results import SearchResult
from optimizer.search.trials import Trial, ranked

__all__ = ["DIFFERENT", "Choice", "next_best"]

DIFFERENT = 0.05
"""The smallest difference of a source's coefficient, in any scored block, at which two recipes count as different.

It equals the spacing of alphas chosen by hand.
"""


@dataclass(frozen=True)
class Choice:
    """A completed trial that differs from the best trial of its search.

    Attributes:
        search: The search.
        trial: The trial.
        distance: The largest difference of a coefficient from the best trial's.

    """

    search: SearchResult
    trial: Trial
    distance: float

    @property
    def similarity(self) -> float:
        """Total similarity of the trial, in [-1, 1]."""
        assert self.trial.similarity is not None
        return self.trial.similarity

    @property
    def loss(self) -> float:
        """Similarity lost against the best trial (>= 0)."""
        assert self.search.best is not None
        assert self.search.best.similarity is not None
        return self.search.best.similarity - self.similarity

    @property
    def alphas(self) -> dict[tuple[str, str], dict[str, float]]:
        """Alphas of the trial in the form that a recipe takes, {(step, alpha): {block: value}}."""
        return filled_alphas(self.search.parameters, self.trial.alphas)


def next_best(search: SearchResult, space: Space, count: int, base: str | None = None) -> tuple[Choice, ...]:
    """Return the next best trials of a search that differ from the best trial and from each other.

    Args:
        search: The search.
        space: The map from its points to coefficients.
        count: The largest number of trials to return.
        base: The source whose share is ignored; None to count all shares. A cosine of differences from the base is
            blind to a common scale of the other sources' coefficients in a block.

    Returns:
        At most `count` trials, the best first.

    """
    best = search.best
    if best is None:
        return ()
    kept = [_coefficients(search, space, best.alphas)]
    found: list[Choice] = []
    without = None if base is None else [row for row, name in enumerate(space.algebra.sources) if name != base]
    for trial in ranked(search.completed):
        if len(found) == count:
            break
        coefficients = _coefficients(search, space, trial.alphas)
        if min(_distance(earlier, coefficients, without) for earlier in kept) >= DIFFERENT:
            found.append(Choice(search, trial, _distance(kept[0], coefficients, without)))
            kept.append(coefficients)
    return tuple(found)


def _coefficients(search: SearchResult, space: Space, alphas: Mapping[str, float]) -> torch.Tensor:
    """Return the coefficients of a point, float64 [groups of scored blocks, sources]."""
    point = [alphas[parameter.name] for parameter in search.parameters]
    scored = [row for row, group in enumerate(space.algebra.groups) if group.block in search.stage.blocks]
    return space.coefficients(torch.tensor([point], dtype=torch.float64))[0, scored]


def _distance(first: torch.Tensor, second: torch.Tensor, without_base: Sequence[int] | None) -> float:
    if without_base is not None:
        first, second = first[:, without_base], second[:, without_base]
        products, squares = (first * second).sum(dim=1, keepdim=True), (second * second).sum(dim=1, keepdim=True)
        second = second * (products / squares.clamp_min(1e-300)).clamp_min(0)
    return float((first - second).abs().max())
