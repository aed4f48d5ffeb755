"""One linear layer: the limits of its flows, for every kind of problem."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..losses import ExponentialTail
from ..networks import LinearNetwork
from .assumptions import Assumption, log_loss
from .least_norm.max_margin import max_margin
from .least_norm.min_norm import InconsistentEquationsError, require_consistent
from .least_norm.norms import L2Norm
from .prediction import Candidate, Conclusion, ExponentialDecay, Kind
from .separability import separability

SOUDRY = "Soudry et al. 2018"


def one_layer_candidates(network: LinearNetwork, problem: Any) -> Iterator[Candidate]:
    """The theorem about one layer on `problem`; its data have a column for the bias, if any."""
    yield _max_margin(network, problem) if problem.has_margins else _projection(network, problem)


def _max_margin(network, problem):
    loss = problem.margin_loss
    exponential = isinstance(loss.tail, ExponentialTail)
    tail = Assumption(
        f"{type(loss).__name__} has an exponential tail",
        "not stated by the loss" if loss.tail is None else str(loss.tail),
        exponential,
        f"{SOUDRY}, Theorem 3",
    )
    separable, _ = separability(problem, f"{SOUDRY}, Theorem 3")
    several = problem.margins(jnp.zeros(problem.coefficient_shape)).ndim > 1
    name = "the hard-margin Crammer-Singer SVM" if several else "the hard-margin SVM"
    notes = (
        f"The direction of {name}, from every start (docs/theory.md, proof P1). For almost all "
        "data w(t) = w_svm log t + O(1), so that the distance from it falls as 1 / log t.",
    )
    if network.has_bias:
        notes += (
            "A flow counts the bias like every weight; in max_margin(problem) no norm counts it, "
            "so that its separator is another one.",
        )

    def conclude():
        return Conclusion(Kind.EXACT, max_margin(problem, L2Norm()).direction, None, notes)

    where = "Theorem 7" if several else "Theorem 3"
    return Candidate(f"{where} of {SOUDRY}", (tail, separable), conclude)


def _projection(network, problem):
    loss = problem.residual_loss
    squared = problem.has_squared_loss
    source = "Gunasekar et al. 2018"
    convex = Assumption(
        f"{type(loss).__name__} is convex, with its only minimum at zero",
        None if loss.is_convex_with_minimum_at_zero is None else type(loss).__name__,
        bool(loss.is_convex_with_minimum_at_zero),
        "this package",
    )
    X, y, start = (np.asarray(a, np.float64) for a in (problem.X, problem.y, network.weights))
    move = np.linalg.pinv(X) @ (y - X @ start)
    misfit = X @ (start + move) - y
    assumptions = (convex,)
    if not squared:
        size = np.max(np.abs(y)) or 1.0
        fits = Assumption(
            "some coefficients fit the data, largest misfit over largest target",
            float(np.max(np.abs(misfit)) / size),
            _is_consistent(misfit, y, problem.y.dtype),
            source,
        )
        assumptions = (convex, fits)

    def conclude():
        sizes = np.linalg.svd(X, compute_uv=False)
        full = X.shape[0] <= X.shape[1] and sizes[-1] > 1e-12 * sizes[0]
        rate = None
        if squared and full:
            value = 2 * float(sizes[-1]) ** 2
            initial = log_loss(network, problem)
            rate = ExponentialDecay(value, initial, "c = 2 s_min(X)^2: the flow is linear")
        notes = (
            "The coefficients that fit the data (of the squared loss: with the least loss) and are "
            "nearest to the start.",
        )
        return Conclusion(Kind.EXACT, jnp.asarray(start + move, problem.y.dtype), rate, notes)

    return Candidate("projection of the start (one layer)", assumptions, conclude)


def _is_consistent(misfit, target, dtype):
    try:
        require_consistent(misfit, target, dtype)
    except InconsistentEquationsError:
        return False
    return True
