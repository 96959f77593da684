"""Checks that the contents of a statistics file can have been measured: the file may come from a stranger."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from optimizer.errors import CheckpointError
from optimizer.families import Layout
from optimizer.recipes import Part

__all__ = ["check_grams", "read_dtypes", "read_parts", "read_texts"]

_MOST_SOURCES, _MOST_PARTS = 1000, 100_000
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )
}
_HASH = re.compile(r"[0-9a-f]{64}")
# Inner products of float32 tensors are 0 or within these limits. Products of three of them are then finite in float64.
_SMALLEST, _LARGEST = 1e-95, 1e95
# Tolerance for rounded sums: relative, of inner products that must be equal, and absolute, of the least eigenvalue of
# normalized ones.
_ROUNDING = 1e-8
# Elements of matrices that are checked together.
_BATCH = 1 << 22


def read_texts(marks: Any) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield (name, file, fingerprint, sha256) of marks {name: {file, fingerprint, sha256}}.

    Args:
        marks: Decoded JSON.

    Yields:
        The four texts of each mark; sha256 may be None.

    Raises:
        CheckpointError: The marks have another form.
    """
    if not isinstance(marks, dict) or not 0 < len(marks) <= _MOST_SOURCES:
        raise CheckpointError("its sources are not a mapping of names")
    for name, mark in marks.items():
        fields = dict(mark) if isinstance(mark, dict) else {}
        file, fingerprint, sha256 = (fields.pop(field, None) for field in ("file", "fingerprint", "sha256"))
        if fields or not isinstance(file, str) or not _is_hash(fingerprint) or not (sha256 is None or _is_hash(sha256)):
            raise CheckpointError(f"its entry of {name!r} must be the file, its fingerprint and its hash")
        yield name, file, fingerprint, sha256


def read_dtypes(names: Any, count: int) -> tuple[torch.dtype, ...]:
    """Return the floating-point dtypes of these names.

    Args:
        names: Decoded JSON.
        count: The number of parts.

    Returns:
        The dtypes, in order.

    Raises:
        CheckpointError: The names are not those of `count` floating-point dtypes.
    """
    if not isinstance(names, list) or len(names) != count or not all(name in _DTYPES for name in names):
        raise CheckpointError("it does not list the dtypes of the target's tensors")
    return tuple(_DTYPES[name] for name in names)


def read_parts(parts: Any, layout: Layout, mapping: str, sources: int) -> tuple[Part, ...]:
    """Return the parts described by lists [name, block, shape, holders, scored, channels, other shapes].

    Args:
        parts: Decoded JSON.
        layout: Layout of the checkpoints.
        mapping: Name of the mapping from tensors to blocks.
        sources: Number of sources.

    Returns:
        The parts, in order.

    Raises:
        CheckpointError: The lists have another form, or contradict the layout.
    """
    if not isinstance(parts, list) or not 0 < len(parts) <= _MOST_PARTS:
        raise CheckpointError("its tensors are not a list")
    found: list[Part] = []
    for entry in parts:
        match entry:
            case [
                str(name),
                str() | None as block,
                list(shape),
                list(holders),
                bool(scored),
                list() | None as channels,
                list(others),
            ]:
                whole = [*shape, *holders, *(channels or []), *others]
                valid = all(type(number) is int and 0 <= number < 1 << 50 for number in whole)
                valid = valid and (channels is None or (len(channels) == 2 and channels[0] < channels[1]))
                valid = valid and sorted(set(holders)) == holders != [] and holders[-1] < sources
                valid = valid and sorted({*others} - {*holders}) == others and (not others or others[-1] < sources)
            case _:
                valid = False
        if not valid:
            raise CheckpointError("the entry of one of its tensors has another form")
        placed = layout.block_of(name, mapping)
        if not layout.merges(name) or (block, scored) != (placed, layout.scores(name) and placed is not None):
            raise CheckpointError(
                f"the tensor {name[:200]!r} is not in the block that the layout {layout.name} has it in"
            )
        span = None if channels is None else tuple(channels)
        found.append(Part(name, block, tuple(shape), tuple(holders), scored, span, tuple(others)))
    if len({(part.name, part.channels) for part in found}) < len(found):
        raise CheckpointError("one of its tensors is listed twice")
    return tuple(found)


def check_grams(
    gram: torch.Tensor, referenced: torch.Tensor, scored: Sequence[Part], sources: int, reference: int
) -> None:
    """Raise CheckpointError unless `gram` can be the Gram matrices of the differences of K sources.

    Args:
        gram: Matrices, [scored, K + 2, K + 2].
        referenced: Whether the reference holds each scored part, [scored].
        scored: The scored parts.
        sources: Number K of sources.
        reference: Position of the reference among the sources.

    Raises:
        CheckpointError: A type, shape or value is impossible.
    """
    if (gram.dtype, referenced.dtype) != (torch.float64, torch.bool):
        raise CheckpointError("its numbers are of another type")
    if gram.shape != (len(scored), sources + 2, sources + 2) or referenced.shape != (len(scored),):
        raise CheckpointError("it must have a matrix for each of its tensors, with a row for each of its sources")
    if referenced.tolist() != [reference in part.holders for part in scored]:
        raise CheckpointError("its list of the tensors that the base holds is wrong")
    held = torch.zeros(len(scored), sources, dtype=torch.bool)
    for row, part in enumerate(scored):
        # The reference has no difference from itself.
        held[row, [holder for holder in part.holders if holder != reference]] = True
    batch = max(_BATCH // (sources + 2) ** 2, 1)
    for start in range(0, len(scored), batch):
        _check(gram[start : start + batch], held[start : start + batch])


def _check(gram: torch.Tensor, held: torch.Tensor) -> None:
    lengths = gram.diagonal(dim1=1, dim2=2)
    if not bool(torch.isfinite(gram).all()):
        raise CheckpointError("one of its inner products is not a finite number")
    if not bool(((lengths == 0) | ((lengths >= _SMALLEST) & (lengths <= _LARGEST))).all()):
        raise CheckpointError("one of its squared lengths is negative, or none that a tensor can have")
    if bool((gram[:, 1:-1] != 0).any(dim=2)[~held].any()):
        raise CheckpointError("it has inner products with a source that has no such tensor, or is the base")
    # Normalized products are within [-1, 1], and all products of a vector of length 0 are 0.
    scale = lengths.sqrt()
    normed = gram / scale[:, :, None] / scale[:, None, :]
    zero = scale == 0
    normed[zero[:, :, None] | zero[:, None, :]] = 0
    if (
        bool((gram != 0)[zero[:, :, None] | zero[:, None, :]].any())
        or float((normed - normed.mT).abs().max()) > _ROUNDING
    ):
        raise CheckpointError("its inner products contradict each other: they depend on the order")
    identity = torch.eye(gram.shape[1], dtype=torch.float64)
    normed = torch.where(identity.bool() & zero[:, :, None], identity, (normed + normed.mT) / 2)
    _, failed = torch.linalg.cholesky_ex(normed + _ROUNDING * identity)
    if bool(failed.any()):
        raise CheckpointError("its inner products contradict each other: no tensors have them")


def _is_hash(text: Any) -> bool:
    return isinstance(text, str) and _HASH.fullmatch(text) is not None
