"""The protocol that everything which gives tensors implements, and the defaults of a class that does.

Statistics, merging, metrics and inspection know of a checkpoint what `TensorSource` says, and nothing else. A new kind
of checkpoint (a file at an address, a folder of shards, a base with a LoRA added to it) is therefore one class. The
shortest one derives from `BaseSource` and gives a label, the tensors' names, shapes and dtypes, and `read`;
CONTRIBUTING.md has an example.
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
    """The description of one tensor, known without reading it.

    `name` is canonical: that of the layout. `stored_name` is the name where the tensor is stored, by default the same.
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
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return self.count * self.dtype.itemsize


class ElementReader(Protocol):
    """A way through the tensors of one source, some elements at a time, for one thread; made by `TensorSource.reader`.

    A reader may hold what costs too much for every call: a file handle, a connection, the tensor computed last. Large
    tensors are read from front to back, in pieces of 2^17 to 2^20 elements.
    """

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened tensor, [stop - start], on the CPU, as stored.

        They are valid until this reader, or another one with the same buffer, reads again. Raises KeyError for an
        unknown name, CheckpointError if the source cannot be read or changed since it was opened.
        """
        ...

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the same elements to `out`, [stop - start] of the dtype stored, contiguous, on the CPU.

        `out` may be pinned for a GPU. The buffer is not used.
        """
        ...

    def close(self) -> None:
        """Release what the reader holds. The source stays open."""
        ...


class TensorSource(Protocol):
    """Named tensors of a model that do not change: a checkpoint in a file, or anything else that is as good as one.

    Any number of threads may read at once. Sources are compared by identity and must be hashable. A source is a context
    manager, which closes it.
    """

    @property
    def label(self) -> str:
        """The name of the source in messages: a path, an address. Sources with equal labels hold the same tensors."""
        ...

    @property
    def name(self) -> str:
        """The short form of `label` in notes and metadata, such as a file's name without its folder."""
        ...

    @property
    def path(self) -> Path | None:
        """The file on this machine whose sha256 identifies the source; None if there is no such file."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by canonical name, in the order in which they are stored."""
        ...

    @property
    def layout(self) -> Layout | None:
        """The layout whose names the tensors have; None if no known layout fits."""
        ...

    @property
    def kind(self) -> FileKind | None:
        """The kind of model, by names and shapes; None if that is not known."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts stored beside the tensors, by field."""
        ...

    @property
    def format(self) -> str:
        """The way the tensors are stored, for `inspect`: "safetensors", "torch zip", "torch legacy", ..."""
        ...

    @property
    def size(self) -> int:
        """The bytes that the source takes where it is stored."""
        ...

    @property
    def passed_over(self) -> tuple[str, ...]:
        """The stored names of tensors that are stored once more, under the layout's own names, with other values.

        They are not in `tensors`: every tool reads the others.
        """
        ...

    @property
    def state(self) -> Hashable:
        """The state of the stored data when it was opened: equal as long as nothing changed, such as size and time."""
        ...

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened tensor, [stop - start], on the CPU, as stored.

        They may share memory with the source: do not write to them. Raises KeyError for an unknown name,
        CheckpointError if the source cannot be read, or no longer as it was when it was opened.
        """
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return the whole tensor: contiguous, of the shape and dtype in `tensors`, on the CPU. As `read` otherwise."""
        ...

    def reader(self, buffer: torch.Tensor) -> ElementReader:
        """Return a reader for one thread, which closes it.

        `buffer`, uint8 [bytes], is room for the elements of one `read`; readers that are used in turn may share it.
        """
        ...

    def fate(self) -> str | None:
        """Return how the source changed since it was opened ("was deleted or moved"); None if it did not."""
        ...

    def check_intact(self) -> None:
        """Raise CheckpointError if tensors given so far may have other values by now.

        So it is with memory that is shared with a file which was written to since. A file that was deleted, or that
        another one replaced, is still read as it was.
        """
        ...

    def close(self) -> None:
        """Release the source. Tensors given so far stay valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class BaseSource(ABC):
    """The defaults of a `TensorSource`; a class gives `label`, `tensors` and `read`, and more where it knows better.

    By default there is no file, nothing ever changes, the kind and the layout are told by names and shapes, and readers
    call `read`.
    """

    label: str
    tensors: Mapping[str, TensorInfo]
    path: Path | None = None
    metadata: Mapping[str, str] = _NO_METADATA
    format: str = "computed"
    passed_over: tuple[str, ...] = ()

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """As in `TensorSource`."""

    @cached_property
    def name(self) -> str:
        """By default the whole label."""
        return self.label

    @cached_property
    def _recognized(self) -> tuple[FileKind | None, Layout | None]:
        return kind_and_layout({info.stored_name: info.shape for info in self.tensors.values()}, self.metadata)

    @cached_property
    def kind(self) -> FileKind | None:
        """By default what the stored names and the shapes tell."""
        return self._recognized[0]

    @cached_property
    def layout(self) -> Layout | None:
        """By default the known layout that the stored names fit."""
        return self._recognized[1]

    @cached_property
    def size(self) -> int:
        """By default the bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def state(self) -> Hashable:
        """By default the label: nothing changes."""
        return self.label

    def tensor(self, name: str) -> torch.Tensor:
        """By default all elements, read at once."""
        info = self.tensors[name]
        return self.read(name, 0, info.count).reshape(info.shape)

    def reader(self, buffer: torch.Tensor) -> ElementReader:
        """By default a reader that calls `read` each time, and needs no buffer."""
        return _PlainReader(self)

    def fate(self) -> str | None:
        """By default nothing changes."""
        return None

    def check_intact(self) -> None:
        """By default nothing changes."""
        return

    def close(self) -> None:
        """By default there is nothing to release."""
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
    """Raise CheckpointError, a line for each of `sources` that changed since it was opened.

    For results of one pass over all of them, which are worthless if one of them changed in between.
    """
    found = {source.label: source.fate() for source in sources}
    if problems := [f"{label}: {fate} while it was being read; run again" for label, fate in found.items() if fate]:
        raise CheckpointError(problems)


class WholeTensorReader:
    """The `ElementReader` of a source that computes or unpacks whole tensors: it keeps the last one.

    `whole` gives a tensor by name, such as `TensorSource.tensor`.
    """

    def __init__(self, whole: Callable[[str], torch.Tensor]) -> None:
        self._whole = whole
        self._kept: tuple[str, torch.Tensor] | None = None

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop`, as `ElementReader.read` says."""
        if self._kept is None or self._kept[0] != name:
            self._kept = None  # one tensor at a time
            self._kept = name, self._whole(name).reshape(-1)
        return self._kept[1][start:stop]

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the elements `start` to `stop` to `out`, as `ElementReader.read_into` says."""
        out.copy_(self.read(name, start, stop))

    def close(self) -> None:
        """Release the last tensor."""
        self._kept = None


class _PlainReader:
    """The reader of a source that has no faster way than `read`."""

    def __init__(self, source: BaseSource) -> None:
        self._source = source

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._source.read(name, start, stop)

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        out.copy_(self._source.read(name, start, stop))

    def close(self) -> None:
        pass
