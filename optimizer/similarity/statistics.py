"""Gram matrices: all that the weight-space metrics need to know of the checkpoints, from one pass over them.

A merge is reference + sum_k c_k * (source_k - reference), because its coefficients sum to 1. So every inner product of
a candidate with the target, or with itself, follows from those of the vectors

    [reference, source_1 - reference, ..., source_K - reference, target - reference]

Finetunes agree with their base to 3-5 digits: products of the raw tensors would cancel away what is to be fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optimizer.checkpoints import Checkpoint
from optimizer.errors import CheckpointError
from optimizer.recipes import Part, finite
from optimizer.similarity.comparison import Comparison

__all__ = ["Statistics", "gram_matrix", "measure_statistics"]

# Tensors are cut into pieces of this many elements: as one batch of small products they keep all cores busy, which one
# long and narrow product does not. All in float64: differences of half-precision numbers lie on a grid, so that float32
# sums of their products round down more often than up (7e-8 in all, measured, however short they are).
PIECE = 256
# Pieces that are worked on at a time: few enough to stay in a processor's cache.
_PIECES = 512


@dataclass(frozen=True)
class Statistics:
    """Gram matrices per scored part, float64 [parts, K + 2, K + 2]: reference, K source differences, target difference.

    `group` [parts] is each part's row in coefficients; `blocks` its block; `referenced` whether the reference holds it
    (where not, the differences are the tensors themselves and a difference from the base is not defined). A source that
    lacks a part has zeros there.
    """

    names: tuple[str, ...]
    blocks: tuple[str, ...]
    group: torch.Tensor
    referenced: torch.Tensor
    gram: torch.Tensor


def measure_statistics(comparison: Comparison, blocks: Sequence[str]) -> Statistics:
    """Read every scored tensor of `blocks` once and take its Gram matrix.

    Raises CheckpointError naming file and tensor where a tensor holds NaN or Inf.
    """
    parts = comparison.scored_parts(blocks)
    sources = list(comparison.sources.values())
    count = len(sources) + 2
    grams = torch.zeros(len(parts), count, count, dtype=torch.float64)
    referenced = torch.zeros(len(parts), dtype=torch.bool)
    total = sum(_elements(part) for part in parts)
    done = 0
    for row, part in enumerate(parts):
        referenced[row] = part.held_by(comparison.reference)
        grams[row] = _part_gram(part, comparison, sources, bool(referenced[row]))
        if not bool(torch.isfinite(grams[row]).all()):
            _refuse(part, [*sources, comparison.target, comparison.reference])
        done += _elements(part)
        comparison.progress("reading the checkpoints", done, total)
    return Statistics(
        names=tuple(part.name for part in parts),
        blocks=tuple(part.block for part in parts if part.block is not None),
        group=torch.tensor([comparison.group_of(part) for part in parts], dtype=torch.long),
        referenced=referenced,
        gram=grams,
    )


def gram_matrix(
    tensors: Sequence[torch.Tensor | None], reference: torch.Tensor | None, device: torch.device | None = None
) -> torch.Tensor:
    """Inner products of the reference and of each tensor's difference from it, float64 [1 + tensors, 1 + tensors].

    All tensors are [n], of any floating dtype; None stands for one that is missing, or equal: its products are 0.
    Without a reference the tensors themselves are multiplied. Differences, products and sums are float64.
    """
    rows = [reference, *tensors]
    length = next(len(row) for row in rows if row is not None)
    buffer = torch.zeros(min(_PIECES, -(-length // PIECE)), len(rows), PIECE, dtype=torch.float64, device=device)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
    for start in range(0, length, _PIECES * PIECE):
        stop = min(start + _PIECES * PIECE, length)
        pieces = buffer[: -(-(stop - start) // PIECE)]
        if (stop - start) % PIECE:
            pieces[-1].zero_()
        for row, tensor in enumerate(rows):
            if tensor is not None:
                _fill(pieces[:, row], tensor[start:stop])
                if row > 0:
                    pieces[:, row].sub_(pieces[:, 0])
        gram += torch.bmm(pieces, pieces.transpose(1, 2)).sum(dim=0)
    return gram.cpu()


def _fill(pieces: torch.Tensor, values: torch.Tensor) -> None:
    whole, rest = divmod(len(values), PIECE)
    pieces[:whole].copy_(values[: whole * PIECE].view(whole, PIECE))
    if rest:
        pieces[whole, :rest].copy_(values[whole * PIECE :])


def _part_gram(part: Part, comparison: Comparison, sources: Sequence[Checkpoint], referenced: bool) -> torch.Tensor:
    reference = _flat(part, comparison.reference) if referenced else None
    rows = [
        None if position not in part.holders or (referenced and source is comparison.reference) else _flat(part, source)
        for position, source in enumerate(sources)
    ]
    return gram_matrix([*rows, _flat(part, comparison.target)], reference, comparison.device)


def _flat(part: Part, checkpoint: Checkpoint) -> torch.Tensor:
    return part.read(checkpoint).reshape(-1)


def _elements(part: Part) -> int:
    return torch.Size(part.shape).numel()


def _refuse(part: Part, checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        if part.held_by(checkpoint):
            finite(part, checkpoint, "comparison")
    raise CheckpointError(f"tensor {part.name!r}: its inner products are not finite")
