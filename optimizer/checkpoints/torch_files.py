"""The two containers that `torch.save` has written: zip archives (torch 1.6 and later), and sequences of pickles.

Their pickles are followed, never run (`pickles`). This module finds the place of each storage in the file, and checks
that the whole storage is there. Numbers are mapped into memory as stored, or unpacked if another program compressed the
archive.
"""

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from lzma import LZMAError
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

import torch

from optimizer.checkpoints.pickles import PickleRefused, Storage, StoredTensor, follow_pickle
from optimizer.errors import CheckpointError

__all__ = ["TorchFile", "read_torch_pickles", "read_torch_zip"]

_MOST_UNPACKED = 20  # times the size of a zip archive; weights hardly compress
_ENCRYPTED = 1  # a bit of a zip entry's flags
_LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name
_BYTE_ORDERS = (b"little", b"big")
# First two pickles of the older files: this number, then this version.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class TorchFile:
    """Contents of a file of `torch.save`, with the numbers of its tensors.

    Attributes:
        content: The contents, as `follow_pickle` returns them.
        mapped: Whether numbers stay in the file until they are used.
        data: Bytes of each storage by key, uint8 [bytes].
        starts: Start of each storage in the file, in bytes, by key; empty unless the file holds the numbers
            uncompressed.
        big_endian: Whether the numbers are big-endian.
    """

    content: object
    mapped: bool
    data: Mapping[str, torch.Tensor]
    starts: Mapping[str, int]
    big_endian: bool = False

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """Return the numbers of a tensor of the contents.

        Args:
            stored: The tensor.

        Returns:
            The tensor, contiguous, perhaps in memory shared with the file.
        """
        if not prod(stored.shape):
            return torch.empty(stored.shape, dtype=stored.dtype)
        data = self.data[stored.storage.key][: stored.storage.nbytes]
        if self.big_endian:
            data = data.reshape(-1, _component(stored.dtype)).flip(1).reshape(-1)
        elif data.storage_offset() % stored.dtype.itemsize:
            data = data.clone()  # operations need aligned numbers
        numbers = data.view(stored.dtype)
        return numbers.as_strided(stored.shape, stored.strides, numbers.storage_offset() + stored.offset).contiguous()

    def offset(self, stored: StoredTensor) -> int | None:
        """Return the start of a tensor's elements in the file, in bytes.

        Args:
            stored: A tensor of the contents.

        Returns:
            The offset; None unless the elements lie in the file in one piece and little-endian.
        """
        start = self.starts.get(stored.storage.key)
        if start is None or self.big_endian or not stored.is_contiguous:
            return None
        return start + stored.offset * stored.dtype.itemsize


def read_torch_zip(path: Path, size: int) -> TorchFile:
    """Read a zip archive of `torch.save`; raise CheckpointError if it is broken or refused.

    Args:
        path: Path of the file.
        size: Size of the file, in bytes.

    Returns:
        The contents.
    """
    with _checkpoint_errors(path), zipfile.ZipFile(path) as archive:
        return _read_archive(path, size, archive)


def read_torch_pickles(path: Path, size: int) -> TorchFile:
    """Read an older file of `torch.save`, a sequence of pickles.

    Args:
        path: Path of the file.
        size: Size of the file, in bytes.

    Returns:
        The contents.

    Raises:
        CheckpointError: The file is broken or refused.
    """
    # Mapped, because a broken length would make `read` allocate as much memory.
    with (
        _checkpoint_errors(path),
        path.open("rb") as opened,
        mmap(opened.fileno(), 0, access=ACCESS_READ) as file,
    ):
        magic, _ = follow_pickle(file)
        if magic != _MAGIC:
            raise CheckpointError(f"{path}: not a checkpoint: a pickle, but not one of torch.save")
        version, _ = follow_pickle(file)
        if version != _VERSION:
            raise CheckpointError(f"{path}: not a checkpoint: a torch file of the unknown version {version!r:.40}")
        follow_pickle(file)  # a description of the machine that wrote it
        content, storages = follow_pickle(file)
        keys, _ = follow_pickle(file)
        starts = _storages_behind(file, storages, keys, size)
    whole = _mapped(path, size)
    data = {key: whole[start : start + storages[key].nbytes] for key, start in starts.items()}
    return TorchFile(content, True, data, starts)


