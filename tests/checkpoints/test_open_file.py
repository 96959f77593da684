"""Checkpoints whose files are deleted, replaced, written to or truncated while they are open."""

import io
import os
import shutil
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from optimizer.checkpoints import check_unchanged, open_checkpoint
from optimizer.checkpoints.selection import SelectedTensors
from optimizer.errors import CheckpointError
from optimizer.library import HashCache, fingerprint, sha256

FORMATS = ["safetensors", "zip", "legacy"]
VALUES = torch.arange(100_000, dtype=torch.float32)
AN_HOUR = 3_600_000_000_000

anywhere_but_windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows protects files that are in use")
pytestmark = anywhere_but_windows


def write(path, kind, values=VALUES):
    """Write a checkpoint with one tensor, dated an hour ago: file systems resolve times to milliseconds only."""
    if kind == "safetensors":
        save_file({"m": values}, path)
    else:
        torch.save({"m": values}, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "packed":
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", 8) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
    age(path)
    return path


def age(path):
    """Set a file's time back by an hour."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - AN_HOUR))


def overwrite(path):
    """Write other numbers of the same size into a file."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(content) // 2)
        file.write(bytes(1000))


def cut(path):
    """Truncate a file."""
    os.truncate(path, 1000)


def replace(path):
    """Put another file in the place of a file."""
    replacement = path.with_suffix(".other")
    shutil.copy2(path, replacement)
    overwrite(replacement)
    age(replacement)
    replacement.replace(path)


def delete(path):
    """Delete a file."""
    path.unlink()


CHANGES = {
    overwrite: "was changed",
    cut: "was changed",
    replace: "was replaced by another file",
    delete: "was deleted or moved",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", FORMATS)
def test_changes_are_reported(tmp_path, kind, change):
    """A change is reported permanently, in one line with advice; an unchanged file reports none."""
    path = write(tmp_path / "a", kind)
    with open_checkpoint(path) as checkpoint, open_checkpoint(path) as second:
        assert checkpoint.change_since_open() is None
        check_unchanged([checkpoint, second])
        change(path)

        assert checkpoint.change_since_open() == CHANGES[change]
        with pytest.raises(CheckpointError) as caught:
            check_unchanged([checkpoint, second])

    assert caught.value.problems == (f"{path}: {CHANGES[change]} while it was being read; run again",)


@pytest.mark.parametrize("change", [overwrite, cut])
@pytest.mark.parametrize("kind", FORMATS)
def test_changed_mapped_file_is_not_read(tmp_path, kind, change):
    """No tensor of a changed mapped file is read: its numbers would differ, or reading would end the process."""
    path = write(tmp_path / "a", kind)
    with open_checkpoint(path) as checkpoint, SelectedTensors(checkpoint, {"new": "m"}) as some:
        change(path)

        for read in (lambda: checkpoint.tensor("m"), lambda: some.tensor("new"), checkpoint.check_intact):
            with pytest.raises(CheckpointError, match="a: was changed while it was being read; run again"):
                read()
        with pytest.raises(CheckpointError, match="was changed"):
            fingerprint(checkpoint)


@pytest.mark.parametrize("change", [replace, delete])
@pytest.mark.parametrize("kind", FORMATS)
def test_deleted_or_replaced_file_is_still_read(tmp_path, kind, change):
    """A deleted or replaced file is still read unchanged, and has its own fingerprint, with a cache or without."""
    cache = HashCache(tmp_path / "cache.json")
    path = write(tmp_path / "a", kind)
    with open_checkpoint(path) as checkpoint:
        expected = fingerprint(checkpoint)
    with open_checkpoint(path) as checkpoint:
        change(path)
        if change is replace:
            with open_checkpoint(path) as replacement:
                assert fingerprint(replacement, cache) == fingerprint(replacement, cache)

        assert torch.equal(checkpoint.tensor("m"), VALUES)
        checkpoint.check_intact()
        assert fingerprint(checkpoint, cache) == expected
        assert fingerprint(checkpoint, cache) == expected


@pytest.mark.parametrize("change", [overwrite, cut])
def test_unpacked_archive_does_not_change(tmp_path, change):
    """An unpacked archive is in memory: later changes to the file change nothing."""
    path = write(tmp_path / "a", "packed")
    with open_checkpoint(path) as checkpoint:
        change(path)

        checkpoint.check_intact()
        assert torch.equal(checkpoint.tensor("m"), VALUES)


def test_file_that_comes_back_is_the_same(tmp_path):
    """A file that was moved away and back is the one that was opened."""
    path = write(tmp_path / "a", "safetensors")
    with open_checkpoint(path) as checkpoint:
        path.rename(tmp_path / "b")
        assert checkpoint.change_since_open() == "was deleted or moved"
        (tmp_path / "b").rename(path)

        assert checkpoint.change_since_open() is None


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize("kind", FORMATS)
def test_files_are_released(tmp_path, kind):
    """A closed checkpoint holds no file open, nor does one that could not be opened."""
    path, broken = write(tmp_path / "a", kind), tmp_path / "broken"
    broken.write_bytes(path.read_bytes()[:1000])
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for _ in range(3):
        with open_checkpoint(path) as checkpoint, SelectedTensors(checkpoint, {"new": "m"}):
            pass
        with pytest.raises(CheckpointError):
            open_checkpoint(broken)

    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_hash_of_a_changing_file_is_not_cached(tmp_path):
    """The hash of a file that changes meanwhile is not cached."""
    cache = HashCache(tmp_path / "cache.json")
    path = write(tmp_path / "a", "safetensors")

    sha256(path, cache, progress=lambda done, total: overwrite(path))
    age(path)

    assert not cache.file.exists()
    assert cache.look_up(path, "sha256") is None
