"""YAML that a user writes: read with line numbers, checked by a pydantic model, all problems at once.

The same data may come from a call in Python: then the name of the function that was called stands for the file's.

A file may also be a stranger's. No tag is ever acted upon, and what would take long or much memory is refused before.
"""

import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scanner import RoundTripScanner

from optimizer.errors import InputError
from optimizer.files.near_names import TEXT_SUFFIXES, missing_file

__all__ = [
    "UserFile",
    "dump_yaml",
    "line_of",
    "named_file",
    "plain",
    "read_text",
    "read_yaml",
    "shown",
    "validate",
    "yaml_of",
]


class UserFile(BaseModel):
    """What every part of a user's file has in common: frozen, and no field that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


# Texts that need no quotes wherever they stand, unless they could be read as a number or the like.
_PLAIN = re.compile(r"[\w./~][\w./~+()-]*(?: [\w./~+()-]+)*")
_WORD = re.compile(r"[\w. -]{1,80}")
_UserFile = TypeVar("_UserFile", bound=UserFile)

_MOST_BYTES = 1 << 20  # of a file; recipes have some thousands
_MOST_VALUES = 100_000  # in a file, as aliases repeat them; ruamel reads about 20,000 a second
_DEEPEST = 40  # levels of lists and mappings; recipes have about 6
_SHOWN = 80  # characters of what was received


def read_text(path: Path, error: type[InputError], *, most: int = _MOST_BYTES) -> bytes:
    """The bytes of a file that is text. Raises `error`, one line, if it cannot be read or has more than `most`."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as problem:  # a name with a NUL in it is a ValueError
        raise error(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if len(data) > most:
        raise error(f"{path}: more than {most:,} bytes; no text that is meant to be read here has so many")
    return data


def named_file(folder: Path, name: str) -> Path | None:
    """The file that another file in `folder` names, slashes of either kind between folders; None if there is none.

    Devices, pipes and the like count as none: what a stranger's file names must not be waited for.
    """
    path = folder / name.replace("\\", "/")
    return path if os.path.isfile(path) else None


def read_yaml(path: Path, error: type[InputError]) -> CommentedMap:
    """The mapping in a YAML 1.2 file. Raises `error`, one line, for what is missing, unreadable or not a mapping.

    Refused too: more than a megabyte, 100,000 values (aliases counted as often as they stand for something), values
    nested more than 40 deep or in themselves, and tags.
    """
    if os.path.isdir(path):
        raise error(f"{path}: is a folder; a YAML file was expected")
    if not os.path.exists(path):
        raise error(f"{path}: {missing_file(path, TEXT_SUFFIXES)}")
    data = read_text(path, error)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{path}: not UTF-8 text ({problem.reason} at byte {problem.start}); a YAML file was expected"
        ) from None
    try:
        tree = yaml_of(text)
    except MarkedYAMLError as problem:
        line = f" line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise error(f"{path}:{line} not readable as YAML: {_first_line(problem.problem)}") from None
    except RecursionError:
        raise error(f"{path}: not readable as YAML: {_TOO_DEEP}") from None
    except Exception as problem:  # ruamel also fails with built-in errors: an impossible date, an unhashable key, ...
        raise error(f"{path}: not readable as YAML: {_first_line(problem)}") from None
    if not isinstance(tree, CommentedMap):
        received = (
            "nothing" if tree is None else f"a {'list' if isinstance(tree, CommentedSeq) else type(tree).__name__}"
        )
        raise error(f"{path}: received {received} where `field: value` lines were expected")
    return tree


def yaml_of(text: str) -> Any:
    """What YAML 1.2 `text` holds, with line numbers.

    Raises ValueError or one of ruamel's errors for what is no YAML, has tags, or is more than a file may hold.
    """
    # Every value ends in one of these, so they are at least as many as the values, and counting them takes no time.
    if sum(map(text.count, ",:\n-?[{")) > _MOST_VALUES:
        raise ValueError(_TOO_MUCH)
    reader = YAML(typ="rt")
    reader.Scanner = _Scanner
    with warnings.catch_warnings():
        # YAML lets a later anchor take the place of an earlier one of its name.
        warnings.simplefilter("ignore", ReusedAnchorWarning)
        tree = reader.load(text)
    _check(tree)
    return tree


_TOO_DEEP = f"nested more than {_DEEPEST} deep"
_TOO_MUCH = f"more than {_MOST_VALUES:,} values"


class _Scanner(RoundTripScanner):  # type: ignore[misc]
    """Stops where values are nested too deeply: every further level takes longer than the one before."""

    def fetch_flow_collection_start(self, *arguments: Any, **named: Any) -> None:
        """Begin a list or mapping in brackets."""
        if len(self.flow_context) >= _DEEPEST:
            raise ValueError(_TOO_DEEP)
        super().fetch_flow_collection_start(*arguments, **named)

    def add_indent(self, column: int) -> bool:
        """Begin a list or mapping by indenting it."""
        if len(self.indents) >= _DEEPEST:
            raise ValueError(_TOO_DEEP)
        return bool(super().add_indent(column))