@contextmanager
def _checkpoint_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a broken or refused file into a CheckpointError with its path."""
    try:
        yield
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, zlib.error, LZMAError, struct.error, EOFError) as error:
        raise CheckpointError(
            f"{path}: truncated or broken: its zip archive cannot be read ({_first_line(error)}); download it again"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: truncated or broken: {_first_line(error)}; download it again") from error
    except PickleRefused as refusal:
        refused = CheckpointError(f"{path}: refused: its pickle {refusal}; ask for a .safetensors file")
        raise refused from None


def _read_archive(path: Path, size: int, archive: zipfile.ZipFile) -> TorchFile:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if not pickles:
        inside = ", ".join(list(entries)[:3]) or "nothing"
        raise CheckpointError(f"{path}: not a checkpoint: a zip archive that holds {inside}; unpack it first")
    _check_entries(path, size, archive.infolist(), pickles)
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise CheckpointError(f"{path}: refused: a TorchScript program; ask for a .safetensors file")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in entries else b"little"
    if order not in _BYTE_ORDERS:
        raise ValueError(f"its byte order is {order[:20]!r}, neither little nor big")
    content, storages = follow_pickle(BytesIO(archive.read(pickles[0])))
    held: dict[str, zipfile.ZipInfo] = {}
    for key, storage in storages.items():
        entry = entries.get(f"{folder}data/{key}")
        if entry is None:
            raise ValueError(f"the numbers of storage {key[:40]!r} are not in it")
        if storage.nbytes > entry.file_size:
            raise ValueError(
                f"storage {key[:40]!r} is announced with {storage.nbytes:,} bytes, but has {entry.file_size:,}"
            )
        held[key] = entry
    # An archive that another program compressed is unpacked in memory.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        unpacked = {key: _unpacked(archive, entry) for key, entry in held.items()}
        return TorchFile(content, False, unpacked, {}, big_endian=order == b"big")
    with path.open("rb") as file:
        starts = {key: _start(file, entry, size) for key, entry in held.items()}
    whole = _mapped(path, size)
    data = {key: whole[start : start + storages[key].nbytes] for key, start in starts.items()}
    return TorchFile(content, True, data, starts, big_endian=order == b"big")


def _check_entries(path: Path, size: int, entries: list[zipfile.ZipInfo], pickles: list[str]) -> None:
    """Raise for an archive that unpacks to much more than its size, or that programs may read in two ways."""
    packed, unpacked = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    if unpacked > max(_MOST_UNPACKED * packed, 1 << 20):
        raise CheckpointError(
            f"{path}: refused: a zip archive of {packed:,} bytes that unpacks to {unpacked:,}; "
            "weights cannot be packed so tightly; ask for a .safetensors file"
        )
    if packed > size:
        raise ValueError("the entries of its zip archive overlap")
    twice = [name for name, count in Counter(entry.filename for entry in entries).items() if count > 1]
    if twice or len(pickles) > 1:
        raise ValueError(f"its zip archive holds {(twice or pickles)[0][:80]!r} twice")
    if any(entry.flag_bits & _ENCRYPTED for entry in entries):
        raise ValueError("its zip archive is encrypted")


def _start(file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> int:
    """Return the start of a stored entry's bytes in the file, after its local header of variable length."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\3\4"):
        raise zipfile.BadZipFile(f"{entry.filename[:80]!r} is not at the place in its table of contents")
    name, extra = struct.unpack_from("<HH", header, 26)
    start = int(entry.header_offset + _LOCAL_HEADER + name + extra)
    if start + entry.file_size > size:
        raise zipfile.BadZipFile(f"{entry.filename[:80]!r} continues after the end of the file")
    return start


def _storages_behind(file: mmap, storages: Mapping[str, Storage], keys: object, size: int) -> dict[str, int]:
    """Return the start of each storage of an older file, where they follow the last pickle, each after its length."""
    named = [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
    if sorted(named) != sorted(storages):
        raise ValueError("the storages after its pickle are not those that the pickle announces")
    starts: dict[str, int] = {}
    for key in named:
        length = file.read(8)
        starts[key] = file.tell()
        count, nbytes = int.from_bytes(length, "little"), storages[key].nbytes
        if len(length) < 8 or starts[key] + nbytes > size:
            raise ValueError(f"it ends within storage {key[:40]!r}")
        if count != (announced := storages[key].count):
            raise ValueError(f"storage {key[:40]!r} is announced with {announced:,} numbers, but has {count:,}")
        file.seek(starts[key] + nbytes)
    return starts


def _mapped(path: Path, size: int) -> torch.Tensor:
    """Return the whole file as uint8 [bytes], mapped; writes to the tensor do not reach the file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{path}: the file's name is not valid UTF-8; rename it") from None
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:  # too large for the address space, or truncated meanwhile
        raise CheckpointError(f"{path}: cannot be mapped into memory: {_first_line(error)}") from error


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> torch.Tensor:
    """Return the whole entry as uint8 [bytes]."""
    data = archive.read(entry)
    if len(data) != entry.file_size:
        raise zipfile.BadZipFile(f"{entry.filename[:80]!r} unpacks to {len(data):,} bytes, not {entry.file_size:,}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _component(dtype: torch.dtype) -> int:
    """Return the number of bytes of one real number of this type."""
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
