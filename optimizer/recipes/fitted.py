"""What a recipe notes of the searches that found it.

The notes may come from a stranger's file: reading them never fails. A field that holds something else than a fit
writes reads as if it were missing, and is named in `problems`. What is not understood, or not known, is kept as it is
when the recipe is written again.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from optimizer.files import shown

__all__ = ["Fitted", "FittedPrompts", "FittedScores", "FittedSearch", "FittedSpread", "FittedTarget", "Simplification"]


@dataclass(frozen=True, eq=False)
class _Notes:
    """A mapping in a recipe, with a field for each key that a fit writes.

    `read_from` is the mapping that the fields were read from, and `problems` says of each key with a value that cannot
    be used what was received and what would be right.
    """

    read_from: Mapping[str, Any] = field(default_factory=dict, repr=False, kw_only=True)
    problems: Mapping[str, str] = field(default_factory=dict, repr=False, kw_only=True)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return the notes in `data`, which is plain values as a YAML or JSON file holds them."""
        found: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for name, key, read in _keys(cls):
            if (value := data.get(key)) is not None:
                try:
                    found[name] = read(value)
                except ValueError as error:
                    problems[key] = f"received {shown(value)}; {error}"
        return cls(**found, read_from=data, problems=problems)

    def to_data(self) -> dict[str, Any]:
        """Return the notes as plain values.

        What was read and not changed stays as it was, unknown keys and the order of keys too. New keys follow in the
        order of the fields.
        """
        before = self.from_data(self.read_from)
        data = dict(self.read_from)
        for name, key, _ in _keys(type(self)):
            value = getattr(self, name)
            if value == getattr(before, name):
                continue
            if value is None:
                data.pop(key, None)
            else:
                data[key] = _as_data(value)
        return data

    def noting(self, **changes: Any) -> Self:
        """Return the notes with other values; None removes a key, whatever it holds. New keys follow as given here.

        A name that is no field's is a key of its own: options of metrics that are not known here.
        """
        keys = {name: key for name, key, _ in _keys(type(self))}
        data = self.to_data() | {
            keys.get(name, name): _as_data(value) for name, value in changes.items() if value is not None
        }
        removed = {keys.get(name, name) for name, value in changes.items() if value is None}
        return self.from_data({key: value for key, value in data.items() if key not in removed})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Notes) or type(self) is not type(other):
            return NotImplemented
        return self.to_data() == other.to_data()

    __hash__ = None  # type: ignore[assignment]


def _keys(kind: type[_Notes]) -> list[tuple[str, str, Callable[[Any], Any]]]:
    """Return (field, key in the file, reader of its value) for each field of `kind` that a file holds."""
    return [
        (one.name, one.metadata.get("key", one.name), one.metadata["read"])
        for one in dataclasses.fields(kind)
        if "read" in one.metadata
    ]


def _as_data(value: Any) -> Any:
    if isinstance(value, _Notes):
        return value.to_data()
    if isinstance(value, tuple):
        return [_as_data(inner) for inner in value]
    return dict(value) if isinstance(value, Mapping) else value


def _by(read: Callable[[Any], Any], *, key: str | None = None) -> dict[str, Any]:
    """Return a field's metadata: `read` takes its value from the file or raises ValueError, saying what is right."""
    return {"read": read, **({} if key is None else {"key": key})}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text, as a fit writes it")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    if not _is_number(value):
        raise ValueError("must be a number")
    return float(value)


def _similarity(value: Any) -> float:
    if not _is_number(value) or not -1 <= value <= 1:
        raise ValueError("must be a number in [-1, 1]")
    return float(value)


def _whole(value: Any) -> int:
    # ruamel has classes of its own for some whole numbers.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _clip_skip(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("must be a whole number from 1 up")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    if not whole or not value or not all(0 <= seed < 2**63 for seed in value):
        raise ValueError("must be one or more whole numbers from 0 up")
    return tuple(value)


