"""Fuzz the header of safetensors files: open the file and read every tensor that its header lists."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import atheris
from fuzzing import fuzz

with atheris.instrument_imports(include=["optimizer.checkpoints", "json"]):
    from optimizer.checkpoints import open_checkpoint
    from optimizer.library import read_provenance

DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "BOOL": 1}
WORDS = [
    *(f'"{name}"' for name in (*DTYPES, "dtype", "shape", "data_offsets", "__metadata__", "sd_merge_recipe", "F4")),
    *(
        "[",
        "]",
        "{",
        "}",
        '"',
        ":",
        ",",
        "-1",
        "0",
        "18446744073709551615",
        "1e999",
        "NaN",
        "null",
        "\\ud800",
        "\\u0000",
    ),
    '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',
    "model.diffusion_model.input_blocks.0.0.weight",
    "cond_stage_model.transformer.text_model.",
]


def file_with(header: object, data: int) -> bytes:
    """Return an input of which `read` makes a file with this header, its length, and `data` bytes of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"H" + bytes([data]) + text


def seeds() -> Iterator[bytes]:
    """Yield valid and slightly damaged files: headers after the byte H, and complete files without it."""
    for dtype, size in DTYPES.items():
        entry = {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, 6 * size]}
        yield file_with({"a": entry, "b": {**entry, "data_offsets": [6 * size, 12 * size]}}, 12 * size)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    yield file_with({"__metadata__": {"format": "pt", "sd_merge_recipe": '{"type": "webui"}'}, "a": entry}, 4)
    yield file_with({"a": entry, "b": entry}, 4)
    yield file_with({"a": {**entry, "shape": []}, "b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}, 4)
    yield file_with(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32"}}', 4)
    yield file_with({}, 0)
    yield struct.pack("<Q", 10**11) + b"{}"
    yield b"PK\x03\x04" + bytes(60)
    yield b"\x80\x02}q\x00."


def read(path: Path) -> None:
    """Open the file and read every tensor that its header lists."""
    given = path.read_bytes()
    if given.startswith(b"H") and len(given) > 1:
        path.write_bytes(struct.pack("<Q", len(given) - 2) + given[2:] + bytes(given[1]))
    with open_checkpoint(path) as checkpoint:
        read_provenance(checkpoint.metadata)
        content = path.read_bytes()
        for name, info in checkpoint.tensors.items():
            tensor = checkpoint.tensor(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (info.dtype, info.shape)
            if info.offset is not None:
                assert info.offset + tensor.nbytes <= len(content)


if __name__ == "__main__":
    fuzz(read, seeds(), WORDS, suffix=".safetensors", longest=4096)
