"""What a similarity compares: the sources that candidates are combined from, and the target, opened together."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from optimizer.checkpoints import TensorSource, ZeroTensors, as_source, is_zero
from optimizer.errors import CheckpointError
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

Progress = Callable[[str, int, int], None]

_MOST_PROBLEMS = 8  # tensors of other shapes that are named


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Comparison:
    """Sources and a target of one layout, with the tensors of the sources that merge, put into groups.

    `base` is the checkpoint that differences are taken from; None if the caller has none, and then the first source
    serves as the numerical reference, but nothing may be scored by `delta`. `options` are the metrics'. `device` is
    where the metrics compute. `zeros` knows which of what was read holds nothing but zeros.
    `progress(what, done, total)` is called now and then.
    """

    layout: Layout
    sources: Mapping[str, TensorSource]
    target: TensorSource
    base: TensorSource | None
    parts: tuple[Part, ...]
    groups: tuple[Group, ...]
    device: torch.device
    options: Options = field(default_factory=Options)
    progress: Progress = _silent
    zeros: ZeroTensors = field(default_factory=ZeroTensors, compare=False, repr=False)

    @property
    def labels(self) -> dict[str, str]:
        """The names of the sources in messages."""
        return {name: source.label for name, source in self.sources.items()}

    @property
    def reference(self) -> TensorSource:
        """The checkpoint that differences are taken from for the sake of accuracy."""
        return self.base if self.base is not None else next(iter(self.sources.values()))

    def check_intact(self) -> None:
        """Raise CheckpointError if a file was written to or cut short since it was opened.

        For metrics that are computed from mapped tensors: these stay as they were when another file takes the place of
        theirs, even in the middle of a long search.
        """
        for checkpoint in (*self.sources.values(), self.target):
            checkpoint.check_intact()

    def scored_parts(self, blocks: Iterable[str]) -> tuple[Part, ...]:
        """The parts of these blocks that count in a similarity and that the target holds too.

        Raises CheckpointError, naming the block, if the target holds nothing of it, or the target or the base a tensor
        of it in another shape.
        """
        wanted = tuple(blocks)
        parts = [part for part in self.parts if part.scored and part.block in wanted]
        held = tuple(part for part in parts if part.held_by(self.target))
        problems = [problem for part in parts if (problem := self.misfit(part)) is not None]
        if len(problems) > _MOST_PROBLEMS:
            problems[_MOST_PROBLEMS:] = [f"{self.target.label}: ... and {len(problems) - _MOST_PROBLEMS} more tensors"]
        if missing := [block for block in wanted if not any(part.block == block for part in held)]:
            blocks = self.layout.describe_blocks(missing)
            problems.append(
                f"{self.target.label}: holds no tensor of {blocks} that a source holds too, so {blocks} cannot be "
                "scored"
            )
        if problems:
            raise CheckpointError(problems)
        return held

    def misfit(self, part: Part) -> str | None:
        """Why a part cannot be compared: the target or the base holds it in another shape than the sources."""
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
        """A part in float32. Raises CheckpointError, naming both, if it holds NaN or Inf."""
        values = finite(part, checkpoint, "comparison")
        self.zeros.note(part.name, checkpoint, zero=is_zero(values))
        return values

    def group_of(self, part: Part) -> int:
        """The row of `part` in coefficients."""
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
    progress: Progress | None = None,
) -> Iterator[Comparison]:
    """Open the checkpoints and plan which tensors are compared; they are closed when the context ends.

    An open source may stand for its file, and stays open. `base` may be one of the sources or another file, `mapping`
    is by default the layout's first; `device` may be a name: auto, cpu (default) or cuda. Tensors that differ in shape
    are no obstacle if those of the sources that are `contributing` (default: all) are alike. Raises CheckpointError for
    files that do not fit each other.
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
            progress=progress or _silent,
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
    progress: Progress | None = None,
) -> Iterator[Comparison]:
    """The comparison of a recipe's `sources` by name, `base` one of them, with `target`, for scores of all its steps.

    Raises CheckpointError for files that do not fit each other, RecipeError for a step that they cannot be used in.
    Gives a BlockfitWarning for what is odd about them.
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
        progress=progress,
    ) as comparison:
        check_channels(recipe, (step.name for step in recipe.steps), comparison.parts, comparison.labels)
        warn_of_sources(recipe, comparison.sources, comparison.target, contributing)
        yield comparison
