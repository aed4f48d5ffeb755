"""`limit_direction`: from a classification flow's end to its limit, with certificates.

Only the folder `limits` imports both wings: `dynamics` computes a point, `theory` certifies it.
"""

import dataclasses
import enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ..dynamics import FlowSolution, gradient_flow
from ..dynamics.statuses import status_name
from ..dynamics.stopping import StopAtMargin
from ..dynamics.system import System
from ..eager_programs import eager_program
from ..losses import ExponentialTail, PolynomialTail
from ..messages import as_html, shown
from ..multiclass import MulticlassClassification
from ..networks import scaled
from ..networks.pair import are_equal, problem_of
from ..problems import Classification, named
from ..theory import NonSeparableError, certify, is_separable
from .dual_flow import continue_direction
from .held_margin import direction_at_held_margin
from .kkt_point import KKTPoint, kkt_point
from .largest_margin import LargestMargin, early_flow, is_determined, largest_margin, network_at
from .polynomial_tail import certificate_at, stationary_point
from .tolerances import certificate_tolerance, require_tolerance, rtol_of, rtol_of_dtype

# The margin at which the flow stops. From there on the direction's error falls like a power of the
# margin, and Levenberg-Marquardt finds the limit. Larger margins make implicit steps expensive.
_MARGIN = 1e5
_ATOL = 1e-12
# Arc lengths for which the direction is followed at that margin, one after the other. After the
# last, a mode that decays to a KKT point or grows away from it at rate 0.1 has done so.
_ARCS = (10.0, 30.0, 100.0, 300.0)
# A KKT point at a larger distance from the unit parameters of the flow is not accepted.
_LARGEST_DISTANCE = 0.1
# Log of the margin at which the softmax of a polynomial tail is that of the limit, to rounding.
_LOG_MARGIN_OF_LIMIT = 40.0


class LimitStatus(enum.StrEnum):
    """The outcome of `limit_direction`; equal to its text, as in ``limit.status == "saddle"``."""

    #: A KKT point was reached from the flow's end, and all known certificates hold.
    STATIONARY = "stationary"
    #: The flow was at or near a saddle. It was continued in its dual coordinates to another point,
    #: at which all known certificates hold.
    CONTINUED = "continued"
    #: A KKT point in parameter space that is none in predictor space. The flow did not leave it as
    #: far as it was followed.
    SADDLE = "saddle"
    #: No KKT point was reached.
    NOT_CONVERGED = "not_converged"
    #: No theorem states the limit of a flow of this loss, because the loss does not state its tail.
    #: The direction is that of the flow's end.
    NOT_PREDICTED = "not_predicted"


