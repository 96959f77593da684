"""Options of metrics: one model for each metric that has options, and one record of a stage's options."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from optimizer.checkpoints import TensorSource
from optimizer.families import Layout
from optimizer.files import UserFile
from optimizer.recipes import FittedSearch

__all__ = ["MetricOptions", "Options"]


class MetricOptions(UserFile):
    """Options of one metric. Their fields are fields of a stage in study.yaml."""

    def __hash__(self) -> int:
        """Return the hash of the JSON text: options contain lists, and equal options have equal texts."""
        return hash(self.model_dump_json())

    def problems(self, given: Collection[str], layout: Layout, *, used: bool) -> list[str]:
        """Return one line, beginning with the field, for each field that cannot be used.

        Args:
            given: Names of the fields that the user wrote.
            layout: Layout of the recipe.
            used: Whether the stage has the metric.

        Returns:
            The lines; empty if all is well.
        """
        return []

    def loaded(self, folder: Path) -> Self:
        """Return the options with the contents of the files that they name.

        Raises InputError if a file cannot be used.

        Args:
            folder: The folder that relative paths start from.

        Returns:
            The options, or a copy.
        """
        return self

    def resolved(self, target: TensorSource, layout: Layout) -> Self:
        """Return the options with defaults that depend on the target filled in, or raise CheckpointError."""
        return self

    def bound(self, *, used: bool) -> dict[str, Any]:
        """Return all options that a score depends on, for JSON; trials with different values never mix."""
        return {}

    def noted(self) -> dict[str, Any]:
        """Return the entries {key: value} that a recipe records of a search by this metric, without defaults."""
        return {}

    def described(self, *, used: bool) -> list[str]:
        """Return the options as short phrases for a report."""
        return []

    @classmethod
    def of_noted(cls, search: FittedSearch) -> Self:
        """Return the options that a recipe records of a search by this metric."""
        return cls()


_Kind = TypeVar("_Kind", bound=MetricOptions)


@dataclass(frozen=True)
class Options:
    """Options of all metrics; metrics that are not among `given` have their defaults."""

    given: tuple[MetricOptions, ...] = ()

    def of(self, kind: type[_Kind]) -> _Kind:
        """Return the options of this kind, those given or the defaults."""
        return next((given for given in self.given if isinstance(given, kind)), None) or kind()

    def having(self, *others: MetricOptions) -> "Options":
        """Return a copy in which `others` replace the options of the same kinds."""
        kinds = {type(options) for options in others}
        return Options((*(options for options in self.given if type(options) not in kinds), *others))
