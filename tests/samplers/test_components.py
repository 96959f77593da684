"""Groups of what hangs together."""

from hypothesis import given
from hypothesis import strategies as st

from optimizer.samplers import connected


@given(st.lists(st.frozensets(st.integers(0, 9), max_size=3), max_size=9))
def test_groups_are_what_paths_join(touching):
    """Two items are in one group if and only if a path of shared things leads from one to the other."""
    near = [
        {other for other, those in enumerate(touching) if these & those} | {one} for one, these in enumerate(touching)
    ]
    for _ in touching:
        near = [set().union(*(near[other] for other in reached)) for reached in near]

    found = connected(enumerate(touching))

    assert {tuple(items) for items, _ in found} == {tuple(sorted(reached)) for reached in near}
    assert [items[-1] for items, _ in found] == sorted(max(items) for items, _ in found)
    for items, touched in found:
        assert touched == set().union(*(touching[item] for item in items))


def test_items_of_several_groups_are_joined_in_their_order():
    """An item that joins two groups comes last in the group that they become, behind all of theirs in their order."""
    assert connected([("a", "x"), ("b", "y"), ("c", ""), ("d", "yx")]) == [
        (["c"], set()),
        (["a", "b", "d"], {"x", "y"}),
    ]
