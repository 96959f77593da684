"""Connected components: items that hang together because they touch the same."""

from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Item", "Touched", "connected"]

Item = TypeVar("Item")
Touched = TypeVar("Touched", bound=Hashable)


def connected(items: Iterable[tuple[Item, Iterable[Touched]]]) -> list[tuple[list[Item], set[Touched]]]:
    """Return groups of the items (item, what it touches) that touch the same, directly or by way of others.

    Each group comes with all that its items touch. Groups are in the order of their last items, the items of a group in
    the order in which they are given.
    """
    given = [(item, set(touching)) for item, touching in items]
    edges = [(row, each) for row, (_, touching) in enumerate(given) for each in touching]
    columns = {each: len(given) + place for place, each in enumerate(dict.fromkeys(each for _, each in edges))}
    nodes = len(given) + len(columns)
    ends = [row for row, _ in edges], [columns[each] for _, each in edges]
    graph = coo_array((np.ones(len(edges)), ends), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    found: dict[int, tuple[list[Item], set[Touched]]] = {}
    for (item, touching), label in zip(given, labels.tolist()[: len(given)], strict=True):
        # Taken out and put back: the order is that of the last items.
        joined, touched = found.pop(label, ([], set()))
        found[label] = [*joined, item], touched | touching
    return list(found.values())
