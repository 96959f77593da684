"""The protocol of what metrics are built from: open checkpoints, or statistics that were measured of them."""

from collections.abc import Mapping
from typing import Protocol, Self

from optimizer.families import Layout
from optimizer.recipes import Group, Part
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.options import Options

__all__ = ["Scorable"]


class Scorable(Protocol):
    """Sources and a target of one layout whose candidates can be scored; `Comparison` and `Measured` are such."""

    @property
    def layout(self) -> Layout:
        """Layout of all checkpoints."""
        ...

    @property
    def sources(self) -> Mapping[str, object]:
        """Sources by name, in the order of the columns of coefficients."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """Names of the sources in messages."""
        ...

    @property
    def base(self) -> object | None:
        """The source that differences are taken from; None if there is none."""
        ...

    @property
    def parts(self) -> tuple[Part, ...]:
        """Tensors that are merged."""
        ...

    @property
    def groups(self) -> tuple[Group, ...]:
        """Rows of coefficients."""
        ...

    def with_options(self, options: Options) -> Self:
        """Return the same checkpoints with these options of the metrics."""
        ...

    def opened(self, reader: str) -> Comparison:
        """Return the open checkpoints, for a metric that reads tensors.

        Args:
            reader: The metric, for messages.

        Returns:
            The open checkpoints.

        Raises:
            CheckpointError: Only statistics are present.
        """
        ...