def _check(tree: Any) -> None:
    """Refuse tags, and values that are nested too deeply or, by way of aliases, too many."""
    stack: list[tuple[Any, int]] = [(tree, 0)]
    count = 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"{_TOO_MUCH}, aliases and all")
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag is not None:
            number = getattr(getattr(node, "lc", None), "line", None)
            line = "" if number is None else f"line {number + 1}: "
            raise ValueError(f"{line}the tag {shown(str(tag))} is not acted upon; write plain values only")
        if isinstance(node, Mapping | list):
            if depth == _DEEPEST:
                raise ValueError(_TOO_DEEP)
            inner: Iterable[Any] = node if isinstance(node, list) else (part for item in node.items() for part in item)
            stack.extend((part, depth + 1) for part in inner)


def validate(kind: type[_UserFile], data: Mapping[str, Any], given: Path | str, error: type[InputError]) -> _UserFile:
    """`data` as `kind`. Raises `error` with a line for each field that is unknown, missing or of the wrong type.

    `given` is the file, or the function, that the data was given in: it stands before each problem.
    """
    try:
        return kind.model_validate(dict(data))
    except ValidationError as problem:
        raise error([_in_words(given, data, kind, item) for item in problem.errors(include_url=False)]) from None


def line_of(data: Any, location: Sequence[int | str]) -> int | None:
    """The line, counted from 1, at which the value at `location` in a tree read by `read_yaml` stands."""
    line = None
    for key in location:
        try:
            if isinstance(data, CommentedMap):
                line = data.lc.key(key)[0]
            elif isinstance(data, CommentedSeq):
                line = data.lc.item(key)[0]
            data = data[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return None if line is None else line + 1


def plain(value: Any) -> Any:
    """What Python code gave, as a YAML file would hold it: mappings, lists, texts, numbers.

    Tuples and the like become lists, paths texts with forward slashes, numpy's and torch's numbers Python's. Anything
    else stays as it is, to be refused by who reads it.
    """
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, PurePath):
        return value.as_posix()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(inner) for inner in value]
    return value


def dump_yaml(data: Any) -> str:
    """YAML text of plain dicts, lists, strings and numbers; lists of numbers and short mappings on one line."""
    writer = YAML()
    writer.Representer = _Representer
    writer.width = 4096
    writer.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


class _Representer(RoundTripRepresenter):  # type: ignore[misc]
    """Quotes text with punctuation that means something in YAML; ruamel leaves `{license: ?}` bare: no one reads it."""


def _represent_text(representer: Any, text: str) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=None if _PLAIN.fullmatch(text) else '"')


_Representer.add_representer(str, _represent_text)


def _first_line(problem: object) -> str:
    return next(iter(str(problem).splitlines()), type(problem).__name__)


def _in_words(given: Path | str, data: Any, kind: type[UserFile], item: Any) -> str:
    location = [part for part in item["loc"] if not (isinstance(part, str) and part.startswith(("function-", "lax-")))]
    field = ".".join(_name(data, location[: depth + 1]) for depth in range(len(location)))
    line = line_of(data, location)
    place = f"{given}:{f' line {line}:' if line else ''}"
    where = f"{place} {field}"
    if item["type"] == "extra_forbidden":
        # What is no word may be a line of a file that was never meant to be read here, such as one of passwords.
        named = f"{where}:" if _WORD.fullmatch(str(location[-1])) else place
        return f"{named} unknown field; must be one of {', '.join(_siblings(kind, location))}"
    if item["type"] == "missing":
        return f"{where}: missing"
    if item["type"] == "model_type":
        fields = ", ".join(_siblings(kind, [*location, ""]))
        return f"{where}: received {shown(item['input'])}; must be a mapping with {fields}"
    return f"{where}: received {shown(item['input'])}; {item['msg'].removeprefix('Value error, ')}"


def _name(data: Any, location: Sequence[int | str]) -> str:
    """A list's entry by the name it gives itself, if it does: steps.TEMP1, not steps.0."""
    for key in location:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            break
    if isinstance(location[-1], int) and isinstance(data, Mapping) and isinstance(data.get("name"), str):
        return str(data["name"])
    return str(location[-1])


def _siblings(kind: type[UserFile], location: Sequence[int | str]) -> list[str]:
    """The fields that the mapping at `location` may have."""
    for key in location[:-1]:
        if isinstance(key, str) and key in kind.model_fields:
            inner = _models_in(kind.model_fields[key].annotation)
            if len(inner) == 1:
                kind = inner[0]
    return list(kind.model_fields)


def _models_in(annotation: Any) -> list[type[UserFile]]:
    if isinstance(annotation, type) and issubclass(annotation, UserFile):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


def shown(value: Any) -> str:
    """What was received, for a message: as Python writes it, the rest cut off beyond 80 characters."""
    try:
        text = repr(plain(value) if isinstance(value, Mapping | list) else value)
    except ValueError:  # Python does not write whole numbers of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
