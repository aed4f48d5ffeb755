"""The theorems about the limit directions of classification flows, the most specific first."""

import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...losses import ExponentialTail, PolynomialTail
from ...networks import (
    AssumptionFails,
    ConvolutionalNetwork,
    DiagonalNetwork,
    FullyConnectedNetwork,
)
from ...problems import Classification, Regression
from ..assumptions import (
    YUN,
    Assumption,
    components_of,
    is_tensor_network,
    log_loss,
    rounding,
    smallest_layer,
    violated,
)
from ..convergence import refuted_convergence
from ..least_norm.max_margin import is_separable, max_margin
from ..least_norm.norms import FourierL1Norm, L1Norm, L2Norm, L21Norm
from ..prediction import Candidate, Conclusion, HarmonicDecay, Kind, nothing_to_conclude
from ..regression.yun_theorem_6 import limit_point_two_layer
from ..regression.yun_theorem_7 import convergence_conditions
from ..separability import separability
from .alignment import learning_conditions
from .gunasekar import gunasekar_candidates
from .ji_telgarsky import ji_telgarsky_candidate

# If another singular value is above this share of the largest, a note says that the flow is slow.
_CLOSE = 1 - 1e-3


def classification_candidates(network: Any, problem: Classification) -> Iterator[Candidate]:
    """The theorems about this architecture on `Classification`.

    All of them assume a loss with an exponential tail. A loss that states another tail, or none,
    violates this assumption.
    """
    if problem.has_bias:  # for these networks the column of ones is a column like the others
        problem = Classification(problem.X, problem.y, problem.margin_loss)
    tail = problem.margin_loss.tail
    for candidate in _of_exponential_tail(network, problem):
        if isinstance(tail, ExponentialTail):
            yield candidate
        else:
            yield _of_another_tail(candidate, problem.margin_loss)


def _of_another_tail(candidate, loss):
    tail = loss.tail
    stated = "not stated by the loss" if tail is None else str(tail)
    broken = Assumption(
        f"the loss has an exponential tail; that of {type(loss).__name__} is",
        stated,
        False,
        "Ji et al. 2020",
    )
    note = (
        "The limit direction depends on the tail of the loss, and the theorems here are about "
        "exponential tails. A loss states its tail by the property `tail`."
    )
    if isinstance(tail, PolynomialTail):
        note = (
            "With a polynomial tail of power a the direction of the parameters tends to a "
            "stationary point of sum_i m_i^-a on the unit sphere, not to one of the margin "
            "problem: lintensor_jax.limit_direction finds it (Ji et al. 2020 for one layer)."
        )
    return candidate._replace(
        assumptions=(broken, *candidate.assumptions),
        conclude=nothing_to_conclude,
        otherwise=(note,),
    )


def _of_exponential_tail(network, problem):
    separable, margin = separability(problem, f"{YUN}, section 4")
    is_tensor = is_tensor_network(network)
    if isinstance(network, FullyConnectedNetwork):
        if problem.X.shape[0] == 1 and network.depth == 2:
            yield from _one_sample(network, problem, separable)
        yield _fully_connected(network, problem, separable, margin)
        yield _with_tail(ji_telgarsky_candidate(network, problem, separable), problem)
    elif is_tensor:
        if problem.X.shape[0] == 1 and network.depth == 2:
            yield from _one_sample(network, problem, separable)
        yield _orthogonal(network, problem, separable, margin)
        yield from _singular_vectors(network, problem, separable)
    for candidate in gunasekar_candidates(network, problem, separable):
        yield _with_tail(candidate, problem)


def _with_tail(candidate, problem):
    """The candidate with the note on losses of which only the tail is exponential."""

    def conclude():
        found = candidate.conclude()
        return found._replace(notes=(*found.notes, *_tail(problem)))

    return candidate._replace(conclude=conclude)


def _converges(problem, source):
    is_fixed = problem.X.shape[0] == 1
    statement = "X^T r converges in direction" + (" (it is that of one sample)" if is_fixed else "")
    return Assumption(statement, None, True if is_fixed else None, source)


