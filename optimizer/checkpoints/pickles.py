"""The pickles in files that `torch.save` wrote, followed instruction by instruction and never run.

A pickle is a program: it names functions and calls them with arguments of its choice. Here nothing that it names is
imported or called. A tensor is what `torch.save` describes: a storage that the file holds, and a view of it, both
checked by number. Everything else that training code left beside the weights becomes `LEFT_OUT`. A pickle that asks for
more, for a program to run or for a tensor whose numbers are not in the file, is refused by the name it asks for.

`torch.load(weights_only=True)` is not enough: it calls `torch.Tensor(n)`, `torch.FloatTensor(n)` and
`torch.UntypedStorage(n)` for any pickle, and lets a view grow its storage, so whatever lies in memory becomes a weight.
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

_MOST_INSTRUCTIONS = 5_000_000  # a checkpoint of 1,100 tensors takes 45,000
_MOST_DIMENSIONS = 64  # torch's own limit
_LARGEST = 2**63 - 1  # sizes are 64-bit integers in torch


class PickleRefused(Exception):
    """The pickle asks for what is never done; the message completes "refused: its pickle ..."."""


class _Left(Enum):
    OUT = "left out"


# Takes the place of settings, callbacks, numpy values and the like.
LEFT_OUT: Final = _Left.OUT


@dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors as the pickle announces them: `count` elements of `dtype` under `key`."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage: `shape`, `strides` and `offset` in elements of `dtype`, all of them within the storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of all elements in bytes; one that is stored once may count many times."""
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
    """A tensor of a kind that no model is merged from: `kind` is "a sparse tensor" or the like."""

    kind: str


@dataclass(frozen=True)
class _Name:
    """What a pickle calls by its module and name."""

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
        "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
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
# What training code left beside the weights in 2022-23; everything that has no place in these tables is refused.
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
# Classes that a pickle may name beside a rebuilt tensor, but not call: each makes numbers that no file holds.
_CLASSES = frozenset({"torch.Tensor", "torch._tensor.Tensor"})

# Instructions that push what stands behind them.
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
    """Return what the pickle at the file's position describes, and the storages that its tensors are views of, by key.

    Mappings become dicts of what they hold under texts and whole numbers, other containers tuples, lists or `LEFT_OUT`;
    tensors become `StoredTensor` or `Unreadable`. The file is left behind the pickle's last instruction.

    Raises PickleRefused for a pickle that asks for more than tensors and settings, ValueError for a broken one.
    """
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", file))):
            if count > _MOST_INSTRUCTIONS:
                raise PickleRefused(f"has more than {_MOST_INSTRUCTIONS:,} instructions")
            machine.step(instruction.name, argument)
        (found,) = machine.stack
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its pickle makes no sense ({type(error).__name__})") from error
    return found, machine.storages


