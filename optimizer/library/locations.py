"""Where checkpoints are: beside the recipe, then in the folders that the user names; by name, by hash, or by both."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from optimizer.checkpoints import STATISTICS
from optimizer.errors import BlockfitWarning, CheckpointError, InputError
from optimizer.files import CHECKPOINT_SUFFIXES, TEXT_SUFFIXES, did_you_mean, missing_file, missing_folder
from optimizer.library.fingerprints import HashCache, legacy_hash, sha256, short_hash

__all__ = [
    "check_folders",
    "checkpoints_below",
    "checkpoints_in",
    "find_models",
    "locate",
    "locate_given",
    "locate_models",
    "name_without_hash",
    "named_at",
    "not_found",
    "seen_from",
    "slashed",
]

Progress = Callable[[str, int, int], None]


# The WebUI writes `name [hash]`. People pass on the first 10 digits of the file's sha256, all 64, or, from before 2023,
# 8 digits that are another hash.
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
    """The path of `file`: in `beside`, then in each of `folders` and below it; the extension may be left out.

    `file` may also be, as the WebUI writes it, `name [a60cfaa90d]`, or the hash alone with or without brackets: the
    first 10 digits of the file's sha256, or all 64. A file that has this very name comes first. Hashes are taken from
    and kept in `hashes`; files that it does not know are read, those of that name alone if a name is given, else one
    after the other until one fits, those skipped that cannot be read. `progress` is told what is read, the bytes done
    and their total. The WebUI's old hash of 8 digits counts where one file alone has it, with a warning.

    Several files of that name are one if they are the same, byte for byte, which their sizes, some of their bytes and
    at last their hashes tell.

    None if it is nowhere. Raises CheckpointError, one line, where several different files fit, and for a file of that
    name which has another hash.
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


def locate_given(
    given: Path, folders: Sequence[Path] = (), *, hashes: HashCache | None = None, progress: Progress | None = None
) -> Path:
    """The checkpoint that a user names: a path, else what `locate` finds in `folders`.

    A folder of that name does not stand in the way of a file in `folders`: a study's is called like its target. Where
    there is no such file it is given back as it is: opening it tells more.

    Raises CheckpointError, one line, if there is none.
    """
    if os.path.exists(given) and not os.path.isdir(given):
        return given
    found = locate(str(given), Path(), folders, hashes=hashes, progress=progress)
    if found is None and os.path.isdir(given):
        return given
    if found is None:
        hint = f"looked in {_looked(folders)}, too" if folders else "`folders=[DIR]` names folders to look in"
        names = _names_below(folders)
        if _name_and_hash(str(given)) is not None:
            nothing = f"no file has this name or hash{did_you_mean(_named_without_hash(str(given)), names)}"
        else:
            text = given.suffix.lower() in TEXT_SUFFIXES
            nothing = missing_file(given, TEXT_SUFFIXES) if text else missing_file(given, further=names)
        raise CheckpointError(f"{given}: {nothing}; {hint}")
    return found


def not_found(file: str, beside: Path, folders: Sequence[Path] = ()) -> str:
    """Return what to say of a `file` that `locate` finds nowhere: names that are near, and where was looked."""
    wanted = Path(slashed(file))
    beside_it = [path.name for path in checkpoints_in((beside / wanted).parent)]
    near = did_you_mean(_named_without_hash(file), (*beside_it, *_names_below(folders)))
    return f"{file!r} not found{near}; looked in {_looked((beside, *folders))}"


def check_folders(folders: Iterable[Path]) -> None:
    """Raise InputError, one line each, for those of the argument `folders` that are no folders."""
    if missing := [folder for folder in dict.fromkeys(folders) if not os.path.isdir(folder)]:
        raise InputError((f"{folder}: {missing_folder(folder)}" for folder in missing), field="folders")