def _one_sample(network, problem, separable):
    """Theorem 3 and Corollary 4, for singular values of any multiplicity."""
    source = f"{YUN}, Theorem 3"
    x, y = problem.X[0], problem.y[0]
    first, second = network.factors
    left, s, right = jnp.linalg.svd(network.data_tensor(x), full_matrices=False)
    size = float(jnp.linalg.norm(s))
    # The gap of Theorem 6 is the same condition, and is computed for equal singular values too.
    gap = float(limit_point_two_layer(network, Regression(problem.X, problem.y)).gap)
    zero = rounding(s) * max(float(v @ v) for v in network.factors)
    assumptions = (
        separable,
        Assumption("the data tensor M(x) is not zero, its norm", size, size > 0, source),
        Assumption(
            "[U_1^T v_1]_j^2 - [U_2^T v_2]_j^2 >= alpha^2 lambda > 0, its mean over each singular "
            "subspace, alpha^2 lambda",
            gap,
            gap > zero,
            source,
        ),
    )
    is_short = isinstance(network, ConvolutionalNetwork) and network.filters[0].shape[0] <= 2

    def conclude():
        # Only values that agree to rounding: a smaller one has no share of the limit.
        top = s >= s[0] * (1 - rounding(s))
        # The limit of a cosh + b sinh and a sinh + b cosh of the angle s nu as nu -> y infinity.
        grown = jnp.where(top, left.T @ first + y * (right @ second), 0)
        grown = grown / jnp.max(jnp.abs(grown))  # its square may underflow
        v1, v2 = left @ grown, y * (right.T @ grown)
        beta = jax.grad(lambda x: v1 @ network.data_tensor(x) @ v2)(x)
        notes = ("The layers tend in direction to the top singular vectors of M(x).",)
        if int(top.sum()) > 1:
            notes += (
                f"The top singular value has multiplicity {int(top.sum())}: within its subspace "
                "the direction is that of U_1^T v_1(0) + y U_2^T v_2(0).",
            )
        behind = float(jnp.max(jnp.where(top, 0.0, s))) / float(s[0])
        if behind > _CLOSE:
            notes += (
                f"The next singular value is {1 - behind:.2g} below the largest, relatively: the "
                "flow is near this direction only if its log margin exceeds the inverse of that.",
            )
        rate = _decay(network, problem, gap * size**2, "alpha^2 lambda |s|^2", "Theorem 3")
        return Conclusion(Kind.EXACT, beta / jnp.linalg.norm(beta), rate, notes + _tail(problem))

    yield Candidate("Theorem 3 (Corollary 4)" if is_short else "Theorem 3", assumptions, conclude)


def _fully_connected(network, problem, separable, margin):
    source = f"{YUN}, Corollary 1"
    conditions = convergence_conditions(network)
    converges = all(a.holds for a in conditions)
    below = _loss_is_small(network, problem, source)
    if not below.holds:
        statement = below.statement + (" (implied by Theorem 7's conditions)" if converges else "")
        below = Assumption(statement, below.value, True if converges else None, source)
        if below.holds is None:
            below = _decided(network, problem, below)

    def conclude():
        rate = None
        if converges:
            gap = conditions[-1].value ** (network.depth - 1)
            constant = "(alpha^2 lambda)^(L-1) gamma^2"
            rate = _decay(network, problem, gap * margin**2, constant, "H.1 with D.1.1")
        limit = max_margin(problem, L2Norm()).direction
        return Conclusion(Kind.EXACT, limit, rate, _tail(problem))

    return Candidate("Corollary 1", (separable, below), conclude)


def _decided(network, problem, below):
    """`below`, proved by Assumption 1.2 of Ji & Telgarsky 2019, refuted, or still open."""
    refuted = refuted_convergence(network, problem)
    if refuted is not None:
        return refuted
    conditions = learning_conditions(network, problem)
    if not all(a.holds for a in conditions):
        return below
    statement = below.statement + " (implied by Assumption 1.2: R(W(0)) <= R(0), not critical)"
    return Assumption(statement, below.value, True, "Ji & Telgarsky 2019, Theorem 2.2")


def _loss_is_small(network, problem, source):
    """That the current loss is small enough to imply that every sample is classified correctly.

    If the sum of the losses is below l(0), each of them is, and every margin is positive.
    """
    level = float(np.exp(problem.margin_loss.log_value(jnp.zeros(()))))
    value = float(np.exp(min(log_loss(network, problem), 700.0)))
    return Assumption(
        f"the loss falls below l(0) = {level:.6g} at some time; now it is L(0)",
        value,
        value < level,
        source,
    )


def _orthogonal(network, problem, separable, margin):
    source = f"{YUN}, Theorem 2"
    otherwise = (
        "Theorem 1 (Yun et al. 2021) remains: if the loss falls below 1 and X^T r converges in "
        "direction, to u, then the layers tend in direction to singular vectors of M(-u).",
    )
    try:
        found = components_of(network)
    except AssumptionFails as error:
        broken = violated(error, f"{YUN}, Assumption 1")
        return Candidate("Theorem 2", (separable, broken), nothing_to_conclude, otherwise)
    is_convolution = isinstance(network, ConvolutionalNetwork)
    corollary = "2" if isinstance(network, DiagonalNetwork) else "3" if is_convolution else None
    name = "Theorem 2" + (f" (Corollary {corollary})" if corollary else "")
    start = smallest_layer(found.values, found.tolerance, source)
    # For two layers in real coordinates the assumption of Theorem 2 is not needed, because their
    # flow is a mirror flow.
    moves = _converges(problem, source)
    if network.depth == 2 and found.is_real.holds:
        moves = Assumption(
            "the margin over the l1 norm tends to the largest (two real layers are a mirror flow)",
            None,
            True,
            "docs/theory.md, proof P1",
        )
    assumptions = (separable, *found.assumptions, start, moves)

    def conclude():
        S = found.S
        smallest = 1.0 if S is None else float(jnp.linalg.svd(S, compute_uv=False)[-1])
        value = start.value ** (network.depth - 1) * smallest**2 * margin**2
        constant = "(alpha^2 lambda)^(L-1) s_min(S)^2 gamma^2"
        rate = _decay(network, problem, value, constant, "D.1.1")
        if network.depth == 2:
            return _sparsest(network, found, problem)._replace(rate=rate)
        p = f"2/{network.depth}"
        of_rho = f"min |rho|_{{{p}}}, z = S^T rho"
        known = {"2": f"min |z|_{{{p}}}", "3": f"min |F z|_{{{p}}}", None: of_rho}
        notes = (
            f"The direction is that of a stationary point z of {known[corollary]} "
            "subject to y_i <x_i, z> >= 1; there may be several, and the start decides.",
        )
        # In one dimension all separators have the same direction.
        limit = is_separable(problem).certificate if problem.X.shape[1] == 1 else None
        return Conclusion(Kind.STATIONARY, limit, rate, notes + _tail(problem))

    return Candidate(name, assumptions, conclude, otherwise)


