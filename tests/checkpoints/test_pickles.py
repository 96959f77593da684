"""Handmade pickles: each number read is in the file, or reading is refused with the offending name."""

import io
import pickle
import struct
import zipfile
from math import prod

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch_pickles import (
    FALSE,
    HOOKS,
    NONE,
    NOTHING,
    TRUE,
    call,
    legacy_file,
    mapping,
    named,
    new,
    sizes,
    storage,
    text,
    tuple_of,
    view,
    whole,
    write,
    zip_file,
)

from optimizer.checkpoints import open_checkpoint
from optimizer.errors import CheckpointError

NUMBERS = (1.5, -2.0, 0.1, 3e38, -0.0, 7.25)
DATA = struct.pack("<6f", *NUMBERS)
KINDS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])


def problem(path):
    """Return the one line that opening `path` fails with."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    return line.removeprefix(f"{path}: ")


def read_twice(path):
    """Return the tensors of a file, after a check that two readings give the same bits."""
    found = []
    for filling in (1.0, float("nan")):
        with open_checkpoint(path) as checkpoint:
            found.append({name: checkpoint.tensor(name).clone() for name in checkpoint.tensors})
        for size in (64, 4096, 1 << 20):
            torch.full((size,), filling)
    for name, tensor in found[0].items():
        assert bits(tensor) == bits(found[1][name])
    return found[0]


def bits(tensor):
    """Return the bytes of a tensor."""
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


HELD = object()  # the storage in the file, in its format


def program_of(parts, *, zipped):
    """Return the instructions of a case."""
    return b"".join(storage(zipped=zipped) if part is HELD else part for part in parts)


def rebuilt(function, *arguments):
    """Return a call of a function with these arguments and the file's storage."""
    return (named(function) + b"(", *arguments, b"tR")


def viewed(offset=0, shape=None, strides=None):
    """Return a view of the file's storage, by default of all of it, in two rows."""
    arguments = whole(offset), shape or sizes(2, 3), strides or sizes(3, 1), FALSE, HOOKS
    return rebuilt("torch._utils._rebuild_tensor_v2", HELD, *arguments)


EMPTY = call("torch.Size")
EMPTY_STORAGE = call("torch.UntypedStorage", whole(24))
BY_TENSOR = "makes a tensor by `torch.Tensor`, whose numbers are not in the file"
ONLY_A_PART = "of which the file holds only a part"
NONE_SUCH = "whose shape"

