"""Faults in the header of a safetensors file: each gives one line with the tensor or field, and the amount."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import ones

from optimizer.checkpoints import open_checkpoint
from optimizer.checkpoints.header import read_header
from optimizer.errors import CheckpointError


def entry(begin: int, end: int, *, dtype: object = "F32", shape: object = None) -> dict:
    """Return a tensor's entry: numbers of four bytes, in a list unless a shape is given."""
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: object, data: int) -> int:
    """Write a file with this header and data of some bytes; return the length of everything before the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return 8 + len(text)


def problem(path: Path) -> str:
    """Return the line that opening the file fails with, after the file's name."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    (line,) = caught.value.problems
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("more", "message"), [(1, "1 byte"), (5000, "5,000 bytes")])
def test_trailing_bytes_are_counted(tmp_path, more, message):
    """Bytes after the last tensor are counted."""
    size = write(tmp_path / "a.safetensors", {"a": entry(0, 8)}, 8 + more)

    assert problem(tmp_path / "a.safetensors") == (
        f"holds {message} after the last tensor: its header requires {size + 8} bytes, the file has "
        f"{size + 8 + more:,}; download or copy it again"
    )


@pytest.mark.parametrize("cut", [1, 7])
def test_missing_bytes_are_counted(tmp_path, cut):
    """The missing bytes of a truncated file are counted, in the data and in the header."""
    size = write(tmp_path / "a.safetensors", {"a": entry(0, 8)}, 8 - cut)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[: size - 5])

    assert (
        f"truncated: its header requires {size + 8} bytes, the file has {size + 8 - cut}; {cut} are missing; "
        in problem(tmp_path / "a.safetensors")
    )
    assert "; 5 are missing; download or copy it again" in problem(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": "x", "epoch": 3}, "__metadata__.epoch is a number (3)"),
        ({"b": None}, "__metadata__.b is null"),
        ({"b": {"c": 1}}, '__metadata__.b is a mapping ({"c": 1})'),
        ({"b": [1], "c": True}, "__metadata__.b is a list ([1]), __metadata__.c is a truth value (true)"),
        (
            {str(n): n for n in range(5)},
            ", ".join([*(f"__metadata__.{n} is a number ({n})" for n in range(3)), "2 more are not text"]),
        ),
        ({"b": "x" * 60 and [" " * 60]}, '__metadata__.b is a list (["' + " " * 35 + "...)"),
    ],
)
def test_metadata_that_are_not_text_are_named(tmp_path, metadata, message):
    """Metadata fields that are not text are named, with their types."""
    write(tmp_path / "a.safetensors", {"__metadata__": metadata, "t": entry(0, 4)}, 4)

    assert problem(tmp_path / "a.safetensors") == (
        f"broken safetensors header: {message}; must be text: save the file again with text there"
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"__metadata__": ["x"]}, '__metadata__ is a list (["x"]); must be a mapping of texts'),
        ({"a": 1}, "'a' is a number (1); must be a mapping with dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "'a' has no data_offsets"),
        ({"a": {"shape": [1], "data_offsets": [0, 4]}}, "'a' has no dtype"),
        ({"a": entry(0, 4, dtype=5)}, "'a': dtype is a number (5); must be text, for example F16"),
        ({"a": entry(0, 4, shape=[1.0])}, "'a': shape is a list ([1.0]); must be a list of whole numbers, at least 0"),
        ({"a": entry(0, 4, shape=[-1])}, "'a': shape is a list ([-1]); must be a list of whole numbers, at least 0"),
        (
            {"a": entry(4, 0, shape=[1])},
            "'a': data_offsets is a list ([4, 0]); must be [begin, end], whole numbers, at least 0",
        ),
        (
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}},
            "'a': data_offsets is a list ([\"0\", 4]); must be [begin, end], whole numbers, at least 0",
        ),
        ({"a": entry(0, 8, shape=[3])}, "'a' of shape [3] in F32 needs 12 bytes; its data_offsets give it 8"),
        ({"a": entry(0, 8, dtype="F16", shape=[])}, "'a' of shape [] in F16 needs 2 bytes; its data_offsets give it 8"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "the data of 'b' and of 'a' overlap by 4 bytes"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "the data of 'b' and of 'a' overlap by 8 bytes"),
        ({"b": entry(12, 20), "a": entry(0, 8)}, "4 bytes between 'a' and 'b' belong to no tensor"),
        ({"b": entry(4, 8)}, "4 bytes before 'b' belong to no tensor"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "'dtype' is given twice"),
        (b'{"a": nothing}', "Expecting value: line 1 column 7 (char 6)"),
    ],
)
def test_faults_of_tensors_are_named(tmp_path, header, message):
    """A tensor that is described wrongly, overlaps another or leaves a hole is named, with the fault."""
    write(tmp_path / "a.safetensors", header, 20)

    assert problem(tmp_path / "a.safetensors") == f"broken safetensors header: {message}"


def test_types_that_torch_lacks_are_named(tmp_path):
    """Types smaller than a byte count by their bits: a file with them is refused for its type, not as broken."""
    write(tmp_path / "a.safetensors", {"a": entry(0, 4, dtype="F4", shape=[2, 4])}, 4)

    assert problem(tmp_path / "a.safetensors") == "'a' has type F4, which cannot be read"


def test_sound_header_is_read(tmp_path):
    """A file written by safetensors passes, with its metadata and its tensors in the order of their data."""
    save_file({"a": ones(2), "b": ones(3, 0), "c": ones(1).half()}, tmp_path / "a.safetensors", {"k": "v"})
    content = (tmp_path / "a.safetensors").read_bytes()

    header = read_header(tmp_path / "a.safetensors", int.from_bytes(content[:8], "little"), len(content))

    assert dict(header.metadata) == {"k": "v"}
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.tensors} == {
        "a": ("F32", (2,)),
        "b": ("F32", (3, 0)),
        "c": ("F16", (1,)),
    }
    assert header.tensors[-1].end == len(content)


SIZES = st.integers(0, 3)


@given(
    tensors=st.lists(st.tuples(st.lists(SIZES, max_size=2), SIZES, SIZES), min_size=1, max_size=3),
    metadata=st.none()
    | st.dictionaries(st.sampled_from("kl"), st.text("v", max_size=2) | st.integers(0, 1), max_size=2),
    more=st.integers(-4, 4),
)
def test_agrees_with_safetensors(tmp_path_factory, tensors, metadata, more):
    """Files that safetensors opens pass, and files that it refuses are refused with a line."""
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    place = 0
    for number, (shape, gap, wrong) in enumerate(tensors):
        count = 1
        for size in shape:
            count *= size
        begin = place + (gap if gap > 2 else 0)
        place = begin + 4 * count + (wrong if wrong > 2 else 0)
        header[str(number)] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, place]}
    path = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    write(path, header, max(place + (more if abs(more) > 2 else 0), 0))

    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
    except SafetensorError:
        assert problem(path)
    else:
        with open_checkpoint(path) as checkpoint:
            assert set(checkpoint.tensors) == names
