"""The exact optimum of the metrics in weight space: where the best alphas are, without a trial.

With coefficients c(x), a block's similarity follows from a linear and a quadratic form of c (see
`similarity.quadratic`). Blocks are independent but for tied alphas, so the parameters fall into components that share
no block; each is solved by itself:

    explained, c(x) affine        least squares within bounds, by active sets (Stark and Parker, Bounded-variable least
                                  squares, 1995): it lands on bounds exactly
    one alpha, one block, a line  closed form: a cosine along a line has one stationary point
    anything else                 L-BFGS-B with exact gradients from several starts; for explained after Gauss-Newton
                                  steps, each of which is such a least squares problem

Optima can be flat. A cosine does not see the length of the merged difference, and alphas can trade off against each
other. Among equally good points the one with the smallest |merged - target| is taken, then the one nearest to the
starting values.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, minimize

from optimizer.recipes import Algebra, Parameter, Space
from optimizer.samplers import connected
from optimizer.similarity import ExplainedMetric, QuadraticMetric
from optimizer.threads import one_thread

__all__ = ["ExactOptimum", "exact_optimum", "keeping_point"]

Vector = NDArray[np.float64]

# Points of the scan over a single alpha that moves several blocks or bends; their best neighbours are refined.
_SCAN = 257
# Random points from which the best are taken as starts, besides the starting values; and how many of them.
_RANDOM_POINTS = 128
_RANDOM_STARTS = 3
# A direction whose curvature is below this share of the largest counts as flat.
_FLAT = 1e-9
# Similarities nearer than this count as equal when the tie is broken.
_EQUAL = 1e-13
# Eigenvalues of a least squares problem below this share of the largest count as 0: inner products are no more exact.
_RANK = 1e-13
# Alphas nearer to a bound than this share of their range are on it.
_AT_BOUND = 1e-12
# Gauss-Newton steps at most; each squares the error that the climb has left.
_STEPS = 20


@dataclass(frozen=True)
class ExactOptimum:
    """The best point {parameter: value}, and the mean similarity of its blocks."""

    point: dict[str, float]
    value: float


def exact_optimum(space: Space, metric: QuadraticMetric, *, seed: int = 0) -> ExactOptimum:
    """The point of `space` with the highest mean of `metric` over its blocks, within the bounds and on their grids."""
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
    """Return the values {parameter: value} that keep `unchanged` blocks as the target has them.

    They are of the parameters that move such blocks and no other block of `metric`; where bounds do not let them keep a
    block, they come as near as they can.
    """
    scored = {*metric.blocks, *metric.unchanged} - set(unchanged)
    free = [one for one in space.parameters if set(one.blocks) & set(unchanged) and not scored & set(one.blocks)]
    if not free:
        return {}
    return exact_optimum(Space(space.algebra, free), metric.keeping(unchanged)).point


def _components(parameters: Sequence[Parameter], blocks: Sequence[str]) -> list[tuple[list[Parameter], list[str]]]:
    """Parameters and scored blocks that depend on each other; parameters that move no scored block are left out."""
    touching = [(parameter, set(parameter.blocks) & set(blocks)) for parameter in parameters]
    return [
        (joined, [block for block in blocks if block in touched])
        for joined, touched in connected((parameter, touched) for parameter, touched in touching if touched)
    ]


class _Component:
    """The mean similarity of a few blocks as a function of the few parameters that they share."""

    def __init__(
        self, algebra: Algebra, parameters: Sequence[Parameter], metric: QuadraticMetric, blocks: Sequence[str]
    ) -> None:
        # With a zero vector every cosine is 0.
        sizes = zip(metric.blocks, metric.unit.tolist(), strict=True)
        kept = metric.of_blocks([block for block, size in sizes if size > 0 and block in blocks])
        rows = [row for row, group in enumerate(algebra.groups) if group.block in kept.blocks]
        local = Algebra(algebra.recipe, [algebra.groups[row] for row in rows], algebra.sources, algebra.output)
        self._metric = kept
        self._space = Space(local, parameters)
        self._products = metric.products[rows]
        self._with_target = metric.with_target[rows]
        self._blocks = list(kept.blocks)
        position = {block: index for index, block in enumerate(self._blocks)}
        self._block = torch.tensor([position[group.block] for group in local.groups if group.block], dtype=torch.long)
        self._moves = self._space.moves()
        self._low = np.array([parameter.free.low for parameter in parameters])
        self._high = np.array([parameter.free.high for parameter in parameters])
        self._start = np.array(self._space.start)

    def solve(self, random: np.random.Generator) -> Vector:
        """Return the best point [parameters]; of several that are equal the one that `_settle` chooses."""
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
        """The best point on the grids that single moves to neighbours lead to, from the one nearest to `best`.

        Where nothing has a grid that is `best`, within the bounds.
        """
        frees = [parameter.free for parameter in self._space.parameters]
        # An optimum on a bound is written as the bound, not as what rounding makes of it.
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
        """Mean similarity at `point`."""
        return float(self._values(point[None])[0])

    def value_and_gradient(self, point: Vector, *, clipped: bool = False) -> tuple[float, Vector]:
        """Mean similarity at `point` and its derivatives by the parameters; of values as they are, or `clipped`."""
        coefficients, jacobian = self._expand(point)
        weighted = (self._products @ coefficients[:, :, None])[:, :, 0]
        linear = self._sum((self._with_target * coefficients).sum(dim=-1))
        quadratic = self._sum((weighted * coefficients).sum(dim=-1))
        values, slopes = self._metric.value(linear, quadratic), self._metric.slopes(linear, quadratic)
        if clipped:
            within = self._metric.clip(values) == values
            values, slopes = self._metric.clip(values), (slopes[0] * within, slopes[1] * within)
        by_linear, by_quadratic = (each[self._block] for each in slopes)
        # dq = 2 c' M dc; by each alpha of the group's own block.
        slope = (jacobian * self._with_target).sum(dim=-1) * by_linear
        slope += 2 * (jacobian * weighted).sum(dim=-1) * by_quadratic
        gradient = torch.einsum("pag,ag->p", self._moves, slope) / len(self._blocks)
        return float(values.mean()), gradient.numpy()

    def _values(self, points: Vector) -> Vector:
        """Mean similarity at each of points [n, parameters]."""
        values: Vector = self._metric.clip(self._metric.value(*self._moments(points))).mean(dim=-1).numpy()
        return values

    def _moments(self, points: Vector) -> tuple[torch.Tensor, torch.Tensor]:
        """Products with the target and with itself of what points [n, parameters] merge to, both [n, blocks]."""
        coefficients = self._space.coefficients(torch.from_numpy(points))
        linear = torch.einsum("ngk,gk->ng", coefficients, self._with_target)
        quadratic = torch.einsum("ngk,gkl,ngl->ng", coefficients, self._products, coefficients)
        return self._sum(linear), self._sum(quadratic)

    def _least_squares(self, random: np.random.Generator) -> Vector:
        """The point of the smallest |merged - target|^2, each block's in units of the base's; or a better one.

        Where one alpha moves several blocks, a block that none of its good values suits may be given up: a similarity
        does not fall below -1.
        """
        if self._is_affine(random):
            best = self._nearest(self._start)
        else:
            reached = [self._approach(start) for start in self._starts(random)]
            values = [self.value(point) for point in reached]
            # The first start is the starting values: what it leads to is kept if nothing is better.
            best = next(point for point, value in zip(reached, values, strict=True) if value >= max(values) - _EQUAL)
            # Where much is unexplained Gauss-Newton steps come close slowly.
            best = self._better(self._ascend(best), best)
        if len(self._blocks) > 1:
            starts = self._peaks() if len(self._start) == 1 else self._starts(random)[1:]
            other = self._climb([best, *starts], clipped=True)
            if self.value(other) > self.value(best) + _EQUAL:
                return other
        return best

    def _approach(self, point: Vector) -> Vector:
        """Take Gauss-Newton steps from `point`, each within the bounds and as long as it improves."""
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

    def _better(self, one: Vector, other: Vector) -> Vector:
        return one if self.value(one) > self.value(other) else other

    def _is_affine(self, random: np.random.Generator) -> bool:
        """Whether the coefficients are affine in the parameters: modes are so in each, but not in several at once."""
        if len(self._start) == 1:
            low, high, middle = self._space.coefficients(
                torch.from_numpy(np.stack([self._low, self._high, (self._low + self._high) / 2]))
            )
            return torch.allclose(middle, (low + high) / 2, rtol=0, atol=1e-12)
        one, other = (self._jacobian(random.uniform(self._low, self._high)) for _ in range(2))
        return torch.allclose(one, other, rtol=0, atol=1e-12)

    def _nearest(self, point: Vector) -> Vector:
        """The point within the bounds that would be best if the merge were affine, as it is around `point`.

        Along directions in which nothing changes it is as near to `point` as the bounds let it be.
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
        found = lsq_linear(matrix, aim, bounds=bounds, method="bvls", tol=1e-15, max_iter=1000)
        moved = point.copy()
        moved[free] += found.x
        for mask, bound in ((-1, self._low), (1, self._high)):
            at_bound = np.flatnonzero(free)[found.active_mask == mask]
            moved[at_bound] = bound[at_bound]
        return np.clip(moved, self._low, self._high)

    def _jacobian(self, point: Vector) -> torch.Tensor:
        """Derivatives of the coefficients by the parameters, [parameters, groups, sources]."""
        _, jacobian = self._expand(point)
        return torch.einsum("pag,agk->pgk", self._moves, jacobian)

    def _closed_form(self) -> Vector | None:
        """The best value of a single alpha if it moves one block along a line; None if not.

        With products p + q a with the target and u + 2 v a + w a^2 with itself, the derivative of
        (p + q a) / sqrt(u + 2 v a + w a^2) vanishes only at a = (q u - p v) / (p w - q v).
        """
        if len(self._blocks) != 1:
            return None
        low, high = float(self._low[0]), float(self._high[0])
        ends = torch.tensor([[low], [high], [(low + high) / 2]], dtype=torch.float64)
        first, last, middle = self._space.coefficients(ends)
        if not torch.allclose(middle, (first + last) / 2, rtol=0, atol=1e-12):
            return None
        origin, direction = first, last - first
        p, q = (float((self._with_target * vector).sum()) for vector in (origin, direction))
        u, v, w = (
            float(torch.einsum("gk,gkl,gl->", one, self._products, other))
            for one, other in ((origin, origin), (origin, direction), (direction, direction))
        )
        candidates = [self._start[0], low, high]
        divisor = p * w - q * v
        if divisor != 0 and 0 < (share := (q * u - p * v) / divisor) < 1:
            candidates.append(low + share * (high - low))
        points = np.array(candidates)[:, None]
        values = self._values(points)
        # The stationary point and the bounds by value; a starting value that is as good stays.
        best = 0 if values[0] >= values.max() - _EQUAL else int(np.argmax(values))
        return np.asarray(points[best])

    def _scan(self) -> Vector:
        return self._climb([self._start, *self._peaks()])

    def _peaks(self) -> list[Vector]:
        """The highest points of a scan over the only alpha."""
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
        # The first start is the starting values: what it reaches is kept if nothing is better.
        good = [point for point, value in zip(reached, values, strict=True) if value >= values.max() - _EQUAL]
        return good[0]

    def _ascend(self, start: Vector, *, clipped: bool = False) -> Vector:
        # In units of what is left to gain: a cosine of weights spans only 1e-4, too little for a solver's tolerances.
        unit = max(1.0 - self.value(start), 1e-12)

        def negative(point: Vector) -> tuple[float, Vector]:
            value, gradient = self.value_and_gradient(point, clipped=clipped)
            return (1.0 - value) / unit, -gradient / unit

        bounds = list(zip(self._low, self._high, strict=True))
        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 12, "maxls": 40}
        result = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)  # type: ignore[call-overload]
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
        # In units of the target's length, so rounding is absolute.
        if abs(new - old) > _EQUAL * len(self._blocks):
            return new < old
        return float(np.linalg.norm(moved - self._start)) < float(np.linalg.norm(best - self._start))

    def _flat_directions(self, point: Vector) -> Vector:
        """Directions in which the merged vector does not change, whatever the target; of cosines, its direction."""
        turning, moving, curvature, _ = self._metrics(point)
        if isinstance(self._metric, ExplainedMetric):
            values, axes, size = _scaled(curvature)
            # In units of each alpha's own effect: one of a source near the base is determined, too.
            there = size > 0
            flat = np.concatenate([axes[:, values <= _FLAT] / np.where(there, size, 1.0)[:, None]], axis=1)
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
        """How the merged vectors m(x) change with the parameters, summed over the blocks (Gauss-Newton).

        Products of the derivatives of m / |m| (turning), of m in units of |m| and of m in the metric's unit, all three
        [parameters, parameters]; and the gradient of |m - target|^2 / 2 in that unit, [parameters].
        """
        unit = self._metric.unit
        coefficients, jacobian = self._expand(point)
        per_parameter = torch.einsum("pag,agk->pgk", self._moves, jacobian)
        weighted = (self._products @ coefficients[:, :, None])[:, :, 0]
        along = self._sum((per_parameter * weighted).sum(dim=-1))
        moving = self._sum(torch.einsum("pgk,gkl,qgl->pqg", per_parameter, self._products, per_parameter))
        quadratic = self._sum((weighted * coefficients).sum(dim=-1)).clamp_min(1e-300)
        relative = moving / quadratic
        turning = relative - along[:, None] * along[None] / quadratic**2
        pulled = self._sum((per_parameter * self._with_target).sum(dim=-1))
        slope = (along - pulled) / unit
        return (
            turning.sum(dim=-1).numpy(),
            relative.sum(dim=-1).numpy(),
            (moving / unit).sum(dim=-1).numpy(),
            slope.sum(dim=-1).numpy(),
        )

    def _distance(self, point: Vector) -> float:
        linear, quadratic = self._moments(point[None])
        return float(((quadratic - 2 * linear + self._metric.target) / self._metric.unit).sum())

    def _expand(self, point: Vector) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self._space.alphas(torch.from_numpy(np.asarray(point, dtype=np.float64))[None])[0]
        return self._space.algebra.jacobian(alphas)

    def _sum(self, by_group: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(*by_group.shape[:-1], len(self._blocks), dtype=torch.float64)
        return sums.index_add(-1, self._block, by_group)


def _scaled(matrix: Vector) -> tuple[Vector, Vector, Vector]:
    """Eigenvalues and eigenvectors of a symmetric matrix with its diagonal scaled to 1, and the scale of each row."""
    size = np.sqrt(np.diag(matrix).clip(min=0.0))
    size = np.where(size > 1e-150, size, 0.0)
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    values, axes = np.linalg.eigh(matrix * np.outer(inverse, inverse))
    return values, axes, size


def _null_space(matrix: Vector, against: float) -> Vector:
    """Orthonormal columns that span the null space of a symmetric matrix, its entries' usual size being `against`."""
    if matrix.size == 0:
        return np.zeros((matrix.shape[0], 0))
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors[:, values <= _FLAT * max(against, 1e-300)])
