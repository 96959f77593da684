"""The best linear merge of the sources, from products of their differences, and least squares with errors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from optimizer.recipes import Group
from optimizer.similarity import Statistics

__all__ = ["RANK", "Linear", "Matrix", "Vector", "largest_cosine", "least_squares_with_errors", "tensor_weights"]

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

# Eigenvalues and singular values below this share of the largest count as 0.
RANK = 1e-11
# The length, in units of the target's, below which a projection counts as zero.
_NOTHING = 1e-7
# A corner of a cone is added if the rest of the target has more than this cosine with it, and so many at most.
_NEARER = 1e-13
_CORNERS = 1000
# How often tensors are weighed anew, and the least share of a tensor that counts as unexplained.
_TURNS = 4
_EXPLAINED = 1e-9


def largest_cosine(
    products: Matrix, with_target: Vector, target: float, corner: Callable[[Vector], Vector] | None = None
) -> float:
    """The largest cosine of X x with a target over all x, or over the cone that `corner` tells the corners of.

    `products` is X'X [n, n], `with_target` X't [n], `target` t't. `corner(direction)` [n] is the one farthest in that
    direction of finitely many x whose non-negative sums are the cone.
    0 if nothing but x = 0 comes near the target, as the similarity of a zero vector is.

    The projection onto the cone is found by adding the corner that the rest of the target points to most, and solving
    again over all that were added (P. Wolfe, Finding the nearest point in a polytope, 1976). It needs no independent
    columns, and it ends when no corner would bring it nearer.
    """
    size = np.sqrt(np.diag(products).clip(min=0.0))
    there = size > 1e-150
    if target <= 0 or not there.any():
        return 0.0
    # With columns of length 1: a base is ten thousand times as long as a difference from it.
    size = size[there]
    scaled = products[np.ix_(there, there)] / np.outer(size, size)
    pulled = with_target[there] / (size * math.sqrt(target))
    lengths, axes = np.linalg.eigh(scaled)
    spanned = lengths > RANK * lengths[-1]
    roots, axes = np.sqrt(lengths[spanned]), axes[:, spanned]
    # In these coordinates the columns are X itself, and the target is its projection onto them.
    columns, projected = roots[:, None] * axes.T, axes.T @ pulled / roots
    if corner is None:
        return float(np.clip(np.linalg.norm(projected), 0.0, 1.0))
    nearest = np.zeros_like(projected)
    corners: list[Vector] = []
    for _ in range(_CORNERS):
        direction = np.zeros(len(there))
        direction[there] = size * (columns.T @ (projected - nearest))
        found = columns @ (corner(direction)[there] * size)
        length = float(np.linalg.norm(found))
        if length <= _NOTHING or (projected - nearest) @ found <= _NEARER * length:
            break
        corners.append(found / length)
        matrix = np.stack(corners, axis=1)
        shares, _ = nnls(matrix, projected)
        nearest = matrix @ shares
    # A projection shorter than this is what rounding leaves of none at all where sources are equal.
    reached = float(np.linalg.norm(nearest))
    return float(np.clip(projected @ nearest / reached, 0.0, 1.0)) if reached > _NOTHING else 0.0


@dataclass(frozen=True)
class Linear:
    """A block's merges as X x, with x = (s, y of the first group, y of the second, ...), or x = (y, ...) for `delta`.

    `products` X'X, `with_target` X't, `target` t't. `free` has, for each group that counts, the positions in x of its
    y, and whether its pivot is the reference.
    """

    products: Matrix
    with_target: Vector
    target: float
    scaled: bool
    free: tuple[tuple[tuple[int, ...], bool], ...]

    @staticmethod
    def of_block(
        statistics: Statistics, groups: Sequence[Group], block: str, without: int | None, *, whole: bool
    ) -> "Linear":
        """The merges of `block`; of its whole weights, or of their differences from the reference."""
        gram, group = statistics.gram.numpy(), statistics.group.numpy()
        in_block = np.array([each == block for each in statistics.blocks])
        summed: list[Matrix] = []
        maps: list[Matrix] = []
        free: list[tuple[tuple[int, ...], bool]] = []
        width = int(whole)
        for row in np.unique(group[in_block]):
            chosen = in_block & (group == row)
            # All tensors of a group are held by the same sources, so by the reference all of them or none.
            referenced = bool(statistics.referenced.numpy()[chosen].all())
            if not whole and not referenced:
                continue
            holders = [1 + position for position in groups[row].holders if position != without]
            of_group = gram[chosen].sum(axis=0)
            pivot, moving = _directions(of_group, holders, referenced)
            free.append((tuple(range(width, width + moving.shape[1])), referenced))
            width += moving.shape[1]
            summed.append(of_group)
            maps.append(np.concatenate([pivot, moving], axis=1) if whole else moving)
        products, with_target, target = np.zeros((width, width)), np.zeros(width), 0.0
        aim = np.zeros(gram.shape[-1])
        aim[0], aim[-1] = float(whole), 1.0
        for of_group, expand, (places, _) in zip(summed, maps, free, strict=True):
            own = np.array([*([0] if whole else []), *places], dtype=int)
            products[np.ix_(own, own)] += expand.T @ of_group @ expand
            with_target[own] += expand.T @ of_group @ aim
            target += float(aim @ of_group @ aim)
        return Linear(products, with_target, target, whole, tuple(free))

    def corner(self, direction: Vector, *, with_base: bool) -> Vector:
        """Of the corners of 0 <= y_k <= s, for all sources but the base in every group, the farthest in `direction`.

        They have s = 1; of differences, where there is no s and no length counts, they are the unit vectors.
        """
        found = np.zeros(len(direction))
        if not self.scaled:
            found[direction.argmax()] = 1.0
            return found
        found[0] = 1.0
        for places, referenced in self.free:
            own = np.array(places, dtype=int)
            if with_base and referenced:
                found[own[direction[own] > 0]] = 1.0
            elif len(own) and direction[own].max() > 0:
                # Where the pivot is bounded too, it has what the others leave of s, so none of them exceeds s.
                found[own[direction[own].argmax()]] = 1.0
        return found


def _directions(gram: Matrix, holders: Sequence[int], referenced: bool) -> tuple[Matrix, Matrix]:
    """What s and the y_k of a group multiply, [K + 2, 1] and [K + 2, n], in terms of the Gram matrix's rows.

    Where the reference holds the group, it is the pivot; its own difference, if it is a source, is zero and left out.
    """
    unit = np.eye(len(gram))
    if referenced:
        return unit[:, :1], unit[:, [holder for holder in holders if gram[holder, holder] > 0]]
    pivot = unit[:, holders[:1]].sum(axis=1, keepdims=True)
    return pivot, unit[:, holders[1:]] - pivot


def _least_squares(summed: Matrix, asked: Sequence[int]) -> Vector:
    """Coefficients [..., asked] from Gram matrices [..., K + 1, K + 1]."""
    products = summed[..., asked, :][..., :, asked]
    pulled = summed[..., asked, -1]
    # With columns of length 1, or 0: a source close to the base counts as much as one far from it.
    size = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1).clip(min=0.0))
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 1e-150)
    scaled = products * inverse[..., :, None] * inverse[..., None, :]
    found = np.linalg.pinv(scaled, rcond=RANK, hermitian=True) @ (pulled * inverse)[..., None]
    return np.asarray(found[..., 0] * inverse)


def least_squares_with_errors(gram: Matrix, asked: Sequence[int]) -> list[tuple[float, float | None]]:
    """(coefficient, jackknife error) of the `asked` sources, from Gram matrices [tensors, K + 1, K + 1]."""
    total = gram.sum(axis=0)
    found = _least_squares(total, asked).tolist()
    count = len(gram)
    if count < 2:
        return [(value, None) for value in found]
    left_out = _least_squares(total - gram, asked)
    spread = ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    return list(zip(found, np.sqrt((count - 1) / count * spread).tolist(), strict=True))


def tensor_weights(gram: Matrix, sizes: Vector, asked: Sequence[int]) -> Vector:
    """What each tensor counts: its size over what the sources leave unexplained of it, found by turns."""
    weights = np.ones(len(gram))
    target = gram[:, -1, -1]
    for _ in range(_TURNS):
        found = _least_squares((gram * weights[:, None, None]).sum(axis=0), asked)
        full = np.zeros(gram.shape[-1])
        full[list(asked)], full[-1] = -found, 1.0
        left = np.einsum("k,tkl,l->t", full, gram, full)
        # Rounding leaves something of all that is explained; a tensor that nobody has changed tells nothing.
        left = np.maximum(left, _EXPLAINED * target)
        weights = np.divide(sizes, left, out=np.zeros_like(left), where=left > 0)
        weights /= max(float(weights.max(initial=0.0)), 1e-300)
    return weights
