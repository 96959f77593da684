"""Replacement of the VAE: one file's VAE for the whole output, in place of the sources' VAEs."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from optimizer.checkpoints.reading import open_checkpoint
from optimizer.checkpoints.selection import SelectedTensors
from optimizer.checkpoints.source import TensorSource
from optimizer.errors import CheckpointError
from optimizer.families import Layout, ModelPart

__all__ = ["only_vae", "open_vae", "without_vae"]

_DIFFUSERS = re.compile(r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.")
_MOST_PROBLEMS = 8


def open_vae(path: Path, layout: Layout, sources: Sequence[TensorSource]) -> TensorSource:
    """Open the VAE in a file, under its names in a checkpoint.

    The file is a whole checkpoint of the layout, or a VAE alone in LDM names. Its tensors must have the names and
    shapes of the sources' VAEs, if these have one.

    Args:
        path: Path of the file.
        layout: Layout of the output.
        sources: Sources of the merge.

    Returns:
        A source of the VAE's tensors only, which owns the file.

    Raises:
        CheckpointError: The file holds no such VAE, or the layout has none. The message has a line for each tensor that
            is missing, superfluous, not floating-point or of another shape.
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


def only_vae(source: TensorSource) -> TensorSource:
    """Return the VAE of a source with a layout; closing it does not close the source.

    Raises:
        CheckpointError: The source holds no VAE.
    """
    assert source.layout is not None
    vae = source.layout.vae
    names = {name: name for name in source.tensors if vae is not None and vae.holds(name)}
    if not names:
        raise CheckpointError(
            f"{source.label}: holds no VAE, and the recipe's `vae` names it; name a model that holds one, or leave "
            "`vae` out"
        )
    return SelectedTensors(source, names)


def without_vae(source: TensorSource) -> TensorSource:
    """Return the tensors of a source with a layout, without its VAE's; closing them does not close the source."""
    assert source.layout is not None
    vae = source.layout.vae
    prefixes = () if vae is None else (vae.prefix,)
    return SelectedTensors(source, {name: name for name in source.tensors if not name.startswith(prefixes)})


def _names(whole: TensorSource, layout: Layout, vae: ModelPart) -> dict[str, str]:
    """Return the VAE's tensors in this file: {name in a checkpoint: name in this file}."""
    path, prefix = whole.label, vae.prefix
    beginning = layout.network.prefix or layout.requires[0]
    if any(name.startswith(beginning) for name in whole.tensors) and whole.layout != layout:
        kind = whole.kind or "a checkpoint of another family"
        raise CheckpointError(f"{path}: is {kind}; give a VAE of {layout.title}, or a checkpoint of it")
    start = prefix if any(name.startswith(prefix) for name in whole.tensors) else ""
    parts = tuple(start + section for section in vae.sections)
    names: dict[str, str] = {}
    for name in (name for name in whole.tensors if name.startswith(parts)):
        in_checkpoint = prefix + name.removeprefix(start)
        canonical = layout.canonical(in_checkpoint)
        if (
            canonical == in_checkpoint or canonical not in names
        ):  # of two spellings in one file, every tool reads this one
            names[canonical] = name
    if not names:
        what = "" if whole.kind is None or whole.layout is not None else f"is {whole.kind}, and "
        raise CheckpointError(
            f"{path}: {what}holds no VAE, whose tensors are "
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
    """Return a line for each tensor of the VAE that does not fit the VAEs of `sources`; `found` are its shapes."""
    prefix = vae.prefix
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for source in sources:
        for name, info in source.tensors.items():
            if name.startswith(prefix) and name.removeprefix(prefix).startswith(vae.sections):
                expected.setdefault(name, (info.shape, source.label))
    if not expected:
        missing = [end for end in vae.needs if prefix + end not in found]
        return [f"{path}: tensor {end!r} is missing; the VAE is incomplete" for end in missing]
    problems = [
        f"{path}: tensor {name.removeprefix(prefix)!r} is missing; {origin} has it, of shape {list(shape)}"
        for name, (shape, origin) in expected.items()
        if name not in found
    ]
    for name, held in found.items():
        if name not in expected:
            origin = next(iter(expected.values()))[1]
            problems.append(f"{path}: tensor {names[name]!r} is not part of the VAE of {origin}; leave it out")
        elif held != expected[name][0]:
            shape, origin = expected[name]
            problems.append(f"{path}: tensor {names[name]!r} has shape {list(held)}, but {list(shape)} in {origin}")
    return problems
