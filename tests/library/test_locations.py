"""Checkpoints found by name, by hash or by both, the files read for that, and the messages if none fits."""

import hashlib
import os
import sys
import warnings
from pathlib import Path

import pytest

from optimizer.errors import BlockfitWarning, CheckpointError, InputError, RecipeError, StudyError
from optimizer.library import (
    HashCache,
    Library,
    check_folders,
    name_without_hash,
)
from optimizer.recipes import load_recipe
from optimizer.studies import load_study


def write(path: Path, content: bytes) -> str:
    """Write a file and return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder with three checkpoints in subfolders, two of one name, and another file."""
    write(tmp_path / "store" / "a" / "one.safetensors", b"1")
    write(tmp_path / "store" / "a" / "two.ckpt", b"2")
    write(tmp_path / "store" / "b" / "two.ckpt", b"another 2")
    write(tmp_path / "store" / "a" / "notes.txt", b"1")
    return tmp_path / "store"


@pytest.fixture
def hashes(tmp_path: Path) -> HashCache:
    """An empty cache."""
    return HashCache(tmp_path / "hashes.json")


ONE = hashlib.sha256(b"1").hexdigest()
OTHER = hashlib.sha256(b"another 2").hexdigest()


@pytest.mark.parametrize(
    "file",
    [
        f"one [{ONE[:10]}]",
        f"one.safetensors [{ONE[:10]}]",
        f"one.safetensors [{ONE[:10].upper()}]",
        f"one[{ONE}]",
        f"a\\one.safetensors [{ONE[:10]}]",
        f"[{ONE[:10]}]",
        ONE[:10],
        ONE,
        f"renamed since [{ONE[:10]}]",
    ],
)
def test_a_file_is_found_by_its_hash(tmp_path: Path, store: Path, file: str) -> None:
    """A checkpoint is found by the WebUI's notation and by its hash alone, even if it was renamed."""
    assert Library.of([store]).find(file, tmp_path) == store / "a" / "one.safetensors"


def test_several_files_of_one_name_are_refused(tmp_path: Path, store: Path) -> None:
    """Two files of one name in two folders are refused and listed; a folder or a hash selects one."""
    with pytest.raises(CheckpointError) as caught:
        Library.of([store]).find("two", tmp_path)

    (problem,) = caught.value.problems
    assert str(store / "a" / "two.ckpt") in problem
    assert str(store / "b" / "two.ckpt") in problem
    assert Library.of([store]).find("b/two", tmp_path) == store / "b" / "two.ckpt"
    assert Library.of([store]).find(f"two [{OTHER[:10]}]", tmp_path) == store / "b" / "two.ckpt"
    assert Library.of([store / "b", store]).find("two", tmp_path) == store / "b" / "two.ckpt"


def test_equal_copies_are_one(tmp_path: Path, store: Path, hashes: HashCache) -> None:
    """Files of one name and content count as one; files that differ in size or in one byte do not."""
    content = bytes(range(256)) * 2048
    for folder in "abc":
        write(store / folder / "same.safetensors", content)
    changed = content[:200_000] + b"?" + content[200_001:]

    assert Library.of([store], hashes).find("same", tmp_path) == store / "a" / "same.safetensors"
    assert hashes.look_up(store / "b" / "same.safetensors", "sha256") == hashlib.sha256(content).hexdigest()
    write(store / "b" / "same.safetensors", changed)
    write(store / "d" / "same.safetensors", content + b"longer")
    reported: list[str] = []
    with pytest.raises(CheckpointError) as caught:
        Library.of([store], hashes, lambda what, *_: reported.append(what)).find("same", tmp_path)
    listed = ", ".join(str(store / folder / "same.safetensors") for folder in "abd")
    assert f"'same': 3 files have this name: {listed}; name the folder" in caught.value.problems[0]
    assert set(reported) == {"comparing the files called same.safetensors"}


def test_only_files_that_may_be_equal_are_hashed(tmp_path: Path, store: Path, hashes: HashCache) -> None:
    """Files that differ in size, or at their beginning, middle or end, are distinguished without a hash."""
    content = bytes(1 << 20)
    for number, (folder, place) in enumerate((("a", 0), ("b", 1 << 19), ("c", (1 << 20) - 1))):
        changed = bytearray(content)
        changed[place] = number + 1
        write(store / folder / "large.ckpt", bytes(changed))
    write(store / "d" / "large.ckpt", content[:-1])

    with pytest.raises(CheckpointError, match="'large': 4 files have this name"):
        Library.of([store], hashes).find("large", tmp_path)

    assert not hashes.file.exists()


