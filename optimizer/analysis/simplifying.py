"""Simplifying a finished recipe: fewer sources, steps and distinct numbers that explain as much of the target.

Every block is judged by itself, by the share of the target's difference from the base that it explains: a cosine would
let alphas grow or shrink as they like, and a mean lets one block pay for the others. A block may lose a small share of
what the recipe leaves unexplained in it, so that what is exact stays exact, and no number goes farther than those that
people choose by hand are apart.

Nothing is merged, and little is scored: a block's share depends on that block's alphas alone, so a block's *column*
(its alphas, one for each step) is scored once.

A change is made only if it makes the recipe simpler in this order: fewer alphas that are not 0, then numbers on coarser
grids, then longer runs of equal numbers. So it ends; and it ends where nothing simpler is left to try, which is why
simplifying the result again changes nothing.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from optimizer.errors import RecipeError
from optimizer.recipes import Algebra, Alpha, Group, Recipe, Step
from optimizer.similarity import ExplainedMetric, Metric, score_step, total_similarity
from optimizer.studies import noted_scores

__all__ = [
    "GRIDS",
    "SHARE",
    "TOLERANCE",
    "Changes",
    "Judged",
    "Number",
    "Scored",
    "SettledNumber",
    "Simplified",
    "default_numbers",
    "simplify",
]

# What people publish, from the coarsest grid to the finest.
GRIDS = (0.05, 0.01, 0.005)
SHARE = 0.05
"""The share of what a recipe leaves unexplained in a block that simplifying may add to it, unless asked otherwise."""
TOLERANCE = 1e-9
"""What a block may lose besides, in units of |base - target|^2: shares that differ by no more are equal."""
# How far a number may go in one change that costs something: the spacing of the coarsest grid.
_FARTHEST = 0.05 + 1e-12
# Shares that differ by less are equal: sums of products in float64 are as exact.
_EQUAL = 1e-12
# Columns scored in one call.
_BATCH = 64
# Which alpha decides what an input other than a contributes.
_WEIGHT = {
    ("weight_sum", "b"): "alpha",
    ("add_difference", "b"): "alpha",
    ("add_difference", "c"): "alpha",
    ("triple_sum", "b"): "alpha",
    ("triple_sum", "c"): "beta",
    ("sum_twice", "b"): "alpha",
    ("sum_twice", "c"): "beta",
}

Column: TypeAlias = tuple[float, ...]
Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Number:
    """One number of a recipe that may change: the `alpha` ("alpha" or "beta") of `step`, the same on all `blocks`."""

    step: str
    alpha: str
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """What is to be kept: how near the result of `step` is to the target in each block that `metric` asks for.

    Losses count from `reference`, {block: share, at most 1}; of blocks that are not in it, from the recipe as given.
    """

    step: str
    metric: ExplainedMetric
    reference: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Scored:
    """A similarity to be told of: that of the result of `step`, the mean of what `metric` says of its blocks.

    `label` is what recipes call the metric. The similarity before counts from `reference`, in [-1, 1]; if None, it is
    that of the recipe as given.
    """

    name: str
    step: str
    label: str
    metric: Metric
    reference: float | None = None


@dataclass(frozen=True)
class SettledNumber:
    """A number that could change, as it was and as it is; `after` is 0 if its step or input was dropped."""

    number: Number
    before: float
    after: float


@dataclass(frozen=True)
class Changes:
    """What became of a recipe: every number that could change, and the steps and sources that it no longer has."""

    numbers: tuple[SettledNumber, ...]
    steps: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def changed(self) -> tuple[SettledNumber, ...]:
        """The numbers that are not what they were."""
        return tuple(entry for entry in self.numbers if entry.after != entry.before)

    def grids(self) -> dict[str, tuple[int, int]]:
        """How many of the numbers lie on each grid and on no coarser one, {grid: (before, after)}; "0" comes first."""
        names = ("0", *(f"{grid:g}" for grid in GRIDS), "finer")
        before, after = (
            [0 if value == 0 else 1 + _fineness(value) for value in values]
            for values in ([one.before for one in self.numbers], [one.after for one in self.numbers])
        )
        return {name: (before.count(place), after.count(place)) for place, name in enumerate(names)}


@dataclass(frozen=True)
class Simplified:
    """A simpler `recipe`, what each block explained `before` (what losses count from) and explains `after`.

    Both are {block: share, at most 1 and not clipped}, of the blocks that were judged and that the target has changed:
    of two hopeless merges one is nearer. What is told of them is clipped to [-1, 1], as `explained` is everywhere.
    `totals` are similarities by name, (before, after) in [-1, 1]; `scored` says where they are measured now: a step
    that was dropped gave its place to its input a. Where that is a model, nothing is left to score, and `scored` lacks
    it.
    `distinct` is how many different numbers the recipe's alphas have, before and after.
    """

    recipe: Recipe
    scored: tuple[Scored, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    totals: Mapping[str, tuple[float, float]]
    changes: Changes
    distinct: tuple[int, int]

    @property
    def explained(self) -> tuple[float, float]:
        """The mean share explained over the blocks, in [-1, 1], before and after; NaN if there are none."""
        return total_similarity(_clipped(self.before)), total_similarity(_clipped(self.after))

    @property
    def lost(self) -> float:
        """The most that a block has lost of its share in [-1, 1]; 0 if none has."""
        before, after = _clipped(self.before), _clipped(self.after)
        return max((before[block] - after[block] for block in before), default=0.0)

    def as_dict(self) -> dict[str, object]:
        """What changed, as JSON takes it."""
        total_before, total_after = (None if math.isnan(total) else total for total in self.explained)
        return {
            "explained": {
                "before": {"total": total_before, "blocks": _clipped(self.before)},
                "after": {"total": total_after, "blocks": _clipped(self.after)},
            },
            "searches": {name: {"before": old, "after": new} for name, (old, new) in self.totals.items()},
            "distinct_numbers": dict(zip(("before", "after"), self.distinct, strict=True)),
            "grids": {grid: {"before": old, "after": new} for grid, (old, new) in self.changes.grids().items()},
            "dropped": {"sources": list(self.changes.sources), "steps": list(self.changes.steps)},
            "changed": [
                {
                    "step": entry.number.step,
                    "alpha": entry.number.alpha,
                    "blocks": list(entry.number.blocks),
                    "before": entry.before,
                    "after": entry.after,
                }
                for entry in self.changes.changed
            ],
        }


def simplify(
    recipe: Recipe,
    judged: Sequence[Judged],
    *,
    groups: Sequence[Group],
    sources: Sequence[str],
    share: float = SHARE,
    tolerance: float = TOLERANCE,
    scored: Sequence[Scored] = (),
    numbers: Iterable[Number] | None = None,
    keep: Collection[str] = (),
) -> Simplified:
    """Return a simpler recipe that explains in each block nearly what `recipe` does.

    A block that explains e may come down to e - share * (1 - e) - tolerance, with `share` and `tolerance` from 0 up; a
    block that the target has unchanged stays as it is, but for `tolerance`. A number that matters moves by no more than
    0.05 at a time. `groups` and `sources` are those that the metrics' coefficients are about; all that the recipe uses
    must be among them. `scored` are similarities to be told beside. `numbers` may change, no others (default:
    `default_numbers`); those on blocks that nothing judges never do. `keep` are models that stay listed even if no step
    needs them.

    First all numbers go to the finest grid, so that what follows cannot spend what may be lost and leave them crooked;
    if that is possible. Then, the smallest loss first: sources are dropped, then steps, then single numbers set to 0,
    whole alphas put on the coarsest grid that works, then single numbers, and last, where it changes nothing, made
    equal to the next block's.

    Raises RecipeError for a recipe with free alphas, and for a share or a tolerance below 0.
    """
    for name, given_number in (("share", share), ("tolerance", tolerance)):
        if not (math.isfinite(given_number) and given_number >= 0):
            raise RecipeError(f"{name}: received {given_number:g}; must be a number from 0 up, such as 0.05")
    recipe.check_finished("simplified", *(step.name for step in recipe.steps))
    blocks = {one.step: (*one.metric.blocks, *one.metric.unchanged) for one in judged}
    given = tuple(default_numbers(recipe, blocks) if numbers is None else _judged_numbers(recipe, numbers, blocks))
    judges = [_Judge.of(one, recipe, share, tolerance, groups, sources) for one in judged]
    before = {block: share for judge in judges for block, share in judge.shares(recipe).items()}
    before |= {block: share for one in judged for block, share in (one.reference or {}).items() if block in before}
    totals = {one.name: _total(recipe, one, groups, sources) for one in scored}
    totals |= {one.name: one.reference for one in scored if one.reference is not None}
    after: dict[str, float] = {}
    final: dict[str, float] = {}
    current, left = recipe, tuple(scored)
    names: dict[Number, Number] = {number: number for number in given}
    while True:
        found = _Search(current, judges, tuple(names.values())).run()
        roots = [*(one.step for one in left), *(judge.step for judge in judges)]
        tidied = _tidied(found, groups, sources, roots=roots, keep=keep)
        moved = [replace(judge, step=tidied.places[judge.step]) for judge in judges]
        left = tuple(replace(one, step=tidied.places[one.step]) for one in left)
        # Nothing can change any more what a model is by itself.
        after |= {one.name: _total(found, one, groups, sources) for one in left if one.step in found.models}
        final |= {
            block: share
            for judge, now in zip(judges, moved, strict=True)
            if now.step in found.models
            for block, share in judge.shares(found).items()
        }
        left = tuple(one for one in left if one.name not in after)
        judges = [judge for judge in moved if judge.step not in found.models]
        names = {
            number: Number(*tidied.pairs[now.step, now.alpha], now.blocks)
            for number, now in names.items()
            if (now.step, now.alpha) in tidied.pairs
        }
        if tidied.recipe == current:
            break
        current = tidied.recipe
    after |= {one.name: _total(current, one, groups, sources) for one in left}
    final |= {block: share for judge in judges for block, share in judge.shares(current).items()}
    settled = tuple(
        SettledNumber(number, _value(recipe, number), _value(current, names[number]) if number in names else 0.0)
        for number in given
    )
    kept_steps = {step.name for step in current.steps}
    return Simplified(
        recipe=_with_similarities(current, left, groups, sources),
        scored=left,
        before=before,
        after={block: final[block] for block in before},
        totals={name: (old, after[name]) for name, old in totals.items()},
        changes=Changes(
            numbers=settled,
            steps=tuple(step.name for step in recipe.steps if step.name not in kept_steps),
            sources=tuple(name for name in recipe.models if name not in current.models),
        ),
        distinct=(_distinct(recipe), _distinct(current)),
    )


def _clipped(shares: Mapping[str, float]) -> dict[str, float]:
    return {block: max(share, -1.0) for block, share in shares.items()}


def default_numbers(
    recipe: Recipe, judged: Mapping[str, Collection[str]], steps: Collection[str] | None = None
) -> tuple[Number, ...]:
    """The numbers of a recipe that does not tell which of its alphas were searched; `judged` is {step: blocks}.

    An alpha that is the same on all blocks is one number; of others each block's is one, where it is judged. `steps`
    are those to take them from (default: all that lead to a step that is judged).
    """
    found: list[Number] = []
    judged_blocks = _blocks_judged(recipe, judged)
    for step in recipe.steps:
        if steps is not None and step.name not in steps:
            continue
        blocks = judged_blocks[step.name]
        for name, alpha in step.alphas.items():
            if blocks and len({alpha.at(block) for block in recipe.layout.blocks}) == 1:
                found.append(Number(step.name, name, recipe.layout.blocks))
            else:
                found += [Number(step.name, name, (block,)) for block in recipe.layout.blocks if block in blocks]
    return tuple(found)


def _judged_numbers(
    recipe: Recipe, numbers: Iterable[Number], judged: Mapping[str, Collection[str]]
) -> Iterator[Number]:
    """Those of `numbers` that some block is judged by: whatever is changed elsewhere is changed blindly."""
    judged_blocks = _blocks_judged(recipe, judged)
    for number in numbers:
        if set(number.blocks) & judged_blocks[number.step]:
            yield number


def _blocks_judged(recipe: Recipe, judged: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """For each step, the blocks that are judged by what depends on it."""
    found: dict[str, set[str]] = {step.name: set() for step in recipe.steps}
    for step, blocks in judged.items():
        for name in _ancestors(recipe, step):
            found[name].update(blocks)
    return found


def _ancestors(recipe: Recipe, name: str) -> set[str]:
    """The steps that the step or model `name` needs."""
    return set() if name in recipe.models else {step.name for step in recipe.ancestors(name)}


def _value(recipe: Recipe, number: Number) -> float:
    alpha: Alpha = getattr(recipe.step(number.step), number.alpha)
    return alpha.at(number.blocks[0])


def _distinct(recipe: Recipe) -> int:
    """How many different numbers the recipe's alphas have."""
    alphas = [alpha for step in recipe.steps for alpha in step.alphas.values()]
    return len({alpha.at(block) for alpha in alphas for block in recipe.layout.blocks})


