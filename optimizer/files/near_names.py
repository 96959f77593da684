"""Names that are nearly the one asked for, to be offered where nothing has that name."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["CHECKPOINT_SUFFIXES", "TEXT_SUFFIXES", "did_you_mean", "missing_file", "missing_folder", "near_names"]

CHECKPOINT_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")

TEXT_SUFFIXES = (".yaml", ".yml", ".txt", ".md", ".json", ".tsv", ".csv")
_HASH = re.compile(r"\s*\[[0-9a-fA-F]{8,64}\]\s*$")
_MOST = 3  # that are offered
_LEAST = 0.6  # of the letters in common, as difflib counts
_WITHIN = 0.9  # how near a name is at least that holds the other, or lies in it
_SHORTEST = 4  # letters of a name that counts as found within another
_MOST_LOOKED_AT = 20_000  # names; folders of models have hundreds
_LONGEST = 255  # characters of a name that any file can have


def near_names(wanted: str, names: Iterable[str]) -> list[str]:
    """Return at most three of `names` that are nearly `wanted`, the nearest first.

    Folders, extensions, the WebUI's hash in brackets, upper and lower case, and what stands between words do not count.
    """
    asked = _letters(wanted)
    if not asked:
        return []
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(asked)
    found: dict[str, float] = {}
    for number, name in enumerate(dict.fromkeys(names)):
        if number == _MOST_LOOKED_AT:
            break
        letters = _letters(name)
        matcher.set_seq1(letters)
        near = 0.0
        if min(len(letters), len(asked)) >= _SHORTEST and (asked in letters or letters in asked):
            near = _WITHIN + (1 - _WITHIN) * min(len(letters), len(asked)) / max(len(letters), len(asked))
        elif matcher.real_quick_ratio() >= _LEAST and matcher.quick_ratio() >= _LEAST:
            near = matcher.ratio()
        if near >= _LEAST:
            found[name] = near
    return sorted(found, key=lambda name: (-found[name], name))[:_MOST]


def did_you_mean(wanted: str, names: Iterable[str]) -> str:
    """Return what to say after "not found": "; did you mean 'a' or 'b'?", or "" where no name is near."""
    near = [repr(name) for name in near_names(wanted, names)]
    return f"; did you mean {_either(near)}?" if near else ""


def missing_file(path: Path, suffixes: tuple[str, ...] = CHECKPOINT_SUFFIXES, *, further: Iterable[str] = ()) -> str:
    """Return what to say of a file that is not there: "no such file", and what near it is.

    Near are files in its folder with the same name and another of `suffixes`, else those, and names in `further`, that
    are nearly called so. Where its folder is missing, that is said.
    """
    present = _entries(path.parent, suffixes)
    if not path.suffix:
        present += [name for name in _listed(path.parent) if name not in present and os.path.isdir(path.parent / name)]
    # A name such as "model1.1" has a suffix only by accident, so both readings are tried.
    same = [name for name in present if {name.casefold(), Path(name).stem.casefold()} & _readings(path)]
    if same:
        return f"no such file, but {' and '.join(map(repr, same[:_MOST]))} is there"
    if str(path.parent) != "." and not os.path.exists(path.parent):
        return f"no such file: there is no folder {path.parent}{did_you_mean(path.name, further)}"
    return f"no such file{did_you_mean(path.name, (*present, *further))}"


def missing_folder(path: Path) -> str:
    """Return why `path` is no folder: there is none, and which is near, or it is something else."""
    if os.path.exists(path):
        return "is a file; name the folder that it lies in" if os.path.isfile(path) else "is no folder"
    siblings = [name for name in _listed(path.parent) if os.path.isdir(path.parent / name)]
    return f"no such folder{did_you_mean(path.name, siblings)}"


def _readings(path: Path) -> set[str]:
    return {path.name.casefold(), path.stem.casefold()}


def _entries(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files in a folder with one of these suffixes; where these are a study's, the folders of studies, too."""
    found = _listed(folder)
    studies = [name for name in found if ".yaml" in suffixes and os.path.isfile(folder / name / "study.yaml")]
    return [name for name in found if name.lower().endswith(suffixes) and os.path.isfile(folder / name)] + studies


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())[:_MOST_LOOKED_AT]
    except (OSError, ValueError):  # not there, not to be looked into, or no name that a folder can have
        return []


def _letters(name: str) -> str:
    """The name as names are compared: no folder, hash, extension or separators, in lower case."""
    name = _HASH.sub("", name.replace("\\", "/").rstrip("/").rpartition("/")[2])
    suffix = next((end for end in (*CHECKPOINT_SUFFIXES, *TEXT_SUFFIXES) if name.lower().endswith(end)), "")
    return re.sub(r"[\W_]+", "", name[: len(name) - len(suffix)][:_LONGEST]).casefold()


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