def test_a_file_with_another_hash_is_refused(tmp_path: Path, store: Path) -> None:
    """A file of the name with another hash is refused with both hashes, short or whole as given."""
    with pytest.raises(CheckpointError, match=f"one.safetensors: has the hash {ONE[:10]}, not 0123456789") as caught:
        Library.of([store]).find("one [0123456789]", tmp_path)
    with pytest.raises(CheckpointError, match=f"has the hash {ONE}, not {OTHER}"):
        Library.of([store]).find(f"one [{OTHER}]", tmp_path)
    with pytest.raises(CheckpointError) as both:
        Library.of([store]).find("two [0123456789]", tmp_path)

    assert len(caught.value.problems) == 1
    assert len(both.value.problems) == 2


def test_only_files_of_the_name_are_hashed(tmp_path: Path, store: Path, hashes: HashCache) -> None:
    """With a name, only the file of that name is hashed, with progress, and its hash is cached."""
    reported: list[tuple[str, int, int]] = []

    Library.of([store], hashes, lambda *what: reported.append(what)).find(f"one [{ONE[:10]}]", tmp_path)

    assert hashes.look_up(store / "a" / "one.safetensors", "sha256") == ONE
    assert hashes.look_up(store / "a" / "two.ckpt", "sha256") is None
    assert reported == [(f"hashing to find {ONE[:10]}", 1, 1)]


def test_cached_hashes_are_trusted(tmp_path: Path, store: Path, hashes: HashCache) -> None:
    """A cached hash is trusted, and no file is read for it."""
    path = store / "b" / "two.ckpt"
    state = path.stat()
    changed = 0 if sys.platform == "win32" else state.st_ctime_ns
    known = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": changed}
    hashes.store(path, "sha256", "f" * 64, known)
    reported: list[str] = []

    found = Library.of([store], hashes, lambda what, *_: reported.append(what)).find("f" * 10, tmp_path)

    assert found == path
    assert reported == []


def test_reading_stops_at_the_first_match(tmp_path: Path, store: Path, hashes: HashCache) -> None:
    """Without a name, checkpoints are hashed one after the other until one fits; other files never are."""
    two = hashlib.sha256(b"2").hexdigest()

    assert Library.of([store], hashes).find(two[:10], tmp_path) == store / "a" / "two.ckpt"
    assert hashes.look_up(store / "b" / "two.ckpt", "sha256") is None
    assert Library.of([store], hashes).find("0123456789", tmp_path) is None
    assert hashes.look_up(store / "b" / "two.ckpt", "sha256") == OTHER
    assert hashes.look_up(store / "a" / "notes.txt", "sha256") is None


def test_a_name_comes_before_a_hash(tmp_path: Path, store: Path) -> None:
    """A file with the name of a hash is found by that name, with any content."""
    write(tmp_path / f"{ONE[:10]}.safetensors", b"something else")
    write(tmp_path / "x [0123456789].ckpt", b"something else")

    assert Library.of([store]).find(ONE[:10], tmp_path) == tmp_path / f"{ONE[:10]}.safetensors"
    assert Library.of([store]).find("x [0123456789]", tmp_path) == tmp_path / "x [0123456789].ckpt"


