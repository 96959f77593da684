"""Tensors that are zero in one input and not in another: a sign of an incomplete download.

A zero tensor alone means nothing, since training may leave a bias zero. For every tensor that is read anyway, the
inputs in which it is zero are recorded; each file is reported once.
"""

import warnings
from collections.abc import Iterable, Iterator

from optimizer.checkpoints.source import TensorSource
from optimizer.checkpoints.zeros import is_zero, zeros_at_end
from optimizer.errors import BlockfitWarning

__all__ = ["ZeroTensors"]


class ZeroTensors:
    """Record of the inputs whose tensors are zero, by tensor name; several threads may add to it at once."""

    def __init__(self) -> None:
        self._zero: dict[str, dict[TensorSource, bool]] = {}
        self._warned: set[tuple[TensorSource, str]] = set()

    def note(self, name: str, source: TensorSource, *, zero: bool) -> None:
        """Record whether all elements of the tensor `name` of `source` are zero."""
        self._zero.setdefault(name, {})[source] = zero

    def compare_with(self, inputs: Iterable[TensorSource]) -> None:
        """Read from `inputs` only the tensors that are zero in every input read so far, and record them."""
        among = list(inputs)
        for name, known in self._zero.items():
            for source in among if all(known.values()) else ():
                if name in source.tensors and source not in known:
                    known[source] = is_zero(source.tensor(name))
                    if not known[source]:
                        break

    def warn(self) -> None:
        """Give one BlockfitWarning for each file with zero tensors that are not zero in another input."""
        found: dict[TensorSource, list[str]] = {}
        for name, source in self._alone():
            if (source, name) not in self._warned:
                self._warned.add((source, name))
                found.setdefault(source, []).append(name)
        for source, names in found.items():
            several = f"{len(names)} tensors hold" if len(names) > 1 else "a tensor holds"
            end = set(names) & set(zeros_at_end(source))
            cause = (
                "they reach to the end of the file, so its download was probably broken off"
                if end
                else "the file is probably damaged"
            )
            warnings.warn(
                f"{source.label}: {several} nothing but zeros where other inputs hold numbers, {names[0]!r} first; "
                f"{cause}: download it again",
                BlockfitWarning,
                stacklevel=2,
            )

    def _alone(self) -> Iterator[tuple[str, TensorSource]]:
        """Yield the tensors with the inputs in which they are zero while in others they are not."""
        for name, known in self._zero.items():
            if not all(known.values()):
                yield from ((name, source) for source, zero in known.items() if zero)
