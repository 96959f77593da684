"""The protocol of all sources of tensors, and a base class with its defaults.

Statistics, merging, metrics and inspection depend only on `TensorSource`. A new kind of checkpoint (a file at an
address, a folder of shards, a base with a LoRA added to it) is therefore one class. The shortest class derives from
`BaseSource`, and defines a label, the tensors' names, shapes and dtypes, and `read`. CONTRIBUTING.md has an example.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import torch

from optimizer.checkpoints.kinds import FileKind
from optimizer.checkpoints.recognition import kind_and_layout
from optimizer.errors import CheckpointError
from optimizer.families import Layout

__all__ = ["BaseSource", "ElementReader", "TensorInfo", "TensorSource", "WholeTensorReader", "check_unchanged"]

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class TensorInfo:
    """Description of one tensor, known without reading it.

    `name` is canonical: the layout's name. `stored_name` is the name that the tensor is stored under, by default the
    same.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stored_name: str = ""

    def __post_init__(self) -> None:
        if not self.stored_name:
            object.__setattr__(self, "stored_name", self.name)

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return self.count * self.dtype.itemsize


class ElementReader(Protocol):
    """Reader of one source's tensors for one thread, some elements at a time; made by `TensorSource.reader`.

    A reader may keep objects that are too expensive for every call: a file handle, a connection, the tensor computed
    last. Large tensors are read from front to back, in pieces of 2^17 to 2^20 elements.
    """

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened tensor.

        They are valid until the next read by this reader, or by another one with the same buffer. Raises KeyError for
        an unknown name, and CheckpointError if the source cannot be read or changed since it was opened.

        Args:
            name: Canonical name.
            start: First element.
            stop: End of the elements.

        Returns:
            Elements [stop - start], on the CPU, of the stored dtype.
        """
        ...

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the elements `start` to `stop` of the flattened tensor to `out`, without use of the buffer.

        Args:
            name: Canonical name.
            start: First element.
            stop: End of the elements.
            out: Memory [stop - start] of the stored dtype, contiguous, on the CPU. It may be pinned for a GPU.
        """
        ...

    def close(self) -> None:
        """Release the resources of the reader. The source stays open."""
        ...


