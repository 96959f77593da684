"""Simplification of a finished recipe: fewer sources, steps and distinct numbers that explain as much of the target.

Every block is judged separately, by the share of the target's difference from the base that it explains. A cosine would
leave the length of the alphas open, and a mean would let one block compensate for others. A block may lose a small
share of its unexplained rest, so an exact block stays exact. No number moves farther than the spacing of the numbers
that people choose by hand.

Nothing is merged, and little is scored: a block's share depends on that block's alphas alone, so each *column* of a
block (its alphas, one for each step) is scored once.

A change is accepted only if it makes the recipe simpler, in this order: fewer nonzero alphas, then numbers on coarser
grids, then longer runs of equal numbers. The search therefore ends, and it ends when no simpler recipe can be proposed,
so simplifying the result again changes nothing.
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

# Grids of published numbers, from the coarsest to the finest.
GRIDS = (0.05, 0.01, 0.005)
SHARE = 0.05
"""Default loss that a block may take: a share of its unexplained rest."""
TOLERANCE = 1e-9
"""Default further loss of a block, in units of |base - target|^2; smaller differences count as none."""
# Longest move of a number in one change with a loss: the spacing of the coarsest grid.
_FARTHEST = 0.05 + 1e-12
# Shares that differ by less count as equal, the precision of sums of products in float64.
_EQUAL = 1e-12
# Columns scored in one call.
_BATCH = 64
# The alpha that is the weight of an input other than a.
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
    """A result to preserve: the similarity of `step` to the target in each block of `metric`.

    Losses count from `reference`, {block: share, at most 1}; for blocks without a reference, from the given recipe.
    """

    step: str
    metric: ExplainedMetric
    reference: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Scored:
    """A similarity to report: the mean of `metric` over its blocks, for the result of `step`.

    `label` is the metric's name in recipes. The similarity before is `reference`, in [-1, 1]; if that is None, it is
    measured for the given recipe.
    """

    name: str
    step: str
    label: str
    metric: Metric
    reference: float | None = None


@dataclass(frozen=True)
class SettledNumber:
    """A number that could change, before and after; `after` is 0 if its step or input was dropped."""

    number: Number
    before: float
    after: float


@dataclass(frozen=True)
class Changes:
    """The changes of a recipe: every number that could change, and the dropped steps and sources."""

    numbers: tuple[SettledNumber, ...]
    steps: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def changed(self) -> tuple[SettledNumber, ...]:
        """Numbers that have a new value."""
        return tuple(entry for entry in self.numbers if entry.after != entry.before)

    def grids(self) -> dict[str, tuple[int, int]]:
        """Return how many numbers are on each grid and on no coarser one, {grid: (before, after)}; "0" comes first."""
        names = ("0", *(f"{grid:g}" for grid in GRIDS), "finer")
        before, after = (
            [0 if value == 0 else 1 + _fineness(value) for value in values]
            for values in ([number.before for number in self.numbers], [number.after for number in self.numbers])
        )
        return {name: (before.count(place), after.count(place)) for place, name in enumerate(names)}


@dataclass(frozen=True, repr=False)
class Simplified:
    """A simpler `recipe`, and the share that each block explained `before` and explains `after`.

    Both are {block: share, at most 1 and not clipped} of the judged blocks that the target has changed; without
    clipping, the nearer of two hopeless merges is known. Losses count from `before`. Reported shares are clipped to
    [-1, 1], as `explained` is everywhere. `totals` are similarities by name, (before, after) in [-1, 1]. `scored`
    contains the similarities that can still be measured, with their present steps: a dropped step is replaced by its
    input a, and a similarity whose step has become a model is left out. `distinct` is the number of different numbers
    in the recipe's alphas, before and after.
    """

    recipe: Recipe
    scored: tuple[Scored, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    totals: Mapping[str, tuple[float, float]]
    changes: Changes
    distinct: tuple[int, int]

    def __repr__(self) -> str:
        """Return the numbers saved and the similarity lost, then the recipe."""
        before, after = self.distinct
        explained = (
            "" if math.isnan(self.explained[0]) else f"; explains {self.explained[1]:.4%} for {self.explained[0]:.4%}"
        )
        return f"rounded: {after} different numbers for {before}{explained}\n{self.recipe!r}"

    @property
    def explained(self) -> tuple[float, float]:
        """Mean explained share of the blocks, in [-1, 1], before and after; NaN without blocks."""
        return total_similarity(_clipped(self.before)), total_similarity(_clipped(self.after))

    @property
    def lost(self) -> float:
        """Largest loss of a block, of its share in [-1, 1]; 0 if no block lost anything."""
        before, after = _clipped(self.before), _clipped(self.after)
        return max((before[block] - after[block] for block in before), default=0.0)

    def as_dict(self) -> dict[str, object]:
        """Return the changes for JSON."""
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
    """Return a simpler recipe that explains nearly as much as `recipe` in each block.

    A block that explains e may decrease to e - share * (1 - e) - tolerance. A block that the target has unchanged stays
    as it is, up to `tolerance`. A number that has an effect moves by at most 0.05 at a time.

    If possible, all numbers first move to the finest grid; otherwise later changes could use up the permitted loss and
    leave numbers off the grids. Then follow, the smallest loss first: sources are dropped, then steps; single numbers
    are set to 0; whole alphas, then single numbers, move to the coarsest grid that fits. Last, numbers without effect
    are set equal to the next block's.

    Args:
        recipe: A recipe without free alphas.
        judged: The results to preserve.
        groups: The groups of tensors of the metrics' coefficients.
        sources: The sources of the metrics' coefficients; they include all sources of the recipe.
        share: The permitted loss of a block as a share of its unexplained rest, at least 0.
        tolerance: The permitted further loss, in units of |base - target|^2, at least 0.
        scored: Similarities to report.
        numbers: The only numbers that may change (default: `default_numbers`). Numbers on blocks without a judge never
            change.
        keep: Models that stay in the recipe even if no step needs them.

    Returns:
        The simpler recipe with its changes and similarities.

    Raises:
        RecipeError: The recipe has free alphas, or `share` or `tolerance` is below 0.
    """
    for name, loss in (("share", share), ("tolerance", tolerance)):
        if not (math.isfinite(loss) and loss >= 0):
            raise RecipeError(f"{name}: received {loss:g}; must be a number, at least 0, for example 0.05")
    recipe.check_finished("simplified", *(step.name for step in recipe.steps))
    blocks = {result.step: (*result.metric.blocks, *result.metric.unchanged) for result in judged}
    given = tuple(default_numbers(recipe, blocks) if numbers is None else _judged_numbers(recipe, numbers, blocks))
    judges = [_Judge.of(result, recipe, share, tolerance, groups, sources) for result in judged]
    before = {block: share for judge in judges for block, share in judge.shares(recipe).items()}
    references = [result.reference or {} for result in judged]
    before |= {block: share for reference in references for block, share in reference.items() if block in before}
    totals = {entry.name: _total(recipe, entry, groups, sources) for entry in scored}
    totals |= {entry.name: entry.reference for entry in scored if entry.reference is not None}
    after: dict[str, float] = {}
    final: dict[str, float] = {}
    current, left = recipe, tuple(scored)
    names: dict[Number, Number] = {number: number for number in given}
    while True:
        found = _Search(current, judges, tuple(names.values())).run()
        roots = [*(entry.step for entry in left), *(judge.step for judge in judges)]
        tidied = _tidied(found, groups, sources, roots=roots, keep=keep)
        moved = [replace(judge, step=tidied.places[judge.step]) for judge in judges]
        left = tuple(replace(entry, step=tidied.places[entry.step]) for entry in left)
        # The result is now a model, so no later change can affect it.
        after |= {entry.name: _total(found, entry, groups, sources) for entry in left if entry.step in found.models}
        final |= {
            block: share
            for judge, now in zip(judges, moved, strict=True)
            if now.step in found.models
            for block, share in judge.shares(found).items()
        }
        left = tuple(entry for entry in left if entry.name not in after)
        judges = [judge for judge in moved if judge.step not in found.models]
        names = {
            number: Number(*tidied.pairs[now.step, now.alpha], now.blocks)
            for number, now in names.items()
            if (now.step, now.alpha) in tidied.pairs
        }
        if tidied.recipe == current:
            break
        current = tidied.recipe
    after |= {entry.name: _total(current, entry, groups, sources) for entry in left}
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
    """Return the numbers of a recipe that does not note which of its alphas were searched.

    An alpha that is the same on all blocks is one number. For other alphas each judged block has its own number.

    Args:
        recipe: The recipe.
        judged: The judged blocks, {step: blocks}.
        steps: The steps to take numbers from (default: all that lead to a judged step).

    Returns:
        The numbers, in the order of the steps.
    """
    numbers: list[Number] = []
    judged_blocks = _blocks_judged(recipe, judged)
    for step in recipe.steps:
        if steps is not None and step.name not in steps:
            continue
        blocks = judged_blocks[step.name]
        for name, alpha in step.alphas.items():
            if blocks and len({alpha.at(block) for block in recipe.layout.blocks}) == 1:
                numbers.append(Number(step.name, name, recipe.layout.blocks))
            else:
                numbers += [Number(step.name, name, (block,)) for block in recipe.layout.blocks if block in blocks]
    return tuple(numbers)


def _judged_numbers(
    recipe: Recipe, numbers: Iterable[Number], judged: Mapping[str, Collection[str]]
) -> Iterator[Number]:
    """Yield the numbers with a judged block, since a change on other blocks would have an unknown effect."""
    judged_blocks = _blocks_judged(recipe, judged)
    for number in numbers:
        if set(number.blocks) & judged_blocks[number.step]:
            yield number


def _blocks_judged(recipe: Recipe, judged: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Return for each step the blocks in which a result that depends on it is judged."""
    found: dict[str, set[str]] = {step.name: set() for step in recipe.steps}
    for step, blocks in judged.items():
        for name in _ancestors(recipe, step):
            found[name].update(blocks)
    return found


