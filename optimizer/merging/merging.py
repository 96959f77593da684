"""Merging files: coefficients and checkpoints in, one checkpoint out, in a single pass over the sources.

Each output tensor is computed from the sources directly, in float32, and rounded once, however many steps the recipe
has; chains of half-precision files would round at every step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from optimizer.checkpoints import (
    TensorSource,
    TensorSpec,
    ZeroTensors,
    as_source,
    check_unchanged,
    open_vae,
    safetensors_writer,
    without_vae,
)
from optimizer.errors import CheckpointError
from optimizer.files import check_output
from optimizer.library import HashCache, locate_models
from optimizer.merging.combining import MergedTensor, WeightedSum, write_merged
from optimizer.merging.metadata import merge_metadata
from optimizer.merging.noted_hashes import check_noted_hashes
from optimizer.recipes import Algebra, Contributors, Group, Part, Recipe, check_channels, plan_parts, warn_of_merged

__all__ = ["MergeOptions", "merge", "write_merge"]

_MOST_THREADS = 8  # by default: with more, the disk and the memory set the pace


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge: how its result is rounded, checked and described.

    Attributes:
        dtype: What merged tensors are rounded to, once.
        vae: A checkpoint, or a VAE alone in LDM names, from which all VAE tensors are taken, rounded to `dtype`.
        embed_recipe: Whether the metadata notes the recipe, and the sources with their sha256.
        check_hashes: Whether a source must have the sha256 that the recipe notes of it. Without, any file will do, and
            the metadata says that hashes were not verified.
        named_in: The name of the recipe in messages.
        date: The date of the merge in the metadata, in ISO 8601.
        threads: Tensors that are merged at a time; they do not change the result. Default: as many as torch computes
            with, 8 at most.

    """

    dtype: torch.dtype = torch.float16
    vae: Path | None = None
    embed_recipe: bool = True
    check_hashes: bool = True
    named_in: Path | str = "recipe"
    date: str | None = None
    threads: int | None = None