REFUSED = {
    # Calls that make numbers of arbitrary memory.
    "torch.Tensor called": ((call("torch.Tensor", whole(1000)),), BY_TENSOR),
    "torch.Tensor made": ((new("torch.Tensor", whole(2), whole(3)),), BY_TENSOR),
    "torch.Tensor of a size": ((call("torch.Tensor", call("torch.Size", sizes(9))),), BY_TENSOR),
    "a typed tensor": ((call("torch.FloatTensor", whole(1000)),), "makes a tensor by `torch.FloatTensor`"),
    "a typed tensor made": ((new("torch.HalfTensor", whole(1000)),), "makes a tensor by `torch.HalfTensor`"),
    "a sparse type": ((new("torch.sparse.FloatTensor", whole(10)),), "makes a tensor by `torch.sparse.FloatTensor`"),
    "a storage called": ((view(EMPTY_STORAGE),), "makes a tensor by `torch.UntypedStorage`"),
    "a storage made": ((view(new("torch.storage.UntypedStorage", whole(24))),), "by `torch.storage.UntypedStorage`"),
    "a typed storage": ((view(call("torch.FloatStorage", whole(6))),), "makes a tensor by `torch.FloatStorage`"),
    "a wrapped storage": ((view(call("torch.storage.TypedStorage", whole(6))),), "by `torch.storage.TypedStorage`"),
    "a parameter of memory": (
        (call("torch._utils._rebuild_parameter", call("torch.Tensor", whole(6)), TRUE, HOOKS),),
        "makes a tensor by `torch.Tensor`",
    ),
    "torch.empty": ((call("torch.empty", whole(6)),), "would run `torch.empty`"),
    "torch.tensor": ((call("torch.tensor", sizes(1, 2)),), "would run `torch.tensor`"),
    "torch.zeros": ((call("torch.zeros", whole(6)),), "would run `torch.zeros`"),
    "torch.from_file": ((call("torch.from_file", text("/etc/passwd")),), "would run `torch.from_file`"),
    "a tensor that is set anew": (
        (*viewed(), tuple_of(EMPTY, whole(0), sizes(9), sizes(1)), b"b"),
        "changes a tensor after it was made",
    ),
    "a typed function": (
        (call("torch._tensor._rebuild_from_type_v2", named("torch.Tensor"), named("torch.Tensor"), sizes(6), NOTHING),),
        "makes a tensor in a way that torch.save does not",
    ),
    "a class of its own": (
        rebuilt("torch._tensor._rebuild_from_type_v2", named("torch._utils._rebuild_tensor_v2"),
                named("torch.FloatStorage"), b"(", HELD, whole(0), sizes(6), sizes(1), FALSE, HOOKS, b"t", NOTHING),
        "makes a tensor of a special class",
    ),
    # Views that reach beyond the file's storage.
    "a larger shape": (viewed(shape=sizes(2, 4), strides=sizes(4, 1)), ONLY_A_PART),
    "an offset behind the end": (viewed(offset=1), ONLY_A_PART),
    "strides over the end": (viewed(strides=sizes(4, 1)), ONLY_A_PART),
    "a vast shape": (viewed(shape=sizes(2**40), strides=sizes(1)), ONLY_A_PART),
    "vast strides": (viewed(shape=sizes(2), strides=sizes(2**62)), ONLY_A_PART),
    "a vast offset": (viewed(offset=2**62), ONLY_A_PART),
    "a storage that grows": (viewed(shape=sizes(1000), strides=sizes(1)), ONLY_A_PART),
    "a wider type": (
        rebuilt("torch._utils._rebuild_tensor_v3", HELD, whole(0), sizes(6), sizes(1), FALSE, HOOKS,
                named("torch.float64")),
        ONLY_A_PART,
    ),
    "a negative offset": (viewed(offset=-1), NONE_SUCH),
    "a negative stride": (viewed(offset=5, shape=sizes(6), strides=sizes(-1)), NONE_SUCH),
    "a negative shape": (viewed(shape=sizes(-2, -3)), NONE_SUCH),
    "a shape beyond 64 bits": (viewed(shape=sizes(2**70), strides=sizes(0)), NONE_SUCH),
    "a shape of more than all numbers": (viewed(shape=sizes(2**62, 2**62, 0), strides=sizes(0, 0, 0)), "too large"),
    "a shape of a fraction": (viewed(shape=tuple_of(b"G" + struct.pack(">d", 6.0)), strides=sizes(1)), NONE_SUCH),
    "a shape of a truth": (viewed(shape=tuple_of(TRUE), strides=sizes(1)), NONE_SUCH),
    "a shape that is a text": (viewed(shape=text("66"), strides=sizes(1, 1)), NONE_SUCH),
    "more strides than sizes": (viewed(shape=sizes(6), strides=sizes(1, 1)), "not a view of a storage"),
    "65 dimensions": (viewed(shape=sizes(*[1] * 65), strides=sizes(*[1] * 65)), NONE_SUCH),
    "a conjugated view": (
        rebuilt("torch._utils._rebuild_tensor_v2", HELD, whole(0), sizes(6), sizes(1), FALSE, HOOKS,
                mapping({"conj": TRUE})),
        "would have to be computed",
    ),
    "no storage": ((view(text("abcdef")),), "not a view of a storage"),
    "a type that is none": (
        rebuilt("torch._utils._rebuild_tensor_v3", HELD, whole(0), sizes(6), sizes(1), FALSE, HOOKS,
                named("torch.FloatStorage")),
        "of an unknown type",
    ),
    # Tensors of kinds that are never merged.
    "a meta tensor": (
        (call("torch._utils._rebuild_meta_tensor_no_storage", named("torch.float32"), sizes(6), sizes(1), FALSE),),
        "'w' is a tensor on the meta device",
    ),
    "a sparse tensor": (
        rebuilt("torch._utils._rebuild_sparse_tensor",
                call("torch.serialization._get_layout", text("torch.sparse_coo")),
                b"(", *viewed(), *viewed(), sizes(9), b"t"),
        "'w' is a sparse tensor",
    ),
    "a quantized tensor": (
        rebuilt("torch._utils._rebuild_qtensor", HELD, whole(0), sizes(6), sizes(1),
                tuple_of(named("torch.per_tensor_affine"), whole(1), whole(0)), FALSE, HOOKS),
        "'w' is a quantized tensor",
    ),
    "a nested tensor": (rebuilt("torch._utils._rebuild_nested_tensor", *viewed()), "'w' is a nested tensor"),
    "a wrapper": (
        (call("torch._utils._rebuild_wrapper_subclass", named("torch.Tensor"), named("torch.float32"), sizes(6)),),
        "'w' is a tensor of a special class",
    ),
    "an array for a device": (
        rebuilt("torch._utils._rebuild_device_tensor_from_numpy",
                call("numpy.core.multiarray._reconstruct", named("numpy.ndarray"), sizes(0), text("b"))),
        "'w' is a numpy array for another device",
    ),
    "a copy for a device": (
        rebuilt("torch._utils._rebuild_device_tensor_from_cpu_tensor", *viewed(), named("torch.float64"), text("cpu")),
        "'w' is a tensor for another device",
    ),
    # Storages that the file lacks or describes otherwise.
    "a storage by number": ((whole(0), b"Q"), "takes something other than a storage from the file"),
    "a module from the file": (
        (tuple_of(text("module"), named("torch.Tensor"), text("a.py"), text("x")), b"Q"),
        "takes something other than a storage from the file",
    ),
    "a storage of no type": ((view(storage(kind="torch.Tensor")),), "takes something other than a storage"),
    "a negative storage": ((view(storage(count=-6)),), "takes something other than a storage"),
    "a storage of a truth": (
        (view(tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), TRUE) + b"Q"),),
        "takes something other than a storage",
    ),
    "a vast storage": ((view(storage(count=2**62)),), "takes something other than a storage"),
    "a part of a storage": (
        (view(tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), whole(6),
                       tuple_of(text("1"), whole(100), whole(6))) + b"Q"),),
        "takes something other than a storage",
    ),
    "a storage twice": ((*viewed(), b"0", view(storage(count=5))), "announces the storage '0' in two ways"),
    "a storage of two types": (
        (*viewed(), b"0", view(storage(kind="torch.IntStorage"))),
        "announces the storage '0' in two ways",
    ),
    # Ways to make or call something.
    "a copy": ((call("copyreg._reconstructor", named("torch.Tensor"), NONE, NONE),), "would run `copyreg._reconstr"),
    "an object made anew": ((call("copyreg.__newobj__", named("torch.Tensor"), whole(9)),), "`copyreg.__newobj__`"),
    "an extension": ((b"\x82\x01",), "has the instruction EXT1"),
    "an old instance": ((b"(itorch\nTensor\n",), "has the instruction INST"),
    "an old object": ((b"(", named("torch.Tensor"), whole(9), b"o"), "has the instruction OBJ"),
    "a name with a backslash": ((b"ctorch\\x2eTensor\nx\n",), "has a line with a backslash"),
    "a name with an invalid escape": ((b"ctorch\\\x00\nTensor\n",), "has a line with a backslash"),
    "an old text with a backslash": ((b"S'\\q'\n",), "has a line with a backslash"),
    "an old persistent id": ((b"Pstorage\n",), "has the instruction PERSID"),
    "bytes to be filled": ((b"\x96" + struct.pack("<Q", 4) + b"abcd",), "has the instruction BYTEARRAY8"),
    "a buffer from elsewhere": ((b"\x97",), "has the instruction NEXT_BUFFER"),
    "a called text": ((text("x"), b")R"), "calls something that is not a function"),
    "a called mapping": ((mapping({"a": NONE}), b")R"), "calls something that is not a function"),
    "a called tensor": ((*viewed(), b")R"), "calls something that is not a function"),
    "a filled mapping": (
        (call("collections.OrderedDict", b"](" + tuple_of(text("w"), whole(1)) + b"e"),),
        "makes a mapping in a way that torch.save does not",
    ),
    "a state for a number": ((whole(1), b"}b"), "gives a state to something that has none"),
    "entries of a text": ((text("x"), text("a"), NONE, b"s"), "puts entries into something that is not a mapping"),
    "elements of a text": ((text("x"), NONE, b"a"), "appends to something that is not a list"),
    "a key alone": ((b"}(", text("a"), b"u"), "has a key without a value"),
    "a parameter of a text": ((call("torch._utils._rebuild_parameter", text("x"), TRUE, HOOKS),), "is not a tensor"),
    "too few arguments": ((call("torch._utils._rebuild_tensor_v2", whole(0)),), "is inconsistent"),
    "memory that was never written": ((b"h\x07",), "is inconsistent"),
}  # fmt: skip


