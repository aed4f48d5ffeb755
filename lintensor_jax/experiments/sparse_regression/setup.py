"""Sparse regression with two diagonal layers: what the papers on their training have in common."""

from typing import Any

import jax
import numpy as np

from ...networks import DiagonalNetwork
from ...problems import Regression


def sparse_problem(
    num_samples: int, dimension: int, support: int, seed: int
) -> tuple[Regression, np.ndarray]:
    """Noiseless Gaussian measurements of a vector with `support` entries +-1, and that vector.

    X has independent entries of variance 1/num_samples, so that its columns have lengths near 1.
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((num_samples, dimension)) / np.sqrt(num_samples)
    truth = np.zeros(dimension)
    places = rng.choice(dimension, support, replace=False)
    truth[places] = rng.choice([-1.0, 1.0], support)
    return Regression(X, X @ truth), truth


def small_start(dimension: int, scale: float) -> DiagonalNetwork:
    """A network with beta = u . v = 0 and mu = |u^2 - v^2|/2 = scale^2 in every coordinate."""
    return DiagonalNetwork(np.stack([np.full(dimension, np.sqrt(2) * scale), np.zeros(dimension)]))


def log_scale(network: DiagonalNetwork) -> jax.Array:
    """log mu, mu = |u^2 - v^2|/2, shape (d,)."""
    layers: Any = network.two_layers()
    return layers.log_scale
