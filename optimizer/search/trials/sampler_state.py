"""The state of CMA-ES in a database of trials, looked at before Optuna reads it: it is a pickle, hence a program.

Optuna's CmaEsSampler leaves its optimizer in the trials' system attributes, pickled, as hexadecimal digits in pieces,
and unpickles it when a study is continued. So a study.db from a stranger could run anything. Whether it would is found
out by letting the pickle build stand-ins instead: nothing that it names is imported or called, only instructions that
states are made of are followed, and the arguments of every call are those that restore a number, an array or one of
the three optimizers. What passes is then the same for Optuna: objects of numpy and cmaes, as large as the pickle.
"""

import pickle
import pickletools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from math import prod
from types import MappingProxyType

from optuna.trial import FrozenTrial

from optimizer.errors import StudyError

__all__ = ["check_sampler_state"]

# An optimizer of 2,500 parameters takes some 27 MB as it is stored, twice as much while it holds eigenvectors.
_MOST_BYTES = 128 << 20
_MOST_INSTRUCTIONS = 100_000  # real states have less than a thousand
_MOST_DRAWS = 100_000  # of a point until one is within bounds; real ones are ten for each parameter
_DEEPEST = 8  # levels of lists and mappings in an optimizer, and of optimizers in one another
_ATTRIBUTE = re.compile(r"_\w+|margin|m_z_lim_(?:low|up)")
_KEY = re.compile(r"(?P<prefix>.*:optimizer).*", re.DOTALL)

# All of what pickles of protocols 4 and 5 are made of, but for the two ways around `find_class` (the extension
# registry and persistent ids), sets, buffers from elsewhere, and the older instructions that no state has.
_INSTRUCTIONS = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "STACK_GLOBAL"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "REDUCE", "NEWOBJ", "BUILD"),
    }
)
# Numbers and truth values; never Python objects, texts or records.
_ELEMENT_TYPES = MappingProxyType(
    {
        f"{kind}{size}": size
        for kind, sizes in (("f", (4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)))
        for size in sizes
    }
    | {"b1": 1}
)


class _Refused(Exception):
    """The pickle is no state; the message says why."""


class _ElementType:
    """Stands for a numpy.dtype."""

    def __init__(self, *arguments: object) -> None:
        match arguments:
            case (str(code), bool(), bool()) if code in _ELEMENT_TYPES:
                self.size = _ELEMENT_TYPES[code]
            case _:
                raise _Refused("holds elements that are no numbers")

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, "<" | ">" | "|" | "=", None, None, None, int(), int(), int()):
                pass
            case _:
                raise _Refused("describes numbers as numpy does not")


class _ArrayType:
    """Stands for the type numpy.ndarray, which may be named but not called."""


class _Array:
    """Stands for an array, empty until it is given its elements."""

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, tuple(shape), _ElementType() as kind, bool(), bytes(data)) if _fits(shape, kind, data):
                pass
            case _:
                raise _Refused("holds an array whose elements are not there")


class _Number:
    """Stands for one number of numpy."""


def _restore_array(*arguments: object) -> _Array:
    match arguments:
        case (kind, (0,), b"b") if kind is _ArrayType:
            return _Array()
    raise _Refused("makes an array as numpy does not")


def _array_of_buffer(*arguments: object) -> _Array:
    match arguments:
        case (bytes() | bytearray() as data, _ElementType() as kind, tuple(shape), "C" | "F") if _fits(
            shape, kind, data
        ):
            return _Array()
    raise _Refused("holds an array whose elements are not there")


def _restore_number(*arguments: object) -> _Number:
    match arguments:
        case (_ElementType() as kind, bytes(data)) if len(data) == kind.size:
            return _Number()
    raise _Refused("holds a number as numpy does not")


def _fits(shape: tuple[object, ...], kind: _ElementType, data: bytes | bytearray) -> bool:
    lengths = [length for length in shape if type(length) is int and 0 <= length <= _MOST_BYTES]
    return len(lengths) == len(shape) <= _DEEPEST and prod(lengths) * kind.size == len(data)


