"""The notes of a fit in a recipe.

The notes may come from a stranger's file, so reading them never fails. A field with a value that no fit writes counts
as missing and is listed in `problems`. Unknown and unusable values are kept when the recipe is written again.
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

    Attributes:
        read_from: The mapping that the fields were read from.
        problems: For each key with an unusable value, the value received and the values allowed, {key: text}.
    """

    read_from: Mapping[str, Any] = field(default_factory=dict, repr=False, kw_only=True)
    problems: Mapping[str, str] = field(default_factory=dict, repr=False, kw_only=True)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return the notes in `data`, the plain values of a YAML or JSON file."""
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

        Returns:
            The mapping that was read, with unchanged values, unknown keys and the order of keys kept. New keys follow
            in the order of the fields.
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
        """Return the notes with changed values.

        Args:
            **changes: The new values by field; None removes the key. A name without a field becomes a key itself, as
                for options of metrics, which this module does not know.

        Returns:
            The changed notes. New keys follow in the order given.
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
        (entry.name, entry.metadata.get("key", entry.name), entry.metadata["read"])
        for entry in dataclasses.fields(kind)
        if "read" in entry.metadata
    ]


def _as_data(value: Any) -> Any:
    if isinstance(value, _Notes):
        return value.to_data()
    if isinstance(value, tuple):
        return [_as_data(inner) for inner in value]
    return dict(value) if isinstance(value, Mapping) else value


def _by(read: Callable[[Any], Any], *, key: str | None = None) -> dict[str, Any]:
    """Return a field's metadata: `read` converts the value in the file, or raises ValueError with the valid ones."""
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
    # ruamel subclasses int.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _clip_skip(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("must be a whole number, at least 1")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in value)
    if not whole or not value or not all(0 <= seed < 2**63 for seed in value):
        raise ValueError("must be one or more whole numbers, at least 0")
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
    """The target of a fit: its `file` as the study names it, and its `sha256` if known."""

    file: str | None = field(default=None, metadata=_by(_text))
    sha256: str | None = field(default=None, metadata=_by(_text))


@dataclass(frozen=True, eq=False)
class FittedPrompts(_Notes):
    """The prompts of the encoder metric: their `file`, relative to the recipe, and the `sha256` of all prompts.

    The prompts themselves are not noted. They may be many, and every merge contains its recipe in public.
    """

    file: str | None = field(default=None, metadata=_by(_text))
    sha256: str | None = field(default=None, metadata=_by(_text))


def _prompts(value: Any) -> FittedPrompts | tuple[str, ...]:
    # Recipes of early versions hold the prompts themselves.
    if isinstance(value, list) and value and all(isinstance(prompt, str) for prompt in value):
        return tuple(value)
    found = FittedPrompts.from_data(value) if isinstance(value, Mapping) else None
    if found is None or found.file is None or found.sha256 is None:
        raise ValueError("must be a file and its sha256, as a fit writes it")
    return found


@dataclass(frozen=True, eq=False)
class FittedSearch(_Notes):
    """One search, whose best trial gave the recipe its alphas.

    Attributes:
        name: The name of the search.
        step: The step whose result was scored.
        metric: One metric, or two joined by +.
        strategy: "joint" or "stepwise".
        blocks: The scored blocks, as a block list.
        seeds: The seeds of attention's random inputs.
        prompts: The prompts that the encoder metric read.
        clip_skip: The layer that the encoder metric read: 1 is the one whose states the network receives.
        trials: The number of completed trials.
        best_trial: The number of the best trial.
        similarity: The similarity of the best trial, in [-1, 1].
        before: In a simplified recipe, the similarity before, in [-1, 1].
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
    """The total similarities of a stage's last step on random inputs that were not fitted on, one per seed."""

    stage: str | None = field(default=None, metadata=_by(_text))
    step: str | None = field(default=None, metadata=_by(_text))
    metric: str | None = field(default=None, metadata=_by(_text))
    seeds: tuple[int, ...] | None = field(default=None, metadata=_by(_seeds))
    totals: tuple[float, ...] | None = field(default=None, metadata=_by(_totals))


@dataclass(frozen=True, eq=False)
class Simplification(_Notes):
    """The simplification of a recipe.

    Attributes:
        origin: The file that was simplified first.
        share: The allowed loss of a block, as a share of what the recipe leaves unexplained in it.
        tolerance: The additional allowed loss of a block, in share explained.
        explained: The share of the target's squared difference that each block explained before, {block: share}.
    """

    origin: str | None = field(default=None, metadata=_by(_text, key="from"))
    share: float | None = field(default=None, metadata=_by(_number))
    tolerance: float | None = field(default=None, metadata=_by(_number))
    explained: Mapping[str, float] | None = field(default=None, metadata=_by(_shares))


def _before(value: Any) -> _Notes:
    return _record(FittedScores)(value)


@dataclass(frozen=True, eq=False)
class FittedScores(_Notes):
    """The similarities of a step by one metric, in [-1, 1].

    Attributes:
        total: The total similarity.
        pooled: The share explained of all blocks together, at most 1.
        blocks: The similarity of each block, {block: similarity}; None for a block that the target has from the base.
        before: The similarities of the step's input a.
    """

    total: float | None = field(default=None, metadata=_by(_similarity))
    pooled: float | None = field(default=None, metadata=_by(_similarity))
    blocks: Mapping[str, float | None] | None = field(default=None, metadata=_by(_scores))
    before: "FittedScores | None" = field(default=None, metadata=_by(_before))

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The blocks that the target has unchanged from the base."""
        return tuple(block for block, value in (self.blocks or {}).items() if value is None)

    def of(self, blocks: tuple[str, ...]) -> dict[str, float]:
        """Return the similarities of `blocks`, without those that have none."""
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
    """The notes of a fit under the key `fitted` of a recipe.

    Attributes:
        by: The name of the program.
        version: The version of the program.
        recipe: The file of the fitted recipe, relative to this one.
        target: The target.
        base: The name of the model that differences were taken from.
        complete: Whether every search had its whole budget of trials.
        searches: The searches.
        other_random_inputs: Scores on random inputs that were not fitted on.
        candidate: The rank of a recipe that is not the best, from 2 up.
        simplified: The simplification, if the recipe was simplified.
        verdict: The verdict on the recipe and its sources, in sentences.
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
    verdict: str | None = field(default=None, metadata=_by(_text))
