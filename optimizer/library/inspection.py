"""Inspect a checkpoint: its contents, and oddities to know before merging."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch

from optimizer.checkpoints import (
    FileKind,
    TensorInfo,
    TensorSource,
    as_source,
    read_prediction,
    unfit,
    usual_schedule,
    zeros_at_end,
)
from optimizer.families import Layout
from optimizer.library.fingerprints import HashCache, fingerprint, sha256, short_hash
from optimizer.library.provenance import Provenance, parsed, read_provenance
from optimizer.printable import printable

__all__ = ["Inspection", "inspect_checkpoint"]

# Dtypes and oddities that are shown.
_MOST_LISTED = 12


@dataclass(frozen=True, repr=False)
class Inspection:
    """The contents of one checkpoint.

    Attributes:
        file: The label of the file.
        size: The size in bytes.
        format: The format of the file.
        kind: The kind of file by its names and shapes; None if unknown.
        layout: The name of the layout; None if unknown.
        dtypes: The number of tensors of each dtype, the most frequent first.
        blocks: The number of "tensors" and "parameters" that merge, for each block in layout order.
        tensors: The number of tensors.
        parameters: The number of elements of all tensors.
        sha256: The SHA-256 of the file; None if unknown, or if there is no single file.
        short_hash: Its first 10 digits.
        fingerprint: The identity of the tensors.
        metadata: The metadata, with JSON texts parsed.
        merge: The provenance of a merge; None if the metadata has none.
        unusual: Sentences on oddities.
    """

    file: str
    size: int
    format: str
    kind: FileKind | None
    layout: str | None
    dtypes: Mapping[str, int]
    blocks: Mapping[str, Mapping[str, int]]
    tensors: int
    parameters: int
    sha256: str | None
    short_hash: str | None
    fingerprint: str
    metadata: Mapping[str, Any]
    merge: Provenance | None
    unusual: tuple[str, ...]

    def __repr__(self) -> str:
        """Return the kind, the size, the tensors and the hash, then a line for each of the first oddities."""
        kind = "of an unknown kind" if self.kind is None else self.kind.title
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in list(self.dtypes.items())[:_MOST_LISTED])
        lines = [f"{self.file}: {kind}, {self.size / 1e6:,.1f} MB, {self.tensors} tensors ({dtypes})"]
        lines += [f"  sha256 {self.sha256}"] if self.sha256 else []
        lines += [f"  {text}" for text in self.unusual[:_MOST_LISTED]]
        return "\n".join(map(printable, lines))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON values."""
        records = {"kind": self.kind and self.kind.as_dict(), "merge": self.merge and self.merge.as_dict()}
        return asdict(self) | records | {"unusual": list(self.unusual)}


def inspect_checkpoint(
    given: Path | str | TensorSource, *, cache: HashCache | None = None, full: bool = True
) -> Inspection:
    """Inspect a checkpoint, tensor by tensor.

        inspect_checkpoint("closed.safetensors").unusual

    Raises CheckpointError if the file cannot be used.

    Args:
        given: The path of the checkpoint, or an open source.
        cache: A cache of hashes.
        full: Whether to read the whole file. Otherwise only a few megabytes are read: the SHA-256 is given only if the
            cache holds it, and tensors are not checked for NaN, infinity and zeros.

    Returns:
        The contents and oddities.
    """
    with as_source(given) as checkpoint:
        infos = checkpoint.tensors.values()
        hash_of_file = None if checkpoint.path is None else _sha256(checkpoint.path, cache, full=full)
        return Inspection(
            file=checkpoint.label,
            size=checkpoint.size,
            format=checkpoint.format,
            kind=checkpoint.kind,
            layout=checkpoint.layout.name if checkpoint.layout else None,
            dtypes=dict(Counter(_dtype_name(info) for info in infos).most_common()),
            blocks=_blocks(checkpoint),
            tensors=len(infos),
            parameters=sum(info.count for info in infos),
            sha256=hash_of_file,
            short_hash=short_hash(hash_of_file) if hash_of_file else None,
            fingerprint=fingerprint(checkpoint, cache),
            metadata={key: parsed(value) for key, value in checkpoint.metadata.items()},
            merge=read_provenance(checkpoint.metadata),
            unusual=(*_unusual_names(checkpoint), *(_unusual_values(checkpoint) if full else ())),
        )


def _sha256(path: Path, cache: HashCache | None, *, full: bool) -> str | None:
    if full:
        return sha256(path, cache)
    return cache.look_up(path, "sha256") if cache else None