@KINDS
@pytest.mark.parametrize("name", REFUSED)
def test_pickle_is_refused(tmp_path, name, zipped):
    """Tensors outside the file, computed tensors and calls are refused in a line with the reason."""
    parts, message = REFUSED[name]
    # The older files do not list unused storages.
    data = {"0": DATA} if zipped or HELD in parts else {}
    write(tmp_path / "a.ckpt", {"w": program_of(parts, zipped=zipped)}, data, zipped=zipped)

    line = problem(tmp_path / "a.ckpt")

    assert message in line
    assert line.startswith(("refused: its pickle ", "truncated or broken: its pickle ", "'w' is "))


@pytest.mark.parametrize("name", REFUSED)
def test_pickle_is_refused_for_objects_beside_the_weights(tmp_path, name):
    """Such objects are refused beside the weights too, except for odd tensors."""
    parts, message = REFUSED[name]
    entries = {"state_dict": mapping({"w": view(storage())}), "more": program_of(parts, zipped=True)}
    write(tmp_path / "a.ckpt", entries, {"0": DATA}, zipped=True)

    if message.startswith("'w' is "):
        assert bits(read_twice(tmp_path / "a.ckpt")["w"]) == DATA
    else:
        assert message in problem(tmp_path / "a.ckpt")


OVERRIDDEN = mapping({name: call("collections.Counter") for name in ("get", "items", "values", "state_dict")})