# Similarities.


def _total(recipe: Recipe, scored: Scored, groups: Sequence[Group], sources: Sequence[str]) -> float:
    return total_similarity(score_step(scored.metric, recipe, scored.step, groups, sources))


def _with_similarities(
    recipe: Recipe, scored: Sequence[Scored], groups: Sequence[Group], sources: Sequence[str]
) -> Recipe:
    """The recipe with the similarities that it notes measured again; those that cannot be are left out."""
    steps = []
    for step in recipe.steps:
        noted: dict[str, dict[str, float]] = {}
        unchanged: dict[str, dict[str, None]] = {}
        for one in scored:
            if one.step == step.name or one.label in (step.similarity or {}):
                noted.setdefault(one.label, {}).update(score_step(one.metric, recipe, step.name, groups, sources))
                unchanged.setdefault(one.label, {}).update(dict.fromkeys(one.metric.unchanged))
        similarity = {
            label: noted_scores(scores, unchanged=tuple(unchanged[label]), order=recipe.layout.blocks)
            for label, scores in noted.items()
        }
        steps.append(replace(step, similarity=similarity or None))
    return replace(recipe, steps=tuple(steps))


@dataclass(frozen=True)
class _Judge:
    """How near the result of `step` may come to be to the target, block by block.

    `metrics` score the blocks that the target has changed, by what is explained, and the others, by what is kept; of
    the latter 1 is all. `floors` are the lowest scores, {block: number}.
    """

    step: str
    metrics: tuple[ExplainedMetric, ...]
    floors: Mapping[str, float]
    groups: Sequence[Group]
    sources: Sequence[str]

    @staticmethod
    def of(
        judged: Judged,
        recipe: Recipe,
        share: float,
        tolerance: float,
        groups: Sequence[Group],
        sources: Sequence[str],
    ) -> "_Judge":
        """What may be lost of `judged`, counted from its reference or from what `recipe` explains."""
        metric = judged.metric
        judge = _Judge(judged.step, (metric, metric.keeping(metric.unchanged)), {}, groups, sources)
        now = judge._scores(recipe)
        explained = {block: (judged.reference or {}).get(block, now[block]) for block in metric.blocks}
        floors = {block: one - share * (1 - one) - tolerance for block, one in explained.items()}
        return replace(judge, floors=floors | {block: now[block] - tolerance for block in metric.unchanged})

    @property
    def blocks(self) -> tuple[str, ...]:
        """All blocks that are judged."""
        return tuple(block for metric in self.metrics for block in metric.blocks)

    def shares(self, recipe: Recipe) -> dict[str, float]:
        """What the result explains, {block: share}, of the blocks that the target has changed."""
        scores = self._scores(recipe)
        return {block: scores[block] for block in self.metrics[0].blocks}

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Scores, float64 [n, blocks], of coefficients float64 [n, groups, sources].

        They are not clipped: of two hopeless merges one is nearer.
        """
        return torch.cat([metric.value(*metric.moments(coefficients)) for metric in self.metrics], dim=1)

    def algebra(self, recipe: Recipe) -> Algebra:
        """The coefficients of the result."""
        return Algebra(recipe, self.groups, self.sources, self.step)

    def _scores(self, recipe: Recipe) -> dict[str, float]:
        algebra = self.algebra(recipe)
        scores = self.score(algebra.coefficients(algebra.starting_alphas()))[0].tolist()
        return dict(zip(self.blocks, scores, strict=True))


class _BlockScores:
    """What each judge makes of a block, by the block's column of alphas; every column is scored once."""

    def __init__(self, recipe: Recipe, judges: Sequence[_Judge]) -> None:
        self.pairs: tuple[Pair, ...] = tuple((step.name, name) for step in recipe.steps for name in step.alphas)
        self._blocks = recipe.layout.blocks
        self._judges = judges
        self._algebras = [judge.algebra(recipe) for judge in judges]
        self._rows = [[self.pairs.index(pair) for pair in algebra.alphas] for algebra in self._algebras]
        self._known: dict[tuple[str, Column], dict[int, float]] = {}

    def learn(self, columns: Iterable[tuple[str, Column]]) -> None:
        """Score what is not known of `columns`, (block, column) each; one candidate serves all blocks at once."""
        waiting: dict[str, list[Column]] = {}
        for block, column in dict.fromkeys(columns):
            if (block, column) not in self._known:
                waiting.setdefault(block, []).append(column)
        longest = max(map(len, waiting.values()), default=0)
        for start in range(0, longest, _BATCH):
            batches = {block: queue[start : start + _BATCH] for block, queue in waiting.items()}
            self._score({block: batch for block, batch in batches.items() if batch})

    def of(self, block: str, column: Column) -> Mapping[int, float]:
        """The block's scores {judge: score}, of the judges that see it; the column must have been learned."""
        return self._known[block, column]

    def _score(self, waiting: Mapping[str, Sequence[Column]]) -> None:
        count = max(map(len, waiting.values()))
        alphas = torch.zeros(count, len(self.pairs), len(self._blocks), dtype=torch.float64)
        for block, queue in waiting.items():
            place = self._blocks.index(block)
            # A block with fewer columns waiting repeats its last one, which is as good as any.
            filled = [*queue, *([queue[-1]] * (count - len(queue)))]
            alphas[:, :, place] = torch.tensor(filled, dtype=torch.float64)
        found: list[dict[str, list[float]]] = []
        for judge, algebra, rows in zip(self._judges, self._algebras, self._rows, strict=True):
            scores = judge.score(algebra.coefficients(alphas[:, rows])).tolist()
            found.append({block: [row[place] for row in scores] for place, block in enumerate(judge.blocks)})
        for block, queue in waiting.items():
            for position, column in enumerate(queue):
                self._known[block, column] = {
                    judge: of_blocks[block][position] for judge, of_blocks in enumerate(found) if block in of_blocks
                }