class TensorSource(Protocol):
    """Named, immutable tensors of a model: a checkpoint in a file, or an equivalent.

    Any number of threads may read at once. Sources are compared by identity and must be hashable. A source is a context
    manager, which closes it.
    """

    @property
    def label(self) -> str:
        """Name of the source in messages: a path, an address. Sources with equal labels hold the same tensors."""
        ...

    @property
    def name(self) -> str:
        """Short form of `label` in recipes and metadata, for example a file's name without its folder."""
        ...

    @property
    def path(self) -> Path | None:
        """File on this machine whose SHA-256 identifies the source; None without such a file."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors by canonical name, in stored order."""
        ...

    @property
    def layout(self) -> Layout | None:
        """Layout of the tensors' names; None if no known layout fits."""
        ...

    @property
    def kind(self) -> FileKind | None:
        """Kind of model by names and shapes; None if unknown."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts stored beside the tensors, by field."""
        ...

    @property
    def format(self) -> str:
        """Storage format for `inspect`: "safetensors", "torch zip", "torch legacy", ..."""
        ...

    @property
    def size(self) -> int:
        """Size of the source in storage, in bytes."""
        ...

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Stored names of tensors that are stored again, with other values, under the layout's own names.

        They are not in `tensors`: every tool reads the other spelling.
        """
        ...

    @property
    def state(self) -> Hashable:
        """State of the stored data at opening, for example size and time; it is equal as long as nothing changed."""
        ...

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened tensor.

        They may share memory with the source: do not write to them. Raises KeyError for an unknown name, and
        CheckpointError if the source cannot be read or changed since it was opened.

        Args:
            name: Canonical name.
            start: First element.
            stop: End of the elements.

        Returns:
            Elements [stop - start], on the CPU, of the stored dtype.
        """
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return the whole tensor: contiguous, on the CPU, of the shape and dtype in `tensors` (see `read`)."""
        ...

    def reader(self, buffer: torch.Tensor) -> ElementReader:
        """Return a reader for one thread, which closes it.

        Args:
            buffer: Memory for the elements of one `read`, uint8 [bytes]. Readers that are used in turn may share it.

        Returns:
            The reader.
        """
        ...

    def change_since_open(self) -> str | None:
        """Return how the source changed since it was opened ("was deleted or moved"), or None."""
        ...

    def check_intact(self) -> None:
        """Raise CheckpointError if tensors returned earlier may have other values now.

        This happens to memory that is shared with a file which was written to. A file that was deleted, or that another
        one replaced, is still read unchanged.
        """
        ...

    def close(self) -> None:
        """Release the source. Tensors returned earlier stay valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class BaseSource(ABC):
    """Defaults of a `TensorSource`; a subclass defines `label`, `tensors` and `read`, and overrides others as needed.

    By default the source has no file and never changes, its kind and layout are recognized by names and shapes, and
    readers call `read`.
    """

    label: str
    tensors: Mapping[str, TensorInfo]
    path: Path | None = None
    metadata: Mapping[str, str] = _NO_METADATA
    format: str = "computed"
    passed_over: tuple[str, ...] = ()

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened tensor (see `TensorSource.read`)."""

    @cached_property
    def name(self) -> str:
        """Short form of the label; by default the whole label."""
        return self.label

    @cached_property
    def _recognized(self) -> tuple[FileKind | None, Layout | None]:
        return kind_and_layout({info.stored_name: info.shape for info in self.tensors.values()}, self.metadata)

    @cached_property
    def kind(self) -> FileKind | None:
        """Kind of model; by default recognized by the stored names and the shapes."""
        return self._recognized[0]

    @cached_property
    def layout(self) -> Layout | None:
        """Layout of the names; by default the known layout that the stored names fit."""
        return self._recognized[1]

    @cached_property
    def size(self) -> int:
        """Size in bytes; by default of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def state(self) -> Hashable:
        """State of the data; by default the label, for a source that never changes."""
        return self.label

    def tensor(self, name: str) -> torch.Tensor:
        """Return the whole tensor; by default all elements in one read."""
        info = self.tensors[name]
        return self.read(name, 0, info.count).reshape(info.shape)

    def reader(self, buffer: torch.Tensor) -> ElementReader:
        """Return a reader for one thread; by default it calls `read` each time, and needs no buffer."""
        return _PlainReader(self)

    def change_since_open(self) -> str | None:
        """Return None: by default a source never changes."""
        return None

    def check_intact(self) -> None:
        """Do nothing: by default a source never changes."""
        return

    def close(self) -> None:
        """Do nothing: by default a source holds no resources."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        layout = self.layout.name if self.layout else "unknown layout"
        return f"<{type(self).__name__} {self.label}: {layout}, {len(self.tensors)} tensors, {self.format}>"


def check_unchanged(sources: Iterable[TensorSource]) -> None:
    """Raise CheckpointError, with a line for each source that changed since it was opened.

    Results of one pass over several sources are invalid if one of them changed in between.

    Args:
        sources: Sources that were read.

    Raises:
        CheckpointError: One of them changed.
    """
    changes = {source.label: source.change_since_open() for source in sources}
    if problems := [
        f"{label}: {change} while it was being read; run again" for label, change in changes.items() if change
    ]:
        raise CheckpointError(problems)


class WholeTensorReader:
    """`ElementReader` of a source that computes or unpacks whole tensors; it keeps the last one.

    `whole` returns a tensor by name, as `TensorSource.tensor` does.
    """

    def __init__(self, whole: Callable[[str], torch.Tensor]) -> None:
        self._whole = whole
        self._kept: tuple[str, torch.Tensor] | None = None

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened tensor (see `ElementReader.read`)."""
        if self._kept is None or self._kept[0] != name:
            self._kept = None  # one tensor at a time
            self._kept = name, self._whole(name).reshape(-1)
        return self._kept[1][start:stop]

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the elements `start` to `stop` to `out` (see `ElementReader.read_into`)."""
        out.copy_(self.read(name, start, stop))

    def close(self) -> None:
        """Release the last tensor."""
        self._kept = None


class _PlainReader:
    """Reader of a source without a faster way than `read`."""

    def __init__(self, source: BaseSource) -> None:
        self._source = source

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._source.read(name, start, stop)

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        out.copy_(self._source.read(name, start, stop))

    def close(self) -> None:
        pass