def find_models(
    files: Mapping[str, str],
    beside: Path,
    folders: Sequence[Path] = (),
    *,
    named_in: Path | str = "recipe",
    hashes: HashCache | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Path], list[str]]:
    """The paths of those of `files` ({name: file}) that `locate` finds, and a line for each of the others."""
    found: dict[str, Path] = {}
    problems = list[str]()
    for name, file in files.items():
        where = f"{named_in}: models.{name}.file"
        try:
            path = locate(file, beside, folders, hashes=hashes, progress=progress)
        except CheckpointError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
            continue
        if path is None:
            more = "" if folders else "; `folders=[DIR]` names more folders"
            problems.append(f"{where}: {not_found(file, beside, folders)}{more}")
        else:
            found[name] = path
    return found, problems


def locate_models(
    files: Mapping[str, str],
    beside: Path,
    folders: Sequence[Path] = (),
    *,
    named_in: Path | str = "recipe",
    hashes: HashCache | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """The paths of all `files` ({name: file}). Raises CheckpointError with one line for each that is not found."""
    found, problems = find_models(files, beside, folders, named_in=named_in, hashes=hashes, progress=progress)
    if problems:
        raise CheckpointError(problems)
    return found


def checkpoints_in(folder: Path) -> list[Path]:
    """The files directly in `folder` whose extension is that of a checkpoint, sorted by name; no study's statistics."""
    try:
        return sorted(path for path in folder.iterdir() if _is_checkpoint(path))
    except OSError:  # a folder that is not there or may not be looked into
        return []


def checkpoints_below(folder: Path) -> list[Path]:
    """The same of `folder` and all folders below it, links followed; empty for one that is not there."""
    return [path / name for path, names in _walk(folder) for name in names if _is_checkpoint(path / name)]


def name_without_hash(file: str) -> str:
    """What a recipe calls a file, without the hash that the WebUI writes after the name; "" for a hash alone."""
    match = _WITH_HASH.fullmatch(file.strip())
    return file if match is None else match[1]


def named_at(file: str, folder: Path) -> Path | None:
    """Return the file that `file` means in `folder` itself, the extension optional; None if there is none."""
    wanted = Path(slashed(file))
    return None if wanted.name in ("", "..") else next(iter(_at(folder / wanted)), None)


def _looked(folders: Iterable[Path]) -> str:
    return ", ".join(str(folder) + ("" if os.path.isdir(folder) else " (no such folder)") for folder in folders)


def _named_without_hash(file: str) -> str:
    """The name in `file`, "" where it is a hash alone."""
    return "" if _HASH.fullmatch(file.strip()) else name_without_hash(file)


def _names_below(folders: Iterable[Path]) -> Iterator[str]:
    return (path.name for folder in folders for path in checkpoints_below(folder))


def _different(paths: Sequence[Path], hashes: HashCache | None, progress: Progress | None) -> list[Path]:
    """Those of `paths` that are not the same file as an earlier one: what is different is seen as cheaply as may be.

    Sizes are compared, then some bytes, and only where these are the same the hashes of all of it.
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
            tell = None if progress is None else partial(progress, f"comparing the files called {path.name}")
            try:
                first.setdefault(sha256(path, hashes, progress=tell), path)
            except CheckpointError:
                first[str(path)] = path
        different += first.values() if len(same) > 1 else same
    return [path for path in paths if path in different]


def _sample(path: Path) -> tuple[int, bytes]:
    """The size of a file and some bytes from its begin, its middle and its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        read = b""
        for place in (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(place)
            read += file.read(_SAMPLE)
    return size, read


def _named(file: str, beside: Path, folders: Sequence[Path]) -> list[Path]:
    """The files that `file` may mean by its name: the first at its very place, else those of the first folder."""
    wanted = Path(slashed(file))
    if wanted.name in ("", ".."):
        return []
    for folder in (beside, *folders):
        if found := _at(folder / wanted):
            return found[:1]
    for folder in folders if len(wanted.parts) == 1 else ():
        if found := _below(folder, wanted.name):
            return found
    return []


def _at(path: Path) -> list[Path]:
    return [spelling for spelling in _spellings(path) if os.path.isfile(spelling)]


def _below(folder: Path, name: str) -> list[Path]:
    """The files of this name below `folder`, one for each place; those with an extension count if none has it whole."""
    whole, completed = list[Path](), list[Path]()
    spelled = [os.path.normcase(spelling) for spelling in _spellings(Path(name))]
    for path, names in _walk(folder):
        present = {os.path.normcase(each): each for each in names}
        there = [path / present[spelling] for spelling in spelled if spelling in present]
        if there and os.path.normcase(there[0].name) == spelled[0]:
            whole.append(there[0])
        else:
            completed += there[:1]
    return _distinct(whole or completed)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `folder`, itself included, with the names of its files; links are followed, once."""
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
    """The name, perhaps empty, and the hash that `file` consists of; None if it is a name alone."""
    if _HASH.fullmatch(file.strip()):
        return "", file.strip().lower()
    match = _WITH_HASH.fullmatch(file.strip())
    if match is None:
        return None
    if not _HASH.fullmatch(match[2]):
        raise CheckpointError(
            f"{file!r}: a hash of {len(match[2])} digits; blockfit knows the first 10 digits of a file's sha256, "
            "or all 64"
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
    """The file with this hash: of those called `name`, or of all, if none is called so."""
    named = _all_named(name, beside, folders) if name else []
    candidates = named or _distinct(
        [*checkpoints_in(beside), *(path for folder in folders for path in checkpoints_below(folder))]
    )
    if len(digits) == _LEGACY:
        return _with_legacy_hash(digits, candidates, named, hashes, progress)
    # Renamed files, too, are known by what was read of them before, so that most searches read nothing.
    known = {path: hashes.look_up(path, "sha256") if hashes is not None else None for path in candidates}
    for path, digest in known.items():
        if digest is not None and digest.startswith(digits):
            return path
    unknown = [path for path, digest in known.items() if digest is None]
    sizes = {path: _size(path) for path in unknown}
    total, done = sum(sizes.values()), 0
    unreadable: list[str] = []
    for path in unknown:

        def tell(read: int, size: int, *, before: int = done) -> None:
            if progress is not None:
                progress(f"hashing to find {digits[:_SHORT]}", min(before + read, total), total)

        try:
            known[path] = digest = sha256(path, hashes, progress=tell)
        except CheckpointError as error:
            unreadable += error.problems
            continue
        if digest.startswith(digits):
            return path
        done += sizes[path]
    if named:
        cut = short_hash if len(digits) == _SHORT else str
        others = (
            f"{path}: has the hash {cut(digest)}, not {digits}; another version of the model?"
            for path, digest in known.items()
            if digest is not None
        )
        raise CheckpointError([*others, *unreadable])
    # Among files that nobody named there may be some that are none of the user's concern.
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
        others = (f"{path}: has the old hash {found}, not {digits}" for path, found in having.items())
        raise CheckpointError([*others, *unreadable])
    return None


def _all_named(name: str, beside: Path, folders: Sequence[Path]) -> list[Path]:
    """Every file that `name` may mean, wherever: a hash tells them apart."""
    wanted = Path(slashed(name))
    if wanted.name in ("", ".."):
        return []
    found = [path for folder in (beside, *folders) for path in _at(folder / wanted)]
    if len(wanted.parts) == 1:
        found += [path for folder in folders for path in _below(folder, wanted.name)]
    return _distinct(found)


def slashed(file: str) -> str:
    """Return a file's name with forward slashes, as every system reads them."""
    return file.replace("\\", "/")


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in CHECKPOINT_SUFFIXES and path.name != STATISTICS and os.path.isfile(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone again
        return 0


def _spellings(path: Path) -> Iterable[Path]:
    yield path
    for suffix in CHECKPOINT_SUFFIXES:
        yield path.with_name(path.name + suffix)


def seen_from(folder: Path, path: Path) -> str:
    """`path` relative to `folder`, with forward slashes, so that who reads what lies there finds it."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()
