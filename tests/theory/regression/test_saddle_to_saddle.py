"""The path from saddle to saddle against flows of decreasing scale and a linear program."""

import itertools

import diffrax
import jax
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import linprog, nnls

import lintensor_jax as lt
from lintensor_jax.theory.regression.activation_times import default_thresholds, thresholds


def gaussian(seed, d, n):
    rng = np.random.default_rng(seed)
    return lt.Regression(rng.normal(size=(n, d)) / np.sqrt(n), rng.normal(size=n))


def least_gauge(X, y, lower, upper):
    """argmin of sum upper_i beta_i^+ + |lower_i| beta_i^-, by HiGHS."""
    d = X.shape[1]
    cost = np.concatenate([upper, -lower])
    bounds = [(0, None if np.isfinite(c) else 0) for c in cost]
    cost = np.where(np.isfinite(cost), cost, 0.0)
    found = linprog(cost, A_eq=np.hstack([X, -X]), b_eq=y, bounds=bounds, method="highs")
    assert found.success
    return found.x[:d] - found.x[d:]


@pytest.mark.parametrize(("d", "n"), [(2, 1), (7, 3), (20, 15), (50, 20)])
def test_it_ends_at_the_l1_solution_of_a_linear_program(d, n):
    for seed in range(5):
        problem = gaussian(seed, d, n)
        path = lt.saddle_to_saddle(problem)
        limit = least_gauge(np.asarray(problem.X), np.asarray(problem.y), -np.ones(d), np.ones(d))
        np.testing.assert_allclose(path.limit, limit, atol=1e-10)
        assert path.unique
        assert np.all(np.diff(path.times) > 0)
        assert path.points.shape == path.dual.shape == (len(path.times) + 1, d)
        assert np.max(np.abs(path.dual)) <= 1 + 1e-12


def test_every_point_is_a_constrained_minimum():
    """SciPy's NNLS on the signed active columns; coordinates leave on the way."""
    problem = gaussian(0, 50, 20)
    path = lt.saddle_to_saddle(problem)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    support = path.points != 0
    assert np.any(support[:-1] & ~support[1:]), "no coordinate leaves in this problem"
    for q, point in zip(path.dual[1:], path.points[1:], strict=True):
        active = np.abs(q) == 1
        sizes, _ = nnls(X[:, active] * q[active], y)
        np.testing.assert_allclose(point[active], q[active] * sizes, atol=1e-10)
        np.testing.assert_array_equal(point[~active], 0)


def jump_times(flow, losses):
    """When the loss, which never rises along the flow, is half-way between the saddles' losses.

    Between two steps it is taken as linear: the times of steps alone differ from one machine to
    another.
    """
    loss, time = np.exp(flow.log_loss), np.exp(flow.log_time)
    halves = [(a + b) / 2 for a, b in itertools.pairwise(losses)]
    return np.interp(halves, loss[::-1], time[::-1])


def saddle_losses(problem, path):
    return [float(problem.loss(point)) for point in path.points]


def two_layer_flow(problem, alpha):
    d = problem.X.shape[1]
    network = lt.DiagonalNetwork(np.stack([np.full(d, alpha), np.zeros(d)]))
    every_step = diffrax.SaveAt(steps=True)
    return lt.mirror_flow(network, problem, saveat=every_step)


@pytest.mark.slow
def test_the_flow_jumps_at_these_times_between_these_points():
    problem = gaussian(0, 10, 4)
    path = lt.saddle_to_saddle(problem)
    scaled = []
    for alpha in (1e-35, 1e-70, 1e-140):
        flow = two_layer_flow(problem, alpha)
        unit = path.time_unit(alpha)
        times = jump_times(flow, saddle_losses(problem, path)) / unit
        scaled.append((times - path.times) * unit)
    # The error of the times is O(1/log(1/alpha)), which halves from each scale to the next: times
    # the unit it is the same at all scales. The interpolation between steps moves it by 0.016.
    assert 1 < np.max(np.abs(scaled)) < 10
    np.testing.assert_allclose(scaled[1:], scaled[:-1], rtol=0, atol=0.05)
    distances = np.abs(np.asarray(flow.coefficients)[None] - path.points[:, None])
    assert np.max(np.min(np.max(distances, axis=2), axis=1)) < 1e-6
    # Between two jumps the path is at its point; times are in the algorithm's units.
    middles = (path.times[1:] + path.times[:-1]) / 2
    np.testing.assert_array_equal(path.at(middles), path.points[1:-1])


