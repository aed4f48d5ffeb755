"""Limits of regression with fully connected networks, by Yun, Min, Eftekhari and Azulay.

The limit has two parts. In the row space of X it is X^+ y, if the loss tends to its least value.
Outside the row space the first layer is constant, and the limit depends on the start.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ...networks import FullyConnectedNetwork
from ...problems import Regression
from ..assumptions import YUN, Assumption, log_loss_at, rounding
from ..convergence import convergence, critical_start, refuted_convergence
from ..critical_levels import below_the_saddles, critical_levels
from ..prediction import Candidate, Conclusion, ExponentialDecay, Kind
from ..rates.imbalance import MIN, ConvergenceRateBound, convergence_rate_bound
from ..row_space import RowSpace
from .balanced_rank_one import eftekhari_candidate
from .one_neuron import one_neuron_candidate
from .yun_theorem_7 import convergence_conditions

_ALMOST = (
    " (two layers: it does for almost every start, because every saddle has a direction of descent)"
)


def fully_connected_candidates(
    network: FullyConnectedNetwork, problem: Any, data: RowSpace
) -> Iterator[Candidate]:
    """Every theorem about a fully connected network, each with its measurements.

    `problem`: with any loss of residuals. `data`: its `row_space`.
    """
    if data.rank == 0:
        yield Candidate(
            "Theorem 7", data.assumptions(True, YUN), lambda: Conclusion(Kind.EXACT, None)
        )
        return
    at = _Start.of(network, problem, data)
    undecided = ()
    if [w.shape[-1] for w in network.weights[:-1]] == [1] and network.has_scalar_output:
        rate = _rate(network, data, at)
        alone, decided = one_neuron_candidate(network, problem, data, at.converges, rate)
        yield from (alone,) if decided else ()
        undecided = () if decided else (alone,)
    yield _proposition_10(network, problem, data, at)
    yield from _theorem_7(network, problem, data, at)
    yield from undecided
    yield from eftekhari_candidate(network, problem)
    if at.rates is not None:
        yield _theorem_3(network, problem, data, at)
    yield from _narrow(network, problem, data, at)


class _Start(NamedTuple):
    """What is known about the convergence of the loss from this start."""

    conditions: tuple[Assumption, ...]  # of Theorem 7
    rates: ConvergenceRateBound | None  # for two layers only
    theorem_3: Assumption | None
    below: Assumption | None  # that the start is below every saddle
    converges: Assumption
    persists: Assumption  # that the loss converges from all smaller initial scales as well

    @staticmethod
    def of(network, problem, data):
        conditions = convergence_conditions(network)
        theorem_7 = None
        if all(a.holds for a in conditions):
            theorem_7 = Assumption(
                f"{data.goal}, by Theorem 7's conditions", None, True, f"{YUN}, Theorem 7"
            )
        rates = theorem_3 = imbalanced = None
        goal = data.goal
        if network.depth == 2:
            goal += _ALMOST
            squared = problem if problem.has_squared_loss else Regression(problem.X, problem.y)
            rates = convergence_rate_bound(network, squared)
            imbalanced = _positive_rate(rates, data, rates.by_imbalance, "Corollary 4")
            # The margin in the rate of Theorem 3 is defined for the squared loss only.
            theorem_3 = imbalanced
            if problem.has_squared_loss:
                theorem_3 = _positive_rate(rates, data, rates.guaranteed, "Theorem 3")
        below = reached = None
        if critical_start(network, problem) is None:
            below = below_the_saddles(network, problem, data)
        if below is not None:
            levels = critical_levels(network.weights, data)
            reached = below if levels.rank == levels.wanted else None
        always = reached if network.has_scalar_output else None
        refuted = refuted_convergence(network, problem)
        return _Start(
            conditions,
            rates,
            theorem_3,
            below,
            convergence(refuted, (theorem_7, theorem_3, reached), goal),
            convergence(refuted, (theorem_7, imbalanced, always), goal),
        )


def _positive_rate(rates, data, value, theorem):
    """The rate `value` of Min et al. as a proof that the loss tends to its least value."""
    value = float(value)
    largest = float(np.max(np.abs(rates.imbalance.eigenvalues)))
    size = max(largest, float(np.linalg.norm(rates.imbalance.last, 2)) ** 2)
    zero = rounding(rates.imbalance.eigenvalues) * float(rates.smallest_eigenvalue) * size
    # The rate is zero unless h >= min(m, r), so this assumption need not be tested.
    return Assumption(
        f"{data.goal}, at the rate l_r(Sigma) c(0) > 0", value, value > zero, f"{MIN}, {theorem}"
    )


def _exponential(network, data, value, source):
    excess = Regression(data.rows, data.targets)
    initial = log_loss_at(excess, network.linear_coefficients())
    return ExponentialDecay(value, initial, source)


def _rate(network, data, at):
    """A bound with Theorem 7's rate if its conditions hold, else with that of Theorem 3."""
    found = []
    if all(a.holds for a in at.conditions):
        value = 2 * at.conditions[-1].value ** (network.depth - 1) * float(data.sizes[-1]) ** 2
        words = "c = 2 (alpha^2 lambda)^(L-1) s_min(X)^2; Yun et al. 2021, Theorem 7 and H.1, "
        found.append((value, words + "which omit the factor 2"))
    if at.theorem_3 is not None and at.theorem_3.holds:
        words = f"c = l_r(Sigma) c(0); {MIN}, Theorem 3"
        found.append((float(at.rates.guaranteed), words))
    if not found:
        return None
    if at.conditions[-1].holds and all(a.holds for a in at.conditions):
        return _exponential(network, data, *found[0])  # the rate of Theorem 7
    return _exponential(network, data, *found[-1])


