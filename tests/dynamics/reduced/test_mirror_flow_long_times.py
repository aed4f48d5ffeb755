"""Mirror flow at long times: parts of nu that have no effect on the data or are below rounding."""

import numpy as np
import pytest
import scipy.integrate

import lintensor_jax as lt

CONTRADICTORY = lt.Regression([[1.0], [1.0]], [0.0, 2.0])
CORNER = lt.Regression([[1.0, 2.0], [1.0, -1.0]], [1.0, 1.5])
POSITIVE = lt.DiagonalNetwork(0.1 * np.ones((2, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("time", [50.0, 1e9, 1e15])
def test_contradictory_samples_do_not_spoil_the_limit(time):
    network = lt.DiagonalNetwork([[1.0], [0.0]])
    flow = lt.mirror_flow(network, CONTRADICTORY, stop=lt.StopAtTime(time), finish=None)
    # 1 is the least-squares solution of 0 and 2. The error is the flow's tolerance.
    np.testing.assert_allclose(flow.coefficients[-1], [1.0], rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("time", [1e3, 1e12, 3e16])
def test_a_coordinate_that_decays_does_not_spoil_the_others(time):
    """beta_2 stays >= 0, and the least-squares solution has -1/6: the limit is (1.25, 0)."""
    flow = lt.mirror_flow(POSITIVE, CORNER, stop=lt.StopAtTime(time), finish=None)
    # nu is kept to sqrt(eps), which is divided by the condition of the data.
    np.testing.assert_allclose(flow.coefficients[-1], [1.25, 0.0], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_dependent_and_repeated_samples_are_the_full_flow():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2, 4))
    X = np.stack([X[0], X[1], X[0] - 2 * X[1], X[0]])
    problem = lt.Regression(X, rng.normal(size=4))
    network = lt.DiagonalNetwork(rng.normal(size=(2, 4)))
    stop = lt.StopAtTime(3.0)
    times = np.array([0.3, 3.0])
    dual = lt.mirror_flow(network, problem, stop=stop, saveat=times, rtol=1e-10, finish=None)
    full = lt.gradient_flow(network, problem, stop=stop, saveat=times, rtol=1e-10, finish=None)
    # The errors are rtol and the interpolation between steps.
    np.testing.assert_allclose(dual.coefficients[:2], full.coefficients[:2], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_a_flow_that_still_moves_where_rounding_hides_it_is_refused():
    """The corner's first column occurs twice: the two coordinates separate at a rate of 1e-10."""
    slow = 1e-5
    X = [[1.0, 2.0, 1.0], [1.0, -1.0, 1.0], [slow, 0.0, -slow]]
    problem = lt.Regression(X, [1.0, 1.5, 0.5 * slow])
    network = lt.DiagonalNetwork(0.1 * np.ones((2, 3)))
    with pytest.raises(lt.FlowError, match="beta still moves"):
        lt.mirror_flow(network, problem, stop=lt.StopAtTime(1e12), finish=None)
    flow = lt.mirror_flow(network, problem, stop=lt.StopAtTime(1e12), finish=None, throw=False)
    assert not bool(flow.succeeded)


@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("time", [2e-5, 2.22e-4])
def test_large_starts_leave_nu_small(size, time):
    """A nu of size 1e-2 / size^2 reaches the targets; the tolerance must be relative to it."""
    data = np.asarray([[9.22, -77.07], [-64.56, -43.73]])
    targets = np.asarray([1.19, -0.953])
    layers = size * np.asarray([[1.0, 0.5], [0.0, 0.0]])
    stop = lt.StopAtTime(time / size**2)
    problem = lt.Regression(data, targets)
    flow = lt.mirror_flow(lt.DiagonalNetwork(layers), problem, stop=stop, finish=None)

    def velocity(_, flat):
        first, second = flat.reshape(2, 2)
        pull = data.T @ (targets - data @ (first * second))
        return np.concatenate([pull * second, pull * first])

    found = scipy.integrate.solve_ivp(
        velocity, (0, float(np.exp(flow.log_time[-1]))), layers.ravel(), method="DOP853",
        rtol=1e-12, atol=1e-15 * size,
    )  # fmt: skip
    expected = np.prod(found.y[:, -1].reshape(2, 2), axis=0)
    np.testing.assert_allclose(flow.coefficients[-1], expected, rtol=0, atol=3e-8 * 0.03)
