"""Data and starts of the experiment on Pesme & Flammarion 2023."""

import numpy as np

from ...networks import DiagonalNetwork
from ...problems import Regression


def gaussian_problem(num_samples: int, dimension: int, seed: int) -> Regression:
    """X with entries of variance 1/num_samples, and standard normal targets."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_samples, dimension)) / np.sqrt(num_samples)
    return Regression(X, rng.normal(size=num_samples))


def vanishing_start(dimension: int, alpha: float) -> DiagonalNetwork:
    """u = alpha, v = 0 in every coordinate."""
    return DiagonalNetwork(np.stack([np.full(dimension, alpha), np.zeros(dimension)]))
