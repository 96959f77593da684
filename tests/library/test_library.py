"""A library finds checkpoints by name and by hash, and tells who asked what it reads for that."""

import hashlib

import pytest

from optimizer.errors import CheckpointError
from optimizer.events import CallbackEvents
from optimizer.library import HashCache, Library

CONTENT = b"not a checkpoint, but a file of this name"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path):
    """A folder of models with one file."""
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "deep" / "one.safetensors").write_bytes(CONTENT)
    return tmp_path / "store"


def test_files_are_found_by_name_and_hash(store, tmp_path):
    """A name, its hash or both lead to the file; the hash is kept, and what is read is told."""
    told = []
    events = CallbackEvents(progress=lambda what, done, total: told.append((what, done, total)))
    library = Library((store,), HashCache(tmp_path / "cache" / "hashes.json"), events)
    path = store / "deep" / "one.safetensors"

    assert library.find("one") == path
    assert told == []
    assert library.find(DIGEST[:10], tmp_path) == path
    assert told == [(f"hashing to find {DIGEST[:10]}", len(CONTENT), len(CONTENT))]
    assert library.sha256(path) == DIGEST
    assert len(told) == 1, "the hash is known now"


def test_what_is_missing_is_named_with_where_it_was_looked_for(store, tmp_path):
    """All models at once: those that are there by name, a line for each that is not, with names that are near."""
    library = Library.of([store])
    found, problems = library.find_models({"a": "one", "b": "onne"}, tmp_path, named_in="recipe.yaml")
    assert found == {"a": store / "deep" / "one.safetensors"}
    (problem,) = problems
    assert problem.startswith("recipe.yaml: models.b.file: 'onne' not found")
    assert "one.safetensors" in problem
    assert str(store) in problem
    with pytest.raises(CheckpointError, match=r"models\.b\.file"):
        library.all_models({"a": "one", "b": "onne"}, tmp_path)
    assert library.within(()).find("one", tmp_path) is None
    assert library.within(()).find("one", store / "deep") is not None
