"""Architectures, data and initial networks of the experiment on classification."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ....initialization import matching
from ....networks import ConvolutionalNetwork, DiagonalNetwork, FullyConnectedNetwork
from ....problems import Classification
from ....theory.least_norm.max_margin import max_margin
from ....theory.least_norm.norms import FourierL1Norm, L1Norm, L2Norm

# The architectures of section 4, by dimension d and depth L. For the last one no regulariser is
# known: Theorem 1 says only that its layers tend to singular vectors.
ARCHITECTURES = {
    "fully-connected": lambda d, L: FullyConnectedNetwork.zeros((d,) * L),
    "diagonal": lambda d, L: DiagonalNetwork.zeros(L, d),
    "convolutional": lambda d, L: ConvolutionalNetwork.zeros(d, (d,) * L),
    "filters of 2": lambda d, L: ConvolutionalNetwork.zeros(d, (2,) * (L - 1) + (d,)),
}
NORMS = {"fully-connected": L2Norm, "diagonal": L1Norm, "convolutional": FourierL1Norm}
# The gap between the layers of the "ahead" start. It is large compared with beta, because then the
# bound of Theorem 2 is nearly sharp.
_AHEAD_GAP = 100.0


def separable_data(n: int, d: int, seed: int) -> Classification:
    """n Gaussian samples in d dimensions, with the labels of a random separator."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return Classification(X, np.sign(X @ rng.standard_normal(d)))


def problem_of(task) -> Classification:
    """The toy data of a `SideBySideTask`."""
    return Classification(task.X, task.y)


def starts(like: Any, problem: Classification, alphas, ahead_loss: float, seed: int) -> dict:
    """The initial networks by name: one for each alpha, and "ahead".

    All satisfy the theorems' conditions (`matching`). "alpha = ..." is a random direction, scaled.
    "ahead" classifies all samples correctly: its loss is at most `ahead_loss`, because every margin
    is at least log(n / ahead_loss).
    """
    d = like.linear_coefficients().shape[0]
    direction = np.random.default_rng(seed).standard_normal(d) / np.sqrt(d)
    drawn = matching(like, jnp.asarray(direction))
    level = np.log(problem.y.shape[0] / ahead_loss)
    separator = level * max_margin(problem, L2Norm()).coefficients
    networks: dict = {f"alpha = {alpha:g}": drawn.scaled(alpha) for alpha in alphas}
    networks["ahead"] = matching(like, separator, gap=_AHEAD_GAP)
    return networks