class _Optimizer:
    """Stands for one of the three optimizers."""

    def __new__(cls, *arguments: object) -> "_Optimizer":
        if arguments:
            raise _Refused("makes an optimizer as cmaes does not")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict or not all(type(name) is str and _ATTRIBUTE.fullmatch(name) for name in state):
            raise _Refused("gives an optimizer something else than its numbers")
        draws = state.get("_n_max_resampling", 0)
        if type(draws) is not int or draws > _MOST_DRAWS:
            raise _Refused("makes an optimizer draw points without end")
        _check_values(state)


def _check_values(state: Mapping[str, object]) -> None:
    level: list[object] = list(state.values())
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for value in level:
            if type(value) is dict and all(type(key) in (str, int) for key in value):
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
            elif type(value) not in (int, float, bool, str, type(None), _Array, _Number, _Optimizer):
                raise _Refused("gives an optimizer something else than its numbers")
            # A list may hold itself, or another many times: found before it is gone through that often.
            if len(inner) > 2 * _MOST_INSTRUCTIONS:
                raise _Refused("is nested without end")
        if not inner:
            return
        level = inner
    raise _Refused("is nested without end")


_STANDING_IN: Mapping[tuple[str, str], Callable[..., object]] = MappingProxyType(
    {
        ("cmaes._cma", "CMA"): _Optimizer,
        ("cmaes._cmawm", "CMAwM"): _Optimizer,
        ("cmaes._sepcma", "SepCMA"): _Optimizer,
        ("numpy", "dtype"): _ElementType,
        ("numpy", "ndarray"): _ArrayType,
        # Before numpy 2, and since.
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _restore_array for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _restore_number for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("core", "_core")},
    }
)


class _StandIns(pickle.Unpickler):
    """An unpickler that knows the stand-ins only."""

    def find_class(self, module_name: str, global_name: str, /) -> Callable[..., object]:
        """The stand-in of this name; nothing is ever imported."""
        found = _STANDING_IN.get((module_name, global_name))
        if found is None:
            raise _Refused(f"wants to use `{module_name}.{global_name}`"[:200])
        return found


def check_sampler_state(trials: Iterable[FrozenTrial], where: str) -> None:
    """Refuse trials with a stored state of CMA-ES that is anything but one. Call it before a sampler sees the trials.

    `where` names the database in messages. Raises StudyError, with a line for each trial that has such a state.
    """
    problems = []
    for trial in trials:
        try:
            for state in _states(trial.system_attrs):
                _check_state(state)
        except _Refused as refused:
            problems.append(
                f"{where}: trial {trial.number}: the state of its sampler is no state of CMA-ES, it {refused}; it "
                "could be any program, so nothing of it was run: `fresh=True` starts anew without these trials"
            )
    if problems:
        raise StudyError(problems)


def _states(attributes: Mapping[str, object]) -> Iterator[bytes]:
    """The states in a trial's system attributes, put together as Optuna does."""
    prefixes = dict.fromkeys(found["prefix"] for key in attributes if (found := _KEY.fullmatch(key)))
    for prefix in prefixes:
        # Optuna counts all attributes that begin so, and then takes as many pieces by their numbers.
        count = sum(key.startswith(prefix) for key in attributes)
        pieces = [attributes.get(f"{prefix}:{number}") for number in range(count)]
        texts = [piece for piece in pieces if isinstance(piece, str)]
        if len(texts) < count:
            raise _Refused("lacks one of its pieces")
        if sum(map(len, texts)) > 2 * _MOST_BYTES:
            raise _Refused(f"has more than {_MOST_BYTES:,} bytes")
        try:
            yield bytes.fromhex("".join(texts))
        except ValueError:
            raise _Refused("is not written in hexadecimal digits") from None


def _check_state(state: bytes) -> None:
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(state)):
            if instruction.name not in _INSTRUCTIONS:
                raise _Refused(f"has the instruction {instruction.name}")
            if count > _MOST_INSTRUCTIONS:
                raise _Refused(f"has more than {_MOST_INSTRUCTIONS:,} instructions")
            if instruction.name == "PROTO" and argument not in (4, 5):
                raise _Refused(f"is a pickle of protocol {argument}")
        found = _StandIns(BytesIO(state)).load()
    except _Refused:
        raise
    except Exception as error:  # a broken pickle can make an unpickler raise nearly anything
        raise _Refused(f"cannot be read ({type(error).__name__})") from None
    if type(found) is not _Optimizer:
        raise _Refused("holds no optimizer")