# The search.


@dataclass(frozen=True)
class _Move:
    """Blocks that get other columns."""

    columns: Mapping[str, Column]


class _Search:
    """The alphas of one recipe, made simpler one accepted move after another; its steps stay as they are."""

    def __init__(self, recipe: Recipe, judges: Sequence[_Judge], numbers: Sequence[Number]) -> None:
        self._recipe = recipe
        self._judges = judges
        self._numbers = numbers
        self._roots = {recipe.output, *_leaves(recipe), *(judge.step for judge in judges)}
        self._uses: dict[str, list[tuple[Step, str]]] = {}
        for step in recipe.steps:
            for place, name in step.inputs.items():
                self._uses.setdefault(name, []).append((step, place))
        self._scores = _BlockScores(recipe, judges)
        self._row = {pair: row for row, pair in enumerate(self._scores.pairs)}
        steps = {step.name: step for step in recipe.steps}
        self._columns: dict[str, Column] = {
            block: tuple(getattr(steps[step], alpha).at(block) for step, alpha in self._scores.pairs)
            for block in recipe.layout.blocks
        }
        self._first = dict(self._columns)
        self._scores.learn(self._columns.items())

    def run(self) -> Recipe:
        """The same recipe with simpler numbers."""
        while True:
            start = dict(self._columns)
            self._one_by_one(self._everything_moves)
            self._one_by_one(self._source_moves)
            self._one_by_one(self._step_moves)
            self._many(self._zero_moves)
            for grid in GRIDS:
                self._one_by_one(lambda grid=grid: self._alpha_moves(grid))  # type: ignore[misc]
            for grid in GRIDS:
                self._many(lambda grid=grid: self._number_moves(grid))  # type: ignore[misc]
            self._one_by_one(self._equal_moves, without_effect=True)
            if self._columns == start:
                return self._filled()

    # Accepting moves.

    def _one_by_one(self, moves: Callable[[], Iterable[_Move]], *, without_effect: bool = False) -> None:
        """Make the move that loses least, as long as there is one that fits."""
        while ranked := self._ranked(moves(), without_effect):
            self._columns |= ranked[0].columns

    def _many(self, moves: Callable[[], Iterable[_Move]]) -> None:
        """Make moves that fit, those that lose least first; of moves in one block one at a time."""
        while ranked := self._ranked(moves(), without_effect=False):
            touched: set[str] = set()
            for move in ranked:
                # What an earlier move has changed must be scored anew; blocks do not depend on each other.
                if not touched & set(move.columns):
                    self._columns |= move.columns
                    touched |= set(move.columns)

    def _ranked(self, moves: Iterable[_Move], without_effect: bool) -> list[_Move]:
        """The moves that fit, the smallest loss first; among equals in the order given."""
        listed = list(moves)
        self._scores.learn(item for move in listed for item in move.columns.items())
        losses = [self._loss(move) for move in listed]
        fitting = [
            (loss, place, move)
            for place, (loss, move) in enumerate(zip(losses, listed, strict=True))
            if loss is not None and not (without_effect and self._matters(move))
        ]
        return [move for _, _, move in sorted(fitting, key=lambda entry: entry[:2])]

    def _matters(self, move: _Move) -> bool:
        """Whether the move changes what is judged by more than rounding, for better or worse."""
        return any(
            abs(score - self._scores.of(block, self._columns[block])[judge]) > _EQUAL
            for block, column in move.columns.items()
            for judge, score in self._scores.of(block, column).items()
        )

    def _loss(self, move: _Move) -> float | None:
        """The largest share of what a block may lose that the move takes, 0 if none loses; None if it does not fit."""
        most = 0.0
        for block, column in move.columns.items():
            if not self._matters(_Move({block: column})):
                continue
            old, new = (self._scores.of(block, one) for one in (self._columns[block], column))
            lost = {judge: old[judge] - score for judge, score in new.items()}
            # Nor may a number drift to where a block is explained better: that is for fits.
            farthest = max(abs(one - other) for one, other in zip(column, self._columns[block], strict=True))
            if farthest > _FARTHEST:
                return None
            for judge, each in lost.items():
                floor = self._judges[judge].floors[block]
                if each > _EQUAL and new[judge] < floor:
                    return None
                most = max(most, each / max(1 - floor, 1e-300) if each > _EQUAL else 0.0)
        return most

    # Moves.

    def _everything_moves(self) -> Iterator[_Move]:
        """All numbers to the finest grid."""
        finest = len(GRIDS) - 1
        crooked = [number for number in self._numbers if _fineness(self._at(number)) > finest]
        if crooked:
            yield self._move({number: self._rounded(number, GRIDS[finest]) for number in crooked})

    def _source_moves(self) -> Iterator[_Move]:
        """For each source: all alphas to 0 by which it takes part, if it can be left out so."""
        for source in self._recipe.models:
            pairs = self._weights_of(source)
            if pairs and (move := self._without(pairs)):
                yield move

    def _step_moves(self) -> Iterator[_Move]:
        """For each step: all its alphas to 0."""
        for step in self._recipe.steps:
            if move := self._without({(step.name, name) for name in step.alphas}):
                yield move

    def _zero_moves(self) -> Iterator[_Move]:
        for number in self._numbers:
            if self._at(number) != 0:
                yield self._move({number: 0.0})

    def _alpha_moves(self, grid: float) -> Iterator[_Move]:
        """For each step's alpha: all its numbers to the grid."""
        for pair in dict.fromkeys((number.step, number.alpha) for number in self._numbers):
            own = [number for number in self._numbers if (number.step, number.alpha) == pair]
            if options := {number: self._rounded(number, grid) for number in own if self._off(grid, number)}:
                yield self._move(options)

    def _number_moves(self, grid: float) -> Iterator[_Move]:
        for number in self._numbers:
            if self._off(grid, number):
                yield self._move({number: self._rounded(number, grid)})

    def _equal_moves(self) -> Iterator[_Move]:
        """For each block's number: that of the next block or the one before, where that leaves fewer changes."""
        blocks = self._recipe.layout.blocks
        for number in self._numbers:
            row, own = self._row[number.step, number.alpha], self._at(number)
            if len(number.blocks) > 1 or own == 0:
                continue
            place = blocks.index(number.blocks[0])
            beside = [self._columns[blocks[other]][row] for other in (place - 1, place + 1) if 0 <= other < len(blocks)]
            for value in dict.fromkeys(beside):
                saved = sum(other != own for other in beside) - sum(other != value for other in beside)
                if saved > 0 and value != 0 and _fineness(value) <= _fineness(own):
                    yield self._move({number: value})

    def _move(self, values: Mapping[Number, float]) -> _Move:
        columns: dict[str, list[float]] = {}
        for number, value in values.items():
            for block in number.blocks:
                column = columns.setdefault(block, list(self._columns[block]))
                column[self._row[number.step, number.alpha]] = value
        return _Move({block: tuple(column) for block, column in columns.items()})

    def _without(self, pairs: Collection[Pair]) -> _Move | None:
        """These alphas at 0; None if they are already, or if one of them is another number that may not change."""
        own = {number: 0.0 for number in self._numbers if (number.step, number.alpha) in pairs and self._at(number)}
        move = self._move(own)
        columns = {**self._columns, **move.columns}
        rows = [self._row[pair] for pair in pairs]
        return move if own and not any(column[row] for column in columns.values() for row in rows) else None

    def _weights_of(self, name: str) -> set[Pair] | None:
        """The alphas by which a source or step takes part in what is kept; None if it cannot be left out by them."""
        if name in self._roots:
            return None
        found: set[Pair] = set()
        for step, place in self._uses.get(name, ()):
            if place != "a":
                found.add((step.name, _WEIGHT[step.mode, place]))
            elif (further := self._weights_of(step.name)) is None:
                return None
            else:
                found |= further
        return found

    def _at(self, number: Number) -> float:
        return self._columns[number.blocks[0]][self._row[number.step, number.alpha]]

    def _rounded(self, number: Number, grid: float) -> float:
        """The grid's value nearest to what the number was at first: not to what a finer grid has made of it."""
        first = self._first[number.blocks[0]][self._row[number.step, number.alpha]]
        # One on the other side is farther than half a step, and rarely better.
        return _on(grid, round(first / grid))

    def _off(self, grid: float, number: Number) -> bool:
        return _fineness(self._at(number)) > GRIDS.index(grid)

    def _filled(self) -> Recipe:
        changed = {
            pair: {
                block: column[row]
                for block, column in self._columns.items()
                if column[row] != getattr(self._recipe.step(pair[0]), pair[1]).at(block)
            }
            for pair, row in self._row.items()
        }
        return self._recipe.with_alphas({pair: values for pair, values in changed.items() if values})


