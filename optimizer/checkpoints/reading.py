"""Lazy reading of checkpoints in all supported formats, without ever running code inside them.

Two kinds of files are read. They are recognized by their content, not by their extension:

* safetensors, mapped into memory;
* files of `torch.save` (`torch_files`): zip archives (torch 1.6 and later) and older files, both mapped into memory;
  archives that another program compressed are unpacked.

Mapped pages belong to the operating system's file cache: any number of mapped checkpoints may be open at once without
growth of the process.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open

from optimizer.checkpoints.file_reader import FileReader, StoredTensorInfo
from optimizer.checkpoints.header import MOST_TENSORS, SAFETENSORS_HEADER_LIMIT, read_header
from optimizer.checkpoints.kinds import FileKind, kind_of
from optimizer.checkpoints.naming import named_tensors
from optimizer.checkpoints.open_file import FileState, HeldFile
from optimizer.checkpoints.other_files import kind_of_folder, kind_of_other_file
from optimizer.checkpoints.pickles import LEFT_OUT, StoredTensor, Unreadable
from optimizer.checkpoints.recognition import describe_misfit, kind_and_layout, layout_of
from optimizer.checkpoints.source import BaseSource, TensorSource
from optimizer.checkpoints.torch_files import TorchFile, read_torch_pickles, read_torch_zip
from optimizer.errors import CheckpointError
from optimizer.families import Layout, layout_names, load_layout
from optimizer.files import CHECKPOINT_SUFFIXES, missing_file

__all__ = ["CHECKPOINT_SUFFIXES", "Checkpoint", "as_source", "open_checkpoint", "raw_bytes", "unfit"]

SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "C64": torch.complex64,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
_DEEPEST = 4  # most nested mappings to search for the kind of a file without tensors at the top
_MOST_WRAPPERS = 8  # most nested mappings around the tensors


@dataclass(frozen=True)
class _Contents:
    """Contents of a file: its tensors by stored names, in file order, and a function that reads one."""

    file: HeldFile
    format: str
    mapped: bool
    metadata: Mapping[str, str]
    tensors: tuple[StoredTensorInfo, ...]
    read: Callable[[str], torch.Tensor]


class Checkpoint(BaseSource):
    """The tensors of one checkpoint file, read on request; made by `open_checkpoint`.

    `format` is `safetensors`, `torch zip` or `torch legacy`. If `mapped`, tensors share memory with the file, which
    stays mapped while one of them is in use, even after `close`.

        with open_checkpoint(Path("model.safetensors")) as checkpoint:
            for name in checkpoint.tensors:
                print(name, checkpoint.tensor(name).float().norm())
    """

    path: Path
    state: FileState
    tensors: Mapping[str, StoredTensorInfo]

    def __init__(self, path: Path, contents: _Contents, layout: Layout | None, kind: FileKind | None = None) -> None:
        self.path = path
        self.label, self.name = str(path), path.name
        self.layout = layout
        self.kind = kind
        self.format = contents.format
        self.mapped = contents.mapped
        self.metadata = MappingProxyType(dict(contents.metadata))
        self.state = contents.file.state
        self.size = contents.file.state.size
        self._contents: _Contents | None = contents
        tensors, self.passed_over = named_tensors(self.label, contents.tensors, layout, self._equal)
        self.tensors = MappingProxyType(tensors)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of a flattened tensor, of a mapped file without a copy."""
        return self.tensor(name).reshape(-1)[start:stop]

    def tensor(self, name: str) -> torch.Tensor:
        """Return the tensor with canonical `name`; it is not kept.

        Its shape is as stored, except for convolutions of one pixel that a tool stored as matrices. Raises KeyError for
        an unknown name, ValueError if the checkpoint was closed, and CheckpointError if its mapped file was written to
        or truncated since it was opened.

        Args:
            name: Canonical name.

        Returns:
            The tensor, contiguous, on the CPU, of the stored dtype.
        """
        return self._stored(self.tensors[name])

    def reader(self, buffer: torch.Tensor) -> FileReader:
        """Return a reader for one thread, which reads the file into `buffer` instead of mapping it."""
        self._opened()
        return FileReader(self.path, self.state, self.tensors, self.tensor, buffer)

    def check_intact(self) -> None:
        """Raise CheckpointError if tensors read so far may be wrong: the mapped file was written to or truncated.

        A file that was deleted, or that another one replaced, stays mapped unchanged.
        """
        contents = self._opened()
        if contents.mapped:
            contents.file.check_intact()

    def change_since_open(self) -> str | None:
        """Return how the file changed since it was opened ("was replaced by another file"), or None."""
        return self._opened().file.change_since_open()

    def close(self) -> None:
        """Release the file. Tensors already read stay valid."""
        self._contents = None

    def _opened(self) -> _Contents:
        # Read the field once: another thread may close the checkpoint between a test and the use.
        contents = self._contents
        if contents is None:
            raise ValueError(f"{self.path}: the checkpoint was closed")
        return contents

    def _stored(self, info: StoredTensorInfo) -> torch.Tensor:
        contents = self._opened()
        if contents.mapped:
            # A gap remains: a file that is truncated between this check and the use still ends the process.
            contents.file.check_intact()
        return contents.read(info.stored_name).reshape(info.shape)

    def _equal(self, first: StoredTensorInfo, second: StoredTensorInfo) -> bool:
        return (first.dtype, first.shape) == (second.dtype, second.shape) and torch.equal(
            raw_bytes(self._stored(first)), raw_bytes(self._stored(second))
        )


