"""Identities of checkpoints: of their tensors (`fingerprint`) and of their files (`sha256`), with a cache for both."""

import hashlib
import json
import os
import stat
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from optimizer.checkpoints import FileState, TensorSource, raw_bytes
from optimizer.errors import BlockfitWarning, CheckpointError, InputError
from optimizer.files import replace_text

__all__ = ["HashCache", "default_cache_folder", "fingerprint", "legacy_hash", "sha256", "short_hash"]

_EDGE = 2048  # bytes of a fingerprint from each end of a tensor
_BUFFER = 4 << 20  # bytes hashed at a time
_CACHE_VERSION = 1  # to be raised whenever `fingerprint` changes


class HashCache:
    """A cache of hashes in one small JSON file, by the resolved path, the size and the times of change of each file.

    A cache file that is missing, broken or not writable counts as empty. So does one in a folder that other users may
    write into, with a BlockfitWarning, since cached hashes are trusted. Processes that write at the same time may lose
    each other's newest entries, but no others.

    Args:
        file: The JSON file.
    """

    def __init__(self, file: Path) -> None:
        self.file = Path(file)

    @classmethod
    def of_user(cls) -> "HashCache":
        """Return the cache in `default_cache_folder`, which all commands share."""
        return cls(default_cache_folder() / "hashes.json")

    def look_up(self, path: Path, kind: str, state: dict[str, int] | None = None) -> str | None:
        """Return the cached hash of a file.

        Args:
            path: The file.
            kind: "sha256" or "fingerprint".
            state: The size in bytes and the times of change in ns that the file must have had. Default: the present.

        Returns:
            64 hexadecimal digits; None if the cache does not hold the hash.
        """
        with suppress(OSError):
            entry = self._entries().get(os.path.realpath(path), {})
            value = entry.get(kind)
            expected = _state(FileState.of(path)) if state is None else state
            if all(entry.get(key) == number for key, number in expected.items()) and isinstance(value, str):
                return value
        return None

    def store(self, path: Path, kind: str, value: str, state: dict[str, int]) -> None:
        """Store the hash of a file; errors are ignored.

        Args:
            path: The file.
            kind: "sha256" or "fingerprint".
            value: 64 hexadecimal digits.
            state: The size in bytes and the times of change in ns when the hash was computed.
        """
        with suppress(OSError, InputError):
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_trusted():
                return
            entries, key = self._entries(), os.path.realpath(path)
            entry = entries.get(key, {})
            if any(entry.get(name) != now for name, now in state.items()):
                entry = {}
            entries[key] = entry | state | {kind: value}
            replace_text(self.file, json.dumps({"version": _CACHE_VERSION, "files": entries}, indent=1))

    def _entries(self) -> dict[str, dict[str, str | int]]:
        if not self._is_trusted():
            return {}
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict) or data.get("version") != _CACHE_VERSION:
            return {}
        files = data.get("files")
        return {k: v for k, v in files.items() if isinstance(v, dict)} if isinstance(files, dict) else {}

    def _is_trusted(self) -> bool:
        """Return whether no other user may write into the folder; a missing one will be private to this user."""
        if sys.platform == "win32":  # folders of users are private there
            return True
        try:
            status = self.file.parent.stat()
        except OSError:
            return True
        # The superuser may write everywhere anyway, and in containers uses the folders of others.
        trusted = os.geteuid() == 0 or status.st_uid in (0, os.geteuid())
        if trusted and not status.st_mode & stat.S_IWOTH:
            return True
        warnings.warn(
            f"{self.file.parent}: other users may write into this folder, so hashes are neither read from it nor "
            "written there; name a folder of your own (BLOCKFIT_CACHE)",
            BlockfitWarning,
            stacklevel=2,
        )
        return False


def fingerprint(source: TensorSource, cache: HashCache | None = None) -> str:
    """Return the identity of a source's tensors, independent of the file format.

    The fingerprint is the SHA-256 over name, dtype, shape and the first and last 2048 bytes of each tensor, in sorted
    order of the canonical names. Training and merging change every tensor throughout, so a few megabytes are enough to
    distinguish models. It does not protect against a deliberate change in the middle of a tensor.

    It is that of the source as opened, even if another file has its path now. Raises CheckpointError if the source was
    written to since.

    Args:
        source: The source.
        cache: A cache of the fingerprints of files.

    Returns:
        64 hexadecimal digits.
    """
    # Only a source that is one file has a FileState.
    file = source.path if isinstance(source.state, FileState) else None
    state = _state(source.state) if isinstance(source.state, FileState) else {}
    known = cache.look_up(file, "fingerprint", state) if cache and file else None
    if known is not None:
        return known
    digest = hashlib.sha256()
    for name in sorted(source.tensors):
        info = source.tensors[name]
        digest.update(json.dumps([name, str(info.dtype).removeprefix("torch."), info.shape]).encode())
        edge = _EDGE // info.dtype.itemsize
        # The ends of a small tensor overlap, so it is read once as a whole.
        whole = source.tensor(name).reshape(-1) if info.count <= 2 * edge else None
        for start, stop in ((0, min(edge, info.count)), (max(0, info.count - edge), info.count)):
            elements = source.read(name, start, stop) if whole is None else whole[start:stop]
            digest.update(raw_bytes(elements).numpy().data)
    source.check_intact()
    if cache and file:
        cache.store(file, "fingerprint", digest.hexdigest(), state)
    return digest.hexdigest()


def sha256(path: Path, cache: HashCache | None = None, *, progress: Callable[[int, int], None] | None = None) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: The file.
        cache: A cache of hashes.
        progress: Called with the bytes hashed and their total, unless the hash is cached.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: The file cannot be read.
    """
    known = cache.look_up(path, "sha256") if cache else None
    if known is not None:
        return known
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
    try:
        with Path(path).open("rb", buffering=0) as file:
            before = FileState.of(file.fileno())
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if progress is not None:
                    progress(file.tell(), before.size)
            unchanged = FileState.of(file.fileno()) == before
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if cache and unchanged:
        cache.store(path, "sha256", digest.hexdigest(), _state(before))
    return digest.hexdigest()


def short_hash(sha256: str) -> str:
    """Return the short hash that people quote (AutoV2): the first 10 digits of the file's SHA-256."""
    return sha256[:10]


def legacy_hash(path: Path) -> str:
    """Return the WebUI's old hash of a file, from the 64 KiB after the first MiB. Different files may share it.

    Args:
        path: The file.

    Returns:
        8 hexadecimal digits.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(0x100000)
            return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def default_cache_folder() -> Path:
    """Return the folder of cached hashes: BLOCKFIT_CACHE if set, else `blockfit` in the system's folder for caches."""
    chosen = os.environ.get("BLOCKFIT_CACHE")
    if chosen:
        return Path(chosen)
    return user_cache_path("blockfit", appauthor=False, opinion=False)


def _state(state: FileState) -> dict[str, int]:
    # The inode is left out, since some network drives report a new one each time. A file that replaces another with the
    # same size and modification time (cp -p, rsync) still has another time of change.
    return {"size": state.size, "mtime_ns": state.mtime_ns, "ctime_ns": state.ctime_ns}
