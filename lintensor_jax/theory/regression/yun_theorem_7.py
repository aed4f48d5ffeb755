"""Fully connected networks: Theorem 7 (Yun et al. 2021) and Proposition 10 (Min et al. 2021)."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ...networks import FullyConnectedNetwork
from ...problems import Regression
from ..assumptions import YUN, Assumption, rounding, underdetermined
from ..convergence import tends_to_zero
from ..least_norm.min_norm import min_norm
from ..least_norm.norms import L2Norm
from ..prediction import Candidate, Conclusion, ExponentialDecay, Kind


def convergence_conditions(network: FullyConnectedNetwork) -> tuple[Assumption, ...]:
    """The conditions under which the loss of a fully connected network tends to zero.

    Source: Yun et al. 2021, Theorem 7, first part; its proof (H.1, eq. 80-84) bounds the smallest
    singular value of W_1 ... W_{L-1} by (alpha^2 lambda)^((L-1)/2) for any loss and any number of
    outputs. Units whose incoming and outgoing weights are all zero never move and are left out, so
    that hidden layers may be wider than the input. The last value is alpha^2 lambda.
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


def fully_connected_candidates(
    network: FullyConnectedNetwork, problem: Regression
) -> Iterator[Candidate]:
    """Theorem 7, its second part alone, and Proposition 10, each with its measurements."""
    data = underdetermined(problem.X, f"{YUN}, section 5")
    outputs = 1 if network.has_scalar_output else network.weights[-1].shape[1]
    scalar = Assumption("a single output, m", outputs, outputs == 1, f"{YUN}, Theorem 7")
    conditions = convergence_conditions(network)
    proved = all(a.holds for a in conditions)
    converges = tends_to_zero(network, problem, proved, f"{YUN}, Theorem 7")
    exact = _invariant_set(network, problem) if network.depth == 2 else ()
    notes = ()
    if exact and all(a.holds for a in exact):
        notes = (
            "At this start the limit is exact for every alpha: V(0) U_2(0)^T = 0 and U_1(0) "
            "U_2(0)^T = 0 (Min et al. 2021, Proposition 10).",
        )

    def conclude(rate=None):
        limit = min_norm(problem, L2Norm()).coefficients
        return Conclusion(Kind.ALPHA_TO_ZERO, limit, rate, notes)

    rate = _rate(network, problem, conditions)
    yield Candidate("Theorem 7", (scalar, *data, *conditions), lambda: conclude(rate))
    yield Candidate("Theorem 7 (bias part alone)", (scalar, *data, converges), conclude)
    if network.depth == 2:
        yield Candidate(
            "Proposition 10 (Min et al. 2021)",
            (*data, *exact, converges),
            lambda: conclude(rate)._replace(kind=Kind.EXACT, notes=()),
        )


def _rate(network, problem, conditions):
    if not all(a.holds for a in conditions):
        return None
    smallest = float(np.linalg.svd(np.asarray(problem.X), compute_uv=False)[-1])
    value = 2 * conditions[-1].value ** (network.depth - 1) * smallest**2
    return ExponentialDecay(
        value,
        float(problem.log_loss(network.linear_coefficients())),
        "c = 2 (alpha^2 lambda)^(L-1) s_min(X)^2; Yun et al. 2021, Theorem 7 and H.1, where the 2 "
        "is missing",
    )


def _invariant_set(network: Any, problem: Regression) -> tuple[Assumption, ...]:
    """Proposition 10's two conditions on two layers, relative to the sizes of the layers."""
    first, last = (np.asarray(w).reshape(w.shape[0], -1) for w in network.weights)
    _, sizes, right = np.linalg.svd(np.asarray(problem.X), full_matrices=False)
    span = right[sizes > max(problem.X.shape) * np.finfo(sizes.dtype).eps * sizes[0]]
    inside = span @ first
    outside = first - span.T @ inside
    size = max(np.linalg.norm(first, 2), np.linalg.norm(last, 2)) ** 2 or 1.0
    source, zero = "Min et al. 2021, Proposition 10", rounding(network.weights[0])
    products = (("V(0) U_2(0)^T", outside @ last), ("U_1(0) U_2(0)^T", outside @ inside.T))
    values = [(name, float(np.linalg.norm(product, 2) / size)) for name, product in products]
    return tuple(
        Assumption(f"{name} = 0, its norm over the largest squared layer", v, v <= zero, source)
        for name, v in values
    )