READ = {
    "a view as torch 0.3 wrote it": (rebuilt("torch._utils._rebuild_tensor", HELD, whole(0), sizes(6), sizes(1)), DATA),
    "a view": (viewed(), DATA),
    "a part": (viewed(offset=1, shape=sizes(2), strides=sizes(3)), DATA[4:8] + DATA[16:20]),
    "a transposed view": (
        viewed(shape=sizes(3, 2), strides=sizes(1, 3)),
        b"".join(DATA[4 * n : 4 * n + 4] for n in (0, 3, 1, 4, 2, 5)),
    ),
    "one number for all": (viewed(offset=5, shape=sizes(2, 3), strides=sizes(0, 0)), 6 * DATA[20:]),
    "no numbers": (viewed(offset=2**40, shape=sizes(0, 3), strides=sizes(3, 1)), b""),
    "no dimensions": (viewed(offset=2, shape=sizes(), strides=sizes()), DATA[8:12]),
    "a parameter": (rebuilt("torch._utils._rebuild_parameter", *viewed(), TRUE, HOOKS), DATA),
    "a parameter with a state": (
        rebuilt("torch._utils._rebuild_parameter_with_state", *viewed(), TRUE, HOOKS, mapping({"data": text("x")})),
        DATA,
    ),
    "a parameter made": ((named("torch.nn.parameter.Parameter") + b"(", *viewed(), b"t\x81"), DATA),
    "a tensor with attributes": (
        rebuilt("torch._tensor._rebuild_from_type_v2", named("torch._utils._rebuild_tensor_v2"), named("torch.Tensor"),
                b"(", HELD, whole(0), sizes(6), sizes(1), FALSE, HOOKS, b"t", mapping({"detach": text("x")})),
        DATA,
    ),
    "hooks and gradients": (
        rebuilt("torch._utils._rebuild_tensor_v2", HELD, whole(0), sizes(6), sizes(1), TRUE, mapping({"1": text("x")})),
        DATA,
    ),
    "another type": (
        rebuilt("torch._utils._rebuild_tensor_v3", HELD, whole(2), sizes(10), sizes(1), FALSE, HOOKS,
                named("torch.uint16")),
        DATA[4:],
    ),
    "a size beside it": ((call("torch.Size", sizes(2**62, 7)), b"0", *viewed()), DATA),
    "a set beside it": ((b"\x8f(", whole(1), b"\x90", b"0", b"(", whole(1), b"\x91", b"0", *viewed()), DATA),
    "memory far away": ((text("x"), b"r\xff\xff\xff\xff", b"0", *viewed()), DATA),
}  # fmt: skip


@KINDS
@pytest.mark.parametrize("name", READ)
def test_tensors_are_read_from_the_file(tmp_path, name, zipped):
    """Tensors in the file are read as the file's bytes, every time."""
    parts, expected = READ[name]
    write(tmp_path / "a.ckpt", {"w": program_of(parts, zipped=zipped)}, {"0": DATA}, zipped=zipped)

    assert bits(read_twice(tmp_path / "a.ckpt")["w"]) == expected


