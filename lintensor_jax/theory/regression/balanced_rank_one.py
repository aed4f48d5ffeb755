"""Balanced layers with a bottleneck of one neuron on whitened data: Eftekhari 2020."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ...networks import AssumptionFails
from ..assumptions import Assumption, rounding, violated
from ..prediction import Candidate, Conclusion, Kind
from ..rates.stable_sets import SOURCE, RankOneTarget, convergence_bound, rank_one_target


def eftekhari_candidate(network: Any, problem: Any) -> Iterator[Candidate]:
    """Theorem 16, with the rates of Theorem 20: the limit is Z_1, for any number of layers.

    Theorem 16 excludes starts of measure zero. This exclusion is not needed: a critical point of
    rank one is s_j u_j v_j^T with singular vectors of Z. Those with j > 1 have u^T Z_1 v = 0, so
    they are outside the stable set. Yields nothing for networks without a layer of one neuron.
    """
    widths = (*(w.shape[0] for w in network.weights), int(np.prod(network.weights[-1].shape[1:])))
    if min(widths) != 1 or not problem.has_squared_loss:
        return
    name = f"Theorem 16 ({SOURCE})"
    balanced = _balanced(network)
    try:
        target = rank_one_target(problem)
    except AssumptionFails as error:
        broken = violated(error, f"{SOURCE}, Assumption 14")
        yield Candidate(name, (broken, balanced), lambda: Conclusion(Kind.EXACT, None))
        return
    beta = np.asarray(network.linear_coefficients()).reshape(target.matrix.shape)
    left, sizes, right = np.linalg.svd(beta, full_matrices=False)
    gap = float(target.gap)
    overlap = float(left[:, 0] @ np.asarray(target.matrix) @ right[0]) / float(target.size)
    overlap = overlap if sizes[0] > 0 else 0.0
    aligned = Assumption(
        f"the start is in a stable set: u^T Z_1 v / s_Z > gamma_Z = {gap:.6g} for beta = s u v^T",
        overlap,
        overlap > gap + rounding(beta),
        f"{SOURCE}, eq. (28)",
    )
    whitened = Assumption(
        "X^T X = c I and the largest singular value of Z = X^T y / c is simple, gamma_Z",
        gap,
        True,
        f"{SOURCE}, Assumption 14",
    )

    def conclude():
        limit = target.matrix.reshape(network.linear_coefficients().shape)
        notes = (
            "The limit is Z_1, the best approximation of X^T y / c of rank one. The theorem "
            "excludes starts of measure zero. This exclusion is not needed, since no other "
            "critical point of rank one is in the stable set.",
            _rates(target, problem, network.depth, overlap, float(sizes[0]) / float(target.size)),
        )
        return Conclusion(Kind.EXACT, limit, None, notes)

    yield Candidate(name, (whitened, balanced, aligned), conclude)


def _balanced(network):
    weights = [np.asarray(w).reshape(w.shape[0], -1) for w in network.weights]
    size = max(np.linalg.norm(w, 2) for w in weights) ** 2 or 1.0
    value = max(np.linalg.norm(a.T @ a - b @ b.T, 2) for a, b in pairwise(weights)) / size
    return Assumption(
        "the layers are balanced, W_l^T W_l = W_{l+1} W_{l+1}^T, relative deviation",
        float(value),
        bool(value <= rounding(network.weights[0])),
        f"{SOURCE}, Definition 10",
    )


def _rates(target: RankOneTarget, problem, depth, overlap, size):
    """Theorem 20 with the largest alpha and the smallest beta that admit the start."""
    gap = float(target.gap)
    alpha = min(overlap, size + gap, 1.0)
    alpha -= 1e-6 * (alpha - gap)
    upper = max(1.0, size) * (1 + 1e-6)
    if not gap < alpha < 1:
        return "Theorem 20 gives no rate here."
    bound = convergence_bound(problem, depth, alpha, upper)
    if not bound.holds or math.isinf(bound.faraway):
        return "Theorem 20 gives no rate here: gamma_Z is too large for this start."
    return (
        f"Theorem 20: |beta - Z_1|^2 falls at rate {bound.faraway:.6g} while s > sqrt(6) s_Z, then "
        f"at {bound.nearby:.6g} (alpha = {alpha:.6g}, beta = {upper:.6g})."
    )
