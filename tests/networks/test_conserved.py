"""Conserved quantities: their derivative along any flow is zero, and their units are right."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.networks import split
from lintensor_jax.networks.conserved import conserved_quantities
from lintensor_jax.networks.contractions import squared_moduli

D = 4


def conv(*lengths):
    return lt.ConvolutionalNetwork.zeros(D, lengths)


def tensor(*sizes):
    values = jax.random.normal(jax.random.key(9), (*sizes, D))
    return lt.TensorNetwork(values, tuple(jnp.zeros(k) for k in sizes))


NETWORKS = {
    "diagonal-2": (lt.DiagonalNetwork.zeros(2, D), D),
    "diagonal-4": (lt.DiagonalNetwork.zeros(4, D), 3 * D),
    "conv-full-2": (conv(D, D), D // 2 + 1),
    "conv-full-3": (conv(D, D, D), 2 * (D // 2 + 1)),
    "conv-odd": (lt.ConvolutionalNetwork.zeros(5, (5, 5)), 3),
    "conv-short-3": (conv(2, 3, D), 2),
    "fully-connected-2": (lt.FullyConnectedNetwork.zeros((D, 3)), 9),
    "fully-connected-3": (lt.FullyConnectedNetwork.zeros((D, 3, 2)), 9 + 4),
    "vector-output": (lt.FullyConnectedNetwork.zeros((D, 3, 2), 3), 9 + 4),
    "tensor-2": (tensor(3, 2), 1),
    "tensor-4": (tensor(2, 3, 1, 2), 3),
}


@pytest.mark.slow_beyond(5)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_loss_changes_them(name):
    """Their derivative along Theta' = -(d beta/d Theta)^T g vanishes for every g.

    The derivative is taken by jax.vjp and jax.jvp, without the written-out pullback.
    """
    like, size = NETWORKS[name]
    net = gaussian(like, jax.random.key(0))
    parameters, rest = split(net)

    @jax.jit
    def value_and_change(parameters, key):
        beta, vjp = jax.vjp(lambda p: eqx.combine(p, rest).linear_coefficients(), parameters)
        velocity = vjp(jax.random.normal(key, beta.shape))[0]
        speed = sum(jnp.sum(v**2) for v in jax.tree.leaves(velocity))
        return speed, jax.jvp(
            lambda p: conserved_quantities(eqx.combine(p, rest)), (parameters,), (velocity,)
        )

    for seed in range(3):
        speed, (value, change) = value_and_change(parameters, jax.random.key(seed))
        assert value.shape == change.shape == (size,)
        assert speed > 1e-2  # the flow is not at rest
        np.testing.assert_allclose(change, 0.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["diagonal-4", "conv-full-3", "fully-connected-3", "tensor-4"])
def test_kept_along_an_independent_integration(name):
    """SciPy's DOP853 on a classification problem, to rtol = 1e-11."""
    start = gaussian(NETWORKS[name][0], jax.random.key(1))
    parameters, rest = split(start)
    theta, unravel = ravel_pytree(parameters)
    X = jax.random.normal(jax.random.key(2), (3, D))
    loss = lt.Classification(X, jnp.array([1.0, -1.0, 1.0])).loss

    def network(theta):
        return eqx.combine(unravel(jnp.asarray(theta)), rest)

    velocity = jax.jit(jax.grad(lambda theta: -loss(network(theta).linear_coefficients())))
    solution = solve_ivp(
        lambda _, theta: np.asarray(velocity(theta)),
        (0.0, 3.0),
        np.asarray(theta),
        method="DOP853",
        rtol=1e-11,
        atol=1e-12,
    )
    end = solution.y[:, -1]
    assert np.linalg.norm(end - np.asarray(theta)) > 0.1
    # The solver's tolerance, times a few hundred steps of amplification.
    np.testing.assert_allclose(
        conserved_quantities(network(end)), conserved_quantities(start), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("length", [4, 5])
def test_convolutional_gaps_are_squared_norms(length):
    """Over all d frequencies they add up to |w_1|^2 - |w_2|^2 (Parseval, unitary DFT)."""
    net = gaussian(lt.ConvolutionalNetwork.zeros(length, (length, length)), jax.random.key(3))
    gaps = np.asarray(conserved_quantities(net))
    multiplicity = np.full(gaps.size, 2.0)
    multiplicity[0] = 1.0
    if length % 2 == 0:
        multiplicity[-1] = 1.0
    norms = [float(w @ w) for w in net.filters]
    np.testing.assert_allclose(multiplicity @ gaps, norms[0] - norms[1], rtol=1e-13)


def test_values():
    np.testing.assert_array_equal(
        conserved_quantities(lt.DiagonalNetwork([[3.0, 1.0], [2.0, -2.0]])), [5.0, -3.0]
    )
    net = lt.FullyConnectedNetwork(([[1.0, 2.0]], [1.0, -1.0]))
    np.testing.assert_array_equal(conserved_quantities(net), [0.0, 3.0, 3.0, 3.0])
    short = lt.ConvolutionalNetwork(([3.0], [1.0, 2.0]))
    np.testing.assert_array_equal(conserved_quantities(short), [4.0])


class Known(eqx.Module):
    """u^2 - v^2 is conserved for beta = u v."""

    u: Array
    v: Array
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v

    def conserved_quantities(self):
        return (self.u**2 - self.v**2)[:, None]


class Unknown(eqx.Module):
    u: Array
    depth = 2

    def linear_coefficients(self):
        return self.u**2


def test_networks_of_a_user():
    known = Known(jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(conserved_quantities(known), [3.0, -8.0])
    assert conserved_quantities(Unknown(jnp.ones(2))).shape == (0,)


@pytest.mark.parametrize("name", ["diagonal-4", "conv-full-3", "fully-connected-3", "tensor-4"])
def test_traceable_and_precision_kept(name):
    like = NETWORKS[name][0]
    keys = jax.random.split(jax.random.key(0), 3)
    batch = jax.jit(jax.vmap(lambda key: conserved_quantities(gaussian(like, key))))(keys)
    expected = [conserved_quantities(gaussian(like, key)) for key in keys]
    np.testing.assert_allclose(batch, jnp.stack(expected), rtol=0, atol=1e-12)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), like)
    assert conserved_quantities(single).dtype == jnp.float32


