"""Merging files: coefficients and checkpoints in, one checkpoint out, in a single pass over the sources.

Each output tensor is computed from the sources directly, in float32, and rounded once, however many steps the recipe
has; chains of half-precision files would round at every step.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from optimizer.checkpoints import Checkpoint, TensorSpec, open_checkpoint, safetensors_writer
from optimizer.errors import CheckpointError
from optimizer.recipes.coefficients import Algebra, Group
from optimizer.recipes.combining import MergedTensor, WeightedSum, write_merged
from optimizer.recipes.files import recipe_as_data
from optimizer.recipes.recipe import Recipe
from optimizer.recipes.tensors import Part, check_channels, plan_parts

__all__ = ["merge"]

_MOST_THREADS = 8  # by default: with more, the disk and the memory set the pace


def merge(
    recipe: Recipe,
    paths: Mapping[str, Path],
    output: Path,
    *,
    step: str | None = None,
    dtype: torch.dtype = torch.float16,
    embed_recipe: bool = True,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> None:
    """Write the result of `step` (default: the recipe's output) to the .safetensors file `output`.

    Only the sources that the step needs are opened. Merged tensors are computed in float32 and rounded once to `dtype`;
    all other tensors are copied from the first input that has them, and position ids are written as int64 0 .. n-1.
    Free alphas stand at their starting values. `progress` is told the bytes written and their total,
    tensor by tensor. `threads` tensors are merged at a time (default: as many as torch computes with, 8 at most); they
    do not change the result.

    Raises CheckpointError, nothing written, for sources that do not fit each other, for NaN or Inf in a tensor that
    takes part, for values beyond the range of `dtype`, and for an output that cannot be written.
    """
    name = recipe.step(step or recipe.output).name
    sources = recipe.sources(name)
    _check_output(output, {source: paths[source] for source in sources})
    with ExitStack() as stack:
        opened = {
            source: stack.enter_context(open_checkpoint(paths[source], layout=recipe.layout)) for source in sources
        }
        parts = plan_parts(recipe.layout, recipe.mapping, list(opened.values()))
        check_channels(recipe, name, parts, opened)
        plan = _Plan(recipe, name, opened, parts, dtype)
        metadata = {"format": "pt"}
        if embed_recipe:
            data = {"type": "blockfit", "output": name, "recipe": recipe_as_data(recipe)}
            metadata["sd_merge_recipe"] = json.dumps(data, ensure_ascii=False)
        sizes = {spec.name: spec.nbytes for spec in plan.specs}
        total, written = sum(sizes.values()), 0

        def count(tensor: str) -> None:
            nonlocal written
            written += sizes[tensor]
            if progress is not None:
                progress(written, total)

        with safetensors_writer(output, plan.specs, metadata) as file:
            for other, tensor in plan.others():
                file.write(other, tensor)
                count(other)
            write_merged(
                file,
                plan.merged,
                list(opened.values()),
                dtype,
                threads=threads or min(torch.get_num_threads(), _MOST_THREADS),
                progress=lambda merged: count(merged.name),
            )


def _check_output(output: Path, sources: Mapping[str, Path]) -> None:
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: a merge is written as .safetensors; give the output this extension")
    for name, path in sources.items():
        if output.resolve() == path.resolve():
            raise CheckpointError(f"{output}: is the source {name!r} of this merge; write to another file")


class _Plan:
    """What the output holds, and how each of its tensors comes about."""

    def __init__(
        self, recipe: Recipe, output: str, opened: Mapping[str, Checkpoint], parts: Iterable[Part], dtype: torch.dtype
    ) -> None:
        self._layout = recipe.layout
        self._opened = list(opened.values())
        self._dtype = dtype
        groups = Group.of(parts)
        algebra = Algebra(recipe, groups, list(opened), output)
        coefficients = algebra.coefficients(algebra.starting_alphas())[0]
        sums: dict[str, list[WeightedSum]] = {}
        for part in parts:
            row = groups.index(Group(part.block, part.holders))
            if algebra.present[row]:
                weights = {position: float(c) for position, c in enumerate(coefficients[row]) if c != 0}
                sums.setdefault(part.name, []).append(WeightedSum(part, weights))
        self.merged = [MergedTensor(tensor, tuple(of_tensor)) for tensor, of_tensor in sums.items()]
        self._copied = self._copies(recipe, output, list(opened))
        self.specs = tuple(self._specify())

    def others(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The output's tensors that do not merge."""
        for spec in self.specs:
            if spec.name == self._layout.position_ids:
                yield spec.name, torch.arange(spec.shape[-1], dtype=torch.int64).reshape(spec.shape)
            elif spec.name in self._copied:
                yield spec.name, self._copied[spec.name].tensor(spec.name)

    def _copies(self, recipe: Recipe, output: str, sources: list[str]) -> dict[str, Checkpoint]:
        """The tensors that do not merge, each with the checkpoint it is copied from."""
        known = dict(zip(sources, self._opened, strict=True))
        copies: dict[str, dict[str, Checkpoint]] = {}
        for source, checkpoint in known.items():
            copies[source] = {
                name: checkpoint
                for name, info in checkpoint.tensors.items()
                if not (self._layout.merges(name) and info.dtype.is_floating_point)
            }
        for step in recipe.ancestors(output):
            combined: dict[str, Checkpoint] = {}
            for name in step.inputs.values():
                combined = {**copies[name], **combined}
            copies[step.name] = combined
        merged = {tensor.name for tensor in self.merged}
        return {name: source for name, source in copies[output].items() if name not in merged}

    def _specify(self) -> Iterable[TensorSpec]:
        for tensor in self.merged:
            yield TensorSpec(tensor.name, self._dtype, tensor.shape)
            if tensor.name == self._layout.position_embedding:
                yield TensorSpec(self._layout.position_ids, torch.int64, (1, tensor.shape[0]))
        for name, checkpoint in self._copied.items():
            if name != self._layout.position_ids:
                info = checkpoint.tensors[name]
                yield TensorSpec(name, info.dtype, info.shape)
