"""Lazy reading of checkpoints, whatever they are stored in, without ever running what is inside them.

Two kinds of files are understood, told apart by their content and not by their extension:

* safetensors, mapped into memory;
* what `torch.save` writes (`torch_files`): zip archives (torch 1.6 and later) and older files, both mapped into memory;
  archives that another program compressed are unpacked.

Mapped pages belong to the operating system's file cache: any number of mapped checkpoints may be open at once, and
none of them grows the process.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open

from optimizer.checkpoints.header import MOST_TENSORS, SAFETENSORS_HEADER_LIMIT, read_header
from optimizer.checkpoints.kinds import FileKind, kind_of, shown_name
from optimizer.checkpoints.open_file import FileState, HeldFile
from optimizer.checkpoints.other_files import kind_of_folder, kind_of_other_file
from optimizer.checkpoints.pickles import LEFT_OUT, StoredTensor, Unreadable
from optimizer.checkpoints.torch_files import TorchFile, read_torch_pickles, read_torch_zip
from optimizer.errors import CheckpointError
from optimizer.families import Layout, detect_layout, layout_names, load_layout
from optimizer.files import CHECKPOINT_SUFFIXES, missing_file

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "Checkpoint",
    "TensorInfo",
    "check_unchanged",
    "open_checkpoint",
    "raw_bytes",
    "unfit",
]

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
_DEEPEST = 4  # mappings in one another, to tell what a file without tensors at the top is
_MOST_WRAPPERS = 8  # mappings around one another, the tensors in the innermost


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

    `tensors` maps canonical names to what is known without reading, in file order. `kind` is what the file is by its
    names and shapes, None if that is not known; `layout` is None if no known layout fits, and names are then as stored.
    `format` is `safetensors`, `torch zip` or `torch legacy`; `mapped` says that tensor data stays in the file until it
    is used. `state` is what the file was like when it was opened. `passed_over` are the stored names of tensors that
    the file holds once more under the layout's own names, with other values: these are read, as every tool does.

    Several threads may call `tensor` at once. A tensor may share its memory with the mapped file, so it must not be
    changed in place; while one is in use, its file stays mapped even after `close`.

        with open_checkpoint(Path("model.safetensors")) as checkpoint:
            for name in checkpoint.tensors:
                print(name, checkpoint.tensor(name).float().norm())
    """

    def __init__(self, path: Path, contents: _Contents, layout: Layout | None, kind: FileKind | None = None) -> None:
        self.path = path
        self.layout = layout
        self.kind = kind
        self.format = contents.format
        self.mapped = contents.mapped
        self.metadata = MappingProxyType(dict(contents.metadata))
        self.state: FileState = contents.file.state
        self._contents: _Contents | None = contents
        self.passed_over: tuple[str, ...] = ()
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self._canonical(contents.tensors))

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with canonical `name`: contiguous, on the CPU, of the dtype stored. Not kept.

        Its shape is as stored, but for convolutions of one pixel that a tool has stored as matrices.

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

    def selected(self, names: Mapping[str, str], layout: Layout | None = None) -> "Checkpoint":
        """Some tensors of the same file under other names, {new name: name here}; has to be closed itself.

        The new names are those of `layout` (default: this checkpoint's).
        Raises KeyError if there is no tensor of a name, ValueError if the checkpoint was closed.
        """
        layout = layout or self.layout
        tensors = tuple(_called(self.tensors[name], new, layout) for new, name in names.items())
        return Checkpoint(self.path, replace(self._opened(), tensors=tensors), layout, self.kind)

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
        return contents.read(info.stored_name).reshape(info.shape)

    def _canonical(self, stored: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for info in stored:
            first = tensors.setdefault(info.name, info)
            if first is info or self._equal(first, info):
                continue
            own, second = (first, info) if first.stored_name == first.name else (info, first)
            yields = self.layout is not None and self.layout.yields(second.stored_name)
            if own.stored_name != own.name or not yields:
                raise CheckpointError(
                    f"{self.path}: {first.stored_name!r} and {info.stored_name!r} are two spellings of one tensor, "
                    "but their values differ; remove one of them"
                )
            tensors[own.name] = own
            self.passed_over += (second.stored_name,)
        return tensors

    def _equal(self, one: TensorInfo, other: TensorInfo) -> bool:
        return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
            raw_bytes(self._stored(one)), raw_bytes(self._stored(other))
        )


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
    kind = _kind(path, contents)
    stored_names = [info.stored_name for info in contents.tensors]
    if layout is None:
        layout = _layout_of(kind, stored_names)
    elif _layout_of(kind, stored_names, layout) is None:
        raise CheckpointError(f"{path}: {_unfit(kind, stored_names, (layout,))}")
    if layout is not None:
        named = tuple(_called(info, layout.canonical(info.stored_name), layout) for info in contents.tensors)
        contents = replace(contents, tensors=named)
    return Checkpoint(path, contents, layout, kind)