def _chain(size):
    """Three chained units with the same weight, at different places of the layers."""
    hidden = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2)
    hidden[0][0, 1], hidden[1][1, 0], hidden[2][0] = size, -size, size
    return hidden


@pytest.mark.parametrize(
    "make",
    [
        lambda c: lt.FullyConnectedNetwork(_chain(c)),
        lambda c: lt.FullyConnectedNetwork([[[c]], [[-c]], [c]]),
        lambda c: lt.MatrixFactorizationNetwork(_chain(c)[:2]),
        lambda c: lt.TensorNetwork(np.ones((2, 2, 1)), [np.array([c, 0.0]), np.array([0.0, -c])]),
        lambda c: lt.ConvolutionalNetwork([[c, 0.5 * c], [c, 0.5 * c, 0.0, 0.0]]),
        lambda c: lt.ConvolutionalNetwork([[c, 2 * c, 0.3], [c, 2 * c, 0.3]]),
        lambda c: lt.DiagonalNetwork([[c], [-c], [c]]),
    ],
)
def test_ties_are_zero_in_compiled_code(make):
    """A fused multiply-add rounds one of two equal products, so their difference may not be 0."""
    sizes = np.random.default_rng(0).uniform(0.1, 2.0, 20)
    for compiled in (eqx.filter_jit(conserved_quantities), conserved_quantities):
        for size in sizes:
            np.testing.assert_array_equal(compiled(make(size)), 0.0)
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(make, sizes))
    np.testing.assert_array_equal(eqx.filter_jit(eqx.filter_vmap(conserved_quantities))(many), 0.0)


def test_ties_have_a_derivative():
    """The derivative is that of a difference of squares, although the difference is zero."""
    network = lt.FullyConnectedNetwork([[[0.7]], [0.7]])
    changed = jax.jacfwd(lambda c: conserved_quantities(lt.FullyConnectedNetwork([[[c]], [0.7]])))
    np.testing.assert_array_equal(conserved_quantities(network), 0.0)
    np.testing.assert_allclose(changed(0.7), [1.4], rtol=1e-15)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 12, 13])
def test_squared_moduli_are_those_of_numpys_transform(d):
    rows = np.random.default_rng(d).standard_normal((3, d))
    found = squared_moduli(jnp.asarray(np.vstack([rows, rows[:1]])))
    np.testing.assert_allclose(found[:3], np.abs(np.fft.rfft(rows)) ** 2, rtol=1e-12, atol=1e-13)
    assert jnp.array_equal(found[0], found[3])  # equal rows, to the bit