def open_checkpoint(path: Path | str, *, layout: Layout | None = None) -> TensorSource:
    """Open the checkpoint at `path` without reading tensor data. This is the only way from a path to a source.

    Args:
        path: Path of the file.
        layout: Layout that the file must have. Without one the layout is detected, and may be unknown.

    Returns:
        The open source.

    Raises:
        CheckpointError: The file is missing, empty, truncated or not a checkpoint; reading it would run code; it has
            another layout; it holds one tensor under two names with different values; or it changes meanwhile.
    """
    path = Path(path)
    try:
        contents = _contents(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    shapes = {info.stored_name: info.shape for info in contents.tensors}
    kind, found = kind_and_layout(shapes, contents.metadata, file_name=path.name)
    if layout is None:
        layout = found
    elif layout_of(kind, list(shapes), layout) is None:
        raise CheckpointError(f"{path}: {describe_misfit(kind, list(shapes), (layout,))}")
    return Checkpoint(path, contents, layout, kind)


@contextmanager
def as_source(given: Path | str | TensorSource, *, layout: Layout | None = None) -> Iterator[TensorSource]:
    """Yield a source: the given one, left open at the end, or that at a path, closed at the end.

    Args:
        given: A source or a path.
        layout: Layout that it must have.

    Yields:
        The open source.

    Raises:
        CheckpointError: The source has another layout, or the file cannot be opened (see `open_checkpoint`).
    """
    if isinstance(given, Path | str):
        with open_checkpoint(Path(given), layout=layout) as opened:
            yield opened
        return
    if layout is not None and (given.layout is None or given.layout.name != layout.name):
        raise CheckpointError(f"{given.label}: {describe_misfit(given.kind, list(given.tensors), (layout,))}")
    yield given


def unfit(source: TensorSource) -> str:
    """Return the predicate of a message about a source without a layout: its kind, and a remedy."""
    known = tuple(load_layout(name) for name in layout_names())
    return describe_misfit(source.kind, list(source.tensors), known)


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the data of `tensor` in memory, uint8 [bytes]; a view if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _contents(path: Path) -> _Contents:
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: {_is_a(kind_of_folder(path))}")
    try:
        file = HeldFile(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: {missing_file(path)}") from None
    if file.state.size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes)")
    contents = _recognized(file)
    # The file was opened several times by its path.
    if (change := file.change_since_open()) is not None:
        raise CheckpointError(f"{path}: {change} while it was being read; run again")
    return contents


def _recognized(held: HeldFile) -> _Contents:
    path = held.path
    with path.open("rb") as file:
        head = file.read(64)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= SAFETENSORS_HEADER_LIMIT:
        return _safetensors_contents(held, length)
    if head[8:10] in (b'{"', b"{}"):
        raise CheckpointError(
            f"{path}: broken safetensors header: received a length of {length:,} bytes; must be at most "
            f"{SAFETENSORS_HEADER_LIMIT:,}"
        )
    if head.startswith(b"PK"):
        return _torch_contents(held, "torch zip", read_torch_zip)
    if re.match(rb"\x80[\x02-\x05]", head):
        return _torch_contents(held, "torch legacy", read_torch_pickles)
    kind = kind_of_other_file(path, head)
    if kind is None:
        # The first bytes suffice to identify a format. More of a file that a recipe leads to may be private.
        raise CheckpointError(f"{path}: not a checkpoint: it begins with {ascii(head[:8])[1:]}")
    raise CheckpointError(f"{path}: {_is_a(kind)}")


def _is_a(kind: FileKind) -> str:
    return f"is {kind}{f'; {kind.advice}' if kind.advice else ''}"


def _safetensors_contents(held: HeldFile, length: int) -> _Contents:
    path = held.path
    header = read_header(path, length, held.state.size)
    unknown = next((entry for entry in header.tensors if entry.dtype not in SAFETENSORS_DTYPES), None)
    if unknown is not None:
        kind = kind_of({entry.name: entry.shape for entry in header.tensors}, metadata=header.metadata)
        what = f"is {kind}, and " if kind is not None else ""
        raise CheckpointError(f"{path}: {what}{unknown.name!r} has type {unknown.dtype}, which cannot be read")
    if not header.tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: broken safetensors header: {_first_line(error)}") from error
    tensors = tuple(
        StoredTensorInfo(entry.name, SAFETENSORS_DTYPES[entry.dtype], entry.shape, offset=entry.begin)
        for entry in header.tensors
    )
    return _Contents(held, "safetensors", True, header.metadata, tensors, opened.get_tensor)


def _torch_contents(held: HeldFile, kind: str, read: Callable[[Path, int], TorchFile]) -> _Contents:
    path = held.path
    file = read(path, held.state.size)
    state = _state_dict(file.content)
    if state is None:
        raise CheckpointError(
            f"{path}: not a checkpoint: it holds a {_type_name(file.content)}, not a mapping of tensors"
        )
    for name, value in state.items():
        if isinstance(value, Unreadable):
            raise CheckpointError(f"{path}: {name!r} is {value.kind}; it cannot be read")
    tensors = {
        name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, StoredTensor)
    }
    if not tensors:
        inner = kind_of(dict(_inner_shapes(state)))
        raise CheckpointError(f"{path}: {_is_a(inner) if inner is not None else 'holds no tensors'}")
    if len(tensors) > MOST_TENSORS:
        raise CheckpointError(f"{path}: {len(tensors):,} tensors; no checkpoint has more than {MOST_TENSORS:,}")
    for name, value in tensors.items():
        # A shape may repeat stored elements, so a few bytes can describe views of terabytes.
        if value.nbytes > max(value.storage.nbytes, 1 << 20):
            shape = list(value.shape)
            raise CheckpointError(f"{path}: {name!r} has shape {shape}, but only a few of its elements are stored")
    infos = tuple(
        StoredTensorInfo(name, value.dtype, value.shape, offset=file.offset(value)) for name, value in tensors.items()
    )
    return _Contents(held, kind, file.mapped, {}, infos, lambda name: file.tensor(tensors[name]))


def _state_dict(content: object) -> Mapping[object, object] | None:
    """Return the innermost mapping that training code wrapped around the tensors; None without a mapping."""
    if not isinstance(content, dict):
        return None
    state: dict[object, object] = content
    for _ in range(_MOST_WRAPPERS):
        inner = (
            nested
            for key in ("state_dict", "model", "module")
            if isinstance(nested := state.get(key), dict)
            and (key == "state_dict" or not any(map(_is_tensor, state.values())))
        )
        if (nested := next(inner, None)) is None:
            return state
        state = nested
    return None


def _inner_shapes(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the shapes of tensors in nested mappings and lists, with the keys that lead to them joined by dots."""
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    elif isinstance(value, StoredTensor):
        yield name, value.shape
    for key, part in inner if depth < _DEEPEST else ():
        yield from _inner_shapes(part, f"{name}.{key}" if name else str(key), depth + 1)


def _is_tensor(value: object) -> bool:
    return isinstance(value, StoredTensor | Unreadable)


def _type_name(content: object) -> str:
    return "Tensor" if _is_tensor(content) else type(content).__name__ if content is not LEFT_OUT else "Python object"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
