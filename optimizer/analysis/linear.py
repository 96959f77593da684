"""The best linear merge of the sources, from products of their differences, and least squares with errors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy  # loads its modules on first use
from numpy.typing import NDArray

from optimizer.recipes import Group
from optimizer.similarity import Measured, Statistics

__all__ = [
    "RANK",
    "Linear",
    "Matrix",
    "Vector",
    "largest_cosine",
    "largest_share",
    "largest_similarity",
    "least_squares_with_errors",
    "tensor_weights",
]

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

# Eigenvalues and singular values below this share of the largest count as 0.
RANK = 1e-11
# A projection shorter than this, in units of the target's length, counts as zero.
_NOTHING = 1e-7
# A corner of a cone is added if its cosine with the rest of the target exceeds this; at most so many are added.
_NEARER = 1e-13
_CORNERS = 1000
# Rounds of weighting the tensors, and the least share of a tensor that counts as unexplained.
_TURNS = 4
_EXPLAINED = 1e-9


def largest_cosine(
    products: Matrix, with_target: Vector, target: float, corner: Callable[[Vector], Vector] | None = None
) -> float:
    """Return the largest cosine of X x with a target over all x, or over a cone of x.

    The projection onto the cone is found by adding the corner nearest to the direction of the rest of the target, and
    solving again over all corners added so far (P. Wolfe, Finding the nearest point in a polytope, 1976). The columns
    need not be independent. The search ends when no corner would come nearer to the target.

    Args:
        products: X'X, [n, n].
        with_target: X't, [n].
        target: t't.
        corner: A function of a direction [n]. The cone consists of the non-negative sums of finitely many x; the
            function returns the one farthest in the direction. None for all x.

    Returns:
        The cosine; 0, the similarity of a zero vector, if only x = 0 comes near the target.
    """
    size = np.sqrt(np.diag(products).clip(min=0.0))
    nonzero = size > 1e-150
    if target <= 0 or not nonzero.any():
        return 0.0
    # Scale the columns to length 1: a base is about ten thousand times as long as a difference from it.
    size = size[nonzero]
    scaled = products[np.ix_(nonzero, nonzero)] / np.outer(size, size)
    pulled = with_target[nonzero] / (size * math.sqrt(target))
    lengths, axes = np.linalg.eigh(scaled)
    spanned = lengths > RANK * lengths[-1]
    roots, axes = np.sqrt(lengths[spanned]), axes[:, spanned]
    # These coordinates span the columns of X; the target is represented by its projection onto that span.
    columns, projected = roots[:, None] * axes.T, axes.T @ pulled / roots
    if corner is None:
        return float(np.clip(np.linalg.norm(projected), 0.0, 1.0))
    nearest = np.zeros_like(projected)
    corners: list[Vector] = []
    for _ in range(_CORNERS):
        direction = np.zeros(len(nonzero))
        direction[nonzero] = size * (columns.T @ (projected - nearest))
        candidate = columns @ (corner(direction)[nonzero] * size)
        length = float(np.linalg.norm(candidate))
        if length <= _NOTHING or (projected - nearest) @ candidate <= _NEARER * length:
            break
        corners.append(candidate / length)
        matrix = np.stack(corners, axis=1)
        shares, _ = scipy.optimize.nnls(matrix, projected)
        nearest = matrix @ shares
    # For equal sources, rounding leaves a short projection of one that is exactly zero.
    reached = float(np.linalg.norm(nearest))
    return float(np.clip(projected @ nearest / reached, 0.0, 1.0)) if reached > _NOTHING else 0.0


@dataclass(frozen=True)
class Linear:
    """A block's merges as X x, with x = (s, y of the first group, y of the second, ...), or x = (y, ...) for `delta`.

    `products` is X'X, `with_target` X't, `target` t't. `free` has an entry for each group that counts: the positions of
    its y in x, and whether its pivot is the reference.
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
        """Return the merges of a block, in whole weights or in differences from the reference.

        Args:
            statistics: The Gram matrices of the checkpoints.
            groups: The groups of tensors.
            block: The block.
            without: The position of a source to leave out, or None.
            whole: Whether whole weights are merged.

        Returns:
            The merges as a linear map.
        """
        gram, group = statistics.gram.numpy(), statistics.group.numpy()
        in_block = np.array([name == block for name in statistics.blocks])
        summed: list[Matrix] = []
        maps: list[Matrix] = []
        free: list[tuple[tuple[int, ...], bool]] = []
        width = int(whole)
        for row in np.unique(group[in_block]):
            chosen = in_block & (group == row)
            # The same sources contain all tensors of a group, so the reference contains all of them or none.
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
            of_x = np.array([*([0] if whole else []), *places], dtype=int)
            products[np.ix_(of_x, of_x)] += expand.T @ of_group @ expand
            with_target[of_x] += expand.T @ of_group @ aim
            target += float(aim @ of_group @ aim)
        return Linear(products, with_target, target, whole, tuple(free))

    def corner(self, direction: Vector, *, with_base: bool) -> Vector:
        """Return the corner of the cone 0 <= y_k <= s that is farthest in a direction.

        The bounds hold for all sources in every group, except for the base. The corners have s = 1. Differences have no
        s, and a cosine ignores their length, so their corners are the unit vectors.

        Args:
            direction: A vector of the size of x.
            with_base: Whether the study has a base.

        Returns:
            The corner, of the size of x.
        """
        corner = np.zeros(len(direction))
        if not self.scaled:
            corner[direction.argmax()] = 1.0
            return corner
        corner[0] = 1.0
        for places, referenced in self.free:
            of_group = np.array(places, dtype=int)
            if with_base and referenced:
                corner[of_group[direction[of_group] > 0]] = 1.0
            elif len(of_group) and direction[of_group].max() > 0:
                # The pivot is bounded too. Its share is the rest of s, so the sum of all y must not exceed s.
                corner[of_group[direction[of_group].argmax()]] = 1.0
        return corner