def _ancestors(recipe: Recipe, name: str) -> set[str]:
    """Return the steps that the step or model `name` needs."""
    return set() if name in recipe.models else {step.name for step in recipe.ancestors(name)}


def _value(recipe: Recipe, number: Number) -> float:
    alpha: Alpha = getattr(recipe.step(number.step), number.alpha)
    return alpha.at(number.blocks[0])


def _distinct(recipe: Recipe) -> int:
    """Return the number of different numbers in the recipe's alphas."""
    alphas = [alpha for step in recipe.steps for alpha in step.alphas.values()]
    return len({alpha.at(block) for alpha in alphas for block in recipe.layout.blocks})


# Similarities.


def _total(recipe: Recipe, scored: Scored, groups: Sequence[Group], sources: Sequence[str]) -> float:
    return total_similarity(score_step(scored.metric, recipe, scored.step, groups, sources))


def _with_similarities(
    recipe: Recipe, scored: Sequence[Scored], groups: Sequence[Group], sources: Sequence[str]
) -> Recipe:
    """Return the recipe with its noted similarities measured again; those that cannot be measured are left out."""
    steps = []
    for step in recipe.steps:
        noted: dict[str, dict[str, float]] = {}
        unchanged: dict[str, dict[str, None]] = {}
        for entry in scored:
            if entry.step == step.name or entry.label in (step.similarity or {}):
                noted.setdefault(entry.label, {}).update(score_step(entry.metric, recipe, step.name, groups, sources))
                unchanged.setdefault(entry.label, {}).update(dict.fromkeys(entry.metric.unchanged))
        similarity = {
            label: noted_scores(scores, unchanged=tuple(unchanged[label]), order=recipe.layout.blocks)
            for label, scores in noted.items()
        }
        steps.append(replace(step, similarity=similarity or None))
    return replace(recipe, steps=tuple(steps))


