"""Weights p >= 0 with sum 1 and sum_i p_i a_i = 0: what proves that data are not separable."""

import numpy as np
from jaxtyping import Float


def zero_combination(rows: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " n"]:
    """Weights, up to a factor, for which |sum_i p_i a_i|_2 is nearly the smallest."""
    from scipy.optimize import nnls

    system = np.vstack([rows.T, np.ones(len(rows))])
    try:
        return nnls(system, np.append(np.zeros(rows.shape[1]), 1.0))[0]
    except RuntimeError:  # too many exchanges of rows
        return np.ones(len(rows))


def sharpened(unit, weights):
    """Weights of sum 1 with unit^T weights = 0, solved to rounding on their support."""
    weights = weights / weights.sum()
    best, smallest = weights, np.linalg.norm(weights @ unit)
    for threshold in (1e-3, 1e-6, 1e-9):
        kept = weights > threshold * weights.max()
        system = np.vstack([unit[kept].T, np.ones((1, kept.sum()))])
        right = np.append(np.zeros(unit.shape[1]), 1.0)
        part = (
            weights[kept] + np.linalg.lstsq(system, right - system @ weights[kept], rcond=None)[0]
        )
        trial = np.zeros_like(weights)
        trial[kept] = np.maximum(part, 0.0) / np.maximum(part, 0.0).sum()
        size = np.linalg.norm(trial @ unit)
        if size < smallest:
            best, smallest = trial, size
    return best
