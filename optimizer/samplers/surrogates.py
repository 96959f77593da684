"""Noise-free Gaussian processes over the unit cube: the block-wise sampler's models of the scores.

Blocks come in two sizes, hence two models. Both are stateless: each is fitted anew to the given points.

    LineModels      Many functions of one number each, fitted at once as one batch of small matrices. Length scale and
                    smoothness come from a grid, weighted by their restricted likelihood.
    AdditiveModel   One function of several numbers, a sum of terms that each depend on some of the numbers. Each number
                    has a length scale and each term a weight, found by L-BFGS-B on the same likelihood with exact
                    gradients.

The formulas are those of Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006): 2.25 and 2.26 for
predictions, 2.42 to 2.45 for a constant mean that is integrated out, 4.17 for the Matern kernel, 5.9 for gradients. The
variance of a process is profiled out, so a kernel is needed only up to its scale.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # loads its modules on first use
from numpy.typing import NDArray

__all__ = ["AdditiveModel", "LineModels", "fit_additive", "fit_lines"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Added to the unit diagonal of kernel matrices, so that float64 can factor them; it models no noise.
_NUGGET = 1e-11
# Possible length scales of a function of one number, in units of its range.
_LENGTHS = np.geomspace(0.05, 4.0, 9)
# The prior of a length scale is log-normal: its median, and the deviation of its logarithm.
_USUAL_LENGTH = 0.6
_SPREAD = 1.0
# Grid models kept for each function; the others would not change a proposal.
_KEPT = 3
# Iterations of the fit of an additive model, and the number of points in it; the model is then conditioned on all.
_ITERATIONS = 40
_FITTED_POINTS = 80
# Hyperparameters of several numbers are fitted again at every point up to this number, later at every tenth more.
_ALWAYS_REFITTED = 8
_REFIT_GROWTH = 1.1
# Bounds of the logarithms of length scales, of weights, and of the weight of the unexplained rest.
_LOG_LENGTHS = (float(np.log(0.05)), float(np.log(30.0)))
_LOG_WEIGHTS = (-7.0, 7.0)
_LOG_REST = (-18.0, 0.0)
# Added to the variance of standardised observations, which is 0 if all of them are equal.
_LEAST_VARIANCE = 1e-12


def _kernel(squared: Array, smooth: bool) -> Array:
    """Return the kernel of squared scaled distances d^2: exp(-d^2 / 2) if `smooth`, else Matern 5/2."""
    if smooth:
        return np.asarray(np.exp(-0.5 * squared))
    root = np.sqrt(5.0 * squared)
    return np.asarray((1.0 + root + root**2 / 3.0) * np.exp(-root))


def _kernel_slope(squared: Array, smooth: bool) -> Array:
    """Return the derivative of `_kernel` by the squared distance."""
    if smooth:
        return np.asarray(-0.5 * np.exp(-0.5 * squared))
    root = np.sqrt(5.0 * squared)
    return np.asarray(-5.0 / 6.0 * (1.0 + root) * np.exp(-root))


def _scaled(squared: Array, precisions: Array) -> Array:
    """Return squared scaled distances [terms, m, n] of squared differences [m, n, dimensions]."""
    return np.asarray(np.moveaxis(squared @ precisions.T, -1, 0))


def _standardised(values: Array, known: Mask) -> tuple[Array, Array, Array]:
    """Return the values [functions, n] standardised, their means [functions] and their deviations [functions].

    Over the known entries the standardised values have mean 0 and deviation 1; the others are 0.
    """
    counts = known.sum(axis=1).clip(min=1)
    means = np.where(known, values, 0.0).sum(axis=1) / counts
    centred = np.where(known, values - means[:, None], 0.0)
    deviations = np.sqrt((centred**2).sum(axis=1) / counts)
    deviations = np.where(deviations > 0, deviations, 1.0)
    return centred / deviations[:, None], means, deviations


@dataclass(frozen=True)
class _Factored:
    """Processes conditioned on their data: kernel matrices [..., n, n] factored, the mean integrated out.

    `inverse_root` is the inverse of the Cholesky factor; `ones` is the whitened constant function, `residual` the
    whitened observations less the mean, `mean` the constant, `variance` that of the process, and `evidence` the
    logarithm of the restricted likelihood, up to a constant.
    """

    inverse_root: Array
    ones: Array
    residual: Array
    mean: Array
    variance: Array
    evidence: Array


def _factor(kernel: Array, values: Array, known: Mask) -> _Factored:
    """Return the processes conditioned on the known ones of `values` [..., n].

    `kernel` [..., n, n] has diagonal 1 and is overwritten. A row of the identity takes the place of an unknown point,
    which then has no effect.
    """
    root = _root(kernel, known)
    inverse_root = np.asarray(np.linalg.inv(root), dtype=np.float64)
    whitened = (inverse_root @ values[..., None])[..., 0]
    ones = (inverse_root @ known.astype(np.float64)[..., None])[..., 0]
    mean, residual, variance, evidence = _likelihood(root, whitened, ones, known)
    return _Factored(inverse_root, ones, residual, mean, variance, evidence)


def _root(kernel: Array, known: Mask) -> Array:
    """Return the Cholesky factors of kernel matrices [..., n, n], which are overwritten."""
    kernel *= known[..., :, None] & known[..., None, :]
    index = np.arange(kernel.shape[-1])
    kernel[..., index, index] = 1.0 + _NUGGET
    return np.asarray(np.linalg.cholesky(kernel), dtype=np.float64)


def _likelihood(root: Array, whitened: Array, ones: Array, known: Mask) -> tuple[Array, Array, Array, Array]:
    """Return mean, residual, variance and evidence as in `_Factored`, of whitened observations and ones [..., n]."""
    norm = (ones**2).sum(axis=-1).clip(min=1e-300)
    mean = (ones * whitened).sum(axis=-1) / norm
    residual = whitened - mean[..., None] * ones
    freedom = (known.sum(axis=-1) - 1).clip(min=1)
    variance = ((residual**2).sum(axis=-1) + _LEAST_VARIANCE) / freedom
    logarithms = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
    return mean, residual, variance, -0.5 * freedom * np.log(variance) - logarithms - 0.5 * np.log(norm)


# --- Functions of one number ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineModels:
    """Functions of one number in 0 .. 1, each a mixture of Gaussian processes.

    `points` float64 [functions, n]; `known` marks those that count; `lengths`, `smooth` and `weights` [functions, kept]
    describe the mixture; `offset` and `unit` [functions] convert standardised values into values.
    """

    points: Array
    known: Mask
    values: Array
    lengths: Array
    smooth: Mask
    weights: Array
    offset: Array
    unit: Array
    _factored: _Factored

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return means and standard deviations, both [functions, m], at points [functions, m] in 0 .. 1."""
        scaled = (points[:, None, :, None] - self.points[:, None, None, :]) / self.lengths[:, :, None, None]
        cross = _mixed_kernel(scaled**2, self.smooth) * self.known[:, None, None, :]
        means, variances = _condition(cross, self._factored)
        weights = self.weights[:, :, None]
        mean = (weights * means).sum(axis=1)
        variance = (weights * (variances + (means - mean[:, None]) ** 2)).sum(axis=1)
        return mean * self.unit[:, None] + self.offset[:, None], np.sqrt(variance) * self.unit[:, None]

    def believing(self, points: Array, known: Mask) -> "LineModels":
        """Return the models with their means at further points taken for observations.

        This is the "believer" of Ginsbourger et al., "Kriging is well-suited to parallelize optimization" (2010).

        Args:
            points: Positions in 0 .. 1, float64 [functions, m].
            known: The positions that count, bool [functions, m].

        Returns:
            New models with the same hyperparameters.
        """
        believed = (self.predict(points)[0] - self.offset[:, None]) / self.unit[:, None]
        return _conditioned(
            np.concatenate([self.points, points], axis=1),
            np.concatenate([self.values, np.where(known, believed, 0.0)], axis=1),
            np.concatenate([self.known, known], axis=1),
            self.lengths,
            self.smooth,
            self.weights,
            self.offset,
            self.unit,
        )


