"""Warnings about checkpoints that are merged or compared.

They cover parts that an input lacks, tensors that are no part of the model, and models that are sampled differently.
None of these stops the work; each is one BlockfitWarning. Noise schedules and markers are the only tensor data read.
"""

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

from optimizer.checkpoints import Prediction, TensorSource, read_prediction
from optimizer.errors import BlockfitWarning
from optimizer.families import Layout, ModelPart, TextEncoder
from optimizer.recipes.recipe import LARGEST_USUAL, Recipe, beyond_usual
from optimizer.recipes.tensors import Contributing

__all__ = ["warn_of_compared", "warn_of_merged", "warn_of_sources"]

_MOST_LISTED = 3


def warn_of_merged(
    recipe: Recipe, output: str, sources: Mapping[str, TensorSource], contributing: Contributing, *, baked: bool
) -> None:
    """Warn of oddities in the sources of a merge, and of their consequences.

    Args:
        recipe: The recipe.
        output: The step that is merged.
        sources: The sources by model name.
        contributing: The sources that can count in the result.
        baked: Whether the VAE of one file replaces that of the merge.
    """
    first = sources[recipe.first_model(output)]
    files = _each(sources.values())
    for step in recipe.ancestors(output):
        for name, alpha in step.alphas.items():
            if (found := beyond_usual(alpha)) is not None:
                _warn(
                    f"steps.{step.name}.{name}: {found[1]:g} ({found[0]}) is far outside the usual range, "
                    f"{-LARGEST_USUAL:g} to {LARGEST_USUAL:g}; is it per cent?"
                )
    if copies := [file for file in files if any(name.startswith(recipe.layout.ema) for name in file.tensors)]:
        holds = "hold EMA copies" if len(copies) > 1 else "holds an EMA copy"
        _warn(f"{_files(copies)}: {holds} of the model ({', '.join(f'{p}*' for p in recipe.layout.ema)}); left out")
    for file in files:
        _warn_of_unknown_tensors(file, recipe.layout, "copied unmerged" if file.label == first.label else "left out")
    for part in _optional_parts(recipe.layout):
        if not (part.role == "vae" and baked):
            _warn_of_lacking(part, recipe, sources, contributing, "the merge")
    _warn_of_sampling(recipe.layout, first, files, f"the merge is sampled as {first.name} is")


def warn_of_sources(
    recipe: Recipe, sources: Mapping[str, TensorSource], target: TensorSource, contributing: Contributing
) -> None:
    """Warn of oddities in the sources, by model name, whose merges by `recipe` are compared with `target`.

    Args:
        recipe: The recipe.
        sources: The sources by model name.
        target: The target.
        contributing: The sources that can count in the results.
    """
    for file in _each((*sources.values(), target)):
        _warn_of_unknown_tensors(file, recipe.layout, "left out")
    for part in _optional_parts(recipe.layout):
        _warn_of_lacking(part, recipe, sources, contributing, "the recipe's merge")
    _warn_of_uncompared(target, recipe.layout)
    _warn_of_sampling(recipe.layout, target, _each(sources.values()), "no merge turns the one into the other")


def warn_of_compared(layout: Layout, files: Sequence[TensorSource]) -> None:
    """Warn of oddities in checkpoints that are compared directly, the target first."""
    target, *candidates = _each(files)
    for file in (target, *candidates):
        _warn_of_unknown_tensors(file, layout, "left out")
        _warn_of_uncompared(file, layout)
    _warn_of_sampling(layout, target, candidates, "similarities do not show this")


def _optional_parts(layout: Layout) -> tuple[ModelPart, ...]:
    """Return the parts that a checkpoint may lack: text encoders and VAE."""
    return tuple(part for part in layout.parts if part.role != "network")


def _warn(text: str) -> None:
    warnings.warn(text, BlockfitWarning, stacklevel=3)


def _warn_of_unknown_tensors(checkpoint: TensorSource, layout: Layout, fate: str) -> None:
    if unknown := [name for name in checkpoint.tensors if not layout.expects(name)]:
        tensors, are = ("tensors", "are") if len(unknown) > 1 else ("tensor", "is")
        _warn(
            f"{checkpoint.label}: {len(unknown)} {tensors} {are} no part of {layout.title} and {are} {fate}: "
            f"{_some(unknown)}"
        )
    if passed_over := checkpoint.passed_over:
        _warn(
            f"{checkpoint.label}: holds tensors under two names with different values; read under those of "
            f"{layout.title}, as by other tools, and not as {_some(passed_over)}"
        )


