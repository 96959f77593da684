"""YAML written by users: read with line numbers and checked by a pydantic model, with all problems reported at once.

The same data may come from a call in Python; then messages contain the name of the function instead of a file's.

A file may come from a stranger. Tags are refused, and so is any input that would take much time or memory.
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
    """Base of all parts of a user's file: frozen, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


# Texts that need no quotes in any context, unless YAML would read them as a number or another type.
_PLAIN = re.compile(r"[\w./~][\w./~+()-]*(?: [\w./~+()-]+)*")
_WORD = re.compile(r"[\w. -]{1,80}")
_UserFile = TypeVar("_UserFile", bound=UserFile)

_MOST_BYTES = 1 << 20  # of a file; recipes have a few thousand
_MOST_VALUES = 100_000  # in a file, aliases counted each time; ruamel reads about 20,000 per second
_DEEPEST = 40  # levels of lists and mappings; recipes have about 6
_SHOWN = 80  # characters of a received value in a message


def read_text(path: Path, error: type[InputError], *, most: int = _MOST_BYTES) -> bytes:
    """Return the bytes of a text file.

    Args:
        path: The file.
        error: The type in which problems are raised: an unreadable file, or one larger than `most`.
        most: The largest accepted size in bytes.

    Returns:
        The content of the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as problem:  # a name that contains NUL raises ValueError
        raise error(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if len(data) > most:
        raise error(f"{path}: received more than {most:,} bytes; must be a text file of at most that size")
    return data


def named_file(folder: Path, name: str) -> Path | None:
    """Return the file that another file in `folder` names; None if it does not exist.

    Devices and pipes count as missing: reading one named by a stranger's file could block forever.

    Args:
        folder: The folder of the file that contains the name.
        name: A path relative to `folder`, with either kind of slash.

    Returns:
        The path of the file, or None.
    """
    path = folder / name.replace("\\", "/")
    return path if os.path.isfile(path) else None


def read_yaml(path: Path, error: type[InputError]) -> CommentedMap:
    """Return the mapping in a YAML 1.2 file.

    Args:
        path: The file.
        error: The type in which problems are raised, with one line: a missing or unreadable file, content that is no
            mapping, more than 1 MiB, more than 100,000 values (aliases counted each time), nesting more than 40 deep or
            recursive, and tags.

    Returns:
        The content with the line numbers of its values.
    """
    if os.path.isdir(path):
        raise error(f"{path}: is a folder; must be a YAML file")
    if not os.path.exists(path):
        raise error(f"{path}: {missing_file(path, TEXT_SUFFIXES)}")
    data = read_text(path, error)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text ({problem.reason} at byte {problem.start}); must be a YAML file") from None
    try:
        tree = yaml_of(text)
    except MarkedYAMLError as problem:
        line = f" line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise error(f"{path}:{line} not readable as YAML: {_first_line(problem.problem)}") from None
    except RecursionError:
        raise error(f"{path}: not readable as YAML: {_TOO_DEEP}") from None
    except Exception as problem:  # ruamel also raises built-in errors: an impossible date, an unhashable key, ...
        raise error(f"{path}: not readable as YAML: {_first_line(problem)}") from None
    if not isinstance(tree, CommentedMap):
        received = (
            "nothing" if tree is None else f"a {'list' if isinstance(tree, CommentedSeq) else type(tree).__name__}"
        )
        raise error(f"{path}: received {received}; must be `field: value` lines")
    return tree


def yaml_of(text: str) -> Any:
    """Return the content of YAML 1.2 `text`, with line numbers.

    Args:
        text: The text of a user's file.

    Returns:
        The value at the root.

    Raises:
        ValueError: The text has tags or exceeds the limits of `read_yaml`. Text that is not YAML raises an error of
            ruamel.
    """
    # Every value ends in one of these characters, so their number is an upper bound that costs almost nothing.
    if sum(map(text.count, ",:\n-?[{")) > _MOST_VALUES:
        raise ValueError(_TOO_MUCH)
    reader = YAML(typ="rt")
    reader.Scanner = _Scanner
    with warnings.catch_warnings():
        # In YAML a later anchor may replace an earlier one with the same name.
        warnings.simplefilter("ignore", ReusedAnchorWarning)
        tree = reader.load(text)
    _check(tree)
    return tree


_TOO_DEEP = f"nested more than {_DEEPEST} deep"
_TOO_MUCH = f"more than {_MOST_VALUES:,} values"


class _Scanner(RoundTripScanner):  # type: ignore[misc]
    """A scanner that refuses deeply nested values, since every further level takes longer than the one before."""

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
    """Refuse tags, deep nesting, and too many values with aliases counted each time."""
    stack: list[tuple[Any, int]] = [(tree, 0)]
    count = 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"{_TOO_MUCH}, aliases counted each time")
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag is not None:
            number = getattr(getattr(node, "lc", None), "line", None)
            line = "" if number is None else f"line {number + 1}: "
            raise ValueError(f"{line}the tag {shown(str(tag))} is not supported; write plain values only")
        if isinstance(node, Mapping | list):
            if depth == _DEEPEST:
                raise ValueError(_TOO_DEEP)
            inner: Iterable[Any] = node if isinstance(node, list) else (part for item in node.items() for part in item)
            stack.extend((part, depth + 1) for part in inner)


def validate(kind: type[_UserFile], data: Mapping[str, Any], given: Path | str, error: type[InputError]) -> _UserFile:
    """Return `data` as an instance of the model `kind`.

    Args:
        kind: The pydantic model of the file.
        data: The content of the file, or the arguments of a call.
        given: The file or function that the data comes from; it begins each problem.
        error: The type in which problems are raised: one line for each unknown, missing or wrongly typed field.

    Returns:
        The validated model.
    """
    try:
        return kind.model_validate(dict(data))
    except ValidationError as problem:
        raise error([_in_words(given, data, kind, item) for item in problem.errors(include_url=False)]) from None


def line_of(data: Any, location: Sequence[int | str]) -> int | None:
    """Return the line, counted from 1, of the value at `location` in a tree read by `read_yaml`; None if unknown."""
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
    """Return a value from Python code in the types of a YAML file: mappings, lists, texts and numbers.

    Tuples and other iterables become lists, paths become texts with forward slashes, and numbers of numpy and torch
    become Python's. Other values are returned unchanged; the validation refuses them.

    Args:
        value: Any value.

    Returns:
        The value in plain types.
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
    """Return plain dicts, lists, strings and numbers as YAML; lists of numbers and short mappings take one line."""
    writer = YAML()
    writer.Representer = _Representer
    writer.width = 4096
    writer.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