def fit_lines(points: Array, values: Array, known: Mask) -> LineModels:
    """Fit models to functions of one number.

    Each function keeps its most likely length scales.

    Args:
        points: Positions in 0 .. 1, float64 [functions, n].
        values: The functions' values there, float64 [functions, n].
        known: The entries that count, bool [functions, n].

    Returns:
        The models of all functions.
    """
    standard, offset, unit = _standardised(values, known)
    scaled = ((points[:, :, None] - points[:, None, :]) ** 2)[:, None] / _LENGTHS[:, None, None] ** 2
    root = _root(np.concatenate([_kernel(scaled, True), _kernel(scaled, False)], axis=1), known[:, None])
    # The likelihood needs no inverse; only the models that are kept are inverted later.
    sides = np.broadcast_to(np.stack([standard, known], axis=-1)[:, None], (*root.shape[:-1], 2))
    whitened = np.linalg.solve(root, sides)
    *_, evidence = _likelihood(root, whitened[..., 0], whitened[..., 1], known[:, None])
    lengths, smooth = np.tile(_LENGTHS, 2), np.repeat([True, False], len(_LENGTHS))
    evidence = evidence - 0.5 * (np.log(lengths / _USUAL_LENGTH) / _SPREAD) ** 2
    best = np.argsort(-evidence, axis=1)[:, :_KEPT]
    likeliest = np.take_along_axis(evidence, best, axis=1)
    weights = np.exp(likeliest - likeliest[:, :1])
    weights /= weights.sum(axis=1, keepdims=True)
    return _conditioned(points, standard, known, lengths[best], smooth[best], weights, offset, unit)


