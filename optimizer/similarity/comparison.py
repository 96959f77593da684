"""The checkpoints of a similarity, opened together: the sources that candidates combine, and the target."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from optimizer.checkpoints import TensorSource, ZeroTensors, as_source, is_zero
from optimizer.errors import CheckpointError
from optimizer.events import LOGGED, Events
from optimizer.families import Layout
from optimizer.recipes import (
    Contributing,
    Contributors,
    Group,
    Part,
    Recipe,
    check_channels,
    finite,
    plan_parts,
    warn_of_sources,
)
from optimizer.similarity.device import chosen_device
from optimizer.similarity.options import Options

__all__ = ["Comparison", "open_comparison", "open_recipe_comparison"]

_MOST_PROBLEMS = 8  # most tensors of other shapes in an error


@dataclass(frozen=True)
class Comparison:
    """Sources and a target of one layout, with the merged tensors of the sources put into groups.

    Attributes:
        layout: Layout of all checkpoints.
        sources: Open sources by name.
        target: The open target.
        base: The checkpoint that differences are taken from. Without one, the first source is the numerical reference,
            and `delta` cannot score.
        parts: Tensors that are merged.
        groups: Rows of coefficients.
        device: Device that metrics compute on.
        options: Options of the metrics.
        events: The receiver of progress.
        zeros: Record of the tensors read that contain zeros only.
    """

    layout: Layout
    sources: Mapping[str, TensorSource]
    target: TensorSource
    base: TensorSource | None
    parts: tuple[Part, ...]
    groups: tuple[Group, ...]
    device: torch.device
    options: Options = field(default_factory=Options)
    events: Events = LOGGED
    zeros: ZeroTensors = field(default_factory=ZeroTensors, compare=False, repr=False)

    @property
    def labels(self) -> dict[str, str]:
        """Names of the sources in messages."""
        return {name: source.label for name, source in self.sources.items()}

    @property
    def reference(self) -> TensorSource:
        """Checkpoint that differences are taken from for accuracy: the base, or the first source."""
        return self.base if self.base is not None else next(iter(self.sources.values()))

    def number_bytes(self, part: Part) -> int:
        """Return how many bytes one number of a part takes in all checkpoints together; a file counts once."""
        checkpoints = (*self.sources.values(), self.target, self.reference)
        held = {each.path or id(each): each.tensors[part.name] for each in checkpoints if part.held_by(each)}
        return sum(info.dtype.itemsize for info in held.values())

    def with_options(self, options: Options) -> "Comparison":
        """Return the same checkpoints with these options of the metrics."""
        return replace(self, options=options)

    def opened(self, reader: str) -> "Comparison":
        """Return the open checkpoints, for a metric that reads tensors: these."""
        return self

    def check_intact(self) -> None:
        """Raise CheckpointError if a file was written to or truncated since it was opened.

        Metrics that compute from mapped tensors call this. Mapped tensors stay valid if another file replaces theirs,
        even in the middle of a long search.
        """
        for checkpoint in (*self.sources.values(), self.target):
            checkpoint.check_intact()

    def scored_parts(self, blocks: Iterable[str]) -> tuple[Part, ...]:
        """Return the parts of these blocks that a similarity counts and the target holds.

        Args:
            blocks: Names of the blocks.

        Returns:
            The parts, in the order of `parts`.

        Raises:
            CheckpointError: The target holds no tensor of a block, or target or base hold one of its tensors in another
                shape. The message names the block.
        """
        requested = tuple(blocks)
        parts = [part for part in self.parts if part.scored and part.block in requested]
        held = tuple(part for part in parts if part.held_by(self.target))
        problems = [problem for part in parts if (problem := self.misfit(part)) is not None]
        if len(problems) > _MOST_PROBLEMS:
            problems[_MOST_PROBLEMS:] = [f"{self.target.label}: ... and {len(problems) - _MOST_PROBLEMS} more tensors"]
        if missing := [block for block in requested if not any(part.block == block for part in held)]:
            blocks = self.layout.describe_blocks(missing)
            problems.append(
                f"{self.target.label}: contains no tensor of {blocks} that a source contains too, so {blocks} cannot "
                "be scored"
            )
        if problems:
            raise CheckpointError(problems)
        return held

    def misfit(self, part: Part) -> str | None:
        """Return why a part cannot be compared, or None.

        Args:
            part: A part of the sources.

        Returns:
            A line of text if target or base hold the part in another shape than the sources.
        """
        for checkpoint in (self.target, *(() if self.base is None else (self.base,))):
            info = checkpoint.tensors.get(part.name)
            if info is not None and part.channels is None and not part.held_by(checkpoint):
                among = list(self.sources.values())
                return (
                    f"{checkpoint.label}: tensor {part.name!r} has shape {list(info.shape)}, but {list(part.shape)} in "
                    f"{among[part.holders[0]].label}, so {part.block} cannot be scored; choose blocks without it"
                )
        return None

    def read(self, part: Part, checkpoint: TensorSource) -> torch.Tensor:
        """Return a part in float32, or raise CheckpointError, naming file and tensor, if it contains NaN or Inf."""
        values = finite(part, checkpoint, "comparison")
        self.zeros.note(part.name, checkpoint, zero=is_zero(values))
        return values

    def group_of(self, part: Part) -> int:
        """Return the row of `part` in coefficients."""
        return self.groups.index(Group.of_part(part))


@contextmanager
def open_comparison(
    layout: Layout,
    sources: Mapping[str, Path | str | TensorSource],
    target: Path | str | TensorSource,
    *,
    base: Path | str | TensorSource | None = None,
    mapping: str | None = None,
    contributing: Contributing | None = None,
    device: torch.device | str | None = None,
    options: Options | None = None,
    events: Events = LOGGED,
) -> Iterator[Comparison]:
    """Open the checkpoints, plan which tensors are compared, and close them when the context ends.

    An open source may stand for its file, and stays open.

    Raises CheckpointError if the files do not fit each other.

    Args:
        layout: Layout of all checkpoints.
        sources: Sources by name.
        target: The target.
        base: The checkpoint that differences are taken from: one of the sources, or another file.
        mapping: Name of the mapping from tensors to blocks. Default: the layout's first.
        contributing: The sources that contribute to a tensor (default: all). Only their shapes must be equal.
        device: Device of the metrics, or its name: auto, cpu (default) or cuda.
        options: Options of the metrics.
        events: The receiver of progress.

    Yields:
        The open comparison.
    """
    sources = {name: _normal(given) for name, given in sources.items()}
    with ExitStack() as stack:
        opened = {name: stack.enter_context(as_source(given, layout=layout)) for name, given in sources.items()}
        target_opened = stack.enter_context(as_source(target, layout=layout))
        base_opened = None
        if base is not None:
            base_opened = next((opened[name] for name, given in sources.items() if given == _normal(base)), None)
            if base_opened is None:
                base_opened = stack.enter_context(as_source(base, layout=layout))
        parts = plan_parts(layout, mapping or layout.default_mapping, list(opened.values()), contributing)
        yield Comparison(
            layout=layout,
            sources=opened,
            target=target_opened,
            base=base_opened,
            parts=parts,
            groups=Group.of(parts),
            device=chosen_device(device),
            options=options or Options(),
            events=events,
        )


def _normal(given: Path | str | TensorSource) -> Path | TensorSource:
    return Path(given) if isinstance(given, str) else given


@contextmanager
def open_recipe_comparison(
    recipe: Recipe,
    sources: Mapping[str, Path | str | TensorSource],
    target: Path | str | TensorSource,
    *,
    base: str | None = None,
    device: torch.device | str | None = None,
    events: Events = LOGGED,
) -> Iterator[Comparison]:
    """Open a recipe's sources and a target, to score all steps of the recipe.

    Gives a BlockfitWarning for oddities of the files.

    Raises CheckpointError if the files do not fit each other. Raises RecipeError if a step cannot use these files.

    Args:
        recipe: The recipe.
        sources: Sources by the names of the recipe.
        target: The target.
        base: Name of the source that differences are taken from.
        device: Device of the metrics, or its name: auto, cpu (default) or cuda.
        events: The receiver of progress.

    Yields:
        The open comparison.
    """
    contributing = Contributors(recipe, tuple(sources), [step.name for step in recipe.steps])
    with open_comparison(
        recipe.layout,
        sources,
        target,
        base=None if base is None else sources[base],
        mapping=recipe.mapping,
        contributing=contributing,
        device=device,
        events=events,
    ) as comparison:
        check_channels(recipe, (step.name for step in recipe.steps), comparison.parts, comparison.labels)
        warn_of_sources(recipe, comparison.sources, comparison.target, contributing)
        yield comparison