@dataclass(frozen=True)
class _Judge:
    """The lowest acceptable score of the result of `step` in each block.

    The first of `metrics` scores the blocks that the target has changed by the explained share. The second scores the
    other blocks by how well they are kept, 1 being perfect. `floors` are the lowest scores, {block: number}.
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
        """Return the judge of a result; losses count from its reference, or from the share that `recipe` explains."""
        metric = judged.metric
        judge = _Judge(judged.step, (metric, metric.keeping(metric.unchanged)), {}, groups, sources)
        now = judge._scores(recipe)
        explained = {block: (judged.reference or {}).get(block, now[block]) for block in metric.blocks}
        floors = {block: known - share * (1 - known) - tolerance for block, known in explained.items()}
        return replace(judge, floors=floors | {block: now[block] - tolerance for block in metric.unchanged})

    @property
    def blocks(self) -> tuple[str, ...]:
        """All judged blocks."""
        return tuple(block for metric in self.metrics for block in metric.blocks)

    def shares(self, recipe: Recipe) -> dict[str, float]:
        """Return the share that the result explains, {block: share}, of the blocks that the target has changed."""
        scores = self._scores(recipe)
        return {block: scores[block] for block in self.metrics[0].blocks}

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return scores, float64 [n, blocks], of coefficients float64 [n, groups, sources].

        They are not clipped, so that the nearer of two hopeless merges is known.
        """
        return torch.cat([metric.value(*metric.moments(coefficients)) for metric in self.metrics], dim=1)

    def algebra(self, recipe: Recipe) -> Algebra:
        """Return the algebra of the result's coefficients."""
        return Algebra(recipe, self.groups, self.sources, self.step)

    def _scores(self, recipe: Recipe) -> dict[str, float]:
        algebra = self.algebra(recipe)
        scores = self.score(algebra.coefficients(algebra.starting_alphas()))[0].tolist()
        return dict(zip(self.blocks, scores, strict=True))