def _extremes(tensor: torch.Tensor) -> tuple[float, float]:
    """Return the smallest and the largest element, NaN if any element is; (1, 1) for integers and empty tensors."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return 1.0, 1.0
    if tensor.dtype.itemsize == 1:  # torch has no comparisons for float8
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)
    return float(low), float(high)


def _blocks(checkpoint: TensorSource) -> dict[str, dict[str, int]]:
    layout = checkpoint.layout
    if layout is None:
        return {}
    blocks = {block: {"tensors": 0, "parameters": 0} for block in layout.blocks}
    for name, info in checkpoint.tensors.items():
        place = layout.block_of(name)
        if place is not None and info.dtype.is_floating_point and layout.merges(name):
            blocks[place]["tensors"] += 1
            blocks[place]["parameters"] += info.count
    return blocks


def _unusual_names(checkpoint: TensorSource) -> list[str]:
    """Return the oddities of names, dtypes, shapes and position ids."""
    layout, tensors = checkpoint.layout, checkpoint.tensors
    if layout is None:
        reason = unfit(checkpoint).removeprefix(f"is {checkpoint.kind}; ")
        return [f"no known layout: {reason}", *_unusual_dtypes(tensors, ())]
    found: list[str] = []
    held = {layout.part_of(name) for name in tensors if layout.merges(name)}
    lacking = [part.title for part in layout.parts if part.title not in held and not part.apart]
    found += [f"no {title}: a merge takes it from another input" for title in lacking]
    copies = sum(name.startswith(layout.ema) for name in tensors)
    if copies:
        found.append(f"an EMA copy of {copies} tensors: merges leave it out")
    found += _unusual_channels(checkpoint, layout)
    renamed = [info for name, info in tensors.items() if info.stored_name != name]
    if renamed:
        found.append(
            f"{len(renamed)} tensors under other names, such as {renamed[0].stored_name!r}: read as {renamed[0].name!r}"
        )
    if checkpoint.passed_over:
        found.append(f"{_some(checkpoint.passed_over)}: stored again under other names, with other values; not read")
    found += _unusual_sampling(checkpoint, layout)
    for ids, embedding in layout.position_ids.items():
        found += _unusual_position_ids(checkpoint, ids, embedding)
    found += _unusual_dtypes(tensors, (*layout.position_ids, *layout.ema))
    unknown = [name for name in tensors if not layout.expects(name)]
    if unknown:
        found.append(f"{_some(unknown)}: no part of {layout.title}")
    return found


def _unusual_channels(checkpoint: TensorSource, layout: Layout) -> list[str]:
    """Return the oddity of a number of input channels other than the layout's."""
    if layout.inpainting is None or layout.inpainting.tensor not in checkpoint.tensors:
        return []
    shape, channels = checkpoint.tensors[layout.inpainting.tensor].shape, layout.inpainting.channels
    if len(shape) < 2 or shape[1] == channels:
        return []
    more = _model_with_more_channels(checkpoint.kind)
    return [f"{shape[1]} input channels: {more}, of which the first {channels} channels merge"]


def _model_with_more_channels(kind: FileKind | None) -> str:
    variant = "" if kind is None else kind.variant
    return f"{_article(variant)} {variant} model" if variant else "a model that reads more than an image"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _unusual_position_ids(checkpoint: TensorSource, name: str, embedding_name: str) -> list[str]:
    info = checkpoint.tensors.get(name)
    if info is None:
        return []
    embedding = checkpoint.tensors.get(embedding_name)
    count = embedding.shape[0] if embedding else prod(info.shape)
    values = checkpoint.tensor(name).reshape(-1).double()
    if info.dtype == torch.int64 and torch.equal(values, torch.arange(count, dtype=torch.float64)):
        return []
    wrong = sum(value != place for place, value in enumerate(values.tolist()))
    return [
        (
            f"position_ids are {len(values)} values of {_dtype_name(info)}, {wrong} of them wrong: "
            f"they should be int64 0..{count - 1}; a merge writes the correct values"
        )
    ]


def _unusual_sampling(checkpoint: TensorSource, layout: Layout) -> list[str]:
    """Return the oddities of markers, metadata and the noise schedule."""
    prediction = read_prediction(checkpoint, layout)
    found = []
    if prediction.markers or prediction.zero or any(kind != "epsilon" for _, _, kind in prediction.stated):
        found.append(f"{prediction.describe()}: a merge is sampled as its first input is")
    usual = replace(prediction, schedule=usual_schedule(layout))
    if prediction.schedule is not None and prediction.schedule_difference(usual) is not None:
        last = float(prediction.schedule[-1])
        found.append(f"a noise schedule other than that of {layout.title}: alphas_cumprod ends at {last:.4g}")
    return found


def _unusual_dtypes(tensors: Mapping[str, TensorInfo], expected: tuple[str, ...]) -> list[str]:
    found = []
    integers = [
        name for name, info in tensors.items() if not info.dtype.is_floating_point and not name.startswith(expected)
    ]
    if integers:
        found.append(f"{_some(integers)}: not floating-point; copied, never merged")
    tiny = [info for info in tensors.values() if info.dtype.is_floating_point and info.dtype.itemsize == 1]
    if tiny:
        found.append(f"{len(tiny)} tensors in {_dtype_name(tiny[0])}: too coarse to merge or to compare well")
    return found


def _unusual_values(checkpoint: TensorSource) -> list[str]:
    """Return the oddities of values, from one pass over all tensors, one at a time."""
    not_finite, zero = [], []
    for name in checkpoint.tensors:
        low, high = _extremes(checkpoint.tensor(name))
        if not (isfinite(low) and isfinite(high)):
            not_finite.append(name)
        elif low == high == 0.0 and name.endswith(".weight"):  # a bias may well be zero
            zero.append(name)
    found = []
    if not_finite:
        found.append(f"NaN or infinite values in {_some(not_finite)}: the model is damaged")
    end = zeros_at_end(checkpoint)
    if end:
        found.append(
            f"nothing but zeros in the last {len(end)} tensors of the file, from {end[-1]!r} on: its download was "
            "probably broken off; download it again"
        )
    if zero := [name for name in zero if name not in end]:
        found.append(f"nothing but zeros in {_some(zero)}")
    return found


def _some(names: Sequence[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _dtype_name(info: TensorInfo) -> str:
    return str(info.dtype).removeprefix("torch.")
