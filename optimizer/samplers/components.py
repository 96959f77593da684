"""Connected components: what hangs together because it touches the same."""

from collections.abc import Hashable, Iterable
from typing import TypeVar

__all__ = ["Item", "Touched", "connected"]

Item = TypeVar("Item")
Touched = TypeVar("Touched", bound=Hashable)


def connected(items: Iterable[tuple[Item, Iterable[Touched]]]) -> list[tuple[list[Item], set[Touched]]]:
    """Items (item, what it touches) that touch the same, directly or by way of others, with all that they touch.

    In the order in which each component got its last item, the items in theirs.
    """
    found: list[tuple[list[Item], set[Touched]]] = []
    for item, touching in items:
        joined, touched = [item], set(touching)
        for other in [entry for entry in found if entry[1] & touched]:
            found.remove(other)
            joined, touched = other[0] + joined, touched | other[1]
        found.append((joined, touched))
    return found
