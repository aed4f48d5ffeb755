"""Effective rank, sparsity and the tangent kernel, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt

RNG = np.random.default_rng(0)


def test_effective_rank():
    left, right = np.linalg.qr(RNG.standard_normal((5, 3)))[0], np.linalg.qr(np.eye(4)[:, :3])[0]
    assert float(lt.effective_rank(2 * left @ right.T)) == pytest.approx(3, rel=1e-12)
    assert float(lt.effective_rank(np.outer(np.ones(3), np.arange(4.0)))) == pytest.approx(1)
    assert float(lt.effective_rank(np.zeros((2, 3)))) == 0.0
    assert float(lt.effective_rank(np.arange(3.0))) == pytest.approx(1)
    p = np.array([3.0, 1.0]) / 4
    expected = np.exp(-np.sum(p * np.log(p)))
    network = lt.FullyConnectedNetwork((np.diag([3.0, 1.0]), 1e-200 * np.eye(2)))
    assert float(jax.jit(lt.effective_rank)(network)) == pytest.approx(expected, rel=1e-12)


def test_num_nonzero():
    beta = np.array([1.0, -2.0, 1e-3, 2.1e-3, 0.0])
    assert int(lt.num_nonzero(beta)) == 3
    assert int(lt.num_nonzero(beta, 1e-4)) == 4
    assert int(lt.num_nonzero(lt.DiagonalNetwork(np.stack([beta, beta])))) == 2
    assert int(lt.num_nonzero(np.zeros((2, 2)))) == 0
    with pytest.raises(ValueError, match=r"tolerance must lie in \[0, 1\), got 1.0"):
        lt.num_nonzero(beta, 1.0)
    with pytest.raises(ValueError, match="effective_rank: network_or_coefficients must be"):
        lt.effective_rank(1.0)


def test_tangent_kernel_of_two_layers():
    """beta = u v: J = X [diag(v), diag(u)], K = X diag(u^2 + v^2) X^T."""
    X, layers = RNG.standard_normal((3, 4)), jnp.asarray(RNG.standard_normal((2, 4)))
    network, problem = lt.DiagonalNetwork(layers), lt.Regression(X, np.ones(3))
    kernel = lt.tangent_kernel(network, problem)
    expected = X * np.sum(np.asarray(layers) ** 2, 0) @ X.T
    np.testing.assert_allclose(kernel, expected, rtol=1e-12)
    outputs = lt.FullyConnectedNetwork((RNG.standard_normal((4, 2)), RNG.standard_normal((2, 2))))
    assert lt.tangent_kernel(outputs, lt.Regression(X, np.ones((3, 2)))).shape == (6, 6)
    y = RNG.standard_normal(3)
    cosine = y @ expected @ y / (np.linalg.norm(expected) * (y @ y))
    assert float(lt.kernel_alignment(kernel, np.outer(y, y))) == pytest.approx(cosine, rel=1e-12)  # pyright: ignore[reportArgumentType]
    assert float(lt.kernel_alignment(1e-200 * kernel, kernel)) == pytest.approx(1, rel=1e-12)
    assert float(lt.kernel_alignment(0 * kernel, kernel)) == 0.0
