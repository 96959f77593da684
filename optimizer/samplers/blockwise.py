"""A sampler that knows the blocks: what each block scored tells where each block's parameters should go.

The similarity of a merge is a mean over blocks, and a block sees its own parameters alone. A search for n alphas is
then n searches for one number that share every trial: each trial tells all of them something, and proposes all
parameters at once. Of the past only the trials are needed:

    parameters   fall into components, which share no block; each component is proposed by itself
    few trials   the point farthest from what was tried, so that the first models see the whole range
    then         every block has a model (`samplers.surrogates`); the component's point has the largest expected
                 improvement of the blocks' sum over its best so far
    converged    once no improvement to speak of is expected anywhere, the point that the models know least about: a
                 similarity has several maxima, and a narrow one may lie between the points
    gathering    every third trial, all components where they are expected to be best, or at their best so far: while
                 some explore, no trial's value shows what the others found

Scores are taken to be free of noise, so no component tries a point twice but to gather, and no trial repeats another.
Trials that still run stand for what the models expect of them, and other workers propose elsewhere; failed ones do not
count. Expected improvement is computed as a logarithm, which keeps its gradient where it is tiny (Ament et al.,
"Unexpected Improvements to Expected Improvement", 2023).
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.optimize import minimize
from scipy.special import erfcx, log_ndtr

from optimizer.samplers.components import connected
from optimizer.samplers.surrogates import AdditiveModel, LineModels, fit_additive, fit_lines
from optimizer.threads import one_thread

__all__ = ["BLOCK_SCORES", "BlockwiseSampler"]

BLOCK_SCORES = "block_scores"
"""The user attribute of a trial that holds its scores, {block: score}."""

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Points that a component of one parameter is given before its models decide; for more parameters see `_opening`.
_OPENING = 4
# One trial in so many gathers what was found: all components at once where they are expected to be best.
_GATHER = 3
# Points within this distance, in units of the range, count as the same.
_SAME = 1e-7
# An expected improvement below this share of the scores' spread counts as none.
_CONVERGED = 1e-7
# The scan of a line, and how it closes in on the best of it: times this fine, this often.
_SCAN = 129
_ZOOM = 33
_ZOOMS = 3
# Points that the models of a line are conditioned on at most, and how many of them lie around the best.
_LINE_POINTS = 28
_NEAR_BEST = 8
# Where the search for the best point of several parameters starts: random points, points around the best, climbs.
_RANDOM = 256
_AROUND = (0.2, 0.05, 0.01, 0.001)
_CLIMBS = 3


class BlockwiseSampler(BaseSampler):
    """Proposes all parameters at once from one model for each block.

    `blocks` maps the name of a block to the names of the parameters that its score depends on; several blocks may share
    a parameter. Without it every parameter is a block of its own, named like the parameter.

    A completed trial's scores are `trial.user_attrs["block_scores"]`, {block: score}, all of which the study's
    direction makes as large or as small as possible; each is one part of the sum or mean that is the trial's value. If
    no trial has the scores of all blocks, the value itself is modelled as a sum of unknown functions of the blocks'
    parameters. Parameters that belong to no block, categorical ones and those that only some trials have are sampled
    independently of the scores.

    What is proposed follows from `seed`, the trial's number and the trials of the study alone: a sampler made anew
    proposes what this one would. Without a seed one is drawn.

        blocks = {"OUT03": ["T1.OUT03"], "OUT04": ["T1.OUT04"]}
        study = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=0, blocks=blocks))

    Raises ValueError for a study with several objectives.
    """

    def __init__(self, *, seed: int | None = None, blocks: Mapping[str, Sequence[str]] | None = None) -> None:
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._blocks = None if blocks is None else {block: tuple(names) for block, names in blocks.items()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The numbers that every completed trial has, with the same range in all of them."""
        # A new one each time: what it remembers would differ from what a sampler made anew can know.
        space = IntersectionSearchSpace().calculate(study)
        return {
            name: distribution
            for name, distribution in space.items()
            if isinstance(distribution, FloatDistribution | IntDistribution) and not distribution.single()
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values {parameter: value} of all parameters in `search_space`."""
        self._raise_error_if_multi_objective(study)
        blocks = self._blocks if self._blocks is not None else {name: (name,) for name in search_space}
        modelled = {name for names in blocks.values() for name in names}
        axes = {
            name: _Axis(distribution)
            for name, distribution in search_space.items()
            if name in modelled
            and isinstance(distribution, FloatDistribution | IntDistribution)
            and not distribution.single()
        }
        point: dict[str, Any] = {}
        if axes:
            history = _History.of(study, trial, axes, blocks)
            random = np.random.default_rng([self._seed, trial.number])
            with one_thread():
                proposed = _propose(history, random)
            point = {name: axis.value(position) for (name, axis), position in zip(axes.items(), proposed, strict=True)}
        return {
            name: point[name] if name in point else self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value of one parameter: of a number, in the widest gap between those tried; of anything else, at random."""
        self._raise_error_if_multi_objective(study)
        random = np.random.default_rng([self._seed, trial.number, zlib.crc32(param_name.encode())])
        if param_distribution.single():
            return _only(param_distribution)
        if not isinstance(param_distribution, FloatDistribution | IntDistribution):
            choices = getattr(param_distribution, "choices", ())
            return choices[int(random.integers(len(choices)))]
        axis = _Axis(param_distribution)
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        trials = study.get_trials(deepcopy=False, states=states)
        tried = [axis.position(other.params.get(param_name)) for other in trials if other.number != trial.number]
        known = np.array([position for position in tried if not math.isnan(position)])
        return axis.value(float(_farthest(known[:, None], (axis,), random)[0]))


def _only(distribution: BaseDistribution) -> Any:
    choices = getattr(distribution, "choices", None)
    return getattr(distribution, "low", None) if choices is None else choices[0]


# --- Parameters and trials --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """One number's range as positions 0 .. 1, its grid included; even in the logarithm where the range is."""

    distribution: FloatDistribution | IntDistribution

    @property
    def levels(self) -> float:
        """How many values there are; infinite without a grid."""
        if self.distribution.step is None:
            return math.inf
        return 1 + math.floor((self.distribution.high - self.distribution.low) / self.distribution.step + 1e-9)

    def position(self, value: Any) -> float:
        """Where a value lies; NaN if it is missing or out of range."""
        range_ = self.distribution
        if not isinstance(value, int | float) or not range_.low <= value <= range_.high:
            return math.nan
        if range_.log:
            return math.log(value / range_.low) / math.log(range_.high / range_.low)
        return (value - range_.low) / (range_.high - range_.low)

    def values(self, positions: Array) -> Array:
        """The values at positions 0 .. 1, on the grid if there is one."""
        low, high, step = self.distribution.low, self.distribution.high, self.distribution.step
        if self.distribution.log:
            values = low * np.exp(positions * math.log(high / low))
        else:
            values = low + positions * (high - low)
        if step is not None:
            values = low + np.rint((values - low) / step) * step
        return np.asarray(np.clip(values, low, high), dtype=np.float64)

    def value(self, position: float) -> float | int:
        """The value at a position, as Optuna's trials hold it."""
        value = float(self.values(np.array([position]))[0])
        return round(value) if isinstance(self.distribution, IntDistribution) else value

    def on_grid(self, positions: Array) -> Array:
        """The nearest positions that a trial can have."""
        if self.distribution.step is None:
            return np.asarray(positions.clip(0.0, 1.0))
        low, high = self.distribution.low, self.distribution.high
        values = self.values(positions)
        if self.distribution.log:
            return np.asarray(np.log(values / low) / math.log(high / low))
        return np.asarray((values - low) / (high - low))


@dataclass(frozen=True)
class _Component:
    """Parameters and blocks that depend on each other, as positions in those of the history."""

    parameters: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class _History:
    """What the trials of a study say, larger scores being better.

    `points` float64 [trials, parameters] are positions in 0 .. 1, NaN where a trial lacks one, of completed and then of
    running trials. `scores` [completed, blocks] are the blocks' own, NaN where unknown; if they are none, `values`
    [completed] are what their sum is known by. `depends` [blocks, parameters] says which score depends on what.
    """

    axes: tuple[_Axis, ...]
    points: Array
    scores: Array | None
    values: Array
    depends: Mask

    @property
    def components(self) -> list[_Component]:
        """The components, in the order of their last block."""
        found = connected((block, np.flatnonzero(row).tolist()) for block, row in enumerate(self.depends))
        return [_Component(tuple(sorted(touched)), tuple(blocks)) for blocks, touched in found]

    @staticmethod
    def of(
        study: Study, trial: FrozenTrial, axes: Mapping[str, _Axis], blocks: Mapping[str, Sequence[str]]
    ) -> "_History":
        """The history of a study before `trial`, which itself does not count."""
        completed = [
            other
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if other.value is not None and math.isfinite(other.value)
        ]
        running = [
            other
            for other in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if other.number != trial.number
        ]
        points = [
            [axis.position(other.params.get(name)) for name, axis in axes.items()] for other in [*completed, *running]
        ]
        depends = {block: [name in names for name in axes] for block, names in blocks.items()}
        moved = [block for block, row in depends.items() if any(row)]
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        scores = np.array([_block_scores(other, moved) for other in completed]).reshape(len(completed), len(moved))
        return _History(
            axes=tuple(axes.values()),
            points=np.array(points, dtype=np.float64).reshape(len(completed) + len(running), len(axes)),
            scores=sign * scores if np.isfinite(scores).all(axis=1).any() else None,
            values=sign * np.array([other.value for other in completed], dtype=np.float64),
            depends=np.array([depends[block] for block in moved], dtype=bool),
        )


def _block_scores(trial: FrozenTrial, blocks: Sequence[str]) -> list[float]:
    scores = trial.user_attrs.get(BLOCK_SCORES)
    if not isinstance(scores, Mapping):
        return [math.nan] * len(blocks)
    found = [scores.get(block) for block in blocks]
    return [float(score) if isinstance(score, int | float) and math.isfinite(score) else math.nan for score in found]


# --- Proposals --------------------------------------------------------------------------------------------------------


def _propose(history: _History, random: np.random.Generator) -> Array:
    """The next point, positions [parameters]."""
    if len(history.points) % _GATHER == _GATHER - 1:
        point = _propose_point(history, random, gather=True)
        if np.abs(np.nan_to_num(history.points, nan=np.inf) - point).max(axis=1).min() > _SAME:
            return point
        # One trial has it all already.
    return _propose_point(history, random, gather=False)


def _propose_point(history: _History, random: np.random.Generator, *, gather: bool) -> Array:
    """The next point: where each component is expected to be best if `gather`, else where it may improve most."""
    components = history.components
    if history.scores is None and len(history.depends) > 1:
        return _propose_by_value(history, components, random, gather=gather)
    point = np.empty(len(history.axes))
    lines = [component for component in components if len(component.parameters) == 1]
    if lines:
        columns = [component.parameters[0] for component in lines]
        point[columns] = _propose_lines(history, lines, random, gather=gather)
    for component in components:
        if len(component.parameters) > 1:
            point[list(component.parameters)] = _propose_jointly(history, component, random, gather=gather)
    return point


def _opening(axes: Sequence[_Axis]) -> float:
    """How many points are spread over the space of these axes before models decide; no more than its grid has."""
    wanted = _OPENING if len(axes) == 1 else 3 + len(axes) // 4
    return min(wanted, math.prod(axis.levels for axis in axes))


def _scores(history: _History, block: int) -> Array:
    return history.values if history.scores is None else history.scores[:, block]


def _propose_lines(
    history: _History, components: Sequence[_Component], random: np.random.Generator, *, gather: bool
) -> Array:
    """The next positions [components] of components with one parameter each, all at once."""
    found = np.empty(len(components))
    modelled = []
    for place, component in enumerate(components):
        column = component.parameters[0]
        tried = history.points[:, column]
        scored = np.isfinite(tried[: len(history.values)])
        for block in component.blocks:
            scored &= np.isfinite(_scores(history, block))
        known = np.unique(tried[np.isfinite(tried)])
        axes = (history.axes[column],)
        if len(known) < _opening(axes) or not scored.any():
            found[place] = _farthest(known[:, None], axes, random)[0]
        else:
            modelled.append(place)
    if modelled:
        found[modelled] = _improve_lines(history, [components[place] for place in modelled], gather=gather)
    return found


def _improve_lines(history: _History, components: Sequence[_Component], *, gather: bool) -> Array:
    """The next positions [components] of components with enough points for models."""
    columns = [component.parameters[0] for component in components]
    axes = [history.axes[column] for column in columns]
    tried = history.points[:, columns].T
    completed = len(history.values)
    owner = np.repeat(np.arange(len(components)), [len(component.blocks) for component in components])
    values = np.array([_scores(history, block) for component in components for block in component.blocks])
    known = np.isfinite(values) & np.isfinite(tried[owner, :completed])
    together = np.zeros((len(components), len(values)))
    together[owner, np.arange(len(values))] = 1.0
    complete = together @ ~known == 0
    sums = np.where(complete, together @ np.where(known, values, 0.0), -np.inf)
    best = sums.max(axis=1)
    # What the models are conditioned on is chosen for a component, so that all of its blocks see the same points.
    kept = _telling_points(tried[:, :completed], sums)
    rows = kept[owner]
    points = np.take_along_axis(np.nan_to_num(tried[:, :completed]), kept, axis=1)[owner]
    models = fit_lines(
        points,
        np.nan_to_num(np.take_along_axis(values, rows, axis=1)),
        np.take_along_axis(known, rows, axis=1),
    )
    models, best = _with_pending(models, tried[:, completed:], owner, together, best)
    spread = together @ models.unit

    def sums_at(positions: Array) -> tuple[Array, Array]:
        means, deviations = models.predict(positions[owner])
        return together @ means, np.sqrt(together @ deviations**2)

    def free(positions: Array) -> Mask:
        nearest = np.abs(positions[:, :, None] - np.where(np.isfinite(tried), tried, np.inf)[:, None, :]).min(axis=2)
        return np.asarray(nearest > _SAME)

    def on_grid(positions: Array) -> Array:
        return np.stack([axis.on_grid(row) for axis, row in zip(axes, positions, strict=True)])

    def height_of(means: Array, deviations: Array) -> Array:
        return means if gather else _log_improvement(means, deviations, best[:, None])

    positions = on_grid(np.tile(np.linspace(0.0, 1.0, _SCAN), (len(axes), 1)))
    means, deviations = sums_at(positions)
    untried = free(positions)
    heights = np.where(untried, height_of(means, deviations), -np.inf)
    each = np.arange(len(axes))
    unsure = positions[each, np.where(untried, deviations, -np.inf).argmax(axis=1)]
    found, height = positions[each, heights.argmax(axis=1)], heights.max(axis=1)
    reach = 1.0 / (_SCAN - 1)
    for _ in range(_ZOOMS):
        positions = on_grid((found[:, None] + np.linspace(-reach, reach, _ZOOM)).clip(0.0, 1.0))
        heights = np.where(free(positions), height_of(*sums_at(positions)), -np.inf)
        better = heights.max(axis=1) > height
        found = np.where(better, positions[each, heights.argmax(axis=1)], found)
        height = np.where(better, heights.max(axis=1), height)
        reach *= 2.0 / (_ZOOM - 1)
    incumbent = tried[each, sums.argmax(axis=1)]
    if gather:
        return np.asarray(np.where(height > best + _CONVERGED * spread, found, incumbent))
    found = np.where(height < np.log(_CONVERGED * spread), unsure, found)
    # Where all points of a grid were tried, the best one stays.
    return np.asarray(np.where(np.isfinite(height), found, incumbent))


def _telling_points(tried: Array, sums: Array) -> NDArray[np.intp]:
    """Indices [components, kept] of the points that tell most: the nearest to the best, then the farthest from those.

    Points beyond some thirty say little of a smooth function of one number, and points very close to each other make
    the kernel matrix singular.
    """
    count = tried.shape[1]
    if count <= _LINE_POINTS:
        return np.tile(np.arange(count), (len(tried), 1))
    rows = np.arange(len(tried))
    usable = np.isfinite(tried) & np.isfinite(sums)
    positions = np.where(usable, tried, np.inf)
    away = np.abs(positions - positions[rows, sums.argmax(axis=1)][:, None])
    kept = np.argsort(away, axis=1, kind="stable")[:, :_NEAR_BEST]
    gaps = np.abs(positions[:, :, None] - np.take_along_axis(positions, kept, axis=1)[:, None, :])
    nearest = np.where(usable, np.nan_to_num(gaps, nan=0.0).min(axis=2), -1.0)
    chosen = [kept]
    for _ in range(_LINE_POINTS - _NEAR_BEST):
        farthest = nearest.argmax(axis=1)
        chosen.append(farthest[:, None])
        distance = np.abs(positions - positions[rows, farthest][:, None])
        nearest = np.where(usable, np.minimum(nearest, np.nan_to_num(distance, nan=0.0)), -1.0)
        nearest[rows, farthest] = -1.0
    return np.concatenate(chosen, axis=1)


def _with_pending(
    models: LineModels, pending: Array, owner: NDArray[np.intp], together: Array, best: Array
) -> tuple[LineModels, Array]:
    """The models with what they expect at pending positions [components, running], and the best sums with those."""
    running = np.isfinite(pending)
    if not running.any():
        return models, best
    positions = np.where(running, pending, 0.0)[owner]
    expected = np.where(running, together @ models.predict(positions)[0], -np.inf)
    return models.believing(positions, running[owner]), np.maximum(best, expected.max(axis=1))


@dataclass(frozen=True)
class _Belief:
    """What models, or some of their terms, say of the sum of a component's blocks.

    `parts` are models with the terms that count, None for all; `columns` where the component's parameters stand among
    the models' dimensions.
    """

    parts: tuple[tuple[AdditiveModel, Mask | None], ...]
    columns: tuple[int, ...]

    def predict(self, points: Array) -> tuple[Array, Array, Array, Array]:
        """Means and variances [m] of the sum at points [m, parameters], and their slopes [m, parameters]."""
        columns = list(self.columns)
        everywhere = np.zeros((len(points), self.parts[0][0].points.shape[1]))
        everywhere[:, columns] = points
        mean, variance = np.zeros(len(points)), np.zeros(len(points))
        mean_slope, variance_slope = np.zeros_like(points), np.zeros_like(points)
        for model, terms in self.parts:
            means, variances, mean_slopes, variance_slopes = model.predict_with_slopes(everywhere, terms)
            mean += means
            variance += variances
            mean_slope += mean_slopes[:, columns]
            variance_slope += variance_slopes[:, columns]
        return mean, variance, mean_slope, variance_slope

    def moments(self, points: Array) -> tuple[Array, Array]:
        """Means and standard deviations [m] of the sum at points [m, parameters]."""
        columns = list(self.columns)
        everywhere = np.zeros((len(points), self.parts[0][0].points.shape[1]))
        everywhere[:, columns] = points
        found = [model.predict(everywhere, terms) for model, terms in self.parts]
        deviations = np.sqrt(sum((deviation**2 for _, deviation in found), np.zeros(len(points))))
        return sum((mean for mean, _ in found), np.zeros(len(points))), deviations


def _propose_jointly(history: _History, component: _Component, random: np.random.Generator, *, gather: bool) -> Array:
    """The next positions [parameters] of a component with several parameters, from a model of each of its blocks."""
    columns = list(component.parameters)
    axes = tuple(history.axes[column] for column in columns)
    points = history.points[:, columns]
    whole = np.asarray(np.isfinite(points).all(axis=1))
    tried = np.unique(points[whole], axis=0)
    completed = len(history.values)
    values = np.array([_scores(history, block) for block in component.blocks])
    known = np.isfinite(values) & whole[:completed]
    if len(tried) < _opening(axes) or known.sum(axis=1).min() < 2:
        return _farthest(tried, axes, random)
    pending = points[completed:][whole[completed:]]
    parts: list[tuple[AdditiveModel, Mask | None]] = []
    for row, block in enumerate(component.blocks):
        terms = history.depends[block, columns][None]
        model = fit_additive(points[:completed][known[row]], values[row, known[row]], terms)
        parts.append((model.believing(pending) if len(pending) else model, None))
    return _improve(_Belief(tuple(parts), tuple(range(len(columns)))), tried, axes, random, gather=gather)


def _propose_by_value(
    history: _History, components: Sequence[_Component], random: np.random.Generator, *, gather: bool
) -> Array:
    """The next point from a model of the value as a sum of unknown functions of the blocks' parameters."""
    whole = np.asarray(np.isfinite(history.points).all(axis=1))
    tried = history.points[whole]
    completed = len(history.values)
    used = whole[:completed]
    if len(np.unique(tried, axis=0)) < _opening(history.axes) or used.sum() < 2:
        return _farthest(tried, history.axes, random)
    model = fit_additive(history.points[:completed][used], history.values[used], history.depends)
    pending = history.points[completed:][whole[completed:]]
    if len(pending):
        model = model.believing(pending)
    found = np.empty(tried.shape[1])
    for component in components:
        terms = np.zeros(len(history.depends), dtype=bool)
        terms[list(component.blocks)] = True
        columns = list(component.parameters)
        belief = _Belief(((model, terms),), component.parameters)
        axes = tuple(history.axes[column] for column in columns)
        found[columns] = _improve(belief, np.unique(tried[:, columns], axis=0), axes, random, gather=gather)
    return found


def _improve(
    belief: _Belief, tried: Array, axes: Sequence[_Axis], random: np.random.Generator, *, gather: bool
) -> Array:
    """The next point [parameters] of a component, given positions tried [n, parameters] in any of its trials."""
    means, _ = belief.moments(tried)
    incumbent, best = tried[means.argmax()], float(means.max())
    least = _CONVERGED * max(float(means.std()), 1e-300)

    def improvement(points: Array) -> tuple[Array, Array]:
        mean, variance, mean_slope, variance_slope = belief.predict(points)
        deviation = np.sqrt(variance)
        standard = (mean - best) / deviation
        height = _log_improvement(mean, deviation, best)
        # d log EI = (Phi / h) dz + d log s, with h(z) = phi(z) + z Phi(z) and z = (mean - best) / s.
        share = np.exp(log_ndtr(standard) - (height - np.log(deviation)))[:, None]
        logarithmic = variance_slope / (2.0 * variance[:, None])
        slope = share * (mean_slope / deviation[:, None] - standard[:, None] * logarithmic) + logarithmic
        return height, slope

    def doubt(points: Array) -> tuple[Array, Array]:
        _, variance, _, slope = belief.predict(points)
        return np.log(variance), slope / variance[:, None]

    def gain(points: Array) -> tuple[Array, Array]:
        # In units of what counts, which are what the climb's tolerances are made for.
        mean, _, slope, _ = belief.predict(points)
        return (mean - best) / (1e3 * least), slope / (1e3 * least)

    starts = _candidates(incumbent, random)
    if gather:
        found, height = _climb(gain, starts, tried, axes)
        return found if height > 1e-3 else incumbent
    found, height = _climb(improvement, starts, tried, axes)
    if height < math.log(least):
        unsure, doubtful = _climb(doubt, starts, tried, axes)
        found = unsure if math.isfinite(doubtful) else found
    # Where all points of a grid were tried, the best one stays.
    return found if math.isfinite(height) else incumbent


def _candidates(incumbent: Array, random: np.random.Generator) -> Array:
    """Points [m, parameters] to start from: all over the space, and ever closer around the best one."""
    size = len(incumbent)
    spread = random.random((_RANDOM, size))
    if size == 1:
        spread = np.linspace(0.0, 1.0, _SCAN)[:, None]
    around = [incumbent + width * random.standard_normal((_RANDOM // 8, size)) for width in _AROUND]
    return np.concatenate([spread, *around]).clip(0.0, 1.0)


def _climb(
    score: Callable[[Array], tuple[Array, Array]], starts: Array, tried: Array, axes: Sequence[_Axis]
) -> tuple[Array, float]:
    """The best untried point that L-BFGS-B reaches from the best starts, and its score; -inf if there is none.

    `score` gives scores [m] and their slopes [m, parameters] at points [m, parameters].
    """

    # All at once: a score costs as much for three points as for one, and a climb of their sum is one of each.
    def negative(stacked: Array) -> tuple[float, Array]:
        heights, slopes = score(stacked.reshape(-1, len(axes)))
        return -float(heights.sum()), -slopes.ravel()

    best = np.argsort(-score(starts)[0], kind="stable")[:_CLIMBS]
    bounds = [(0.0, 1.0)] * starts[best].size
    climbed = minimize(
        negative, starts[best].ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}
    )
    pool = np.concatenate([climbed.x.reshape(-1, len(axes)), starts]).clip(0.0, 1.0)
    pool = np.stack([axis.on_grid(column) for axis, column in zip(axes, pool.T, strict=True)], axis=1)
    distance = np.abs(pool[:, None] - tried[None]).max(axis=2).min(axis=1)
    heights = np.where(distance > _SAME, score(pool)[0], -np.inf)
    highest = int(heights.argmax())
    return pool[highest], float(heights[highest])


# --- Formulas ---------------------------------------------------------------------------------------------------------


def _log_improvement(mean: Array, deviation: Array, best: Array | float) -> Array:
    """Logarithm of E[max(f - best, 0)] of a normal f: log s + log h(z), h = phi + z Phi, z = (mean - best) / s.

    Left of -1 as log h = log phi + log(1 - |z| Phi(z) / phi(z)), whose quotient is a scaled error function (equation 9
    of Ament et al.); far left, where that too cancels, by its series, -2 log |z|.
    """
    standard = (mean - best) / deviation
    log_density = -0.5 * standard**2 - 0.5 * math.log(2.0 * math.pi)
    right = standard.clip(min=-1.0)
    direct = np.exp(-0.5 * right**2) / math.sqrt(2.0 * math.pi) + right * np.exp(log_ndtr(right))
    left = (-standard).clip(min=1.0, max=1e4)
    quotient = math.sqrt(0.5 * math.pi) * left * erfcx(left / math.sqrt(2.0))
    tail = np.where(
        standard < -1e4, -2.0 * np.log((-standard).clip(min=1.0)), np.log1p(-quotient.clip(max=1.0 - 1e-16))
    )
    return np.asarray(np.log(deviation) + np.where(standard > -1.0, np.log(direct), log_density + tail))


def _farthest(tried: Array, axes: Sequence[_Axis], random: np.random.Generator) -> Array:
    """An untried point [parameters] far from those tried [n, parameters]: the middle first, later the widest gap."""
    size = len(axes)
    if not len(tried):
        points = 0.5 + 0.05 * random.uniform(-1.0, 1.0, (1, size))
    elif size == 1:
        points = np.linspace(0.0, 1.0, _SCAN)[:, None]
    else:
        points = random.random((_RANDOM, size))
    points = np.stack([axis.on_grid(column) for axis, column in zip(axes, points.T, strict=True)], axis=1)
    if not len(tried):
        return np.asarray(points[0])
    distances = np.sqrt(((points[:, None] - tried[None]) ** 2).sum(axis=2)).min(axis=1)
    # Gaps of about the same width in an order of chance, so that parameters do not move in step.
    preference = distances * random.uniform(0.9, 1.0, len(points))
    return np.asarray(points[int(preference.argmax())])