def _sparsest(network, components, problem):
    """For L = 2: the optimum of the l1 max-margin problem in the coordinates of Assumption 1."""
    S, tolerance = components.S, components.tolerance
    if S is None:
        found = max_margin(problem, L1Norm())
        beta = found.direction
    elif isinstance(network, ConvolutionalNetwork):
        found = max_margin(problem, FourierL1Norm())
        beta = found.direction
    else:
        S = _distinct_rows(S, tolerance)
        # Re(S z)^T rho for complex rho = a + i b: pairs (a_j, b_j) are groups of two.
        rows = problem.signed_data @ S.T
        pairs = jnp.stack([rows.real, -rows.imag], axis=-1)
        is_complex = jnp.iscomplexobj(S)
        data = types.SimpleNamespace(signed_data=pairs if is_complex else rows)
        found = max_margin(data, L21Norm() if is_complex else L1Norm())
        rho = found.coefficients
        beta = S.T @ (jax.lax.complex(rho[:, 0], rho[:, 1]) if is_complex else rho)
        beta = beta.real / jnp.linalg.norm(beta.real)
    notes = _tail(problem)
    if found.unique is False:
        note = "The max-margin problem has several optima; the limit is one of them."
        return Conclusion(Kind.STATIONARY, None, None, (note, *notes))
    if found.unique is None:
        note = "It is open whether the max-margin problem has a single optimum: not certified."
        return Conclusion(Kind.OPEN, beta, None, (note, *notes))
    return Conclusion(Kind.EXACT, beta, None, notes)


def _distinct_rows(S, tolerance):
    """S without rows that are a multiple of another row or its conjugate, by a modulus <= 1.

    Their share of rho can be moved to that other row. This does not increase |rho|_1 and does not
    change z. Without these rows rho is unique if z is.
    """
    rows = np.asarray(S)
    kept = []
    for row in rows[np.argsort(-np.linalg.norm(rows, axis=1), kind="stable")]:
        units = [unit / np.linalg.norm(unit) for other in kept for unit in (other, other.conj())]
        off = [np.linalg.norm(row - np.vdot(u, row) * u) for u in units]
        if min(off, default=np.inf) > tolerance * np.linalg.norm(row):
            kept.append(row)
    return jnp.asarray(np.stack(kept))


def _singular_vectors(network, problem, separable):
    source = f"{YUN}, Theorem 1"
    below = _loss_is_small(network, problem, source)
    if not below.holds:  # it may hold later in the flow: `otherwise` of Theorem 2 says so
        return
    note = "The layers tend in direction to singular vectors of M(-u), u = lim X^T r / |X^T r|."
    yield Candidate(
        "Theorem 1",
        (separable, below, _converges(problem, source)),
        lambda: Conclusion(Kind.STATIONARY, None, None, (note, *_tail(problem))),
    )


def _decay(network, problem, value, constant, where):
    """The loss bound; for a loss other than the exponential with a smaller constant, or None."""
    initial = log_loss(network, problem)
    source = f"c = {constant}; Yun et al. 2021, {where}, which print 1 + c t"
    least = problem.margin_loss.least_slope_over_value(initial)
    if least is None:
        return None
    if not problem.margin_loss.is_exponential:  # |r_i| >= least * l_i, as l_i <= L(0)
        value *= least**2
        name = type(problem.margin_loss).__name__
        source += f"; for {name} times the square of its least -l'/l up to L(0), {least:.6g}"
    return HarmonicDecay(float(value), initial, source)


def _tail(problem):
    loss = problem.margin_loss
    if loss.is_exponential:
        return ()
    return (
        "The theorem is stated for the exponential loss; only the tail of the loss matters to the "
        f"direction, and that of {type(loss).__name__} is {loss.tail} (Ji & Telgarsky 2019 for the "
        "logistic loss).",
    )
