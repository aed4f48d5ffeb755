"""Gunasekar et al. 2018, Theorems 1, 2, 2a and 4: limit directions, if the flow converges.

The theorems assume that the loss tends to 0, that the parameters converge in direction, and (but
for Theorem 1) that the gradient with respect to beta does. They are stated for gradient descent and
the exponential loss, for almost all data and starts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...networks import AssumptionFails, ConvolutionalNetwork, FullyConnectedNetwork
from ...problems import Classification
from ..assumptions import Assumption, components_of, is_tensor_network, log_loss, rounding
from ..convergence import convergence, refuted_convergence
from ..least_norm.max_margin import MarginPrecisionError, is_separable, max_margin
from ..least_norm.norms import FourierL1Norm, L2Norm
from ..prediction import Candidate, Conclusion, Kind
from .alignment import learning_conditions

GUNASEKAR = "Gunasekar et al. 2018"


def gunasekar_candidates(
    network: Any, problem: Classification, separable: Assumption
) -> Iterator[Candidate]:
    """The theorems about this architecture, and Theorem 4 about every homogeneous network."""
    depth = getattr(network, "depth", None)
    if not depth:  # not homogeneous, for example a network with a bias
        return
    to_zero = _loss_tends_to_zero(network, problem)
    moves = _open_assumption("the parameters converge in direction")
    gradient = _open_assumption("the gradient with respect to beta converges in direction")
    if isinstance(network, FullyConnectedNetwork):
        yield Candidate(
            f"Theorem 1 ({GUNASEKAR})",
            (separable, to_zero, moves),
            lambda: Conclusion(Kind.EXACT, max_margin(problem, L2Norm()).direction),
        )
    if isinstance(network, ConvolutionalNetwork) and network.is_full_length:
        number = "2" if depth == 2 else "2a"
        yield Candidate(
            f"Theorem {number} ({GUNASEKAR})",
            (separable, to_zero, moves, gradient),
            lambda: _in_frequency(problem, depth),
        )
    note = (
        "The parameters tend in direction to a stationary point of min |Theta|^2 subject to "
        "y_i <x_i, beta(Theta)> >= 1; lintensor_jax.limit_direction finds it from a flow's end."
    )
    yield Candidate(
        f"Theorem 4 ({GUNASEKAR})",
        (separable, to_zero, moves, gradient),
        lambda: Conclusion(Kind.STATIONARY, None, None, (note,)),
    )


def _in_frequency(problem, depth):
    if depth > 2:
        note = (
            f"The direction is that of a stationary point of min |DFT beta|_{{2/{depth}}} subject "
            "to y_i <x_i, beta> >= 1; there may be several, and the start decides."
        )
        return Conclusion(Kind.STATIONARY, None, None, (note,))
    found = max_margin(problem, FourierL1Norm())
    if found.unique:
        return Conclusion(Kind.EXACT, found.direction)
    note = "The program min |DFT beta|_1 has several optima, or uniqueness is not certified."
    return Conclusion(Kind.STATIONARY, None, None, (note,))


def _open_assumption(statement):
    return Assumption(statement, None, None, f"{GUNASEKAR}, Theorems 1 to 4")


def _loss_tends_to_zero(network, problem):
    goal = "the loss tends to 0"
    level = float(np.exp(problem.margin_loss.log_value(np.zeros(()))))
    value = float(np.exp(min(log_loss(network, problem), 700.0)))
    below = Assumption(
        f"{goal}: the loss is below l(0) = {level:.6g}, so that it decreases to 0, L(0)",
        value,
        value < level,
        "Lyu & Li 2020, Theorem 4.1",
    )
    proofs: list[Assumption | None] = [below]
    if isinstance(network, FullyConnectedNetwork):
        conditions = learning_conditions(network, problem)
        implied = f"{goal}: R(W(0)) <= R(0), and the start is no critical point"
        proofs.append(
            Assumption(
                implied, None, all(a.holds for a in conditions), "Ji & Telgarsky 2019, Theorem 2.2"
            )
        )
    excluded = _excluded_by_signs(network, problem)
    return excluded or convergence(refuted_convergence(network, problem), proofs, goal)


def _excluded_by_signs(network, problem):
    """A failed assumption if coordinates that keep their signs cannot separate the data; else None.

    In the coordinates of Assumption 1 each w_lj^2 - w_kj^2 is conserved. If the two smallest
    |w_lj| of a coordinate are equal, both could reach zero only at the same time. That is a fixed
    point of this coordinate. So all its signs are constant.
    """
    if isinstance(network, FullyConnectedNetwork) or not is_tensor_network(network):
        return None
    try:
        found = components_of(network)
    except AssumptionFails:
        return None
    if not found.is_real.holds:
        return None
    values = np.asarray(found.values)
    sizes = np.sort(np.abs(values), axis=0)
    fixed = sizes[1] - sizes[0] <= rounding(values) * sizes[-1]
    if not fixed.any():
        return None
    signs = np.where(fixed, np.prod(np.sign(values), axis=0), 0.0)
    rows = np.asarray(problem.signed_data)
    rows = rows if found.S is None else rows @ np.asarray(found.S).T
    moving = ~(fixed & (signs == 0))
    kept = np.diag(signs)[fixed & (signs != 0)]
    every = np.concatenate([rows, kept])[:, moving]
    source = "this package"
    statement = (
        "the loss tends to 0 (it cannot: coordinates whose two smallest layers are balanced keep "
        "their signs, and no beta with these signs separates the data), how many"
    )
    count = int(np.sum(fixed))
    if not every.any(axis=1).all():
        return Assumption(statement, count, False, source)
    try:
        possible = is_separable(Classification(every, np.ones(len(every)))).separable
    except MarginPrecisionError:
        return None
    return None if possible else Assumption(statement, count, False, source)
