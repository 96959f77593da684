"""Read parts of a source some elements at a time."""

import torch

from optimizer.checkpoints import ElementReader, TensorSource
from optimizer.recipes.tensors import Part

__all__ = ["PartReader"]


class PartReader:
    """A reader of ranges of elements from the parts of one source, for one thread.

    Args:
        source: The source.
        buffer: uint8 [bytes], room for the elements of one `read`. Readers that are used in turn may share it.
    """

    def __init__(self, source: TensorSource, buffer: torch.Tensor) -> None:
        self.source = source
        self._reader: ElementReader = source.reader(buffer)
        self._kept: tuple[Part, torch.Tensor] | None = None

    def read(self, part: Part, start: int, stop: int) -> torch.Tensor:
        """Return a range of elements of the flattened part.

        Raises CheckpointError if the source cannot be read, or has changed since it was opened.

        Args:
            part: The part.
            start: The first element.
            stop: The element after the last.

        Returns:
            [stop - start] in the dtype stored, on the CPU; valid until a reader with this buffer reads again.
        """
        if part.channels is not None:
            return self._channels(part)[start:stop]
        return self._reader.read(part.name, start, stop)

    def read_into(self, part: Part, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the elements of `read` to `out`, [stop - start] of the dtype stored, on the CPU, past the buffer."""
        if part.channels is not None:
            out.copy_(self._channels(part)[start:stop])
        else:
            self._reader.read_into(part.name, start, stop, out)

    def close(self) -> None:
        """Release the resources of the reader. The source stays open."""
        self._reader.close()

    def _channels(self, part: Part) -> torch.Tensor:
        # An input convolution is small, and its channels are not contiguous in the file.
        if self._kept is None or self._kept[0] is not part:
            self._kept = part, part.read(self.source).reshape(-1)
        return self._kept[1]
