"""Lazy reading of checkpoints, whatever they are stored in, without ever running what is inside them.

Two kinds of files are understood, told apart by their content and not by their extension:

* safetensors, mapped into memory;
* what `torch.save` writes (`torch_files`): zip archives (torch 1.6 and later) and older files, both mapped into memory;
  archives that another program compressed are unpacked.

Mapped pages belong to the operating system's file cache: any number of mapped checkpoints may be open at once, and
none of them grows the process.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from optimizer.checkpoints.held import FileState, HeldFile
from optimizer.checkpoints.layout import Layout, detect_layout
from optimizer.checkpoints.pickles import LEFT_OUT, StoredTensor, Unreadable
from optimizer.checkpoints.presence import is_file, is_folder
from optimizer.checkpoints.torch_files import TorchFile, read_torch_pickles, read_torch_zip
from optimizer.errors import CheckpointError

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "Checkpoint",
    "TensorInfo",
    "check_unchanged",
    "describe_contents",
    "near_miss",
    "open_checkpoint",
    "raw_bytes",
]

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "C64": torch.complex64,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; safetensors itself refuses longer headers
_MOST_TENSORS = 100_000  # of a file; SD 1.x has some 1,100, the largest models ten times that
_MOST_WRAPPERS = 8  # mappings around one another, the tensors in the innermost

# What the first tensor name under one of these prefixes gives away, most telling first.
_FAMILIES = (
    ("conditioner.", "SDXL"),
    ("model.diffusion_model.joint_blocks.", "SD 3"),
    ("model.diffusion_model.double_blocks.", "FLUX"),
    ("double_blocks.", "FLUX"),
    ("model.diffusion_model.label_emb.", "SDXL or unCLIP"),
    ("cond_stage_model.model.", "SD 2.x"),
    ("lora_", "a LoRA"),
    ("control_model.", "a ControlNet"),
    ("down_blocks.", "a UNet in diffusers names"),
    ("text_model.", "a text encoder alone"),
    ("encoder.", "a VAE alone"),
)

# What a file that is no checkpoint may be instead, by its first bytes (in lower case, leading space dropped).
_OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<!doctype", "a web page: download the file again"),
    (b"<html", "a web page: download the file again"),
    (b"<?xml", "a web page or a server's answer: download the file again"),
    (b"{", "JSON text, such as a server's error message: download the file again"),
    (b"gguf", "a GGUF file, which cannot be merged"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"rar!", "a RAR archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"\0\0\0\0\0\0\0\0", "zeros only: an interrupted download"),
)


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says about one tensor without reading it.

    `offset` is where in the file its data begin, in bytes, if they lie there in one piece, row after row and little
    endian; None where that is not known.
    """

    name: str
    stored_name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int | None = None


@dataclass(frozen=True)
class _Contents:
    """What one kind of file holds: tensors by their stored names, in file order, and a way to read one."""

    file: HeldFile
    format: str
    mapped: bool
    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    read: Callable[[str], torch.Tensor]