def _totals(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of similarities")
    return tuple(map(_similarity, value))


def _scores(value: Any) -> dict[str, float | None]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping of blocks to similarities")
    return {
        str(block): None if number is None else float(number)
        for block, number in value.items()
        if number is None or (_is_number(number) and -1 <= number <= 1)
    }


def _shares(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping of blocks to shares")
    return {str(block): float(share) for block, share in value.items() if _is_number(share) and share <= 1}


def _record(kind: type[_Notes]) -> Callable[[Any], _Notes]:
    def read(value: Any) -> _Notes:
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping, as a fit writes it")
        return kind.from_data(value)

    return read


@dataclass(frozen=True, eq=False)
class FittedTarget(_Notes):
    """The target of a fit: its `file` as the study names it, and its `sha256` if that was known."""

    file: str | None = field(default=None, metadata=_by(_text))
    sha256: str | None = field(default=None, metadata=_by(_text))


@dataclass(frozen=True, eq=False)
class FittedPrompts(_Notes):
    """The prompts that the encoder metric read: their `file`, as seen from the recipe, and the `sha256` of them all.

    Not the prompts themselves: they may be many, and a recipe goes into every merge of it, for all to read.
    """

    file: str | None = field(default=None, metadata=_by(_text))
    sha256: str | None = field(default=None, metadata=_by(_text))


def _prompts(value: Any) -> FittedPrompts | tuple[str, ...]:
    # Early recipes held the prompts themselves.
    if isinstance(value, list) and value and all(isinstance(prompt, str) for prompt in value):
        return tuple(value)
    found = FittedPrompts.from_data(value) if isinstance(value, Mapping) else None
    if found is None or found.file is None or found.sha256 is None:
        raise ValueError("must be a file and its sha256, as a fit writes it")
    return found


@dataclass(frozen=True, eq=False)
class FittedSearch(_Notes):
    """One search: its best trial gave the recipe its alphas.

    `step` is the step whose result was scored; `metric` one metric or two, joined by +; `blocks` the scored blocks as
    a block list. `seeds` are those of attention's random inputs, `prompts` and `clip_skip` what the encoder metric
    read. `trials` is the number of completed trials, `best_trial` the number of the best one and `similarity` what it
    reached, in [-1, 1]; `before`, in a recipe that was simplified, is what the recipe reached before.
    """

    name: str | None = field(default=None, metadata=_by(_text))
    step: str | None = field(default=None, metadata=_by(_text))
    metric: str | None = field(default=None, metadata=_by(_text))
    strategy: str | None = field(default=None, metadata=_by(_text))
    blocks: str | None = field(default=None, metadata=_by(_text))
    seeds: tuple[int, ...] | None = field(default=None, metadata=_by(_seeds))
    prompts: FittedPrompts | tuple[str, ...] | None = field(default=None, metadata=_by(_prompts))
    clip_skip: int | None = field(default=None, metadata=_by(_clip_skip))
    trials: int | None = field(default=None, metadata=_by(_whole))
    best_trial: int | None = field(default=None, metadata=_by(_whole))
    similarity: float | None = field(default=None, metadata=_by(_similarity))
    before: float | None = field(default=None, metadata=_by(_similarity))


@dataclass(frozen=True, eq=False)
class FittedSpread(_Notes):
    """The total similarities by `metric` of a stage's last step on random inputs that were not fitted on, by seed."""

    stage: str | None = field(default=None, metadata=_by(_text))
    step: str | None = field(default=None, metadata=_by(_text))
    metric: str | None = field(default=None, metadata=_by(_text))
    seeds: tuple[int, ...] | None = field(default=None, metadata=_by(_seeds))
    totals: tuple[float, ...] | None = field(default=None, metadata=_by(_totals))


@dataclass(frozen=True, eq=False)
class Simplification(_Notes):
    """How a recipe was simplified.

    `origin` is the file that it was simplified from first, `share` and `tolerance` what a block was allowed to lose,
    and `explained` what each block explained before, {block: share of the target's squared difference}.
    """

    origin: str | None = field(default=None, metadata=_by(_text, key="from"))
    share: float | None = field(default=None, metadata=_by(_number))
    tolerance: float | None = field(default=None, metadata=_by(_number))
    explained: Mapping[str, float] | None = field(default=None, metadata=_by(_shares))


def _before(value: Any) -> _Notes:
    return _record(FittedScores)(value)


@dataclass(frozen=True, eq=False)
class FittedScores(_Notes):
    """A step's similarities by one metric, in [-1, 1]: in `total`, and {block: similarity}, None where unchanged.

    `pooled` is the share explained of all blocks together, and `before` holds the similarities of the step's input a.
    """

    total: float | None = field(default=None, metadata=_by(_similarity))
    pooled: float | None = field(default=None, metadata=_by(_similarity))
    blocks: Mapping[str, float | None] | None = field(default=None, metadata=_by(_scores))
    before: "FittedScores | None" = field(default=None, metadata=_by(_before))

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The blocks that the target took over from the base."""
        return tuple(block for block, value in (self.blocks or {}).items() if value is None)

    def of(self, blocks: tuple[str, ...]) -> dict[str, float]:
        """Return the similarities of those of `blocks` that have one."""
        noted = self.blocks or {}
        return {block: value for block in blocks if (value := noted.get(block)) is not None}


def _searches(value: Any) -> tuple[FittedSearch, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise ValueError("must be a list of mappings, as a fit writes it")
    return tuple(map(FittedSearch.from_data, value))


def _spreads(value: Any) -> tuple[FittedSpread, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of mappings, as a fit writes it")
    return tuple(FittedSpread.from_data(entry) for entry in value if isinstance(entry, Mapping))


@dataclass(frozen=True, eq=False)
class Fitted(_Notes):
    """The notes of a fit, as the key `fitted` of a recipe holds them.

    `by` and `version` name the program; `recipe` is the recipe that was fitted, as seen from this one; `base` the model
    that differences were taken from. `complete` says whether every search had its whole budget. `candidate` is the
    rank of a recipe that is not the best one, from 2 up.
    """

    by: str | None = field(default=None, metadata=_by(_text))
    version: str | None = field(default=None, metadata=_by(_text))
    recipe: str | None = field(default=None, metadata=_by(_text))
    target: FittedTarget | None = field(default=None, metadata=_by(_record(FittedTarget)))
    base: str | None = field(default=None, metadata=_by(_text))
    complete: bool | None = field(default=None, metadata=_by(_flag))
    searches: tuple[FittedSearch, ...] | None = field(default=None, metadata=_by(_searches))
    other_random_inputs: tuple[FittedSpread, ...] | None = field(default=None, metadata=_by(_spreads))
    candidate: int | None = field(default=None, metadata=_by(_whole))
    simplified: Simplification | None = field(default=None, metadata=_by(_record(Simplification)))