def three_layer_flow(problem, path, alpha, start):
    """Jump times in the path's units, and the end, of SciPy's flow of the parameters."""
    X, y, d = np.asarray(problem.X), np.asarray(problem.y), start.shape[1]

    def velocity(_, theta):
        a, b, c = theta.reshape(3, d)
        gradient = X.T @ (X @ (a * b * c) - y)
        return -np.concatenate([b * c, a * c, a * b]) * np.tile(gradient, 3)

    unit = path.time_unit(alpha)
    span = (0, 1.2 * path.times[-1] * unit)
    found = solve_ivp(velocity, span, alpha * start.ravel(), "LSODA", rtol=1e-9, atol=1e-12)
    beta = found.y.reshape(3, d, -1).prod(axis=0)
    loss = 0.5 * np.sum((X @ beta - y[:, None]) ** 2, axis=0)
    losses = saddle_losses(problem, path)
    times = [found.t[np.argmax(loss < (p + q) / 2)] for p, q in itertools.pairwise(losses)]
    return np.asarray(times) / unit, beta[:, -1]


def test_three_layers_have_the_same_points_and_later_jumps():
    problem = gaussian(1, 6, 3)
    two, three = lt.saddle_to_saddle(problem), lt.saddle_to_saddle(problem, depth=3)
    np.testing.assert_allclose(three.points, two.points, atol=1e-12)
    np.testing.assert_allclose(three.times, np.pi / 2 * two.times, rtol=1e-12)
    start = np.stack([np.ones(6), np.ones(6), np.zeros(6)])
    errors = []
    for alpha in (1e-2, 1e-3, 1e-4):
        times, _ = three_layer_flow(problem, three, alpha, start)
        errors.append(np.max(np.abs(times - three.times) / three.times))
    assert errors[2] < 1e-3
    # The error is O(alpha), the time in which a coordinate grows from its start to beta's size.
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5


def test_ties_and_twins():
    # Orthogonal columns with equal correlations: all of them jump together.
    together = lt.saddle_to_saddle(lt.Regression(np.eye(3), np.array([2.0, -2.0, 2.0])))
    np.testing.assert_allclose(together.times, [0.5])
    np.testing.assert_allclose(together.limit, [2, -2, 2])
    # A column, its negative and its double: the first two share the coefficient.
    X = np.array([[1.0, -1.0, 0.5], [1.0, -1.0, -0.25]])
    shared = lt.saddle_to_saddle(lt.Regression(X, np.array([2.0, 2.0])))
    np.testing.assert_allclose(shared.points[-1], [1, -1, 0], atol=1e-15)
    assert shared.unique
    # Three columns that arrive together in two dimensions: the point is not unique.
    X = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]])
    several = lt.saddle_to_saddle(lt.Regression(X, np.array([1.0, 0.0])))
    assert not several.unique
    assert "not unique" in str(several)
    np.testing.assert_allclose(X @ several.limit, [1, 0], atol=1e-14)


def test_more_samples_than_coefficients_end_at_least_squares():
    problem = gaussian(4, 3, 8)
    expected = np.linalg.lstsq(np.asarray(problem.X), np.asarray(problem.y))[0]
    np.testing.assert_allclose(lt.saddle_to_saddle(problem).limit, expected, atol=1e-12)
    nothing = lt.saddle_to_saddle(lt.Regression(problem.X, np.zeros(8)))
    assert nothing.times.shape == (0,)
    assert nothing.points.shape == (1, 3)


