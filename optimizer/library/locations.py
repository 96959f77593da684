"""Find checkpoints by name, by hash or by both: beside the recipe, then in the folders that the user names."""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from optimizer.checkpoints import STATISTICS
from optimizer.errors import BlockfitWarning, CheckpointError, InputError
from optimizer.events import Progress
from optimizer.files import CHECKPOINT_SUFFIXES, TEXT_SUFFIXES, did_you_mean, missing_file, missing_folder
from optimizer.library.fingerprints import HashCache, legacy_hash, sha256, short_hash

__all__ = [
    "check_folders",
    "checkpoints_below",
    "checkpoints_in",
    "given_not_found",
    "locate",
    "name_without_hash",
    "named_at",
    "not_found",
    "seen_from",
    "slashed",
]


# The WebUI writes `name [hash]`. People quote the first 10 digits of the file's SHA-256, or all 64. Before 2023 they
# quoted the 8 digits of another hash.
_WITH_HASH = re.compile(r"(.*?)\s*\[([0-9a-fA-F]{8,64})\]")
_HASH = re.compile(r"[0-9a-fA-F]{8}|[0-9a-fA-F]{10}|[0-9a-fA-F]{64}")
_LEGACY, _SHORT, _WHOLE = 8, 10, 64
_SAMPLE = 1 << 16  # bytes


def locate(
    file: str,
    beside: Path,
    folders: Sequence[Path] = (),
    *,
    hashes: HashCache | None = None,
    progress: Progress | None = None,
) -> Path | None:
    """Return the path of a checkpoint that is named by file name, by hash, or by both.

    A file with exactly the name `file` has precedence over a hash. The WebUI's old hash of 8 digits is accepted with a
    warning if only one file has it. Files whose hash is not cached are read: those of the name if one is given, else
    one after the other until one fits. Unreadable ones are then skipped. Several files of one name count as one if they
    are equal byte for byte; their sizes, some of their bytes and finally their hashes are compared.

    Args:
        file: The name, perhaps without extension; the hash, the first 10 digits of the file's SHA-256 or all 64, with
            or without brackets; or both, as in `name [a60cfaa90d]`.
        beside: The folder to search first, without the folders below.
        folders: The folders to search next, with all folders below.
        hashes: A cache of hashes.
        progress: Called with a description, the bytes read and their total.

    Returns:
        The path; None if no file fits.

    Raises:
        CheckpointError: Several different files fit, or the file of that name has another hash.
    """
    found = _named(file, beside, folders)
    if not found and (reference := _name_and_hash(file)) is not None:
        name, digits = reference
        return _with_hash(name, digits, beside, folders, hashes, progress)
    if len(found) > 1 and len(found := _different(found, hashes, progress)) > 1:
        listed = ", ".join(map(str, found))
        raise CheckpointError(
            f"{file!r}: {len(found)} files have this name: {listed}; name the folder too, or the hash "
            f"({Path(slashed(file)).stem} [0123456789])"
        )
    return found[0] if found else None


def given_not_found(given: Path, folders: Sequence[Path] = ()) -> str:
    """Return the message for a checkpoint that a user names and `locate` does not find in `folders`."""
    hint = f"looked in {_looked(folders)}, too" if folders else "`folders=[DIR]` names folders to look in"
    names = _names_below(folders)
    if _name_and_hash(str(given)) is not None:
        nothing = f"no file has this name or hash{did_you_mean(_named_without_hash(str(given)), names)}"
    else:
        text = given.suffix.lower() in TEXT_SUFFIXES
        nothing = missing_file(given, TEXT_SUFFIXES) if text else missing_file(given, further=names)
    return f"{given}: {nothing}; {hint}"


def not_found(file: str, beside: Path, folders: Sequence[Path] = ()) -> str:
    """Return the message for a file that `locate` does not find: similar names, and the folders searched."""
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


def _different(paths: Sequence[Path], hashes: HashCache | None, progress: Progress | None) -> list[Path]:
    """Return `paths` without files that equal an earlier one.

    The cheapest test comes first: sizes, then some bytes, and only if these are equal the hashes.
    """
    alike: dict[object, list[Path]] = {}
    for path in paths:
        try:
            alike.setdefault(_sample(path), []).append(path)
        except OSError:
            alike[path] = [path]
    different: list[Path] = []
    for same in alike.values():
        first: dict[str, Path] = {}
        for path in same if len(same) > 1 else ():
            report = None if progress is None else partial(progress, f"comparing the files called {path.name}")
            try:
                first.setdefault(sha256(path, hashes, progress=report), path)
            except CheckpointError:
                first[str(path)] = path
        different += first.values() if len(same) > 1 else same
    return [path for path in paths if path in different]


