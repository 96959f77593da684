"""Reading a part of a checkpoint into a buffer, some elements at a time: cheaper than a mapped file's page faults."""

from io import FileIO
from typing import Protocol

import torch

from optimizer.checkpoints.open_file import FileState
from optimizer.checkpoints.reading import Checkpoint
from optimizer.errors import CheckpointError

__all__ = ["ElementReader", "StoredPart"]


class StoredPart(Protocol):
    """A tensor of a checkpoint, or a range of its channels."""

    @property
    def name(self) -> str:
        """The tensor's name."""
        ...

    @property
    def channels(self) -> tuple[int, int] | None:
        """The range of channels, from the first to before the last; None for all of the tensor."""
        ...

    def read(self, checkpoint: Checkpoint) -> torch.Tensor:
        """This part of `checkpoint` as stored."""
        ...


class ElementReader:
    """Reads one checkpoint's tensors from element to element, for one thread.

    `buffer`, uint8 [bytes], holds what was read last; readers that are not in use at the same time may share it.
    """

    def __init__(self, checkpoint: Checkpoint, buffer: torch.Tensor) -> None:
        self.checkpoint = checkpoint
        self._buffer = buffer
        self._file: FileIO | None = None
        self._part: StoredPart | None = None
        self._elements = buffer[:0]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def read(self, part: StoredPart, start: int, stop: int) -> torch.Tensor:
        """The elements `start` to `stop` of `part`, flattened, in the dtype stored; valid until the next are read.

        Raises CheckpointError if the file cannot be read, or is not the one that was opened.
        """
        info = self.checkpoint.tensors[part.name]
        if info.offset is None or part.channels is not None:
            if self._part is not part:
                self._part, self._elements = part, part.read(self.checkpoint).reshape(-1)
            return self._elements[start:stop]
        found = self._buffer[: (stop - start) * info.dtype.itemsize].view(info.dtype)
        self._fill(info.offset + start * info.dtype.itemsize, found)
        return found

    def read_into(self, part: StoredPart, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the same elements to `out`, [stop - start] of the dtype stored, on the host; the buffer is not used."""
        info = self.checkpoint.tensors[part.name]
        if info.offset is None or part.channels is not None:
            out.copy_(self.read(part, start, stop))
        else:
            self._fill(info.offset + start * info.dtype.itemsize, out)

    def _fill(self, offset: int, out: torch.Tensor) -> None:
        try:
            self._read_bytes(offset, out.view(torch.uint8).numpy().data)
        except OSError as error:
            raise CheckpointError(f"{self.checkpoint.path}: cannot be read: {error.strerror or error}") from error

    def _read_bytes(self, offset: int, out: memoryview) -> None:
        # A file handle of its own and `seek`, because `preadv` is not there on every system.
        if self._file is None:
            self._file = FileIO(self.checkpoint.path)
            if FileState.of(self._file.fileno()) != self.checkpoint.state:
                raise self._changed()
        self._file.seek(offset)
        done = 0
        while done < len(out):
            count = self._file.readinto(out[done:])
            if not count:
                raise self._changed()
            done += count

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self.checkpoint.path}: was changed while it was being read; run again")
