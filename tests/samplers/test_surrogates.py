"""The models of the block-wise sampler agree with dense algebra, difference quotients and high precision."""

import mpmath
import numpy as np
import pytest

from optimizer.samplers.blockwise import _log_improvement
from optimizer.samplers.surrogates import _Likelihood, fit_additive, fit_lines


def wave(points):
    """Return a smooth function of the first and last numbers."""
    return np.sin(3 * points[..., 0]) + 0.3 * points[..., -1] ** 2


def kernel(x, y, precisions, weights, smooth):
    """Return the weighted sum of Gaussian or Matern 5/2 kernels, computed entry by entry."""
    found = np.zeros((len(x), len(y)))
    for i, j in np.ndindex(*found.shape):
        for precision, weight in zip(precisions, weights, strict=True):
            distance = np.sqrt(sum(precision * (x[i] - y[j]) ** 2))
            scaled = np.sqrt(5) * distance
            matern = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
            found[i, j] += weight * (np.exp(-(distance**2) / 2) if smooth else matern)
    return found


def kriging(x, y, new, precisions, weights, rest, smooth):
    """Return mean and deviation of ordinary kriging by its saddle-point system; the variance is y' P y / (n - 1)."""
    n = len(x)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = kernel(x, x, precisions, weights, smooth) + rest * np.eye(n)
    system[:n, n] = system[n, :n] = 1
    right = np.concatenate([kernel(x, new, precisions, weights, smooth), np.ones((1, len(new)))])
    solved = np.linalg.solve(system, right)
    inverse = np.linalg.inv(system)[:n, :n]
    variance = y @ inverse @ y / (n - 1)
    shares = sum(weights) - (solved * right).sum(axis=0)
    return solved[:n].T @ y, np.sqrt(variance * shares)


@pytest.mark.parametrize("terms", [[[1, 1, 1]], [[1, 0, 0], [0, 1, 1]]])
def test_predictions_are_kriging(terms):
    """Means and deviations of a fitted model equal those of ordinary kriging with its hyperparameters."""
    random = np.random.default_rng(0)
    points, new = random.random((9, 3)), random.random((5, 3))
    # The kink at 0.5 makes the length scales short and the dense system well conditioned.
    values = np.abs(points[:, 0] - 0.5) + np.sin(9 * points[:, 1])

    model = fit_additive(points, values, np.array(terms, dtype=bool))
    mean, deviation = model.predict(new)

    expected = kriging(points, values, new, model.precisions, model.weights, model.rest, model.smooth)
    assert mean == pytest.approx(expected[0], abs=1e-6)
    assert deviation == pytest.approx(expected[1], rel=1e-5)


def test_a_batch_of_lines_equals_single_fits():
    """A batch of functions is predicted as each function alone, and interpolates the given values."""
    random = np.random.default_rng(1)
    points = random.random((3, 7))
    values = np.stack([np.cos(3 * points[0]), np.abs(points[1] - 0.4), 5 + points[2] ** 3])
    known = np.ones_like(values, dtype=bool)
    known[1, 4:] = False
    new = random.random((3, 6))

    together = fit_lines(points, values, known)

    for row in range(3):
        known_row = known[row][None]
        alone = fit_lines(points[row][known_row[0]][None], values[row][known_row[0]][None], known_row[:, known_row[0]])
        for found, expected in zip(together.predict(new), alone.predict(new[row][None]), strict=True):
            assert found[row] == pytest.approx(expected[0], rel=1e-6, abs=1e-8)
    mean, deviation = together.predict(points)
    assert mean[known] == pytest.approx(values[known], abs=1e-4)
    assert deviation[known].max() < 1e-3


def test_nine_points_determine_a_smooth_line():
    """Nine points of a smooth function determine it to 1e-4 everywhere, within five deviations."""
    points = np.linspace(0, 1, 9)[None]
    new = np.linspace(0, 1, 101)[None]
    model = fit_lines(points, np.sin(3 * points), np.ones_like(points, dtype=bool))

    mean, deviation = model.predict(new)

    error = np.abs(mean - np.sin(3 * new))
    assert error.max() < 1e-4
    assert (error <= 5 * deviation + 1e-9).all()


