"""Fingerprints, file hashes and their cache."""
# The programs started here are written by the tests.

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from processes import start_code
from safetensors.torch import save_file

from optimizer.checkpoints import open_checkpoint
from optimizer.errors import BlockfitWarning, CheckpointError
from optimizer.library import HashCache, default_cache_folder, fingerprint, legacy_hash, sha256, short_hash


def fingerprint_of(path, cache=None):
    """Return the fingerprint of the file at `path`."""
    with open_checkpoint(path) as checkpoint:
        return fingerprint(checkpoint, cache)


class TestFingerprint:
    """The identity of tensors."""

    def test_the_fingerprint_is_its_definition(self, tmp_path):
        """A fingerprint is the SHA-256 over name, dtype, shape and both ends of each tensor, in the order of names."""
        save_file(
            {"b": torch.arange(1024.0), "a": torch.tensor(7, dtype=torch.uint8)},  # 4096 bytes: exactly two ends
            tmp_path / "a.safetensors",
        )
        numbers = torch.arange(1024.0).numpy().tobytes()

        expected = hashlib.sha256(b'["a", "uint8", []]' + b"\x07\x07" + b'["b", "float32", [1024]]' + numbers)
        assert expected.hexdigest() == fingerprint_of(tmp_path / "a.safetensors")

    def test_equal_tensors_have_the_same_fingerprint(self, tmp_path, write_sd1):
        """Format, order, metadata and the spelling of the text encoder's names do not change the fingerprint."""
        text = "cond_stage_model.transformer."
        tensors = write_sd1(tmp_path / "a.safetensors")
        write_sd1(tmp_path / "b.safetensors", metadata={"title": "x"}, rename={text + "text_model.": text})
        write_sd1(tmp_path / "c.ckpt")
        torch.save(dict(reversed(tensors.items())), tmp_path / "d.pt", _use_new_zipfile_serialization=False)

        assert len({fingerprint_of(path) for path in tmp_path.iterdir()}) == 1

    def test_different_tensors_have_another_fingerprint(self, tmp_path, write_sd1):
        """Another value at either end, dtype, shape, name or set of tensors changes the fingerprint."""
        name = "model.diffusion_model.input_blocks.0.0.weight"
        value = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)).repeat(8, 1, 1, 1)
        first, last = value.clone(), value.clone()
        first[0, 0, 0, 0] += 1
        last[-1, -1, -1, -1] += 1
        for number, changed in enumerate((value, first, last, value.half(), value.reshape(32, 8, 3, 3))):
            write_sd1(tmp_path / f"{number}.safetensors", overrides={name: changed})
        write_sd1(tmp_path / "less.safetensors", overrides={name: value}, vae=False)
        write_sd1(tmp_path / "renamed.safetensors", overrides={name: value}, rename={"first_stage_model": "vae"})

        assert len({fingerprint_of(path) for path in tmp_path.iterdir()}) == 7


class TestSha256:
    """The identity of files."""

    def test_the_hash_is_that_of_hashlib(self, tmp_path):
        """A file larger than the buffer has the hash of hashlib, and the short hash is its beginning."""
        content = os.urandom(5_000_001)
        (tmp_path / "a").write_bytes(content)
        expected = hashlib.sha256(content).hexdigest()

        assert expected == sha256(tmp_path / "a")
        assert expected[:10] == short_hash(expected)

    def test_a_missing_file_is_named(self, tmp_path):
        """An unreadable file raises a CheckpointError that names it."""
        with pytest.raises(CheckpointError, match=r"missing\.ckpt: cannot be read"):
            sha256(tmp_path / "missing.ckpt")


def as_it_is(path):
    """Return the state by which a cache identifies a file."""
    status = path.stat()
    changed = 0 if sys.platform == "win32" else status.st_ctime_ns
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": changed}