def _conditioned(
    points: Array, values: Array, known: Mask, lengths: Array, smooth: Mask, weights: Array, offset: Array, unit: Array
) -> LineModels:
    squared = ((points[:, None, :, None] - points[:, None, None, :]) / lengths[:, :, None, None]) ** 2
    factored = _factor(_mixed_kernel(squared, smooth), values[:, None], known[:, None])
    return LineModels(points, known, values, lengths, smooth, weights, offset, unit, factored)


def _mixed_kernel(squared: Array, smooth: Mask) -> Array:
    """Return the kernel of each mixture component, of squared distances [functions, kept, ...]."""
    found = np.empty_like(squared)
    found[smooth] = _kernel(squared[smooth], True)
    found[~smooth] = _kernel(squared[~smooth], False)
    return found


def _condition(cross: Array, factored: _Factored) -> tuple[Array, Array]:
    """Return means and variances [..., m] from the kernel [..., m, n] between new points and data."""
    whitened = cross @ np.swapaxes(factored.inverse_root, -1, -2)
    means = factored.mean[..., None] + (whitened @ factored.residual[..., None])[..., 0]
    # The kernel's diagonal is 1. The second term is the uncertainty of the constant mean (equation 2.42).
    constant = 1.0 - (whitened @ factored.ones[..., None])[..., 0]
    norm = (factored.ones**2).sum(axis=-1).clip(min=1e-300)[..., None]
    shares = (1.0 - (whitened**2).sum(axis=-1)).clip(min=0.0) + constant**2 / norm
    return means, factored.variance[..., None] * shares.clip(min=1e-16)


