"""Theorem 1 of Yun et al. 2021: eq. 8 against dense tensors, along flows and at their limits."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_flows import convolution_tensor, diagonal_tensor, fully_connected_tensor

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.theory import (
    remaining_variation,
    residual_direction,
    singular_vector_residual,
    singular_vectors,
)

D = 4
RNG = np.random.default_rng(8)
TENSOR = RNG.standard_normal((2, 3, 4, D))
S = RNG.standard_normal((5, D))
BASES = tuple(np.linalg.qr(RNG.standard_normal((k, 5)))[0] for k in (5, 6, 5))

# Each network's template with its data tensor, (k_1, ..., k_L, d), written down entry by entry.
NETWORKS = {
    "diagonal, L = 2": (lt.DiagonalNetwork.zeros(2, D), diagonal_tensor(2, D)),
    "diagonal, L = 4": (lt.DiagonalNetwork.zeros(4, D), diagonal_tensor(4, D)),
    "convolution": (lt.ConvolutionalNetwork.zeros(D, (D, D)), convolution_tensor(D, (D, D))),
    "short filters": (
        lt.ConvolutionalNetwork.zeros(D, (2, 3, D)),
        convolution_tensor(D, (2, 3, D)),
    ),
    "fully-connected": (
        lt.FullyConnectedNetwork.zeros((D, 3, 2)),
        fully_connected_tensor((D, 3, 2)),
    ),
    "tensor": (
        lt.TensorNetwork(TENSOR, tuple(np.ones(k) for k in TENSOR.shape[:-1])),
        TENSOR,
    ),
    "orthogonal": (
        lt.OrthogonalNetwork.zeros(S, BASES),
        np.einsum("aj,bj,cj,jd->abcd", *BASES, S),
    ),
}


def factors_of(network):
    if isinstance(network, lt.FullyConnectedNetwork):  # the reference has row-major order (C)
        return [np.ravel(w) for w in network.weights]
    return [np.asarray(v) for v in network.factors]


def dense_residuals(tensor, factors, u):
    """Eq. 8 with the data tensor M(-u) formed."""
    matrix = np.tensordot(tensor, -u / np.linalg.norm(u), axes=1)
    units = [v / np.linalg.norm(v) for v in factors]
    residuals, values = [], []
    for layer, v in enumerate(units):
        g = matrix
        for other in reversed(range(len(units))):
            if other != layer:
                g = np.tensordot(units[other], g, axes=(0, other))
        values.append(g @ v)
        residuals.append(np.linalg.norm(g - values[-1] * v) / np.linalg.norm(g))
    return np.array(residuals), values


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_the_dense_tensor(name):
    like, tensor = NETWORKS[name]
    # The result must not depend on sizes, also if squares of parameters over- or underflow.
    for seed, scale in enumerate((1.0, 1e150, 1e-150)):
        network = gaussian(like, jax.random.key(seed), 1.0)
        u = np.random.default_rng(seed).standard_normal(D)
        expected, values = dense_residuals(tensor, factors_of(network), u)
        found = singular_vectors(network.scaled(scale), jnp.asarray(u * scale))
        # The errors are rounding only.
        np.testing.assert_allclose(found.residuals, expected, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(found.value, values, rtol=1e-10, atol=1e-14)
        assert float(found.residual) == pytest.approx(expected.max())


def test_singular_vectors_of_a_matrix():
    network, _ = NETWORKS["tensor"]
    matrix = np.tensordot(TENSOR[0], np.array([1.0, -2.0, 0.5, 1.5]), axes=1)
    tensor = jnp.asarray(TENSOR[0])
    left, sizes, right = np.linalg.svd(matrix)
    for k in range(3):
        network = lt.TensorNetwork(tensor, (3 * left[:, k], 0.2 * right[k]))
        u = -np.array([1.0, -2.0, 0.5, 1.5])
        found = singular_vectors(network, jnp.asarray(u))
        assert float(found.residual) < 1e-14
        assert float(found.value) == pytest.approx(sizes[k] / np.linalg.norm(u))
    # If one vector of a pair is turned by an angle, its residual is the sine, not its square.
    mixed = np.cos(1e-9) * left[:, 0] + np.sin(1e-9) * left[:, 1]
    turned = lt.TensorNetwork(tensor, (jnp.asarray(mixed), jnp.asarray(right[0])))
    assert float(singular_vectors(turned, jnp.asarray(u)).residuals[0]) > 1e-10


def separable(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, D))
    return lt.Classification(X, np.sign(X @ rng.standard_normal(D)))


@pytest.mark.slow
def test_layers_become_singular_vectors():
    like, tensor = NETWORKS["tensor"]
    problem = separable(3, 1)
    flow = lt.gradient_flow(
        gaussian(like, jax.random.key(3), 0.5),
        problem,
        # Up to this margin an explicit method is enough; an implicit one takes long to compile.
        solver=diffrax.Tsit5(),
        stop=lt.StopAtMargin(1e4),
        rtol=1e-7,
        saveat=[2.0, 4.0],
        observe=lambda network: network.factors,
        throw=False,
    )
    directions = residual_direction(problem, flow.coefficients)
    residuals = [
        dense_residuals(tensor, [np.asarray(v[t]) for v in flow.observed], np.asarray(u))[0].max()
        for t, u in enumerate(directions)
    ]
    # Three layers forget their starts as margin^(-1/3): a factor of 20 at margin 1e4.
    assert residuals[-1] < 0.25
    assert np.all(np.diff(residuals) < 0)
    limit = lt.limit_direction(flow, problem)
    assert limit.succeeded
    u = -np.asarray(limit.certificate.multipliers) @ np.asarray(problem.signed_data)
    found = singular_vectors(limit.network, jnp.asarray(u))
    # limit_direction certifies KKT points to 1e-10; this is the same statement.
    assert float(found.residual) < 1e-10
    assert float(found.value) > 0


def test_residual_direction_does_not_underflow():
    problem = separable(3, 1)
    w = np.asarray(lt.max_margin(problem, lt.L2Norm()).coefficients)
    beta = np.stack([scale * w for scale in (0.1, 1.0, 1e3, 1e6)])
    found = np.asarray(residual_direction(problem, jnp.asarray(beta)))
    for row, b in zip(found[:2], beta[:2], strict=True):
        r = np.asarray(problem.residual(jnp.asarray(b)))
        plain = np.asarray(problem.X).T @ r
        np.testing.assert_allclose(row, plain / np.linalg.norm(plain), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(residual_direction(problem, jnp.asarray(beta[2])), found[2])


def test_remaining_variation_is_cauchys_criterion():
    t = np.arange(40)
    angle = 1.0 / (1 + t)
    spiral = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = np.asarray(remaining_variation(jnp.asarray(spiral)))
    for k in (0, 7, 38, 39):
        later = spiral[k:]
        pairs = np.linalg.norm(later[:, None] - later[None, :], axis=2)
        assert found[k] == pytest.approx(pairs.max(), abs=1e-15)
    # On a circle the last step is small, but the variation is not.
    circle = np.stack([np.cos(t / 5), np.sin(t / 5)], axis=1)
    assert float(remaining_variation(jnp.asarray(circle))[5]) == pytest.approx(2, abs=0.01)


class OneLayer(eqx.Module):
    u: jax.Array
    depth = 1

    def linear_coefficients(self):
        return self.u


def test_refusals():
    network = gaussian(NETWORKS["tensor"][0], jax.random.key(0), 1.0)
    outputs = lt.FullyConnectedNetwork.zeros((D, 2), outputs=2)
    regression: Any = lt.Regression(np.ones((1, D)), np.ones(1))
    for call, words in (
        (lambda: singular_vectors(OneLayer(jnp.ones(D)), jnp.ones(D)), ["factors", "OneLayer"]),
        (lambda: singular_vector_residual(network, jnp.ones(D + 1)), ["u must", "(5,)"]),
        (lambda: singular_vectors(outputs, jnp.ones((D, 2))), ["one output"]),
        (lambda: residual_direction(regression, jnp.ones(D)), ["Classification", "Regression"]),
        (lambda: residual_direction(separable(2, 0), jnp.ones((2, 3))), ["(..., d)", "(2, 3)"]),
        (lambda: remaining_variation(jnp.ones(3)), ["(T, d)", "(3,)"]),
    ):
        with pytest.raises(ValueError, match="must") as caught:
            call()
        assert all(word in str(caught.value) for word in words), caught.value
