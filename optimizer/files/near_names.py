"""Suggestions for names that do not exist: similar existing names."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["CHECKPOINT_SUFFIXES", "TEXT_SUFFIXES", "did_you_mean", "missing_file", "missing_folder", "near_names"]

CHECKPOINT_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")

TEXT_SUFFIXES = (".yaml", ".yml", ".txt", ".md", ".json", ".tsv", ".csv")
_HASH = re.compile(r"\s*\[[0-9a-fA-F]{8,64}\]\s*$")
_MOST = 3  # suggestions
_LEAST = 0.6  # least similarity of a suggestion, by difflib's ratio
_WITHIN = 0.9  # least similarity of two names of which one contains the other
_SHORTEST = 4  # letters of the shortest name that counts as contained in another
_MOST_LOOKED_AT = 20_000  # names; folders of models contain hundreds
_LONGEST = 255  # characters of the longest possible file name


def near_names(missing: str, names: Iterable[str]) -> list[str]:
    """Return at most three of `names` that are similar to `missing`, the most similar first.

    Folders, extensions, the WebUI's hash in brackets, case and the separators between words are ignored.

    Args:
        missing: The name that does not exist.
        names: The existing names.

    Returns:
        The similar names, in the order of their similarity.
    """
    asked = _letters(missing)
    if not asked:
        return []
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(asked)
    similarities: dict[str, float] = {}
    for number, name in enumerate(dict.fromkeys(names)):
        if number == _MOST_LOOKED_AT:
            break
        letters = _letters(name)
        matcher.set_seq1(letters)
        similarity = 0.0
        if min(len(letters), len(asked)) >= _SHORTEST and (asked in letters or letters in asked):
            similarity = _WITHIN + (1 - _WITHIN) * min(len(letters), len(asked)) / max(len(letters), len(asked))
        elif matcher.real_quick_ratio() >= _LEAST and matcher.quick_ratio() >= _LEAST:
            similarity = matcher.ratio()
        if similarity >= _LEAST:
            similarities[name] = similarity
    return sorted(similarities, key=lambda name: (-similarities[name], name))[:_MOST]


def did_you_mean(missing: str, names: Iterable[str]) -> str:
    """Return the text to add to "not found": "; did you mean 'a' or 'b'?", or "" without a similar name."""
    near = [repr(name) for name in near_names(missing, names)]
    return f"; did you mean {_either(near)}?" if near else ""


def missing_file(path: Path, suffixes: tuple[str, ...] = CHECKPOINT_SUFFIXES, *, further: Iterable[str] = ()) -> str:
    """Return the text for a missing file: "no such file" and the most helpful hint.

    The hint is a file in the same folder with the same name and another suffix; or that the folder does not exist; or a
    similar name.

    Args:
        path: The missing file.
        suffixes: The suffixes of the files to suggest.
        further: Further names to suggest.

    Returns:
        The text that follows the path in a message.
    """
    present = _entries(path.parent, suffixes)
    if not path.suffix:
        present += [name for name in _listed(path.parent) if name not in present and os.path.isdir(path.parent / name)]
    # A name such as "model1.1" has a suffix only by accident, so both readings are tried.
    same = [name for name in present if {name.casefold(), Path(name).stem.casefold()} & _readings(path)]
    if same:
        return f"no such file, but {' and '.join(map(repr, same[:_MOST]))} {'exists' if len(same) == 1 else 'exist'}"
    if str(path.parent) != "." and not os.path.exists(path.parent):
        return f"no such file: the folder {path.parent} does not exist{did_you_mean(path.name, further)}"
    return f"no such file{did_you_mean(path.name, (*present, *further))}"


def missing_folder(path: Path) -> str:
    """Return why `path` is not a folder: it is something else, or it does not exist; with similar names."""
    if os.path.exists(path):
        return "is a file; name the folder that contains it" if os.path.isfile(path) else "is not a folder"
    siblings = [name for name in _listed(path.parent) if os.path.isdir(path.parent / name)]
    return f"no such folder{did_you_mean(path.name, siblings)}"


def _readings(path: Path) -> set[str]:
    return {path.name.casefold(), path.stem.casefold()}


def _entries(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files in a folder with one of these suffixes; for .yaml also the folders of studies."""
    found = _listed(folder)
    studies = [name for name in found if ".yaml" in suffixes and os.path.isfile(folder / name / "study.yaml")]
    return [name for name in found if name.lower().endswith(suffixes) and os.path.isfile(folder / name)] + studies


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())[:_MOST_LOOKED_AT]
    except (OSError, ValueError):  # missing, not readable, or an impossible name
        return []


def _letters(name: str) -> str:
    """Return a name as names are compared: without folder, hash, extension and separators, in lower case."""
    name = _HASH.sub("", name.replace("\\", "/").rstrip("/").rpartition("/")[2])
    suffix = next((end for end in (*CHECKPOINT_SUFFIXES, *TEXT_SUFFIXES) if name.lower().endswith(end)), "")
    return re.sub(r"[\W_]+", "", name[: len(name) - len(suffix)][:_LONGEST]).casefold()


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
