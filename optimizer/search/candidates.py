"""The next best recipes that differ from the best one, among the trials of finished searches.

A recipe differs if in some scored block a source has another share in the merge: alphas may differ and mean the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from optuna.trial import FrozenTrial

from optimizer.recipes import Space
from optimizer.search.results import SearchResult
from optimizer.search.trials import ranked

__all__ = ["APART", "Choice", "different"]

# By how much some source's coefficient differs, in some scored block, between recipes that count as different. It is
# the spacing of the alphas that people choose by hand.
APART = 0.05


@dataclass(frozen=True)
class Choice:
    """A completed trial of a search and how far its coefficients are `apart` from the best one's."""

    search: SearchResult
    trial: FrozenTrial
    apart: float

    @property
    def similarity(self) -> float:
        """Its total."""
        return float(self.trial.values[0])

    @property
    def loss(self) -> float:
        """What it is below the best."""
        assert self.search.best is not None
        return float(self.search.best.values[0]) - self.similarity


def different(search: SearchResult, space: Space, count: int, base: str | None = None) -> tuple[Choice, ...]:
    """At most `count` trials of a search, the best first, each `APART` or more from the best and from those before it.

    With `base` the common scale of the other sources' coefficients in a block does not count, as a cosine of
    differences from the base does not see it.
    """
    best = search.best
    if best is None:
        return ()
    kept = [_coefficients(search, space, best)]
    found: list[Choice] = []
    without = None if base is None else [row for row, name in enumerate(space.algebra.sources) if name != base]
    for trial in ranked(search.completed):
        if len(found) == count:
            break
        own = _coefficients(search, space, trial)
        if min(_distance(other, own, without) for other in kept) >= APART:
            found.append(Choice(search, trial, _distance(kept[0], own, without)))
            kept.append(own)
    return tuple(found)


def _coefficients(search: SearchResult, space: Space, trial: FrozenTrial) -> torch.Tensor:
    """The trial's coefficients, float64 [groups of scored blocks, sources]."""
    point = [trial.params[parameter.name] for parameter in search.parameters]
    scored = [row for row, group in enumerate(space.algebra.groups) if group.block in search.stage.blocks]
    return space.coefficients(torch.tensor([point], dtype=torch.float64))[0, scored]


def _distance(one: torch.Tensor, other: torch.Tensor, without_base: Sequence[int] | None) -> float:
    if without_base is not None:
        one, other = one[:, without_base], other[:, without_base]
        scale = (one * other).sum(dim=1, keepdim=True) / (other * other).sum(dim=1, keepdim=True).clamp_min(1e-300)
        other = other * scale.clamp_min(0)
    return float((one - other).abs().max())