def test_believing_keeps_means_and_removes_uncertainty():
    """Believed points change no mean, and the deviation at them vanishes."""
    points = np.array([[0.0, 0.3, 0.5, 1.0]])
    known = np.ones_like(points, dtype=bool)
    line = fit_lines(points, np.sin(5 * points), known)
    pending, new = np.array([[0.75]]), np.linspace(0, 1, 11)[None]
    believing = line.believing(pending, np.ones_like(pending, dtype=bool))
    assert believing.predict(pending)[0] == pytest.approx(line.predict(pending)[0], abs=1e-6)
    assert believing.predict(pending)[1] < 1e-3 * line.predict(pending)[1]

    cube = np.random.default_rng(0).random((8, 2))
    model = fit_additive(cube, wave(cube), np.ones((1, 2), dtype=bool))
    corner = np.array([[1.0, 1.0]])
    assert model.believing(corner).predict(new.T @ corner)[0] == pytest.approx(
        model.predict(new.T @ corner)[0], abs=1e-5
    )
    assert model.believing(corner).predict(corner)[1] < 1e-3 * model.predict(corner)[1]


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("terms", [[[1, 1, 1]], [[1, 0, 0], [0, 1, 1]]])
def test_likelihood_slopes_are_difference_quotients(terms, smooth):
    """The gradient of the likelihood equals its difference quotient."""
    random = np.random.default_rng(2)
    points = random.random((12, 3))
    values = wave(points)
    likelihood = _Likelihood(points, (values - values.mean()) / values.std(), np.array(terms, dtype=bool))
    where = likelihood.start + random.normal(size=len(likelihood.start)) * 0.3 - 0.5

    _, slope = likelihood(where, smooth)

    for direction, found in zip(np.eye(len(where)), slope, strict=True):
        ahead, behind = (likelihood(where + step * direction, smooth)[0] for step in (1e-5, -1e-5))
        assert found == pytest.approx((ahead - behind) / 2e-5, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("subset", [None, [True, False]])
def test_prediction_slopes_are_difference_quotients(subset):
    """The slopes of means and variances equal their difference quotients, for all terms and for some."""
    random = np.random.default_rng(3)
    points, new = random.random((10, 3)), random.random((4, 3))
    model = fit_additive(points, np.abs(wave(points) - 0.6), np.array([[1, 0, 0], [0, 1, 1]], dtype=bool))
    terms = None if subset is None else np.array(subset)

    _, _, mean_slope, variance_slope = model.predict_with_slopes(new, terms)

    for axis, direction in enumerate(np.eye(3) * 1e-5):
        ahead, behind = (model.predict_with_slopes(new + step, terms)[:2] for step in (direction, -direction))
        assert mean_slope[:, axis] == pytest.approx((ahead[0] - behind[0]) / 2e-5, abs=1e-5)
        assert variance_slope[:, axis] == pytest.approx((ahead[1] - behind[1]) / 2e-5, abs=1e-5)


@pytest.mark.parametrize("standard", [8.0, 1.0, 0.0, -0.9, -1.1, -5.0, -40.0, -3e3, -2e4, -1e6])
def test_logarithm_of_expected_improvement_is_exact(standard):
    """It equals log(s (phi(z) + z Phi(z))) with 60 digits, also where that underflows."""
    with mpmath.workdps(60):
        z = mpmath.mpf(standard)
        density = mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)
        # The complementary error function keeps the digits of Phi for very negative z.
        expected = float(mpmath.log(mpmath.mpf(0.5) * (density + z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2)))
    found = _log_improvement(np.array([2.0 + 0.5 * standard]), np.array([0.5]), 2.0)
    assert found[0] == pytest.approx(expected, rel=1e-7, abs=1e-9)