def _directions(gram: Matrix, holders: Sequence[int], referenced: bool) -> tuple[Matrix, Matrix]:
    """Return the vectors that s and the y_k of a group multiply, [K + 2, 1] and [K + 2, n], in rows of the Gram matrix.

    If the reference contains the group, it is the pivot. If it is also a source, its difference is zero and is left
    out.
    """
    unit = np.eye(len(gram))
    if referenced:
        return unit[:, :1], unit[:, [holder for holder in holders if gram[holder, holder] > 0]]
    pivot = unit[:, holders[:1]].sum(axis=1, keepdims=True)
    return pivot, unit[:, holders[1:]] - pivot


def _least_squares(summed: Matrix, asked: Sequence[int]) -> Vector:
    """Return coefficients [..., asked] from Gram matrices [..., K + 1, K + 1]."""
    products = summed[..., asked, :][..., :, asked]
    pulled = summed[..., asked, -1]
    # Scale nonzero columns to length 1, so that a source close to the base counts as much as a distant one.
    size = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1).clip(min=0.0))
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 1e-150)
    scaled = products * inverse[..., :, None] * inverse[..., None, :]
    found = np.linalg.pinv(scaled, rcond=RANK, hermitian=True) @ (pulled * inverse)[..., None]
    return np.asarray(found[..., 0] * inverse)


def least_squares_with_errors(gram: Matrix, asked: Sequence[int]) -> list[tuple[float, float | None]]:
    """Return (coefficient, jackknife error) of the sources `asked`, from Gram matrices [tensors, K + 1, K + 1]."""
    total = gram.sum(axis=0)
    found = _least_squares(total, asked).tolist()
    count = len(gram)
    if count < 2:
        return [(value, None) for value in found]
    left_out = _least_squares(total - gram, asked)
    spread = ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    return list(zip(found, np.sqrt((count - 1) / count * spread).tolist(), strict=True))


def tensor_weights(gram: Matrix, sizes: Vector, asked: Sequence[int]) -> Vector:
    """Return the weight of each tensor: its size divided by its unexplained part, found iteratively."""
    weights = np.ones(len(gram))
    target = gram[:, -1, -1]
    for _ in range(_TURNS):
        found = _least_squares((gram * weights[:, None, None]).sum(axis=0), asked)
        full = np.zeros(gram.shape[-1])
        full[list(asked)], full[-1] = -found, 1.0
        left = np.einsum("k,tkl,l->t", full, gram, full)
        # Rounding leaves a rest even where everything is explained. A tensor equal to the base has weight 0.
        left = np.maximum(left, _EXPLAINED * target)
        weights = np.divide(sizes, left, out=np.zeros_like(left), where=left > 0)
        weights /= max(float(weights.max(initial=0.0)), 1e-300)
    return weights