def _fineness(value: float) -> int:
    """0 for a value on the coarsest grid, 1 for the next; `len(GRIDS)` for one that is on none."""
    return next((place for place, grid in enumerate(GRIDS) if value == _on(grid, round(value / grid))), len(GRIDS))


def _on(grid: float, steps: int) -> float:
    """A multiple of the grid as one would write it: 0.15, not 0.15000000000000002."""
    return round(steps * grid, 10)


# The steps.


@dataclass(frozen=True)
class _Tidied:
    """A recipe without what has no effect: `places` {result: what stands for it now}, `pairs` {alpha: its new name}."""

    recipe: Recipe
    places: Mapping[str, str]
    pairs: Mapping[Pair, Pair]


def _leaves(recipe: Recipe) -> tuple[str, ...]:
    """The steps that no other step needs."""
    used = {name for step in recipe.steps for name in step.inputs.values()}
    return tuple(step.name for step in recipe.steps if step.name not in used)


def _tidied(
    recipe: Recipe, groups: Sequence[Group], sources: Sequence[str], roots: Iterable[str], keep: Collection[str]
) -> _Tidied:
    """The recipe without steps whose alphas are 0, and without the steps and models that nothing needs then.

    Results that are kept (the output, `roots`, and what no step needs) do not change by a bit, in any group: a step
    that carries over tensors which only its b holds has an effect even at 0, and stays.
    """
    places = {name: name for name in (recipe.output, *_leaves(recipe), *roots)}
    pairs: dict[Pair, Pair] = {(step.name, name): (step.name, name) for step in recipe.steps for name in step.alphas}
    kept = _results(recipe, places, groups, sources)
    for name in [step.name for step in recipe.steps]:
        step = recipe.step(name)
        zero = {alpha for alpha, values in step.alphas.items() if not any(map(values.at, recipe.layout.blocks))}
        if zero == set(step.alphas):
            moved = {root: step.a if place == name else place for root, place in places.items()}
            shorter = _replaced(recipe, name, step.a)
            if shorter is not None and _same(kept, _results(shorter, moved, groups, sources)):
                recipe, places = shorter, moved
                pairs = {old: new for old, new in pairs.items() if new[0] != name}
        elif zero:
            narrow = _with_fewer_inputs(step, zero)
            shorter = replace(recipe, steps=tuple(narrow if one.name == name else one for one in recipe.steps))
            if _same(kept, _results(shorter, places, groups, sources)):
                recipe = shorter
                gone = {(name, alpha) for alpha in zero}
                pairs = {
                    old: (name, "alpha") if new[0] == name else new for old, new in pairs.items() if new not in gone
                }
    wanted = {name for place in places.values() for name in _ancestors(recipe, place)}
    steps = tuple(step for step in recipe.steps if step.name in wanted)
    used = {name for step in steps for name in step.inputs.values()} | set(keep)
    models = {name: model for name, model in recipe.models.items() if name in used}
    left = {(step.name, name) for step in steps for name in step.alphas}
    return _Tidied(
        replace(recipe, steps=steps, models=models), places, {old: new for old, new in pairs.items() if new in left}
    )


