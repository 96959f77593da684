"""The evidence for a verdict: rounding floors, and the sources that tensors which were not fitted on confirm.

All figures are of the tensors that the reference holds, in squared differences from the reference. A share is a part of
the target's squared difference from the reference, summed over the tensors of a block; totals are means over blocks, as
those of `explained` are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.analysis.linear import RANK, Matrix, Vector, least_squares_with_errors, tensor_weights
from optimizer.similarity import Measured

__all__ = ["NOTHING", "SIGMAS", "Evidence", "SourceEvidence", "rounding_error"]

SIGMAS = 3.0
"""A gain below this many standard errors may be chance."""

NOTHING = 1e-12
"""Shares below this are rounding of the sums."""


@dataclass(frozen=True)
class SourceEvidence:
    """What the tensors say about one source.

    Attributes:
        coefficient: Mean over the blocks of its coefficient in the target.
        error: Standard error of `coefficient`, from the jackknife; None for too few tensors.
        least: Smallest coefficient of a block.
        most: Largest coefficient of a block.
        gain: Share of the tensors that were not fitted on which the merge explains only with this source.
        gain_error: Standard error of `gain`.
        inside: Whether the target needs the source.
    """

    coefficient: float
    error: float | None
    least: float
    most: float
    gain: float
    gain_error: float
    inside: bool


def rounding_error(squares: Vector, counts: Vector, dtype: torch.dtype) -> Vector:
    """Return the expected squared error of rounding tensors to a dtype.

    An error is uniform within half a step of its number, eps * 2^e for a number m * 2^e. With log-uniform m in [1, 2),
    as in numbers of any scale (R. W. Hamming, On the distribution of numbers, 1970), the mean of 1 / m^2 is
    3 / (8 ln 2).

    Args:
        squares: Sums of squares of the tensors.
        counts: Numbers of elements.
        dtype: A floating-point dtype.

    Returns:
        Sums of squared errors.
    """
    limits = torch.finfo(dtype)
    least_step = limits.smallest_normal * limits.eps
    expected = (3 / (8 * math.log(2)) * limits.eps**2 * squares + least_step**2 * counts) / 12
    # Numbers below half the least step become 0.
    return np.minimum(expected, squares)


@dataclass(frozen=True)
class Evidence:
    """The Gram matrices of some blocks of a study, for questions to the tensors.

    Attributes:
        names: Names of the sources without the reference: the first columns of `gram`.
        gram: Products of the differences from the reference, sources, then target, float64 [tensors, K + 1, K + 1].
        block: Position of each tensor's block among those given, int [tensors].
        sizes: Numbers of elements, float64 [tensors].
        squares: Sums of squares of the target's tensors, float64 [tensors].
        base_squares: Sums of squares of the reference's tensors, float64 [tensors].
        floors: Expected squared error of rounding the target, float64 [tensors].
        matrices: Whether a tensor is a matrix or a 1x1 convolution, bool [tensors].
    """

    names: tuple[str, ...]
    gram: Matrix
    block: NDArray[np.int64]
    sizes: Vector
    squares: Vector
    base_squares: Vector
    floors: Vector
    matrices: NDArray[np.bool_]

    @staticmethod
    def of(measured: Measured, blocks: Sequence[str]) -> "Evidence":
        """Return the evidence of `blocks`, without tensors that the target took over from the reference."""
        gram = measured.gram.numpy()
        rows = [
            row
            for row, part in enumerate(measured.scored)
            if part.block in blocks and bool(measured.referenced[row]) and gram[row, -1, -1] > 0
        ]
        names = list(measured.sources)
        columns = [1 + position for position, name in enumerate(names) if name != measured.reference]
        chosen = gram[rows]
        base, cross = chosen[:, 0, 0], chosen[:, 0, -1]
        squares = np.maximum(base + 2 * cross + chosen[:, -1, -1], 0.0)
        parts = [measured.scored[row] for row in rows]
        sizes = np.array([math.prod(part.shape) for part in parts], dtype=np.float64)
        dtypes = [measured.target_dtypes[row] for row in rows]
        floors = np.zeros(len(rows))
        for dtype in set(dtypes):
            same = np.array([other == dtype for other in dtypes], dtype=bool)
            floors[same] = rounding_error(squares[same], sizes[same], dtype)
        kept = [*columns, gram.shape[-1] - 1]
        return Evidence(
            names=tuple(names[column - 1] for column in columns),
            gram=chosen[:, kept][:, :, kept],
            block=np.array([blocks.index(part.block or "") for part in parts], dtype=np.int64),
            sizes=sizes,
            squares=squares,
            base_squares=base,
            floors=floors,
            matrices=np.array(
                [math.prod(part.shape) == math.prod(part.shape[:2]) > part.shape[0] for part in parts], dtype=bool
            ),
        )

    @cached_property
    def blocks(self) -> int:
        """Number of blocks with tensors."""
        return len(np.unique(self.block))

    @cached_property
    def units(self) -> Vector:
        """The squared difference of each tensor's block times the number of blocks: the divisor of shares."""
        return self._of_block(self.gram[:, -1, -1]) * max(self.blocks, 1)

    @cached_property
    def floor(self) -> float:
        """Share that rounding the target once puts out of reach, at most 1."""
        return self._total_share(self.floors)

    def floor_of(self, dtype: torch.dtype) -> float:
        """Return the share that rounding to `dtype` once would put out of reach, at most 1."""
        return self._total_share(rounding_error(self.squares, self.sizes, dtype))

    @cached_property
    def common(self) -> float:
        """Smallest cosine between the differences of two sources from the reference; 0 for fewer than two sources."""
        products = self.gram.sum(axis=0)[:-1, :-1]
        size = np.sqrt(np.diag(products))
        moved = size > 0
        if moved.sum() < 2:
            return 0.0
        cosines = products[np.ix_(moved, moved)] / np.outer(size[moved], size[moved])
        return float(cosines.min())

    @cached_property
    def far(self) -> bool:
        """Whether the target is farther from the reference than zero is: whether it is of another family."""
        return self.is_far(-1)

    def is_far(self, position: int) -> bool:
        """Return the same of a source, by its position in `names`; -1 is the target.

        Norms and biases are nearly the same in many families, so matrices decide where there are any.
        """
        chosen = self.matrices if self.matrices.any() else np.ones(len(self.gram), dtype=bool)
        return bool(self.gram[chosen, position, position].sum() > self.base_squares[chosen].sum())

    def left(self, active: Sequence[int]) -> Vector:
        """Return the unexplained squared difference of each tensor, float64 [tensors].

        The coefficients of the sources `active` are those of their blocks, with weighted tensors, so that tensors which
        the sources explain count most.
        """
        left = np.zeros(len(self.gram))
        for rows in self._rows():
            gram = self.gram[rows]
            weights = tensor_weights(gram, self.sizes[rows], active) if active else np.ones(len(gram))
            found = np.zeros(gram.shape[-1])
            solved = least_squares_with_errors((gram * weights[:, None, None]).sum(axis=0)[None], active)
            found[list(active)], found[-1] = [-value for value, _ in solved], 1.0
            left[rows] = np.einsum("k,tkl,l->t", found, gram, found)
        return left.clip(min=0.0)

    def shares(self, squares: Vector) -> Vector:
        """Return the share of each tensor's block that its squared error is, float64 [tensors], of totals."""
        return np.asarray(squares / self.units)

    def sources(self) -> dict[str, SourceEvidence]:
        """Return what the tensors say about each source.

        Each tensor is predicted with coefficients from the other tensors of its block, with and without a source. The
        source whose absence costs least is dropped, as long as what it costs may be chance or is below the rounding of
        the target; then the others are looked at again, so that of two equal sources one remains. Tensors that
        outweigh the rest of their block are not predicted.

        Returns:
            {source: its evidence}; coefficients of a source are those beside the sources that were not dropped before.
        """
        active, found = list(range(len(self.names))), dict[int, SourceEvidence]()
        while active:
            gains, errors = self._gains(active)
            bounds = np.maximum(SIGMAS * errors, max(self.floor, NOTHING))
            open_ones = [place for place in range(len(active)) if gains[place] <= bounds[place]]
            if not open_ones:
                break
            # Of equal ones the last is dropped.
            place = min(open_ones, key=lambda place: (gains[place], -place))
            position = active[place]
            found[position] = self._described(active, gains, errors, place, inside=False)
            active.remove(position)
        if active:
            gains, errors = self._gains(active)
            for place, position in enumerate(active):
                found[position] = self._described(active, gains, errors, place, inside=True)
        return {name: found[position] for position, name in enumerate(self.names)}

    def _described(
        self, active: Sequence[int], gains: Vector, errors: Vector, place: int, *, inside: bool
    ) -> SourceEvidence:
        values, squared = [], 0.0
        certain = True
        for rows in self._rows():
            gram = self.gram[rows]
            if gram[:, active[place], active[place]].sum() <= 0:
                continue
            weights = tensor_weights(gram, self.sizes[rows], active)
            value, error = least_squares_with_errors(gram * weights[:, None, None], active)[place]
            values.append(value)
            certain = certain and error is not None
            squared += (error or 0.0) ** 2
        if not values:
            return SourceEvidence(0.0, None, 0.0, 0.0, 0.0, 0.0, inside)
        return SourceEvidence(
            coefficient=float(np.mean(values)),
            error=math.sqrt(squared) / len(values) if certain else None,
            least=min(values),
            most=max(values),
            gain=float(gains[place]),
            gain_error=float(errors[place]),
            inside=inside,
        )

    def _gains(self, active: Sequence[int]) -> tuple[Vector, Vector]:
        """Return the share that is explained only with each of `active`, and its standard error, both [active]."""
        gains, variances = np.zeros(len(active)), np.zeros(len(active))
        columns = [*active, self.gram.shape[-1] - 1]
        for rows in self._rows():
            gram, sizes = self.gram[rows][:, columns][:, :, columns], self.sizes[rows]
            predicted = sizes <= sizes.sum() / 2
            if not predicted.any():
                continue
            total = gram.sum(axis=0)
            others = total[None] - gram[predicted]
            full, without = _coefficients(others)
            with_all = _unexplained(gram[predicted], full)
            with_one_less = np.stack([_unexplained(gram[predicted], each) for each in without], axis=1)
            gained = (with_one_less - with_all[:, None]) / self.units[rows][predicted][:, None]
            gains += gained.sum(axis=0)
            if len(gained) > 1:
                variances += len(gained) / (len(gained) - 1) * ((gained - gained.mean(axis=0)) ** 2).sum(axis=0)
            else:
                variances += (gained**2).sum(axis=0)
        return gains, np.sqrt(variances)

    def _rows(self) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self.block == block) for block in np.unique(self.block)]

    def _of_block(self, values: Vector) -> Vector:
        sums = np.bincount(self.block, weights=values, minlength=int(self.block.max(initial=-1)) + 1)
        return np.asarray(sums[self.block])

    def _total_share(self, squares: Vector) -> float:
        """Return the mean over the blocks of a share, each at most 1."""
        shares = [float(squares[rows].sum() / self.gram[rows, -1, -1].sum()) for rows in self._rows()]
        return float(np.mean(np.minimum(shares, 1.0))) if shares else 0.0


