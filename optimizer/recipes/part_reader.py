"""Reading parts of a source some elements at a time."""

import torch

from optimizer.checkpoints import ElementReader, TensorSource
from optimizer.recipes.tensors import Part

__all__ = ["PartReader"]


class PartReader:
    """Reads parts of one source, tensors or ranges of their channels, from element to element, for one thread.

    `buffer`, uint8 [bytes], is room for the elements of one `read`; readers that are used in turn may share it.
    """

    def __init__(self, source: TensorSource, buffer: torch.Tensor) -> None:
        self.source = source
        self._reader: ElementReader = source.reader(buffer)
        self._kept: tuple[Part, torch.Tensor] | None = None

    def read(self, part: Part, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened part, in the dtype stored, on the CPU.

        They are valid until a reader with this buffer reads again. Raises CheckpointError if the source cannot be read,
        or is no longer as it was when it was opened.
        """
        if part.channels is not None:
            return self._channels(part)[start:stop]
        return self._reader.read(part.name, start, stop)

    def read_into(self, part: Part, start: int, stop: int, out: torch.Tensor) -> None:
        """Write the same elements to `out`, [stop - start] of the dtype stored, on the CPU; the buffer is not used."""
        if part.channels is not None:
            out.copy_(self._channels(part)[start:stop])
        else:
            self._reader.read_into(part.name, start, stop, out)

    def close(self) -> None:
        """Release what the reader holds. The source stays open."""
        self._reader.close()

    def _channels(self, part: Part) -> torch.Tensor:
        # An input convolution: small, and in pieces where it is stored.
        if self._kept is None or self._kept[0] is not part:
            self._kept = part, part.read(self.source).reshape(-1)
        return self._kept[1]
