"""The header of a safetensors file, checked before its use, so that errors name the fault.

Eight bytes, little-endian, hold the header's length. The header is JSON: {tensor: {dtype, shape, data_offsets}} and
`__metadata__`, texts by name. The data of all tensors follow without holes, up to the end of the file.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optimizer.errors import CheckpointError

__all__ = ["MOST_TENSORS", "SAFETENSORS_HEADER_LIMIT", "HeaderEntry", "SafetensorsHeader", "read_header"]

SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; safetensors refuses longer headers
MOST_TENSORS = 100_000  # most of a file; SD 1.x has some 1,100, the largest models ten times as many

# Bits per element by dtype. Torch cannot read all of these types.
_BITS: Mapping[str, int] = MappingProxyType(
    {
        name: bits
        for bits, names in {
            64: ("F64", "I64", "U64", "C64"),
            32: ("F32", "I32", "U32"),
            16: ("F16", "BF16", "I16", "U16"),
            8: ("I8", "U8", "BOOL", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"),
            6: ("F6_E2M3", "F6_E3M2"),
            4: ("F4",),
        }.items()
        for name in names
    }
)
_JSON_TYPES = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
}
_LISTED = 3
_MOST_AXES = 64  # torch's limit


@dataclass(frozen=True)
class HeaderEntry:
    """A tensor in a header; its data are the bytes `begin` to `end` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """Contents of a header: the metadata, and the tensors in the order of their data."""

    metadata: Mapping[str, str]
    tensors: tuple[HeaderEntry, ...]


def read_header(path: Path, length: int, size: int) -> SafetensorsHeader:
    """Return the header of a safetensors file.

    Args:
        path: Path of the file.
        length: Length of the header, in bytes.
        size: Size of the file, in bytes.

    Returns:
        The checked header.

    Raises:
        CheckpointError: The file is truncated or continues after the last tensor (the message has the number of bytes),
            metadata are not text, a tensor is described wrongly or twice, data overlap or leave a hole, or the file has
            more than 100,000 tensors. The message is one line.
    """
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise CheckpointError(f"{path}: {_truncated(8 + length, size)}")
    if text.count(b'"data_offsets"') > MOST_TENSORS:
        raise CheckpointError(f"{path}: more than {MOST_TENSORS:,} tensors; no checkpoint has so many")
    try:
        header, end = _parsed(text)
    except RecursionError:
        raise CheckpointError(f"{path}: broken safetensors header: nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: broken safetensors header: {error}") from error
    if end > size:
        raise CheckpointError(f"{path}: {_truncated(end, size)}")
    if end < size:
        what = f"{size - end:,} bytes" if size - end > 1 else "1 byte"
        raise CheckpointError(
            f"{path}: holds {what} after the last tensor: its header requires {end:,} bytes, the file has {size:,}; "
            "download or copy it again"
        )
    return header


def _parsed(text: bytes) -> tuple[SafetensorsHeader, int]:
    """Return the header in `text` and the end of the last tensor's data, or raise ValueError."""
    header = json.loads(text, object_pairs_hook=_without_doubles)
    if not isinstance(header, dict):
        raise ValueError(f"is {_called(header)}; must be a mapping of tensors")
    metadata = _metadata(header.pop("__metadata__", None))
    start = 8 + len(text)
    tensors = sorted(_tensors(header, start), key=lambda entry: (entry.begin, entry.end))
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"{len(tensors):,} tensors; no checkpoint has more than {MOST_TENSORS:,}")
    return SafetensorsHeader(metadata, tuple(tensors)), _end_of_data(tensors, start)


def _truncated(expected: int, size: int) -> str:
    return (
        f"truncated: its header requires {expected:,} bytes, the file has {size:,}; {expected - size:,} are missing; "
        "download or copy it again"
    )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, or raise ValueError for equal names, of which two readers may take different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice[:100]!r} is given twice")
    return found


def _metadata(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(f"__metadata__ is {_called(given)}; must be a mapping of texts")
    wrong = [name for name, value in given.items() if not isinstance(value, str)]
    if wrong:
        listed = [f"__metadata__.{name[:100]} is {_called(given[name])}" for name in wrong[:_LISTED]]
        more = [f"{len(wrong) - _LISTED} more are not text"] if len(wrong) > _LISTED else []
        raise ValueError(f"{', '.join([*listed, *more])}; must be text: save the file again with text there")
    return given


def _tensors(header: Mapping[str, Any], start: int) -> Iterator[HeaderEntry]:
    """Yield the tensors of a header, each checked by itself; their data begin at `start` in the file."""
    for name, entry in header.items():
        shown = repr(name[:200])
        if not isinstance(entry, dict):
            raise ValueError(f"{shown} is {_called(entry)}; must be a mapping with dtype, shape and data_offsets")
        if missing := [field for field in ("dtype", "shape", "data_offsets") if field not in entry]:
            raise ValueError(f"{shown} has no {missing[0]}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str):
            raise ValueError(f"{shown}: dtype is {_called(dtype)}; must be text, for example F16")
        if not _are_sizes(shape):
            raise ValueError(f"{shown}: shape is {_called(shape)}; must be a list of whole numbers, at least 0")
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError(
                f"{shown}: data_offsets is {_called(offsets)}; must be [begin, end], whole numbers, at least 0"
            )
        begin, end = offsets
        if dtype in _BITS and (needed := -(-prod(shape) * _BITS[dtype] // 8)) != end - begin:
            raise ValueError(
                f"{shown} of shape {_short(shape)} in {dtype} needs {_number(needed)} bytes; its data_offsets give it "
                f"{_number(end - begin)}"
            )
        yield HeaderEntry(name, dtype, tuple(shape), start + begin, start + end)


def _are_sizes(value: Any) -> bool:
    sizes = isinstance(value, list) and len(value) <= _MOST_AXES
    return sizes and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _end_of_data(tensors: list[HeaderEntry], start: int) -> int:
    """Return the end of the last tensor's data; raise ValueError unless the sorted tensors are contiguous."""
    end, before = start, ""
    for entry in tensors:
        name = repr(entry.name[:200])
        if entry.begin < end:
            shared = min(end, entry.end) - entry.begin
            raise ValueError(f"the data of {name} and of {before} overlap by {_number(shared)} bytes")
        if entry.begin > end:
            place = f"between {before} and {name}" if before else f"before {name}"
            raise ValueError(f"{_number(entry.begin - end)} bytes {place} belong to no tensor")
        end, before = entry.end, name
    return end


def _called(value: Any) -> str:
    """Return the type of a JSON value, with as much of the value as fits into a message."""
    kind = "null" if value is None else _JSON_TYPES[type(value)]
    return kind if value is None else f"{kind} ({_short(value)})"


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except ValueError:  # Python does not write whole numbers of more than 4300 digits
        text = "thousands of digits"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _number(value: int) -> str:
    return f"{value:,}" if value < 10**30 else "more than 10^30"
