"""Items are grouped by the things that they touch."""

from hypothesis import given
from hypothesis import strategies as st

from optimizer.samplers import connected


@given(st.lists(st.frozensets(st.integers(0, 9), max_size=3), max_size=9))
def test_groups_are_the_connected_components(touching):
    """Two items are in one group if and only if a path of shared things connects them."""
    near = [
        {second for second, those in enumerate(touching) if these & those} | {first}
        for first, these in enumerate(touching)
    ]
    for _ in touching:
        near = [set().union(*(near[item] for item in reached)) for reached in near]

    found = connected(enumerate(touching))

    assert {tuple(items) for items, _ in found} == {tuple(sorted(reached)) for reached in near}
    assert [items[-1] for items, _ in found] == sorted(max(items) for items, _ in found)
    for items, touched in found:
        assert touched == set().union(*(touching[item] for item in items))


def test_an_item_joins_groups_in_their_order():
    """An item that joins two groups is the last of the joint group, after all their items in the given order."""
    assert connected([("a", "x"), ("b", "y"), ("c", ""), ("d", "yx")]) == [
        (["c"], set()),
        (["a", "b", "d"], {"x", "y"}),
    ]