def _coefficients(gram: Matrix) -> tuple[Matrix, list[Matrix]]:
    """Return least-squares coefficients [n, K] of Gram matrices [n, K + 1, K + 1], and those without each column.

    Without column k, b_j becomes b_j - P_jk / P_kk * b_k, with P the inverse of the products.
    """
    products, pulled = gram[:, :-1, :-1], gram[:, :-1, -1]
    size = np.sqrt(np.diagonal(products, axis1=1, axis2=2).clip(min=0.0))
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 1e-150)
    scaled = products * inverse[:, :, None] * inverse[:, None, :]
    # Equal sources leave it singular, and a source equal to the base leaves a row of zeros.
    count = scaled.shape[-1]
    scaled = scaled + np.eye(count) * np.where(size > 1e-150, RANK, 1.0)[:, None, :]
    solved = np.linalg.inv(scaled)
    found = np.einsum("nkl,nl->nk", solved, pulled * inverse)
    without = []
    for column in range(count):
        pivot = solved[:, column, column]
        reduced = found - solved[:, :, column] * (found[:, column] / pivot)[:, None]
        reduced[:, column] = 0.0
        without.append(reduced * inverse)
    return found * inverse, without


def _unexplained(gram: Matrix, coefficients: Matrix) -> Vector:
    """Return the squared distances from the target [n], at most its own length: no merge is the worst guess."""
    full = np.concatenate([-coefficients, np.ones((len(coefficients), 1))], axis=1)
    left = np.einsum("nk,nkl,nl->n", full, gram, full).clip(min=0.0)
    return np.asarray(np.minimum(left, gram[:, -1, -1]))