class _Machine:
    """The stack, marks and memo of a pickle that is being followed."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.storages: dict[str, Storage] = {}
        self._below: list[list[object]] = []  # the stacks below the marks
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
            raise ValueError("its pickle appends to what is no list")

    def _set_items(self, values: list[object]) -> None:
        target = self.stack[-1]
        if len(values) % 2:
            raise ValueError("its pickle has a key without a value")
        if isinstance(target, dict):
            # Other keys name no tensors, and may be nested so deeply that they take for ever to hash.
            pairs = zip(values[::2], values[1::2], strict=True)
            target |= {key: value for key, value in pairs if type(key) in (str, int)}
        elif target is not LEFT_OUT:
            raise ValueError("its pickle puts entries into what is no mapping")

    def _storage(self, announced: object) -> Storage:
        match announced:
            # In files from before torch 1.6 a last field tells which part of another storage it is: none, ever since.
            case ("storage", _Name(kind), str(key), str(), int(count), *rest) if (
                kind in _STORAGES and rest in ([], [None]) and type(count) is int and 0 <= count <= _LARGEST // 16
            ):
                found = Storage(key, _STORAGES[kind], count)
            case _:
                raise PickleRefused("takes something else than a storage from the file")
        known = self.storages.setdefault(key, found)
        # Storages without elements may share a key.
        if known != found and (known.count or found.count):
            raise ValueError(f"its pickle announces the storage {key[:40]!r} in two ways")
        return found


def _index(argument: object) -> int:
    if type(argument) is not int:
        raise ValueError("its pickle counts by what is no whole number")
    return argument


def _texts(values: Iterable[object]) -> list[str]:
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != 2:
        raise ValueError("its pickle names something by what is no text")
    return texts


def _named(full: str) -> _Name:
    """The name, if a pickle may use it. Raises PickleRefused if not."""
    if full.startswith("__builtin__."):  # Python 2, and every pickle of protocol 2
        full = f"builtins.{full.removeprefix('__builtin__.')}"
    if not any(full in known for known in (_REBUILT, _STORAGES, _DTYPES, _KINDS, _MAPPINGS, _LEFT_OUT, _CLASSES)):
        raise _unwanted(full)
    return _Name(full)


def _called(called: object, arguments: object) -> object:
    """What a call would make. Raises PickleRefused for a call that is never done."""
    if not isinstance(called, _Name) or not isinstance(arguments, tuple):
        raise ValueError("its pickle calls what is no function")
    full = called.full
    if full in _REBUILT:
        return _REBUILT[full](*arguments)
    if full in _KINDS:
        return Unreadable(_KINDS[full])
    if full in _MAPPINGS:
        if arguments and full != "collections.defaultdict":
            raise ValueError("its pickle makes a mapping as torch.save does not")
        return {}
    if full in _LEFT_OUT:
        return LEFT_OUT
    raise _unwanted(full)


def _check_state(owner: object) -> None:
    """Refuse a state for what has none; those of mappings and of what is left out do not count."""
    if isinstance(owner, StoredTensor | Unreadable):
        raise PickleRefused("changes a tensor after it was made, to numbers that may not be in the file")
    if owner is not LEFT_OUT and not isinstance(owner, dict):
        raise ValueError("its pickle gives a state to what has none")


def _unwanted(full: str) -> PickleRefused:
    shown = full.removeprefix("builtins.")[:200]
    if full.startswith("torch.") and full.endswith(("Tensor", "Storage", "Parameter")):
        return PickleRefused(f"makes a tensor by `{shown}`, whose numbers are not in the file")
    return PickleRefused(f"wants to run `{shown}`, and that could be any program")


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > _MOST_DIMENSIONS:
        raise ValueError("its pickle describes a tensor whose shape is none")
    if not all(type(value) is int and 0 <= value <= _LARGEST for value in values):
        raise ValueError("its pickle describes a tensor whose shape or strides are no whole numbers from 0 up")
    return tuple(values)


def _viewed(
    storage: object, dtype: torch.dtype | None, offset: object, shape: object, strides: object
) -> StoredTensor | Unreadable:
    """The tensor that views a storage so. Raises PickleRefused if a part of it lies outside."""
    sizes, steps = _sizes(shape), _sizes(strides)
    if not isinstance(storage, Storage) or len(sizes) != len(steps):
        raise ValueError("its pickle describes a tensor that is no view of a storage")
    (start,) = _sizes((offset,))
    if prod(size for size in sizes if size) > _LARGEST:
        raise ValueError("its pickle describes a tensor that is too large for any memory")
    kind = storage.dtype if dtype is None else dtype
    if kind in _QUANTIZED:
        return Unreadable("a quantized tensor")
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if prod(sizes) and (last + 1) * kind.itemsize > storage.nbytes:
        raise PickleRefused(
            f"describes a tensor of shape {list(sizes)} of which only a part is in the file: it ends at element "
            f"{last + 1:,}, the storage at {storage.nbytes // kind.itemsize:,}"
        )
    return StoredTensor(storage, kind, start, sizes, steps)


def _rebuilt(
    storage: object, offset: object, shape: object, strides: object, _gradient: object = False, _hooks: object = None,
    metadata: object = None, /,
) -> StoredTensor | Unreadable:  # fmt: skip
    """What `_rebuild_tensor` and `_rebuild_tensor_v2` make."""
    _check_metadata(metadata)
    return _viewed(storage, None, offset, shape, strides)


def _rebuilt_as(
    storage: object, offset: object, shape: object, strides: object, _gradient: object, _hooks: object, dtype: object,
    metadata: object = None, /,
) -> StoredTensor | Unreadable:  # fmt: skip
    """What `_rebuild_tensor_v3` makes: a tensor of another type than its storage, which is one of bytes."""
    _check_metadata(metadata)
    if not isinstance(dtype, _Name) or dtype.full not in _DTYPES:
        raise ValueError("its pickle describes a tensor of no known type")
    return _viewed(storage, _DTYPES[dtype.full], offset, shape, strides)


def _check_metadata(metadata: object) -> None:
    # Conjugated and negated views are computed when they are read; no weight is one.
    if metadata not in (None, {}):
        raise PickleRefused("describes a tensor that has to be computed when it is read")


def _parameter(data: object, *_: object) -> object:
    """What a parameter is made from; its gradient, hooks and state do not count."""
    if not isinstance(data, StoredTensor | Unreadable):
        raise ValueError("its pickle makes a parameter of what is no tensor")
    return data


def _of_type(function: object, kind: object, arguments: object, _state: object = None, /) -> object:
    """What `_rebuild_from_type_v2` makes: a tensor with attributes, which do not count."""
    if kind not in (_Name("torch.Tensor"), _Name("torch._tensor.Tensor"), _Name("torch.nn.parameter.Parameter")):
        raise PickleRefused("makes a tensor of a class of its own")
    if not isinstance(function, _Name) or function.full not in _PLAIN:
        raise PickleRefused("makes a tensor as torch.save does not")
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
