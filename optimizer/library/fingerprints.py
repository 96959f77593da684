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

_EDGE = 2048  # bytes that a fingerprint takes from either end of a tensor
_BUFFER = 4 << 20  # bytes that are hashed at a time
_CACHE_VERSION = 1  # raise it whenever `fingerprint` changes


class HashCache:
    """Hashes by a file's resolved path, size and times of change, kept in one small JSON file.

    A cache file that is missing, broken or cannot be written is as good as an empty one. So is one in a folder that
    other users may write into, with a BlockfitWarning: hashes are believed. Processes that write at the same time may
    lose each other's newest entries, never more.
    """

    def __init__(self, file: Path) -> None:
        self.file = Path(file)

    def look_up(self, path: Path, kind: str, state: dict[str, int] | None = None) -> str | None:
        """The hash of this kind (`sha256`, `fingerprint`) of the file at `path`, or None.

        Of the file as it was when its size and times of change were `state`; default: as it is now.
        """
        with suppress(OSError):
            entry = self._entries().get(os.path.realpath(path), {})
            value = entry.get(kind)
            wanted = _state(FileState.of(path)) if state is None else state
            if all(entry.get(key) == given for key, given in wanted.items()) and isinstance(value, str):
                return value
        return None

    def store(self, path: Path, kind: str, value: str, state: dict[str, int]) -> None:
        """Remember a hash of the file at `path`, computed when its size and times of change were `state`."""
        with suppress(OSError, InputError):
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_own():
                return
            entries, key = self._entries(), os.path.realpath(path)
            entry = entries.get(key, {})
            if any(entry.get(name) != now for name, now in state.items()):
                entry = {}
            entries[key] = entry | state | {kind: value}
            replace_text(self.file, json.dumps({"version": _CACHE_VERSION, "files": entries}, indent=1))

    def _entries(self) -> dict[str, dict[str, str | int]]:
        if not self._is_own():
            return {}
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict) or data.get("version") != _CACHE_VERSION:
            return {}
        files = data.get("files")
        return {k: v for k, v in files.items() if isinstance(v, dict)} if isinstance(files, dict) else {}

    def _is_own(self) -> bool:
        """Whether no other user may write into the folder; one that is not there yet is made for this user alone."""
        if sys.platform == "win32":  # users have folders of their own there
            return True
        try:
            status = self.file.parent.stat()
        except OSError:
            return True
        # The superuser may write everywhere, and works in the folders of others in containers.
        trusted = os.geteuid() == 0 or status.st_uid in (0, os.geteuid())
        if trusted and not status.st_mode & stat.S_IWOTH:
            return True
        warnings.warn(
            f"{self.file.parent}: other users may write into this folder, so hashes are neither taken from it nor kept "
            "there; name a folder of your own (BLOCKFIT_CACHE)",
            BlockfitWarning,
            stacklevel=2,
        )
        return False


def fingerprint(source: TensorSource, cache: HashCache | None = None) -> str:
    """Return the identity of a source's tensors, whatever they are stored in: 64 hexadecimal digits.

    sha256 over, for each canonical name in sorted order: name, dtype, shape, and the first and last 2048 bytes of the
    data. Training and merging change every tensor throughout, so this tells models apart after reading some megabytes
    instead of gigabytes. It is no protection against somebody who changes the middle of a tensor on purpose.

    It is that of the source as it was opened, whatever lies at its path by now; `cache` keeps those of files. Raises
    CheckpointError if the source was written to since.
    """
    # Tensors that depend on more than one file have another state.
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
        # A small tensor is read once.
        whole = source.tensor(name).reshape(-1) if info.count <= 2 * edge else None
        for start, stop in ((0, min(edge, info.count)), (max(0, info.count - edge), info.count)):
            elements = source.read(name, start, stop) if whole is None else whole[start:stop]
            digest.update(raw_bytes(elements).numpy().data)
    source.check_intact()
    if cache and file:
        cache.store(file, "fingerprint", digest.hexdigest(), state)
    return digest.hexdigest()


def sha256(path: Path, cache: HashCache | None = None, *, progress: Callable[[int, int], None] | None = None) -> str:
    """The sha256 of the file at `path`: 64 hexadecimal digits. Raises CheckpointError if it cannot be read.

    `progress` is told the bytes hashed and their total; never, if the cache knows the hash.
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
    """The hash that people quote (AutoV2): the first 10 digits of the file's sha256."""
    return sha256[:10]


def legacy_hash(path: Path) -> str:
    """The WebUI's old hash: 8 digits, of the 64 KiB after the first MiB; other files may have the same.

    Raises CheckpointError if the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(0x100000)
            return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def default_cache_folder() -> Path:
    """Return the folder that keeps hashes: BLOCKFIT_CACHE if set, else `blockfit` in the system's folder for caches."""
    chosen = os.environ.get("BLOCKFIT_CACHE")
    if chosen:
        return Path(chosen)
    return user_cache_path("blockfit", appauthor=False, opinion=False)


def _state(state: FileState) -> dict[str, int]:
    # Not the inode: some network drives give others every time. A file that was put in another's place, with its time
    # (cp -p, rsync), has that size and modification time, but not when it was last changed.
    return {"size": state.size, "mtime_ns": state.mtime_ns, "ctime_ns": state.ctime_ns}
