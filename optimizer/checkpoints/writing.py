"""Files that are either written completely or not at all: safetensors, streamed, and any small file.

Everything goes to a hidden temporary file in the target's own folder, reaches the disk, and then takes the target's
place in one step. Whatever fails before that step leaves an existing target as it was, and no temporary file behind.
What a kill leaves behind, the next writing to that folder removes.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock

import torch

from optimizer.checkpoints.header import SAFETENSORS_HEADER_LIMIT
from optimizer.checkpoints.links import check_output
from optimizer.checkpoints.presence import is_folder
from optimizer.checkpoints.reading import SAFETENSORS_DTYPES, raw_bytes
from optimizer.checkpoints.temporaries import Temporary
from optimizer.errors import CheckpointError, InputError

__all__ = [
    "SafetensorsWriter",
    "TensorSpec",
    "atomic_path",
    "check_writable",
    "replace_text",
    "safetensors_writer",
    "write_safetensors",
]

_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
# No space, quota used up, or larger than this file system (or the process's limit) lets a file be.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class TensorSpec:
    """What a safetensors header says about one tensor, known before the tensor is."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the tensor's data in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a safetensors file, holding one tensor of `tensors` at a time.

    `specs` says beforehand what will come; `tensors` gives (name, tensor) pairs, each name once, in any order
    (the order of `specs` writes the disk front to back). In the file, tensors keep the order of `specs`, larger element
    types first, so that each one is aligned to its element size. `progress` is called after each tensor with the
    number of bytes that it added.

    Raises CheckpointError if the folder is missing or not writable, the disk is or becomes full, or the old file cannot
    be replaced; ValueError if `specs`, `tensors` and `metadata` do not fit together or cannot be stored. An error that
    `tensors` raises passes through. In every case an existing file at `path` is untouched.
    """
    expected = {spec.name: spec for spec in specs}
    with safetensors_writer(path, specs, metadata) as file:
        for name, tensor in tensors:
            if name not in expected:
                raise ValueError(f"{path}: tensor {name!r} was not announced, or came twice")
            spec = expected.pop(name)
            if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                raise ValueError(
                    f"{path}: tensor {name!r} was announced as {spec.dtype} {list(spec.shape)}, "
                    f"but is {tensor.dtype} {list(tensor.shape)}"
                )
            file.write(name, tensor)
            if progress is not None:
                progress(spec.nbytes)
        if expected:
            raise ValueError(f"{path}: {len(expected)} announced tensors did not come, {next(iter(expected))!r} first")


@contextmanager
def safetensors_writer(
    path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> Iterator["SafetensorsWriter"]:
    """Give a writer for the tensors that `specs` announce; the file takes its place at `path` when the block succeeds.

    Tensors keep the order of `specs` in the file, larger element types first. Threads that write must have ended when
    the block does.

    Raises CheckpointError and ValueError as `write_safetensors` does, errors of the block pass through, and in every
    case an existing file at `path` is untouched.

        with safetensors_writer(path, [TensorSpec("m", torch.float16, (1000, 3))], {}) as file:
            file.write("m", last, start=1500)
            file.write("m", first)
    """
    header = _header(path, specs, metadata)
    offsets: dict[str, int] = {}
    end = len(header)
    for spec in _aligned(specs):
        offsets[spec.name] = end
        end += spec.nbytes
    with (
        _replacing(path, suffix=".tmp", error=CheckpointError, needed=end) as temporary,
        temporary.open("wb", buffering=0) as file,
    ):
        _write_all(file, header)
        writer = SafetensorsWriter(path, file, specs, offsets)
        yield writer
        writer.check_complete()


class SafetensorsWriter:
    """A safetensors file whose tensors come in pieces, in any order, from any thread; made by `safetensors_writer`."""

    def __init__(self, path: Path, file: FileIO, specs: Iterable[TensorSpec], offsets: Mapping[str, int]) -> None:
        self._path = path
        self._file = file
        self._specs = {spec.name: spec for spec in specs}
        self._offsets = offsets
        self._missing = {name: spec.nbytes for name, spec in self._specs.items()}
        self._lock = Lock()

    def write(self, name: str, data: torch.Tensor, start: int = 0) -> None:
        """Write `data`, of the announced dtype and any shape, as the elements of `name` from number `start` on.

        Raises ValueError if that is not what was announced; OSError, which `safetensors_writer` explains, if the disk
        does not take it.
        """
        spec = self._specs[name]
        begin, size = start * spec.dtype.itemsize, data.numel() * spec.dtype.itemsize
        if data.dtype != spec.dtype or not 0 <= begin <= begin + size <= spec.nbytes:
            raise ValueError(
                f"{self._path}: tensor {name!r} was announced as {spec.dtype} {list(spec.shape)}, "
                f"but {data.numel()} elements of {data.dtype} came from number {start} on"
            )
        content = raw_bytes(data).numpy().data
        # One handle and a lock cost nothing: the system, too, lets one thread at a time write to a file.
        with self._lock:
            self._missing[name] -= size
            self._file.seek(self._offsets[name] + begin)
            _write_all(self._file, content)

    def check_complete(self) -> None:
        """Raise ValueError, naming the first tensor concerned, unless as much was written as was announced."""
        for name, missing in self._missing.items():
            if missing:
                raise ValueError(f"{self._path}: {missing:,} bytes of tensor {name!r} did not come, or came twice")


def _write_all(file: FileIO, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path, with the suffix of `path`, to write to; it replaces `path` when the block succeeds.

    A symbolic link stays, and what it leads to is replaced; in the folder of a study it is refused (`check_output`).

    Raises InputError if the folder is missing or not writable, the disk becomes full, or the old file cannot be
    replaced; other errors of the block pass through. In every case an existing file at `path` is untouched.

        with atomic_path(Path("plot.png")) as temporary:
            figure.savefig(temporary)
    """
    path = Path(path)
    with _replacing(path, suffix=path.suffix, error=InputError, needed=None) as temporary:
        yield temporary