class TestHashCache:
    """The cache of hashes."""

    def test_hashes_are_remembered(self, tmp_path, write_sd1):
        """Another cache object finds both hashes, through another spelling of the path too, without computing them."""
        path = tmp_path / "a.safetensors"
        write_sd1(path)
        cache = HashCache(tmp_path / "cache" / "hashes.json")
        values = sha256(path, cache), fingerprint_of(path, cache)
        again = HashCache(cache.file)
        detour = tmp_path / "cache" / ".." / "a.safetensors"

        assert values == (again.look_up(detour, "sha256"), again.look_up(path, "fingerprint"))

    def test_a_cached_hash_is_used(self, tmp_path, write_sd1):
        """The cached hash is returned while the file is unchanged."""
        path = tmp_path / "a.safetensors"
        write_sd1(path)
        cache = HashCache(tmp_path / "hashes.json")
        cache.store(path, "sha256", "remembered", as_it_is(path))

        assert sha256(path, cache) == "remembered"

    @pytest.mark.parametrize("same_size", [True, False])
    def test_a_changed_file_is_hashed_again(self, tmp_path, same_size):
        """A file with another size or modification time is hashed again."""
        path, cache = tmp_path / "a", HashCache(tmp_path / "hashes.json")
        path.write_bytes(b"old")
        sha256(path, cache)
        path.write_bytes(b"new" if same_size else b"newer")
        os.utime(path, ns=(0, path.stat().st_mtime_ns + (10**9 if same_size else 0)))

        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256(path, cache)
        assert sha256(path, cache) == HashCache(cache.file).look_up(path, "sha256")

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no time of the last change")
    @pytest.mark.parametrize("by", ["written into", "put in its place"])
    def test_a_replaced_file_of_the_same_size_and_time_is_hashed_again(self, tmp_path, by):
        """A replaced file with the same size and modification time, as after `cp -p`, is hashed again."""
        path, cache = tmp_path / "a", HashCache(tmp_path / "hashes.json")
        path.write_bytes(b"old")
        sha256(path, cache)
        before = path.stat()
        if by == "written into":
            path.write_bytes(b"new")
        else:
            (tmp_path / "b").write_bytes(b"new")
            (tmp_path / "b").replace(path)
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # times of files have a resolution of a few milliseconds
            path.chmod(0o644)
        assert path.stat().st_mtime_ns == before.st_mtime_ns

        assert sha256(path, cache) == hashlib.sha256(b"new").hexdigest()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff",
            b"[]",
            b'{"version": 1, "files": []}',
            b'{"version": 1, "files": {"PATH": 3}}',
            b"[" * 9999,
        ],
    )
    def test_a_broken_cache_is_replaced(self, tmp_path, content):
        """A broken cache file is ignored and replaced."""
        path, cache = tmp_path / "a", HashCache(tmp_path / "hashes.json")
        path.write_bytes(b"x")
        cache.file.write_bytes(content.replace(b"PATH", json.dumps(str(path)).strip('"').encode()))
        expected = hashlib.sha256(b"x").hexdigest()

        assert expected == sha256(path, cache)
        assert expected == cache.look_up(path, "sha256")

    def test_an_unwritable_cache_stops_no_hashing(self, tmp_path):
        """Files are hashed even if the cache cannot be written."""
        (tmp_path / "a").write_bytes(b"x")
        cache = HashCache(tmp_path / "a" / "hashes.json")  # a file has the place of the folder

        assert hashlib.sha256(b"x").hexdigest() == sha256(tmp_path / "a", cache)

    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
    def test_a_cache_that_all_may_write_is_not_trusted(self, tmp_path):
        """A cache that every user may write is not trusted, and no link in its folder is followed."""
        (tmp_path / "a").write_bytes(b"x")
        folder = tmp_path / "shared"
        folder.mkdir()
        cache = HashCache(folder / "hashes.json")
        cache.store(tmp_path / "a", "sha256", "0" * 64, as_it_is(tmp_path / "a"))
        assert cache.look_up(tmp_path / "a", "sha256") == "0" * 64
        cache.file.rename(tmp_path / "victim")
        before = (tmp_path / "victim").read_bytes()
        cache.file.symlink_to(tmp_path / "victim")
        folder.chmod(0o1777)

        with pytest.warns(BlockfitWarning, match="shared: other users may write into this folder"):
            assert sha256(tmp_path / "a", cache) == hashlib.sha256(b"x").hexdigest()

        assert (tmp_path / "victim").read_bytes() == before

    @pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="gives a folder to another user")
    def test_a_cache_of_another_user_is_not_trusted(self):
        """A cache in another user's folder is not trusted."""
        program = """
import os, sys, warnings
from pathlib import Path
from optimizer.library import HashCache
warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
for owner in (65534, 12345, 0):
    os.chown(folder, owner, owner)
    folder.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        print(HashCache(folder / "hashes.json").look_up(folder / "a", "sha256"), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
        with tempfile.TemporaryDirectory() as name:  # other users cannot enter pytest's own folders
            folder = Path(name)
            (folder / "a").write_bytes(b"x")
            HashCache(folder / "hashes.json").store(folder / "a", "sha256", "0" * 64, as_it_is(folder / "a"))
            out, err = start_code(program, name).communicate()

        assert not err
        assert out.split() == ["0" * 64, "None", "0" * 64]

    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
    def test_a_new_folder_is_private(self, tmp_path):
        """A new folder of the cache is private to this user."""
        (tmp_path / "a").write_bytes(b"x")
        tmp_path.chmod(0o777)
        cache = HashCache(tmp_path / "cache" / "hashes.json")

        sha256(tmp_path / "a", cache)

        assert cache.file.parent.stat().st_mode & 0o777 == 0o700
        assert cache.look_up(tmp_path / "a", "sha256") == hashlib.sha256(b"x").hexdigest()


class TestDefaultCacheFolder:
    """The folder of the cache."""

    def test_the_environment_chooses_the_folder(self, monkeypatch, tmp_path):
        """BLOCKFIT_CACHE has precedence."""
        monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path))

        assert tmp_path == default_cache_folder()

    @pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the XDG convention")
    @pytest.mark.parametrize(("xdg", "expected"), [("/caches", "/caches/blockfit"), ("", "/home/me/.cache/blockfit")])
    def test_the_default_folder_is_that_of_xdg(self, monkeypatch, xdg, expected):
        """Without BLOCKFIT_CACHE the folder is in XDG_CACHE_HOME or ~/.cache; an empty variable counts as unset."""
        monkeypatch.setenv("BLOCKFIT_CACHE", "")
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        monkeypatch.setenv("HOME", "/home/me")

        assert Path(expected) == default_cache_folder()


@pytest.mark.parametrize("size", [5 << 20, (1 << 20) + 100, 100])
def test_the_old_hash_covers_64_kib(tmp_path, size):
    """The old hash covers the 64 KiB after the first MiB, or less in a shorter file."""
    data = bytes(n * n % 251 for n in range(997)) * (size // 997 + 1)
    (tmp_path / "a").write_bytes(data[:size])

    expected = hashlib.sha256(data[:size][1024 * 1024 : 1024 * 1024 + 65536]).hexdigest()[:8]
    assert legacy_hash(tmp_path / "a") == expected
    with pytest.raises(CheckpointError, match="cannot be read"):
        legacy_hash(tmp_path / "none")


def test_hashing_reports_progress(tmp_path):
    """Progress runs up to the file's size; for a cached hash there is none."""
    path, cache, reported = tmp_path / "a", HashCache(tmp_path / "hashes.json"), []
    path.write_bytes(bytes(9 << 20))

    for _ in range(2):
        sha256(path, cache, progress=lambda done, total: reported.append((done, total)))

    assert reported == [(4 << 20, 9 << 20), (8 << 20, 9 << 20), (9 << 20, 9 << 20)]