class _BlockScores:
    """Scores of each judge for a block by the block's column of alphas; every column is scored once."""

    def __init__(self, recipe: Recipe, judges: Sequence[_Judge]) -> None:
        self.pairs: tuple[Pair, ...] = tuple((step.name, name) for step in recipe.steps for name in step.alphas)
        self._blocks = recipe.layout.blocks
        self._judges = judges
        self._algebras = [judge.algebra(recipe) for judge in judges]
        self._rows = [[self.pairs.index(pair) for pair in algebra.alphas] for algebra in self._algebras]
        self._known: dict[tuple[str, Column], dict[int, float]] = {}

    def learn(self, columns: Iterable[tuple[str, Column]]) -> None:
        """Score the unknown ones of `columns`, (block, column) each; a candidate merge scores one column per block."""
        waiting: dict[str, list[Column]] = {}
        for block, column in dict.fromkeys(columns):
            if (block, column) not in self._known:
                waiting.setdefault(block, []).append(column)
        longest = max(map(len, waiting.values()), default=0)
        for start in range(0, longest, _BATCH):
            batches = {block: queue[start : start + _BATCH] for block, queue in waiting.items()}
            self._score({block: batch for block, batch in batches.items() if batch})

    def of(self, block: str, column: Column) -> Mapping[int, float]:
        """Return the block's scores {judge: score} of the judges that cover it; `learn` must have run before."""
        return self._known[block, column]

    def _score(self, waiting: Mapping[str, Sequence[Column]]) -> None:
        count = max(map(len, waiting.values()))
        alphas = torch.zeros(count, len(self.pairs), len(self._blocks), dtype=torch.float64)
        for block, queue in waiting.items():
            place = self._blocks.index(block)
            # Every candidate needs a column for each block; a block with fewer columns repeats its last one.
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
    """New columns for some blocks."""

    columns: Mapping[str, Column]


