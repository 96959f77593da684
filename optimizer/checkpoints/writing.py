"""Streamed safetensors files, written either completely or not at all."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock

import torch

from optimizer.checkpoints.header import SAFETENSORS_HEADER_LIMIT
from optimizer.checkpoints.reading import SAFETENSORS_DTYPES, raw_bytes
from optimizer.errors import CheckpointError
from optimizer.files import replacing

__all__ = ["SafetensorsWriter", "TensorSpec", "safetensors_writer", "write_safetensors"]

_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Entry of one tensor in a safetensors header, known before the tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a safetensors file, with one of its tensors in memory at a time.

    In the file, tensors have the order of `specs`, larger element types first, so that each one is aligned to its
    element size. Tensors that come in the order of `specs` are written front to back. Errors of the iterator `tensors`
    pass through. After any error an existing file at `path` is untouched.

    Raises CheckpointError if the folder is missing or not writable, the disk is full, or the old file cannot be
    replaced.

    Args:
        path: Path of the file.
        specs: Announcement of all tensors.
        tensors: (name, tensor) pairs, each name once, in any order.
        metadata: Texts by name.
        progress: Called after each tensor with its number of bytes.

    Raises:
        ValueError: `specs`, `tensors` and `metadata` do not fit together, or cannot be stored.
    """
    expected = {spec.name: spec for spec in specs}
    with safetensors_writer(path, specs, metadata) as file:
        for name, tensor in tensors:
            if name not in expected:
                raise ValueError(f"{path}: tensor {name!r} was not announced, or is given twice")
            spec = expected.pop(name)
            if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                raise ValueError(
                    f"{path}: tensor {name!r} was announced as {spec.dtype} {list(spec.shape)}, "
                    f"but is {tensor.dtype} {list(tensor.shape)}"
                )
            file.write(name, tensor)
            if progress is not None:
                progress(spec.nbytes)
        if expected:
            raise ValueError(
                f"{path}: {len(expected)} announced tensors were not written, {next(iter(expected))!r} first"
            )


@contextmanager
def safetensors_writer(
    path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> Iterator["SafetensorsWriter"]:
    """Yield a writer of announced tensors; the file appears at `path` when the block succeeds.

        with safetensors_writer(path, [TensorSpec("m", torch.float16, (1000, 3))], {}) as file:
            file.write("m", last, start=1500)
            file.write("m", first)

    Tensors have the order of `specs` in the file, larger element types first. Threads that write must have ended when
    the block ends. Errors of the block pass through; raises CheckpointError and ValueError as `write_safetensors` does.
    After any error an existing file at `path` is untouched.

    Args:
        path: Path of the file.
        specs: Announcement of all tensors.
        metadata: Texts by name.

    Yields:
        The writer.
    """
    header = _header(path, specs, metadata)
    offsets: dict[str, int] = {}
    end = len(header)
    for spec in _aligned(specs):
        offsets[spec.name] = end
        end += spec.nbytes
    with (
        replacing(path, suffix=".tmp", error=CheckpointError, needed=end) as temporary,
        temporary.open("wb", buffering=0) as file,
    ):
        _write_all(file, header)
        writer = SafetensorsWriter(path, file, specs, offsets)
        yield writer
        writer.check_complete()


class SafetensorsWriter:
    """Writer of a safetensors file in pieces, in any order, from any thread; made by `safetensors_writer`."""

    def __init__(self, path: Path, file: FileIO, specs: Iterable[TensorSpec], offsets: Mapping[str, int]) -> None:
        self._path = path
        self._file = file
        self._specs = {spec.name: spec for spec in specs}
        self._offsets = offsets
        self._missing = {name: spec.nbytes for name, spec in self._specs.items()}
        self._lock = Lock()

    def write(self, name: str, data: torch.Tensor, start: int = 0) -> None:
        """Write `data` as elements of a tensor.

        Raises OSError, which `safetensors_writer` translates, if the disk does not take it.

        Args:
            name: Name of the tensor.
            data: Elements of the announced dtype, in any shape.
            start: Position of the first element in the tensor.

        Raises:
            ValueError: The data do not fit the announcement.
        """
        spec = self._specs[name]
        begin, size = start * spec.dtype.itemsize, data.numel() * spec.dtype.itemsize
        if data.dtype != spec.dtype or not 0 <= begin <= begin + size <= spec.nbytes:
            raise ValueError(
                f"{self._path}: tensor {name!r} was announced as {spec.dtype} {list(spec.shape)}, "
                f"but {data.numel()} elements of {data.dtype} were given from number {start} on"
            )
        content = raw_bytes(data).numpy().data
        # One handle and a lock cost nothing: the system also lets only one thread at a time write to a file.
        with self._lock:
            self._missing[name] -= size
            self._file.seek(self._offsets[name] + begin)
            _write_all(self._file, content)

    def check_complete(self) -> None:
        """Raise ValueError, naming the first tensor concerned, unless all announced bytes were written."""
        for name, missing in self._missing.items():
            if missing:
                raise ValueError(
                    f"{self._path}: {missing:,} bytes of tensor {name!r} were not written, or written twice"
                )


def _write_all(file: FileIO, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _aligned(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    # safetensors allows no gaps. Element sizes are powers of two, so every offset fits if they are sorted from large to
    # small.
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def _header(path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise ValueError(f"{path}: safetensors metadata must map text to text")
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in _aligned(specs):
        if spec.name in fields or spec.name == "__metadata__":
            raise ValueError(f"{path}: tensor name {spec.name!r} is reserved or given twice")
        if spec.dtype not in _SAFETENSORS_NAMES:
            raise ValueError(f"{path}: tensor {spec.name!r} is {spec.dtype}, which safetensors cannot hold")
        fields[spec.name] = {
            "dtype": _SAFETENSORS_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    # "replace": file names in metadata may contain bytes that were never valid text, and safetensors requires UTF-8.
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    if len(text) > SAFETENSORS_HEADER_LIMIT:
        raise ValueError(
            f"{path}: names and metadata take {len(text):,} bytes; must be at most {SAFETENSORS_HEADER_LIMIT:,}"
        )
    return len(text).to_bytes(8, "little") + text
