"""One hidden neuron: the closed form against the flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.theory import InconsistentEquationsError, single_neuron_limit

RNG = np.random.default_rng(3)
PROBLEM = lt.Regression(RNG.normal(size=(3, 6)), RNG.normal(size=3))


def _network(u, a):
    return lt.FullyConnectedNetwork([jnp.reshape(u, (6, 1)), jnp.reshape(a, (1,))])


@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("ratio", [1.0, -2.0])  # |a|/|u|: balanced and above, both signs
def test_closed_form_is_the_flow_limit(scale, ratio):
    u = RNG.normal(size=6)
    network = _network(scale * u, scale * ratio * np.linalg.norm(u))
    predicted = single_neuron_limit(network, PROBLEM)
    flow = lt.gradient_flow(network, PROBLEM, rtol=1e-10)
    # The bound is the flow's tolerance times 100.
    np.testing.assert_allclose(predicted.coefficients, flow.coefficients[-1], rtol=0, atol=1e-8)
    for mine, theirs in zip(predicted.network.weights, flow.network.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-8)
    # At the largest scale the layers have norms 7 and 15; the error is the rounding of products.
    np.testing.assert_allclose(PROBLEM.X @ predicted.coefficients, PROBLEM.y, rtol=0, atol=1e-12)
    assert float(predicted.imbalance) >= -1e-12 * scale**2


def test_a_limit_that_depends_on_the_scale():
    u = jnp.asarray(RNG.normal(size=6))
    l2 = lt.min_norm(PROBLEM, lt.L2Norm()).coefficients

    def distance(scale):
        limit = single_neuron_limit(_network(scale * u, 2 * scale), PROBLEM).coefficients
        return jnp.linalg.norm(limit - l2)

    small = jax.vmap(distance)(jnp.array([1e-2, 1e-4, 1e-6]))
    # a tends to sqrt|b|, so the distance is proportional to the scale.
    np.testing.assert_allclose(small[:-1] / small[1:], 100.0, rtol=1e-2)
    assert float(distance(1.0)) > 0.1


def test_refusals():
    with pytest.raises(ValueError, match=r"shapes \(6, 1\) and \(1,\)"):
        single_neuron_limit(lt.FullyConnectedNetwork.zeros((6, 2)), PROBLEM)
    with pytest.raises(ValueError, match="nonzero output weight"):
        single_neuron_limit(_network(jnp.zeros(6), 0.0), PROBLEM)
    # The same sample has two targets: the flow has a limit, but not that of the closed form.
    twice = lt.Regression(jnp.stack([PROBLEM.X[0], PROBLEM.X[0]]), np.array([1.0, 2.0]))
    with pytest.raises(InconsistentEquationsError, match="single_neuron_limit: y must lie in the"):
        single_neuron_limit(_network(jnp.ones(6), 1.0), twice)


@pytest.mark.parametrize(
    ("u", "X", "limit"),
    [
        ([-1.0], [[1.0]], [0.0]),
        ([1.0], [[1.0]], [1.0]),
        ([-0.6, -1.2], [[1.0, 2.0]], [0.0, 0.0]),  # |u| is no float64: balanced to rounding
        ([-0.6, -1.2], [[1.0, 2.0], [2.0, 4.0]], [0.0, 0.0]),
    ],
)
def test_a_balanced_neuron_that_points_away_ends_at_zero(u, X, limit):
    u, X = np.array(u), np.array(X)
    network = lt.FullyConnectedNetwork([u[:, None], np.array([np.linalg.norm(u)])])
    problem = lt.Regression(X, X[:, 0] / X[0, 0])
    found = single_neuron_limit(network, problem)
    np.testing.assert_allclose(found.coefficients, limit, rtol=0, atol=1e-15)
    assert all(np.isfinite(w).all() for w in found.network.weights)