class _Search:
    """The alphas of one recipe, simplified move by move; its steps stay as they are."""

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
        """Return the same recipe with simpler numbers."""
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
        """Make the fitting move with the smallest loss, repeatedly."""
        while ranked := self._ranked(moves(), without_effect):
            self._columns |= ranked[0].columns

    def _many(self, moves: Callable[[], Iterable[_Move]]) -> None:
        """Make fitting moves in the order of their losses, at most one per block in each round."""
        while ranked := self._ranked(moves(), without_effect=False):
            touched: set[str] = set()
            for move in ranked:
                # A block that an earlier move has changed must be scored anew; blocks are independent.
                if not touched & set(move.columns):
                    self._columns |= move.columns
                    touched |= set(move.columns)

    def _ranked(self, moves: Iterable[_Move], without_effect: bool) -> list[_Move]:
        """Return the fitting moves, the smallest loss first; equal ones in the given order."""
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
        """Return whether the move changes a judged score, up or down, by more than rounding."""
        return any(
            abs(score - self._scores.of(block, self._columns[block])[judge]) > _EQUAL
            for block, column in move.columns.items()
            for judge, score in self._scores.of(block, column).items()
        )

    def _loss(self, move: _Move) -> float | None:
        """Return the move's largest use of a block's permitted loss, 0 without loss; None if it does not fit."""
        most = 0.0
        for block, column in move.columns.items():
            if not self._matters(_Move({block: column})):
                continue
            old, new = (self._scores.of(block, scored) for scored in (self._columns[block], column))
            losses = {judge: old[judge] - score for judge, score in new.items()}
            # This also limits moves that improve a score: finding better numbers is the task of a fit.
            farthest = max(abs(after - before) for after, before in zip(column, self._columns[block], strict=True))
            if farthest > _FARTHEST:
                return None
            for judge, loss in losses.items():
                floor = self._judges[judge].floors[block]
                if loss > _EQUAL and new[judge] < floor:
                    return None
                most = max(most, loss / max(1 - floor, 1e-300) if loss > _EQUAL else 0.0)
        return most

    # Moves.

    def _everything_moves(self) -> Iterator[_Move]:
        """Yield the move of all numbers to the finest grid."""
        finest = len(GRIDS) - 1
        off_grid = [number for number in self._numbers if _fineness(self._at(number)) > finest]
        if off_grid:
            yield self._move({number: self._rounded(number, GRIDS[finest]) for number in off_grid})

    def _source_moves(self) -> Iterator[_Move]:
        """Yield for each source the move that leaves it out by setting alphas to 0, if one exists."""
        for source in self._recipe.models:
            pairs = self._weights_of(source)
            if pairs and (move := self._without(pairs)):
                yield move

    def _step_moves(self) -> Iterator[_Move]:
        """Yield for each step the move of all its alphas to 0."""
        for step in self._recipe.steps:
            if move := self._without({(step.name, name) for name in step.alphas}):
                yield move

    def _zero_moves(self) -> Iterator[_Move]:
        for number in self._numbers:
            if self._at(number) != 0:
                yield self._move({number: 0.0})

    def _alpha_moves(self, grid: float) -> Iterator[_Move]:
        """Yield for each step's alpha the move of all its numbers to the grid."""
        for pair in dict.fromkeys((number.step, number.alpha) for number in self._numbers):
            numbers = [number for number in self._numbers if (number.step, number.alpha) == pair]
            if options := {number: self._rounded(number, grid) for number in numbers if self._off(grid, number)}:
                yield self._move(options)

    def _number_moves(self, grid: float) -> Iterator[_Move]:
        for number in self._numbers:
            if self._off(grid, number):
                yield self._move({number: self._rounded(number, grid)})

    def _equal_moves(self) -> Iterator[_Move]:
        """Yield for each block's number the move to a neighbour's number, if the value then changes less often."""
        blocks = self._recipe.layout.blocks
        for number in self._numbers:
            row, current = self._row[number.step, number.alpha], self._at(number)
            if len(number.blocks) > 1 or current == 0:
                continue
            place = blocks.index(number.blocks[0])
            beside = [self._columns[blocks[near]][row] for near in (place - 1, place + 1) if 0 <= near < len(blocks)]
            for value in dict.fromkeys(beside):
                saved = sum(near != current for near in beside) - sum(near != value for near in beside)
                if saved > 0 and value != 0 and _fineness(value) <= _fineness(current):
                    yield self._move({number: value})

    def _move(self, values: Mapping[Number, float]) -> _Move:
        columns: dict[str, list[float]] = {}
        for number, value in values.items():
            for block in number.blocks:
                column = columns.setdefault(block, list(self._columns[block]))
                column[self._row[number.step, number.alpha]] = value
        return _Move({block: tuple(column) for block, column in columns.items()})

    def _without(self, pairs: Collection[Pair]) -> _Move | None:
        """Return the move of these alphas to 0; None if they are 0 already or belong to numbers that may not change."""
        zeros = {number: 0.0 for number in self._numbers if (number.step, number.alpha) in pairs and self._at(number)}
        move = self._move(zeros)
        columns = {**self._columns, **move.columns}
        rows = [self._row[pair] for pair in pairs]
        return move if zeros and not any(column[row] for column in columns.values() for row in rows) else None

    def _weights_of(self, name: str) -> set[Pair] | None:
        """Return the alphas that weight a source or step in the kept results; None if they cannot leave it out."""
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
        """Return the grid's value nearest to the original number, not to a number rounded to a finer grid."""
        first = self._first[number.blocks[0]][self._row[number.step, number.alpha]]
        # The grid value on the other side is more than half a step away and rarely better.
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
    """Return 0 for a value on the coarsest grid, 1 for the next, and so on; `len(GRIDS)` for a value on no grid."""
    return next((place for place, grid in enumerate(GRIDS) if value == _on(grid, round(value / grid))), len(GRIDS))


