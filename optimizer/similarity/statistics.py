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
from optimizer.recipes import Part
from optimizer.similarity.comparison import Comparison

__all__ = ["Statistics", "gram_matrix", "measure_statistics"]

# Products over this many elements are taken in float32 and their sums in float64 (design: 4e-10 relative).
SHORT = 256
# Elements of a tensor that are worked on at a time: small enough to stay in a processor's cache.
_CHUNK = 1 << 17


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
        blocks=tuple(part.block for part in parts),
        group=torch.tensor([comparison.group_of(part) for part in parts], dtype=torch.long),
        referenced=referenced,
        gram=grams,
    )


def gram_matrix(vectors: torch.Tensor) -> torch.Tensor:
    """Inner products of the rows of [m, n], as float64 [m, m]: short products in the rows' type, sums in float64."""
    rows, length = vectors.shape
    whole = length - length % SHORT
    pieces = vectors[:, :whole].reshape(rows, -1, SHORT).transpose(0, 1)
    gram = torch.bmm(pieces, pieces.transpose(1, 2)).sum(dim=0, dtype=torch.float64)
    if whole < length:
        rest = vectors[:, whole:]
        gram += (rest @ rest.T).to(torch.float64)
    return gram


def _part_gram(part: Part, comparison: Comparison, sources: Sequence[Checkpoint], referenced: bool) -> torch.Tensor:
    length = _elements(part)
    reference = _flat(part, comparison.reference) if referenced else None
    rows = [
        None if position not in part.holders or (referenced and source is comparison.reference) else _flat(part, source)
        for position, source in enumerate(sources)
    ]
    rows.append(_flat(part, comparison.target))
    # A small tensor has too few short products for their rounding to average out, and float64 costs little there.
    dtype = torch.float64 if length <= _CHUNK else torch.float32
    buffer = torch.zeros(len(rows) + 1, min(length, _CHUNK), dtype=dtype, device=comparison.device)
    gram = torch.zeros(len(rows) + 1, len(rows) + 1, dtype=torch.float64, device=comparison.device)
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        chunk = buffer[:, : stop - start]
        if reference is not None:
            chunk[0].copy_(reference[start:stop])
        for row, tensor in enumerate(rows, start=1):
            if tensor is not None:
                chunk[row].copy_(tensor[start:stop])
                chunk[row].sub_(chunk[0])
        gram += gram_matrix(chunk)
    return gram.cpu()


def _flat(part: Part, checkpoint: Checkpoint) -> torch.Tensor:
    return part.read(checkpoint).reshape(-1)


def _elements(part: Part) -> int:
    return torch.Size(part.shape).numel()


def _refuse(part: Part, checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        if part.held_by(checkpoint) and not bool(torch.isfinite(part.read(checkpoint).to(torch.float32)).all()):
            raise CheckpointError(
                f"{checkpoint.path}: tensor {part.name!r} holds NaN or Inf and takes part in the comparison; "
                "use a copy of the model without them"
            )
    raise CheckpointError(f"tensor {part.name!r}: its inner products overflow float32")