def test_an_old_hash_is_accepted_with_a_warning(tmp_path: Path, store: Path) -> None:
    """The old hash of 8 digits is accepted with a warning if only one file has it; otherwise the files are listed."""
    content = bytes(0x100000) + b"part" * 0x4000 + b"end"
    old = hashlib.sha256(b"part" * 0x4000).hexdigest()[:8]
    write(store / "a" / "old.ckpt", content)

    with pytest.warns(BlockfitWarning, match=old):
        assert Library.of([store]).find(old, tmp_path) == store / "a" / "old.ckpt"
    with pytest.warns(BlockfitWarning, match=old):
        assert Library.of([store]).find(f"old [{old}]", tmp_path) == store / "a" / "old.ckpt"
    write(store / "b" / "later.ckpt", content + b"of another")
    with pytest.raises(CheckpointError, match=r"2 files have this old hash: .*old.ckpt.*later.ckpt"):
        Library.of([store]).find(f"[{old}]", tmp_path)
    write(store / "b" / "later.ckpt", content)
    with pytest.warns(BlockfitWarning, match=old):
        assert Library.of([store]).find(f"[{old}]", tmp_path) == store / "a" / "old.ckpt"
    with pytest.raises(CheckpointError, match=f"has the old hash [0-9a-f]{{8}}, not {old}"):
        Library.of([store]).find(f"one [{old}]", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that even root cannot read")
def test_unreadable_files_stop_no_search(tmp_path: Path, store: Path) -> None:
    """An unreadable file stops no search by hash alone; under a given name it is reported with the reason."""
    old = hashlib.sha256(b"part").hexdigest()[:8]
    write(store / "b" / "old.ckpt", bytes(0x100000) + b"part")
    (store / "a" / "aaa.safetensors").symlink_to("/proc/self/mem")
    (store / "a" / "aab.safetensors").symlink_to(tmp_path / "gone.safetensors")

    assert Library.of([store]).find(ONE[:10], tmp_path) == store / "a" / "one.safetensors"
    assert Library.of([store]).find("0123456789", tmp_path) is None
    with pytest.warns(BlockfitWarning, match=old):
        assert Library.of([store]).find(old, tmp_path) == store / "b" / "old.ckpt"
    for name, digits in (("aaa", ONE[:10]), ("aaa", old), ("aab", ONE[:10])):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: cannot be read: "):
            Library.of([store]).find(f"{name} [{digits}]", tmp_path)


def test_statistics_are_never_found_as_a_checkpoint(tmp_path: Path, store: Path) -> None:
    """The statistics in a study's folder are never found as a checkpoint, by no hash."""
    digest = write(store / "a" / "statistics.safetensors", b"of a study")

    assert Library.of([store]).find(digest, store / "a") is None


def test_names_too_long_for_a_file_are_not_found(tmp_path: Path, store: Path) -> None:
    """A name too long for any file is not found, without another error."""
    assert Library.of([store]).find("x" * 300, tmp_path) is None
    with pytest.raises(CheckpointError, match="x: no such file"):
        Library.of([store]).find_given(Path("x" * 300))


def test_hashes_of_other_lengths_are_refused(tmp_path: Path, store: Path) -> None:
    """A hash of another length is refused."""
    with pytest.raises(CheckpointError, match="a hash of 12 digits"):
        Library.of([store]).find("one [0123456789ab]", tmp_path)


def test_files_are_located_all_at_once(tmp_path: Path, store: Path) -> None:
    """Every problem has a line with its model; found files are returned nevertheless."""
    files = {"a": "one", "b": "two", "c": "one [0123456789]", "d": "gone"}

    found, problems = Library.of([store]).find_models(files, tmp_path, named_in="recipe.yaml")

    assert found == {"a": store / "a" / "one.safetensors"}
    assert [problem.split(".file: ")[0] for problem in problems] == [f"recipe.yaml: models.{name}" for name in "bcd"]


def test_an_existing_path_has_precedence(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing path has precedence; the message for a missing one lists the folders searched."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "two.ckpt", b"here")

    assert Library.of([store]).find_given(Path("two.ckpt")) == Path("two.ckpt")
    assert Library.of([store]).find_given(Path("one")) == store / "a" / "one.safetensors"
    assert Library.of([store]).find_given(store) == store
    (tmp_path / "one").mkdir()
    assert Library.of([store]).find_given(Path("one")) == store / "a" / "one.safetensors"
    assert Library().find_given(Path("one")) == Path("one")
    with pytest.raises(CheckpointError, match=r"lost: no such file; looked in .*store, too"):
        Library.of([store]).find_given(Path("lost"))
    with pytest.raises(CheckpointError, match=r"two.safetensors: no such file, but 'two.ckpt' exists; `folders="):
        Library().find_given(Path("two.safetensors"))
    with pytest.raises(CheckpointError, match="0123456789: no file has this name or hash"):
        Library.of([store]).find_given(Path("0123456789"))


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("dreamshaper8", "'DreamShaper_8_pruned.safetensors' or 'dreamshaper_7.ckpt'"),
        ("Dreamshaper-7.safetensors", "'dreamshaper_7.ckpt' or 'DreamShaper_8_pruned.safetensors'"),
        ("sub/dreamshapr_7", "'dreamshaper_7.ckpt' or 'DreamShaper_8_pruned.safetensors'"),
        ("dreamshapr_7 [0123456789]", "'dreamshaper_7.ckpt' or 'DreamShaper_8_pruned.safetensors'"),
        ("epicRealism", "'epicrealism_newEra.sft'"),
        ("nothing like it", None),
        ("0123456789", None),
    ],
)
def test_near_names_are_suggested(tmp_path: Path, asked: str, offered: str | None) -> None:
    """For a missing file at most three similar names from all folders are suggested."""
    models = tmp_path / "models"
    for name in (
        "DreamShaper_8_pruned.safetensors",
        "sub/dreamshaper_7.ckpt",
        "deep/er/epicrealism_newEra.sft",
        "x.txt",
    ):
        write(models / name, name.encode())
    suggestion = "" if offered is None else f"; did you mean {offered}?"

    with pytest.raises(CheckpointError) as caught:
        Library.of([models]).find_given(Path(asked))
    _, (problem,) = Library.of([models]).find_models({"a": asked}, tmp_path / "recipes", named_in="r.yaml")

    assert f"{suggestion}; looked in {models}, too" in caught.value.problems[0]
    assert "did you mean" not in caught.value.problems[0].replace(suggestion, "")
    assert problem == (
        f"r.yaml: models.a.file: {asked!r} not found{suggestion}; looked in {tmp_path / 'recipes'} (no such folder), "
        f"{models}"
    )


