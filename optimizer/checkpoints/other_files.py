"""Kinds of files and folders without readable tensors, recognized by their first bytes, names or contents."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

from optimizer.checkpoints.kinds import FileKind
from optimizer.files import CHECKPOINT_SUFFIXES

__all__ = ["STATISTICS", "kind_of_folder", "kind_of_other_file"]

# The statistics file that a fit writes: a file of tensors by its name, but not a checkpoint.
STATISTICS = "statistics.safetensors"

_AGAIN = "download the file again"
_UNPACK = "unpack it first"
_NAME_CHECKPOINTS = "name the checkpoints themselves"
_WHOLE = "give the single file with all of the model, as WebUIs and ComfyUI load it"

# By the first bytes, in lower case, without leading space.
_BEGINNINGS = (
    (b"version https://git-lfs", "git-lfs-pointer", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (b"<!doctype", "web-page", "a web page", _AGAIN),
    (b"<html", "web-page", "a web page", _AGAIN),
    (b"<?xml", "web-page", "a web page or a server's answer", _AGAIN),
    (b"<", "web-page", "a web page or a server's answer", _AGAIN),
    (b"\x1f\x8b", "archive", "a gzip archive", _UNPACK),
    (b"rar!", "archive", "a RAR archive", _UNPACK),
    (b"7z\xbc\xaf", "archive", "a 7-Zip archive", _UNPACK),
    (b"\xfd7zxz", "archive", "an xz archive", _UNPACK),
    (b"bzh", "archive", "a bzip2 archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "archive", "a Zstandard archive", _UNPACK),
    (b"\x89png", "image", "a PNG image", _NAME_CHECKPOINTS),
    (b"\xff\xd8\xff", "image", "a JPEG image", _NAME_CHECKPOINTS),
    (b"gif8", "image", "a GIF image", _NAME_CHECKPOINTS),
    (b"\x89hdf", "hdf5", "an HDF5 file, as Keras writes it", "give a .safetensors file of the model"),
    (b"%pdf", "document", "a PDF document", _NAME_CHECKPOINTS),
    (b"\x7felf", "program", "a program", _AGAIN),
    (b"d8:announce", "torrent", "a torrent", "fetch the file that it names"),
    (b"sqlite format", "database", "a database, for example of a study's trials", _NAME_CHECKPOINTS),
)
_UNFINISHED = (".crdownload", ".part", ".partial", ".aria2", ".download", ".tmp", ".incomplete")
_TEXTS = {
    ".yaml": "a recipe or a study",
    ".yml": "a recipe or a study",
    ".txt": "a text",
    ".md": "a text",
    ".csv": "a table",
}
_MOST_JSON = 64 << 20  # bytes; the index of a large model has one or two million


def kind_of_other_file(path: Path, head: bytes) -> FileKind | None:
    """Return the kind of a file without readable tensors.

    More of the file is read if that identifies it, but never all of a large file.

    Args:
        path: Path of the file.
        head: First bytes of the file.

    Returns:
        The kind; None if it is unknown.
    """
    text = head.lstrip()
    start = text.lower()
    if not head.strip(b"\0"):
        return FileKind("zeros", "a file of zeros", _begins(head[:8]), advice=f"an interrupted download: {_AGAIN}")
    if head.startswith(b"GGUF"):
        return _gguf(path)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return FileKind("image", "a WebP image", _begins(head[:4]), advice=_NAME_CHECKPOINTS)
    if b"\0" in head and head.startswith((b"BM", b"MZ")):
        name, title = ("image", "a BMP image") if head.startswith(b"BM") else ("program", "a program for Windows")
        return FileKind(name, title, _begins(head[:2]), advice=_NAME_CHECKPOINTS)
    if start.startswith((b"{", b"[")) and (found := _json(path)) is not None:
        return found
    for prefix, name, title, advice in _BEGINNINGS:
        if start.startswith(prefix):
            return FileKind(name, title, _begins(text[: len(prefix)]), advice=advice)
    if _is_tar(path):
        return FileKind("archive", "a tar archive", "ustar in its header", advice=_UNPACK)
    suffix = path.suffix.lower()
    if suffix in _UNFINISHED:
        return FileKind("unfinished", "an unfinished download", f"{suffix} in its name", advice="finish it first")
    if suffix in _TEXTS and b"\0" not in head:
        return FileKind("text", f"{_TEXTS[suffix]}", f"{suffix} in its name", advice=_NAME_CHECKPOINTS)
    return None


def kind_of_folder(path: Path) -> FileKind:
    """Return the kind of a folder that was given instead of a file."""
    index, config = _read_json(path / "model_index.json"), _read_json(path / "config.json")
    if (path / "model_index.json").is_file():
        return FileKind("diffusers-folder", "a folder in diffusers format", _class_of(index), advice=_WHOLE)
    if "_class_name" in config or "architectures" in config:
        title = "a folder with a part of a diffusers model"
        return FileKind("component-folder", title, _class_of(config), advice=_WHOLE)
    try:
        names = sorted(entry.name for entry in path.iterdir() if os.path.isfile(entry))
    except OSError:
        names = []
    indexes = [name for name in names if name.endswith(".index.json")]
    if indexes:
        return FileKind("sharded-folder", "a folder with a model in several files", indexes[0], advice=_WHOLE)
    found = [name for name in names if name.lower().endswith(CHECKPOINT_SUFFIXES)]
    if found:
        listed = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        return FileKind("folder", "a folder", f"holds {listed}", advice="name one of its files")
    return FileKind("folder", "a folder", "holds no checkpoint", advice="give a single checkpoint file")


def _gguf(path: Path) -> FileKind:
    architecture = ""
    try:
        with path.open("rb") as file:
            # Magic, version, counts of tensors and of values. The first value is the architecture, if the file has one.
            _, _, _, values = struct.unpack("<4sIQQ", file.read(24))
            key = _text(file.read) if values else ""
            if key == "general.architecture" and struct.unpack("<I", file.read(4)) == (8,):
                architecture = _text(file.read)
    except (OSError, struct.error, ValueError):
        pass
    what = f"a GGUF file of architecture {architecture}" if architecture else "a GGUF file"
    return FileKind("gguf", what, "begins with 'GGUF'", advice="give the file that it was quantised from")


def _text(read: Callable[[int], bytes]) -> str:
    (length,) = struct.unpack("<Q", read(8))
    if length > 200:
        raise ValueError("no name is that long")
    return read(length).decode("utf-8")


def _json(path: Path) -> FileKind | None:
    data = _read_json(path)
    if not data:
        what = "JSON text, for example a server's error message"
        return FileKind("json", what, "begins with '{' or '['", advice=_AGAIN)
    weight_map = data.get("weight_map")
    if isinstance(weight_map, dict):
        files = sorted({str(file) for file in weight_map.values()})
        what = f"the index of a model in {len(files)} files"
        return FileKind("index", what, f"lists {', '.join(files[:2])}{' ...' if len(files) > 2 else ''}", advice=_WHOLE)
    if "_class_name" in data or "architectures" in data:
        return FileKind("configuration", "a configuration without weights", _class_of(data), advice=_NAME_CHECKPOINTS)
    if "nodes" in data or any(isinstance(node, dict) and "class_type" in node for node in data.values()):
        return FileKind("workflow", "a ComfyUI workflow", "holds its nodes", advice=_NAME_CHECKPOINTS)
    fields = ", ".join(repr(str(field)[:40]) for field in list(data)[:3])
    return FileKind("json", "JSON text, for example a server's error message", f"holds {fields}", advice=_AGAIN)


def _read_json(path: Path) -> dict[str, object]:
    """Return the mapping in a JSON file; an empty one if the file is missing, too large or of another form."""
    try:
        if path.stat().st_size > _MOST_JSON:
            return {}
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _class_of(data: dict[str, object]) -> str:
    named = data.get("_class_name") or data.get("architectures") or "no class in its configuration"
    return str(named[0] if isinstance(named, list) and named else named)[:80]


def _is_tar(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(257)
            return file.read(5) == b"ustar"
    except OSError:
        return False


def _begins(content: bytes) -> str:
    """Return a phrase with the first bytes of a file, only those that identify its format: the rest may be private."""
    return f"begins with {ascii(content)[1:]}"