# --- Functions of several numbers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdditiveModel:
    """A function of several numbers in 0 .. 1 as a constant and a sum of Gaussian processes, the terms.

    `precisions` float64 [terms, dimensions] are the inverse squared length scales, 0 where a term ignores a number.
    `weights` [terms] are the terms' shares of the variance; with `rest`, the unexplained share, they sum to 1.
    """

    points: Array
    values: Array
    precisions: Array
    weights: Array
    rest: float
    smooth: bool
    offset: float
    unit: float
    _factored: _Factored

    def predict(self, points: Array, terms: Mask | None = None) -> tuple[Array, Array]:
        """Return means and standard deviations, both [m], at points [m, dimensions]; with `terms` of their sum only."""
        mean, variance, _, _ = self._predict(points, terms, slopes=False)
        return mean, np.sqrt(variance)

    def predict_with_slopes(self, points: Array, terms: Mask | None = None) -> tuple[Array, Array, Array, Array]:
        """Return means and variances, both [m], and their derivatives, both [m, dimensions]."""
        return self._predict(points, terms, slopes=True)

    def believing(self, points: Array) -> "AdditiveModel":
        """Return the model with its means at points [m, dimensions] taken for observations."""
        believed = (self.predict(points)[0] - self.offset) / self.unit
        combined = np.concatenate([self.points, points])
        values = np.concatenate([self.values, believed])
        return _additive(
            combined, values, self.precisions, self.weights, self.rest, self.smooth, self.offset, self.unit
        )

    def _predict(self, points: Array, terms: Mask | None, *, slopes: bool) -> tuple[Array, Array, Array, Array]:
        chosen = np.ones(len(self.weights), dtype=bool) if terms is None else terms
        weights, precisions = self.weights[chosen], self.precisions[chosen]
        differences = points[:, None, :] - self.points[None]
        squared = _scaled(differences**2, precisions)
        cross = np.tensordot(weights, _kernel(squared, self.smooth), 1)
        factored = self._factored
        root = factored.inverse_root
        whitened = cross @ root.T
        # The constant belongs to no single term, so its uncertainty counts only for the whole sum.
        whole = terms is None
        norm = float((factored.ones**2).sum())
        constant = (1.0 - whitened @ factored.ones) / np.sqrt(norm) if whole else np.zeros(len(points))
        mean = whitened @ factored.residual + (factored.mean if whole else 0.0)
        spread = float(weights.sum())
        shares = (spread - (whitened**2).sum(axis=1)).clip(min=1e-16) + constant**2
        variance = factored.variance * shares
        mean = mean * self.unit + (self.offset if whole else 0.0)
        variance *= self.unit**2
        if not slopes:
            return mean, variance, differences[:0, 0], differences[:0, 0]
        slope = np.tensordot(_kernel_slope(squared, self.smooth), 2.0 * weights[:, None] * precisions, (0, 0))
        slope *= differences
        along_mean = root.T @ factored.residual
        mean_slope = np.einsum("mnd,n->md", slope, along_mean) * self.unit
        along_variance = -2.0 * whitened @ root
        if whole:
            along_variance -= 2.0 * constant[:, None] * (factored.ones @ root)[None] / np.sqrt(norm)
        variance_slope = np.einsum("mnd,mn->md", slope, along_variance) * factored.variance * self.unit**2
        return mean, variance, mean_slope, variance_slope


def fit_additive(points: Array, values: Array, terms: Mask) -> AdditiveModel:
    """Fit a model to a function of several numbers.

    With several terms, a share of the variance may stay unexplained: a function that is not quite such a sum then bends
    the terms less.

    Args:
        points: Positions in 0 .. 1, float64 [n, dimensions].
        values: The function's values there, float64 [n].
        terms: The numbers that each term depends on, bool [terms, dimensions].

    Returns:
        The model, conditioned on all points.
    """
    standard, offsets, units = _standardised(values[None], np.ones((1, len(values)), dtype=bool))
    learned = _learned_count(len(points))
    fitted = _fitted_points(points[:learned], values[:learned])
    precisions, weights, rest, smooth = _most_likely(_ExactKey(points[fitted], values[fitted], terms))
    return _additive(points, standard[0], precisions, weights, rest, smooth, float(offsets[0]), float(units[0]))


def _learned_count(count: int) -> int:
    """Return how many of the first `count` points hyperparameters are fitted to: one more point changes them little."""
    learned = _ALWAYS_REFITTED
    while (following := max(learned + 1, math.floor(_REFIT_GROWTH * learned))) <= count:
        learned = following
    return min(learned, count)


class _ExactKey:
    """Arrays that compare equal if every bit of them is equal, as the key of a cache."""

    def __init__(self, *arrays: NDArray[Any]) -> None:
        self.arrays = arrays
        self._key = tuple((array.shape, array.tobytes()) for array in arrays)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ExactKey) and self._key == other._key


# The cache only saves time; its size covers all components of a search.
@lru_cache(maxsize=512)
def _most_likely(data: _ExactKey) -> tuple[Array, Array, float, bool]:
    """Return the most likely precisions, weights and rest, and whether the smooth kernel is the more likely one."""
    points, values, terms = data.arrays
    standard, *_ = _standardised(values[None], np.ones((1, len(values)), dtype=bool))
    likelihood = _Likelihood(points, standard[0], terms)
    best, smooth = likelihood.climb(likelihood.start, smooth=True), True
    rough = likelihood.climb(best, smooth=False)
    if likelihood(rough, smooth=False)[0] < likelihood(best, smooth=True)[0]:
        best, smooth = rough, False
    return (*likelihood.unpack(best), smooth)


