"""What `certify` refuses, and data at the edge of what can be certified."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt

certify: Any = lt.certify  # residuals may be None, though not in these tests


def _separable(seed, n, d):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return lt.Classification(X, np.sign(X @ rng.normal(size=d)))


def _architectures(d):
    """A template, and the norm whose stationary points its flow tends to."""
    return [
        (lt.FullyConnectedNetwork.zeros((d, 3)), lt.L2Norm()),
        (lt.FullyConnectedNetwork.zeros((d, 1, 4)), lt.L2Norm()),
        (lt.DiagonalNetwork.zeros(2, d), lt.L1Norm()),
        (lt.DiagonalNetwork.zeros(3, d), lt.LpNorm(2 / 3)),
        (lt.DifferentialDiagonalNetwork.zeros(2, d), lt.L1Norm()),
        (lt.DifferentialDiagonalNetwork.zeros(3, d), lt.LpNorm(2 / 3)),
        (lt.ConvolutionalNetwork.zeros(d, (d, d)), lt.FourierL1Norm()),
        (lt.ConvolutionalNetwork.zeros(d, (d, d, d)), lt.FourierLpNorm(2 / 3)),
    ]


@pytest.mark.parametrize("gap", [1e-4, 1e-8])
def test_margins_of_nearly_contradictory_samples(gap):
    problem = lt.Classification(np.array([[1.0, gap], [-1.0, gap], [0.5, 1.0]]), np.ones(3))
    for like, norm in _architectures(2)[:3]:
        network = lt.minimal_network(like, lt.max_margin(problem, norm).coefficients)
        found = certify(network, problem)
        assert found.is_stationary
        np.testing.assert_array_equal(found.support, [True, True, False])
        # Multipliers in float64 have an error of eps / gap; the text of the certificate says this.
        assert max(found.parameter_residual, found.predictor_residual) < 1e-14 / gap
        assert ("Nearly contradictory" in str(found)) == (gap == 1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_margins_of_zero_are_refused_whatever_their_rounding(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(4, 6))
    beta = rng.normal(size=6)
    beta -= X[2] * (X[2] @ beta) / (X[2] @ X[2])
    y = np.where(np.arange(4) == 2, 1.0, np.sign(X @ beta))
    with pytest.raises(ValueError, match=r"classify every sample correctly.*at sample 2"):
        certify(beta, lt.Classification(X, y), regularizer=lt.L1Norm())


def test_a_regularizer_of_degree_zero_is_refused():
    def ratio(beta):
        return jnp.sum(jnp.abs(beta)) / jnp.linalg.norm(beta)

    problem = _separable(5, 14, 6)
    z = lt.max_margin(problem, lt.L2Norm()).coefficients
    with pytest.raises(ValueError, match="positively homogeneous"):
        certify(z, problem, regularizer=lt.Regularizer(gradient=jax.grad(ratio)))


def test_bad_arguments():
    problem = _separable(5, 14, 6)
    z = lt.max_margin(problem, lt.L1Norm()).coefficients
    network = lt.minimal_network(lt.DiagonalNetwork.zeros(2, 6), z)
    with pytest.raises(ValueError, match="must be a Classification, got Regression"):
        certify(network, lt.Regression(problem.X, problem.y))  # pyright: ignore
    with pytest.raises(ValueError, match=r"classify every sample correctly.*at sample"):
        certify(-z, problem, regularizer=lt.L1Norm())
    zero = lt.Classification(np.zeros((1, 6)), np.ones(1))
    with pytest.raises(ValueError, match="classify every sample correctly"):
        certify(z, zero, regularizer=lt.L1Norm())
    with pytest.raises(ValueError, match=r"shape of a sample, \(6,\), got \(5,\)"):
        certify(np.ones(5), problem, regularizer=lt.L1Norm())
    with pytest.raises(ValueError, match=r"shape of a sample, \(6,\), got \(6, 2\)"):
        certify(lt.FullyConnectedNetwork([np.ones((6, 2)), np.ones((2, 2))]), problem)
    with pytest.raises(ValueError, match="regularizer must be given"):
        certify(z, problem)
    with pytest.raises(ValueError, match="norm object such as"):
        certify(z, problem, regularizer="l1")  # pyright: ignore
    with pytest.raises(ValueError, match="exactly one of gradient and prox"):
        lt.Regularizer()
    with pytest.raises(ValueError, match="check its sign"):
        certify(z, problem, regularizer=lt.Regularizer(gradient=lambda b: -b))
    with pytest.raises(ValueError, match="finite values of shape"):
        certify(z, problem, regularizer=lt.Regularizer(gradient=lambda b: b[:2]))
    with pytest.raises(ValueError, match="not all zero"):
        certify(network.scaled(0.0), problem)
    with pytest.raises(ValueError, match="nonzero coefficients"):
        certify(np.zeros(6), problem, regularizer=lt.L1Norm())
    with pytest.raises(ValueError, match="tolerance must lie strictly"):
        certify(network, problem, tolerance=0.0)
    with pytest.raises(ValueError, match="at least 16 roundings"):
        certify(network, problem, tolerance=1e-16)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda w: certify(lt.DiagonalNetwork(w), problem).support)(network.weights)