@KINDS
def test_offsets_are_places_in_the_file(tmp_path, zipped):
    """A tensor's offset is its place in the file; a tensor in several pieces has none."""
    entries = {
        "whole": program_of(viewed(), zipped=zipped),
        "part": program_of(viewed(offset=2, shape=sizes(2, 2), strides=sizes(2, 1)), zipped=zipped),
        "turned": program_of(viewed(shape=sizes(3, 2), strides=sizes(1, 3)), zipped=zipped),
    }
    path = tmp_path / "a.ckpt"
    write(path, entries, {"0": DATA}, zipped=zipped)
    content = path.read_bytes()

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.mapped
        offsets = {name: info.offset for name, info in checkpoint.tensors.items()}

    assert content[offsets["whole"] :].startswith(DATA)
    assert content[offsets["part"] :].startswith(DATA[8:24])
    assert offsets["turned"] is None


@KINDS
def test_state_of_a_mapping_is_left_out(tmp_path, zipped):
    """A state that would replace a mapping's methods is left out."""
    entries = mapping({"w": view(storage(zipped=zipped))})
    program = b"\x80\x02" + named("collections.OrderedDict") + b")R(" + entries[2:] + OVERRIDDEN + b"b."
    make = zip_file if zipped else legacy_file
    (tmp_path / "a.ckpt").write_bytes(make(program, {"0": DATA}))

    assert bits(read_twice(tmp_path / "a.ckpt")["w"]) == DATA


@KINDS
def test_recursive_mapping_is_refused(tmp_path, zipped):
    """A mapping that is its own state dict is refused without an endless loop."""
    program = b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s."
    make = zip_file if zipped else legacy_file
    (tmp_path / "a.ckpt").write_bytes(make(program, {}))

    assert problem(tmp_path / "a.ckpt").startswith("not a checkpoint")


@KINDS
def test_deeply_nested_key_is_left_out(tmp_path, zipped):
    """A key that contains itself twice, two hundred times over, is left out fast."""
    program = b"\x80\x02}" + whole(1) + b"q\x010" + b"h\x01h\x01\x86q\x010" * 200 + b"h\x01Ns"
    program += text("w") + view(storage(zipped=zipped)) + b"s."
    make = zip_file if zipped else legacy_file
    (tmp_path / "a.ckpt").write_bytes(make(program, {"0": DATA}))

    assert bits(read_twice(tmp_path / "a.ckpt")["w"]) == DATA