class LimitDirection(eqx.Module):
    """The limit direction of a classification flow; `print` it for an explanation in words.

    - `direction` (d,) or (d, m): beta/|beta| at the limit.
    - `network`: the network at the KKT point, scaled to smallest margin 1; if no KKT point was
      reached, the flow's last network.
    - `certificate`: `certify(network, problem)`; for a loss with a polynomial tail a
      `PolynomialTailCertificate`; None if nothing is predicted.
    - `status`: a `LimitStatus`; `reason`: what was done, or why it failed, in words.
    - `flow`: the flow that was used; `moved`: |direction - the flow's last direction|_2.
    - `num_supports`: how many sets of support samples Levenberg-Marquardt tried.
    """

    direction: Float[Array, "..."]
    network: Any  # of the type that was given
    certificate: Any
    status: LimitStatus = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    flow: FlowSolution
    moved: float = eqx.field(static=True)
    num_supports: int = eqx.field(static=True)

    @property
    def succeeded(self) -> bool:
        """Whether the direction is certified."""
        return self.status in (LimitStatus.STATIONARY, LimitStatus.CONTINUED)

    def __str__(self) -> str:
        """Status, direction, distance from the flow's end, and certificate."""
        lines = [
            f"Limit direction of {type(self.network).__name__} [{self.status}]: {self.reason}",
            f"  direction        {shown(self.direction)}",
            f"  moved            by {self.moved:.1e} from the direction at the flow's end "
            f"({int(self.flow.stats['num_steps'])} steps)",
        ]
        if self.certificate is not None:
            lines += [f"  {line}" for line in str(self.certificate).splitlines()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The text of `__str__` as HTML, for notebooks."""
        return as_html(self)


def limit_direction(
    solution_or_network: Any,
    problem: Classification | MulticlassClassification,
    *,
    tolerance: float | None = None,
) -> LimitDirection:
    """The limit of beta/|beta| of a classification flow, as a certified KKT point.

    Levenberg-Marquardt solves the KKT conditions in parameter space next to the flow's end to
    rounding, and corrects its guess of the support samples. `certify` tests the point in parameter
    space and, if the network's regulariser is known, in predictor space. A point that passes the
    first test and fails the second is a saddle. A flow may be at a saddle, or pass a KKT point,
    when its margin reaches the limit of floating point. So, unless a point of two layers is
    certified, the direction is followed further at a fixed margin. Coordinates of two layers that
    are below the tolerances are followed in dual coordinates (`continue_direction`). If two layers
    have an orthogonal decomposition, and a flow from them can reach a unique maximum margin in the
    l1 norm of rho, this maximum is computed instead and certified in the same way. Then the flow
    only goes to margin 10. For complex rho, as of full-length convolutions, this is done from 81
    parameters on, because it is not proved there (`largest_margin.py`).

    **Arguments**

    - `solution_or_network`: the `FlowSolution` of a flow whose margins are positive (1e4 is
      enough), or a network, from which a flow is run first (to margin 1e5, or 10: see above).
    - `problem`: the `Classification` or `MulticlassClassification` of that flow.
    - `tolerance`: residuals of the certificates up to this one count as zero. Default: 1e-10, and
      1e-4 if the flow or JAX itself is in float32.

    **Raises** `NonSeparableError` (a ValueError) with a certificate if the data are not separable;
    ValueError for a flow that has not separated separable data, and for bad input.

    This holds for losses with an exponential tail. The direction of a flow with a polynomial tail
    of power a tends to a stationary point of sum_i m_i^-a on the unit sphere of parameters, which
    is found and certified in the same way. For a loss without a stated tail nothing is claimed.

    Source: Gunasekar et al. 2018, Theorem 4; Yun et al. 2021, Theorem 2; Lyu & Li 2020; for
    polynomial tails and one layer Ji et al. 2020.
    """
    require_tolerance(tolerance)
    early = _early_flow(solution_or_network, problem)
    if early is not None:
        flow, margin = early
        accepted = certificate_tolerance(tolerance, flow.state.theta.dtype)
        limit = _at_largest_margin(flow, margin, accepted)
        if limit is not None:
            return limit
    flow = _checked_flow(solution_or_network, problem)
    tolerance = certificate_tolerance(tolerance, flow.state.theta.dtype)
    tail = problem.margin_loss.tail
    if isinstance(tail, PolynomialTail):
        return _of_polynomial_tail(flow, tail.power, tolerance)
    if not isinstance(tail, ExponentialTail):
        return _not_predicted(flow)
    system, theta, log_scale = flow.system, flow.state.theta, flow.state.log_scale
    limit = _limit_from_kkt(
        flow, theta, kkt_point(system, theta, _softmax_weights(flow, theta)), tolerance
    )
    # The l1, l2 and nuclear problems are convex: a stationary point is an optimum.
    if limit.succeeded and system.depth <= 2 and limit.certificate.predictor_residual is not None:
        return limit
    if is_determined(flow.unfinished_network, flow.problem):
        margin = largest_margin(flow.unfinished_network, flow.problem)
        found = None if margin is None else _at_largest_margin(flow, margin, tolerance)
        if found is not None:
            return found
    for arc in _ARCS:
        end = direction_at_held_margin(
            system, theta, log_scale, jnp.asarray(arc), rtol=rtol_of_dtype(theta.dtype), atol=_ATOL
        )
        theta = end.theta
        found = kkt_point(system, theta, _softmax_weights(flow, theta))
        limit = _limit_from_kkt(flow, theta, found, tolerance)
        if limit.succeeded:
            return limit
    if system.depth == 2:
        return _continued_limit(limit, tolerance)
    return limit


def _early_flow(solution_or_network, problem) -> tuple[FlowSolution, LargestMargin] | None:
    """The flow to a small margin, if that and the maximum margin are enough; else None."""
    given = solution_or_network
    if isinstance(given, FlowSolution) or not is_determined(given, problem):
        return None
    margin = largest_margin(given, problem)
    if margin is None or network_at(margin, given, problem) is None:
        return None  # the long flow is needed: a short one would be in vain
    flow = early_flow(given, problem, rtol_of(given, problem))
    return None if flow is None else (flow, margin)


def _at_largest_margin(flow, margin: LargestMargin, tolerance) -> LimitDirection | None:
    """The only maximum margin of two layers, certified; None if it is not known as the limit."""
    network = network_at(margin, flow.unfinished_network, flow.problem)
    if network is None:
        return None
    theta = np.asarray(System.of(network, flow.problem).initial)
    theta = jnp.asarray(theta / np.linalg.norm(theta))
    # The point is mostly accurate to rounding. If its certificate fails, Levenberg-Marquardt
    # refines it.
    weights = jnp.asarray(margin.multipliers)
    limit = _limit_from_kkt(flow, theta, KKTPoint(theta, weights, 0.0, None, 0), tolerance)
    if not limit.succeeded:
        limit = _limit_from_kkt(flow, theta, kkt_point(flow.system, theta, weights), tolerance)
    if not limit.succeeded or limit.certificate.predictor_residual is None:
        return None
    reason = "the only maximum margin, with the signs of the flow's end; a certified KKT point"
    return dataclasses.replace(limit, reason=reason)


def _of_polynomial_tail(flow, power, tolerance):
    """Follow the direction at a margin at which the softmax is at its limit, to a certified point.

    For a loss with a polynomial tail.
    """
    system, theta = flow.system, flow.state.theta / jnp.linalg.norm(flow.state.theta)
    limit = None
    for arc in (0.0, *_ARCS):
        if arc > 0:
            least = jnp.min(flow.problem.margins(system.coefficients(theta)))
            log_scale = (_LOG_MARGIN_OF_LIMIT - jnp.log(least)) / system.depth
            rtol = rtol_of_dtype(theta.dtype)
            theta = direction_at_held_margin(
                system, theta, log_scale, jnp.asarray(arc), rtol=rtol, atol=_ATOL
            ).theta
        found = stationary_point(system, theta, power)
        leap = float(jnp.linalg.norm(found - theta))
        if not leap <= _LARGEST_DISTANCE:
            wrong = f"the next stationary point is {leap:.1e} away"
            limit = _limit_at(flow, theta, None, LimitStatus.NOT_CONVERGED, wrong)
            continue
        certificate = certificate_at(system, found, power, tolerance)
        if certificate.is_stationary:
            reason = f"a stationary point of sum_i m_i^-{power:.6g}, reached from the flow's end"
            return _limit_at(flow, found, certificate, LimitStatus.STATIONARY, reason)
        status = LimitStatus.SADDLE if certificate.is_saddle else LimitStatus.NOT_CONVERGED
        reason = "a saddle" if certificate.is_saddle else "the certificate is violated (see there)"
        limit = _limit_at(flow, found, certificate, status, reason)
    assert limit is not None
    return limit


def _not_predicted(flow):
    name = type(flow.problem.margin_loss).__name__
    reason = (
        f"not predicted: {name} does not state its tail, on which the limit direction depends; "
        "this is the direction at the flow's end"
    )
    return _limit_at(flow, flow.state.theta, None, LimitStatus.NOT_PREDICTED, reason)


def _limit_at(flow, theta, certificate, status, reason):
    network = flow.system.network(theta)
    beta = network.linear_coefficients()
    smallest = jnp.min(flow.problem.margins(beta))
    direction = beta / jnp.linalg.norm(beta)
    return LimitDirection(
        direction=direction,
        network=scaled(network, smallest ** (-1 / flow.system.depth)),
        certificate=certificate,
        status=status,
        reason=reason,
        flow=flow,
        moved=float(jnp.linalg.norm(direction - flow.direction[-1])),
        num_supports=0,
    )


def _continued_limit(limit, tolerance):
    """Continue from a saddle in the dual coordinates of two layers, which keep small entries."""
    flow = limit.flow
    try:
        onward = continue_direction(flow.unfinished_network, flow.problem)
    except ValueError as error:  # no dual coordinates
        return _with_reason(limit, f"not followed further: {error}")
    theta = System.of(onward.network, flow.problem).initial
    found = kkt_point(flow.system, theta, onward.dual)
    followed = _limit_from_kkt(flow, theta / jnp.linalg.norm(theta), found, tolerance)
    if not followed.succeeded:
        return _with_reason(limit, f"the dual flow from there did not leave it ({onward.status})")
    reason = f"{limit.reason}; the dual flow, in growing steps, reached a certified point"
    return dataclasses.replace(followed, status=LimitStatus.CONTINUED, reason=reason)


def _checked_flow(solution_or_network, problem) -> FlowSolution:
    if not getattr(problem, "has_margins", False):
        raise ValueError(
            f"problem: limit_direction is for Classification, got {named(problem)}; a "
            "regression flow ends at its limit, gradient_flow(...).coefficients[-1]."
        )
    flow = solution_or_network
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((flow, problem))):
        raise ValueError(
            "solution_or_network: limit_direction works on concrete arrays and is not for jax.jit "
            "or jax.vmap; loop over it."
        )
    if not isinstance(flow, FlowSolution):
        flow = gradient_flow(
            flow, problem, stop=StopAtMargin(_MARGIN), rtol=rtol_of(flow, problem), throw=False
        )
    if flow.log_loss.ndim != 1:
        raise ValueError(
            f"solution: must be of one flow, got a batch of shape {flow.log_loss.shape[:-1]}; take "
            "one by jax.tree.map(lambda leaf: leaf[k], solution)."
        )
    problem = problem_of(flow.network, problem)
    if not flow.problem.has_margins or not are_equal(flow.problem, problem):
        raise ValueError(
            "problem: must be the one of the flow, got another one; pass solution.problem."
        )
    assert flow.log_margin is not None
    if not np.asarray(flow.log_margin)[-1] > -np.inf:
        separable = is_separable(problem)
        if not separable.separable:
            raise NonSeparableError(
                "problem: the data must be linearly separable, but a convex combination of the "
                "y_i x_i is zero (weights in .certificate); remove contradictory samples, or "
                "append a constant feature if a bias is missing.",
                separable.certificate,
                float(separable.residual),
            )
        raise ValueError(
            "solution: the flow must have separated the data, got an end with a misclassified "
            f"sample (status {status_name(flow.status)}, separable with l2 margin "
            f"{float(separable.margin):.3g}); go on with solution.continued(...), start from other "
            "parameters if it stands still, or remove nearly contradictory samples if the margin "
            "is that small."
        )
    return flow


def _softmax_weights(flow, theta):
    """-l'(m_i) over their sum, for unit parameters `theta` scaled to the norm of the flow's end."""
    return _softmax_weights_of(flow.system, flow.problem, theta, flow.state.log_scale)


@eager_program()
def _softmax_weights_of(system, problem, theta, log_scale):
    margins = problem.margins(system.coefficients(theta))
    scale = jnp.exp(system.depth * log_scale)
    return jax.nn.softmax(problem.log_slopes(scale * margins), axis=None)


def _limit_from_kkt(flow, theta, found: KKTPoint, tolerance) -> LimitDirection:
    """The limit at `found`, with its certificate; at `theta` if `found` is no KKT point near it."""
    problem, system, end = flow.problem, flow.system, flow.direction[-1]
    leap = float(np.linalg.norm(np.asarray(found.theta) - np.asarray(theta)))
    wrong = found.problem_with
    if wrong is None and leap > _LARGEST_DISTANCE:
        wrong = f"the next KKT point is {leap:.1e} away, and need not be the limit of the flow"
    network, direction = _at_margin_one(system, problem, theta if wrong else found.theta)
    certificate = certify(network, problem, tolerance=tolerance)
    if wrong:
        status, reason = LimitStatus.NOT_CONVERGED, wrong
    elif certificate.is_stationary:
        status, reason = (
            LimitStatus.STATIONARY,
            "a certified KKT point, reached from the flow's end",
        )
    elif certificate.is_saddle:
        status, reason = LimitStatus.SADDLE, "a saddle, reached from the flow's end"
    else:
        status, reason = LimitStatus.NOT_CONVERGED, "the certificate is violated (see there)"
    return LimitDirection(
        direction=direction,
        network=network,
        certificate=certificate,
        status=status,
        reason=reason,
        flow=flow,
        moved=float(np.linalg.norm(np.asarray(direction) - np.asarray(end))),
        num_supports=found.num_supports,
    )


@eager_program()
def _at_margin_one(system, problem, theta):
    """The network along `theta` whose smallest margin is 1, and its direction."""
    network = system.network(theta)
    smallest = jnp.min(problem.margins(network.linear_coefficients()))
    network = scaled(network, smallest ** (-1 / system.depth))
    beta = network.linear_coefficients()
    return network, beta / jnp.linalg.norm(beta)


def _with_reason(limit, reason):
    return dataclasses.replace(limit, reason=f"{limit.reason}; {reason}")
