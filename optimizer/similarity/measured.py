"""The statistics of a family of checkpoints in a file: enough to fit recipes without the checkpoints.

The file is a safetensors file of a few megabytes. Its tensors are the Gram matrices; JSON in its metadata lists the
files that they are of (fingerprints, hashes), the tensors of those files, and the layout and mapping that put tensors
into blocks.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from optimizer.checkpoints import TensorSpec, open_checkpoint, write_safetensors
from optimizer.errors import CheckpointError, InputError
from optimizer.families import Layout, load_layout
from optimizer.recipes import Group, Part
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.measured_checks import check_grams, read_dtypes, read_parts, read_texts
from optimizer.similarity.options import Options
from optimizer.similarity.statistics import Statistics, measure_grams, refuse_not_finite

__all__ = ["FileMark", "Measured", "measure_family", "read_measured", "save_measured"]

_KEY = "blockfit.statistics"
_TARGET = "\0the target"  # a name that no source can have
_VERSION = 2  # raise it whenever the content, or its definition, changes


@dataclass(frozen=True)
class FileMark:
    """Identity of a checkpoint: its file as recipes name it, its tensors' fingerprint, and its SHA-256 if known."""

    file: str
    fingerprint: str
    sha256: str | None = None


@dataclass(frozen=True)
class Measured:
    """Gram matrices of a family of checkpoints, and the facts about the files that their use requires.

    A block is measured wholly or not at all. It is left out if the target does not hold it in the sources' form, or if
    values are not finite.

    Attributes:
        layout: Layout of the checkpoints.
        mapping: Name of the mapping from tensors to blocks.
        base: Name of the source that differences are taken from. If None, the first source is the reference.
        sources: The sources by name, in the order that the parts' holders count.
        target: The target.
        parts: All parts that are merged.
        scored: The parts that were measured: the first axis of `gram` and `referenced`.
        referenced: Whether the reference holds each scored part, bool [scored].
        gram: Gram matrices, float64 [scored, K + 2, K + 2], as in `Statistics`.
        target_dtypes: Dtype of the target in each scored part, which bounds how well any merge can agree with it.
    """

    layout: Layout
    mapping: str
    base: str | None
    sources: Mapping[str, FileMark]
    target: FileMark
    parts: tuple[Part, ...]
    scored: tuple[Part, ...]
    referenced: torch.Tensor
    gram: torch.Tensor
    target_dtypes: tuple[torch.dtype, ...]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Rows of coefficients."""
        return Group.of(self.parts)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that were measured, in layout order."""
        measured = {part.block for part in self.scored}
        return tuple(block for block in self.layout.blocks if block in measured)

    @property
    def reference(self) -> str:
        """Name of the source that differences are taken from."""
        return self.base if self.base is not None else next(iter(self.sources))

    @property
    def labels(self) -> dict[str, str]:
        """Names of the sources in messages: their files, as recipes name them."""
        return {name: str(Path(mark.file)) for name, mark in self.sources.items()}

    @cached_property
    def statistics(self) -> Statistics:
        """The Gram matrices in terms of `groups`."""
        row = {group: position for position, group in enumerate(self.groups)}
        return Statistics(
            names=tuple(part.name for part in self.scored),
            blocks=tuple(part.block for part in self.scored if part.block is not None),
            group=torch.tensor([row[Group.of_part(part)] for part in self.scored], dtype=torch.long),
            referenced=self.referenced,
            gram=self.gram,
        )

    def with_options(self, options: Options) -> "Measured":
        """Return these statistics; the metrics of statistics have no options."""
        return self

    def opened(self, reader: str) -> Comparison:
        """Raise CheckpointError, since `reader` needs the checkpoints themselves."""
        files = ", ".join(mark.file for mark in (*self.sources.values(), self.target))
        raise CheckpointError(f"{reader} is computed from the tensors themselves; it needs the files {files}")

    def of_sources(self, names: Sequence[str]) -> "Measured | None":
        """Return the statistics of some of the sources.

        Args:
            names: Names of the sources, in the order of the result.

        Returns:
            The statistics; None if these sources lack the reference, or would split tensors into other parts.
        """
        # All sources together decide whether an input convolution is split into parts, and which shape counts.
        if tuple(names) == tuple(self.sources):
            return self
        differ = any(part.channels or part.other_shapes for part in self.parts)
        if self.base not in names or not set(names) <= set(self.sources) or differ:
            return None
        old = [list(self.sources).index(name) for name in names]
        chosen = [row for row, part in enumerate(self.scored) if set(part.holders) & set(old)]
        rows = torch.tensor([0, *(position + 1 for position in old), len(self.sources) + 1])
        return replace(
            self,
            sources={name: self.sources[name] for name in names},
            parts=_held_by(self.parts, old),
            scored=_held_by(self.scored, old),
            referenced=self.referenced[chosen],
            gram=self.gram[chosen][:, rows][:, :, rows],
            target_dtypes=tuple(self.target_dtypes[row] for row in chosen),
        )

    def with_hashes(self, hashes: Mapping[str, str]) -> "Measured":
        """Return a copy with the SHA-256 of these files: sources by name, the target as ""."""
        sources = {name: replace(mark, sha256=hashes.get(name, mark.sha256)) for name, mark in self.sources.items()}
        target = replace(self.target, sha256=hashes.get("", self.target.sha256))
        return replace(self, sources=sources, target=target)


