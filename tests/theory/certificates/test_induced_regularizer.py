"""Induced regularisers against an independent minimisation of |Theta|^2 (SLSQP).

Tolerances: closed forms are good to a few roundings (1e-12); SLSQP meets constraints to 1e-9 or
so and ends within 1e-5 of a minimum of order 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import lintensor_jax as lt
from lintensor_jax.networks import split

jax.config.update("jax_enable_x64", True)

VECTORS = [
    lt.FullyConnectedNetwork.zeros((4, 3)),
    lt.FullyConnectedNetwork.zeros((4, 1, 2)),
    lt.DiagonalNetwork.zeros(2, 4),
    lt.DiagonalNetwork.zeros(3, 4),
    lt.ConvolutionalNetwork.zeros(4, (4, 4)),
    lt.ConvolutionalNetwork.zeros(5, (5, 5, 5)),
    lt.DifferentialDiagonalNetwork.zeros(2, 3),
    lt.DifferentialDiagonalNetwork.zeros(3, 3),
]
MATRICES = [
    lt.FullyConnectedNetwork.zeros((3, 2), outputs=2),
    lt.FullyConnectedNetwork.zeros((3, 2, 3), outputs=2),
    lt.MatrixFactorizationNetwork.zeros(3, 2),
]


def _named(network):
    return f"{type(network).__name__}-{network.depth}"


def _beta(like, seed=0):
    """Random coefficients."""
    return np.random.default_rng(seed).normal(size=like.linear_coefficients().shape)


def _least_squared_norm(like, beta, starts):
    """min |Theta|^2 subject to beta(Theta) = beta: the best of several SLSQP runs."""
    flat, rebuild = ravel_pytree(split(like)[0])

    @jax.jit
    def defect(theta):
        return (rebuild(theta).linear_coefficients() - beta).ravel()

    slope = jax.jit(jax.jacobian(defect))
    rng = np.random.default_rng(1)
    values = []
    for _ in range(starts):
        found = scipy.optimize.minimize(
            lambda theta: theta @ theta,
            rng.normal(size=flat.size),
            jac=lambda theta: 2 * theta,
            constraints={"type": "eq", "fun": defect, "jac": slope},
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 200},
        )
        if np.max(np.abs(defect(found.x))) < 1e-7:
            values.append(found.fun)
    return np.array(values)


@pytest.mark.slow_beyond(4)
@pytest.mark.parametrize("like", VECTORS + MATRICES, ids=_named)
def test_attained_and_never_undercut(like):
    beta = _beta(like)
    value = float(lt.induced_regularizer(like, beta))
    network = lt.minimal_network(like, beta)
    np.testing.assert_allclose(network.linear_coefficients(), beta, rtol=0, atol=1e-13)
    theta, _ = ravel_pytree(split(network)[0])
    np.testing.assert_allclose(theta @ theta, value, rtol=1e-13)
    assert [w.shape for w in network.factors] == [w.shape for w in like.factors]
    values = _least_squared_norm(like, beta, starts=4)
    assert values.size >= 2
    assert (values > value * (1 - 1e-5)).all()
    np.testing.assert_allclose(values.min(), value, rtol=1e-5)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("d", [5, 6])
def test_lemma_7_in_both_conventions(depth, d):
    """Erratum: Lemma 7 prints L |DFT beta|_{2/L}^{2/L}, which neither convention gives."""
    beta = np.random.default_rng(d).normal(size=d)
    like = lt.ConvolutionalNetwork.zeros(d, (d,) * depth)
    value = lt.induced_regularizer(like, beta)
    unnormalised = np.sum(np.abs(np.fft.fft(beta)) ** (2 / depth))
    unitary = np.sum(np.abs(np.fft.fft(beta, norm="ortho")) ** (2 / depth))
    np.testing.assert_allclose(value, depth / d * unnormalised, rtol=1e-13)
    np.testing.assert_allclose(value, depth * d ** (1 / depth - 1) * unitary, rtol=1e-13)
    filters = lt.minimal_network(like, beta).filters
    attained = sum(float(w @ w) for w in filters)
    np.testing.assert_allclose(attained, value, rtol=1e-13)
    # Lemma 3 holds with the unnormalised DFT only.
    np.testing.assert_allclose(
        np.prod(np.fft.fft(filters), axis=0), np.fft.fft(beta), rtol=0, atol=1e-13
    )
    for printed in (depth * unnormalised, depth * unitary):
        assert printed > 1.5 * attained


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_lemmas_5_and_6(depth):
    beta = np.random.default_rng(depth).normal(size=6)
    connected = lt.FullyConnectedNetwork.zeros((6, *(3,) * (depth - 1)))
    diagonal = lt.DiagonalNetwork.zeros(depth, 6)
    np.testing.assert_allclose(
        lt.induced_regularizer(connected, beta), depth * np.linalg.norm(beta) ** (2 / depth)
    )
    np.testing.assert_allclose(
        lt.induced_regularizer(diagonal, beta), depth * np.sum(np.abs(beta) ** (2 / depth))
    )


@pytest.mark.parametrize("like", VECTORS, ids=_named)
def test_homogeneous_of_degree_two_over_depth(like):
    beta = _beta(like)
    degree = 2 / like.depth
    for scale in (1e-200, 1e200):
        np.testing.assert_allclose(
            lt.induced_regularizer(like, scale * beta),
            scale**degree * lt.induced_regularizer(like, beta),
            rtol=1e-12,
        )
        coefficients = lt.minimal_network(like, scale * beta).linear_coefficients()
        np.testing.assert_allclose(coefficients, scale * beta, rtol=1e-11)


def test_sparse_coefficients_get_exact_zeros():
    beta = np.array([0.0, -2.0, 0.0])
    diagonal = lt.minimal_network(lt.DiagonalNetwork.zeros(3, 3), beta)
    assert (np.asarray(diagonal.weights)[:, [0, 2]] == 0).all()
    wave = np.cos(2 * np.pi * np.arange(6) / 6)
    filters = lt.minimal_network(lt.ConvolutionalNetwork.zeros(6, (6,) * 3), wave).filters
    # Rounding of the transform is set to zero: its cube root would be 1e-5.
    spectra = np.abs(np.fft.fft(filters))
    assert np.max(spectra[:, [0, 2, 3, 4]]) < 1e-14
    for like in VECTORS:
        zero = jnp.zeros(like.linear_coefficients().shape)
        assert lt.induced_regularizer(like, zero) == 0
        leaves = jax.tree.leaves(lt.minimal_network(like, zero))
        assert all((np.asarray(leaf) == 0).all() for leaf in leaves)


def test_bad_arguments():
    narrow = lt.FullyConnectedNetwork.zeros((3, 2), outputs=3)
    short = lt.ConvolutionalNetwork.zeros(4, (2, 4))
    for function in (lt.induced_regularizer, lt.minimal_network):
        with pytest.raises(ValueError, match="short filters; no closed form"):
            function(short, np.ones(4))
        with pytest.raises(ValueError, match=r"must have the shape \(4,\)"):
            function(VECTORS[0], np.ones(3))
        with pytest.raises(ValueError, match="must be finite"):
            function(VECTORS[0], np.full(4, np.nan))
        with pytest.raises(ValueError, match=r"rank of at most 2.*got 3; widen"):
            function(narrow, np.eye(3))