def _replaced(recipe: Recipe, name: str, other: str) -> Recipe | None:
    """The recipe without the step `name`, `other` in its place; None if no step would be the output then."""
    output = other if recipe.output == name else recipe.output
    if output in recipe.models:
        return None

    def renamed(used: str) -> str:
        return other if used == name else used

    steps = tuple(
        replace(step, a=renamed(step.a), b=renamed(step.b), c=None if step.c is None else renamed(step.c))
        for step in recipe.steps
        if step.name != name
    )
    return replace(recipe, steps=steps, output=output)


def _with_fewer_inputs(step: Step, zero: Collection[str]) -> Step:
    """A step of two alphas, one of them 0, as the weighted sum that is left of it."""
    (left,) = set(step.alphas) - set(zero)
    other = next(name for place, name in step.inputs.items() if _WEIGHT.get((step.mode, place)) == left)
    return replace(step, mode="weight_sum", b=other, c=None, alpha=step.alphas[left], beta=None)


def _results(
    recipe: Recipe, places: Mapping[str, str], groups: Sequence[Group], sources: Sequence[str]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each of `places`: where it holds the groups at all, bool [groups], and its coefficients."""
    first, *further = places.values()
    algebra = Algebra(recipe, groups, sources, first, further)
    found, present = dict(algebra.each(algebra.starting_alphas())), algebra.presences
    return {root: (present[place], found[place]) for root, place in places.items()}


def _same(
    one: Mapping[str, tuple[torch.Tensor, torch.Tensor]], other: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    """Whether all results that are kept are the same."""
    return all(torch.equal(*pair) for root in one for pair in zip(one[root], other[root], strict=True))
