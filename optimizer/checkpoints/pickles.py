"""Pickles of files from `torch.save`, followed instruction by instruction and never run.

A pickle is a program: it names functions, and calls them with arguments of its choice. This module neither imports nor
calls anything that a pickle names. A tensor is a storage in the file and a view of it, as `torch.save` describes them;
both are checked by number. Other objects that training code left beside the weights become `LEFT_OUT`. A pickle that
asks for more, to run a program or to make a tensor whose numbers are not in the file, is refused with the name it asks
for.

`torch.load(weights_only=True)` is not enough. It calls `torch.Tensor(n)`, `torch.FloatTensor(n)` and
`torch.UntypedStorage(n)` for any pickle, and lets a view grow its storage, so that arbitrary memory becomes a weight.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from math import prod
from mmap import mmap
from types import MappingProxyType
from typing import IO, Final, cast

import torch

__all__ = ["LEFT_OUT", "PickleRefused", "Storage", "StoredTensor", "Unreadable", "follow_pickle"]

_MOST_INSTRUCTIONS = 5_000_000  # a checkpoint of 1,100 tensors has 45,000
_MOST_DIMENSIONS = 64  # torch's limit
_LARGEST = 2**63 - 1  # sizes are 64-bit integers in torch


class PickleRefused(Exception):
    """Refusal of a pickle that asks for something never done; the message completes "refused: its pickle ..."."""


class _Left(Enum):
    OUT = "left out"


# Stands for settings, callbacks, numpy values and similar objects.
LEFT_OUT: Final = _Left.OUT


@dataclass(frozen=True)
class Storage:
    """Numbers of one or several tensors, as a pickle announces them: `count` elements of `dtype` under `key`."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """View of a storage: `shape`, `strides` and `offset` in elements of `dtype`, all within the storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of all elements in bytes; an element stored once may count many times."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in the storage one after the other, row after row."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return prod(self.shape) == 0
            expected *= size
        return True


@dataclass(frozen=True)
class Unreadable:
    """A tensor that cannot be merged; `kind` is a phrase with an article, for example "a sparse tensor"."""

    kind: str


@dataclass(frozen=True)
class _Name:
    """Object that a pickle names by module and name."""

    full: str


_STORAGES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        f"torch.{name}Storage": dtype
        for name, dtype in {
            "Double": torch.float64,
            "Float": torch.float32,
            "Half": torch.float16,
            "BFloat16": torch.bfloat16,
            "Long": torch.int64,
            "Int": torch.int32,
            "Short": torch.int16,
            "Char": torch.int8,
            "Byte": torch.uint8,
            "Bool": torch.bool,
            "ComplexDouble": torch.complex128,
            "ComplexFloat": torch.complex64,
            "QInt8": torch.qint8,
            "QInt32": torch.qint32,
            "QUInt8": torch.quint8,
            "QUInt4x2": torch.quint4x2,
            "QUInt2x4": torch.quint2x4,
        }.items()
    }
    | dict.fromkeys(("torch.UntypedStorage", "torch.storage.UntypedStorage"), torch.uint8)
)
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        str(dtype): dtype
        for dtype in (
            *_STORAGES.values(),
            *(torch.uint16, torch.uint32, torch.uint64, torch.complex32),
            *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
            getattr(torch, "float8_e8m0fnu", torch.uint8),  # since torch 2.7
        )
    }
)
_QUANTIZED = frozenset({torch.qint8, torch.qint32, torch.quint8, torch.quint4x2, torch.quint2x4})
_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
        "torch._utils._rebuild_qtensor": "a quantized tensor",
        "torch._utils._rebuild_meta_tensor_no_storage": "a tensor on the meta device, which has no numbers",
        "torch._utils._rebuild_nested_tensor": "a nested tensor",
        "torch._utils._rebuild_wrapper_subclass": "a tensor of a special class",
        "torch._utils._rebuild_device_tensor_from_numpy": "a numpy array for another device",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor for another device",
    }
)
_MAPPINGS = frozenset(
    {
        "builtins.dict",
        "collections.OrderedDict",
        "collections.defaultdict",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    }
)
# Objects that training code left beside the weights in 2022-23. Names that are in none of these tables are refused.
_LEFT_OUT = frozenset(
    {
        *(
            f"{package}.callbacks.{name}"
            for package in ("pytorch_lightning", "lightning.pytorch")
            for name in (
                "early_stopping.EarlyStopping",
                "finetuning.BaseFinetuning",
                "lr_monitor.LearningRateMonitor",
                "model_checkpoint.ModelCheckpoint",
                "progress.TQDMProgressBar",
                "progress.tqdm_progress.TQDMProgressBar",
                "stochastic_weight_avg.StochasticWeightAveraging",
                "timer.Timer",
            )
        ),
        *(
            f"numpy.{name}"
            for name in (
                "core.multiarray._reconstruct",
                "core.multiarray.scalar",
                "_core.multiarray._reconstruct",
                "_core.multiarray.scalar",
                "dtype",
                "ndarray",
            )
        ),
        *(
            f"omegaconf.{name}"
            for name in (
                "base.ContainerMetadata",
                "base.Metadata",
                "dictconfig.DictConfig",
                "listconfig.ListConfig",
                "nodes.AnyNode",
                "nodes.BooleanNode",
                "nodes.FloatNode",
                "nodes.IntegerNode",
                "nodes.StringNode",
            )
        ),
        *(f"builtins.{name}" for name in ("bool", "complex", "float", "int", "list", "set", "str", "tuple")),
        *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")),
        *(f"torch.per_{name}" for name in ("channel_affine", "channel_symmetric", "tensor_affine", "tensor_symmetric")),
        "torch.per_channel_affine_float_qparams",
        "_codecs.encode",
        "argparse.Namespace",
        "collections.Counter",
        "torch.device",
        "torch.serialization._get_layout",
        "torch.torch_version.TorchVersion",
        "typing.Any",
    }
)
# Classes that a pickle may name beside a rebuilt tensor, but not call: a call makes numbers that are in no file.
_CLASSES = frozenset({"torch.Tensor", "torch._tensor.Tensor"})