def check_writable(folder: Path) -> None:
    """Raise InputError if no file can be made in `folder`, so that it is known before there is anything to write."""
    # Trying is the only way to know that holds for every kind of disk, share and access list.
    probe = Temporary(Path(folder), "")
    try:
        probe.path.touch(exist_ok=False)
    except OSError as error:
        raise InputError(
            f"{folder}: the folder cannot be written to ({error.strerror}); copy what is in it to one that can be"
        ) from error
    finally:
        probe.close()


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, its line ends as given, or not at all. Raises as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _aligned(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    # safetensors allows no gaps, and element sizes are powers of two: from large to small every offset fits.
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def _header(path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise ValueError(f"{path}: safetensors metadata must map text to text")
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in _aligned(specs):
        if spec.name in fields or spec.name == "__metadata__":
            raise ValueError(f"{path}: tensor name {spec.name!r} is reserved or given twice")
        if spec.dtype not in _SAFETENSORS_NAMES:
            raise ValueError(f"{path}: tensor {spec.name!r} is {spec.dtype}, which safetensors cannot hold")
        fields[spec.name] = {
            "dtype": _SAFETENSORS_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    # "replace": file names in metadata may hold bytes that were never valid text; safetensors takes UTF-8 only.
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    if len(text) > SAFETENSORS_HEADER_LIMIT:
        raise ValueError(f"{path}: names and metadata take {len(text):,} bytes; {SAFETENSORS_HEADER_LIMIT:,} can be")
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _replacing(path: Path, *, suffix: str, error: type[InputError], needed: int | None) -> Iterator[Path]:
    # A link is followed, but for one in a study's folder: its target is what gets replaced, in the folder (and on the
    # disk) where it really lies.
    try:
        check_output(path)
    except InputError as refused:
        raise error(refused.problems) from None
    target = Path(os.path.realpath(path))
    folder = target.parent
    if not is_folder(folder):
        raise error(f"{path}: the folder {folder} does not exist; create it first")
    if is_folder(target):
        raise error(f"{path}: a folder of this name exists; give a file name")
    try:
        intact = "; the old file is intact" if target.exists() else ""
    except OSError as problem:  # no file can have this name: told before all is written under another
        raise error(f"{path}: cannot be written: {problem.strerror}") from None
    if needed is not None and shutil.disk_usage(folder).free < needed:
        raise error(_disk_full(path, folder, needed) + intact)
    claimed = Temporary(folder, suffix)
    temporary = claimed.path
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        if target.exists():
            with suppress(OSError):
                shutil.copymode(target, temporary)
        try:
            temporary.replace(target)
        except PermissionError as failure:
            raise error(
                f"{path}: cannot be replaced ({failure.strerror}): it is write-protected, or another program "
                f"has it open; close that program and try again{intact}"
            ) from failure
        _sync_folder(folder)
    except OSError as failure:
        if failure.errno in _DISK_FULL:
            raise error(_disk_full(path, folder, needed) + intact) from failure
        if failure.errno in _NOT_ALLOWED and str(failure.filename) == str(temporary):
            raise error(f"{path}: the folder {folder} cannot be written to ({failure.strerror})") from failure
        raise
    finally:
        claimed.close()


def _disk_full(path: Path, folder: Path, needed: int | None) -> str:
    free = f"{shutil.disk_usage(folder).free:,}"
    room = f"{free} bytes are free" if needed is None else f"{needed:,} bytes are needed, {free} are free"
    return f"{path}: the disk is full or the file too large for it: {room}"


def _sync_folder(folder: Path) -> None:
    # Makes the renaming itself survive a power cut, where folders can be opened (not on Windows).
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