def _proposition_10(network, problem, data, at):
    """Min's Proposition 10. Its proof holds for any depth, with V^T the second layer."""
    name = f"Proposition 10 ({MIN})"
    if network.depth > 2:
        name += ", extended to any depth"
    exact = _invariant_set(network, data)
    rate = _rate(network, data, at)
    note = f"The limit is the {_least_norm(data)}, for every initial scale."
    return Candidate(
        name,
        (
            *data.assumptions(problem.has_squared_loss, f"{MIN}, Proposition 10"),
            *exact,
            at.converges,
        ),
        lambda: Conclusion(Kind.EXACT, data.least_squares(), rate, (note,)),
    )


def _least_norm(data):
    if data.is_solvable:
        return "solution of least l2 norm"
    return "least-squares solution of least l2 norm"


def _theorem_7(network, problem, data, at):
    outputs = 1 if network.has_scalar_output else network.weights[-1].shape[1]
    scalar = Assumption("a single output, m", outputs, outputs == 1, f"{YUN}, Theorem 7")
    setting = (scalar, *data.assumptions(problem.has_squared_loss, f"{YUN}, section 5"))
    rate = _rate(network, data, at)
    note = f"The limit below is the {_least_norm(data)}."

    def conclude():
        return Conclusion(Kind.ALPHA_TO_ZERO, data.least_squares(), rate, (note,))

    yield Candidate("Theorem 7", (*setting, *at.conditions), conclude)
    yield Candidate("Theorem 7 (bias part alone)", (*setting, at.persists), conclude)


def _theorem_3(network, problem, data, at):
    """Theorem 3 with Proposition 9: the loss tends to its least value; the limit depends on U_2."""
    squared = Assumption(
        "the loss is the squared one",
        type(problem.residual_loss).__name__,
        problem.has_squared_loss,
        f"{MIN}, eq. (1)",
    )
    width, outputs = network.weights[1].shape[0], at.rates.imbalance.last.shape[0]
    least = min(outputs, data.rank)
    wide = Assumption(f"h >= min(m, r) = {least}, the width h", width, width >= least, MIN)
    assumptions = (squared, wide, at.theorem_3)

    def conclude():
        rate = _exponential(
            network, data, float(at.rates.guaranteed), f"c = l_r(Sigma) c(0); {MIN}, Theorem 3"
        )
        note = (
            "The layers converge (Proposition 9). In the row space of X the limit is the "
            f"{_least_norm(data)}. Outside it the limit is Phi_2 U_2(0) V(inf)^T, which depends on "
            "the start; lintensor_jax.theory.deviation_bound bounds its size."
        )
        return Conclusion(Kind.STATIONARY, None, rate, (note,))

    return Candidate(f"Theorem 3 with Proposition 9 ({MIN})", assumptions, conclude)


def _narrow(network, problem, data, at):
    """For starts below every saddle, if the layers are too narrow for the rank of the targets."""
    if at.below is None:
        return
    levels = critical_levels(network.weights, data)
    if levels.rank == levels.wanted:
        return
    exact = _invariant_set(network, data)
    note = f"The limit minimises |X beta - y| over the matrices of rank at most {levels.rank}."
    yield Candidate(
        "Critical points of linear networks (Baldi & Hornik 1989)",
        (*exact, at.below),
        lambda: Conclusion(Kind.EXACT, data.least_squares(levels.rank), None, (note,)),
    )


def _invariant_set(network: Any, data: RowSpace) -> tuple[Assumption, ...]:
    """Proposition 10's two conditions, relative to the squared norm of the first two layers."""
    first, second = (np.asarray(w).reshape(w.shape[0], -1) for w in network.weights[:2])
    inside = data.basis @ first
    outside = first - data.basis.T @ inside
    if data.rank == data.shape[1]:
        outside = np.zeros_like(first)  # X has no kernel
    size = max(np.linalg.norm(first, 2), np.linalg.norm(second, 2)) ** 2 or 1.0
    source, zero = f"{MIN}, Proposition 10", rounding(network.weights[0])
    products = (("V(0) U_2(0)^T", outside @ second), ("U_1(0) U_2(0)^T", outside @ inside.T))
    values = [(name, float(np.linalg.norm(product, 2) / size)) for name, product in products]
    return tuple(
        Assumption(f"{name} = 0, its norm over the largest squared layer", v, v <= zero, source)
        for name, v in values
    )
