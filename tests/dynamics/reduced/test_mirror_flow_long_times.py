"""Mirror flow at long times: what the data do not see of nu, and what rounding hides of it."""

import numpy as np
import pytest

import lintensor_jax as lt

CONTRADICTORY = lt.Regression([[1.0], [1.0]], [0.0, 2.0])
CORNER = lt.Regression([[1.0, 2.0], [1.0, -1.0]], [1.0, 1.5])
POSITIVE = lt.DiagonalNetwork(0.1 * np.ones((2, 2)))


@pytest.mark.parametrize("time", [50.0, 1e9, 1e15])
def test_contradictory_samples_do_not_spoil_the_limit(time):
    network = lt.DiagonalNetwork([[1.0], [0.0]])
    flow = lt.mirror_flow(network, CONTRADICTORY, stop=lt.StopAtTime(time), finish=None)
    # The least squares of 0 and 2; the flow's own tolerance.
    np.testing.assert_allclose(flow.coefficients[-1], [1.0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("time", [1e3, 1e12, 3e16])
def test_a_coordinate_that_decays_does_not_spoil_the_others(time):
    """beta_2 >= 0 stays, while the data want -1/6: the limit is (1.25, 0)."""
    flow = lt.mirror_flow(POSITIVE, CORNER, stop=lt.StopAtTime(time), finish=None)
    # sqrt(eps), where nu is kept, over the condition of the data.
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
    # rtol, and the interpolation between steps.
    np.testing.assert_allclose(dual.coefficients[:2], full.coefficients[:2], rtol=0, atol=1e-7)


def test_a_flow_that_still_moves_where_rounding_hides_it_is_refused():
    """The corner with its first coordinate doubled: the two move apart at a rate of 1e-10."""
    slow = 1e-5
    X = [[1.0, 2.0, 1.0], [1.0, -1.0, 1.0], [slow, 0.0, -slow]]
    problem = lt.Regression(X, [1.0, 1.5, 0.5 * slow])
    network = lt.DiagonalNetwork(0.1 * np.ones((2, 3)))
    with pytest.raises(lt.FlowError, match="beta still moves"):
        lt.mirror_flow(network, problem, stop=lt.StopAtTime(1e12), finish=None)
    flow = lt.mirror_flow(network, problem, stop=lt.StopAtTime(1e12), finish=None, throw=False)
    assert not bool(flow.succeeded)
