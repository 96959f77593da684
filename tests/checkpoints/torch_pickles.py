"""Files laid out as by `torch.save`, in both of its formats, around handmade pickles."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def text(value: str) -> bytes:
    """Return instructions that push a text."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    """Return instructions that push a whole number."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(name: str) -> bytes:
    """Return instructions that push the object of a full name."""
    module, _, inner = name.rpartition(".")
    return f"c{module}\n{inner}\n".encode()


def tuple_of(*values: bytes) -> bytes:
    """Return instructions that push a tuple."""
    return b"(" + b"".join(values) + b"t"


def sizes(*values: int) -> bytes:
    """Return instructions that push a tuple of whole numbers."""
    return tuple_of(*map(whole, values))


def call(name: str, *arguments: bytes) -> bytes:
    """Return instructions that call a function."""
    return named(name) + tuple_of(*arguments) + b"R"


def new(name: str, *arguments: bytes) -> bytes:
    """Return instructions that make an object of a class."""
    return named(name) + tuple_of(*arguments) + b"\x81"


def mapping(entries: Mapping[str, bytes]) -> bytes:
    """Return instructions that push a mapping."""
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


NONE, TRUE, FALSE, NOTHING = b"N", b"\x88", b"\x89", b"}"
HOOKS = call("collections.OrderedDict")


def storage(key: str = "0", kind: str = "torch.FloatStorage", count: int = 6, *, zipped: bool = True) -> bytes:
    """Return instructions that push a storage of the file."""
    more = () if zipped else (NONE,)
    return tuple_of(text("storage"), named(kind), text(key), text("cpu"), whole(count), *more) + b"Q"


def view(held: bytes, offset: int = 0, shape: bytes = sizes(2, 3), strides: bytes = sizes(3, 1)) -> bytes:
    """Return instructions that push a view of a storage, as torch has written it since 0.4."""
    return call("torch._utils._rebuild_tensor_v2", held, whole(offset), shape, strides, FALSE, HOOKS)


def zip_file(
    program: bytes,
    data: Mapping[str, bytes],
    *,
    more: Mapping[str, bytes] | None = None,
    change: Callable[[zipfile.ZipFile], None] = lambda archive: None,
) -> bytes:
    """Return the bytes of an archive with this pickle, these storages, and `more` entries; `change` may add to it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", program)
        for key, content in data.items():
            archive.writestr(f"a/data/{key}", content)
        for name, content in {"version": b"3\n", **(more or {})}.items():
            archive.writestr(f"a/{name}", content)
        change(archive)
    return stream.getvalue()


def legacy_file(
    program: bytes, data: Mapping[str, bytes], *, keys: object = None, counts: Mapping[str, int] | None = None
) -> bytes:
    """Return the bytes of a file of torch before 1.6: pickles, then each storage after its number of elements."""
    first = b"".join(pickle.dumps(value, 2) for value in (MAGIC, VERSION, SYSTEM))
    listed = pickle.dumps(list(data) if keys is None else keys, 2)
    behind = b"".join(
        struct.pack("<q", (counts or {}).get(key, len(content) // 4)) + content for key, content in data.items()
    )
    return first + program + listed + behind


def write(path: Path, entries: Mapping[str, bytes], data: Mapping[str, bytes], *, zipped: bool) -> None:
    """Write a file of either format whose pickle is a mapping of `entries`."""
    program = b"\x80\x02" + mapping(entries) + b"."
    path.write_bytes(zip_file(program, data) if zipped else legacy_file(program, data))
