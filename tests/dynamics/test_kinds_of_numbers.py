"""Which arrays of a network move: real floating-point ones. Constants may be of any kind."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.networks import split

D = 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, D))
REGRESSION, CLASSIFICATION = lt.Regression(X, [1.0, -1.0]), lt.Classification(X, [1.0, -1.0])
FILTERS = RNG.normal(size=(2, D))


class Masked(eqx.Module):
    """A user's network, whose integers are declared constant."""

    u: Any
    v: Any
    mask: Any = lt.constant()
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v * self.mask


class Careless(eqx.Module):
    """A user's network that declares nothing about its arrays."""

    u: Any
    v: Any
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v


def _fourier():
    """The convolution as an orthogonal network with complex constants."""
    found = lt.ConvolutionalNetwork(tuple(FILTERS)).orthogonal_decomposition()
    return lt.OrthogonalNetwork(found.S, found.bases, tuple(FILTERS))


@pytest.mark.slow
def test_complex_constants_flow_as_the_real_network_does():
    fourier, convolution = _fourier(), lt.ConvolutionalNetwork(tuple(FILTERS))
    ends = [lt.gradient_flow(n, REGRESSION).coefficients[-1] for n in (fourier, convolution)]
    # Both flows have rtol = 1e-8.
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-8)
    # Each flow stops a little beyond its margin, so their ends may differ. Their limits are equal.
    ends = [lt.limit_direction(n, CLASSIFICATION).direction for n in (fourier, convolution)]
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-8)
    descents = [lt.gradient_descent(n, REGRESSION, num_steps=50) for n in (fourier, convolution)]
    np.testing.assert_allclose(*[d.coefficients for d in descents], rtol=0, atol=1e-13)
    assert all(v.dtype == np.float64 for v in descents[0].network.factors)


def test_single_precision_stays_single_beside_complex_constants():
    network = _fourier()
    small = eqx.tree_at(
        lambda n: (n.S, n.bases, n.factors),
        network,
        (
            network.S.astype(np.complex64),
            tuple(u.astype(np.complex64) for u in network.bases),
            tuple(v.astype(np.float32) for v in network.factors),
        ),
    )
    problem = lt.Regression(X.astype(np.float32), np.array([1.0, -1.0], np.float32))
    descent = lt.gradient_descent(small, problem, num_steps=5)
    assert descent.coefficients.dtype == np.float32


ENTRY_POINTS = [lt.gradient_flow, lt.gradient_descent, lt.batched_flow, lt.mirror_flow]
INTEGERS, FLOATS = jnp.array([[1, 2, 3]]), jnp.array([[0.5, 0.5, 0.5]])


@pytest.mark.parametrize("function", ENTRY_POINTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Careless(INTEGERS, FLOATS), r"network: Careless\.u must hold floating.* got dtype int"),
        (Careless(INTEGERS, INTEGERS), r"network: Careless\.u must hold floating.* got dtype int"),
        (Careless(FLOATS, FLOATS * 1j), r"network: Careless\.v must be real, got dtype complex"),
    ],
    ids=["one", "all", "complex"],
)
def test_what_no_flow_can_move_is_refused_at_once(function, network, message):
    problem = REGRESSION
    if function is not lt.batched_flow:
        network = Careless(network.u[0], network.v[0])
    with pytest.raises(ValueError, match=message):
        function(network, problem)


def test_declared_integers_and_masks_are_left_alone():
    floats, mask = jnp.array([0.5, 0.6, 0.7]), jnp.array([1, 0, 1])
    ours = lt.gradient_descent(Masked(floats, floats, mask), REGRESSION, num_steps=20).network
    assert ours.mask.dtype == mask.dtype
    np.testing.assert_array_equal(ours.mask, mask)
    masked = Careless(floats, Careless(floats, mask == 1))
    assert split(masked)[0].v.v is None


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="network: Careless must have parameters, got none"):
        lt.gradient_descent(Careless([1.0], [2.0]), REGRESSION)


def test_complex_coefficients_are_refused():
    network = Masked(jnp.ones(D), jnp.ones(D), 1j * jnp.ones(D))
    with pytest.raises(ValueError, match="coefficients of Masked must be real, got dtype complex"):
        lt.gradient_flow(network, REGRESSION)
