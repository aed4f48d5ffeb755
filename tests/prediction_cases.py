"""Networks and problems that `predict` covers, and their data: shared by its tests."""

import jax
import jax.numpy as jnp
import numpy as np

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.initialization import matching as matching_jax

# A seed for which the l1 max-margin problems below are far from having a second optimum.
RNG = np.random.default_rng(6)
# All measurements have the shape (n, m) = (2, 4), so that each limit is compiled once. Even vectors
# of length 6 have 4 free entries.
X = RNG.standard_normal((2, 4))
Y = np.array([1.0, -0.5])
REGRESSION = lt.Regression(X, Y)
ETA = np.array([0.5, 1.1, 0.8, 0.6])
ZERO = np.zeros(4)
FREE = RNG.standard_normal((2, 4))
EVEN = lt.Regression(FREE[:, [0, 1, 2, 3, 2, 1]], Y)
EVEN_W = np.array([1.5, 0.3, -0.2, 0.4, -0.2, 0.3])
BASES = tuple(np.linalg.qr(RNG.standard_normal((5, 4)))[0] for _ in range(3))
S = RNG.standard_normal((4, 4)) + 2 * np.eye(4)
BASIS = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
SENSORS = np.stack([BASIS @ np.diag(x) @ BASIS.T for x in X])
EYE = np.eye(4)


def matching(like, coefficients):
    return matching_jax(like, jnp.asarray(coefficients))


def sensing(*weights):
    return lt.MatrixFactorizationNetwork(weights)


def layers(depth):
    """(bases, factors) with v_l = U_l eta for l < L and v_L = 0."""
    bases = BASES[:depth]
    return bases, (*(u @ ETA for u in bases[:-1]), np.zeros(5))


def orthogonal(depth):
    return lt.OrthogonalNetwork(S, *layers(depth))


def diagonal(*rows):
    return lt.DiagonalNetwork(np.stack(rows))


COVERED = {
    "Theorem 5 (Corollary 5)": (diagonal(ETA, -ETA, ZERO), REGRESSION),
    "Theorem 5 (Corollary 6)": (lt.ConvolutionalNetwork((EVEN_W, EVEN_W, 0 * EVEN_W)), EVEN),
    "Theorem 5": (orthogonal(3), REGRESSION),
    "Theorem 5 (Corollary 7)": (
        sensing(0.7 * EYE, 0.7 * EYE, 0 * EYE),
        lt.MatrixSensing(SENSORS, Y),
    ),
    "two-layer mirror flow": (diagonal(ETA, 1.5 * ETA), REGRESSION),
    "Theorems 1 and 3 of Woodworth": (lt.DifferentialDiagonalNetwork(ETA, ETA, 2), REGRESSION),
    "Theorem 6": (
        matching(lt.ConvolutionalNetwork.zeros(4, (2, 4)), ETA),
        lt.Regression(X[:1], Y[:1]),
    ),
    "Proposition 10": (
        lt.FullyConnectedNetwork((0.3 * EYE, np.zeros((4, 2)))),
        lt.Regression(X, np.stack([Y, 2 - Y], axis=1)),
    ),
}


def limit_of(network, problem):
    limit = lt.predict(network, problem).limit
    assert limit is not None
    return np.asarray(limit)


GENERAL = RNG.standard_normal((4, 4, 4))


def nonorthogonal():
    return gaussian(lt.TensorNetwork(GENERAL, (ZERO, ZERO)), jax.random.key(0))
