"""The article's similarity ("ASimilarity"): cosine of self-attention outputs on random inputs.

Per block with self-attention of width d, for a random X [d, d]:

    Q = X W_q',  K = X W_k',  V = X W_v',  S = softmax(Q K') by rows,  A[i, k] = S[i, k] * sum_j V[j, k]
    similarity = mean over rows i of cosine(A_candidate[i], A_target[i])

The seed is set once, and X is drawn block after block in the order of evaluation, on the CPU whatever the device: so the
same block has another X when other blocks are selected before it, as in the tool that people publish numbers from.

Projections are linear in the weights. Each source is projected once; a candidate is a combination of projections and one
product Q K' per block. Two things are left out because they cancel: sum_j V[j, k] is (sum_j X[j]) W_v', and the softmax's
denominator scales a whole row, which a cosine does not see.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from optimizer.errors import CheckpointError
from optimizer.recipes import Part
from optimizer.similarity.comparison import Comparison

__all__ = ["AttentionMetric"]

# Share of a card's free memory that one batch of candidates may take.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class _Projections:
    """One block under one random input: float32 queries and keys [K, d * d], value sums [K, d], and the target.

    `rows` are the groups of to_q, to_k, to_v in coefficients. `target` [d, d] holds the target's outputs, each row
    divided by its norm.
    """

    width: int
    rows: tuple[int, int, int]
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    target: torch.Tensor


class AttentionMetric:
    """Mean over the rows of cosine(A_candidate[i], A_target[i]), and over `comparison.seeds`.

    `blocks` are scored in the layout's order of evaluation, which the random inputs depend on.
    """

    def __init__(self, comparison: Comparison, blocks: tuple[str, ...]) -> None:
        self.blocks = blocks
        self._device = comparison.device
        parts = {part.name: part for part in comparison.scored_parts(blocks)}
        self._projections: list[list[_Projections]] = []
        with _exact_float32():
            for number, seed in enumerate(comparison.seeds):
                generator = torch.Generator().manual_seed(seed)
                projected = []
                for position, block in enumerate(blocks):
                    weights = _self_attention(comparison, parts, block)
                    width = weights[0].shape[1]
                    inputs = torch.randn(width, width, generator=generator)
                    projected.append(_project(comparison, weights, inputs))
                    done = number * len(blocks) + position + 1
                    comparison.progress("projecting the attention", done, len(blocks) * len(comparison.seeds))
                self._projections.append(projected)

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources]."""
        scores = torch.zeros(len(coefficients), len(self.blocks), dtype=torch.float64)
        with _exact_float32():
            for projected in self._projections:
                for column, block in enumerate(projected):
                    for start, stop in self._batches(len(coefficients), block.width):
                        scores[start:stop, column] += _score(block, coefficients[start:stop], self._device)
        return scores / len(self._projections)

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


def _project(comparison: Comparison, weights: tuple[Part, Part, Part], inputs: torch.Tensor) -> _Projections:
    device, width, sources = comparison.device, inputs.shape[1], list(comparison.sources.values())
    inputs = inputs.to(device)
    total = inputs.sum(dim=0)
    stacks: list[torch.Tensor] = []
    for part, is_value in zip(weights, (False, False, True), strict=True):
        stack = torch.zeros(len(sources), *((width,) if is_value else (width, width)), device=device)
        for position in part.holders:
            weight = _weight(part, sources[position].tensor(part.name), sources[position].path, device)
            stack[position] = weight @ total if is_value else inputs @ weight.T
        stacks.append(stack)
    target = [_weight(part, comparison.target.tensor(part.name), comparison.target.path, device) for part in weights]
    logits = (inputs @ target[0].T) @ (inputs @ target[1].T).T
    outputs = _outputs(logits, target[2] @ total)
    query, key, value = (comparison.group_of(part) for part in weights)
    return _Projections(
        width=width,
        rows=(query, key, value),
        queries=stacks[0].flatten(1),
        keys=stacks[1].flatten(1),
        values=stacks[2],
        target=outputs / outputs.norm(dim=-1, keepdim=True),
    )


def _weight(part: Part, tensor: torch.Tensor, path: object, device: torch.device) -> torch.Tensor:
    weight = tensor.to(device).to(torch.float32)
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(
            f"{path}: tensor {part.name!r} holds NaN or Inf and takes part in the comparison; "
            "use a copy of the model without them"
        )
    return weight


def _score(block: _Projections, coefficients: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Similarities of n candidates, float64 [n]."""
    count, width = len(coefficients), block.width
    query, key, value = (coefficients[:, row].to(device, torch.float32) for row in block.rows)
    queries = (query @ block.queries).view(count, width, width)
    keys = (key @ block.keys).view(count, width, width)
    outputs = _outputs(queries @ keys.transpose(1, 2), (value @ block.values)[:, None, :])
    norms = torch.linalg.vector_norm(outputs, dim=-1)
    cosines = outputs.mul_(block.target).sum(dim=-1) / norms.clamp_min(torch.finfo(torch.float32).tiny)
    return cosines.to(torch.float64).mean(dim=-1).clamp(-1, 1).cpu()


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
