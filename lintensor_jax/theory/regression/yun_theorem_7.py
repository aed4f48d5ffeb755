"""Theorem 7 of Yun et al. 2021: when the loss of a fully connected network tends to zero."""

from itertools import pairwise

import numpy as np

from ...networks import FullyConnectedNetwork
from ..assumptions import YUN, Assumption, rounding


def convergence_conditions(network: FullyConnectedNetwork) -> tuple[Assumption, ...]:
    """The conditions under which the loss of a fully connected network tends to zero.

    Source: Yun et al. 2021, Theorem 7, first part; its proof (H.1, eq. 80-84) bounds the smallest
    singular value of W_1 ... W_{L-1} by (alpha^2 lambda)^((L-1)/2) for any loss and any number of
    outputs. Units whose incoming and outgoing weights are all zero never move. They are left out,
    so that hidden layers may be wider than the input. The last value is alpha^2 lambda.
    """
    source = f"{YUN}, Theorem 7"
    weights = _without_dead_units(network)
    widths = tuple(w.shape[0] for w in weights)
    *hidden, last = weights
    zero = rounding(network.weights[0]) * max(np.linalg.norm(w, 2) for w in weights) ** 2
    rows = [
        Assumption(
            "all layers have width d, (d_1, ..., d_L)", widths, len(set(widths)) == 1, source
        )
    ]
    for layer, (before, after) in enumerate(pairwise(hidden), start=1):
        smallest = _smallest_eigenvalue(before, after)
        statement = (
            f"W_{layer}^T W_{layer} >= W_{layer + 1} W_{layer + 1}^T, smallest eigenvalue of the "
            "difference"
        )
        rows.append(Assumption(statement, smallest, smallest >= -zero, source))
    gap = _smallest_eigenvalue(hidden[-1], last)
    statement = "W_{L-1}^T W_{L-1} - w_L w_L^T >= alpha^2 lambda I > 0, alpha^2 lambda"
    return (*rows, Assumption(statement, gap, gap > zero, source))


def _without_dead_units(network):
    weights = [np.asarray(w).reshape(w.shape[0], -1) for w in network.weights]
    for layer, (before, after) in enumerate(pairwise(list(weights))):
        alive = before.any(axis=0) | after.any(axis=1)
        if alive.any():
            weights[layer] = weights[layer][:, alive]
            weights[layer + 1] = weights[layer + 1][alive]
    return weights


def _smallest_eigenvalue(before, after):
    return float(np.linalg.eigvalsh(before.T @ before - after @ after.T)[0])