def merge(
    recipe: Recipe,
    paths: Mapping[str, Path | str | TensorSource] | Path | str,
    output: Path | str,
    *,
    step: str | None = None,
    dtype: torch.dtype = torch.float16,
    vae: Path | str | None = None,
    embed_recipe: bool = True,
    check_hashes: bool = True,
    named_in: Path | str = "recipe",
    date: str | None = None,
    hashes: HashCache | None = None,
    hashing: Callable[[str, int, int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> None:
    """Write the result of `step` (default: the recipe's output) to the .safetensors file `output`.

        merge(result.recipe, study.sources, "clone.safetensors")

    The keywords are those of `MergeOptions`, and of `write_merge`, which does the work.
    """
    options = MergeOptions(
        dtype, None if vae is None else Path(vae), embed_recipe, check_hashes, named_in, date, threads
    )
    write_merge(recipe, paths, output, options, step=step, hashes=hashes, hashing=hashing, progress=progress)


def write_merge(
    recipe: Recipe,
    paths: Mapping[str, Path | str | TensorSource] | Path | str,
    output: Path | str,
    options: MergeOptions,
    *,
    step: str | None = None,
    hashes: HashCache | None = None,
    hashing: Callable[[str, int, int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the result of `step` (default: the recipe's output) to the .safetensors file `output`.

    `paths` are the sources' files, {name: path}, or the folder that the recipe's files are named from. Only those that
    the step needs are opened. An open source may stand for its file, and stays open. Merged tensors are computed in
    float32 and rounded once. Of the rest, buffers of the model's parts are copied from a or, where that lacks them, b;
    what is no part of the model (prediction markers, noise schedules) from the model that the step begins with alone;
    EMA copies from none; and position ids are written as int64 0 .. n-1.

    Hashes are taken from and kept in `hashes`; those that it lacks are computed, which reads the files once more and
    tells `hashing` the file's name, the bytes done and their total. `progress` is told the bytes written and their
    total, tensor by tensor.

    Raises RecipeError for alphas that are free: `recipe.with_start_values()` has them at their starting values. Raises
    CheckpointError, nothing written, for sources that are missing or do not fit each other, for NaN or Inf in a
    tensor that takes part, for values beyond the range of the dtype, for a VAE that does not fit, for files that are
    changed, replaced or deleted meanwhile, and for an output that cannot be written. Gives a BlockfitWarning for what
    is odd about the sources though they can be merged: see `inputs.warn_of_merged` and `zeros.ZeroTensors`.
    """
    name = recipe.step(step or recipe.output).name
    recipe.check_finished("merged", name)
    sources = recipe.sources(name)
    given = _given_for(recipe, name, paths)
    files = {source: path for source in sources if (path := _file_of(given[source])) is not None}
    output = Path(output)
    _check_output(output, files, options.vae)
    with ExitStack() as stack:
        opened = {source: stack.enter_context(as_source(given[source], layout=recipe.layout)) for source in sources}
        digests = None
        if options.check_hashes:
            digests = check_noted_hashes(
                recipe.models, files, named_in=options.named_in, hashes=hashes, progress=hashing, telling="{}"
            )
        opened, vae = _with_vae(stack, recipe, opened, options.vae)
        plan = _planned(recipe, name, opened, vae, options.dtype)
        metadata = merge_metadata(
            recipe, name, opened, channels=plan.channels, vae=vae, date=options.date,
            embed_recipe=options.embed_recipe, digests=digests, hashes=hashes, hashing=hashing,
        )  # fmt: skip
        used = [*opened.values(), *([] if vae is None else [vae])]
        _write(plan, used, output, metadata, options, progress)


def _with_vae(
    stack: ExitStack, recipe: Recipe, opened: dict[str, TensorSource], file: Path | None
) -> tuple[dict[str, TensorSource], TensorSource | None]:
    """Return the sources without their VAEs, and the VAE that takes their place; as they are if there is none."""
    if file is None:
        return opened, None
    vae = stack.enter_context(open_vae(file, recipe.layout, list(opened.values())))
    return {source: stack.enter_context(without_vae(one)) for source, one in opened.items()}, vae


def _planned(
    recipe: Recipe, step: str, opened: Mapping[str, TensorSource], vae: TensorSource | None, dtype: torch.dtype
) -> "_Plan":
    """Return what the output will hold. Raises CheckpointError for sources that do not fit each other."""
    contributors = Contributors(recipe, list(opened), [step])
    parts = plan_parts(recipe.layout, recipe.mapping, list(opened.values()), contributors)
    check_channels(recipe, step, parts, {source: one.label for source, one in opened.items()})
    plan = _Plan(recipe, step, opened, parts, dtype, vae)
    warn_of_merged(recipe, step, opened, contributors, baked=vae is not None)
    return plan


def _write(
    plan: "_Plan",
    used: Sequence[TensorSource],
    output: Path,
    metadata: Mapping[str, str],
    options: MergeOptions,
    progress: Callable[[int, int], None] | None,
) -> None:
    sizes = {spec.name: spec.nbytes for spec in plan.specs}
    total, written = sum(sizes.values()), 0

    def count(tensor: str) -> None:
        nonlocal written
        written += sizes[tensor]
        if progress is not None:
            progress(written, total)

    zeros = ZeroTensors()
    with safetensors_writer(output, plan.specs, metadata) as file:
        for other, tensor in plan.others():
            file.write(other, tensor)
            count(other)
        write_merged(
            file,
            plan.merged,
            used,
            options.dtype,
            threads=options.threads or min(torch.get_num_threads(), _MOST_THREADS),
            progress=lambda merged: count(merged.name),
            zeros=zeros,
        )
        zeros.compare_with(used)
        # Before the output takes its place: it, or the hashes in its metadata, may be of other files.
        check_unchanged(used)
    zeros.warn()


def _given_for(
    recipe: Recipe, step: str, paths: Mapping[str, Path | str | TensorSource] | Path | str
) -> Mapping[str, Path | str | TensorSource]:
    """Return the file, or the open source, of each source that the step needs."""
    sources = recipe.sources(step)
    if not isinstance(paths, Mapping):
        return locate_models({source: recipe.models[source].file for source in sources}, Path(paths))
    if missing := [source for source in sources if source not in paths]:
        raise CheckpointError(f"paths: {', '.join(missing)}: missing; step {step!r} is merged from it")
    return {source: paths[source] for source in sources}


def _file_of(given: Path | str | TensorSource) -> Path | None:
    return Path(given) if isinstance(given, Path | str) else given.path


def _check_output(output: Path, sources: Mapping[str, Path], vae: Path | None) -> None:
    check_output(output)
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: a merge is written as .safetensors; give the output this extension")
    if not output.resolve().parent.is_dir():  # the writer says so too, but after the sources were hashed
        raise CheckpointError(f"{output}: the folder {output.resolve().parent} does not exist; create it first")
    for name, path in sources.items():
        if output.resolve() == path.resolve():
            raise CheckpointError(f"{output}: is the source {name!r} of this merge; write to another file")
    if vae is not None and output.resolve() == vae.resolve():
        raise CheckpointError(f"{output}: is the VAE of this merge; write to another file")


def _copy_of(name: str, shape: tuple[int, ...], position: int) -> MergedTensor:
    """The tensor of the source at `position` alone, rounded and checked as any merged one is."""
    return MergedTensor(name, (WeightedSum(Part(name, None, shape, (position,), scored=False), {position: 1.0}),))


class _Plan:
    """What the output holds, and how each of its tensors comes about; `vae` counts as one more source, the last."""

    def __init__(
        self,
        recipe: Recipe,
        output: str,
        opened: Mapping[str, TensorSource],
        parts: Iterable[Part],
        dtype: torch.dtype,
        vae: TensorSource | None,
    ) -> None:
        self._layout = recipe.layout
        self._opened = list(opened.values())
        self._dtype = dtype
        groups = Group.of(parts)
        algebra = Algebra(recipe, groups, list(opened), output)
        coefficients = algebra.coefficients(algebra.starting_alphas())[0]
        sums: dict[str, list[WeightedSum]] = {}
        for part in parts:
            row = groups.index(Group.of_part(part))
            if algebra.present[row]:
                weights = {position: float(c) for position, c in enumerate(coefficients[row]) if c != 0}
                sums.setdefault(part.name, []).append(WeightedSum(part, weights))
        self.merged = [MergedTensor(tensor, tuple(of_tensor)) for tensor, of_tensor in sums.items()]
        if vae is not None:
            self.merged += [_copy_of(name, info.shape, len(opened)) for name, info in vae.tensors.items()]
        self._copied = self._copies(recipe, output, list(opened))
        self.specs = tuple(self._specify())

    @property
    def channels(self) -> int:
        """How many channels the output's input convolution has: 4, or more in an inpainting model."""
        inpainting = self._layout.inpainting
        return next((spec.shape[1] for spec in self.specs if inpainting and spec.name == inpainting.tensor), 0)

    def others(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The output's tensors that do not merge."""
        for spec in self.specs:
            if spec.name in self._layout.position_ids:
                yield spec.name, torch.arange(spec.shape[-1], dtype=torch.int64).reshape(spec.shape)
            elif spec.name in self._copied:
                yield spec.name, self._copied[spec.name].tensor(spec.name)

    def _copies(self, recipe: Recipe, output: str, sources: list[str]) -> dict[str, TensorSource]:
        """The tensors that do not merge, each with the checkpoint it is copied from."""
        known = dict(zip(sources, self._opened, strict=True))
        buffers: dict[str, dict[str, TensorSource]] = {
            source: {name: one for name in one.tensors if self._is_buffer(name, one)} for source, one in known.items()
        }
        for step in recipe.ancestors(output):
            # As with tensors that merge: what only c holds is not in the result.
            buffers[step.name] = {**buffers[step.b], **buffers[step.a]}
        first = known[recipe.first_model(output)]
        beside = {
            name: first
            for name in first.tensors
            if self._layout.part_of(name) is None and not name.startswith(self._layout.ema)
        }
        merged = {tensor.name for tensor in self.merged}
        return {name: source for name, source in {**beside, **buffers[output]}.items() if name not in merged}

    def _is_buffer(self, name: str, checkpoint: TensorSource) -> bool:
        """Whether a tensor belongs to a part of the model, but does not merge."""
        merges = self._layout.merges(name) and checkpoint.tensors[name].dtype.is_floating_point
        return self._layout.part_of(name) is not None and not merges

    def _specify(self) -> Iterable[TensorSpec]:
        counted = {embedding: ids for ids, embedding in self._layout.position_ids.items()}
        for tensor in self.merged:
            yield TensorSpec(tensor.name, self._dtype, tensor.shape)
            if tensor.name in counted:
                yield TensorSpec(counted[tensor.name], torch.int64, (1, tensor.shape[0]))
        for name, checkpoint in self._copied.items():
            if name not in self._layout.position_ids:
                info = checkpoint.tensors[name]
                yield TensorSpec(name, info.dtype, info.shape)
