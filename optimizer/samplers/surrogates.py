"""Noise-free Gaussian processes over the unit cube: what the block-wise sampler believes about scores not yet seen.

Two models, because blocks come in two sizes. Neither keeps a state: each is fitted anew to the points it is given.

    LineModels      many functions of one number each, fitted at once as one batch of small matrices. Length scale and
                    smoothness come from a grid, weighed by their restricted likelihood.
    AdditiveModel   one function of several numbers, a sum of terms over some of them each: a length scale for every
                    number and a weight for every term, by L-BFGS-B on the same likelihood with exact gradients.

The formulas are those of Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006): 2.25 and 2.26 for
predictions, 2.42 to 2.45 for a constant mean that is integrated out, 4.17 for the Matern kernel, 5.9 for gradients. The
variance of a process is profiled out, so a kernel is known up to its scale.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

__all__ = ["AdditiveModel", "LineModels", "fit_additive", "fit_lines"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Added to the diagonal of kernel matrices whose diagonal is 1: what float64 needs to factor them, and no noise.
_NUGGET = 1e-11
# Length scales that a function of one number may have, in units of its range.
_LENGTHS = np.geomspace(0.05, 4.0, 9)
# The prior of a length scale: log-normal around this.
_USUAL_LENGTH = 0.6
_SPREAD = 1.0
# Grid models that are kept for each function; what the others would add is below what decides a proposal.
_KEPT = 3
# Iterations of the fit of an additive model, and how many points it looks at; it is then conditioned on all.
_ITERATIONS = 40
_FITTED_POINTS = 80
# Up to so many points hyperparameters of several numbers are fitted anew for each, then as they become a tenth more.
_ALWAYS = 8
_SELDOMER = 1.1
# Bounds of the logarithms of length scales, of weights, and of the weight of what no term explains.
_LOG_LENGTHS = (float(np.log(0.05)), float(np.log(30.0)))
_LOG_WEIGHTS = (-7.0, 7.0)
_LOG_REST = (-18.0, 0.0)
# Variance added where all observations are equal, in units of theirs.
_LEAST_VARIANCE = 1e-12


def _kernel(squared: Array, smooth: bool) -> Array:
    """exp(-d^2 / 2) if `smooth`, else Matern 5/2, of squared scaled distances d^2."""
    if smooth:
        return np.asarray(np.exp(-0.5 * squared))
    root = np.sqrt(5.0 * squared)
    return np.asarray((1.0 + root + root**2 / 3.0) * np.exp(-root))


def _kernel_slope(squared: Array, smooth: bool) -> Array:
    """The derivative of `_kernel` by the squared distance."""
    if smooth:
        return np.asarray(-0.5 * np.exp(-0.5 * squared))
    root = np.sqrt(5.0 * squared)
    return np.asarray(-5.0 / 6.0 * (1.0 + root) * np.exp(-root))


def _scaled(squared: Array, precisions: Array) -> Array:
    """Squared scaled distances [terms, m, n] of squared differences [m, n, dimensions]."""
    return np.asarray(np.moveaxis(squared @ precisions.T, -1, 0))


def _standardised(values: Array, known: Mask) -> tuple[Array, Array, Array]:
    """Values [functions, n] with mean 0 and deviation 1 over what is known, 0 elsewhere; the means; the deviations."""
    counts = known.sum(axis=1).clip(min=1)
    means = np.where(known, values, 0.0).sum(axis=1) / counts
    centred = np.where(known, values - means[:, None], 0.0)
    deviations = np.sqrt((centred**2).sum(axis=1) / counts)
    deviations = np.where(deviations > 0, deviations, 1.0)
    return centred / deviations[:, None], means, deviations


@dataclass(frozen=True)
class _Factored:
    """Processes conditioned on their data: kernel matrices [..., n, n] factored, the mean integrated out.

    `inverse_root` is the inverse of the Cholesky factor; `ones` and `residual` are the whitened constant function and
    what is left of the whitened observations; `mean` the constant; `variance` of the process; `evidence` the logarithm
    of the restricted likelihood, up to a constant.
    """

    inverse_root: Array
    ones: Array
    residual: Array
    mean: Array
    variance: Array
    evidence: Array


def _factor(kernel: Array, values: Array, known: Mask) -> _Factored:
    """Condition on values [..., n] where known; elsewhere a row of the identity stands for a point that says nothing.

    `kernel` [..., n, n] has the diagonal 1 and is overwritten.
    """
    root = _root(kernel, known)
    inverse_root = np.asarray(np.linalg.inv(root), dtype=np.float64)
    whitened = (inverse_root @ values[..., None])[..., 0]
    ones = (inverse_root @ known.astype(np.float64)[..., None])[..., 0]
    mean, residual, variance, evidence = _likelihood(root, whitened, ones, known)
    return _Factored(inverse_root, ones, residual, mean, variance, evidence)


def _root(kernel: Array, known: Mask) -> Array:
    """The Cholesky factors of kernel matrices [..., n, n], which are overwritten."""
    kernel *= known[..., :, None] & known[..., None, :]
    index = np.arange(kernel.shape[-1])
    kernel[..., index, index] = 1.0 + _NUGGET
    return np.asarray(np.linalg.cholesky(kernel), dtype=np.float64)


def _likelihood(root: Array, whitened: Array, ones: Array, known: Mask) -> tuple[Array, Array, Array, Array]:
    """Mean, residual, variance and evidence as in `_Factored`, of whitened observations and ones [..., n]."""
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

    `points` float64 [functions, n]; `known` says which of them count; `lengths`, `smooth` and `weights` [functions,
    kept] describe the mixture; `offset` and `unit` [functions] turn standardised values into values.
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
        """Means and standard deviations, both [functions, m], at points [functions, m] in 0 .. 1."""
        scaled = (points[:, None, :, None] - self.points[:, None, None, :]) / self.lengths[:, :, None, None]
        cross = _mixed_kernel(scaled**2, self.smooth) * self.known[:, None, None, :]
        means, variances = _condition(cross, self._factored)
        weights = self.weights[:, :, None]
        mean = (weights * means).sum(axis=1)
        variance = (weights * (variances + (means - mean[:, None]) ** 2)).sum(axis=1)
        return mean * self.unit[:, None] + self.offset[:, None], np.sqrt(variance) * self.unit[:, None]

    def believing(self, points: Array, known: Mask) -> "LineModels":
        """The same models, their means at points [functions, m], where known, taken for observed.

        This is the "believer" of Ginsbourger et al., "Kriging is well-suited to parallelize optimization" (2010).
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
    """Models of functions of one number from values [functions, n] at points [functions, n] in 0 .. 1.

    `known` [functions, n] marks the entries that count. Each function keeps its most likely length scales.
    """
    standard, offset, unit = _standardised(values, known)
    scaled = ((points[:, :, None] - points[:, None, :]) ** 2)[:, None] / _LENGTHS[:, None, None] ** 2
    root = _root(np.concatenate([_kernel(scaled, True), _kernel(scaled, False)], axis=1), known[:, None])
    # Only the likelihood is needed of all models, so none but those that are kept is inverted.
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
    """The kernel of each mixture component, of squared distances [functions, kept, ...]."""
    found = np.empty_like(squared)
    found[smooth] = _kernel(squared[smooth], True)
    found[~smooth] = _kernel(squared[~smooth], False)
    return found


