"""Connected components: items grouped by the things that they touch."""

from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np
import scipy  # loads its modules on first use

__all__ = ["Item", "Touched", "connected"]

Item = TypeVar("Item")
Touched = TypeVar("Touched", bound=Hashable)


def connected(items: Iterable[tuple[Item, Iterable[Touched]]]) -> list[tuple[list[Item], set[Touched]]]:
    """Return the items in groups; two items share a group if they touch the same thing directly or through other items.

    Args:
        items: Pairs of an item and the things that it touches.

    Returns:
        For each group its items, in the given order, and all things that they touch. Groups are ordered by their last
        items.
    """
    given = [(item, set(touching)) for item, touching in items]
    edges = [(row, thing) for row, (_, touching) in enumerate(given) for thing in touching]
    columns = {thing: len(given) + place for place, thing in enumerate(dict.fromkeys(thing for _, thing in edges))}
    nodes = len(given) + len(columns)
    ends = [row for row, _ in edges], [columns[thing] for _, thing in edges]
    graph = scipy.sparse.coo_array((np.ones(len(edges)), ends), shape=(nodes, nodes))
    _, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    found: dict[int, tuple[list[Item], set[Touched]]] = {}
    for (item, touching), label in zip(given, labels.tolist()[: len(given)], strict=True):
        # Removed and inserted again, so that the groups are in the order of their last items.
        joined, touched = found.pop(label, ([], set()))
        found[label] = [*joined, item], touched | touching
    return list(found.values())