def _sample(path: Path) -> tuple[int, bytes]:
    """Return the size of a file and some bytes from its beginning, its middle and its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        read = b""
        for place in (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(place)
            read += file.read(_SAMPLE)
    return size, read


def _named(file: str, beside: Path, folders: Sequence[Path]) -> list[Path]:
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
    return _distinct(exact or completed)


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


def _distinct(paths: Iterable[Path]) -> list[Path]:
    return list({os.path.realpath(path): path for path in reversed(list(paths))}.values())[::-1]


def _name_and_hash(file: str) -> tuple[str, str] | None:
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


def _with_hash(
    name: str,
    digits: str,
    beside: Path,
    folders: Sequence[Path],
    hashes: HashCache | None,
    progress: Progress | None,
) -> Path | None:
    """Return the file with a hash among those called `name`, or among all files if none has the name."""
    named = _all_named(name, beside, folders) if name else []
    candidates = named or _distinct(
        [*checkpoints_in(beside), *(path for folder in folders for path in checkpoints_below(folder))]
    )
    if len(digits) == _LEGACY:
        return _with_legacy_hash(digits, candidates, named, hashes, progress)
    # Cached hashes find renamed files too, so that most searches read nothing.
    known = {path: hashes.look_up(path, "sha256") if hashes is not None else None for path in candidates}
    for path, digest in known.items():
        if digest is not None and digest.startswith(digits):
            return path
    unknown = [path for path, digest in known.items() if digest is None]
    sizes = {path: _size(path) for path in unknown}
    total, done = sum(sizes.values()), 0
    unreadable: list[str] = []
    for path in unknown:

        def report(read: int, size: int, *, before: int = done) -> None:
            if progress is not None:
                progress(f"hashing to find {digits[:_SHORT]}", min(before + read, total), total)

        try:
            known[path] = digest = sha256(path, hashes, progress=report)
        except CheckpointError as error:
            unreadable += error.problems
            continue
        if digest.startswith(digits):
            return path
        done += sizes[path]
    if named:
        cut = short_hash if len(digits) == _SHORT else str
        differing = (
            f"{path}: has the hash {cut(digest)}, not {digits}; another version of the model?"
            for path, digest in known.items()
            if digest is not None
        )
        raise CheckpointError([*differing, *unreadable])
    # Unreadable files are no problem here: the user did not name them.
    return None


def _with_legacy_hash(
    digits: str,
    candidates: Sequence[Path],
    named: Sequence[Path],
    hashes: HashCache | None,
    progress: Progress | None,
) -> Path | None:
    having: dict[Path, str] = {}
    unreadable: list[str] = []
    for path in candidates:
        try:
            having[path] = legacy_hash(path)
        except CheckpointError as error:
            unreadable += error.problems
    fitting = _different([path for path, found in having.items() if found == digits], hashes, progress)
    if len(fitting) == 1:
        warnings.warn(
            f"{digits} is the WebUI's old hash, which different checkpoints may share; taken to be {fitting[0]}",
            BlockfitWarning,
            stacklevel=2,
        )
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"{digits!r}: {len(fitting)} files have this old hash: {', '.join(map(str, fitting))}; name the file, or "
            "the first 10 digits of its sha256"
        )
    if named:
        differing = (f"{path}: has the old hash {found}, not {digits}" for path, found in having.items())
        raise CheckpointError([*differing, *unreadable])
    return None


def _all_named(name: str, beside: Path, folders: Sequence[Path]) -> list[Path]:
    """Return every file of a name in all folders; a hash selects one of them."""
    relative = Path(slashed(name))
    if relative.name in ("", ".."):
        return []
    found = [path for folder in (beside, *folders) for path in _at(folder / relative)]
    if len(relative.parts) == 1:
        found += [path for folder in folders for path in _below(folder, relative.name)]
    return _distinct(found)


def slashed(file: str) -> str:
    """Return a file's name with forward slashes, which every system accepts."""
    return file.replace("\\", "/")


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in CHECKPOINT_SUFFIXES and path.name != STATISTICS and os.path.isfile(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # deleted meanwhile
        return 0


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
