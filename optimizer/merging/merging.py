"""Merge checkpoints by a recipe into one checkpoint, in a single pass over the sources.

Each output tensor is computed directly from the sources in float32 and rounded once, for any number of steps. A chain
of half-precision files would round at every step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from optimizer.checkpoints import (
    TensorSource,
    TensorSpec,
    ZeroTensors,
    as_source,
    check_unchanged,
    only_vae,
    open_vae,
    safetensors_writer,
    without_vae,
)
from optimizer.errors import CheckpointError
from optimizer.events import Events, ProgressOption
from optimizer.files import check_output
from optimizer.library import HashCache, Library
from optimizer.merging.combining import MergedTensor, WeightedSum, write_merged
from optimizer.merging.metadata import merge_metadata
from optimizer.merging.noted_hashes import check_noted_hashes
from optimizer.recipes import Algebra, Contributors, Group, Part, Recipe, check_channels, plan_parts, warn_of_merged

__all__ = ["MergeOptions", "merge", "write_merge"]

_MOST_THREADS = 8  # by default; beyond this number disk and memory limit the speed


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge: precision, checks and metadata of its result.

    Attributes:
        dtype: The dtype of merged tensors, which are rounded once.
        vae: A checkpoint, or a VAE alone in LDM names; all VAE tensors are taken from it and rounded to `dtype`,
            whatever the recipe's `vae` is.
        embed_recipe: Write the recipe, and the sources with their sha256, into the metadata.
        check_hashes: Require the sha256 that the recipe notes for a source. Without, any file is accepted, and the
            metadata notes that hashes were not verified.
        named_in: The name of the recipe in messages.
        date: The date of the merge in the metadata, in ISO 8601.
        threads: The number of tensors that are merged at a time; it does not change the result. Default: the number of
            torch's threads, 8 at most.

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
    dtype: torch.dtype = MergeOptions.dtype,
    vae: Path | str | None = MergeOptions.vae,
    embed_recipe: bool = MergeOptions.embed_recipe,
    check_hashes: bool = MergeOptions.check_hashes,
    named_in: Path | str = MergeOptions.named_in,
    date: str | None = MergeOptions.date,
    hashes: HashCache | None = None,
    progress: ProgressOption = None,
    threads: int | None = MergeOptions.threads,
) -> None:
    """Write the result of `step` (default: the recipe's output) to the .safetensors file `output`.

        merge(result.recipe, study.sources, "clone.safetensors")

    Raises the errors of `write_merge`.

    Args:
        recipe: A recipe without free alphas.
        paths: See `write_merge`.
        output: The .safetensors file to write.
        step: The step to merge. Default: the recipe's output.
        dtype: See `MergeOptions`.
        vae: See `MergeOptions`.
        embed_recipe: See `MergeOptions`.
        check_hashes: See `MergeOptions`.
        named_in: See `MergeOptions`.
        date: See `MergeOptions`.
        hashes: A cache of the files' hashes.
        progress: See `write_merge`.
        threads: See `MergeOptions`.

    """
    options = MergeOptions(
        dtype, None if vae is None else Path(vae), embed_recipe, check_hashes, named_in, date, threads
    )
    write_merge(recipe, paths, output, options, step=step, hashes=hashes, progress=progress)


def write_merge(
    recipe: Recipe,
    paths: Mapping[str, Path | str | TensorSource] | Path | str,
    output: Path | str,
    options: MergeOptions,
    *,
    step: str | None = None,
    hashes: HashCache | None = None,
    progress: ProgressOption = None,
) -> None:
    """Write the result of `step` (default: the recipe's output) to the .safetensors file `output`.

    Merged tensors are computed in float32 and rounded once. The other tensors of the output are:

    * buffers of the model's parts, copied from a, or from b if a lacks them;
    * tensors outside the model's parts (prediction markers, noise schedules), copied from the model that the step
      begins with;
    * position ids, written as int64 0 to n-1.

    EMA copies are left out. A BlockfitWarning reports oddities of sources that can still be merged, see
    `inputs.warn_of_merged` and `zeros.ZeroTensors`.

    Free alphas are a RecipeError; `recipe.with_start_values()` returns the recipe with their starting values. A
    CheckpointError, with nothing written, reports sources that are missing or do not fit each other, NaN or Inf in a
    merged tensor, values beyond the range of the dtype, a VAE that does not fit, files that were changed, replaced or
    deleted during the merge, and an output that cannot be written.

    Args:
        recipe: A recipe without free alphas.
        paths: The sources' files, {name: path}, or the folder that the recipe's files are named from. Only the files
            that the step needs are opened. An open source may take the place of its file, and stays open.
        output: The .safetensors file to write.
        options: Precision, checks and metadata.
        step: The step to merge. Default: the recipe's output.
        hashes: A cache of the files' hashes. Missing hashes are computed and stored, which reads the files once more.
        progress: Called as progress(activity, done, total) with bytes, while files are hashed and after each tensor
            written.

    """
    library = Library.of((), hashes, progress)
    if options.vae is not None:
        recipe = replace(recipe, vae=None)
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
            digests = check_noted_hashes(recipe.models, files, library, named_in=options.named_in)
        opened, vae = _with_vae(stack, recipe, opened, options.vae)
        plan = _planned(recipe, name, opened, vae, options.dtype)
        metadata = merge_metadata(
            recipe, name, opened, library, channels=plan.channels, vae=None if options.vae is None else vae,
            date=options.date, embed_recipe=options.embed_recipe, digests=digests,
        )  # fmt: skip
        used = [*opened.values(), *([] if vae is None else [vae])]
        _write(plan, used, output, metadata, options, library.events)


def _with_vae(
    stack: ExitStack, recipe: Recipe, opened: dict[str, TensorSource], file: Path | None
) -> tuple[dict[str, TensorSource], TensorSource | None]:
    """Return the sources without their VAEs and the VAE of the output; the sources and None if their VAEs merge."""
    if file is not None:
        vae = stack.enter_context(open_vae(file, recipe.layout, list(opened.values())))
    elif recipe.vae is not None:
        vae = stack.enter_context(only_vae(opened[recipe.vae]))
    else:
        return opened, None
    return {name: stack.enter_context(without_vae(source)) for name, source in opened.items()}, vae


def _planned(
    recipe: Recipe, step: str, opened: Mapping[str, TensorSource], vae: TensorSource | None, dtype: torch.dtype
) -> "_Plan":
    """Return the plan of the output, or raise CheckpointError if the sources do not fit each other."""
    contributors = Contributors(recipe, list(opened), [step])
    parts = plan_parts(recipe.layout, recipe.mapping, list(opened.values()), contributors)
    check_channels(recipe, step, parts, {name: source.label for name, source in opened.items()})
    plan = _Plan(recipe, step, opened, parts, dtype, vae)
    warn_of_merged(recipe, step, opened, contributors, baked=vae is not None)
    return plan


def _write(
    plan: "_Plan",
    used: Sequence[TensorSource],
    output: Path,
    metadata: Mapping[str, str],
    options: MergeOptions,
    events: Events,
) -> None:
    """Write the planned output; it replaces an existing file only when it is complete."""
    sizes = {spec.name: spec.nbytes for spec in plan.specs}
    total, written = sum(sizes.values()), 0

    def count(tensor: str) -> None:
        nonlocal written
        written += sizes[tensor]
        events.progress(f"merging {output.name}", written, total)

    zeros = ZeroTensors()
    with safetensors_writer(output, plan.specs, metadata) as file:
        for name, tensor in plan.others():
            file.write(name, tensor)
            count(name)
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
        # Check before the output is put in place: after a change it, or the hashes in its metadata, may be wrong.
        check_unchanged(used)
    zeros.warn()


def _given_for(
    recipe: Recipe, step: str, paths: Mapping[str, Path | str | TensorSource] | Path | str
) -> Mapping[str, Path | str | TensorSource]:
    """Return the file, or the open source, of each source that the step needs."""
    sources = recipe.sources(step)
    if not isinstance(paths, Mapping):
        return Library().all_models({source: recipe.models[source].file for source in sources}, Path(paths))
    if missing := [source for source in sources if source not in paths]:
        raise CheckpointError(f"paths: {', '.join(missing)}: missing; step {step!r} is merged from it")
    return {source: paths[source] for source in sources}


def _file_of(given: Path | str | TensorSource) -> Path | None:
    """Return the file of a source, None for an open source without a file."""
    return Path(given) if isinstance(given, Path | str) else given.path


def _check_output(output: Path, sources: Mapping[str, Path], vae: Path | None) -> None:
    """Raise CheckpointError for an output that cannot be written or would overwrite an input."""
    check_output(output)
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: a merge is written as .safetensors; give the output this extension")
    if not output.resolve().parent.is_dir():  # the writer checks this too, but only after the sources were hashed
        raise CheckpointError(f"{output}: the folder {output.resolve().parent} does not exist; create it first")
    for name, path in sources.items():
        if output.resolve() == path.resolve():
            raise CheckpointError(f"{output}: is the source {name!r} of this merge; write to another file")
    if vae is not None and output.resolve() == vae.resolve():
        raise CheckpointError(f"{output}: is the VAE of this merge; write to another file")


def _copy_of(name: str, shape: tuple[int, ...], position: int) -> MergedTensor:
    """Return a copy of a tensor of the source at `position`, rounded and checked like merged tensors."""
    return MergedTensor(name, (WeightedSum(Part(name, None, shape, (position,), scored=False), {position: 1.0}),))


class _Plan:
    """The tensors of the output and the origin of each; `vae` counts as a further source, the last."""

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
        self._copied = self._copies(recipe, output, list(opened))
        if vae is not None:
            floating = {name: info.dtype.is_floating_point for name, info in vae.tensors.items()}
            self.merged += [_copy_of(name, vae.tensors[name].shape, len(opened)) for name in floating if floating[name]]
            self._copied |= {name: vae for name in floating if not floating[name]}
        self.specs = tuple(self._specify())

    @property
    def channels(self) -> int:
        """Number of channels of the output's input convolution; 0 without an inpainting variant of the layout."""
        inpainting = self._layout.inpainting
        return next((spec.shape[1] for spec in self.specs if inpainting and spec.name == inpainting.tensor), 0)

    def others(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the names and tensors of the output that do not merge."""
        for spec in self.specs:
            if spec.name in self._layout.position_ids:
                yield spec.name, torch.arange(spec.shape[-1], dtype=torch.int64).reshape(spec.shape)
            elif spec.name in self._copied:
                yield spec.name, self._copied[spec.name].tensor(spec.name)

    def _copies(self, recipe: Recipe, output: str, sources: list[str]) -> dict[str, TensorSource]:
        """Return the names of tensors that are copied, each with the checkpoint it is copied from."""
        known = dict(zip(sources, self._opened, strict=True))
        buffers: dict[str, dict[str, TensorSource]] = {
            name: {tensor: source for tensor in source.tensors if self._is_buffer(tensor, source)}
            for name, source in known.items()
        }
        for step in recipe.ancestors(output):
            # As with merged tensors, the result lacks the tensors that only c has.
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
        """Return whether a tensor belongs to a part of the model but does not merge."""
        merges = self._layout.merges(name) and checkpoint.tensors[name].dtype.is_floating_point
        return self._layout.part_of(name) is not None and not merges

    def _specify(self) -> Iterable[TensorSpec]:
        """Yield name, dtype and shape of the output's tensors, in order."""
        counted = {embedding: ids for ids, embedding in self._layout.position_ids.items()}
        for tensor in self.merged:
            yield TensorSpec(tensor.name, self._dtype, tensor.shape)
            if tensor.name in counted:
                yield TensorSpec(counted[tensor.name], torch.int64, (1, tensor.shape[0]))
        for name, checkpoint in self._copied.items():
            if name not in self._layout.position_ids:
                info = checkpoint.tensors[name]
                yield TensorSpec(name, info.dtype, info.shape)
