"""The metrics in weight space, computed from Gram matrices.

explained  per block: 1 - |merged - target|^2 / |base - target|^2, clipped below at -1
weights    per block: cosine of the merged and the target's tensors, all flattened into one vector
delta      the same of their differences from the base
elements   per tensor: cosine of the flattened tensors; a block's value is the plain mean over its tensors

A block that the target took over unchanged from the base has no difference to explain or to point along. It is
`unchanged` for `explained` and `delta`, which do not score it.
"""

import copy
from collections.abc import Collection, Sequence
from typing import Self

import torch

from optimizer.recipes import Group
from optimizer.similarity.statistics import Statistics

__all__ = ["DeltaMetric", "ElementsMetric", "ExplainedMetric", "QuadraticMetric", "WeightsMetric"]

# Differences of two squared lengths below this share (0 to 1) of either are rounding.
_ROUNDING = 1e-13


class QuadraticMetric:
    """Metric with a value per block that depends on two moments of a vector linear in the coefficients.

    With M the products of the sources with each other and l those with the target,

        linear = sum_g l_g . c_g        quadratic = sum_g c_g' M_g c_g        g: the groups of the block

    Attributes:
        blocks: Names of the scored blocks.
        unchanged: Names of requested blocks that are not scored.
        products: M, float64 [groups, K, K].
        with_target: l, float64 [groups, K].
        target: Product of the target with itself, float64 [blocks].
        block_of_group: Position of each group's block, int64 [groups]; -1 for a block that is not scored.
    """

    def __init__(
        self, gram: torch.Tensor, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]
    ) -> None:
        """Sum the Gram matrices of the parts to groups.

        Args:
            gram: Products of sources, then target, in the metric's terms, float64 [parts, K + 1, K + 1].
            statistics: The statistics that `gram` was derived from.
            groups: Rows of coefficients.
            blocks: Names of the blocks to score.
        """
        self.blocks = blocks
        self.unchanged: tuple[str, ...] = ()
        sources = gram.shape[-1] - 1
        chosen = torch.tensor([block in blocks for block in statistics.blocks], dtype=torch.bool)
        summed = torch.zeros(len(groups), sources + 1, sources + 1, dtype=torch.float64)
        summed.index_add_(0, statistics.group[chosen], gram[chosen])
        self.products = summed[:, :sources, :sources].contiguous()
        self.with_target = summed[:, :sources, sources].contiguous()
        self._group_blocks = tuple(group.block for group in groups)
        self._targets = summed[:, sources, sources]
        self._sum_blocks()

    def per_block(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sums over the groups of each block: [..., groups] to [..., blocks]."""
        chosen = self.block_of_group >= 0
        sums = torch.zeros(*values.shape[:-1], len(self.blocks), dtype=values.dtype)
        return sums.index_add(-1, self.block_of_group[chosen], values[..., chosen])

    def moments(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the candidates' products with the target and with themselves, both float64 [n, blocks]."""
        with_target = torch.einsum("ngk,gk->ng", coefficients, self.with_target)
        with_itself = torch.einsum("ngk,gkl,ngl->ng", coefficients, self.products, coefficients)
        return self.per_block(with_target), self.per_block(with_itself)

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Do nothing: a candidate costs a few hundred multiplications anyway."""

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        return self.clip(self.value(*self.moments(coefficients)))

    def clip(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` within the range of the metric."""
        return values.clamp(-1, 1)

    def value(self, linear: torch.Tensor, quadratic: torch.Tensor) -> torch.Tensor:
        """Return the similarities of moments, all float64 [..., blocks], not clipped."""
        return _cosine(linear, quadratic, self.target)

    def slopes(self, linear: torch.Tensor, quadratic: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivatives of `value` by each of the moments, all float64 [..., blocks]."""
        norms = torch.sqrt(quadratic.clamp_min(0) * self.target)
        by_linear = torch.where(norms > 0, 1 / norms.clamp_min(1e-300), torch.zeros_like(norms))
        # cos = l / sqrt(q t), so d cos / dq = -cos / (2 q).
        return by_linear, -linear * by_linear / (2 * quadratic.clamp_min(1e-300))

    def scale(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the factors that bring the candidates' vectors nearest to the target's, float64 [n, blocks]."""
        with_target, with_itself = self.moments(coefficients)
        return torch.where(with_itself > 0, with_target / with_itself.clamp_min(1e-300), torch.zeros_like(with_target))

    @property
    def unit(self) -> torch.Tensor:
        """Divisor that makes |merged - target|^2 comparable between blocks, float64 [blocks]."""
        return self.target

    def of_blocks(self, blocks: Collection[str]) -> Self:
        """Return the same metric over those of its blocks that are among `blocks`."""
        part = copy.copy(self)
        part.blocks, part.unchanged = tuple(block for block in self.blocks if block in blocks), ()
        part._sum_blocks()
        return part

    def _sum_blocks(self) -> None:
        """Update the attributes that depend on `blocks`."""
        self.block_of_group = torch.tensor(
            [self.blocks.index(block) if block in self.blocks else -1 for block in self._group_blocks], dtype=torch.long
        )
        self.target = self.per_block(self._targets)

    def _leave_out(self, sizes: torch.Tensor) -> None:
        """Remove the blocks whose size, float64 [blocks], is not above 0."""
        unchanged = [block for block, size in zip(self.blocks, sizes.tolist(), strict=True) if size <= 0]
        self.unchanged = tuple(unchanged)
        self.blocks = tuple(block for block in self.blocks if block not in unchanged)
        self._sum_blocks()


class WeightsMetric(QuadraticMetric):
    """Cosine of the whole weights, per block; 0 for a zero vector."""

    def __init__(self, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]) -> None:
        super().__init__(_whole(statistics), statistics, groups, blocks)


class DeltaMetric(QuadraticMetric):
    """Cosine of the differences from the base, per block; 0 for a merge equal to the base.

    Tensors that the base lacks do not count.
    """

    def __init__(self, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]) -> None:
        differences = statistics.gram[:, 1:, 1:] * statistics.referenced[:, None, None]
        super().__init__(differences, statistics, groups, blocks)
        self._leave_out(self.target)