@pytest.mark.parametrize("gaps", [(1.0, 1.0), (0.3, 2.0), (1e-6, 1.0), (0.5, 0.7, 20.0)])
def test_thresholds_are_quadratures(gaps):
    """z from z_0 = 0.2 and from -0.2, with layers of squares z^2 + gap; against SciPy's quad."""
    layers = np.concatenate([[0.2], np.sqrt(0.04 + np.asarray(gaps))])

    def integral(start):
        def speed(z):
            return 1 / np.prod(np.sqrt(z**2 + np.asarray(gaps)))

        places = sorted({start, 0.0, 1e-3, 1.0}) if start < 0 else [start, 1.0]
        inner = sum(quad(speed, a, b, epsabs=0)[0] for a, b in itertools.pairwise(places))
        return inner + quad(speed, 1.0, np.inf, epsabs=0)[0]

    lower, upper = thresholds(np.stack([layers, layers * ([-1] + [1] * len(gaps))], axis=1))
    expected = np.array([integral(-0.2), integral(0.2)])
    np.testing.assert_allclose([-lower[0], upper[0]], expected, rtol=1e-7)
    # The other start is the mirror image.
    np.testing.assert_allclose([upper[1], -lower[1]], expected, rtol=1e-7)


def test_thresholds_of_the_default_start_and_of_balanced_ones():
    for depth in (2, 3, 4, 7):
        ones = np.ones((depth, 2))
        ones[-1] = 0
        np.testing.assert_allclose(thresholds(ones), default_thresholds(depth, 2), rtol=1e-13)
    # dw/dzeta = w^(L-1) from w = 1 is infinite at zeta = 1/(L-2); it never reaches 0.
    lower, upper = thresholds(np.ones((4, 1)))
    np.testing.assert_allclose(upper, 1 / 2, rtol=1e-13)
    assert lower[0] == -np.inf
    assert thresholds(np.array([[1.0, 1.0], [1.0, -1.0]]))[0].tolist() == [-np.inf, -1.0]


def test_a_start_of_its_own_for_each_coordinate():
    """Three layers, against SciPy's flow of the parameters, and the weighted linear program."""
    start = np.array([[1.0, 0.6, 1.3, 1.0], [0.8, 1.1, 0.7, 1.0], [0.1, -0.3, 0.0, 1.0]])
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(2, 4)), np.array([1.0, -0.7])
    problem = lt.Regression(X, y)
    path = lt.saddle_to_saddle(problem, depth=3, start=start)
    assert np.isinf(path.lower[3])
    assert np.all(np.isfinite(path.upper))
    np.testing.assert_allclose(path.limit, least_gauge(X, y, path.lower, path.upper), atol=1e-10)
    times, end = three_layer_flow(problem, path, 1e-3, start)
    # At scale 1e-3 three layers differ by O(1e-3) from the limit of vanishing scale.
    np.testing.assert_allclose(times, path.times, rtol=0.02)
    np.testing.assert_allclose(end, path.limit, atol=0.01)


def test_words_gauge_and_refusals():
    problem = gaussian(0, 10, 4)
    path = lt.saddle_to_saddle(problem)
    assert "5 jumps" in str(path)
    assert "log(1/alpha)" in str(path)
    assert "limit" in str(path)
    assert "alpha^-1" in str(lt.saddle_to_saddle(problem, 3))
    np.testing.assert_allclose(path.gauge(path.limit), np.sum(np.abs(path.limit)))
    with pytest.raises(ValueError, match="alpha: must lie in"):
        path.time_unit(2.0)
    with pytest.raises(ValueError, match=r"squared loss.*HuberLoss"):
        lt.saddle_to_saddle(lt.Regression(problem.X, problem.y, loss=lt.HuberLoss(1.0)))
    with pytest.raises(ValueError, match=r"depth must be .* >= 2, got 1"):
        lt.saddle_to_saddle(problem, 1)
    with pytest.raises(ValueError, match=r"start must hold 2 finite layers.*\(3, 10\)"):
        lt.saddle_to_saddle(problem, start=np.ones((3, 10)))
    with pytest.raises(ValueError, match=r"two zero layers in coordinates \[0, 1"):
        lt.saddle_to_saddle(problem, start=np.zeros((2, 10)))
    with pytest.raises(ValueError, match="concrete arrays"):
        jax.jit(lambda y: lt.saddle_to_saddle(lt.Regression(problem.X, y)).limit)(problem.y)
