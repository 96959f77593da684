"""Baking in a VAE: one file's, for the whole output, whatever the sources hold."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from optimizer.checkpoints.reading import open_checkpoint
from optimizer.checkpoints.selection import SelectedTensors
from optimizer.checkpoints.source import TensorSource
from optimizer.errors import CheckpointError
from optimizer.families import Layout, ModelPart

__all__ = ["open_vae", "without_vae"]

_DIFFUSERS = re.compile(r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.")
_MOST_PROBLEMS = 8


def open_vae(path: Path, layout: Layout, sources: Sequence[TensorSource]) -> TensorSource:
    """The VAE in the file `path`, under the names that a checkpoint of `layout` has for it, and nothing else.

    The file is a whole checkpoint of this layout, or a VAE alone in LDM names. Its tensors must be those, in name and
    shape, that the VAEs of `sources` have, as far as any of them has one. Raises CheckpointError with a line for each
    tensor that is missing, one too many, or of another shape, and for a file that holds no such VAE at all.
    """
    vae = layout.vae
    if vae is None:
        raise CheckpointError(f"{path}: checkpoints of {layout.title} have no VAE, so none can be baked in")
    with ExitStack() as stack:
        whole = stack.enter_context(open_checkpoint(path))
        names = _names(whole, layout, vae)
        found = {name: whole.tensors[stored] for name, stored in names.items()}
        shapes = {name: layout.shape_of(name, info.shape) for name, info in found.items()}
        problems = [
            f"{path}: tensor {names[name]!r} is {str(info.dtype).removeprefix('torch.')}; must be floating-point"
            for name, info in found.items()
            if not info.dtype.is_floating_point
        ]
        problems += _differences(path, vae, shapes, names, sources)
        if problems:
            more = len(problems) - _MOST_PROBLEMS
            raise CheckpointError(problems[:_MOST_PROBLEMS] + ([f"{path}: ... and {more} more"] if more > 0 else []))
        stack.pop_all()
        return SelectedTensors(whole, names, layout, owning=True)


def without_vae(source: TensorSource) -> TensorSource:
    """Return the tensors of a source that has a layout, but for its VAE's; closing them does not close the source."""
    assert source.layout is not None
    vae = source.layout.vae
    prefixes = () if vae is None else (vae.prefix,)
    return SelectedTensors(source, {name: name for name in source.tensors if not name.startswith(prefixes)})


def _names(whole: TensorSource, layout: Layout, vae: ModelPart) -> dict[str, str]:
    """The VAE's tensors in this file: {name in a checkpoint: name in this file}."""
    path, prefix = whole.label, vae.prefix
    beginning = layout.network.prefix or layout.requires[0]
    if any(name.startswith(beginning) for name in whole.tensors) and whole.layout != layout:
        kind = whole.kind or "a checkpoint of another family"
        raise CheckpointError(f"{path}: is {kind}; give a VAE of {layout.title}, or a checkpoint of it")
    start = prefix if any(name.startswith(prefix) for name in whole.tensors) else ""
    parts = tuple(start + section for section in vae.sections)
    names: dict[str, str] = {}
    for name in (name for name in whole.tensors if name.startswith(parts)):
        own = prefix + name.removeprefix(start)
        canonical = layout.canonical(own)
        if canonical == own or canonical not in names:  # of two spellings in one file, every tool reads this one
            names[canonical] = name
    if not names:
        what = "" if whole.kind is None or whole.layout is not None else f"is {whole.kind}, and "
        raise CheckpointError(
            f"{path}: {what}holds no VAE; one has tensors "
            f"{', '.join(f'{section}*' for section in vae.sections)}, alone or under {prefix}*"
        )
    foreign = next((name for name in names.values() if _DIFFUSERS.match(name.removeprefix(prefix))), None)
    if foreign is not None:
        raise CheckpointError(
            f"{path}: tensor {foreign!r}: a VAE in diffusers names; give it in LDM names (encoder.down.0.*), "
            "as the WebUI's .vae.pt and .vae.safetensors files have them"
        )
    return names


def _differences(
    path: Path,
    vae: ModelPart,
    found: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    sources: Sequence[TensorSource],
) -> list[str]:
    """What the VAE's tensors, by name with their shapes, have to be to go with the VAEs of `sources`."""
    prefix = vae.prefix
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    for source in sources:
        for name, info in source.tensors.items():
            if name.startswith(prefix) and name.removeprefix(prefix).startswith(vae.sections):
                wanted.setdefault(name, (info.shape, source.label))
    if not wanted:
        missing = [end for end in vae.needs if prefix + end not in found]
        return [f"{path}: tensor {end!r} is missing; the VAE is not complete" for end in missing]
    problems = [
        f"{path}: tensor {name.removeprefix(prefix)!r} is missing; {origin} has it, of shape {list(shape)}"
        for name, (shape, origin) in wanted.items()
        if name not in found
    ]
    for name, held in found.items():
        if name not in wanted:
            origin = next(iter(wanted.values()))[1]
            problems.append(
                f"{path}: tensor {names[name]!r} is one too many; the VAE of {origin} has none of this name"
            )
        elif held != wanted[name][0]:
            shape, origin = wanted[name]
            problems.append(f"{path}: tensor {names[name]!r} has shape {list(held)}, but {list(shape)} in {origin}")
    return problems
