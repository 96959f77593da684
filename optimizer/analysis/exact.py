"""The exact optimum of the metrics in weight space: the best alphas, without a trial.

With coefficients c(x), a block's similarity follows from a linear and a quadratic form of c (see
`similarity.quadratic`). Only tied alphas connect blocks, so the free alphas fall into components that share no block.
Each component is solved separately:

    explained, c(x) affine        Least squares within bounds by active sets (Stark and Parker, Bounded-variable least
                                  squares, 1995), which reaches bounds exactly.
    one alpha, one block          Closed form: a cosine along a line has one stationary point.
    anything else                 L-BFGS-B with exact gradients from several starts; for explained after Gauss-Newton
                                  steps, each of which is such a least squares problem.

Optima can be flat. A cosine does not depend on the length of the merged difference, and the similarity may not
distinguish combinations of alphas. Among equally good points the one with the smallest |merged - target| is taken, then
the one nearest to the starting values.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its modules on first use
import torch
from numpy.typing import NDArray

from optimizer.analysis.moments import moments_of
from optimizer.recipes import Algebra, Parameter, Space
from optimizer.samplers import connected
from optimizer.similarity import ExplainedMetric, QuadraticMetric
from optimizer.threads import one_thread

__all__ = ["ExactOptimum", "exact_optimum", "keeping_point"]

Vector = NDArray[np.float64]

# Points of the scan over a single alpha that moves several blocks; the best ones are refined.
_SCAN = 257
# Random points, and how many of the best of them are starts, besides the starting values.
_RANDOM_POINTS = 128
_RANDOM_STARTS = 3
# A direction whose curvature is below this share of the largest counts as flat.
_FLAT = 1e-9
# Similarities closer than this count as equal.
_EQUAL = 1e-13
# Eigenvalues of a least squares problem below this share of the largest count as 0, the precision of inner products.
_RANK = 1e-13
# Alphas nearer to a bound than this share of their range count as at the bound.
_AT_BOUND = 1e-12
# Maximum number of Gauss-Newton steps; each squares the remaining error.
_STEPS = 20


@dataclass(frozen=True)
class ExactOptimum:
    """The best point {free alpha: value}, and the mean similarity of its blocks."""

    point: dict[str, float]
    value: float


def exact_optimum(space: Space, metric: QuadraticMetric, *, seed: int = 0) -> ExactOptimum:
    """Return the point of `space` with the highest mean of `metric` over its blocks, within bounds and on the grids."""
    point: dict[str, float] = {}
    for parameters, blocks in _components(space.parameters, metric.blocks):
        component = _Component(space.algebra, parameters, metric, blocks)
        with one_thread():
            best = component.solve(np.random.default_rng(seed))
        point |= {parameter.name: value for parameter, value in zip(parameters, component.on_grid(best), strict=True)}
    ordered = {
        parameter.name: point.get(parameter.name, parameter.free.starting_value) for parameter in space.parameters
    }
    scores = metric.score(space.coefficients(torch.tensor([list(ordered.values())], dtype=torch.float64)))
    return ExactOptimum(ordered, float(scores.mean()))


def keeping_point(space: Space, metric: ExplainedMetric, unchanged: Collection[str]) -> dict[str, float]:
    """Return the values {free alpha: value} that keep `unchanged` blocks equal to the target's.

    They belong to the free alphas that move such blocks and no other block of `metric`. If bounds prevent an alpha from
    keeping a block, its value is as near as possible.

    Args:
        space: The space of the free alphas.
        metric: The metric that scores the other blocks.
        unchanged: The blocks that the target has unchanged from the base.

    Returns:
        The values; empty if no free alpha moves unchanged blocks only.
    """
    scored = {*metric.blocks, *metric.unchanged} - set(unchanged)
    free = [
        alpha for alpha in space.parameters if set(alpha.blocks) & set(unchanged) and not scored & set(alpha.blocks)
    ]
    if not free:
        return {}
    return exact_optimum(Space(space.algebra, free), metric.keeping(unchanged)).point


def _components(parameters: Sequence[Parameter], blocks: Sequence[str]) -> list[tuple[list[Parameter], list[str]]]:
    """Return free alphas and scored blocks in groups that share no block; alphas without a scored block are dropped."""
    touching = [(parameter, set(parameter.blocks) & set(blocks)) for parameter in parameters]
    return [
        (joined, [block for block in blocks if block in touched])
        for joined, touched in connected((parameter, touched) for parameter, touched in touching if touched)
    ]


class _Component:
    """The mean similarity of a few blocks as a function of the few free alphas that they share."""

    def __init__(
        self, algebra: Algebra, parameters: Sequence[Parameter], metric: QuadraticMetric, blocks: Sequence[str]
    ) -> None:
        # Every cosine with a zero vector is 0, so such blocks are left out.
        sizes = zip(metric.blocks, metric.unit.tolist(), strict=True)
        kept = metric.of_blocks([block for block, size in sizes if size > 0 and block in blocks])
        rows = [row for row, group in enumerate(algebra.groups) if group.block in kept.blocks]
        local = Algebra(algebra.recipe, [algebra.groups[row] for row in rows], algebra.sources, algebra.output)
        self._metric = kept
        self._space = Space(local, parameters)
        self._blocks = list(kept.blocks)
        block = [self._blocks.index(group.block) for group in local.groups if group.block]
        self._moments = moments_of(self._space, metric, rows, block)
        self._low = np.array([parameter.free.low for parameter in parameters])
        self._high = np.array([parameter.free.high for parameter in parameters])
        self._start = np.array(self._space.start)

    def solve(self, random: np.random.Generator) -> Vector:
        """Return the best point [parameters]; of several equal ones the choice of `_settle`."""
        if not self._blocks:
            return self._start
        if isinstance(self._metric, ExplainedMetric):
            best = self._least_squares(random)
        elif len(self._start) == 1:
            line = self._closed_form()
            best = self._scan() if line is None else line
        else:
            best = self._climb(self._starts(random))
        return self._settle(best)

    def on_grid(self, best: Vector) -> list[float]:
        """Return the best point on the grids found from the one nearest to `best` by moving one alpha at a time.

        Without grids, return `best` within the bounds.
        """
        frees = [parameter.free for parameter in self._space.parameters]
        # An optimum at a bound is set to the bound itself, without rounding errors.
        for bound in (self._low, self._high):
            best = np.where(np.abs(best - bound) <= _AT_BOUND * (self._high - self._low), bound, best)
        point = [free.on_grid(float(number)) for free, number in zip(frees, best, strict=True)]
        gridded = [(index, free, free.step) for index, free in enumerate(frees) if free.step is not None]
        if not self._blocks:
            return point
        value, better = self.value(np.array(point)), True
        while better:
            better = False
            for index, free, step in gridded:
                for number in (free.on_grid(point[index] - step), free.on_grid(point[index] + step)):
                    moved = [*point[:index], number, *point[index + 1 :]]
                    if (reached := self.value(np.array(moved))) > value + _EQUAL:
                        point, value, better = moved, reached, True
        return point

    def value(self, point: Vector) -> float:
        """Return the mean similarity at `point`."""
        return float(self._values(point[None])[0])

    def value_and_gradient(self, point: Vector, *, clipped: bool = False) -> tuple[float, Vector]:
        """Return the mean similarity at `point` and its derivatives by the free alphas, `clipped` to [-1, 1] or not."""
        found = self._moments.derivatives(point)
        linear, quadratic = torch.from_numpy(found.linear), torch.from_numpy(found.quadratic)
        values, slopes = self._metric.value(linear, quadratic), self._metric.slopes(linear, quadratic)
        if clipped:
            within = self._metric.clip(values) == values
            values, slopes = self._metric.clip(values), (slopes[0] * within, slopes[1] * within)
        by_linear, by_quadratic = (slope.numpy() for slope in slopes)
        gradient = found.pulled @ by_linear + 2 * (found.along @ by_quadratic)
        return float(values.mean()), np.asarray(gradient / len(self._blocks))

    def _values(self, points: Vector) -> Vector:
        """Return the mean similarity at each of points [n, parameters]."""
        linear, quadratic = map(torch.from_numpy, self._moments.at(points))
        values: Vector = self._metric.clip(self._metric.value(linear, quadratic)).mean(dim=-1).numpy()
        return values

    def _least_squares(self, random: np.random.Generator) -> Vector:
        """Return the point of the smallest |merged - target|^2, each block's in units of the base's; or a better one.

        If one alpha moves several blocks, giving up a block that suits none of its good values may be better, since a
        similarity does not fall below -1.
        """
        if self._is_affine(random):
            best = self._nearest(self._start)
        else:
            reached = [self._approach(start) for start in self._starts(random)]
            values = [self.value(point) for point in reached]
            # The first start is the starting values; its result is kept unless another is better.
            best = next(point for point, value in zip(reached, values, strict=True) if value >= max(values) - _EQUAL)
            # Gauss-Newton steps converge slowly if much is unexplained.
            best = self._better(self._ascend(best), best)
        if len(self._blocks) > 1:
            starts = self._peaks() if len(self._start) == 1 else self._starts(random)[1:]
            climbed = self._climb([best, *starts], clipped=True)
            if self.value(climbed) > self.value(best) + _EQUAL:
                return climbed
        return best

    def _approach(self, point: Vector) -> Vector:
        """Take Gauss-Newton steps from `point` within the bounds, as long as they improve the value."""
        value = self.value(point)
        for _ in range(_STEPS):
            towards = self._nearest(point) - point
            moved, reached = point, value
            for share in (1.0, 0.3, 0.1, 0.01):
                tried = np.clip(point + share * towards, self._low, self._high)
                if (found := self.value(tried)) > value:
                    moved, reached = tried, found
                    break
            if reached - value <= _EQUAL:
                return moved
            point, value = moved, reached
        return point

    def _better(self, first: Vector, second: Vector) -> Vector:
        return first if self.value(first) > self.value(second) else second

    def _is_affine(self, random: np.random.Generator) -> bool:
        """Return whether the coefficients are affine in all free alphas together; they are affine in each of them."""
        if len(self._start) == 1:
            return True
        first, second = (self._moments.jacobian(random.uniform(self._low, self._high)) for _ in range(2))
        return np.allclose(first, second, rtol=0, atol=1e-12)

    def _nearest(self, point: Vector) -> Vector:
        """Return the best point within the bounds of the merge linearised around `point`.

        Along directions without any effect it stays as near to `point` as the bounds allow.
        """
        _, _, curvature, slope = self._metrics(point)
        values, axes, size = _scaled(curvature)
        curved = values > _RANK
        free = self._high > self._low
        if not curved.any() or not free.any():
            return point
        # |A (x - point) - b|^2 has the same second derivatives and slope.
        roots, axes = np.sqrt(values[curved]), axes[:, curved]
        inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
        matrix, aim = (roots[:, None] * axes.T * size)[:, free], -(axes.T @ (slope * inverse)) / roots
        bounds = (self._low - point)[free], (self._high - point)[free]
        found = scipy.optimize.lsq_linear(matrix, aim, bounds=bounds, method="bvls", tol=1e-15, max_iter=1000)
        moved = point.copy()
        moved[free] += found.x
        for mask, bound in ((-1, self._low), (1, self._high)):
            at_bound = np.flatnonzero(free)[found.active_mask == mask]
            moved[at_bound] = bound[at_bound]
        return np.clip(moved, self._low, self._high)

    def _closed_form(self) -> Vector | None:
        """Return the best value of a single alpha that moves one block; None if it moves several.

        A merge is affine in one alpha. With products p + q a with the target and u + 2 v a + w a^2 with itself, where
        a runs from 0 at the lower bound to 1 at the upper one, the derivative of
        (p + q a) / sqrt(u + 2 v a + w a^2) vanishes only at a = (q u - p v) / (p w - q v).
        """
        if len(self._blocks) != 1:
            return None
        low, high = float(self._low[0]), float(self._high[0])
        found, moving = self._moments.derivatives(self._low), self._moments.curvature(self._low)
        p, q = float(found.linear[0]), (high - low) * float(found.pulled[0, 0])
        u, v = float(found.quadratic[0]), (high - low) * float(found.along[0, 0])
        w = (high - low) ** 2 * float(moving[0, 0, 0])
        candidates = [self._start[0], low, high]
        divisor = p * w - q * v
        if divisor != 0 and 0 < (share := (q * u - p * v) / divisor) < 1:
            candidates.append(low + share * (high - low))
        points = np.array(candidates)[:, None]
        values = self._values(points)
        # A starting value that is as good as the stationary point and the bounds is kept.
        best = 0 if values[0] >= values.max() - _EQUAL else int(np.argmax(values))
        return np.asarray(points[best])

    def _scan(self) -> Vector:
        return self._climb([self._start, *self._peaks()])

    def _peaks(self) -> list[Vector]:
        """Return the highest points of a scan over the only alpha."""
        points = np.linspace(self._low, self._high, _SCAN)
        values = self._values(points)
        peaks = [
            index
            for index in range(_SCAN)
            if values[index] >= values[max(index - 1, 0)] and values[index] >= values[min(index + 1, _SCAN - 1)]
        ]
        return [points[index] for index in sorted(peaks, key=lambda index: -values[index])[:4]]

    def _starts(self, random: np.random.Generator) -> list[Vector]:
        spread = random.uniform(self._low, self._high, (_RANDOM_POINTS, len(self._low)))
        best = np.argsort(-self._values(spread))[:_RANDOM_STARTS]
        return [self._start, *spread[best]]

    def _climb(self, starts: Sequence[Vector], *, clipped: bool = False) -> Vector:
        reached = [self._ascend(start, clipped=clipped) for start in starts]
        values = np.array([self.value(point) for point in reached])
        # The first start is the starting values; its result is kept unless another is better.
        good = [point for point, value in zip(reached, values, strict=True) if value >= values.max() - _EQUAL]
        return good[0]

    def _ascend(self, start: Vector, *, clipped: bool = False) -> Vector:
        # In units of the possible gain: a cosine of weights spans only 1e-4, too little for the solver's tolerances.
        unit = max(1.0 - self.value(start), 1e-12)

        def negative(point: Vector) -> tuple[float, Vector]:
            value, gradient = self.value_and_gradient(point, clipped=clipped)
            return (1.0 - value) / unit, -gradient / unit

        bounds = list(zip(self._low, self._high, strict=True))
        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 12, "maxls": 40}
        result = scipy.optimize.minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)  # type: ignore[call-overload]
        return np.clip(np.asarray(result.x, dtype=np.float64), self._low, self._high)

    def _settle(self, best: Vector) -> Vector:
        """Move along flat directions to the smallest |merged - target|, then towards the starting values."""
        directions = self._flat_directions(best)
        for _ in range(50):
            if directions.shape[1] == 0:
                break
            moved = np.clip(best + self._flat_step(best, directions), self._low, self._high)
            if np.abs(moved - best).max() < 1e-12:
                break
            if self.value(moved) < self.value(best) - _EQUAL:
                moved = self._ascend(moved)
            if not self._prefers(moved, best):
                break
            best, directions = moved, self._flat_directions(moved)
        return best

    def _prefers(self, moved: Vector, best: Vector) -> bool:
        if self.value(moved) < self.value(best) - _EQUAL:
            return False
        new, old = self._distance(moved), self._distance(best)
        # Distances are in units of the target's length, so an absolute tolerance fits.
        if abs(new - old) > _EQUAL * len(self._blocks):
            return new < old
        return float(np.linalg.norm(moved - self._start)) < float(np.linalg.norm(best - self._start))

    def _flat_directions(self, point: Vector) -> Vector:
        """Return the directions in which the merged vector, for a cosine its direction, does not change."""
        turning, moving, curvature, _ = self._metrics(point)
        if isinstance(self._metric, ExplainedMetric):
            values, axes, size = _scaled(curvature)
            # In units of each alpha's effect, so that the alpha of a source near the base also counts as determined.
            nonzero = size > 0
            flat = np.concatenate([axes[:, values <= _FLAT] / np.where(nonzero, size, 1.0)[:, None]], axis=1)
            return np.asarray(np.linalg.qr(flat)[0])
        return _null_space(turning, against=float(np.abs(moving).max(initial=0.0)))

    def _flat_step(self, point: Vector, directions: Vector) -> Vector:
        _, _, curvature, slope = self._metrics(point)
        values, vectors = np.linalg.eigh(directions.T @ curvature @ directions)
        curved = values > _FLAT * float(np.abs(curvature).max(initial=0.0))
        bent, straight = vectors[:, curved], vectors[:, ~curved]
        towards_target = -bent @ ((bent.T @ (directions.T @ slope)) / values[curved])
        towards_start = straight @ (straight.T @ (directions.T @ (self._start - point)))
        return np.asarray(directions @ (towards_target + towards_start))

    def _metrics(self, point: Vector) -> tuple[Vector, Vector, Vector, Vector]:
        """Return the change of the merged vectors m(x) with the free alphas, summed over the blocks (Gauss-Newton).

        The first three are products of the derivatives of m / |m| (turning), of m in units of |m|, and of m in the
        metric's unit, all [parameters, parameters]. The fourth is the gradient of |m - target|^2 / 2 in that unit,
        [parameters].
        """
        unit = self._metric.unit.numpy()
        found, moving = self._moments.derivatives(point), self._moments.curvature(point)
        quadratic = np.maximum(found.quadratic, 1e-300)
        relative = moving / quadratic
        share = found.along / quadratic
        turning = relative - share[:, None] * share
        slope = (found.along - found.pulled) / unit
        return turning.sum(axis=-1), relative.sum(axis=-1), (moving / unit).sum(axis=-1), slope.sum(axis=-1)

    def _distance(self, point: Vector) -> float:
        linear, quadratic = self._moments.at(point[None])
        unit, target = self._metric.unit.numpy(), self._metric.target.numpy()
        return float(((quadratic - 2 * linear + target) / unit).sum())


def _scaled(matrix: Vector) -> tuple[Vector, Vector, Vector]:
    """Return eigenvalues and eigenvectors of a symmetric matrix scaled to a unit diagonal, and its rows' scales."""
    size = np.sqrt(np.diag(matrix).clip(min=0.0))
    size = np.where(size > 1e-150, size, 0.0)
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    values, axes = np.linalg.eigh(matrix * np.outer(inverse, inverse))
    return values, axes, size


def _null_space(matrix: Vector, against: float) -> Vector:
    """Return orthonormal columns that span a symmetric matrix's null space; `against` is its entries' usual size."""
    if matrix.size == 0:
        return np.zeros((matrix.shape[0], 0))
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors[:, values <= _FLAT * max(against, 1e-300)])
