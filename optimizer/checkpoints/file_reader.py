"""Reads of tensors into a buffer by their place in a file: cheaper than the page faults of a mapped file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from optimizer.checkpoints.open_file import FileState
from optimizer.checkpoints.source import TensorInfo, WholeTensorReader
from optimizer.errors import CheckpointError

__all__ = ["FileReader", "StoredTensorInfo"]


@dataclass(frozen=True)
class StoredTensorInfo(TensorInfo):
    """Description of a tensor in a file.

    Attributes:
        offset: Start of the elements in the file, in bytes; None unless they lie there in one piece, row after row and
            little-endian.
    """

    offset: int | None = None


class FileReader:
    """`ElementReader` of the tensors in one file, with a file handle of its own."""

    def __init__(
        self,
        path: Path,
        state: FileState,
        tensors: Mapping[str, StoredTensorInfo],
        whole: Callable[[str], torch.Tensor],
        buffer: torch.Tensor,
    ) -> None:
        """Read tensors of the file at `path`.

        Args:
            path: Path of the file.
            state: State of the file when its header was read.
            tensors: Descriptions of the tensors by name.
            whole: Function that returns a tensor which does not lie in the file in one piece; the last one is kept.
            buffer: Memory for the elements, uint8 [bytes].
        """
        self._path, self._state = path, state
        self._tensors, self._scattered = tensors, WholeTensorReader(whole)
        self._buffer = buffer
        self._file: FileIO | None = None

    def close(self) -> None:
        """Close the file."""
        self._scattered.close()
        if self._file is not None:
            self._file.close()

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of a flattened tensor (see `ElementReader.read`)."""
        info = self._tensors[name]
        if info.offset is None:
            return self._scattered.read(name, start, stop)
        found = self._buffer[: (stop - start) * info.dtype.itemsize].view(info.dtype)
        self._fill(info.offset + start * info.dtype.itemsize, found)
        return found

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the elements `start` to `stop` to `out` (see `ElementReader.read_into`)."""
        info = self._tensors[name]
        if info.offset is None:
            self._scattered.read_into(name, start, stop, out)
        else:
            self._fill(info.offset + start * info.dtype.itemsize, out)

    def _fill(self, offset: int, out: torch.Tensor) -> None:
        try:
            self._read_bytes(offset, out.view(torch.uint8).numpy().data)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be read: {error.strerror or error}") from error

    def _read_bytes(self, offset: int, out: memoryview) -> None:
        # A separate file handle and `seek`, because some systems have no `preadv`.
        if self._file is None:
            self._file = FileIO(self._path)
            if FileState.of(self._file.fileno()) != self._state:
                raise self._changed()
        self._file.seek(offset)
        done = 0
        while done < len(out):
            count = self._file.readinto(out[done:])
            if not count:
                raise self._changed()
            done += count

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self._path}: was changed while it was being read; run again")
