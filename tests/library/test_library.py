"""A library finds checkpoints by name and by hash, and reports progress."""

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
    """A name, a hash or both find the file; the hash is cached, and progress is reported."""
    reported = []
    events = CallbackEvents(progress=lambda what, done, total: reported.append((what, done, total)))
    library = Library((store,), HashCache(tmp_path / "cache" / "hashes.json"), events)
    path = store / "deep" / "one.safetensors"

    assert library.find("one") == path
    assert reported == []
    assert library.find(DIGEST[:10], tmp_path) == path
    assert reported == [(f"hashing to find {DIGEST[:10]}", len(CONTENT), len(CONTENT))]
    assert library.sha256(path) == DIGEST
    assert len(reported) == 1, "the hash is known now"


def test_missing_models_are_named_with_the_folders_searched(store, tmp_path):
    """Found models have paths; each missing one has a line with similar names and the folders searched."""
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
