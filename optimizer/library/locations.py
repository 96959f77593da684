"""Find checkpoints by name: beside the recipe, then in the folders that the user names."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from optimizer.checkpoints import STATISTICS
from optimizer.errors import CheckpointError, InputError
from optimizer.files import CHECKPOINT_SUFFIXES, TEXT_SUFFIXES, did_you_mean, missing_file, missing_folder

__all__ = [
    "all_named",
    "check_folders",
    "checkpoints_below",
    "checkpoints_in",
    "distinct",
    "given_not_found",
    "name_and_digits",
    "name_without_hash",
    "named",
    "named_at",
    "not_found",
    "seen_from",
    "slashed",
]

# The WebUI writes `name [hash]`. People quote the first 10 digits of the file's SHA-256, or all 64. Before 2023 they
# quoted the 8 digits of another hash.
_WITH_HASH = re.compile(r"(.*?)\s*\[([0-9a-fA-F]{8,64})\]")
_HASH = re.compile(r"[0-9a-fA-F]{8}|[0-9a-fA-F]{10}|[0-9a-fA-F]{64}")


def given_not_found(given: Path, folders: Sequence[Path] = ()) -> str:
    """Return the message for a checkpoint that a user names and that is not in `folders`."""
    hint = f"looked in {_looked(folders)}, too" if folders else "`folders=[DIR]` names folders to look in"
    names = _names_below(folders)
    if name_and_digits(str(given)) is not None:
        nothing = f"no file has this name or hash{did_you_mean(_named_without_hash(str(given)), names)}"
    else:
        text = given.suffix.lower() in TEXT_SUFFIXES
        nothing = missing_file(given, TEXT_SUFFIXES) if text else missing_file(given, further=names)
    return f"{given}: {nothing}; {hint}"


def not_found(file: str, beside: Path, folders: Sequence[Path] = ()) -> str:
    """Return the message for a file that is not found: similar names, and the folders searched."""
    beside_it = [path.name for path in checkpoints_in((beside / Path(slashed(file))).parent)]
    near = did_you_mean(_named_without_hash(file), (*beside_it, *_names_below(folders)))
    return f"{file!r} not found{near}; looked in {_looked((beside, *folders))}"


def check_folders(folders: Iterable[Path]) -> None:
    """Raise InputError with one line for each of `folders` that is no folder."""
    if missing := [folder for folder in dict.fromkeys(folders) if not os.path.isdir(folder)]:
        raise InputError((f"{folder}: {missing_folder(folder)}" for folder in missing), field="folders")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the files directly in `folder` with a checkpoint's extension, sorted by name, without statistics."""
    try:
        return sorted(path for path in folder.iterdir() if _is_checkpoint(path))
    except OSError:  # missing or unreadable folder
        return []


def checkpoints_below(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` and all folders below, with links followed; none for a missing folder."""
    return [path / name for path, names in _walk(folder) for name in names if _is_checkpoint(path / name)]


def name_without_hash(file: str) -> str:
    """Return a file's name without the hash that the WebUI appends; "" for a hash alone."""
    match = _WITH_HASH.fullmatch(file.strip())
    return file if match is None else match[1]


def named_at(file: str, folder: Path) -> Path | None:
    """Return the file named `file` in `folder` itself, perhaps with an extension appended; None without one."""
    relative = Path(slashed(file))
    return None if relative.name in ("", "..") else next(iter(_at(folder / relative)), None)


def _looked(folders: Iterable[Path]) -> str:
    return ", ".join(str(folder) + ("" if os.path.isdir(folder) else " (no such folder)") for folder in folders)


def _named_without_hash(file: str) -> str:
    """Return the name in `file`; "" for a hash alone, brackets optional."""
    return "" if _HASH.fullmatch(file.strip()) else name_without_hash(file)


def _names_below(folders: Iterable[Path]) -> Iterator[str]:
    return (path.name for folder in folders for path in checkpoints_below(folder))


def named(file: str, beside: Path, folders: Sequence[Path]) -> list[Path]:
    """Return the files of a name: the first directly in a folder, else all below the first folder with any."""
    relative = Path(slashed(file))
    if relative.name in ("", ".."):
        return []
    for folder in (beside, *folders):
        if found := _at(folder / relative):
            return found[:1]
    for folder in folders if len(relative.parts) == 1 else ():
        if found := _below(folder, relative.name):
            return found
    return []


def _at(path: Path) -> list[Path]:
    return [spelling for spelling in _spellings(path) if os.path.isfile(spelling)]


def _below(folder: Path, name: str) -> list[Path]:
    """Return the files of a name below `folder`, one per folder; exact names exclude names with an extension added."""
    exact, completed = list[Path](), list[Path]()
    spelled = [os.path.normcase(spelling) for spelling in _spellings(Path(name))]
    for path, names in _walk(folder):
        present = {os.path.normcase(each): each for each in names}
        found = [path / present[spelling] for spelling in spelled if spelling in present]
        if found and os.path.normcase(found[0].name) == spelled[0]:
            exact.append(found[0])
        else:
            completed += found[:1]
    return distinct(exact or completed)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield `folder` and every folder below with its sorted file names; follow each link once."""
    seen = set[str]()
    for place, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        yield Path(place), sorted(names)


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Return the paths without those that lead to the same file as an earlier one."""
    return list({os.path.realpath(path): path for path in reversed(list(paths))}.values())[::-1]


def name_and_digits(file: str) -> tuple[str, str] | None:
    """Return the name, perhaps empty, and the hash in `file`; None for a name alone."""
    if _HASH.fullmatch(file.strip()):
        return "", file.strip().lower()
    match = _WITH_HASH.fullmatch(file.strip())
    if match is None:
        return None
    if not _HASH.fullmatch(match[2]):
        raise CheckpointError(
            f"{file!r}: a hash of {len(match[2])} digits; must be the first 10 digits of a file's sha256, or all 64"
        )
    return match[1], match[2].lower()


def all_named(name: str, beside: Path, folders: Sequence[Path]) -> list[Path]:
    """Return every file of a name in all folders; a hash selects one of them."""
    relative = Path(slashed(name))
    if relative.name in ("", ".."):
        return []
    found = [path for folder in (beside, *folders) for path in _at(folder / relative)]
    if len(relative.parts) == 1:
        found += [path for folder in folders for path in _below(folder, relative.name)]
    return distinct(found)


def slashed(file: str) -> str:
    """Return a file's name with forward slashes, which every system accepts."""
    return file.replace("\\", "/")


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in CHECKPOINT_SUFFIXES and path.name != STATISTICS and os.path.isfile(path)


def _spellings(path: Path) -> Iterable[Path]:
    yield path
    for suffix in CHECKPOINT_SUFFIXES:
        yield path.with_name(path.name + suffix)


def seen_from(folder: Path, path: Path) -> str:
    """Return `path` relative to `folder`, with forward slashes; absolute on another drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()