def test_near_names_of_texts_are_suggested(tmp_path: Path) -> None:
    """For a missing recipe or other text, texts beside it and folders with a study are suggested, no checkpoints."""
    write(tmp_path / "recipe.yaml", b"")
    write(tmp_path / "recipe.safetensors", b"")
    write(tmp_path / "my-study" / "study.yaml", b"")

    with pytest.raises(CheckpointError, match=r"recip.yaml: no such file; did you mean 'recipe.yaml'\?"):
        Library().find_given(tmp_path / "recip.yaml")
    with pytest.raises(RecipeError, match=r"recipe.yml: no such file, but 'recipe.yaml' exists"):
        load_recipe(tmp_path / "recipe.yml")
    with pytest.raises(StudyError, match=r"my_stdy: no such file; did you mean 'my-study'\?"):
        load_study(tmp_path / "my_stdy")
    with pytest.raises(StudyError, match=r"study.yaml: no such file: the folder .* does not exist"):
        load_study(tmp_path / "none" / "study.yaml")


def test_near_names_are_found_quickly(tmp_path: Path) -> None:
    """Folders with hundreds of checkpoints are listed once for each missing name, without reading a file."""
    for number in range(500):
        write(tmp_path / "models" / f"{number % 20}" / f"some_model_with_a_long_name-{number:03}.safetensors", b"x")

    with pytest.raises(CheckpointError) as caught:
        Library.of([tmp_path / "models"]).all_models(
            {str(n): f"some_modl_with_a_long_name-{n}" for n in (100, 250)}, tmp_path
        )

    assert [problem.count("did you mean") for problem in caught.value.problems] == [1, 1]
    assert "'some_model_with_a_long_name-250.safetensors'" in caught.value.problems[1]


def test_missing_folders_are_reported(tmp_path: Path, store: Path) -> None:
    """A missing folder is reported with similar names; a file given as a folder is reported as a file."""
    check_folders([store, store / "a"])

    with pytest.raises(InputError) as caught:
        check_folders([tmp_path / "stroe", store / "a" / "two.ckpt", tmp_path / "stroe"])

    assert caught.value.problems == (
        f"{tmp_path / 'stroe'}: no such folder; did you mean 'store'?",
        f"{store / 'a' / 'two.ckpt'}: is a file; name the folder that contains it",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_linked_folders_are_searched_once(tmp_path: Path, store: Path) -> None:
    """Linked folders are searched once, in circles too; a file and a link to it count as one."""
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "far.ckpt", b"far")
    (store / "link").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(store)
    (store / "a" / "far.ckpt").symlink_to(elsewhere / "far.ckpt")

    found = Library.of([store]).find("far", tmp_path)

    assert found is not None
    assert os.path.realpath(found) == str(elsewhere / "far.ckpt")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.safetensors", "a.safetensors"),
        ("a.safetensors [0123456789]", "a.safetensors"),
        ("b/a [b]", "b/a [b]"),
        ("[0123456789]", ""),
    ],
)
def test_the_appended_hash_is_not_part_of_the_name(file: str, name: str) -> None:
    """The hash that the WebUI appends is not part of the name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert name_without_hash(file) == name