class Checkpoint:
    """A checkpoint file whose tensors are read when asked for; made by `open_checkpoint`.

    `tensors` maps canonical names to what is known without reading, in file order. `layout` is None if no known layout
    fits; names are then as stored. `format` is `safetensors`, `torch zip` or `torch legacy`; `mapped` says that tensor
    data stays in the file until it is used. `state` is what the file was like when it was opened.

    Several threads may call `tensor` at once. A tensor may share its memory with the mapped file, so it must not be
    changed in place; while one is in use, its file stays mapped even after `close`.

        with open_checkpoint(Path("model.safetensors")) as checkpoint:
            for name in checkpoint.tensors:
                print(name, checkpoint.tensor(name).float().norm())
    """

    def __init__(self, path: Path, contents: _Contents, layout: Layout | None) -> None:
        self.path = path
        self.layout = layout
        self.format = contents.format
        self.mapped = contents.mapped
        self.metadata = MappingProxyType(dict(contents.metadata))
        self.state: FileState = contents.file.state
        self._contents: _Contents | None = contents
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self._canonical(contents.tensors))

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with canonical `name`: contiguous, on the CPU, dtype and shape as stored. Not kept.

        Raises KeyError if there is none of this name, ValueError if the checkpoint was closed, CheckpointError if its
        file is mapped and was written to or cut short since it was opened.
        """
        return self._stored(self.tensors[name])

    def check_intact(self) -> None:
        """Raise CheckpointError if tensors read so far may be wrong: the mapped file was written to or cut short.

        A file that another one took the place of, or that was deleted, is still mapped as it was.
        """
        contents = self._opened()
        if contents.mapped:
            contents.file.check_intact()

    def fate(self) -> str | None:
        """What became of the file since it was opened, "was replaced by another file" or the like; None if nothing."""
        return self._opened().file.fate()

    def selected(self, names: Mapping[str, str]) -> "Checkpoint":
        """Some tensors of the same file under other names, {new name: name here}; has to be closed itself.

        Raises KeyError if there is no tensor of a name, ValueError if the checkpoint was closed.
        """
        tensors = tuple(replace(self.tensors[name], name=new) for new, name in names.items())
        return Checkpoint(self.path, replace(self._opened(), tensors=tensors), self.layout)

    def close(self) -> None:
        """Let go of the file. Tensors already read stay valid."""
        self._contents = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        layout = self.layout.name if self.layout else "unknown layout"
        return f"<Checkpoint {self.path}: {layout}, {len(self.tensors)} tensors, {self.format}>"

    def _opened(self) -> _Contents:
        # Taken once: another thread may close the checkpoint between a test and the use.
        contents = self._contents
        if contents is None:
            raise ValueError(f"{self.path}: the checkpoint was closed")
        return contents

    def _stored(self, info: TensorInfo) -> torch.Tensor:
        contents = self._opened()
        if contents.mapped:
            # Not the whole way to safety: a file that is cut short between this and the use still ends the process.
            contents.file.check_intact()
        return contents.read(info.stored_name)

    def _canonical(self, stored: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for info in stored:
            first = tensors.setdefault(info.name, info)
            if first is not info and not (
                first.dtype == info.dtype
                and first.shape == info.shape
                and torch.equal(raw_bytes(self._stored(first)), raw_bytes(self._stored(info)))
            ):
                raise CheckpointError(
                    f"{self.path}: {first.stored_name!r} and {info.stored_name!r} are two spellings of one tensor, "
                    "but their values differ; remove one of them"
                )
        return tensors


def open_checkpoint(path: Path, *, layout: Layout | None = None) -> Checkpoint:
    """Open the checkpoint at `path` without reading tensor data.

    With `layout` the file must have that layout; without, it is looked for, and may be unknown.

    Raises CheckpointError if the file is missing, empty, truncated or no checkpoint, if reading it would run code, if
    it has another layout than `layout`, if it holds one tensor under two names with different values, or if it changes
    meanwhile.
    """
    path = Path(path)
    try:
        contents = _contents(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    stored_names = [info.stored_name for info in contents.tensors]
    if layout is None:
        layout = detect_layout(stored_names)
    else:
        reason = layout.missing({layout.canonical(name) for name in stored_names})
        if reason is not None:
            raise CheckpointError(
                f"{path}: not {layout.title} (layout {layout.name}): {describe_contents(stored_names) or reason}"
            )
    if layout is not None:
        named = tuple(replace(info, name=layout.canonical(info.stored_name)) for info in contents.tensors)
        contents = replace(contents, tensors=named)
    return Checkpoint(path, contents, layout)


def check_unchanged(checkpoints: Iterable[Checkpoint]) -> None:
    """Raise CheckpointError, a line for each of them, if files are no longer there as they were when they were opened.

    For what was read in one pass, by whatever way, and is worth nothing if a file changed in between.
    """
    found = {checkpoint.path: checkpoint.fate() for checkpoint in checkpoints}
    if problems := [f"{path}: {fate} while it was being read; run again" for path, fate in found.items() if fate]:
        raise CheckpointError(problems)


def describe_contents(stored_names: Iterable[str]) -> str | None:
    """What a file with these tensor names seems to be, such as 'it holds conditioner.* keys, as SDXL has', or None."""
    names = list(stored_names)
    for prefix, family in _FAMILIES:
        if any(name.startswith(prefix) for name in names):
            return f"it holds {prefix}* keys, as {family} has"
    return None


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The data of `tensor` as stored in memory: uint8 [bytes], a view where `tensor` is contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _contents(path: Path) -> _Contents:
    if is_folder(path):
        kind = "a folder in diffusers format" if (path / "model_index.json").is_file() else "a folder"
        raise CheckpointError(f"{path}: {kind}; give a single checkpoint file")
    try:
        file = HeldFile(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file{near_miss(path)}") from None
    if file.state.size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes)")
    contents = _recognized(file)
    # It was opened more than once, by its path.
    if (fate := file.fate()) is not None:
        raise CheckpointError(f"{path}: {fate} while it was being read; run again")
    return contents


def _recognized(held: HeldFile) -> _Contents:
    path = held.path
    with path.open("rb") as file:
        head = file.read(64)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= SAFETENSORS_HEADER_LIMIT:
        return _safetensors_contents(held, length)
    if head[8:10] in (b'{"', b"{}"):
        raise CheckpointError(
            f"{path}: broken safetensors header: it says that it has {length:,} bytes; at most "
            f"{SAFETENSORS_HEADER_LIMIT:,} can be"
        )
    if head.startswith(b"PK"):
        return _torch_contents(held, "torch zip", read_torch_zip)
    if re.match(rb"\x80[\x02-\x05]", head):
        return _torch_contents(held, "torch legacy", read_torch_pickles)
    start = head.lstrip().lower() if head.strip(b"\0") else bytes(8)
    guess = next((f"; looks like {what}" for prefix, what in _OTHER_FILES if start.startswith(prefix)), "")
    # Formats differ in their first bytes; more of a file that a recipe leads to may be nobody else's business.
    raise CheckpointError(f"{path}: not a checkpoint: it begins with {ascii(head[:8])[1:]}{guess}")


def near_miss(path: Path) -> str:
    """What to say after "no such file": which checkpoints with this name and another extension are there; or ""."""
    # A name such as "model1.1" has a suffix only by accident, so both readings are tried.
    names = dict.fromkeys(base + suffix for base in (path.stem, path.name) for suffix in CHECKPOINT_SUFFIXES)
    found = [name for name in names if name != path.name and is_file(path.parent / name)]
    return f", but {' and '.join(map(repr, found))} is there" if found else ""


def _safetensors_contents(held: HeldFile, length: int) -> _Contents:
    path, size = held.path, held.state.size
    try:
        with path.open("rb") as file:
            file.seek(8)
            text = file.read(length)
        if len(text) < length:
            raise CheckpointError(_truncated(path, 8 + length, size))
        if text.count(b'"data_offsets"') > _MOST_TENSORS:
            raise CheckpointError(f"{path}: more than {_MOST_TENSORS:,} tensors; no checkpoint has so many")
        header: dict[str, Any] = json.loads(text, object_pairs_hook=_without_doubles)
        metadata = header.pop("__metadata__", None) or {}
        ends = [entry["data_offsets"][1] for entry in header.values()]
        if 8 + length + max(ends, default=0) > size:
            raise CheckpointError(_truncated(path, 8 + length + max(ends), size))
        opened = safe_open(path, framework="pt", device="cpu")
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{path}: broken safetensors header: nested without end") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: broken safetensors header: {_first_line(error)}") from error
    if len(header) > _MOST_TENSORS:
        raise CheckpointError(f"{path}: {len(header):,} tensors; no checkpoint has more than {_MOST_TENSORS:,}")
    unknown = next((name for name, entry in header.items() if entry["dtype"] not in SAFETENSORS_DTYPES), None)
    if unknown is not None:
        raise CheckpointError(f"{path}: {unknown!r} has type {header[unknown]['dtype']}, which cannot be read")
    if not header:
        raise CheckpointError(f"{path}: holds no tensors")
    tensors = tuple(
        TensorInfo(
            name,
            name,
            SAFETENSORS_DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            offset=8 + length + entry["data_offsets"][0],
        )
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    )
    return _Contents(held, "safetensors", True, metadata, tensors, opened.get_tensor)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; two readers may take two different ones of entries with the same name, so there must be none."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice[:100]!r} is given twice")
    return found


def _truncated(path: Path, expected: int, size: int) -> str:
    return f"{path}: truncated: its header says {expected:,} bytes, the file has {size:,}; download or copy it again"


def _torch_contents(held: HeldFile, kind: str, read: Callable[[Path, int], TorchFile]) -> _Contents:
    path = held.path
    file = read(path, held.state.size)
    state = _state_dict(file.content)
    if state is None:
        raise CheckpointError(f"{path}: not a checkpoint: it holds a {_called(file.content)}, not a mapping of tensors")
    for name, value in state.items():
        if isinstance(value, Unreadable):
            raise CheckpointError(f"{path}: {name!r} is {value.kind}; it cannot be read")
    tensors = {name: value for name, value in state.items() if isinstance(value, StoredTensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    if len(tensors) > _MOST_TENSORS:
        raise CheckpointError(f"{path}: {len(tensors):,} tensors; no checkpoint has more than {_MOST_TENSORS:,}")
    for name, value in tensors.items():
        # A shape may repeat the elements stored, of which views of a few bytes that are terabytes large can be made.
        if value.nbytes > max(value.storage.nbytes, 1 << 20):
            shape = list(value.shape)
            raise CheckpointError(f"{path}: {name!r} has shape {shape}, but only a few of its elements are stored")
    infos = tuple(
        TensorInfo(name, name, value.dtype, value.shape, file.offset(value)) for name, value in tensors.items()
    )
    return _Contents(held, kind, file.mapped, {}, infos, lambda name: file.tensor(tensors[name]))


def _state_dict(content: object) -> Mapping[str, object] | None:
    """The innermost mapping that training code wrapped around the tensors; None if there is no mapping at all."""
    if not isinstance(content, dict):
        return None
    state: dict[str, object] = content
    for _ in range(_MOST_WRAPPERS):
        inner = (
            nested
            for key in ("state_dict", "model", "module")
            if isinstance(nested := state.get(key), dict)
            and (key == "state_dict" or not any(map(_is_tensor, state.values())))
        )
        if (nested := next(inner, None)) is None:
            return state
        state = nested
    return None


def _is_tensor(value: object) -> bool:
    return isinstance(value, StoredTensor | Unreadable)


def _called(content: object) -> str:
    return "Tensor" if _is_tensor(content) else type(content).__name__ if content is not LEFT_OUT else "Python object"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
