"""The notes of a fit are read field by field and written back unchanged, also those of other programs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.recipes import Fitted, FittedPrompts, FittedSearch, FittedTarget

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("by", "version", "recipe", "target", "base", "complete", "searches", "other_random_inputs", "candidate",
        "simplified", "explained", "name", "seeds", "prompts", "file", "sha256", "from", "theirs")  # fmt: skip
STRANGE = st.dictionaries(
    st.sampled_from(KEYS),
    PLAIN | st.dictionaries(st.sampled_from(KEYS), PLAIN, max_size=4)
    | st.lists(st.dictionaries(st.sampled_from(KEYS), PLAIN, max_size=4), max_size=3),
    max_size=8,
)  # fmt: skip
WRITTEN = {
    "by": "blockfit",
    "version": "0.1.0",
    "recipe": "recipe.yaml",
    "target": {"file": "t.safetensors", "sha256": "ab"},
    "base": "base",
    "complete": True,
    "searches": [
        {"name": "s", "step": "T", "metric": "encoder", "strategy": "joint", "blocks": "BASE",
         "prompts": {"file": "mine.txt", "sha256": "cd"}, "clip_skip": 2, "trials": 6, "best_trial": 4,
         "similarity": 0.5},
    ],
}  # fmt: skip


@settings(deadline=None)
@given(STRANGE)
def test_strange_notes_are_read_and_written_as_they_were(data):
    """Arbitrary notes are read without an error and written back unchanged."""
    fitted = Fitted.from_data(data)
    assert fitted.to_data() == data
    assert list(fitted.to_data()) == list(data)
    for key in fitted.problems:
        assert fitted.problems[key].startswith("received ")


@settings(deadline=None)
@given(STRANGE)
def test_noting_changes_its_own_keys_alone(data):
    """A new value replaces any old one, and None removes it."""
    noted = Fitted.from_data(data).noting(base="b", other_random_inputs=None)
    assert noted.to_data() == {**{k: v for k, v in data.items() if k != "other_random_inputs"}, "base": "b"}
    assert noted.base == "b"


def test_records_are_written_in_the_order_of_a_fit():
    """Notes made from records have the keys of best.yaml, in the same order."""
    search = FittedSearch(
        name="s", step="T", metric="encoder", strategy="joint", blocks="BASE", trials=6, best_trial=4, similarity=0.5,
        prompts=FittedPrompts(file="mine.txt", sha256="cd"), clip_skip=2,
    )  # fmt: skip
    fitted = Fitted(
        by="blockfit", version="0.1.0", recipe="recipe.yaml", target=FittedTarget(file="t.safetensors", sha256="ab"),
        base="base", complete=True, searches=(search,),
    )  # fmt: skip
    data = fitted.to_data()
    assert data == WRITTEN
    assert (list(data), list(data["searches"][0])) == (list(WRITTEN), list(WRITTEN["searches"][0]))
    assert fitted == Fitted.from_data(WRITTEN)


def test_invalid_values_are_named():
    """A value that no fit writes counts as missing, and `problems` names the values allowed."""
    search = FittedSearch.from_data({"name": 3, "similarity": 7, "seeds": [True], "clip_skip": 0, "step": "T"})
    assert (search.name, search.similarity, search.seeds, search.clip_skip, search.step) == (
        None,
        None,
        None,
        None,
        "T",
    )
    assert search.problems == {
        "name": "received 3; must be text, as a fit writes it",
        "similarity": "received 7; must be a number in [-1, 1]",
        "seeds": "received [True]; must be one or more whole numbers, at least 0",
        "clip_skip": "received 0; must be a whole number, at least 1",
    }
