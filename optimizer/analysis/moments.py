"""The moments of a merge as functions of a few free alphas, with exact derivatives.

A merge's coefficients are affine in each free alpha. A merge at a point is therefore the mean of the merges at the
corners of the unit cube of the alphas, weighted by products of x and 1 - x. With few alphas, products of the merges at
the corners are summed once, and a point costs a few multiplications of small arrays. With many alphas there are too
many corners, and the recipe's algebra is evaluated at every point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.recipes import Space
from optimizer.similarity import QuadraticMetric

__all__ = ["Derivatives", "Moments", "moments_of"]

Array = NDArray[np.float64]

# With more free alphas, the corners cost more than the algebra.
_MOST_ALPHAS = 6


@dataclass(frozen=True)
class Derivatives:
    """The moments of a merge m at a point x, and products of its derivatives, all float64, by block.

    Attributes:
        linear: m . target, [blocks].
        quadratic: m . m, [blocks].
        pulled: dm/dx . target, [alphas, blocks].
        along: dm/dx . m, [alphas, blocks].
    """

    linear: Array
    quadratic: Array
    pulled: Array
    along: Array


class Moments(Protocol):
    """The moments of the merges at points of a space of free alphas."""

    def at(self, points: Array) -> tuple[Array, Array]:
        """Return m . target and m . m at points [n, alphas], both float64 [n, blocks]."""
        ...

    def derivatives(self, point: Array) -> Derivatives:
        """Return the moments and their first derivatives at a point [alphas]."""
        ...

    def curvature(self, point: Array) -> Array:
        """Return dm/dx . dm/dy at a point [alphas], float64 [alphas, alphas, blocks]."""
        ...

    def jacobian(self, point: Array) -> Array:
        """Return the derivatives of the coefficients at a point [alphas], float64 [alphas, groups, sources]."""
        ...


def moments_of(space: Space, metric: QuadraticMetric, rows: Sequence[int], block: Sequence[int]) -> Moments:
    """Return the moments of a metric over some groups.

    Args:
        space: The space of the free alphas, over the groups `rows` alone.
        metric: The metric.
        rows: Positions of the groups among those of `metric`.
        block: Position of each group's block among the scored blocks.

    Returns:
        The moments.
    """
    kind = _Corners if len(space.parameters) <= _MOST_ALPHAS else _Expanded
    return kind(space, metric.products[list(rows)], metric.with_target[list(rows)], list(block))


class _Corners:
    """Moments from the merges at the corners of the unit cube of the alphas."""

    def __init__(self, space: Space, products: torch.Tensor, with_target: torch.Tensor, block: list[int]) -> None:
        alphas = len(space.parameters)
        # [corners, alphas], True where the alpha is 1.
        self._ones = (np.arange(2**alphas)[:, None] >> np.arange(alphas)) % 2 == 1
        self._signs = np.where(self._ones, 1.0, -1.0)
        corners = space.coefficients(torch.from_numpy(self._ones.astype(np.float64)))
        self._coefficients = corners.numpy()
        placed = torch.zeros(max(block, default=-1) + 1, len(block), dtype=torch.float64)
        placed[block, range(len(block))] = 1.0
        self._linear = torch.einsum("cgk,gk,bg->bc", corners, with_target, placed).numpy()
        weighted = torch.einsum("cgk,gkl->cgl", corners, products)
        self._quadratic = torch.einsum("cgl,dgl,bg->bcd", weighted, corners, placed).numpy()

    def at(self, points: Array) -> tuple[Array, Array]:
        weights = np.where(self._ones, points[:, None], 1 - points[:, None]).prod(axis=-1)
        quadratic = np.einsum("bnc,nc->nb", weights @ self._quadratic, weights)
        return weights @ self._linear.T, quadratic

    def derivatives(self, point: Array) -> Derivatives:
        weights, slopes = self._weights(point)
        weighted = self._quadratic @ weights
        return Derivatives(
            linear=self._linear @ weights,
            quadratic=weighted @ weights,
            pulled=slopes @ self._linear.T,
            along=slopes @ weighted.T,
        )

    def curvature(self, point: Array) -> Array:
        _, slopes = self._weights(point)
        return np.asarray(np.moveaxis(slopes @ self._quadratic @ slopes.T, 0, -1))

    def jacobian(self, point: Array) -> Array:
        return np.tensordot(self._weights(point)[1], self._coefficients, axes=1)

    def _weights(self, point: Array) -> tuple[Array, Array]:
        """Return the weight of each corner at a point [alphas], [corners], and its derivatives [alphas, corners]."""
        factors = np.where(self._ones, point, 1 - point)
        by_alpha = np.repeat(factors[None], len(point), axis=0)
        places = np.arange(len(point))
        by_alpha[places, :, places] = self._signs.T
        return factors.prod(axis=-1), by_alpha.prod(axis=-1)


class _Expanded:
    """Moments from the recipe's algebra."""

    def __init__(self, space: Space, products: torch.Tensor, with_target: torch.Tensor, block: list[int]) -> None:
        self._space = space
        self._moves = space.moves()
        self._products, self._with_target = products, with_target
        self._block = torch.tensor(block, dtype=torch.long)
        self._blocks = max(block, default=-1) + 1

    def at(self, points: Array) -> tuple[Array, Array]:
        coefficients = self._space.coefficients(torch.from_numpy(points))
        linear = torch.einsum("ngk,gk->ng", coefficients, self._with_target)
        quadratic = torch.einsum("ngk,gkl,ngl->ng", coefficients, self._products, coefficients)
        return self._sum(linear), self._sum(quadratic)

    def derivatives(self, point: Array) -> Derivatives:
        coefficients, jacobian = self._expand(point)
        weighted = (self._products @ coefficients[:, :, None])[:, :, 0]
        return Derivatives(
            linear=self._sum((self._with_target * coefficients).sum(dim=-1)),
            quadratic=self._sum((weighted * coefficients).sum(dim=-1)),
            pulled=self._sum(torch.einsum("pag,ag->pg", self._moves, (jacobian * self._with_target).sum(dim=-1))),
            along=self._sum(torch.einsum("pag,ag->pg", self._moves, (jacobian * weighted).sum(dim=-1))),
        )

    def curvature(self, point: Array) -> Array:
        moved = torch.from_numpy(self.jacobian(point))
        return self._sum(torch.einsum("pgk,gkl,qgl->pqg", moved, self._products, moved))

    def jacobian(self, point: Array) -> Array:
        _, jacobian = self._expand(point)
        return np.asarray(torch.einsum("pag,agk->pgk", self._moves, jacobian).numpy())

    def _expand(self, point: Array) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self._space.alphas(torch.from_numpy(np.asarray(point, dtype=np.float64))[None])[0]
        return self._space.algebra.jacobian(alphas)

    def _sum(self, by_group: torch.Tensor) -> Array:
        """Return the sums over the groups of each block: [..., groups] to [..., blocks]."""
        sums = torch.zeros(*by_group.shape[:-1], self._blocks, dtype=torch.float64)
        return np.asarray(sums.index_add(-1, self._block, by_group).numpy())
