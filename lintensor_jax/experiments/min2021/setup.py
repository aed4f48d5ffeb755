"""Data, initial networks and the exact reduction of the experiment on Min et al. 2021."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...initialization import gaussian
from ...networks import FullyConnectedNetwork
from ...problems import Regression


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A two-layer flow in the r data coordinates and k = min(h, r + m) units that move.

    Let X = W S Phi_1^T, U_1 = Phi_1^T U, and let the rows be [U_1; V] = [A; B] Q^T with
    orthonormal Q (h, k). Every velocity is a combination of these rows. Therefore Q is constant,
    and [A; B] follows the flow of a network of width k on the data S and W^T Y, in the same time.
    Phi_2 U_2 is constant. The state has (r + m) k numbers instead of (d + m) h. Drawing U at the
    start still takes d h numbers.

    - `network`: A and B^T.
    - `problem`: the inputs S, shape (r, r), and the targets W^T Y.
    - `span` (d, r): Phi_1.
    - `constant` (d, k): Phi_2 U_2 Q.
    """

    network: FullyConnectedNetwork
    problem: Regression
    span: np.ndarray
    constant: np.ndarray

    @staticmethod
    def of(network: FullyConnectedNetwork, problem: Regression) -> "Reduction":
        """The reduction of a network of two layers."""
        u, v = (np.asarray(w) for w in network.weights)
        left, sizes, right = np.linalg.svd(np.asarray(problem.X), full_matrices=False)
        rank = int(np.sum(sizes > max(problem.X.shape) * np.finfo(sizes.dtype).eps * sizes[0]))
        span = right[:rank].T
        inside = span.T @ u
        units, rows = np.linalg.qr(np.concatenate([inside, v.reshape(len(v), -1).T]).T)
        last = rows[:, rank:].reshape(rows.shape[0], *v.shape[1:])
        return Reduction(
            network=FullyConnectedNetwork([rows[:, :rank].T, last]),
            problem=Regression(np.diag(sizes[:rank]), left[:, :rank].T @ np.asarray(problem.y)),
            span=span,
            constant=(u - span @ inside) @ units,
        )

    @property
    def narrow(self) -> FullyConnectedNetwork:
        """The whole network at the start with width k instead of h: the same U V^T and U U^T."""
        first, last = self.network.weights
        return FullyConnectedNetwork([self.span @ np.asarray(first) + self.constant, last])

    def coefficients(self, network: Any) -> np.ndarray:
        """U V^T of the whole network, shape (d,) or (d, m), from the reduced `network`."""
        first, last = (np.asarray(w) for w in network.weights)
        return (self.span @ first + self.constant) @ last


def factorization(inputs: int, outputs: int, width: int, seed: int):
    """1/2 |Y - U V^T / sqrt(m h)|_F^2 with standard normal U, V: a network and its problem.

    Y has entries of variance 0.1 and is the same for every width; X = I / sqrt(m h).

    Source: Min et al. 2021, section 5.1, A.1 and Remark 13.
    """
    rng = np.random.default_rng([seed, outputs])
    y = np.sqrt(0.1) * rng.standard_normal((inputs, outputs))
    key = jax.random.fold_in(jax.random.key(seed), width)
    network = gaussian(FullyConnectedNetwork.zeros((inputs, width), outputs), key)
    return network, Regression(np.eye(inputs) / np.sqrt(outputs * width), y)


def whitened_data(dimension: int, num_samples: int, seed: int) -> Regression:
    """X with all singular values 1 and y = X theta + noise, theta ~ N(0, I / D), noise 0.01.

    Source: Min et al. 2021, A.2.
    """
    rng = np.random.default_rng([seed, 1])
    X = np.linalg.qr(rng.standard_normal((dimension, num_samples)))[0].T
    return Regression(X, _targets(X, rng))


def gaussian_data(dimension: int, num_samples: int, seed: int) -> Regression:
    """X with entries of variance 1 / D and targets as in `whitened_data`.

    Source: Min et al. 2021, A.3.
    """
    rng = np.random.default_rng([seed, 2])
    X = rng.standard_normal((num_samples, dimension)) / np.sqrt(dimension)
    return Regression(X, _targets(X, rng))


def _targets(X, rng):
    theta = rng.standard_normal(X.shape[1]) / np.sqrt(X.shape[1])
    return X @ theta + 0.01 * rng.standard_normal(X.shape[0])


def measured_rate(network: FullyConnectedNetwork, problem: Regression):
    """-dL/dt along the flow, the squared norm of the gradient, without code of the theory."""
    gradient = jax.grad(lambda weights: problem.loss(weights[0] @ weights[1]))(network.weights)
    return sum(jnp.sum(g**2) for g in gradient)