def _additive(
    points: Array,
    values: Array,
    precisions: Array,
    weights: Array,
    rest: float,
    smooth: bool,
    offset: float,
    unit: float,
) -> AdditiveModel:
    squared = _scaled((points[:, None] - points[None]) ** 2, precisions)
    kernel = np.tensordot(weights, _kernel(squared, smooth), 1)
    factored = _factor(kernel, values, np.ones(len(points), dtype=bool))
    return AdditiveModel(points, values, precisions, weights, rest, smooth, offset, unit, factored)


def _fitted_points(points: Array, values: Array) -> NDArray[np.intp]:
    """Return indices of the points that hyperparameters are fitted to: half of them the best, the rest the latest."""
    if len(points) <= _FITTED_POINTS:
        return np.arange(len(points))
    best = np.argsort(-values, kind="stable")[: _FITTED_POINTS // 2]
    latest = np.setdiff1d(np.arange(len(points)), best)[-(_FITTED_POINTS - len(best)) :]
    return np.sort(np.concatenate([best, latest]))


class _Likelihood:
    """The negative logarithm of the restricted likelihood and of the priors, as a function of the hyperparameters.

    The hyperparameters are the logarithms of the length scales of all (term, dimension) pairs and, with several terms,
    of the weights of the terms and of the rest.
    """

    def __init__(self, points: Array, values: Array, terms: Mask) -> None:
        self._squared = (points[:, None] - points[None]) ** 2
        self._values = values
        self._pairs = np.nonzero(terms)
        self._terms = terms
        # A term usually bends less along each number if it depends on more of them.
        usual = np.log(_USUAL_LENGTH * terms.sum(axis=1))[self._pairs[0]]
        free = len(terms) > 1
        self.start = np.concatenate([usual, np.zeros(len(terms)), [-9.0]]) if free else usual
        self._bounds = [_LOG_LENGTHS] * len(usual) + ([_LOG_WEIGHTS] * len(terms) + [_LOG_REST] if free else [])
        spreads = [_SPREAD] * len(usual) + ([2.0] * len(terms) + [6.0] if free else [])
        self._spread = np.array(spreads, dtype=np.float64)

    def unpack(self, parameters: Array) -> tuple[Array, Array, float]:
        """Return precisions [terms, dimensions], weights [terms] and the weight of the rest."""
        precisions = np.zeros(self._terms.shape)
        precisions[self._pairs] = np.exp(-2.0 * parameters[: len(self._pairs[0])])
        if len(self._terms) == 1:
            return precisions, np.ones(1), 0.0
        weights = np.exp(parameters[len(self._pairs[0]) :])
        weights /= weights.sum()
        return precisions, weights[:-1], float(weights[-1])

    def climb(self, start: Array, *, smooth: bool) -> Array:
        """Return the most likely hyperparameters that L-BFGS-B reaches from `start`."""
        result = scipy.optimize.minimize(
            self, start, args=(smooth,), jac=True, method="L-BFGS-B", bounds=self._bounds,
            options={"maxiter": _ITERATIONS, "maxcor": 12},
        )  # fmt: skip
        return np.asarray(result.x, dtype=np.float64)

    def __call__(self, parameters: Array, smooth: bool) -> tuple[float, Array]:
        precisions, weights, rest = self.unpack(parameters)
        squared = _scaled(self._squared, precisions)
        kernels = _kernel(squared, smooth)
        explained = np.tensordot(weights, kernels, 1)
        count = len(self._values)
        factored = _factor(explained.copy(), self._values, np.ones(count, dtype=bool))
        inverse = factored.inverse_root.T @ factored.inverse_root
        ones = factored.inverse_root.T @ factored.ones
        # P of the restricted likelihood, and its product with the observations.
        projected = inverse - np.outer(ones, ones) / float((factored.ones**2).sum())
        solved = factored.inverse_root.T @ factored.residual
        pull = np.outer(solved, solved) / factored.variance - projected
        slopes = _kernel_slope(squared, smooth) * pull
        by_length = np.tensordot(slopes, self._squared, 2) * weights[:, None] * precisions
        gradient = [-by_length[self._pairs]]
        if len(self._terms) > 1:
            by_weight = np.append(np.tensordot(kernels, pull, 2), np.trace(pull))
            shares = np.append(weights, rest)
            gradient.append(0.5 * shares * (by_weight - float(by_weight @ shares)))
        distance = (parameters - self.start) / self._spread
        value = -float(factored.evidence) + 0.5 * float(distance @ distance)
        return value, -np.concatenate(gradient) + distance / self._spread
