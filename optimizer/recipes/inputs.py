"""What users have to know of checkpoints that are put together, before they trust what comes out.

Nothing here stops the work: parts that an input lacks, tensors that are no part of the model, models that are sampled
in different ways. Each is one BlockfitWarning. No tensor data is read but for noise schedules and markers.
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
    """Warn of what is odd about the `sources`, by name, that the step `output` is merged from, and what follows.

    `baked` says that the VAE is another file's.
    """
    first = sources[recipe.first_model(output)]
    files = _each(sources.values())
    for step in recipe.ancestors(output):
        for name, alpha in step.alphas.items():
            if (found := beyond_usual(alpha)) is not None:
                _warn(
                    f"steps.{step.name}.{name}: {found[1]:g} ({found[0]}) is far outside what merges use, "
                    f"{-LARGEST_USUAL:g} to {LARGEST_USUAL:g}; is it per cent?"
                )
    if copies := [one for one in files if any(name.startswith(recipe.layout.ema) for name in one.tensors)]:
        holds = "hold EMA copies" if len(copies) > 1 else "holds an EMA copy"
        _warn(f"{_files(copies)}: {holds} of the model ({', '.join(f'{p}*' for p in recipe.layout.ema)}); left out")
    for one in files:
        _warn_of_strangers(one, recipe.layout, "copied unmerged" if one.label == first.label else "left out")
    for part in _drawn_from(recipe.layout):
        if not (part.role == "vae" and baked):
            _warn_of_lacking(part, recipe, sources, contributing, "the merge")
    _warn_of_sampling(recipe.layout, first, files, f"the merge is sampled as {first.name} is")


def warn_of_sources(
    recipe: Recipe, sources: Mapping[str, TensorSource], target: TensorSource, contributing: Contributing
) -> None:
    """Warn of what is odd about the `sources`, by name, whose merges by `recipe` are compared with `target`."""
    for one in _each((*sources.values(), target)):
        _warn_of_strangers(one, recipe.layout, "left out")
    for part in _drawn_from(recipe.layout):
        _warn_of_lacking(part, recipe, sources, contributing, "what the recipe makes")
    _warn_of_uncompared(target, recipe.layout)
    _warn_of_sampling(recipe.layout, target, _each(sources.values()), "no merge turns the one into the other")


def warn_of_compared(layout: Layout, files: Sequence[TensorSource]) -> None:
    """Warn of what is odd about checkpoints that are compared as they are, the target first."""
    target, *others = _each(files)
    for one in (target, *others):
        _warn_of_strangers(one, layout, "left out")
        _warn_of_uncompared(one, layout)
    _warn_of_sampling(layout, target, others, "similarities do not show that")


def _drawn_from(layout: Layout) -> tuple[ModelPart, ...]:
    """The parts that a checkpoint may lack and still be one: text encoders and VAE."""
    return tuple(part for part in layout.parts if part.role != "network")


def _warn(text: str) -> None:
    warnings.warn(text, BlockfitWarning, stacklevel=3)


def _warn_of_strangers(checkpoint: TensorSource, layout: Layout, fate: str) -> None:
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
    """Warn of sources without a part, and tell whose part the result has."""
    layout, names = recipe.layout, list(sources)
    holding = {position: _first_of(part, one, layout) for position, one in enumerate(sources.values())}
    lacking = [one for position, one in enumerate(sources.values()) if holding[position] is None]
    if not lacking:
        return
    holders = [position for position, name in holding.items() if name is not None]
    counting: Collection[int] = ()
    if holders:
        block = layout.block_of(holding[holders[0]] or "", recipe.mapping)
        counting = sorted(contributing.of(block, holders))
    giving = [one.name for one in _each(sources[names[position]] for position in counting)]
    whose = "none" if not giving else f"that of {giving[0]}" if len(giving) == 1 else f"one made of {_listed(giving)}"
    _warn(f"{_files(_each(lacking))}: no {part.title}{_hidden(part, lacking, layout)}; {result} has {whose}")


def _warn_of_uncompared(checkpoint: TensorSource, layout: Layout) -> None:
    for part in _drawn_from(layout):
        if _first_of(part, checkpoint, layout) is None:
            block = part.block if isinstance(part, TextEncoder) else None
            others = [one for one in layout.text_encoders if one.block == block]
            what = f"so {block} is not compared" if len(others) == 1 else f"so {block} is compared without it"
            what = what if part.scores else "which similarities leave out anyway"
            _warn(f"{checkpoint.label}: no {part.title}{_hidden(part, [checkpoint], layout)}, {what}")


def _warn_of_sampling(layout: Layout, first: TensorSource, others: Iterable[TensorSource], follows: str) -> None:
    """Warn of files that are to be sampled otherwise than the first."""
    expected = read_prediction(first, layout)
    for one in others:
        found = read_prediction(one, layout)
        if not found.agrees(expected):
            _warn(f"{one.label}: {found.describe()}, but {first.label} {expected.describe()}; {follows}")
        if (difference := found.schedule_difference(expected)) is not None:
            by = "in their lengths" if math.isinf(difference) else f"by up to {difference:.2g} in alphas_cumprod"
            _warn(
                f"{one.label}: its noise schedule ({_origin(found, layout)}) differs from that of {first.label} "
                f"({_origin(expected, layout)}) {by}; {follows}"
            )


def _origin(prediction: Prediction, layout: Layout) -> str:
    return "in the file" if prediction.stored else f"that of {layout.title}, as it holds none"


def _first_of(part: ModelPart, checkpoint: TensorSource, layout: Layout) -> str | None:
    """The name of a tensor that belongs to this part, None if there is none."""
    return next((name for name in checkpoint.tensors if part.holds(name) and layout.merges(name)), None)


def _hidden(part: ModelPart, checkpoints: Iterable[TensorSource], layout: Layout) -> str:
    """What to say of a text encoder that may be there under a name that is not known; nothing of other parts."""
    end = part.tokens_behind() if isinstance(part, TextEncoder) and part.tokens is not None else None
    if end is None:
        return ""
    for one in checkpoints:
        if name := next((name for name in one.tensors if name.endswith(end) and not layout.expects(name)), None):
            return f" under a name that is known ({name!r} may be of one)"
    return ""


def _each(checkpoints: Iterable[TensorSource]) -> list[TensorSource]:
    """The checkpoints, each file once: a recipe may know one by two names."""
    return list({one.label: one for one in checkpoints}.values())


def _files(checkpoints: Iterable[TensorSource]) -> str:
    return _listed([one.label for one in checkpoints])


def _some(names: Iterable[str]) -> str:
    return _listed([repr(name) for name in names])


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_LISTED
    return ", ".join(texts[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