def largest_similarity(
    measured: Measured, metric: str, block: str, *, bounded: bool = False, without: int | None = None
) -> float:
    """Return the largest similarity of a block that any linear merge of the sources reaches.

    Args:
        measured: The statistics of the checkpoints.
        metric: One of `EXACT_METRICS`.
        block: The block.
        bounded: Whether coefficients, except the base's, must be in 0 to 1.
        without: The position of a source to leave out.

    Returns:
        The similarity, in [-1, 1]; NaN for a block without anything to explain.
    """
    if metric == "explained":
        return largest_share(measured, block, bounded=bounded, without=without)
    linear = Linear.of_block(measured.statistics, measured.groups, block, without, whole=metric == "weights")
    corner = partial(linear.corner, with_base=measured.base is not None) if bounded else None
    return largest_cosine(linear.products, linear.with_target, linear.target, corner)


def largest_share(measured: Measured, block: str, *, bounded: bool = False, without: int | None = None) -> float:
    """Return the largest share of a block's difference from the base that any merge explains.

    Args:
        measured: The statistics of the checkpoints.
        block: The block.
        bounded: Whether coefficients, except the base's, must be in 0 to 1.
        without: The position of a source to leave out.

    Returns:
        The share, in [-1, 1]; NaN for a block that the target took over from the base.
    """
    statistics, groups = measured.statistics, measured.groups
    gram, group = statistics.gram.numpy(), statistics.group.numpy()
    in_block = np.array([name == block for name in statistics.blocks])
    left = difference = 0.0
    for row in np.unique(group[in_block]):
        chosen = in_block & (group == row)
        of_group = gram[chosen].sum(axis=0)
        referenced = bool(statistics.referenced.numpy()[chosen].all())
        holders = groups[row].holders
        # Differences of the target and all sources from the base, or from the first source that contains the group.
        unit = np.eye(len(of_group))
        origin = np.zeros(len(of_group)) if referenced else unit[:, 1 + holders[0]]
        aim = unit[:, -1] - origin
        difference += max(float(aim @ of_group @ aim), 0.0)
        moving = [unit[:, 1 + position] - origin for position in holders if position != without]
        moving = [direction for direction in moving if direction @ of_group @ direction > 0]
        if not moving:
            left += max(float(aim @ of_group @ aim), 0.0)
            continue
        columns = np.stack(moving, axis=1)
        left += _unexplained(columns.T @ of_group @ columns, columns.T @ of_group @ aim, float(aim @ of_group @ aim),
                             within=(not bounded, referenced))  # fmt: skip
    return float(np.clip(1 - left / difference, -1.0, 1.0)) if difference > 0 else math.nan


def _unexplained(products: Matrix, with_target: Vector, target: float, within: tuple[bool, bool]) -> float:
    """Return the smallest |X y - t|^2 over y.

    `products` is X'X [n, n], `with_target` X't [n], `target` t't. `within` holds two flags. The first frees y. If it is
    off, each y is in 0 to 1, and without the second flag so is 1 less their sum, the origin's share.
    """
    free, box = within
    size = np.sqrt(np.diag(products))
    values, axes = np.linalg.eigh(products / np.outer(size, size))
    spanned = values > RANK * values[-1]
    roots, axes = np.sqrt(values[spanned]), axes[:, spanned]
    # These coordinates span the columns of X; the target is represented by its projection onto that span.
    columns, projected = roots[:, None] * axes.T * size, axes.T @ (with_target / size) / roots
    beyond = max(target - float(projected @ projected), 0.0)
    if free:
        return beyond
    if box:
        found = scipy.optimize.lsq_linear(
            columns, projected, bounds=(0.0, 1.0), method="bvls", tol=1e-15, max_iter=1000
        ).x
        rest = columns @ found - projected
        return beyond + float(rest @ rest)
    # The point of a simplex nearest to zero: the u >= 0 with the smallest |D u|^2 + (sum u - 1)^2, scaled to the sum 1.
    # In units of the target, so that neither term is lost in the rounding of the other.
    length = max(float(np.linalg.norm(projected)), 1e-150)
    corners = np.concatenate([np.zeros((len(projected), 1)), columns], axis=1) - projected[:, None]
    shares, _ = scipy.optimize.nnls(
        np.concatenate([corners / length, np.ones((1, corners.shape[1]))]), np.eye(len(projected) + 1)[-1]
    )
    rest = corners @ (shares / shares.sum())
    return beyond + float(rest @ rest)