def _condition(cross: Array, factored: _Factored) -> tuple[Array, Array]:
    """Means and variances [..., m] from the kernel [..., m, n] between new points and the data; 1 on the diagonal."""
    whitened = cross @ np.swapaxes(factored.inverse_root, -1, -2)
    means = factored.mean[..., None] + (whitened @ factored.residual[..., None])[..., 0]
    # The second term is what the unknown constant adds (2.42 there).
    constant = 1.0 - (whitened @ factored.ones[..., None])[..., 0]
    norm = (factored.ones**2).sum(axis=-1).clip(min=1e-300)[..., None]
    shares = (1.0 - (whitened**2).sum(axis=-1)).clip(min=0.0) + constant**2 / norm
    return means, factored.variance[..., None] * shares.clip(min=1e-16)


# --- Functions of several numbers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdditiveModel:
    """A function of several numbers in 0 .. 1 as a constant and a sum of Gaussian processes, the terms.

    `precisions` float64 [terms, dimensions] are the inverse squared length scales, 0 where a term ignores a number;
    `weights` [terms] the terms' shares of the variance, which sum to 1 less `rest`, the share that no term explains.
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
        """Means and standard deviations, both [m], at points [m, dimensions]; of the sum of `terms` [terms] alone."""
        mean, variance, _, _ = self._predict(points, terms, slopes=False)
        return mean, np.sqrt(variance)

    def predict_with_slopes(self, points: Array, terms: Mask | None = None) -> tuple[Array, Array, Array, Array]:
        """Means and variances, both [m], and their derivatives, both [m, dimensions]."""
        return self._predict(points, terms, slopes=True)

    def believing(self, points: Array) -> "AdditiveModel":
        """The same model, its mean at points [m, dimensions] taken for observed."""
        believed = (self.predict(points)[0] - self.offset) / self.unit
        everything = np.concatenate([self.points, points])
        values = np.concatenate([self.values, believed])
        return _additive(
            everything, values, self.precisions, self.weights, self.rest, self.smooth, self.offset, self.unit
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
        # A part of the terms has no constant of its own, so the constant's doubt does not count.
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
    """The model of a function from values [n] at points [n, dimensions] in 0 .. 1.

    `terms` [terms, dimensions] says which numbers each term depends on. With several terms a share of the variance may
    stay unexplained: a function that is not quite such a sum then bends the terms less.
    """
    standard, offsets, units = _standardised(values[None], np.ones((1, len(values)), dtype=bool))
    learned = _learned(len(points))
    fitted = _fitted_points(points[:learned], values[:learned])
    precisions, weights, rest, smooth = _most_likely(_Exactly(points[fitted], values[fitted], terms))
    return _additive(points, standard[0], precisions, weights, rest, smooth, float(offsets[0]), float(units[0]))


def _learned(count: int) -> int:
    """How many of the first `count` points hyperparameters are fitted to: they change little by one point more."""
    learned = _ALWAYS
    while (following := max(learned + 1, math.floor(_SELDOMER * learned))) <= count:
        learned = following
    return min(learned, count)


class _Exactly:
    """Points, values and terms that are equal if every bit of them is, as the key of what was computed from them."""

    def __init__(self, *arrays: NDArray[Any]) -> None:
        self.arrays = arrays
        self._key = tuple((array.shape, array.tobytes()) for array in arrays)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Exactly) and self._key == other._key


# Of all components of a search; models made anew give the same, only later.
@lru_cache(maxsize=512)
def _most_likely(data: _Exactly) -> tuple[Array, Array, float, bool]:
    """Precisions, weights, the rest's weight, and whether the kernel is the smooth one."""
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
    """Indices of the points that hyperparameters are fitted to: the better half of the limit, and the latest others."""
    if len(points) <= _FITTED_POINTS:
        return np.arange(len(points))
    best = np.argsort(-values, kind="stable")[: _FITTED_POINTS // 2]
    others = np.setdiff1d(np.arange(len(points)), best)[-(_FITTED_POINTS - len(best)) :]
    return np.sort(np.concatenate([best, others]))


class _Likelihood:
    """The negative logarithm of the restricted likelihood and of the priors, as a function of the hyperparameters.

    The parameters are the logarithms of the length scales of all (term, dimension) pairs and, with several terms, of
    the terms' weights and of the rest's.
    """

    def __init__(self, points: Array, values: Array, terms: Mask) -> None:
        self._squared = (points[:, None] - points[None]) ** 2
        self._values = values
        self._pairs = np.nonzero(terms)
        self._terms = terms
        # The more numbers a term depends on, the less it usually bends along each.
        usual = np.log(_USUAL_LENGTH * terms.sum(axis=1))[self._pairs[0]]
        free = len(terms) > 1
        self.start = np.concatenate([usual, np.zeros(len(terms)), [-9.0]]) if free else usual
        self._bounds = [_LOG_LENGTHS] * len(usual) + ([_LOG_WEIGHTS] * len(terms) + [_LOG_REST] if free else [])
        spreads = [_SPREAD] * len(usual) + ([2.0] * len(terms) + [6.0] if free else [])
        self._spread = np.array(spreads, dtype=np.float64)

    def unpack(self, parameters: Array) -> tuple[Array, Array, float]:
        """Precisions [terms, dimensions], weights [terms] and the rest's weight."""
        precisions = np.zeros(self._terms.shape)
        precisions[self._pairs] = np.exp(-2.0 * parameters[: len(self._pairs[0])])
        if len(self._terms) == 1:
            return precisions, np.ones(1), 0.0
        weights = np.exp(parameters[len(self._pairs[0]) :])
        weights /= weights.sum()
        return precisions, weights[:-1], float(weights[-1])

    def climb(self, start: Array, *, smooth: bool) -> Array:
        """The most likely parameters from `start`."""
        result = minimize(
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
        away = (parameters - self.start) / self._spread
        value = -float(factored.evidence) + 0.5 * float(away @ away)
        return value, -np.concatenate(gradient) + away / self._spread
