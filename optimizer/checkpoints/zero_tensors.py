"""Tensors that hold nothing but zeros in one input and other numbers in another: a file that came over the net by half.

A zero tensor alone means nothing; training may have left a bias so. So it is noted of every tensor that is read anyway,
by whom it is zero and by whom not, and told for each file once.
"""

import warnings
from collections.abc import Iterable, Iterator

from optimizer.checkpoints.source import TensorSource
from optimizer.checkpoints.zeros import is_zero, zeros_at_end
from optimizer.errors import BlockfitWarning

__all__ = ["ZeroTensors"]


class ZeroTensors:
    """What is known of which inputs hold zeros, by tensor name; several threads may note at once."""

    def __init__(self) -> None:
        self._zero: dict[str, dict[TensorSource, bool]] = {}
        self._told: set[tuple[TensorSource, str]] = set()

    def note(self, name: str, source: TensorSource, *, zero: bool) -> None:
        """Note whether the tensor `name` of `source` holds nothing but zeros."""
        self._zero.setdefault(name, {})[source] = zero

    def compare_with(self, inputs: Iterable[TensorSource]) -> None:
        """Look into `inputs` for the tensors that are zero wherever they were read; it reads no others."""
        among = list(inputs)
        for name, known in self._zero.items():
            for source in among if all(known.values()) else ():
                if name in source.tensors and source not in known:
                    known[source] = is_zero(source.tensor(name))
                    if not known[source]:
                        break

    def warn(self) -> None:
        """Give a BlockfitWarning for each file with tensors of zeros that another holds numbers in, each once."""
        found: dict[TensorSource, list[str]] = {}
        for name, source in self._alone():
            if (source, name) not in self._told:
                self._told.add((source, name))
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
        """The tensors with the inputs that hold zeros where others do not."""
        for name, known in self._zero.items():
            if not all(known.values()):
                yield from ((name, source) for source, zero in known.items() if zero)