class _Representer(RoundTripRepresenter):  # type: ignore[misc]
    """A representer that quotes texts with YAML's punctuation: ruamel writes `{license: ?}`, which is not readable."""


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
        # A key that is not a plain word may come from an unrelated file, such as one with passwords: do not quote it.
        named = f"{where}:" if _WORD.fullmatch(str(location[-1])) else place
        return f"{named} unknown field; must be one of {', '.join(_siblings(kind, location))}"
    if item["type"] == "missing":
        return f"{where}: missing"
    if item["type"] == "model_type":
        fields = ", ".join(_siblings(kind, [*location, ""]))
        return f"{where}: received {shown(item['input'])}; must be a mapping with {fields}"
    return f"{where}: received {shown(item['input'])}; {item['msg'].removeprefix('Value error, ')}"


def _name(data: Any, location: Sequence[int | str]) -> str:
    """Return the name of an entry of a list if it has one, otherwise its key: steps.TEMP1, not steps.0."""
    for key in location:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            break
    if isinstance(location[-1], int) and isinstance(data, Mapping) and isinstance(data.get("name"), str):
        return str(data["name"])
    return str(location[-1])


def _siblings(kind: type[UserFile], location: Sequence[int | str]) -> list[str]:
    """Return the possible fields of the mapping at `location`."""
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
    """Return a received value for a message: as Python writes it, cut off after 80 characters."""
    try:
        text = repr(plain(value) if isinstance(value, Mapping | list) else value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
