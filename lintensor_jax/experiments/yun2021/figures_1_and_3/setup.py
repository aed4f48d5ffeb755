"""The architectures and the initial directions of Figures 1 and 3."""

import numpy as np

from ....networks import ConvolutionalNetwork, DiagonalNetwork, FullyConnectedNetwork
from ....theory.least_norm.norms import FourierL1Norm, L1Norm, L2Norm

# Each architecture: its constructor, the constructor's arguments, and the norm whose maximum margin
# a classification flow of two layers finds.
ARCHITECTURES = {
    "fully-connected": (FullyConnectedNetwork.zeros, ((2, 2),), L2Norm),
    "diagonal": (DiagonalNetwork.zeros, (2, 2), L1Norm),
    "convolutional": (ConvolutionalNetwork.zeros, (2, (2, 2)), FourierL1Norm),
}


def initial_directions(count: int, seed: int) -> np.ndarray:
    """Random vectors, shape (count, 2), one in each of `count` equal sectors of the plane."""
    rng = np.random.default_rng(seed)
    angles = 2 * np.pi / count * (np.arange(count) + rng.uniform(0.15, 0.85, count))
    lengths = rng.uniform(0.6, 1.0, count)
    return lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
