"""The article's similarity ("ASimilarity"): cosine of self-attention outputs on random inputs.

Per block with self-attention of width d, for a random X [d, d]:

    Q = X W_q',  K = X W_k',  V = X W_v',  S = softmax(Q K') by rows,  A[i, k] = S[i, k] * sum_j V[j, k]
    similarity = mean over rows i of cosine(A_candidate[i], A_target[i])

The seed is set once, and X is drawn block after block in the order of evaluation, on the CPU whatever the device: so
the same block has another X when other blocks are selected before it, as in the tool that people publish numbers from.

Projections are linear in the weights, so each source is projected once, and a candidate's queries and keys are combined
from those. On a card one product Q K' then gives its logits. On a processor even that is too much: with the same
coefficients c for queries and keys, the logits are a quadratic form,

    Q K' = sum_k sum_l c_k c_l Q_k K_l'

whose terms are computed when a candidate first needs them and kept; a trial only adds them up, at the speed of memory.
Two things are left out because they cancel: sum_j V[j, k] is (sum_j X[j]) W_v', and the softmax's denominator scales a
whole row, which a cosine does not see.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from optimizer.errors import CheckpointError
from optimizer.recipes import Part, finite
from optimizer.similarity.comparison import Comparison

__all__ = ["AttentionMetric"]

# Share of a card's free memory that one batch of candidates may take.
_MEMORY_SHARE = 0.5
# Bytes that the terms of the logits may take in all; blocks beyond are scored by one product for each candidate.
_TERMS_LIMIT = 2 << 30


@dataclass(frozen=True)
class _Stack:
    """One of to_q, to_k, to_v of the sources that hold it, projected: float32 [holders, ...].

    `row` is its group in coefficients.
    """

    row: int
    holders: tuple[int, ...]
    projected: torch.Tensor

    def coefficients(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The holders' coefficients, float32 [n, holders], of all coefficients [n, groups, sources]."""
        return coefficients[:, self.row, list(self.holders)].to(self.projected.device, torch.float32)

    def combine(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The candidates' projections, [n, ...]."""
        return torch.einsum("nk,k...->n...", self.coefficients(coefficients), self.projected)


@dataclass(frozen=True)
class _Products:
    """One block's logits, as a product for each candidate."""

    query: _Stack
    key: _Stack

    def logits(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Logits [n, d, d] of n candidates."""
        return self.query.combine(coefficients) @ self.key.combine(coefficients).transpose(1, 2)


class _Terms:
    """One block's logits, from their terms: Q_k K_k', and for k < l the sum Q_k K_l' + Q_l K_k'.

    Terms that no candidate has needed yet are zeros, which take no memory until they are written. A candidate's value
    does not depend on who came before it: terms that others needed have the coefficient 0 for it.
    """

    def __init__(self, query: _Stack, key: _Stack) -> None:
        """Of stacks with the same holders; the terms then are float32 [pairs, d * d]."""
        self._query, self._key = query, key
        self._first, self._second = torch.triu_indices(len(query.holders), len(query.holders))
        self._terms = torch.zeros(len(self._first), query.projected[0].numel())
        self._unknown = set(range(len(self._first)))

    def logits(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Logits [1, d, d] of one candidate."""
        own = self._query.coefficients(coefficients)
        weights = own[:, self._first] * own[:, self._second]
        width = math.isqrt(self._terms.shape[1])
        for index in self._unknown & set(weights[0].nonzero()[:, 0].tolist()):
            self._compute(index, self._terms[index].view(width, width))
        return (weights @ self._terms).view(1, width, width)

    def _compute(self, index: int, term: torch.Tensor) -> None:
        queries, keys = self._query.projected, self._key.projected
        one, other = int(self._first[index]), int(self._second[index])
        torch.mm(queries[one], keys[other].T, out=term)
        if one != other:
            term.addmm_(queries[other], keys[one].T)
        self._unknown.remove(index)
        if not self._unknown:
            # The terms hold all that the projections did.
            nothing = torch.empty(0)
            self._query, self._key = replace(self._query, projected=nothing), replace(self._key, projected=nothing)


@dataclass(frozen=True)
class _Block:
    """One block under one random input. `target` [d, d] holds the target's outputs, each row divided by its norm."""

    width: int
    attention: _Products | _Terms
    value: _Stack
    target: torch.Tensor

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities of n candidates (of one, if from terms), float64 [n]."""
        outputs = _outputs(self.attention.logits(coefficients), self.value.combine(coefficients)[:, None, :])
        norms = torch.linalg.vector_norm(outputs, dim=-1)
        cosines: torch.Tensor = outputs.mul_(self.target).sum(dim=-1) / norms.clamp_min(torch.finfo(torch.float32).tiny)
        return cosines.to(torch.float64).mean(dim=-1).clamp(-1, 1).cpu()


class AttentionMetric:
    """Mean over the rows of cosine(A_candidate[i], A_target[i]), and over `comparison.seeds`.

    `blocks` are scored in the layout's order of evaluation, which the random inputs depend on.
    """

    def __init__(self, comparison: Comparison, blocks: tuple[str, ...]) -> None:
        self.blocks = blocks
        self._device = comparison.device
        parts = {part.name: part for part in comparison.scored_parts(blocks)}
        self._projected: list[list[_Block]] = []
        spare = _TERMS_LIMIT if self._device.type == "cpu" else 0
        with _exact_float32():
            for number, seed in enumerate(comparison.seeds):
                generator = torch.Generator().manual_seed(seed)
                projected = []
                for position, block in enumerate(blocks):
                    weights = _self_attention(comparison, parts, block)
                    width = weights[0].shape[1]
                    inputs = torch.randn(width, width, generator=generator)
                    holders = len(weights[0].holders)
                    needed = 4 * width * width * holders * (holders + 1) // 2
                    # Queries and keys have the same coefficients if the same sources hold them.
                    by_terms = needed <= spare and weights[0].holders == weights[1].holders
                    spare -= needed if by_terms else 0
                    projected.append(_project(comparison, weights, inputs, by_terms))
                    done = number * len(blocks) + position + 1
                    comparison.progress("projecting the attention", done, len(blocks) * len(comparison.seeds))
                self._projected.append(projected)

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        scores = torch.zeros(len(coefficients), len(self.blocks), dtype=torch.float64)
        with _exact_float32():
            for projected in self._projected:
                for column, block in enumerate(projected):
                    for start, stop in self._batches(len(coefficients), block.width):
                        scores[start:stop, column] += block.score(coefficients[start:stop])
        return scores / len(self._projected)

    def _batches(self, count: int, width: int) -> Iterator[tuple[int, int]]:
        """Ranges of candidates: one at a time on a processor, as many as fit on a card."""
        size = 1
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            size = max(1, int(free * _MEMORY_SHARE) // (6 * 4 * width * width))
        for start in range(0, count, size):
            yield start, min(start + size, count)


def _self_attention(comparison: Comparison, parts: dict[str, Part], block: str) -> tuple[Part, Part, Part]:
    prefix = comparison.layout.attention[block]
    names = [f"{prefix}.to_{which}.weight" for which in "qkv"]
    missing = next((name for name in names if name not in parts), None)
    if missing is not None:
        raise CheckpointError(f"{comparison.target.path}: tensor {missing!r} is missing here or in every source")
    query, key, value = (parts[name] for name in names)
    return query, key, value


def _project(comparison: Comparison, weights: tuple[Part, Part, Part], inputs: torch.Tensor, by_terms: bool) -> _Block:
    device, width, sources = comparison.device, inputs.shape[1], list(comparison.sources.values())
    inputs = inputs.to(device)
    total = inputs.sum(dim=0)
    stacks: list[_Stack] = []
    for part, is_value in zip(weights, (False, False, True), strict=True):
        stack = torch.empty(len(part.holders), *((width,) if is_value else (width, width)), device=device)
        for place, position in enumerate(part.holders):
            weight = finite(part, sources[position], "comparison").to(device)
            stack[place] = weight @ total if is_value else inputs @ weight.T
        stacks.append(_Stack(comparison.group_of(part), part.holders, stack))
    query, key, value = stacks
    target = [finite(part, comparison.target, "comparison").to(device) for part in weights]
    logits = (inputs @ target[0].T) @ (inputs @ target[1].T).T
    outputs = _outputs(logits, target[2] @ total)
    return _Block(
        width=width,
        attention=(_Terms if by_terms else _Products)(query, key),
        value=value,
        target=outputs / outputs.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny),
    )


def _outputs(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """exp(logits - their row's maximum) * values: the attention outputs up to a factor for each row. Overwrites."""
    return logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_().mul_(values)


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Float32 products as float32, not tf32, whatever the process or its environment has set."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