class ExplainedMetric(QuadraticMetric):
    """Share of the target's squared difference from the base that a merge explains, per block.

        1 - |merged - target|^2 / |base - target|^2        1: the target, 0: the base, clipped below at -1

    Unlike a cosine, it depends on the length of a merge's difference. If the base lacks a tensor, the first source that
    holds it stands for the base.

    Attributes:
        difference: |base - target|^2, float64 [blocks].
    """

    def __init__(self, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]) -> None:
        gram = statistics.gram[:, 1:, 1:]
        self._differences = torch.zeros(len(groups), dtype=torch.float64)
        super().__init__(gram, statistics, groups, blocks)
        self._differences = self._targets.clone()
        referenced = torch.ones(len(groups), dtype=torch.bool)
        referenced[statistics.group] = statistics.referenced
        for row in (~referenced).nonzero()[:, 0].tolist():
            # These parts are whole tensors, so this is a difference of large numbers, of which the rounding must not
            # count.
            first = groups[row].holders[0]
            distance = self.products[row, first, first] - 2 * self.with_target[row, first] + self._targets[row]
            self._differences[row] = distance if distance > _ROUNDING * self._targets[row] else 0.0
        self._requested_groups, self._requested = self.block_of_group >= 0, self.blocks
        self._leave_out(self.per_block(self._differences))

    @property
    def unit(self) -> torch.Tensor:
        """|base - target|^2, float64 [blocks]."""
        return self.difference

    def value(self, linear: torch.Tensor, quadratic: torch.Tensor) -> torch.Tensor:
        """Return the shares of moments, at most 1, all float64 [..., blocks], not clipped."""
        return 1 - (quadratic - 2 * linear + self.target).clamp_min(0) / self.difference

    def slopes(self, linear: torch.Tensor, quadratic: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivatives of `value` by each of the moments, all float64 [..., blocks]."""
        inverse = (1 / self.difference).expand(linear.shape)
        return 2 * inverse, -inverse

    def keeping(self, blocks: Collection[str]) -> Self:
        """Return a metric of the nearness to the target in `blocks`, unchanged ones included; 1 at the target.

        It is 0 at the distance from the target that the source farthest from the base has from the base.

        Args:
            blocks: Names of the blocks.

        Returns:
            The metric over those of `blocks` that were requested.
        """
        kept = copy.copy(self)
        kept.blocks, kept.unchanged = tuple(block for block in self._requested if block in blocks), ()
        lengths = torch.diagonal(self.products, dim1=-2, dim2=-1).amax(dim=-1)
        kept._differences = torch.where(lengths > 0, lengths, 1.0)
        kept._sum_blocks()
        return kept

    def _sum_blocks(self) -> None:
        super()._sum_blocks()
        self.difference = self.per_block(self._differences)

    def pooled(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the share explained of all blocks together, float64 [n] in [-1, 1]; NaN without blocks.

        Args:
            coefficients: Coefficients, float64 [n, groups, sources].

        Returns:
            Shares; the squares of all blocks are summed before the division.
        """
        linear, quadratic = self.moments(coefficients)
        left = (quadratic - 2 * linear + self.target).clamp_min(0).sum(dim=-1)
        return self.clip(1 - left / self.difference.sum())

    def distance(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return |merged - target| over all requested blocks, unchanged ones included; the base has the distance 1.

        If no block was changed, the distance is in units of the weights.

        Args:
            coefficients: Coefficients, float64 [n, groups, sources].

        Returns:
            Distances, float64 [n].
        """
        linear = torch.einsum("ngk,gk->ng", coefficients, self.with_target)
        quadratic = torch.einsum("ngk,gkl,ngl->ng", coefficients, self.products, coefficients)
        left = (quadratic - 2 * linear + self._targets)[:, self._requested_groups].sum(dim=-1).clamp_min(0)
        whole = float(self._differences[self._requested_groups].sum())
        return (left / whole if whole > 0 else left).sqrt()


class ElementsMetric:
    """Mean cosine over the tensors of a block (SuperMerger's "Block" analysis, mean); 1 for two zero tensors."""

    unchanged: tuple[str, ...] = ()

    def __init__(self, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]) -> None:
        self.blocks = blocks
        chosen = torch.tensor([block in blocks for block in statistics.blocks], dtype=torch.bool)
        self._gram = _whole(statistics)[chosen]
        self._group = statistics.group[chosen]
        self._block = torch.tensor(
            [blocks.index(block) for block in statistics.blocks if block in blocks], dtype=torch.long
        )

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Do nothing: a candidate costs a few thousand multiplications anyway."""

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        rows = coefficients[:, self._group]
        with_target = torch.einsum("ntk,tk->nt", rows, self._gram[:, :-1, -1])
        with_itself = torch.einsum("ntk,tkl,ntl->nt", rows, self._gram[:, :-1, :-1], rows)
        target = self._gram[:, -1, -1]
        cosines = _cosine(with_target, with_itself, target)
        cosines = torch.where((with_itself == 0) & (target == 0), torch.ones_like(cosines), cosines)
        sums = torch.zeros(len(rows), len(self.blocks), dtype=torch.float64).index_add(1, self._block, cosines)
        return sums / torch.bincount(self._block, minlength=len(self.blocks))


def _whole(statistics: Statistics) -> torch.Tensor:
    """Return the products of the whole tensors of sources and target, [parts, K + 1, K + 1].

    A merge's coefficients c sum to 1 for each tensor that it holds, so the merge is sum_k c_k * (reference +
    difference_k). Each source is the reference plus its difference.
    """
    gram = statistics.gram
    cross = gram[:, 0, 1:]
    return gram[:, :1, :1] + cross[:, :, None] + cross[:, None, :] + gram[:, 1:, 1:]


def _cosine(with_target: torch.Tensor, with_itself: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    norms = torch.sqrt(with_itself.clamp_min(0) * target)
    cosine = with_target / norms.clamp_min(1e-300)
    return torch.where(norms > 0, cosine.clamp(-1, 1), torch.zeros_like(cosine))