def _warn_of_lacking(
    part: ModelPart, recipe: Recipe, sources: Mapping[str, TensorSource], contributing: Contributing, result: str
) -> None:
    """Warn of sources without a part, and name the sources of the result's part."""
    layout, names = recipe.layout, list(sources)
    if part.role == "vae" and recipe.vae is not None:
        if recipe.vae in sources and _first_of(part, sources[recipe.vae], layout) is None:
            _warn(f"{sources[recipe.vae].label}: no VAE, and the recipe's `vae` names it; its merge would be refused")
        return
    holding = {position: _first_of(part, source, layout) for position, source in enumerate(sources.values())}
    lacking = [source for position, source in enumerate(sources.values()) if holding[position] is None]
    if not lacking or (part.apart and len(lacking) == len(sources)):
        return
    holders = [position for position, name in holding.items() if name is not None]
    counting: Collection[int] = ()
    if holders:
        block = recipe.block_of(holding[holders[0]] or "")
        counting = sorted(contributing.of(block, holders))
    giving = [source.name for source in _each(sources[names[position]] for position in counting)]
    whose = "none" if not giving else f"that of {giving[0]}" if len(giving) == 1 else f"one made of {_listed(giving)}"
    _warn(f"{_files(_each(lacking))}: no {part.title}{_hidden(part, lacking, layout)}; {result} has {whose}")


def _warn_of_uncompared(checkpoint: TensorSource, layout: Layout) -> None:
    for part in _optional_parts(layout):
        if not part.apart and _first_of(part, checkpoint, layout) is None:
            block = part.block if isinstance(part, TextEncoder) else None
            of_block = [encoder for encoder in layout.text_encoders if encoder.block == block]
            follows = f"so {block} is not compared" if len(of_block) == 1 else f"so {block} is compared without it"
            follows = follows if part.scores else "which similarities leave out anyway"
            _warn(f"{checkpoint.label}: no {part.title}{_hidden(part, [checkpoint], layout)}, {follows}")


def _warn_of_sampling(layout: Layout, first: TensorSource, files: Iterable[TensorSource], follows: str) -> None:
    """Warn of files that must be sampled differently from the first."""
    expected = read_prediction(first, layout)
    for file in files:
        found = read_prediction(file, layout)
        if not found.agrees(expected):
            _warn(f"{file.label}: {found.describe()}, but {first.label} {expected.describe()}; {follows}")
        if (difference := found.schedule_difference(expected)) is not None:
            by = "in their lengths" if math.isinf(difference) else f"by up to {difference:.2g} in alphas_cumprod"
            _warn(
                f"{file.label}: its noise schedule ({_origin(found, layout)}) differs from that of {first.label} "
                f"({_origin(expected, layout)}) {by}; {follows}"
            )


def _origin(prediction: Prediction, layout: Layout) -> str:
    return "in the file" if prediction.stored else f"that of {layout.title}, as it holds none"


def _first_of(part: ModelPart, checkpoint: TensorSource, layout: Layout) -> str | None:
    """Return the name of a tensor of this part; None if the checkpoint lacks the part."""
    return next((name for name in checkpoint.tensors if part.holds(name) and layout.merges(name)), None)


def _hidden(part: ModelPart, checkpoints: Iterable[TensorSource], layout: Layout) -> str:
    """Return a hint at a text encoder under unknown names; "" without one, and for other parts."""
    end = part.tokens_behind() if isinstance(part, TextEncoder) and part.tokens is not None else None
    if end is None:
        return ""
    for file in checkpoints:
        if name := next((name for name in file.tensors if name.endswith(end) and not layout.expects(name)), None):
            return f" under a name that is known ({name!r} may be of one)"
    return ""


def _each(checkpoints: Iterable[TensorSource]) -> list[TensorSource]:
    """Return the checkpoints, each file once: a recipe may have two names for it."""
    return list({file.label: file for file in checkpoints}.values())


def _files(checkpoints: Iterable[TensorSource]) -> str:
    return _listed([file.label for file in checkpoints])


def _some(names: Iterable[str]) -> str:
    return _listed([repr(name) for name in names])


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_LISTED
    return ", ".join(texts[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
