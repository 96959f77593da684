"""Fuzz the pickles of torch files: open the file and read every tensor twice."""

import sys
from collections.abc import Iterator
from pathlib import Path

import atheris
from fuzzing import fuzz

sys.path.append(str(Path(__file__).parents[1] / "checkpoints"))

from torch_pickles import (
    FALSE,
    HOOKS,
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
    zip_file,
)

with atheris.instrument_imports(include=["optimizer.checkpoints", "pickletools", "zipfile"]):
    from optimizer.checkpoints import open_checkpoint

DATA = bytes(range(1, 97))
NAMES = [
    *(
        "torch.FloatStorage",
        "torch.storage.UntypedStorage",
        "torch.Tensor",
        "torch.Size",
        "torch.nn.parameter.Parameter",
    ),
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter", "sparse_tensor")),
    *("torch._tensor._rebuild_from_type_v2", "collections.OrderedDict", "numpy.core.multiarray.scalar", "os.system"),
]


def seeds() -> Iterator[bytes]:
    """Yield valid pickles: after the byte Z those for an archive, after L those for a file of an older torch."""
    for zipped in (True, False):
        stored = storage(count=24, zipped=zipped)
        several = {
            "a": view(stored, 2, sizes(2, 3), sizes(4, 1)),
            "b": call("torch._utils._rebuild_parameter", view(stored), FALSE, HOOKS),
            "c": call(
                "torch._utils._rebuild_tensor_v3",
                stored,
                whole(0),
                sizes(9),
                sizes(1),
                FALSE,
                HOOKS,
                named("torch.uint16"),
            ),
            "d": new("pathlib.PosixPath", text("x")) + b"}b",
        }
        for entries in ({"state_dict": mapping(several)}, {"w": view(stored)}, several):
            yield (b"Z" if zipped else b"L") + b"\x80\x02" + mapping(entries) + b"."
    yield b"Z" + b"\x80\x04]\x94" + tuple_of(text("a"), whole(2**62)) + b"a."


def read(path: Path) -> None:
    """Open the file twice, and check that both read the same tensors, all of whose bytes are in the file."""
    given = path.read_bytes()
    if given.startswith((b"Z", b"L")):
        path.write_bytes((zip_file if given.startswith(b"Z") else legacy_file)(given[1:], {"0": DATA}))
    content = path.read_bytes()
    with open_checkpoint(path) as checkpoint, open_checkpoint(path) as again:
        for name, info in checkpoint.tensors.items():
            tensor = checkpoint.tensor(name)
            found, repeated = (bytes(values.reshape(-1).view(dtype=tensor.dtype).numpy().tobytes()) for values in
                               (tensor, again.tensor(name)))  # fmt: skip
            assert (tensor.dtype, tuple(tensor.shape)) == (info.dtype, info.shape)
            assert found == repeated
            size = tensor.dtype.itemsize
            assert all(found[place : place + size] in content for place in range(0, len(found), size))


if __name__ == "__main__":
    words = [word for name in NAMES for word in (f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n", name)]
    fuzz(read, seeds(), words, suffix=".ckpt", longest=2048)
