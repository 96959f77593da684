"""Options of metrics: a model for each metric that has some, and all of a stage's together as one value."""

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
    """The options of one metric. Its fields are fields of a stage in study.yaml."""

    def __hash__(self) -> int:
        """Options hold lists; equal ones have the same text."""
        return hash(self.model_dump_json())

    def problems(self, given: Collection[str], layout: Layout, *, used: bool) -> list[str]:
        """Return a line for each field that cannot be used, with the field before it.

        `given` are the fields that the user wrote, `layout` is that of the recipe; `used` says whether the stage has
        the metric.
        """
        return []

    def loaded(self, folder: Path) -> Self:
        """Return the options with what is in the files that they name, seen from `folder`.

        Raises InputError for files that cannot be used.
        """
        return self

    def resolved(self, target: TensorSource, layout: Layout) -> Self:
        """Return the options with defaults that depend on the target filled in. Raises CheckpointError."""
        return self

    def bound(self, *, used: bool) -> dict[str, Any]:
        """Return what a trial's score depends on, as JSON takes it; trials with other values never mix."""
        return {}

    def noted(self) -> dict[str, Any]:
        """Return what a recipe notes of a search by this metric, {key: value}, defaults left out."""
        return {}

    def described(self, *, used: bool) -> list[str]:
        """Return in some words each what the options are, for a report."""
        return []

    @classmethod
    def of_noted(cls, search: FittedSearch) -> Self:
        """Return the options that a recipe notes of a search by this metric."""
        return cls()


_Kind = TypeVar("_Kind", bound=MetricOptions)


@dataclass(frozen=True)
class Options:
    """The options of all metrics; those that are not `given` are the defaults."""

    given: tuple[MetricOptions, ...] = ()

    def of(self, kind: type[_Kind]) -> _Kind:
        """Return the options of the metric whose options are of this kind."""
        return next((one for one in self.given if isinstance(one, kind)), None) or kind()

    def having(self, *others: MetricOptions) -> "Options":
        """Return these options with others in the place of those of the same kind."""
        kinds = {type(one) for one in others}
        return Options((*(one for one in self.given if type(one) not in kinds), *others))
