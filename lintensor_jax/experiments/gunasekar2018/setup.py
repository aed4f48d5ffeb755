"""Data, architectures and norms of the experiment on Gunasekar et al. 2018."""

import numpy as np

from ...networks import ConvolutionalNetwork, DiagonalNetwork, FullyConnectedNetwork
from ...problems import Classification
from ...theory.least_norm.norms import FourierL1Norm, FourierLpNorm, L1Norm, L2Norm, LpNorm

# The width of fully connected networks. It changes neither their regulariser nor their limit.
WIDTH = 3
ARCHITECTURES = {
    "fully-connected": lambda d, L: FullyConnectedNetwork.zeros((d, *(WIDTH,) * (L - 1))),
    "diagonal": lambda d, L: DiagonalNetwork.zeros(L, d),
    "convolutional": lambda d, L: ConvolutionalNetwork.zeros(d, (d,) * L),
}
# The regularisers are powers of these norms: at every depth for fully connected networks, and at
# depth 2 for the others.
NORMS = {"fully-connected": L2Norm, "diagonal": L1Norm, "convolutional": FourierL1Norm}
# The norms of the regularisers at larger depth L, with p = 2/L.
QUASI_NORMS = {"diagonal": LpNorm, "convolutional": FourierLpNorm}
# How many steps of gradient descent are saved after the start.
SAVED_STEPS = 10


def separable_data(task) -> Classification:
    """Gaussian samples with the labels of a random separator."""
    rng = np.random.default_rng(task.seed)
    X = rng.standard_normal((task.num_samples, task.dimension))
    return Classification(X, np.sign(X @ rng.standard_normal(task.dimension)))
