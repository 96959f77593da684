"""The check of CMA-ES's pickled state before Optuna unpickles it, since a pickle can run code.

Optuna's CmaEsSampler stores its optimizer in the trials' system attributes: pickled, in hexadecimal digits, in pieces.
It unpickles the optimizer when a study continues, so a study.db from elsewhere could run any code. The check unpickles
the state with stand-ins. No name in the pickle is imported or called. Only the instructions of real states are allowed,
and every call must restore a number, an array or one of the three optimizers. For Optuna an accepted pickle then builds
only objects of numpy and cmaes, no larger than the pickle.
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

# Bytes: a stored optimizer of 2,500 parameters takes about 27 MB, twice that with eigenvectors.
_MOST_BYTES = 128 << 20
_MOST_INSTRUCTIONS = 100_000  # real states have fewer than a thousand
_MOST_DRAWS = 100_000  # draws of a point until one is within bounds; real states have ten for each parameter
_DEEPEST = 8  # levels of nested lists, mappings and optimizers
_ATTRIBUTE = re.compile(r"_\w+|margin|m_z_lim_(?:low|up)")
_KEY = re.compile(r"(?P<prefix>.*:optimizer).*", re.DOTALL)

# The instructions of pickle protocols 4 and 5, without those that bypass `find_class` (the extension registry and
# persistent ids), sets, out-of-band buffers, and older instructions that no state contains.
_INSTRUCTIONS = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "STACK_GLOBAL"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "REDUCE", "NEWOBJ", "BUILD"),
    }
)
# Element types: numbers and booleans, never Python objects, strings or records.
_ELEMENT_TYPES = MappingProxyType(
    {
        f"{kind}{size}": size
        for kind, sizes in (("f", (4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)))
        for size in sizes
    }
    | {"b1": 1}
)


class _Refused(Exception):
    """The pickle is not a state of CMA-ES; the message is the reason."""


class _ElementType:
    """Stand-in for numpy.dtype."""

    def __init__(self, *arguments: object) -> None:
        match arguments:
            case (str(code), bool(), bool()) if code in _ELEMENT_TYPES:
                self.size = _ELEMENT_TYPES[code]
            case _:
                raise _Refused("has array elements that are not numbers")

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, "<" | ">" | "|" | "=", None, None, None, int(), int(), int()):
                pass
            case _:
                raise _Refused("has a number type unlike numpy's")


class _ArrayType:
    """Stand-in for the type numpy.ndarray, which may be named but not called."""


class _Array:
    """Stand-in for an array, empty until its elements are set."""

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, tuple(shape), _ElementType() as kind, bool(), bytes(data)) if _fits(shape, kind, data):
                pass
            case _:
                raise _Refused("has an array without all its elements")


class _Number:
    """Stand-in for a numpy scalar."""


def _restore_array(*arguments: object) -> _Array:
    match arguments:
        case (kind, (0,), b"b") if kind is _ArrayType:
            return _Array()
    raise _Refused("creates an array unlike numpy's")


def _array_of_buffer(*arguments: object) -> _Array:
    match arguments:
        case (bytes() | bytearray() as data, _ElementType() as kind, tuple(shape), "C" | "F") if _fits(
            shape, kind, data
        ):
            return _Array()
    raise _Refused("has an array without all its elements")


def _restore_number(*arguments: object) -> _Number:
    match arguments:
        case (_ElementType() as kind, bytes(data)) if len(data) == kind.size:
            return _Number()
    raise _Refused("has a number unlike numpy's")


def _fits(shape: tuple[object, ...], kind: _ElementType, data: bytes | bytearray) -> bool:
    lengths = [length for length in shape if type(length) is int and 0 <= length <= _MOST_BYTES]
    return len(lengths) == len(shape) <= _DEEPEST and prod(lengths) * kind.size == len(data)


class _Optimizer:
    """Stand-in for the three optimizers."""

    def __new__(cls, *arguments: object) -> "_Optimizer":
        if arguments:
            raise _Refused("creates an optimizer unlike those of cmaes")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict or not all(type(name) is str and _ATTRIBUTE.fullmatch(name) for name in state):
            raise _Refused("has an optimizer with values other than numbers")
        draws = state.get("_n_max_resampling", 0)
        if type(draws) is not int or draws > _MOST_DRAWS:
            raise _Refused("lets an optimizer draw too many points")
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
                raise _Refused("has an optimizer with values other than numbers")
            # A list may contain itself, or another list many times; this limit ends the loop in time.
            if len(inner) > 2 * _MOST_INSTRUCTIONS:
                raise _Refused("is nested too deeply")
        if not inner:
            return
        level = inner
    raise _Refused("is nested too deeply")


_STANDING_IN: Mapping[tuple[str, str], Callable[..., object]] = MappingProxyType(
    {
        ("cmaes._cma", "CMA"): _Optimizer,
        ("cmaes._cmawm", "CMAwM"): _Optimizer,
        ("cmaes._sepcma", "SepCMA"): _Optimizer,
        ("numpy", "dtype"): _ElementType,
        ("numpy", "ndarray"): _ArrayType,
        # The names before numpy 2, and since.
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _restore_array for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _restore_number for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("core", "_core")},
    }
)


class _StandIns(pickle.Unpickler):  # noqa: S301  its `find_class` imports nothing
    """Unpickler that builds only stand-ins."""

    def find_class(self, module_name: str, global_name: str, /) -> Callable[..., object]:
        """Return the stand-in of this name; nothing is imported."""
        found = _STANDING_IN.get((module_name, global_name))
        if found is None:
            raise _Refused(f"uses `{module_name}.{global_name}`"[:200])
        return found


def check_sampler_state(trials: Iterable[FrozenTrial], where: str) -> None:
    """Refuse trials whose stored sampler state is not a state of CMA-ES, before a sampler reads them.

    Args:
        trials: The trials.
        where: The name of the database in messages.

    Raises:
        StudyError: A state is not one of CMA-ES; one line for each such trial.

    """
    problems = []
    for trial in trials:
        try:
            for state in _states(trial.system_attrs):
                _check_state(state)
        except _Refused as refused:
            problems.append(
                f"{where}: trial {trial.number}: the state of its sampler is not a state of CMA-ES, it {refused}; it "
                "could contain any code, so none of it was run: `fresh=True` starts anew without these trials"
            )
    if problems:
        raise StudyError(problems)


def _states(attributes: Mapping[str, object]) -> Iterator[bytes]:
    """Yield the states in a trial's system attributes, joined from their pieces as in Optuna."""
    prefixes = dict.fromkeys(found["prefix"] for key in attributes if (found := _KEY.fullmatch(key)))
    for prefix in prefixes:
        # Optuna counts all attributes with this prefix, then joins that many numbered pieces.
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
        raise _Refused("contains no optimizer")