def unfit(checkpoint: Checkpoint) -> str:
    """Return what a checkpoint without a layout is instead, and what would be right, to be said after its name."""
    known = tuple(load_layout(name) for name in layout_names())
    return _unfit(checkpoint.kind, list(checkpoint.tensors), known)


def check_unchanged(checkpoints: Iterable[Checkpoint]) -> None:
    """Raise CheckpointError, a line for each of them, if files are no longer there as they were when they were opened.

    For what was read in one pass, by whatever way, and is worth nothing if a file changed in between.
    """
    found = {checkpoint.path: checkpoint.fate() for checkpoint in checkpoints}
    if problems := [f"{path}: {fate} while it was being read; run again" for path, fate in found.items() if fate]:
        raise CheckpointError(problems)


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The data of `tensor` as stored in memory: uint8 [bytes], a view where `tensor` is contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _called(info: TensorInfo, name: str, layout: Layout | None) -> TensorInfo:
    """The same tensor under another name, in the shape that `layout` has for it."""
    return replace(info, name=name, shape=info.shape if layout is None else layout.shape_of(name, info.shape))


def _contents(path: Path) -> _Contents:
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: {_is_a(kind_of_folder(path))}")
    try:
        file = HeldFile(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: {missing_file(path)}") from None
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
    kind = kind_of_other_file(path, head)
    if kind is None:
        # Formats differ in their first bytes; more of a file that a recipe leads to may be nobody else's business.
        raise CheckpointError(f"{path}: not a checkpoint: it begins with {ascii(head[:8])[1:]}")
    raise CheckpointError(f"{path}: {_is_a(kind)}")


def _is_a(kind: FileKind) -> str:
    return f"is {kind}{f'; {kind.advice}' if kind.advice else ''}"


def _kind(path: Path, contents: _Contents) -> FileKind | None:
    shapes = {info.stored_name: info.shape for info in contents.tensors}
    return kind_of(shapes, metadata=contents.metadata, file_name=path.name)


def _layout_of(kind: FileKind | None, stored_names: Sequence[str], wanted: Layout | None = None) -> Layout | None:
    """The layout of a file of this kind with these names, if it is `wanted` or, by default, any that is known."""
    if kind is None:
        known = detect_layout(stored_names) if wanted is None else wanted
    else:
        known = load_layout(kind.layout) if kind.layout in layout_names() else None
    if known is None or (wanted is not None and known.name != wanted.name):
        return None
    return known if known.missing({known.canonical(name) for name in stored_names}) is None else None


def _unfit(kind: FileKind | None, stored_names: Sequence[str], wanted: Sequence[Layout]) -> str:
    """What a file is that has none of the layouts `wanted`, and what would be right."""
    needed = " or ".join(f"{layout.title} (layout {layout.name})" for layout in wanted)
    own = next((layout for layout in wanted if kind is not None and kind.layout == layout.name), None)
    reasons = {layout.name: layout.missing({layout.canonical(name) for name in stored_names}) for layout in wanted}
    if kind is None:
        first = ", ".join(map(shown_name, stored_names[:2])) + (" ..." if len(stored_names) > 2 else "")
        why = reasons[wanted[0].name] if len(wanted) == 1 else None
        return f"is none of the kinds of file that blockfit knows (holds {first}); must be a checkpoint of {needed}" + (
            f", but it {why}" if why else ""
        )
    why = reasons[own.name] if own is not None and kind.whole else None
    if own is not None and why is not None:
        if kind.misnamed:
            return f"is {kind}; {kind.advice}"
        # It is of the right family by its UNet.
        needed = f"whole and of no other family (layout {own.name})"
        return "; ".join(part for part in (f"is {kind}, but {why}; must be {needed}", kind.advice) if part)
    return "; ".join(part for part in (f"is {kind}", f"must be a checkpoint of {needed}", kind.advice) if part)


def _safetensors_contents(held: HeldFile, length: int) -> _Contents:
    path = held.path
    header = read_header(path, length, held.state.size)
    unknown = next((one for one in header.tensors if one.dtype not in SAFETENSORS_DTYPES), None)
    if unknown is not None:
        kind = kind_of({one.name: one.shape for one in header.tensors}, metadata=header.metadata)
        what = f"is {kind}, and " if kind is not None else ""
        raise CheckpointError(f"{path}: {what}{unknown.name!r} has type {unknown.dtype}, which cannot be read")
    if not header.tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: broken safetensors header: {_first_line(error)}") from error
    tensors = tuple(
        TensorInfo(one.name, one.name, SAFETENSORS_DTYPES[one.dtype], one.shape, offset=one.begin)
        for one in header.tensors
    )
    return _Contents(held, "safetensors", True, header.metadata, tensors, opened.get_tensor)


def _torch_contents(held: HeldFile, kind: str, read: Callable[[Path, int], TorchFile]) -> _Contents:
    path = held.path
    file = read(path, held.state.size)
    state = _state_dict(file.content)
    if state is None:
        raise CheckpointError(f"{path}: not a checkpoint: it holds a {_told(file.content)}, not a mapping of tensors")
    for name, value in state.items():
        if isinstance(value, Unreadable):
            raise CheckpointError(f"{path}: {name!r} is {value.kind}; it cannot be read")
    tensors = {
        name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, StoredTensor)
    }
    if not tensors:
        inner = kind_of(dict(_inner_shapes(state)))
        raise CheckpointError(f"{path}: {_is_a(inner) if inner is not None else 'holds no tensors'}")
    if len(tensors) > MOST_TENSORS:
        raise CheckpointError(f"{path}: {len(tensors):,} tensors; no checkpoint has more than {MOST_TENSORS:,}")
    for name, value in tensors.items():
        # A shape may repeat the elements stored, of which views of a few bytes that are terabytes large can be made.
        if value.nbytes > max(value.storage.nbytes, 1 << 20):
            shape = list(value.shape)
            raise CheckpointError(f"{path}: {name!r} has shape {shape}, but only a few of its elements are stored")
    infos = tuple(
        TensorInfo(name, name, value.dtype, value.shape, file.offset(value)) for name, value in tensors.items()
    )
    return _Contents(held, kind, file.mapped, {}, infos, lambda name: file.tensor(tensors[name]))


def _state_dict(content: object) -> Mapping[object, object] | None:
    """The innermost mapping that training code wrapped around the tensors; None if there is no mapping at all."""
    if not isinstance(content, dict):
        return None
    state: dict[object, object] = content
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


def _inner_shapes(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shapes of tensors in mappings and lists within others, by the keys that lead there, a dot between them."""
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    elif isinstance(value, StoredTensor):
        yield name, value.shape
    for key, part in inner if depth < _DEEPEST else ():
        yield from _inner_shapes(part, f"{name}.{key}" if name else str(key), depth + 1)


def _is_tensor(value: object) -> bool:
    return isinstance(value, StoredTensor | Unreadable)


def _told(content: object) -> str:
    return "Tensor" if _is_tensor(content) else type(content).__name__ if content is not LEFT_OUT else "Python object"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
