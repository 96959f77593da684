"""The article's similarity ("ASimilarity"): cosine of self-attention outputs on random inputs.

Per block with self-attention of width d, for a random X [d, d]:

    Q = X W_q',  K = X W_k',  V = X W_v',  S = softmax(Q K') by rows,  A[i, k] = S[i, k] * sum_j V[j, k]
    similarity = mean over rows i of cosine(A_candidate[i], A_target[i])

The seed is set once, and X is drawn block after block in the order of evaluation, on the CPU whatever the device: so
the same block has another X when other blocks are selected before it, as in the tool that people publish numbers from.

Projections are linear in the weights, so each source is projected once, and a candidate's queries and keys are combined
from those. Its logits Q K' then come from as few numbers as can be (`logits`), and its cosines from those without a
further turn through the main memory (`rows`). Two things are left out because they cancel: sum_j V[j, k] is
(sum_j X[j]) W_v', and the softmax's denominator scales a whole row, which a cosine does not see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from optimizer.checkpoints import Checkpoint
from optimizer.errors import CheckpointError
from optimizer.recipes import Part
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.device import float32_products
from optimizer.similarity.logits import LOG2_E, Lined, Products, Stack, Terms, Whole
from optimizer.similarity.memory import in_batches, where_it_fits
from optimizer.similarity.rows import Candidates, Workers, compute_whole, outputs

__all__ = ["AttentionMetric", "attention_by_seed"]

# Share of a card's free memory that one batch of candidates may take.
_MEMORY_SHARE = 0.5
# Bytes that the lines' matrices and the terms of the logits may take in all; blocks beyond are scored by one product
# for each candidate.
_KEPT_LIMIT = 2 << 30
# Logits that a processor computes in one product: those of one candidate, or of several where blocks are so narrow that
# calls would take longer than products.
_TOGETHER = 1 << 17


@dataclass(frozen=True)
class _Block:
    """One block under one random input. `target` [d, d] holds the target's outputs, each row divided by its norm."""

    logits: Lined
    value: Stack
    target: torch.Tensor

    @property
    def width(self) -> int:
        """How many rows and columns its logits have."""
        return self.target.shape[1]

    def candidates(self, coefficients: torch.Tensor, batch: int) -> Iterator[tuple[torch.Tensor, Candidates]]:
        """What is to be computed for coefficients [n, groups, sources]: (positions int64 [m], m of the candidates).

        Of whole logits, no more than `batch` at a time.
        """
        device = self.target.device
        values = self.value.combine(self.value.points(coefficients))
        for positions, logits in self.logits.logits(coefficients, batch):
            found = torch.empty(len(positions), self.width, device=device)
            yield positions, Candidates(logits, values[positions.to(device)], self.target, found)

    def similarities(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Those of coefficients [n, groups, sources], float64 [n], computed at once."""
        count = len(coefficients)
        scores = torch.empty(count, dtype=torch.float64)
        for positions, candidates in self.candidates(coefficients, count):
            compute_whole(candidates, count)
            scores[positions] = candidates.similarities
        return scores


class AttentionMetric:
    """Mean over the rows of cosine(A_candidate[i], A_target[i]), and over `comparison.seeds`.

    `blocks` are scored in the layout's order of evaluation, which the random inputs depend on.
    """

    def __init__(self, comparison: Comparison, blocks: tuple[str, ...]) -> None:
        self.blocks = blocks
        self._device = comparison.device
        self._tf32 = comparison.tf32
        self._workers = Workers() if self._device.type == "cpu" else None
        parts = {part.name: part for part in comparison.scored_parts(blocks)}
        weights = {block: _self_attention(comparison, parts, block) for block in blocks}
        lines = len(comparison.seeds) * sum(Lined.bytes(query.shape[1]) for query, _, _ in weights.values())
        with_lines = lines <= _KEPT_LIMIT
        spare = _KEPT_LIMIT - (lines if with_lines else 0)
        self._projected: list[list[_Block]] = []
        with float32_products(tf32=self._tf32):
            for number, seed in enumerate(comparison.seeds):
                generator = torch.Generator().manual_seed(seed)
                projected = []
                for position, block in enumerate(blocks):
                    width = weights[block][0].shape[1]
                    inputs = torch.randn(width, width, generator=generator)
                    query, key, value = _project(comparison, weights[block], inputs)
                    # A card multiplies faster than it would add terms up. Queries and keys have the same coefficients
                    # if the same sources hold them.
                    by_terms = self._device.type == "cpu" and query.holders == key.holders
                    by_terms = by_terms and Terms.pay(query) and Terms.bytes(query) <= spare
                    spare -= Terms.bytes(query) if by_terms else 0
                    source = Terms(query, key) if by_terms else Products(query, key)
                    matrices = torch.zeros(3, width * width, device=self._device) if with_lines else None
                    target = _outputs(_weights(comparison, weights[block], comparison.target), inputs)
                    projected.append(_Block(Lined(source, matrices), value, target))
                    done = number * len(blocks) + position + 1
                    comparison.progress("projecting the attention", done, len(blocks) * len(comparison.seeds))
                self._projected.append(projected)
        comparison.check_intact()
        comparison.zeros.warn()

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Make the matrices of the lines, one for each block, that these [n, groups, sources] lie on, three at least.

        Candidates on them are then scored two to three times as fast; until the next call.
        """
        with float32_products(tf32=self._tf32):
            for projected in self._projected:
                for block in projected:
                    block.logits.prepare(coefficients)

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Similarities, float64 [n, blocks], of coefficients float64 [n, groups, sources].

        Several candidates in one call take less time each than one at a time. What a candidate scores depends on what
        was prepared and on the others in the call in float32's rounding alone, and on earlier calls not at all.
        """
        scores = torch.zeros(len(coefficients), len(self.blocks), dtype=torch.float64)
        with float32_products(tf32=self._tf32):
            if self._workers is not None:
                self._score_on_processor(self._workers, coefficients, scores)
            elif len(coefficients):
                self._score_on_card(coefficients, scores)
        return scores / len(self._projected)

    def _score_on_processor(self, workers: Workers, coefficients: torch.Tensor, scores: torch.Tensor) -> None:
        """Add the similarities under each seed to `scores`."""
        waiting: list[tuple[int, torch.Tensor, Candidates]] = []

        def compute() -> None:
            workers.compute([candidates for _, _, candidates in waiting])
            for column, positions, candidates in waiting:
                scores[positions, column] += candidates.similarities
            waiting.clear()

        for projected in self._projected:
            for column, block in enumerate(projected):
                for positions, candidates in block.candidates(coefficients, max(1, _TOGETHER // block.width**2)):
                    waiting.append((column, positions, candidates))
                    # Logits that are there take memory; what makes the others is kept anyway.
                    if isinstance(candidates.logits, Whole):
                        compute()
        compute()

    def _score_on_card(self, coefficients: torch.Tensor, scores: torch.Tensor) -> None:
        """Add the similarities under each seed to `scores`, of as many candidates at a time as the card holds."""
        for projected in self._projected:
            for column, block in enumerate(projected):
                scores[:, column] += in_batches(block.similarities, coefficients, self._batch(block.width))

    def _batch(self, width: int) -> int:
        """How many candidates' whole logits a card probably holds."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return max(1, int(free * _MEMORY_SHARE) // (6 * 4 * width * width))


def attention_by_seed(
    comparison: Comparison, blocks: tuple[str, ...], coefficients: torch.Tensor, seeds: Sequence[int]
) -> torch.Tensor:
    """The similarities of one candidate under each of `seeds`, float64 [seeds, blocks].

    `coefficients` are float64 [groups, sources]; `blocks` in the order of evaluation. For one candidate this is faster
    than the metric, which projects every source first. On a card whose memory does not suffice, it is done on the
    processor, with a BlockfitWarning.
    """

    def on(device: torch.device) -> torch.Tensor:
        return _by_seed(replace(comparison, device=device), blocks, coefficients, seeds)

    return where_it_fits(on, comparison.device, "the attention metric")


def _by_seed(
    comparison: Comparison, blocks: tuple[str, ...], coefficients: torch.Tensor, seeds: Sequence[int]
) -> torch.Tensor:
    parts = {part.name: part for part in comparison.scored_parts(blocks)}
    scores = torch.zeros(len(seeds), len(blocks), dtype=torch.float64)
    with float32_products(tf32=comparison.tf32):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for column, block in enumerate(blocks):
            weights = _self_attention(comparison, parts, block)
            target = _weights(comparison, weights, comparison.target)
            merged = _weights(comparison, weights, coefficients)
            width = weights[0].shape[1]
            for row, generator in enumerate(generators):
                inputs = torch.randn(width, width, generator=generator).to(comparison.device)
                cosines = (_outputs(merged, inputs) * _outputs(target, inputs)).sum(dim=-1)
                scores[row, column] = float(cosines.to(torch.float64).mean().clamp(-1, 1))
            comparison.progress("scoring other random inputs", column + 1, len(blocks))
    comparison.check_intact()
    return scores


def _self_attention(comparison: Comparison, parts: dict[str, Part], block: str) -> tuple[Part, Part, Part]:
    prefix = comparison.layout.attention[block]
    names = [f"{prefix}.to_{which}.weight" for which in "qkv"]
    missing = next((name for name in names if name not in parts), None)
    if missing is not None:
        raise CheckpointError(f"{comparison.target.path}: tensor {missing!r} is missing here or in every source")
    query, key, value = (parts[name] for name in names)
    return query, key, value


def _project(
    comparison: Comparison, weights: tuple[Part, Part, Part], inputs: torch.Tensor
) -> tuple[Stack, Stack, Stack]:
    """Queries and keys [holders, d, d] and summed values [holders, d] of the sources."""
    device, width, sources = comparison.device, inputs.shape[1], list(comparison.sources.values())
    inputs = inputs.to(device)
    total = inputs.sum(dim=0)
    stacks: list[Stack] = []
    for which, part in zip("qkv", weights, strict=True):
        stack = torch.empty(len(part.holders), *((width,) if which == "v" else (width, width)), device=device)
        for place, position in enumerate(part.holders):
            weight = comparison.read(part, sources[position]).to(device)
            stack[place] = weight @ total if which == "v" else inputs @ weight.T
        stacks.append(Stack(comparison.group_of(part), part.holders, stack))
    query, key, value = stacks
    return query, key, value


def _weights(
    comparison: Comparison, weights: tuple[Part, Part, Part], of: Checkpoint | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_q, W_k, W_v, float32 [d, d] each, of a checkpoint or of the merge with coefficients [groups, sources]."""
    sources = list(comparison.sources.values())

    def read(part: Part, checkpoint: Checkpoint) -> torch.Tensor:
        return comparison.read(part, checkpoint).to(comparison.device)

    def merged(part: Part, coefficients: torch.Tensor) -> torch.Tensor:
        row = coefficients[comparison.group_of(part)].tolist()
        held = [(row[position], sources[position]) for position in part.holders]
        total = torch.zeros(part.shape, device=comparison.device)
        for number, source in held:
            if number:
                total.add_(read(part, source), alpha=number)
        return total

    query, key, value = (read(part, of) if isinstance(of, Checkpoint) else merged(part, of) for part in weights)
    return query, key, value


def _outputs(weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """A model's attention outputs [d, d], each row divided by its norm."""
    query, key, value = weights
    inputs = inputs.to(query.device)
    logits = (inputs @ query.T) @ (inputs @ key.T).T
    found = outputs(logits.sub_(logits.amax(dim=-1, keepdim=True)).mul_(LOG2_E), value @ inputs.sum(dim=0))
    norms: torch.Tensor = found.norm(dim=-1, keepdim=True)
    return found / norms.clamp_min(torch.finfo(torch.float32).tiny)
