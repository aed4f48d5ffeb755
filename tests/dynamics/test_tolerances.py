"""Every parameter has its absolute tolerance: large ones do not change those of small ones."""

import jax
import numpy as np
import pytest
import scipy.integrate

import lintensor_jax as lt

RNG = np.random.default_rng(0)
DATA, TARGETS = RNG.normal(size=(3, 4)), RNG.normal(size=3)
SMALL = 1e-3 * RNG.uniform(0.5, 1.5, size=(2, 4))


def _coefficients_at(weights, data, targets, time, method="DOP853"):
    """beta of diagonal layers at a time, by SciPy."""
    weights = np.asarray(weights)

    def velocity(_, flat):
        layers = flat.reshape(weights.shape)
        pull = data.T @ (targets - data @ np.prod(layers, axis=0))
        others = [np.prod(np.delete(layers, k, axis=0), axis=0) for k in range(len(layers))]
        return (pull * np.asarray(others)).ravel()

    found = scipy.integrate.solve_ivp(
        velocity, (0, time), weights.ravel(), method=method, rtol=1e-12, atol=1e-15
    )
    return np.prod(found.y[:, -1].reshape(weights.shape), axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1.0, 1e7])
def test_a_weight_without_data_does_not_change_small_weights_beside_it(dead):
    expected = _coefficients_at(SMALL, DATA, TARGETS, 1e5, "LSODA")  # at the limit
    data = np.concatenate([DATA, np.zeros((3, 1))], axis=1)
    weights = np.concatenate([SMALL, np.full((2, 1), dead)], axis=1)
    problem = lt.Regression(data, TARGETS)
    flow = lt.gradient_flow(lt.DiagonalNetwork(weights), problem)
    np.testing.assert_allclose(flow.coefficients[-1, :4], expected, atol=2e-7)
    lanes = jax.vmap(lt.DiagonalNetwork)(np.stack([weights] * 2))
    for compilation in (lt.Native(), lt.XLA()):
        batch = lt.batched_flow(lanes, problem, compilation=compilation)
        np.testing.assert_allclose(batch.coefficients[:, :4], [expected] * 2, atol=2e-7)


@pytest.mark.parametrize("large", [1.0, 1e4])
def test_a_zero_layer_beside_a_large_one_is_right_along_the_way(large):
    weights, data, targets = np.asarray([[0.0], [large]]), np.ones((1, 1)), np.ones(1)
    flow = lt.gradient_flow(
        lt.DiagonalNetwork(weights),
        lt.Regression(data, targets),
        saveat=np.asarray([0.1, 1.0, 3.0]) / large**2,
        finish=None,
    )
    times = np.exp(flow.log_time[:-1])
    expected = [_coefficients_at(weights, data, targets, time) for time in times]
    np.testing.assert_allclose(flow.coefficients[:-1], expected, atol=3e-7)


@pytest.mark.slow
def test_parameters_of_one_size_have_one_tolerance():
    # The printed `atol` is the one that was used.
    problem = lt.Regression(DATA, TARGETS)
    network = lt.DiagonalNetwork(np.array([[0.3, 0.5, 0.4, 0.6], [0.1, 0.2, 0.3, 0.2]]))

    def end(**options):
        return lt.gradient_flow(network, problem, finish=None, **options)

    # Two programs may differ in the last bits. From this start no saddle amplifies the differences,
    # and ten times the tolerance moves the end by 1e-9.
    flow = end()
    same, other = (end(atol=share * float(flow.atol)).coefficients for share in (1.0, 10.0))
    np.testing.assert_allclose(same, flow.coefficients, rtol=0, atol=1e-11)
    assert np.max(np.abs(other - flow.coefficients)) > 1e-10
