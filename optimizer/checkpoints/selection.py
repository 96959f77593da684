"""A source of some tensors of another source, under other names."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch

from optimizer.checkpoints.source import BaseSource, ElementReader, TensorSource
from optimizer.families import Layout

__all__ = ["SelectedTensors"]


class SelectedTensors(BaseSource):
    """The tensors of a source that are listed by new names, and no others."""

    def __init__(
        self, source: TensorSource, names: Mapping[str, str], layout: Layout | None = None, *, owning: bool = False
    ) -> None:
        """Select tensors of `source`.

        Raises KeyError if `source` lacks a name.

        Args:
            source: The source.
            names: Names of the tensors, {new name: name in `source`}.
            layout: Layout of the new names, which determines shapes. Default: the source's.
            owning: Whether closing this object closes `source`.
        """
        self._source, self._names, self._owning = source, dict(names), owning
        self.label, self.name, self.path = source.label, source.name, source.path
        self.layout = layout or source.layout
        self.kind, self.metadata, self.format, self.size = source.kind, source.metadata, source.format, source.size
        self.state: Hashable = source.state
        infos = {new: source.tensors[name] for new, name in self._names.items()}
        self.tensors = MappingProxyType(
            {new: replace(info, name=new, shape=self._shape(new, info.shape)) for new, info in infos.items()}
        )

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of a flattened tensor (see `TensorSource.read`)."""
        return self._source.read(self._names[name], start, stop)

    def tensor(self, name: str) -> torch.Tensor:
        """Return the whole tensor in the layout's shape."""
        return self._source.tensor(self._names[name]).reshape(self.tensors[name].shape)

    def reader(self, buffer: torch.Tensor) -> ElementReader:
        """Return a reader for one thread: the source's reader under the new names."""
        return _RenamedReader(self._source.reader(buffer), self._names)

    def change_since_open(self) -> str | None:
        """Return how the source changed since it was opened, or None."""
        return self._source.change_since_open()

    def check_intact(self) -> None:
        """Raise CheckpointError if tensors returned earlier may have other values now."""
        self._source.check_intact()

    def close(self) -> None:
        """Close the source if this object owns it."""
        if self._owning:
            self._source.close()

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.layout is None else self.layout.shape_of(name, shape)


class _RenamedReader:
    """Reader that translates names for another reader."""

    def __init__(self, reader: ElementReader, names: Mapping[str, str]) -> None:
        self._reader, self._names = reader, names

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._reader.read(self._names[name], start, stop)

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        self._reader.read_into(self._names[name], start, stop, out)

    def close(self) -> None:
        self._reader.close()
