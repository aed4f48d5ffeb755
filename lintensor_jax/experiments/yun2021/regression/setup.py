"""Networks, data and initial conditions of the experiment on regression."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ....networks import (
    ConvolutionalNetwork,
    DiagonalNetwork,
    MatrixFactorizationNetwork,
    sensing_decomposition,
)
from ....problems import MatrixSensing, Regression
from ....theory.regression.yun_theorem_5 import (
    InterpolationLimit,
    commuting_sensing_limit,
    diagonal_limit,
    even_convolution_limit,
    even_decomposition,
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """An architecture with data that Theorem 5 covers, as functions of the depth and of alpha.

    - `network(depth, alpha)`: the initial network.
    - `limit(depth, alpha)`: Theorem 5.
    - `equations(depth)`: X S^T, shape (n, m), and eta, shape (m,).
    - `coefficients(depth, rho)`: the network's linear coefficients beta, from rho.
    """

    problem: Any
    network: Callable[[int, float], Any]
    limit: Callable[[int, float], InterpolationLimit]
    equations: Callable[[int], tuple[Any, Any]]
    coefficients: Callable[[int, Any], np.ndarray]


def interpolation_setups(dimension: int, num_samples: int, seed: int) -> dict[str, Setup]:
    """The three corollaries of Theorem 5, all with `dimension` free coordinates rho."""
    return {
        "diagonal": _diagonal(dimension, num_samples, np.random.default_rng([seed, 1])),
        "convolutional": _convolutional(dimension, num_samples, np.random.default_rng([seed, 2])),
        "commuting sensors": _sensing(dimension, num_samples, np.random.default_rng([seed, 3])),
    }


def _diagonal(d, n, rng):
    problem = Regression(rng.standard_normal((n, d)), rng.standard_normal(n))
    eta = jnp.asarray(_eta(rng, d))

    def network(depth, alpha):
        return DiagonalNetwork(_layers(alpha * eta, depth))

    return Setup(
        problem,
        network,
        limit=lambda depth, alpha: diagonal_limit(network(depth, alpha), problem),
        equations=lambda depth: (problem.X, eta),
        coefficients=lambda depth, rho: np.asarray(rho),
    )


def _convolutional(m, n, rng):
    length = 2 * (m - 1)

    def even(spectrum):
        # Scaled as the unitary DFT; the transform of a real spectrum is an even vector.
        return np.fft.irfft(spectrum, length) * np.sqrt(length)

    problem = Regression(even(rng.standard_normal((n, m))), rng.standard_normal(n))
    direction = jnp.asarray(even(_eta(rng, m)))

    def network(depth, alpha):
        return ConvolutionalNetwork(_layers(alpha * direction, depth))

    def equations(depth):
        S, eta = even_decomposition(direction, depth)
        return problem.X @ S.T, eta

    return Setup(
        problem,
        network,
        limit=lambda depth, alpha: even_convolution_limit(network(depth, alpha), problem),
        equations=equations,
        coefficients=lambda depth, rho: np.asarray(even_decomposition(direction, depth)[0].T @ rho),
    )


def _sensing(d, n, rng):
    # In the eigenbasis of the sensors. Off-diagonal entries stay exactly 0 there (see `rotated`).
    eigenvalues = rng.standard_normal((n, d))
    problem = MatrixSensing(eigenvalues[:, :, None] * np.eye(d), rng.standard_normal(n))
    decomposition = sensing_decomposition(problem)

    def limit(depth, alpha):
        return commuting_sensing_limit(decomposition.eigenvalues, problem.y, depth, alpha)

    return Setup(
        problem,
        lambda depth, alpha: MatrixFactorizationNetwork(_layers(alpha * jnp.eye(d), depth)),
        limit,
        equations=lambda depth: (decomposition.eigenvalues, jnp.ones(d)),
        coefficients=lambda depth, rho: np.asarray(decomposition.coefficients(jnp.asarray(rho))),
    )


def rotated(problem: MatrixSensing, seed: int) -> tuple[MatrixSensing, np.ndarray]:
    """The same sensors in a random orthonormal basis, and that basis, shape (d, d).

    In exact arithmetic the flow is the same, rotated. In rounded arithmetic the sensors commute
    only up to 1e-16. For L >= 3 and small alpha the flow amplifies this error: a learned direction
    i turns towards another direction j at a rate of order 1, while j itself grows at a rate of
    order alpha^(L-2).
    """
    d = problem.A.shape[1]
    basis = np.linalg.qr(np.random.default_rng([seed, 4]).standard_normal((d, d)))[0]
    sensors = basis @ np.asarray(problem.A) @ basis.T
    return MatrixSensing((sensors + np.swapaxes(sensors, 1, 2)) / 2, problem.y), basis


def _eta(rng, size):
    return rng.uniform(0.7, 1.4, size) * rng.choice([-1.0, 1.0], size)


def _layers(first, depth):
    return jnp.stack([first] * (depth - 1) + [jnp.zeros_like(first)])


def theorem_7_directions(depth: int, dimension: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random W_1, ..., W_{L-1}, w_L that satisfy the conditions of Theorem 7, with lambda > 0.

    The singular values of each W_l lie in an interval; the intervals are disjoint and decrease from
    layer to layer. |w_L| is smaller than all of them.
    """

    def orthogonal():
        return np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]

    # Intervals [1, 1.15], [1.2, 1.35], ... from the last matrix to the first.
    lows = [1 + 0.2 * (depth - 2 - layer) for layer in range(depth - 1)]
    hidden = [orthogonal() * rng.uniform(low, low + 0.15, dimension) @ orthogonal() for low in lows]
    last = rng.standard_normal(dimension)
    return [*hidden, 0.5 * last / np.linalg.norm(last)]


def theorem_7_slack(directions: list[np.ndarray]) -> float:
    """The smallest eigenvalue of the differences that must be >= 0 or > 0 in Theorem 7.

    Source: Yun et al. 2021, Theorem 7: W_l^T W_l - W_{l+1} W_{l+1}^T for l <= L - 2, and
    W_{L-1}^T W_{L-1} - w_L w_L^T.
    """
    nexts = [w.reshape(len(w), -1) for w in directions[1:]]
    differences = [a.T @ a - b @ b.T for a, b in zip(directions, nexts, strict=False)]
    return float(min(np.linalg.eigvalsh(difference).min() for difference in differences))
