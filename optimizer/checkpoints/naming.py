"""Canonical names of a source's tensors. Several spellings have one canonical name, and a file may hold two of them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from optimizer.checkpoints.source import TensorInfo
from optimizer.errors import CheckpointError
from optimizer.families import Layout

__all__ = ["named_tensors"]

_Info = TypeVar("_Info", bound=TensorInfo)


def named_tensors(
    label: str, stored: Iterable[_Info], layout: Layout | None, equal: Callable[[_Info, _Info], bool]
) -> tuple[dict[str, _Info], tuple[str, ...]]:
    """Return the tensors by their canonical names, and the stored names that are passed over.

    Of two spellings of one tensor, the layout's own counts.

    Args:
        label: Name of the source in messages.
        stored: All tensors of the source by their stored names, in order.
        layout: Layout with the canonical names; without one the stored names stay.
        equal: Function that returns whether two tensors hold the same values.

    Returns:
        The tensors by canonical name, and the stored names of tensors that no tool reads.

    Raises:
        CheckpointError: Two spellings have different values, and tools disagree which one they read.
    """
    tensors: dict[str, _Info] = {}
    passed_over: list[str] = []
    for info in stored if layout is None else (_renamed(each, layout) for each in stored):
        first = tensors.setdefault(info.name, info)
        if first is info or equal(first, info):
            continue
        canonical, second = (first, info) if first.stored_name == first.name else (info, first)
        yields = layout is not None and layout.yields(second.stored_name)
        if canonical.stored_name != canonical.name or not yields:
            raise CheckpointError(
                f"{label}: {first.stored_name!r} and {info.stored_name!r} are two spellings of one tensor, "
                "but their values differ; remove one of them"
            )
        tensors[canonical.name] = canonical
        passed_over.append(second.stored_name)
    return tensors, tuple(passed_over)


def _renamed(info: _Info, layout: Layout) -> _Info:
    name = layout.canonical(info.stored_name)
    return replace(info, name=name, shape=layout.shape_of(name, info.shape))