class TestArchives:
    """The parts of a zip archive around the pickle."""

    PROGRAM = b"\x80\x02" + mapping({"w": view(storage())}) + b"."

    def archive(self, path, data=DATA, **options):
        """Write an archive with one tensor."""
        path.write_bytes(zip_file(self.PROGRAM, {"0": data}, **options))
        return path

    def test_byte_order_is_followed(self, tmp_path):
        """Bytes of a big-endian file are swapped; those of a little-endian file, or without a mark, are not."""
        big = struct.pack(">6f", *NUMBERS)
        for order, data in ((b"big", big), (b"little", DATA), (None, DATA)):
            more = {} if order is None else {"byteorder": order}
            path = self.archive(tmp_path / "a.ckpt", data, more=more)
            assert bits(read_twice(path)["w"]) == DATA
            with open_checkpoint(path) as checkpoint:
                assert (checkpoint.tensors["w"].offset is None) == (order == b"big")

    def test_unknown_byte_order_is_refused(self, tmp_path):
        """An unknown byte order is refused."""
        path = self.archive(tmp_path / "a.ckpt", more={"byteorder": b"middle"})

        assert "its byte order is b'middle', neither little nor big" in problem(path)

    def test_other_records_change_nothing(self, tmp_path):
        """Versions, alignments and ids for other readers change nothing."""
        more = {".data/version": b"\xff", "version": b"-1", ".format_version": b"9", ".storage_alignment": b"x"}
        path = self.archive(tmp_path / "a.ckpt", more=more)

        assert bits(read_twice(path)["w"]) == DATA

    @pytest.mark.parametrize("stored", [0, 4, 20, 23])
    def test_shorter_storage_is_refused(self, tmp_path, stored):
        """A storage with fewer bytes than announced is refused with both numbers."""
        path = self.archive(tmp_path / "a.ckpt", DATA[:stored])

        assert f"storage '0' is announced with 24 bytes, but has {stored}" in problem(path)

    def test_missing_storage_is_refused(self, tmp_path):
        """A storage that the archive lacks is refused, and one in another folder does not count."""
        (tmp_path / "a.ckpt").write_bytes(zip_file(self.PROGRAM, {"1": DATA, "../0": DATA}))

        assert "the numbers of storage '0' are not in it" in problem(tmp_path / "a.ckpt")

    def test_key_cannot_leave_its_folder(self, tmp_path):
        """A key with a path out of the folder of storages names no other entry."""
        program = b"\x80\x02" + mapping({"w": view(storage("../data.pkl", "torch.ByteStorage"))}) + b"."
        (tmp_path / "a.ckpt").write_bytes(zip_file(program, {"0": DATA}))

        assert "the numbers of storage '../data.pkl' are not in it" in problem(tmp_path / "a.ckpt")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize("name", ["a/data/0", "a/data.pkl", "b/data.pkl"])
    def test_ambiguous_archive_is_refused(self, tmp_path, name):
        """An archive that two programs may read in two ways is refused."""
        path = self.archive(tmp_path / "a.ckpt", change=lambda archive: archive.writestr(name, DATA[::-1]))

        assert "twice" in problem(path)

    def test_entry_after_the_end_is_refused(self, tmp_path):
        """An entry that continues after the end of the file is refused."""
        content = bytearray(self.archive(tmp_path / "a.ckpt").read_bytes())
        place = content.rindex(b"PK\1\2", 0, content.rindex(b"a/data/0"))
        content[place + 42 : place + 46] = struct.pack("<I", len(content) - 30)
        (tmp_path / "a.ckpt").write_bytes(content)

        assert "truncated or broken" in problem(tmp_path / "a.ckpt")

    def test_overlapping_entries_are_refused(self, tmp_path):
        """Entries that together are larger than the file overlap, and are refused."""
        data = bytes(range(256)) * 16
        program = b"\x80\x02" + mapping({"w": view(storage(count=1024), 0, sizes(1024), sizes(1))}) + b"."
        content = bytearray(zip_file(program, {"0": data, "1": DATA}))
        place = content.rindex(b"PK\1\2", 0, content.rindex(b"a/data/1"))
        content[place + 20 : place + 28] = struct.pack("<2I", len(data), len(data))
        (tmp_path / "a.ckpt").write_bytes(content)

        assert "overlap" in problem(tmp_path / "a.ckpt")

    def test_encrypted_archive_is_refused(self, tmp_path):
        """An encrypted archive is refused: its bytes are not the weights."""
        content = bytearray(self.archive(tmp_path / "a.ckpt").read_bytes())
        place = content.rindex(b"PK\1\2", 0, content.rindex(b"a/data/0"))
        content[place + 8] |= 1
        (tmp_path / "a.ckpt").write_bytes(content)

        assert "its zip archive is encrypted" in problem(tmp_path / "a.ckpt")

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    @pytest.mark.parametrize("claimed", [8, 24, 40])
    def test_packed_storage_of_another_size_is_refused(self, tmp_path, method, claimed):
        """A storage that unpacks to another size than listed is refused; nothing is added to it."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            archive.writestr("a/data.pkl", self.PROGRAM)
            archive.writestr("a/data/0", DATA)
        content = bytearray(stream.getvalue())
        place = content.rindex(b"PK\1\2", 0, content.rindex(b"a/data/0"))
        content[place + 24 : place + 28] = struct.pack("<I", claimed)
        (tmp_path / "a.ckpt").write_bytes(content)

        if claimed == len(DATA):
            assert bits(read_twice(tmp_path / "a.ckpt")["w"]) == DATA
        else:
            assert "truncated or broken" in problem(tmp_path / "a.ckpt")


class TestOlderFiles:
    """The parts of a file of torch before 1.6 around the pickle."""

    PROGRAM = b"\x80\x02" + mapping({"w": view(storage(zipped=False))}) + b"."

    @pytest.mark.parametrize("keys", [[], ["1"], ["0", "0"], ["0", "1"], [0], "0", {"0": 1}, None, [["0"]]])
    def test_unlisted_storages_are_refused(self, tmp_path, keys):
        """Storages that are not listed after the pickle, or listed otherwise, are refused."""
        listed = pickle.dumps(keys, 2)
        content = legacy_file(self.PROGRAM, {"0": DATA}).replace(pickle.dumps(["0"], 2), listed)
        (tmp_path / "a.ckpt").write_bytes(content)

        assert "the storages after its pickle are not those that the pickle announces" in problem(tmp_path / "a.ckpt")

    @pytest.mark.parametrize("count", [0, 5, 7, -6, 2**40, 2**63 - 1])
    def test_other_counts_are_refused(self, tmp_path, count):
        """A storage with another number of elements than announced is refused."""
        (tmp_path / "a.ckpt").write_bytes(legacy_file(self.PROGRAM, {"0": DATA}, counts={"0": count}))

        assert "storage '0' is announced with 6 numbers" in problem(tmp_path / "a.ckpt")

    @pytest.mark.parametrize("left", [0, 1, 7, 8, 20, 31])
    def test_short_file_is_truncated(self, tmp_path, left):
        """A file that ends within a storage, or before its length, is reported as truncated."""
        content = legacy_file(self.PROGRAM, {"0": DATA})
        (tmp_path / "a.ckpt").write_bytes(content[: len(content) - 32 + left])

        assert problem(tmp_path / "a.ckpt") == "truncated or broken: it ends within storage '0'; download it again"

    def test_other_versions_are_named(self, tmp_path):
        """A pickle of another program, and an unknown version, are named."""
        (tmp_path / "a.ckpt").write_bytes(pickle.dumps({"w": 1}, 2))
        assert problem(tmp_path / "a.ckpt") == "not a checkpoint: a pickle, but not one of torch.save"

        content = legacy_file(self.PROGRAM, {"0": DATA}).replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2), 1)
        (tmp_path / "a.ckpt").write_bytes(content)
        assert "a torch file of the unknown version 1002" in problem(tmp_path / "a.ckpt")

    def test_unaligned_numbers_are_read(self, tmp_path):
        """Numbers at unaligned addresses in the file are read and computed with."""
        for more in range(1, 5):
            program = b"\x80\x02" + mapping({"w": view(storage(zipped=False)), "x" * more: NONE}) + b"."
            (tmp_path / "a.ckpt").write_bytes(legacy_file(program, {"0": DATA}))

            tensor = read_twice(tmp_path / "a.ckpt")["w"]

            assert bits(tensor) == DATA
            assert tensor.double().sum().item() == sum(struct.unpack("<6f", DATA))


# Numbers whose bytes occur in the file, and nowhere else.
MARKED = bytes((37 * n + n // 256 * 11 + 1) % 256 for n in range(1024))
GOOD = (
    mapping({"state_dict": mapping({"w": view(storage("0", "torch.DoubleStorage", 64), 3, sizes(4, 5), sizes(6, 1))})})
    + b"."
)


@settings(max_examples=250, deadline=None)
@given(
    place=st.integers(0, len(GOOD) - 1),
    written=st.binary(max_size=3)
    | st.sampled_from(
        [sizes(9), whole(-1), whole(2**40), b"Q", b"R", b"b", b"0", b"2", b"h\x00", named("torch.Tensor")]
    ),
    dropped=st.integers(0, 12),
    zipped=st.booleans(),
)
@example(place=0, written=b"", dropped=0, zipped=True)
@example(place=0, written=b"", dropped=0, zipped=False)
@example(place=26, written=b"\\\x00", dropped=0, zipped=True)
def test_any_changed_pickle_is_safe(tmp_path_factory, place, written, dropped, zipped):
    """A good pickle with any change is refused in a line, or gives numbers of its storage only."""
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    program = GOOD if zipped else GOOD.replace(storage("0", "torch.DoubleStorage", 64),
                                               storage("0", "torch.DoubleStorage", 64, zipped=False))  # fmt: skip
    program = b"\x80\x02" + program[:place] + written + program[place + dropped :]
    if zipped:
        path.write_bytes(zip_file(program, {"0": MARKED[:512]}))
    else:
        path.write_bytes(legacy_file(program, {"0": MARKED[:512]}, counts={"0": 64}))
    try:
        found = read_twice(path)
    except CheckpointError as error:
        assert all(line.isprintable() for line in error.problems)  # noqa: PT017
        return
    for tensor in found.values():
        assert tensor.nbytes == prod(tensor.shape) * tensor.dtype.itemsize
        for number in tensor.reshape(-1, 1):
            assert bits(number) in MARKED[:512]