def _on(grid: float, steps: int) -> float:
    """Return a multiple of the grid as it is usually written: 0.15, not 0.15000000000000002."""
    return round(steps * grid, 10)


# The steps.


@dataclass(frozen=True)
class _Tidied:
    """A recipe without ineffective parts, and the new names of its results (`places`) and alphas (`pairs`)."""

    recipe: Recipe
    places: Mapping[str, str]
    pairs: Mapping[Pair, Pair]


def _leaves(recipe: Recipe) -> tuple[str, ...]:
    """Return the steps that no other step needs."""
    used = {name for step in recipe.steps for name in step.inputs.values()}
    return tuple(step.name for step in recipe.steps if step.name not in used)


def _tidied(
    recipe: Recipe, groups: Sequence[Group], sources: Sequence[str], roots: Iterable[str], keep: Collection[str]
) -> _Tidied:
    """Return the recipe without steps whose alphas are 0, and without the steps and models that are then unused.

    The kept results (the output, `roots`, and the steps that no step needs) stay equal bit by bit, in every group. A
    step that adds tensors which only its b contains has an effect even at alpha 0, so it stays.
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
            shorter = replace(recipe, steps=tuple(narrow if step.name == name else step for step in recipe.steps))
            if _same(kept, _results(shorter, places, groups, sources)):
                recipe = shorter
                removed = {(name, alpha) for alpha in zero}
                pairs = {
                    old: (name, "alpha") if new[0] == name else new for old, new in pairs.items() if new not in removed
                }
    needed = {name for place in places.values() for name in _ancestors(recipe, place)}
    steps = tuple(step for step in recipe.steps if step.name in needed)
    used = {name for step in steps for name in step.inputs.values()} | set(keep) | {recipe.vae}
    models = {name: model for name, model in recipe.models.items() if name in used}
    left = {(step.name, name) for step in steps for name in step.alphas}
    return _Tidied(
        replace(recipe, steps=steps, models=models), places, {old: new for old, new in pairs.items() if new in left}
    )


def _replaced(recipe: Recipe, name: str, substitute: str) -> Recipe | None:
    """Return the recipe with `other` in place of the step `name`; None if the output would then be a model."""
    output = substitute if recipe.output == name else recipe.output
    if output in recipe.models:
        return None

    def renamed(used: str) -> str:
        return substitute if used == name else used

    steps = tuple(
        replace(step, a=renamed(step.a), b=renamed(step.b), c=None if step.c is None else renamed(step.c))
        for step in recipe.steps
        if step.name != name
    )
    return replace(recipe, steps=steps, output=output)


def _with_fewer_inputs(step: Step, zero: Collection[str]) -> Step:
    """Return a step of two alphas, one of them 0, as the weighted sum that remains."""
    (left,) = set(step.alphas) - set(zero)
    remaining = next(name for place, name in step.inputs.items() if _WEIGHT.get((step.mode, place)) == left)
    return replace(step, mode="weight_sum", b=remaining, c=None, alpha=step.alphas[left], beta=None)


def _results(
    recipe: Recipe, places: Mapping[str, str], groups: Sequence[Group], sources: Sequence[str]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return for each of `places` the groups that it contains, bool [groups], and its coefficients."""
    first, *further = places.values()
    algebra = Algebra(recipe, groups, sources, first, further)
    found, present = dict(algebra.each(algebra.starting_alphas())), algebra.presences
    return {root: (present[place], found[place]) for root, place in places.items()}


def _same(
    before: Mapping[str, tuple[torch.Tensor, torch.Tensor]], after: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    """Return whether all kept results are equal."""
    return all(torch.equal(*pair) for root in before for pair in zip(before[root], after[root], strict=True))
