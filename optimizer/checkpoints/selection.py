"""Some tensors of a source under other names, as a source."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch

from optimizer.checkpoints.source import BaseSource, ElementReader, TensorSource
from optimizer.families import Layout

__all__ = ["SelectedTensors"]


class SelectedTensors(BaseSource):
    """The tensors of `source` that `names` maps to, {new name: name in `source`}, and no others.

    The new names are those of `layout` (default: the source's), and shapes are as it has them. With `owning`, closing
    this closes `source`. Raises KeyError if `source` lacks a name.
    """

    def __init__(
        self, source: TensorSource, names: Mapping[str, str], layout: Layout | None = None, *, owning: bool = False
    ) -> None:
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
        """Return the elements `start` to `stop`, as `TensorSource.read` says."""
        return self._source.read(self._names[name], start, stop)

    def tensor(self, name: str) -> torch.Tensor:
        """Return the whole tensor, in the shape that the layout has for it."""
        return self._source.tensor(self._names[name]).reshape(self.tensors[name].shape)

    def reader(self, buffer: torch.Tensor) -> ElementReader:
        """Return a reader for one thread: the source's own, by the new names."""
        return _RenamedReader(self._source.reader(buffer), self._names)

    def fate(self) -> str | None:
        """Return how the source changed since it was opened; None if it did not."""
        return self._source.fate()

    def check_intact(self) -> None:
        """Raise CheckpointError if tensors given so far may have other values by now."""
        self._source.check_intact()

    def close(self) -> None:
        """Close the source, if this owns it."""
        if self._owning:
            self._source.close()

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.layout is None else self.layout.shape_of(name, shape)


class _RenamedReader:
    """Another reader, asked by other names."""

    def __init__(self, reader: ElementReader, names: Mapping[str, str]) -> None:
        self._reader, self._names = reader, names

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._reader.read(self._names[name], start, stop)

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        self._reader.read_into(self._names[name], start, stop, out)

    def close(self) -> None:
        self._reader.close()