# Instructions that push their argument.
_WITH_VALUE = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_CONSTANTS: Mapping[str, object] = MappingProxyType(
    {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_SET": LEFT_OUT}
)


def follow_pickle(file: BytesIO | mmap) -> tuple[object, dict[str, Storage]]:
    """Return the contents that a pickle describes, and the storages of its tensors by key.

    Mappings become dicts with only their entries under texts and whole numbers; other containers become tuples, lists
    or `LEFT_OUT`; tensors become `StoredTensor` or `Unreadable`.

    Args:
        file: A file at the start of the pickle. Its position afterwards is the end of the pickle.

    Returns:
        The contents and the storages.

    Raises:
        PickleRefused: The pickle asks for more than tensors and settings.
        ValueError: The pickle is broken.
    """
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(
            pickletools.genops(cast("IO[bytes]", _WithoutEscapes(file)))
        ):
            if count > _MOST_INSTRUCTIONS:
                raise PickleRefused(f"has more than {_MOST_INSTRUCTIONS:,} instructions")
            machine.step(instruction.name, argument)
        (found,) = machine.stack
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its pickle is inconsistent ({type(error).__name__})") from error
    return found, machine.storages


class _WithoutEscapes:
    """File of a pickle whose lines contain no backslash.

    pickletools decodes escapes in lines, although pickle itself does not, and warns of invalid ones.
    """

    def __init__(self, file: BytesIO | mmap) -> None:
        self.read, self.tell = file.read, file.tell
        self._readline = file.readline

    def readline(self) -> bytes:
        """Return the next line; raise PickleRefused if it contains a backslash."""
        line = self._readline()
        if b"\\" in line:
            raise PickleRefused("has a line with a backslash, which torch.save does not write")
        return line


class _Machine:
    """Stack, marks and memo of a pickle that is being followed."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.storages: dict[str, Storage] = {}
        self._below: list[list[object]] = []  # stacks below the marks
        self._memo: dict[int, object] = {}

    def step(self, instruction: str, argument: object) -> None:  # noqa: PLR0915 - a case for each instruction
        """Follow one instruction."""
        stack = self.stack
        if instruction in _WITH_VALUE:
            stack.append(argument)
            return
        match instruction:
            case "BINPUT" | "LONG_BINPUT":
                self._memo[_index(argument)] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[_index(argument)])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append(_CONSTANTS[instruction])
            case "MARK":
                self._below.append(stack)
                self.stack = []
            case "TUPLE":
                self._push(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(tuple(self._take(int(instruction[-1]))))
            case "FROZENSET":
                self._above_mark()
                self._push(LEFT_OUT)
            case "APPEND":
                self._extend(self._take(1))
            case "APPENDS" | "ADDITEMS":
                self._extend(self._above_mark())
            case "SETITEM":
                self._set_items(self._take(2))
            case "SETITEMS":
                self._set_items(self._above_mark())
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._above_mark()
            case "GLOBAL":
                self._push(_named(str(argument).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                self._push(_named(".".join(_texts(self._take(2)))))
            case "REDUCE" | "NEWOBJ":
                self._push(_called(*self._take(2)))
            case "NEWOBJ_EX":
                self._push(_called(*self._take(3)[:2]))
            case "BUILD":
                stack.pop()
                _check_state(stack[-1])
            case "BINPERSID":
                self._push(self._storage(stack.pop()))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise PickleRefused(f"has the instruction {instruction}, which torch.save does not write")

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _take(self, count: int) -> list[object]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _above_mark(self) -> list[object]:
        above, self.stack = self.stack, self._below.pop()
        return above

    def _extend(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target += values
        elif target is not LEFT_OUT:
            raise ValueError("its pickle appends to something that is not a list")

    def _set_items(self, values: list[object]) -> None:
        target = self.stack[-1]
        if len(values) % 2:
            raise ValueError("its pickle has a key without a value")
        if isinstance(target, dict):
            # Other keys do not name tensors, and may be nested so deeply that hashing them never ends.
            pairs = zip(values[::2], values[1::2], strict=True)
            target |= {key: value for key, value in pairs if type(key) in (str, int)}
        elif target is not LEFT_OUT:
            raise ValueError("its pickle puts entries into something that is not a mapping")

    def _storage(self, announced: object) -> Storage:
        match announced:
            # Before torch 1.6 a last field could select a part of another storage. Later files have None or no field
            # there.
            case ("storage", _Name(kind), str(key), str(), int(count), *rest) if (
                kind in _STORAGES and rest in ([], [None]) and type(count) is int and 0 <= count <= _LARGEST // 16
            ):
                found = Storage(key, _STORAGES[kind], count)
            case _:
                raise PickleRefused("takes something other than a storage from the file")
        known = self.storages.setdefault(key, found)
        # Storages without elements may share a key.
        if known != found and (known.count or found.count):
            raise ValueError(f"its pickle announces the storage {key[:40]!r} in two ways")
        return found


def _index(argument: object) -> int:
    if type(argument) is not int:
        raise ValueError("its pickle has an index that is not a whole number")
    return argument


def _texts(values: Iterable[object]) -> list[str]:
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != 2:
        raise ValueError("its pickle has a name that is not text")
    return texts


def _named(full: str) -> _Name:
    """Return the name if a pickle may use it, or raise PickleRefused."""
    if full.startswith("__builtin__."):  # Python 2, and every pickle of protocol 2
        full = f"builtins.{full.removeprefix('__builtin__.')}"
    if not any(full in known for known in (_REBUILT, _STORAGES, _DTYPES, _KINDS, _MAPPINGS, _LEFT_OUT, _CLASSES)):
        raise _refused_name(full)
    return _Name(full)


def _called(function: object, arguments: object) -> object:
    """Return the result that a call would have, or raise PickleRefused for a call that is never done."""
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise ValueError("its pickle calls something that is not a function")
    full = function.full
    if full in _REBUILT:
        return _REBUILT[full](*arguments)
    if full in _KINDS:
        return Unreadable(_KINDS[full])
    if full in _MAPPINGS:
        if arguments and full != "collections.defaultdict":
            raise ValueError("its pickle makes a mapping in a way that torch.save does not")
        return {}
    if full in _LEFT_OUT:
        return LEFT_OUT
    raise _refused_name(full)


def _check_state(owner: object) -> None:
    """Raise unless `owner` may get a state; states of mappings and of `LEFT_OUT` are ignored."""
    if isinstance(owner, StoredTensor | Unreadable):
        raise PickleRefused("changes a tensor after it was made, to numbers that may not be in the file")
    if owner is not LEFT_OUT and not isinstance(owner, dict):
        raise ValueError("its pickle gives a state to something that has none")


def _refused_name(full: str) -> PickleRefused:
    shown = full.removeprefix("builtins.")[:200]
    if full.startswith("torch.") and full.endswith(("Tensor", "Storage", "Parameter")):
        return PickleRefused(f"makes a tensor by `{shown}`, whose numbers are not in the file")
    return PickleRefused(f"would run `{shown}`, which could be any program")


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > _MOST_DIMENSIONS:
        raise ValueError("its pickle describes a tensor whose shape is invalid")
    if not all(type(value) is int and 0 <= value <= _LARGEST for value in values):
        raise ValueError("its pickle describes a tensor whose shape or strides are not whole numbers of at least 0")
    return tuple(values)


def _viewed(
    storage: object, dtype: torch.dtype | None, offset: object, shape: object, strides: object
) -> StoredTensor | Unreadable:
    """Return the tensor of a view of a storage, or raise PickleRefused if a part of it lies outside."""
    sizes, steps = _sizes(shape), _sizes(strides)
    if not isinstance(storage, Storage) or len(sizes) != len(steps):
        raise ValueError("its pickle describes a tensor that is not a view of a storage")
    (start,) = _sizes((offset,))
    if prod(size for size in sizes if size) > _LARGEST:
        raise ValueError("its pickle describes a tensor that is too large for any memory")
    kind = storage.dtype if dtype is None else dtype
    if kind in _QUANTIZED:
        return Unreadable("a quantized tensor")
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if prod(sizes) and (last + 1) * kind.itemsize > storage.nbytes:
        raise PickleRefused(
            f"describes a tensor of shape {list(sizes)} of which the file holds only a part: it ends at element "
            f"{last + 1:,}, the storage at {storage.nbytes // kind.itemsize:,}"
        )
    return StoredTensor(storage, kind, start, sizes, steps)


def _rebuilt(
    storage: object, offset: object, shape: object, strides: object, _gradient: object = False, _hooks: object = None,
    metadata: object = None, /,
) -> StoredTensor | Unreadable:  # fmt: skip
    """Return the result of `_rebuild_tensor` and `_rebuild_tensor_v2`."""
    _check_metadata(metadata)
    return _viewed(storage, None, offset, shape, strides)


def _rebuilt_as(
    storage: object, offset: object, shape: object, strides: object, _gradient: object, _hooks: object, dtype: object,
    metadata: object = None, /,
) -> StoredTensor | Unreadable:  # fmt: skip
    """Return the result of `_rebuild_tensor_v3`: a tensor of another type than its storage, which is one of bytes."""
    _check_metadata(metadata)
    if not isinstance(dtype, _Name) or dtype.full not in _DTYPES:
        raise ValueError("its pickle describes a tensor of an unknown type")
    return _viewed(storage, _DTYPES[dtype.full], offset, shape, strides)


def _check_metadata(metadata: object) -> None:
    # Conjugated and negated views are computed when they are read; weights never are such views.
    if metadata not in (None, {}):
        raise PickleRefused("describes a tensor that would have to be computed on reading")


def _parameter(data: object, *_: object) -> object:
    """Return the data of a parameter; its gradient, hooks and state are ignored."""
    if not isinstance(data, StoredTensor | Unreadable):
        raise ValueError("its pickle makes a parameter of something that is not a tensor")
    return data


def _of_type(function: object, kind: object, arguments: object, _state: object = None, /) -> object:
    """Return the result of `_rebuild_from_type_v2`: a tensor with attributes, which are ignored."""
    if kind not in (_Name("torch.Tensor"), _Name("torch._tensor.Tensor"), _Name("torch.nn.parameter.Parameter")):
        raise PickleRefused("makes a tensor of a special class")
    if not isinstance(function, _Name) or function.full not in _PLAIN:
        raise PickleRefused("makes a tensor in a way that torch.save does not")
    return _called(function, arguments)


_PLAIN: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _rebuilt,
        "torch._utils._rebuild_tensor_v2": _rebuilt,
        "torch._utils._rebuild_tensor_v3": _rebuilt_as,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
    }
)
_REBUILT: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        **_PLAIN,
        "torch._tensor._rebuild_from_type_v2": _of_type,
        "torch.tensor._rebuild_from_type_v2": _of_type,  # its name in torch 1.8
        "torch.nn.parameter.Parameter": _parameter,
        "torch.Size": lambda sizes=(), /: _sizes(sizes),
    }
)
