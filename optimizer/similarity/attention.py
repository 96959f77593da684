"""The article's similarity ("ASimilarity"): cosine of self-attention outputs on random inputs.

Per block with self-attention of width d, for a random X [d, d]:

    Q = X W_q',  K = X W_k',  V = X W_v',  S = softmax(Q K') by rows,  A[i, k] = S[i, k] * sum_j V[j, k]
    similarity = mean over rows i of cosine(A_candidate[i], A_target[i])

A block with several transformer blocks has one self-attention for each; its similarity is their mean.

The seed is set once, and X is drawn for one self-attention after another, in the order of evaluation and of the
transformer blocks in a block, always on the CPU. A block therefore gets another X if other blocks are selected before
it, as in the tool that published figures come from.

Projections are linear in the weights. Each source is projected once, and a candidate's queries and keys are combined
from these projections. Its logits Q K' are then computed in the cheapest way (`logits`), and its cosines from the
logits while these are in the cache (`rows`). A GPU computes all blocks of one width at a time (`batched`).

Two factors cancel in a cosine and are left out: sum_j V[j, k] is (sum_j X[j]) W_v', so V is never formed, and the
denominator of the softmax scales a whole row.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from pydantic import Field, StrictBool, StrictInt

from optimizer.checkpoints import TensorSource
from optimizer.errors import CheckpointError
from optimizer.families import Layout
from optimizer.files import shown
from optimizer.recipes import FittedSearch, Part
from optimizer.similarity.batched import BatchedAttention, Family, Member
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.device import float32_products
from optimizer.similarity.loading import Loader, staging
from optimizer.similarity.logits import LOG2_E, AlongLine, Dense, Products, Stack, Terms
from optimizer.similarity.memory import on_first_device_that_fits
from optimizer.similarity.options import MetricOptions
from optimizer.similarity.rows import Candidates, Workers, outputs

__all__ = ["DEFAULT_SEED", "AttentionMetric", "AttentionOptions", "attention_by_seed"]

# The seed of the article's similarity.
DEFAULT_SEED = 114514

# Limit in bytes for the matrices of the lines and the terms of the logits together. Blocks beyond it are scored by one
# product per candidate.
_KEPT_LIMIT = 2 << 30
# Number of logits that the CPU computes in one product: one candidate's, or several candidates' where blocks are so
# narrow that calls would take longer than products.
_TOGETHER = 1 << 17
# Names of the stages of the progress that users see.
_PROJECTING, _OTHER_INPUTS = "projecting the attention", "scoring other random inputs"


class AttentionOptions(MetricOptions):
    """Options of the attention metric."""

    seeds: list[StrictInt] = Field(
        default_factory=lambda: [DEFAULT_SEED],
        description=f"The seeds of attention's random inputs. Default: [{DEFAULT_SEED}].",
        examples=[[DEFAULT_SEED, 1]],
    )
    tf32: StrictBool = Field(
        default=False, description="Whether a GPU computes attention faster, with similarities exact to about 1e-3."
    )

    def problems(self, given: Collection[str], layout: Layout, *, used: bool) -> list[str]:
        """Return one line if the seeds cannot be used, else an empty list."""
        distinct = set(self.seeds)
        if self.seeds and min(distinct) >= 0 and max(distinct) < 2**63 and len(distinct) == len(self.seeds):
            return []
        expected = "must be one or more different whole numbers from 0 to 2^63 - 1"
        return [f"seeds: received {shown(self.seeds)}; {expected}"]

    def bound(self, *, used: bool) -> dict[str, Any]:
        """Return the seeds if the metric is used, and tf32 if it is on."""
        return {**({"seeds": list(self.seeds)} if used else {}), **({"tf32": True} if self.tf32 else {})}

    def noted(self) -> dict[str, Any]:
        """Return the seeds."""
        return {"seeds": tuple(self.seeds)}

    def described(self, *, used: bool) -> list[str]:
        """Return the seeds if the metric is used, and tf32 if it is on, as phrases for a report."""
        seeds = [f"random inputs of seeds {', '.join(map(str, self.seeds))}"] if used else []
        return [*seeds, *(["tf32"] if self.tf32 else [])]

    @classmethod
    def of_noted(cls, search: FittedSearch) -> Self:
        """Return options with the seeds that a recipe records; the default seed if it records none."""
        return cls() if search.seeds is None else cls(seeds=list(search.seeds))


@dataclass(frozen=True)
class _Attention:
    """One self-attention under one random input.

    `target` [d, d] holds the target's outputs, each row divided by its norm.
    """

    logits: AlongLine
    value: Stack
    target: torch.Tensor

    @property
    def width(self) -> int:
        """Number of rows and columns of the logits."""
        return self.target.shape[1]

    def candidates(self, coefficients: torch.Tensor, batch: int) -> Iterator[tuple[torch.Tensor, Candidates]]:
        """Yield the work for coefficients [n, groups, sources] as (positions int64 [m], m candidates).

        A dense logits tensor holds at most `batch` candidates.
        """
        device = self.target.device
        values = self.value.combine(self.value.points(coefficients))
        for positions, logits in self.logits.logits(coefficients, batch):
            found = torch.empty(len(positions), self.width, device=device)
            yield positions, Candidates(logits, values[positions.to(device)], self.target, found)


class AttentionMetric:
    """Mean of cosine(A_candidate[i], A_target[i]) over the rows, and over the seeds of the options.

    `blocks` are scored in the layout's order of evaluation, which determines the random inputs.
    """

    unchanged: tuple[str, ...] = ()

    def __init__(
        self,
        comparison: Comparison,
        blocks: tuple[str, ...],
        *,
        batched: bool | None = None,
        keep_terms: bool = True,
    ) -> None:
        """Project the sources and compute the target's outputs.

        Raises CheckpointError if a block lacks a tensor, or a tensor contains NaN or Inf.

        Args:
            comparison: The open sources and target.
            blocks: Names of the blocks to score.
            batched: Whether to compute all blocks of one width together, as is fast on a GPU. Default: only on a GPU.
                Scores differ by rounding.
            keep_terms: Whether the batched way may keep the terms of the logits in memory. Without them it computes one
                product for each candidate off the lines.
        """
        self.blocks = blocks
        self._tf32 = comparison.options.of(AttentionOptions).tf32
        parts = {part.name: part for part in comparison.scored_parts(blocks)}
        attentions = [comparison.layout.attention[block] for block in blocks]
        self._counts = [len(of_block) for of_block in attentions]
        weights = [_self_attention(comparison, parts, prefix) for of_block in attentions for prefix in of_block]
        self._scorer: BatchedAttention | _OnCpu
        with float32_products(tf32=self._tf32):
            if comparison.device.type == "cpu" and not batched:
                self._scorer = _OnCpu(comparison, weights)
            else:
                self._scorer = _on_gpu(comparison, weights, keep_terms=keep_terms)
        comparison.check_intact()
        comparison.zeros.warn()

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Make the matrices of each block's line through these coefficients [n, groups, sources], n at least 3.

        Candidates on these lines are then scored two to three times as fast, until the next call.
        """
        with float32_products(tf32=self._tf32):
            self._scorer.prepare(coefficients)

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the similarities of several candidates.

        Several candidates in one call take less time each than one at a time. A candidate's score depends on the
        prepared lines and on the other candidates of the call by float32 rounding only, and never on earlier calls.

        Args:
            coefficients: Coefficients, float64 [n, groups, sources].

        Returns:
            Similarities in [-1, 1], float64 [n, blocks].
        """
        with float32_products(tf32=self._tf32):
            scores = self._scorer.score(coefficients)
        by_block = torch.split(scores, self._counts, dim=1)
        return torch.stack([of_block.mean(dim=1) for of_block in by_block], dim=1)


class _OnCpu:
    """Scores on the CPU, one self-attention after another; `weights` are to_q, to_k and to_v of each."""

    def __init__(self, comparison: Comparison, weights: Sequence[tuple[Part, Part, Part]]) -> None:
        self._workers = Workers()
        widths = [query.shape[1] for query, _, _ in weights]
        lines = len(comparison.options.of(AttentionOptions).seeds) * sum(map(AlongLine.bytes, widths))
        with_lines = lines <= _KEPT_LIMIT
        spare = _KEPT_LIMIT - (lines if with_lines else 0)
        self._projected: list[list[_Attention]] = []
        for number, seed in enumerate(comparison.options.of(AttentionOptions).seeds):
            generator = torch.Generator().manual_seed(seed)
            projected = []
            for position, (width, of_block) in enumerate(zip(widths, weights, strict=True)):
                inputs = torch.randn(width, width, generator=generator)
                query, key, value = _project(comparison, of_block, inputs)
                # Queries and keys have the same coefficients if the same sources hold them.
                by_terms = query.holders == key.holders and Terms.is_cheaper(query) and Terms.bytes(query) <= spare
                spare -= Terms.bytes(query) if by_terms else 0
                source = Terms(query, key) if by_terms else Products(query, key)
                matrices = torch.zeros(3, width * width) if with_lines else None
                target = _outputs(_weights(comparison, of_block, comparison.target), inputs)
                projected.append(_Attention(AlongLine(source, matrices), value, target))
                done = number * len(weights) + position + 1
                comparison.events.progress(
                    _PROJECTING, done, len(weights) * len(comparison.options.of(AttentionOptions).seeds)
                )
            self._projected.append(projected)

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Prepare the lines of all self-attentions under all seeds."""
        for projected in self._projected:
            for attention in projected:
                attention.logits.prepare(coefficients)

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the similarities, float64 [n, attentions], of coefficients float64 [n, groups, sources]."""
        scores = torch.zeros(len(coefficients), len(self._projected[0]), dtype=torch.float64)
        waiting: list[tuple[int, torch.Tensor, Candidates]] = []

        def compute() -> None:
            self._workers.compute([candidates for _, _, candidates in waiting])
            for column, positions, candidates in waiting:
                scores[positions, column] += candidates.similarities
            waiting.clear()

        for projected in self._projected:
            for column, attention in enumerate(projected):
                together = max(1, _TOGETHER // attention.width**2)
                for positions, candidates in attention.candidates(coefficients, together):
                    waiting.append((column, positions, candidates))
                    # Dense logits take memory of their own; the matrices of weighted sums are kept anyway.
                    if isinstance(candidates.logits, Dense):
                        compute()
        compute()
        return scores / len(self._projected)


def _on_gpu(
    comparison: Comparison, weights: Sequence[tuple[Part, Part, Part]], *, keep_terms: bool
) -> BatchedAttention:
    """Return the scorer for a GPU: projections stay there, and tensors are moved as they are stored."""
    device, seeds, sources = (
        comparison.device,
        comparison.options.of(AttentionOptions).seeds,
        list(comparison.sources.values()),
    )
    alike: dict[object, list[Member]] = defaultdict(list)
    for column, (query, key, value) in enumerate(weights):
        rows = comparison.group_of(query), comparison.group_of(key), comparison.group_of(value)
        member = Member(column, query.shape[1], rows, (query.holders, key.holders, value.holders))
        alike[member.width, member.holders].append(member)
    families = [Family(members, len(seeds), device) for members in alike.values()]
    places = {column: (family, place) for family in families for place, column in enumerate(family.columns)}
    loader = Loader(device, comparison.zeros)
    # Drawn as on the CPU: the inputs of each seed one after another.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for column, of_block in enumerate(weights):
        family, place = places[column]
        width = family.width
        inputs = _drawn(generators, width, device)
        loaded = [loader.load(part, [sources[position] for position in part.holders]) for part in of_block]
        of_target = [loader.load(part, [comparison.target])[0] for part in of_block]
        for number in range(len(seeds)):
            unit = number * len(family.members) + place
            for each, stack in zip(loaded, (family.queries, family.keys), strict=False):
                repeated = inputs[number].expand(len(each), width, width)
                torch.bmm(repeated, each.transpose(1, 2), out=stack[unit].view(-1, width, width))
            torch.matmul(loaded[2], inputs[number].sum(dim=0), out=family.values[unit])
            family.targets[unit] = _outputs((of_target[0], of_target[1], of_target[2]), inputs[number])
        comparison.events.progress(_PROJECTING, (column + 1) * len(seeds), len(weights) * len(seeds))
    loader.check()
    return BatchedAttention(families, len(sources), device, keep_terms=keep_terms)


def attention_by_seed(
    comparison: Comparison, blocks: tuple[str, ...], coefficients: torch.Tensor, seeds: Sequence[int]
) -> torch.Tensor:
    """Return the similarities of one candidate under each of several seeds.

    For one candidate this is faster than the metric, which projects every source first. If the memory of a GPU does not
    suffice, the CPU computes them, with a BlockfitWarning.

    Args:
        comparison: The open sources and target.
        blocks: Names of the blocks to score, in the order of evaluation.
        coefficients: Coefficients of the candidate, float64 [groups, sources].
        seeds: Seeds of the random inputs.

    Returns:
        Similarities in [-1, 1], float64 [seeds, blocks].
    """

    def on(device: torch.device) -> torch.Tensor:
        scored = _by_seed if device.type == "cpu" else _by_seed_on_gpu
        return scored(replace(comparison, device=device), blocks, coefficients, seeds)

    return on_first_device_that_fits(on, comparison.device, "the attention metric")


def _by_seed(
    comparison: Comparison, blocks: tuple[str, ...], coefficients: torch.Tensor, seeds: Sequence[int]
) -> torch.Tensor:
    parts = {part.name: part for part in comparison.scored_parts(blocks)}
    scores = torch.zeros(len(seeds), len(blocks), dtype=torch.float64)
    with float32_products(tf32=comparison.options.of(AttentionOptions).tf32):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for column, block in enumerate(blocks):
            prefixes = comparison.layout.attention[block]
            for weights in (_self_attention(comparison, parts, prefix) for prefix in prefixes):
                target = _weights(comparison, weights, comparison.target)
                merged = _weights(comparison, weights, coefficients)
                width = weights[0].shape[1]
                for row, generator in enumerate(generators):
                    inputs = torch.randn(width, width, generator=generator).to(comparison.device)
                    cosines = (_outputs(merged, inputs) * _outputs(target, inputs)).sum(dim=-1)
                    similarity = float(cosines.to(torch.float64).mean().clamp(-1, 1))
                    scores[row, column] += similarity / len(prefixes)
            comparison.events.progress(_OTHER_INPUTS, column + 1, len(blocks))
    comparison.check_intact()
    return scores


def _by_seed_on_gpu(
    comparison: Comparison, blocks: tuple[str, ...], coefficients: torch.Tensor, seeds: Sequence[int]
) -> torch.Tensor:
    """Return the same from a GPU: tensors are moved as stored, and the host waits once for all scores."""
    parts = {part.name: part for part in comparison.scored_parts(blocks)}
    device, sources = comparison.device, list(comparison.sources.values())
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    loader = Loader(device, comparison.zeros)
    found: list[torch.Tensor] = []

    def merged(part: Part) -> torch.Tensor:
        row = coefficients[comparison.group_of(part)].tolist()
        held = {position: row[position] for position in part.holders if row[position]}
        total = torch.zeros(part.shape, device=device)
        for position, number in held.items():
            total.add_(loader.load(part, [sources[position]])[0], alpha=number)
        return total

    with float32_products(tf32=comparison.options.of(AttentionOptions).tf32):
        for column, block in enumerate(blocks):
            prefixes = comparison.layout.attention[block]
            total = torch.zeros(len(seeds), dtype=torch.float64, device=device)
            for weights in (_self_attention(comparison, parts, prefix) for prefix in prefixes):
                width = weights[0].shape[1]
                inputs = _drawn(generators, width, device)
                query, key, value = (loader.load(part, [comparison.target])[0] for part in weights)
                candidate = merged(weights[0]), merged(weights[1]), merged(weights[2])
                for row, each in enumerate(inputs):
                    cosines = (_outputs(candidate, each) * _outputs((query, key, value), each)).sum(dim=-1)
                    total[row] += cosines.mean(dtype=torch.float64).clamp(-1, 1) / len(prefixes)
            found.append(total)
            comparison.events.progress(_OTHER_INPUTS, column + 1, len(blocks))
    loader.check()
    comparison.check_intact()
    return torch.stack(found, dim=1).cpu()


def _drawn(generators: Sequence[torch.Generator], width: int, device: torch.device) -> torch.Tensor:
    """Return random inputs on the device, float32 [generators, width, width], each drawn by a CPU generator."""
    drawn = staging((len(generators), width, width), torch.float32, device)
    for generator, out in zip(generators, drawn, strict=True):
        torch.randn(width, width, generator=generator, out=out)
    return drawn.to(device, non_blocking=True)


def _self_attention(comparison: Comparison, parts: dict[str, Part], prefix: str) -> tuple[Part, Part, Part]:
    names = [f"{prefix}.{projection}" for projection in comparison.layout.projections]
    missing = next((name for name in names if name not in parts), None)
    if missing is not None:
        raise CheckpointError(f"{comparison.target.label}: tensor {missing!r} is missing here or in every source")
    query, key, value = (parts[name] for name in names)
    return query, key, value


def _project(
    comparison: Comparison, weights: tuple[Part, Part, Part], inputs: torch.Tensor
) -> tuple[Stack, Stack, Stack]:
    """Return queries and keys [holders, d, d] and summed values [holders, d] of the sources."""
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
    comparison: Comparison, weights: tuple[Part, Part, Part], of: TensorSource | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return W_q, W_k, W_v, float32 [d, d] each, of a checkpoint or of a merge by coefficients [groups, sources]."""
    sources = list(comparison.sources.values())

    def read(part: Part, checkpoint: TensorSource) -> torch.Tensor:
        return comparison.read(part, checkpoint).to(comparison.device)

    def merged(part: Part, coefficients: torch.Tensor) -> torch.Tensor:
        row = coefficients[comparison.group_of(part)].tolist()
        held = [(row[position], sources[position]) for position in part.holders]
        total = torch.zeros(part.shape, device=comparison.device)
        for number, source in held:
            if number:
                total.add_(read(part, source), alpha=number)
        return total

    query, key, value = (merged(part, of) if isinstance(of, torch.Tensor) else read(part, of) for part in weights)
    return query, key, value


def _outputs(weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """Return a model's attention outputs [d, d], each row divided by its norm."""
    query, key, value = weights
    inputs = inputs.to(query.device)
    logits = (inputs @ query.T) @ (inputs @ key.T).T
    found = outputs(logits.sub_(logits.amax(dim=-1, keepdim=True)).mul_(LOG2_E), value @ inputs.sum(dim=0))
    norms: torch.Tensor = found.norm(dim=-1, keepdim=True)
    return found / norms.clamp_min(torch.finfo(torch.float32).tiny)
