"""The next best recipes that differ from the best one, among the trials of finished searches.

A recipe differs if in some scored block a source has another share in the merge: alphas may differ and mean the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from optuna.trial import FrozenTrial

from optimizer.search.results import SearchResult
from optimizer.search.space import Space

__all__ = ["APART", "Choice", "different"]

# By how much some source's coefficient differs, in some scored block, between recipes that count as different. It is
# the spacing of the alphas that people choose by hand.
APART = 0.05


@dataclass(frozen=True)
class Choice:
    """A trial of a search, with its similarity, its loss and its distance from the best."""

    search: SearchResult
    trial: FrozenTrial
    similarity: float
    loss: float
    apart: float


def different(searches: Sequence[tuple[SearchResult, Space]], count: int) -> tuple[Choice, ...]:
    """At most `count` trials, the smallest loss first, each `APART` or more from the best and from those before it."""
    choices = sorted(
        (choice for search, space in searches for choice in _choices(search, space, count)),
        key=lambda choice: (choice.loss, choice.trial.number),
    )
    return tuple(choices[:count])


def _choices(search: SearchResult, space: Space, count: int) -> Iterator[Choice]:
    best = search.best
    if best is None:
        return
    kept = [_coefficients(search, space, best)]
    for trial in sorted(search.completed, key=lambda trial: (-trial.values[0], trial.number)):
        if len(kept) > count:
            return
        own = _coefficients(search, space, trial)
        if min(_distance(own, other) for other in kept) >= APART:
            yield Choice(search, trial, trial.values[0], best.values[0] - trial.values[0], _distance(own, kept[0]))
            kept.append(own)


def _coefficients(search: SearchResult, space: Space, trial: FrozenTrial) -> torch.Tensor:
    """The trial's coefficients, float64 [groups of scored blocks, sources]."""
    point = [trial.params[parameter.name] for parameter in search.parameters]
    scored = [row for row, group in enumerate(space.algebra.groups) if group.block in search.stage.blocks]
    return space.coefficients(torch.tensor([point], dtype=torch.float64))[0, scored]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())
