"""A sampler that uses the score of each block to propose the parameters of that block.

The similarity of a merge is a mean over blocks, and a block depends only on its own parameters. A search for n alphas
therefore consists of n searches for one number that share every trial: each trial gives information on all blocks and
proposes all parameters at once. The proposals depend on the trials alone:

    components   Parameters are grouped into components that share no block; each component is proposed separately.
    few trials   The point farthest from the tried ones, so that the first models cover the whole range.
    later        Each block has a model (`samplers.surrogates`). A component gets the point with the largest expected
                 improvement of its blocks' sum.
    converged    If no relevant improvement is expected, the point of the largest uncertainty: a similarity has several
                 maxima, and a narrow one may lie between the points.
    gathering    In every third trial all components are at their expected optimum or at their best point so far. In the
                 other trials some components explore, so the trial's value does not show the progress of the others.

Scores are assumed to be free of noise. A component therefore repeats a point only to gather, and no trial repeats
another. Running trials count with the scores that the models predict for them, so workers propose different points;
failed trials do not count. Expected improvement is computed as a logarithm, which keeps its gradient where it is tiny
(Ament et al., "Unexpected Improvements to Expected Improvement", 2023).
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # loads its modules on first use
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optimizer.samplers.components import connected
from optimizer.samplers.surrogates import AdditiveModel, LineModels, fit_additive, fit_lines
from optimizer.threads import one_thread

__all__ = ["BLOCK_SCORES", "BlockwiseSampler"]

BLOCK_SCORES = "block_scores"
"""User attribute of a trial with its scores, {block: score}."""

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Points of a component of one parameter before its models decide; for more parameters see `_opening`.
_OPENING = 4
# One trial in this many gathers: all components are at their expected optimum.
_GATHER = 3
# Points within this distance, as a share of the range, count as the same.
_SAME = 1e-7
# An expected improvement below this share of the scores' spread counts as none.
_CONVERGED = 1e-7
# Points in the scan of a line; points of each zoom around the best one; number of zooms.
_SCAN = 129
_ZOOM = 33
_ZOOMS = 3
# Maximum number of points that the models of a line are conditioned on, and how many of them are around the best.
_LINE_POINTS = 28
_NEAR_BEST = 8
# Search for the best point of several parameters: random points, widths of the clouds around the best, climbs.
_RANDOM = 256
_AROUND = (0.2, 0.05, 0.01, 0.001)
_CLIMBS = 3


class BlockwiseSampler(BaseSampler):
    """A sampler that proposes all parameters at once from one model for each block.

        blocks = {"OUT03": ["T1.OUT03"], "OUT04": ["T1.OUT04"]}
        study = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=0, blocks=blocks))

    A completed trial has its scores in `trial.user_attrs["block_scores"]`, {block: score}. The study's direction makes
    all of them as large or as small as possible; each is one part of the sum or mean that is the trial's value. If no
    trial has the scores of all blocks, the value itself is modelled as a sum of unknown functions of the blocks'
    parameters. Parameters without a block, categorical ones and those that only some trials have are sampled
    independently of the scores.

    Proposals depend only on the seed, the trial's number and the trials of the study, so a new sampler with the same
    seed proposes the same points. ValueError is raised for a study with several objectives.

    Args:
        seed: The seed of all random numbers; drawn at random if None.
        blocks: {block: names of the parameters that its score depends on}; several blocks may share a parameter. If
            None, every parameter is a block by itself, with the name of the parameter.
    """

    def __init__(self, *, seed: int | None = None, blocks: Mapping[str, Sequence[str]] | None = None) -> None:
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._blocks = None if blocks is None else {block: tuple(names) for block, names in blocks.items()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the numeric parameters that every completed trial has with the same range."""
        # A new instance each time, since a kept one would remember ranges that a new sampler cannot know.
        space = IntersectionSearchSpace().calculate(study)
        return {
            name: distribution
            for name, distribution in space.items()
            if isinstance(distribution, FloatDistribution | IntDistribution) and not distribution.single()
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a value for each parameter in `search_space`, {parameter: value}."""
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
        """Return a value of one parameter: a number from the widest gap between the tried ones, or a random choice.

        Args:
            study: The study; one with several objectives raises ValueError.
            trial: The trial that gets the value.
            param_name: The name of the parameter.
            param_distribution: Its range or choices.

        Returns:
            The value in the type of Optuna's trials.
        """
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
        tried = [axis.position(past.params.get(param_name)) for past in trials if past.number != trial.number]
        known = np.array([position for position in tried if not math.isnan(position)])
        return axis.value(float(_farthest(known[:, None], (axis,), random)[0]))


def _only(distribution: BaseDistribution) -> Any:
    choices = getattr(distribution, "choices", None)
    return getattr(distribution, "low", None) if choices is None else choices[0]


# --- Parameters and trials --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """The range of one number as positions 0 .. 1, with its grid; the positions are logarithmic if the range is."""

    distribution: FloatDistribution | IntDistribution

    @property
    def levels(self) -> float:
        """Number of possible values; infinite without a grid."""
        if self.distribution.step is None:
            return math.inf
        return 1 + math.floor((self.distribution.high - self.distribution.low) / self.distribution.step + 1e-9)

    def position(self, value: Any) -> float:
        """Return the position of a value; NaN if the value is missing or out of range."""
        range_ = self.distribution
        if not isinstance(value, int | float) or not range_.low <= value <= range_.high:
            return math.nan
        if range_.log:
            return math.log(value / range_.low) / math.log(range_.high / range_.low)
        return (value - range_.low) / (range_.high - range_.low)

    def values(self, positions: Array) -> Array:
        """Return the values at positions 0 .. 1, rounded to the grid if the range has one."""
        low, high, step = self.distribution.low, self.distribution.high, self.distribution.step
        if self.distribution.log:
            values = low * np.exp(positions * math.log(high / low))
        else:
            values = low + positions * (high - low)
        if step is not None:
            values = low + np.rint((values - low) / step) * step
        return np.asarray(np.clip(values, low, high), dtype=np.float64)

    def value(self, position: float) -> float | int:
        """Return the value at a position in the type of Optuna's trials."""
        value = float(self.values(np.array([position]))[0])
        return round(value) if isinstance(self.distribution, IntDistribution) else value

    def on_grid(self, positions: Array) -> Array:
        """Return the nearest positions that a trial can have."""
        if self.distribution.step is None:
            return np.asarray(positions.clip(0.0, 1.0))
        low, high = self.distribution.low, self.distribution.high
        values = self.values(positions)
        if self.distribution.log:
            return np.asarray(np.log(values / low) / math.log(high / low))
        return np.asarray((values - low) / (high - low))


@dataclass(frozen=True)
class _Component:
    """Parameters and blocks that depend on each other, as indices into those of the history."""

    parameters: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class _History:
    """The trials of a study as arrays in which larger scores are better.

    `points` float64 [trials, parameters] are positions in 0 .. 1 of the completed and then of the running trials; NaN
    where a trial lacks a parameter. `scores` [completed, blocks] are NaN where unknown; None if no trial has the scores
    of all blocks. `values` [completed] are the trials' values. `depends` [blocks, parameters] marks the parameters that
    each score depends on.
    """

    axes: tuple[_Axis, ...]
    points: Array
    scores: Array | None
    values: Array
    depends: Mask

    @property
    def components(self) -> list[_Component]:
        """Components in the order of their last blocks."""
        found = connected((block, np.flatnonzero(row).tolist()) for block, row in enumerate(self.depends))
        return [_Component(tuple(sorted(touched)), tuple(blocks)) for blocks, touched in found]

    @staticmethod
    def of(
        study: Study, trial: FrozenTrial, axes: Mapping[str, _Axis], blocks: Mapping[str, Sequence[str]]
    ) -> "_History":
        """Return the history of a study without `trial` itself."""
        completed = [
            past
            for past in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if past.value is not None and math.isfinite(past.value)
        ]
        running = [
            past
            for past in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if past.number != trial.number
        ]
        points = [
            [axis.position(past.params.get(name)) for name, axis in axes.items()] for past in [*completed, *running]
        ]
        depends = {block: [name in names for name in axes] for block, names in blocks.items()}
        moved = [block for block, row in depends.items() if any(row)]
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        scores = np.array([_block_scores(past, moved) for past in completed]).reshape(len(completed), len(moved))
        return _History(
            axes=tuple(axes.values()),
            points=np.array(points, dtype=np.float64).reshape(len(completed) + len(running), len(axes)),
            scores=sign * scores if np.isfinite(scores).all(axis=1).any() else None,
            values=sign * np.array([past.value for past in completed], dtype=np.float64),
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
    """Return the next point as positions [parameters]."""
    if len(history.points) % _GATHER == _GATHER - 1:
        point = _propose_point(history, random, gather=True)
        if np.abs(np.nan_to_num(history.points, nan=np.inf) - point).max(axis=1).min() > _SAME:
            return point
        # An earlier trial is already at this point.
    return _propose_point(history, random, gather=False)


def _propose_point(history: _History, random: np.random.Generator, *, gather: bool) -> Array:
    """Return the next point: each component at its expected optimum if `gather`, else at its largest improvement."""
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
    """Return the number of points spread over the space of these axes before models decide, at most its grid's size."""
    count = _OPENING if len(axes) == 1 else 3 + len(axes) // 4
    return min(count, math.prod(axis.levels for axis in axes))


def _scores(history: _History, block: int) -> Array:
    return history.values if history.scores is None else history.scores[:, block]


def _propose_lines(
    history: _History, components: Sequence[_Component], random: np.random.Generator, *, gather: bool
) -> Array:
    """Return the next positions [components] of all components with one parameter each."""
    proposed = np.empty(len(components))
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
            proposed[place] = _farthest(known[:, None], axes, random)[0]
        else:
            modelled.append(place)
    if modelled:
        proposed[modelled] = _improve_lines(history, [components[place] for place in modelled], gather=gather)
    return proposed


def _improve_lines(history: _History, components: Sequence[_Component], *, gather: bool) -> Array:
    """Return the next positions [components] of components that have enough points for models."""
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
    # Chosen per component, so that the models of all its blocks are conditioned on the same points.
    kept = _informative_points(tried[:, :completed], sums)
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
    lines = np.arange(len(axes))
    unsure = positions[lines, np.where(untried, deviations, -np.inf).argmax(axis=1)]
    proposal, height = positions[lines, heights.argmax(axis=1)], heights.max(axis=1)
    reach = 1.0 / (_SCAN - 1)
    for _ in range(_ZOOMS):
        positions = on_grid((proposal[:, None] + np.linspace(-reach, reach, _ZOOM)).clip(0.0, 1.0))
        heights = np.where(free(positions), height_of(*sums_at(positions)), -np.inf)
        better = heights.max(axis=1) > height
        proposal = np.where(better, positions[lines, heights.argmax(axis=1)], proposal)
        height = np.where(better, heights.max(axis=1), height)
        reach *= 2.0 / (_ZOOM - 1)
    incumbent = tried[lines, sums.argmax(axis=1)]
    if gather:
        return np.asarray(np.where(height > best + _CONVERGED * spread, proposal, incumbent))
    proposal = np.where(height < np.log(_CONVERGED * spread), unsure, proposal)
    # If all points of a grid were tried, the best one is repeated.
    return np.asarray(np.where(np.isfinite(height), proposal, incumbent))


def _informative_points(tried: Array, sums: Array) -> NDArray[np.intp]:
    """Return indices [components, kept] of the most informative points: nearest to the best, then most distant.

    More than about thirty points add little information on a smooth function of one number, and points very close to
    each other make the kernel matrix singular.
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
    """Return the models with their predictions at pending positions [components, running], and the best sums then."""
    running = np.isfinite(pending)
    if not running.any():
        return models, best
    positions = np.where(running, pending, 0.0)[owner]
    expected = np.where(running, together @ models.predict(positions)[0], -np.inf)
    return models.believing(positions, running[owner]), np.maximum(best, expected.max(axis=1))


@dataclass(frozen=True)
class _Belief:
    """The prediction of models, or of some of their terms, for the sum of a component's blocks.

    `parts` are the models, each with the terms that count (None for all); `columns` are the component's parameters
    among the models' dimensions.
    """

    parts: tuple[tuple[AdditiveModel, Mask | None], ...]
    columns: tuple[int, ...]

    def predict(self, points: Array) -> tuple[Array, Array, Array, Array]:
        """Return means and variances [m] of the sum at points [m, parameters], and their slopes [m, parameters]."""
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
        """Return means and standard deviations [m] of the sum at points [m, parameters]."""
        columns = list(self.columns)
        everywhere = np.zeros((len(points), self.parts[0][0].points.shape[1]))
        everywhere[:, columns] = points
        found = [model.predict(everywhere, terms) for model, terms in self.parts]
        deviations = np.sqrt(sum((deviation**2 for _, deviation in found), np.zeros(len(points))))
        return sum((mean for mean, _ in found), np.zeros(len(points))), deviations


def _propose_jointly(history: _History, component: _Component, random: np.random.Generator, *, gather: bool) -> Array:
    """Return the next positions [parameters] of a component with several parameters; each block has a model."""
    columns = list(component.parameters)
    axes = tuple(history.axes[column] for column in columns)
    points = history.points[:, columns]
    complete = np.asarray(np.isfinite(points).all(axis=1))
    tried = np.unique(points[complete], axis=0)
    completed = len(history.values)
    values = np.array([_scores(history, block) for block in component.blocks])
    known = np.isfinite(values) & complete[:completed]
    if len(tried) < _opening(axes) or known.sum(axis=1).min() < 2:
        return _farthest(tried, axes, random)
    pending = points[completed:][complete[completed:]]
    parts: list[tuple[AdditiveModel, Mask | None]] = []
    for row, block in enumerate(component.blocks):
        terms = history.depends[block, columns][None]
        model = fit_additive(points[:completed][known[row]], values[row, known[row]], terms)
        parts.append((model.believing(pending) if len(pending) else model, None))
    return _improve(_Belief(tuple(parts), tuple(range(len(columns)))), tried, axes, random, gather=gather)


def _propose_by_value(
    history: _History, components: Sequence[_Component], random: np.random.Generator, *, gather: bool
) -> Array:
    """Return the next point from a model of the value as a sum of unknown functions of the blocks' parameters."""
    complete = np.asarray(np.isfinite(history.points).all(axis=1))
    tried = history.points[complete]
    completed = len(history.values)
    used = complete[:completed]
    if len(np.unique(tried, axis=0)) < _opening(history.axes) or used.sum() < 2:
        return _farthest(tried, history.axes, random)
    model = fit_additive(history.points[:completed][used], history.values[used], history.depends)
    pending = history.points[completed:][complete[completed:]]
    if len(pending):
        model = model.believing(pending)
    point = np.empty(tried.shape[1])
    for component in components:
        terms = np.zeros(len(history.depends), dtype=bool)
        terms[list(component.blocks)] = True
        columns = list(component.parameters)
        belief = _Belief(((model, terms),), component.parameters)
        axes = tuple(history.axes[column] for column in columns)
        point[columns] = _improve(belief, np.unique(tried[:, columns], axis=0), axes, random, gather=gather)
    return point


def _improve(
    belief: _Belief, tried: Array, axes: Sequence[_Axis], random: np.random.Generator, *, gather: bool
) -> Array:
    """Return the next point [parameters] of a component; `tried` [n, parameters] are its positions so far."""
    means, _ = belief.moments(tried)
    incumbent, best = tried[means.argmax()], float(means.max())
    least = _CONVERGED * max(float(means.std()), 1e-300)

    def improvement(points: Array) -> tuple[Array, Array]:
        mean, variance, mean_slope, variance_slope = belief.predict(points)
        deviation = np.sqrt(variance)
        standard = (mean - best) / deviation
        height = _log_improvement(mean, deviation, best)
        # d log EI = (Phi / h) dz + d log s, with h(z) = phi(z) + z Phi(z) and z = (mean - best) / s.
        share = np.exp(scipy.special.log_ndtr(standard) - (height - np.log(deviation)))[:, None]
        logarithmic = variance_slope / (2.0 * variance[:, None])
        slope = share * (mean_slope / deviation[:, None] - standard[:, None] * logarithmic) + logarithmic
        return height, slope

    def doubt(points: Array) -> tuple[Array, Array]:
        _, variance, _, slope = belief.predict(points)
        return np.log(variance), slope / variance[:, None]

    def gain(points: Array) -> tuple[Array, Array]:
        # In units of the smallest relevant gain, to match the tolerances of the climb.
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
    # If all points of a grid were tried, the best one is repeated.
    return found if math.isfinite(height) else incumbent


def _candidates(incumbent: Array, random: np.random.Generator) -> Array:
    """Return starting points [m, parameters]: spread over the space, and in ever smaller clouds around the best one."""
    size = len(incumbent)
    spread = random.random((_RANDOM, size))
    if size == 1:
        spread = np.linspace(0.0, 1.0, _SCAN)[:, None]
    around = [incumbent + width * random.standard_normal((_RANDOM // 8, size)) for width in _AROUND]
    return np.concatenate([spread, *around]).clip(0.0, 1.0)


def _climb(
    score: Callable[[Array], tuple[Array, Array]], starts: Array, tried: Array, axes: Sequence[_Axis]
) -> tuple[Array, float]:
    """Return the best untried point that L-BFGS-B reaches from the best starts, and its score; -inf without one.

    `score` returns scores [m] and their slopes [m, parameters] at points [m, parameters].
    """

    # Climbing the sum climbs each point, and scoring three points takes no longer than scoring one.
    def negative(stacked: Array) -> tuple[float, Array]:
        heights, slopes = score(stacked.reshape(-1, len(axes)))
        return -float(heights.sum()), -slopes.ravel()

    best = np.argsort(-score(starts)[0], kind="stable")[:_CLIMBS]
    bounds = [(0.0, 1.0)] * starts[best].size
    climbed = scipy.optimize.minimize(
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
    """Return log E[max(f - best, 0)] of a normal f: log s + log h(z), h = phi + z Phi, z = (mean - best) / s.

    For z < -1, log h = log phi + log(1 - |z| Phi(z) / phi(z)), whose quotient is a scaled error function (equation 9 of
    Ament et al.). For z < -1e4, where that cancels too, the series -2 log |z| replaces the last term.
    """
    standard = (mean - best) / deviation
    log_density = -0.5 * standard**2 - 0.5 * math.log(2.0 * math.pi)
    right = standard.clip(min=-1.0)
    direct = np.exp(-0.5 * right**2) / math.sqrt(2.0 * math.pi) + right * np.exp(scipy.special.log_ndtr(right))
    left = (-standard).clip(min=1.0, max=1e4)
    quotient = math.sqrt(0.5 * math.pi) * left * scipy.special.erfcx(left / math.sqrt(2.0))
    tail = np.where(
        standard < -1e4, -2.0 * np.log((-standard).clip(min=1.0)), np.log1p(-quotient.clip(max=1.0 - 1e-16))
    )
    return np.asarray(np.log(deviation) + np.where(standard > -1.0, np.log(direct), log_density + tail))


def _farthest(tried: Array, axes: Sequence[_Axis], random: np.random.Generator) -> Array:
    """Return an untried point [parameters] far from `tried` [n, parameters]: the middle first, later the widest gap."""
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
    # Gaps of similar width are filled in random order, so that parameters do not move in step.
    preference = distances * random.uniform(0.9, 1.0, len(points))
    return np.asarray(points[int(preference.argmax())])
