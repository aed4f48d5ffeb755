"""The maximum margin in place of a long flow: two layers."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.system import System
from lintensor_jax.limits import direction, largest_margin
from lintensor_jax.limits.direction import _at_largest_margin
from lintensor_jax.limits.largest_margin import network_at

jax.config.update("jax_enable_x64", True)


def _problem(seed, n=20, d=10):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return lt.Classification(X, np.sign(X @ rng.standard_normal(d)))


def _gaussian(network, seed, scale=0.3):
    """The network with normal random numbers in all leaves."""
    leaves, tree = jax.tree.flatten(network)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        scale * jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.slow
def test_a_short_flow_and_the_limit_of_the_long_one(monkeypatch):
    data, network = _problem(4), _gaussian(lt.DiagonalNetwork.zeros(2, 10), 4)
    short = lt.limit_direction(network, data)
    monkeypatch.setattr(direction, "is_determined", lambda network, problem: False)
    long = lt.limit_direction(network, data)
    assert "maximum margin" not in long.reason
    assert short.status == long.status == "stationary"
    assert short.flow.log_margin is not None
    assert np.exp(short.flow.log_margin[-1]) < 20
    assert short.flow.stats["num_implicit_steps"] == 0
    assert "maximum margin" in short.reason
    assert short.certificate.parameter_residual < 1e-10
    assert short.certificate.predictor_residual < 1e-10
    # Both are solved to rounding, as is the reference.
    np.testing.assert_allclose(short.direction, long.direction, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        short.direction, lt.max_margin(data, lt.L1Norm()).direction, rtol=0, atol=1e-11
    )
    # The layers have the signs of those of the long flow, because growing sums keep their signs.
    for mine, theirs in zip(short.network.weights, long.network.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


def test_two_hundred_features():
    """The maximum margin that replaces a long flow is certified to rounding."""
    data, network = _problem(0, n=500, d=200), _gaussian(lt.DiagonalNetwork.zeros(2, 200), 0)
    assert largest_margin.is_determined(network, data)
    beta = network.linear_coefficients()
    flow = SimpleNamespace(
        unfinished_network=network,
        problem=data,
        system=System.of(network, data),
        direction=[beta / jnp.linalg.norm(beta)],
    )
    margin = largest_margin.largest_margin(network, data)
    assert margin is not None
    limit: Any = _at_largest_margin(flow, margin, 1e-10)
    assert limit.status == "stationary"
    assert "maximum margin" in limit.reason
    assert limit.certificate.parameter_residual < 1e-12
    assert limit.certificate.predictor_residual < 1e-11
    expected = lt.max_margin(data, lt.L1Norm()).direction
    np.testing.assert_allclose(limit.direction, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(limit.moved, np.linalg.norm(expected - flow.direction[0]))


def _limit_network(network, data) -> Any:
    margin = largest_margin.largest_margin(network, data)
    assert margin is not None
    return network_at(margin, network, data)


@pytest.mark.parametrize("d", [9, 10])
def test_full_length_convolutions_keep_their_phases(d):
    data = _problem(1, n=15, d=d)
    network = _gaussian(lt.ConvolutionalNetwork.zeros(d, (d, d)), 1)
    found = _limit_network(network, data)
    beta = np.asarray(found.linear_coefficients())
    expected = lt.max_margin(data, lt.FourierL1Norm()).direction
    np.testing.assert_allclose(beta / np.linalg.norm(beta), expected, rtol=0, atol=1e-10)
    assert lt.certify(found, data, tolerance=1e-10).is_stationary
    before, after = (np.fft.rfft(np.asarray(net.filters[0])) for net in (network, found))
    paired = slice(1, (d + 1) // 2)
    on = np.abs(after[paired]) > 1e-9
    turned = np.angle(after[paired][on] / before[paired][on])
    np.testing.assert_allclose(turned, 0.0, rtol=0, atol=1e-9)


def test_signs_and_zeros_that_a_flow_keeps():
    data = _problem(2)
    best = np.asarray(lt.max_margin(data, lt.L1Norm()).direction)
    j = int(np.argmax(np.abs(best)))
    weights = _gaussian(lt.DiagonalNetwork.zeros(2, 10), 2).weights
    # No flow reaches the maximum margin if j is zero in both layers, or keeps the wrong sign.
    for value in (jnp.zeros(2), jnp.array([0.1, -0.1 * np.sign(best[j])])):
        network = lt.DiagonalNetwork(weights.at[:, j].set(value))
        assert _limit_network(network, data) is None
    # A flow reaches it if equal layers have the right sign, or if they are only nearly equal.
    for value in (jnp.array([0.1, 0.1 * np.sign(best[j])]), jnp.array([0.1, 0.1 + 1e-6])):
        network = lt.DiagonalNetwork(weights.at[:, j].set(value))
        assert _limit_network(network, data) is not None


def test_several_maximum_margins_are_left_to_the_flow():
    # For the l1 norm the two equal columns are interchangeable.
    X = np.array([[1.0, 1.0, 0.2], [-2.0, -2.0, 0.5], [1.5, 1.5, -1.0]])
    data = lt.Classification(X, np.array([1.0, -1.0, 1.0]))
    assert not lt.max_margin(data, lt.L1Norm()).unique
    assert largest_margin.largest_margin(_gaussian(lt.DiagonalNetwork.zeros(2, 3), 0), data) is None
    # It also returns None for data that are not separable, and for networks without coordinates.
    nothing = lt.Classification(np.array([[1.0], [1.0]]), np.array([1.0, -1.0]))
    one = _gaussian(lt.DiagonalNetwork.zeros(2, 1), 0)
    assert largest_margin.largest_margin(one, nothing) is None
    # For complex rho there is no proof, so that few parameters are integrated.
    for d, determined in ((10, False), (41, True)):
        network = _gaussian(lt.ConvolutionalNetwork.zeros(d, (d, d)), 1)
        assert largest_margin.is_determined(network, _problem(1, n=15, d=d)) == determined
    deep = _gaussian(lt.DiagonalNetwork.zeros(3, 10), 0)
    assert not largest_margin.is_determined(deep, _problem(0))