def measure_family(
    comparison: Comparison,
    blocks: Collection[str],
    *,
    base: str | None,
    mapping: str,
    sources: Mapping[str, FileMark],
    target: FileMark,
) -> Measured:
    """Read every scored tensor of the family once, and return the Gram matrices of all blocks.

    Raises CheckpointError if one of `blocks` cannot be measured (see `measure_statistics`).

    Args:
        comparison: The open sources and target.
        blocks: Names of the blocks that must be measured; others are left out if they cannot be.
        base: Name of the source that differences are taken from; None if there is none.
        mapping: Name of the mapping from tensors to blocks.
        sources: Identities of the sources by name.
        target: Identity of the target.

    Returns:
        The statistics.
    """
    comparison.scored_parts(blocks)  # raises for shapes that do not fit, before any tensor is read
    parts = [part for part in comparison.parts if part.scored and part.block is not None]
    left_out = {part.block for part in parts if comparison.misfit(part) is not None}
    held = [part for part in parts if part.held_by(comparison.target) and part.block not in left_out]
    grams = measure_grams(comparison, held)
    for part, gram in zip(held, grams, strict=True):
        if not bool(torch.isfinite(gram).all()):
            if part.block in blocks:
                refuse_not_finite(part, comparison)
            left_out.add(part.block)
    kept = [row for row, part in enumerate(held) if part.block not in left_out]
    scored = tuple(held[row] for row in kept)
    referenced = torch.tensor([part.held_by(comparison.reference) for part in scored], dtype=torch.bool)
    dtypes = tuple(comparison.target.tensors[part.name].dtype for part in scored)
    return Measured(
        comparison.layout,
        mapping,
        base,
        dict(sources),
        target,
        comparison.parts,
        scored,
        referenced,
        grams[kept],
        dtypes,
    )


def save_measured(measured: Measured, path: Path) -> None:
    """Write `measured` to `path` atomically, or raise CheckpointError if the folder cannot be written to."""
    described = {
        "version": _VERSION,
        "layout": measured.layout.name,
        "mapping": measured.mapping,
        "base": measured.base,
        "sources": {name: asdict(mark) for name, mark in measured.sources.items()},
        "target": asdict(measured.target),
        "parts": [
            [part.name, part.block, part.shape, part.holders, part.scored, part.channels, part.other_shapes]
            for part in measured.parts
        ],
        "scored": [measured.parts.index(part) for part in measured.scored],
        "target_dtypes": [str(dtype).removeprefix("torch.") for dtype in measured.target_dtypes],
    }
    tensors = {"gram": measured.gram.contiguous(), "referenced": measured.referenced}
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_safetensors(path, specs, tensors.items(), {_KEY: json.dumps(described)})


def read_measured(path: Path) -> Measured | None:
    """Return the statistics that `save_measured` wrote.

    Args:
        path: Path of the file.

    Returns:
        The statistics; None if the file does not exist, or another version wrote it.

    Raises:
        CheckpointError: The file is broken, or contains statistics that no files can have.
    """
    if not os.path.exists(path):
        return None
    try:
        with open_checkpoint(path) as file:
            data = json.loads(file.metadata[_KEY])
            if isinstance(data, dict) and data.get("version") != _VERSION:
                return None
            # Copies: some systems cannot replace a file that is mapped.
            return _read(data, file.tensor("gram").clone(), file.tensor("referenced").clone())
    except CheckpointError as error:
        reason = error.problems[0].removeprefix(f"{path}: ")
    except (InputError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = f"it lacks entries that blockfit writes ({type(error).__name__}: {error})"
    raise CheckpointError(f"{path}: cannot be used: {reason}")


def _read(data: Mapping[str, Any], gram: torch.Tensor, referenced: torch.Tensor) -> Measured:
    layout, mapping, base = load_layout(data["layout"]), data["mapping"], data["base"]
    if mapping not in layout.mappings:
        raise CheckpointError("its mapping is not one of the layout's")
    marks = {
        name: FileMark(file, fingerprint, sha256)
        for name, file, fingerprint, sha256 in read_texts({**data["sources"], _TARGET: data["target"]})
    }
    target = marks.pop(_TARGET)
    names = list(marks)
    if not names or (base is not None and base not in names):
        raise CheckpointError("its base is not one of its sources")
    parts = read_parts(data["parts"], layout, mapping, len(names))
    rows = data["scored"]
    if not all(type(row) is int and 0 <= row < len(parts) for row in rows) or len(set(rows)) < len(rows):
        raise CheckpointError("it does not list which of its tensors were measured")
    scored = tuple(parts[row] for row in rows)
    if any(part.block is None or not part.scored for part in scored):
        raise CheckpointError("it contains inner products of a tensor that is in no block")
    check_grams(gram, referenced, scored, len(names), 0 if base is None else names.index(base))
    # Files of earlier versions lack the dtypes: most targets are float16.
    dtypes = read_dtypes(data.get("target_dtypes", ["float16"] * len(scored)), len(scored))
    return Measured(layout, mapping, base, marks, target, parts, scored, referenced, gram, dtypes)


def _held_by(parts: Iterable[Part], positions: Sequence[int]) -> tuple[Part, ...]:
    """Return the parts that one of the sources at `positions` holds, with holders counted among these."""
    new = {old: position for position, old in enumerate(positions)}
    return tuple(
        replace(part, holders=tuple(sorted(new[holder] for holder in part.holders if holder in new)))
        for part in parts
        if set(part.holders) & set(new)
    )
