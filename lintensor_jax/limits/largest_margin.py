"""The limit direction of two layers: the maximum margin, if it is unique.

In two layers with an orthogonal decomposition a flow that separates the data tends to the maximum
margin in the l1 norm of rho, beta = S^T rho (Gunasekar et al. 2018, Theorems 2 and 4; Yun et al.
2021, Theorem 2). For real rho this is proved (docs/theory.md, P1). If there is only one such
margin, the flow to margin 1e5 adds no information, and needs implicit steps. So the flow goes to a
small margin only, by explicit steps, and the limit is computed as the solution of the margin
problem. For complex rho (full-length convolutions) there is no proof. There the flow is integrated
to the large margin, unless it has many parameters: the cost of an implicit step is their number
cubed.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..dynamics import FlowSolution, gradient_flow
from ..dynamics.statuses import FlowStatus
from ..dynamics.stopping import StopAtMargin
from ..losses import ExponentialTail
from ..networks import split
from ..theory import NonSeparableError, max_margin
from ..theory.least_norm.max_margin import MarginPrecisionError
from ..theory.least_norm.norms import FourierL1Norm, L1Norm
from .dual_flow import dual_form

# Up to this many parameters a flow with complex rho is integrated to a large margin.
_MOST_INTEGRATED_PARAMETERS = 80
# The margin at which the flow stops. An explicit step changes the margin by about a fifth there.
_MARGIN, _MOST_STEPS = 10.0, 4000
# Components of rho below this share of the largest are rounding errors of a change of basis.
_BASIS_ROUNDING = 1e-12


def early_flow(network: Any, problem: Any, rtol: float) -> FlowSolution | None:
    """The flow to margin 10, by explicit steps; None if it does not reach that margin."""
    flow = gradient_flow(
        network,
        problem,
        solver=diffrax.Dopri8(),
        stop=StopAtMargin(_MARGIN),
        rtol=rtol,
        max_steps=_MOST_STEPS,
        throw=False,
    )
    return flow if flow.status == FlowStatus.margin else None


def is_determined(network: Any, problem: Any) -> bool:
    """Whether the network has two layers and a limit that can be the maximum margin."""
    tail = getattr(getattr(problem, "margin_loss", None), "tail", None)
    if getattr(network, "depth", None) != 2 or not isinstance(tail, ExponentialTail):
        return False
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((network, problem))):
        return False
    form = dual_form_of(network, problem)
    if form is None:
        return False
    size = sum(leaf.size for leaf in jax.tree.leaves(split(network)[0]))
    return form.rows_of_components is not None or size > _MOST_INTEGRATED_PARAMETERS


def dual_form_of(network: Any, problem: Any) -> Any:
    """The network's two layers in the coordinates of its decomposition; None without one."""
    try:
        return dual_form(network, np.asarray(problem.signed_data, np.float64))
    except ValueError:
        return None


class LargestMargin(NamedTuple):
    """The only maximum margin of a problem, in the coordinates of a network's decomposition."""

    rho: np.ndarray  # (m,)
    multipliers: np.ndarray  # (n,)


def largest_margin(network: Any, problem: Any) -> LargestMargin | None:
    """The maximum margin, the same for all parameters of `network`; None if it is not unique."""
    form = dual_form_of(network, problem)
    if form is None:
        return None
    rows = form.rows_of_components
    norm = L1Norm() if rows is not None else FourierL1Norm()
    data = problem if rows is None else SimpleNamespace(signed_data=jnp.asarray(rows))
    try:
        found = max_margin(data, norm)
    except (NonSeparableError, MarginPrecisionError):
        return None
    if found.status != "optimal" or not found.unique:
        return None
    rho = np.asarray(found.coefficients, np.float64)
    rho = rho if rows is not None else np.fft.rfft(rho)
    rho = np.where(np.abs(rho) > _BASIS_ROUNDING * np.max(np.abs(rho)), rho, 0.0)
    return LargestMargin(rho, np.asarray(found.multipliers))


def network_at(margin: LargestMargin, network: Any, problem: Any) -> Any:
    """Balanced layers at the maximum margin, with the network's signs and phases.

    None if the flow from this network cannot reach it: a component of rho that is zero in both
    layers stays zero, and one with |eta_1| = |eta_2| keeps its sign.
    """
    form = dual_form_of(network, problem)
    if form is None or not form.reaches(margin.rho):
        return None
    return form.with_components(margin.rho)
