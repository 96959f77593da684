"""The metrics in weight space, computed from Gram matrices.

weights   per block: cosine of the merged and the target's tensors, all flattened into one vector
delta     the same of their differences from the base; 0 where either difference is 0
elements  per tensor: cosine of the flattened tensors; a block's value is the plain mean over its tensors
"""

from collections.abc import Sequence

import torch

from optimizer.recipes import Group
from optimizer.similarity.statistics import Statistics

__all__ = ["DeltaMetric", "ElementsMetric", "QuadraticMetric", "WeightsMetric"]


class QuadraticMetric:
    """A cosine per block of two vectors that are linear in the coefficients.

    With M the products of the sources with each other, l those with the target and t the target's with itself,

        similarity = sum_g l_g . c_g / sqrt(t * sum_g c_g' M_g c_g)        g: the groups of the block

    `products` float64 [groups, K, K], `with_target` float64 [groups, K], `target` float64 [blocks],
    `block_of_group` long [groups], -1 for a group that no scored block has.
    """

    def __init__(
        self, gram: torch.Tensor, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]
    ) -> None:
        """`gram` float64 [parts, K + 1, K + 1]: sources, then target, as this metric sees them."""
        self.blocks = blocks
        sources = gram.shape[-1] - 1
        chosen = torch.tensor([block in blocks for block in statistics.blocks], dtype=torch.bool)
        summed = torch.zeros(len(groups), sources + 1, sources + 1, dtype=torch.float64)
        summed.index_add_(0, statistics.group[chosen], gram[chosen])
        self.products = summed[:, :sources, :sources].contiguous()
        self.with_target = summed[:, :sources, sources].contiguous()
        self.block_of_group = torch.tensor(
            [blocks.index(group.block) if group.block in blocks else -1 for group in groups], dtype=torch.long
        )
        self.target = self.per_block(summed[:, sources, sources])

    def per_block(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the groups of each block: [..., groups] to [..., blocks]."""
        chosen = self.block_of_group >= 0
        sums = torch.zeros(*values.shape[:-1], len(self.blocks), dtype=values.dtype)
        return sums.index_add(-1, self.block_of_group[chosen], values[..., chosen])

    def moments(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Products of the candidates with the target and with themselves, both float64 [n, blocks]."""
        with_target = torch.einsum("ngk,gk->ng", coefficients, self.with_target)
        with_itself = torch.einsum("ngk,gkl,ngl->ng", coefficients, self.products, coefficients)
        return self.per_block(with_target), self.per_block(with_itself)

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Nothing: a candidate costs a few hundred multiplications as it is."""

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]; 0 for a zero vector."""
        with_target, with_itself = self.moments(coefficients)
        return _cosine(with_target, with_itself, self.target)

    def scale(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The factor on the candidate's vector that brings it nearest to the target's, float64 [n, blocks]."""
        with_target, with_itself = self.moments(coefficients)
        return torch.where(with_itself > 0, with_target / with_itself.clamp_min(1e-300), torch.zeros_like(with_target))


class WeightsMetric(QuadraticMetric):
    """Cosine per block of the whole weights."""

    def __init__(self, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]) -> None:
        super().__init__(_whole(statistics), statistics, groups, blocks)


class DeltaMetric(QuadraticMetric):
    """Cosine per block of the differences from the base; tensors that the base lacks do not count."""

    def __init__(self, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]) -> None:
        differences = statistics.gram[:, 1:, 1:] * statistics.referenced[:, None, None]
        super().__init__(differences, statistics, groups, blocks)


class ElementsMetric:
    """Mean cosine over the tensors of a block (SuperMerger's "Block" analysis, mean); 1 for two zero tensors."""

    def __init__(self, statistics: Statistics, groups: Sequence[Group], blocks: tuple[str, ...]) -> None:
        self.blocks = blocks
        chosen = torch.tensor([block in blocks for block in statistics.blocks], dtype=torch.bool)
        self._gram = _whole(statistics)[chosen]
        self._group = statistics.group[chosen]
        self._block = torch.tensor(
            [blocks.index(block) for block in statistics.blocks if block in blocks], dtype=torch.long
        )

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Nothing: a candidate costs a few thousand multiplications as it is."""

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        rows = coefficients[:, self._group]
        with_target = torch.einsum("ntk,tk->nt", rows, self._gram[:, :-1, -1])
        with_itself = torch.einsum("ntk,tkl,ntl->nt", rows, self._gram[:, :-1, :-1], rows)
        target = self._gram[:, -1, -1]
        cosines = _cosine(with_target, with_itself, target)
        cosines = torch.where((with_itself == 0) & (target == 0), torch.ones_like(cosines), cosines)
        sums = torch.zeros(len(rows), len(self.blocks), dtype=torch.float64).index_add(1, self._block, cosines)
        return sums / torch.bincount(self._block, minlength=len(self.blocks))


def _whole(statistics: Statistics) -> torch.Tensor:
    """Products of the whole tensors of sources and target, [parts, K + 1, K + 1], in terms of the coefficients.

    A merge's coefficients c sum to 1 where it holds the tensor, so it is sum_k c_k * (reference + difference_k): each
    source stands for reference plus its difference.
    """
    gram = statistics.gram
    cross = gram[:, 0, 1:]
    return gram[:, :1, :1] + cross[:, :, None] + cross[:, None, :] + gram[:, 1:, 1:]


def _cosine(with_target: torch.Tensor, with_itself: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    norms = torch.sqrt(with_itself.clamp_min(0) * target)
    cosine = with_target / norms.clamp_min(1e-300)
    return torch.where(norms > 0, cosine.clamp(-1, 1), torch.zeros_like(cosine))
