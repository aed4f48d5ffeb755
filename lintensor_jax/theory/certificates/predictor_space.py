"""Stationary points of min R(beta) subject to y_i <x_i, beta> >= 1, and the distance from them.

Gunasekar et al. 2018, eq. 11-13; Yun et al. 2021, Theorem 2, conditions (a) to (c).
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...messages import in_words
from ...networks import AssumptionFails, split
from ...networks.closed_forms import closed_form
from ..assumptions import components_of, rounding
from ..least_norm.conic import Constraints
from ..least_norm.gauge_programs import optimum
from ..least_norm.gauges import AbstractGauge, GroupGauge
from ..least_norm.multipliers import approximate_multipliers, proximal_step, resolution
from ..least_norm.norms import AbstractNorm, L1Norm, L2Norm, LpNorm, NuclearNorm, gauge_of

# Random directions along which a regulariser is tested for a kink.
_DIRECTIONS = 4


class Regularizer(eqx.Module):
    """A user's regulariser R(beta) for `certify`, given by its gradient or by its prox.

    R must be positively homogeneous of some degree (as every min |Theta|^2 subject to
    beta(Theta) = beta is). Then stationarity depends on the direction of beta only. `gradient` is
    called at |beta|_2 = 1 only.

    **Arguments**: one of

    - `gradient`: beta (d,) -> the gradient of R, shape (d,); where R has a kink, one subgradient,
      and only this one is tested. The condition is gradient(beta) = sum_i nu_i y_i x_i, nu >= 0.
    - `prox`: v (d,) -> argmin_u R(u) + |u - v|_2^2 / 2 for a *convex* R, traceable by JAX. The
      condition is beta = prox(beta + sum_i nu_i y_i x_i), nu >= 0: it covers all subgradients.
    """

    gradient: Callable[[Array], Array] | None = eqx.field(static=True, default=None)
    prox: Callable[[Array], Array] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if callable(self.gradient) == callable(self.prox):
            raise ValueError(
                "Regularizer: exactly one of gradient and prox must be a function, got gradient="
                f"{in_words(self.gradient)} and prox={in_words(self.prox)}; pass e.g. "
                "Regularizer(gradient=jax.grad(R))."
            )


@dataclasses.dataclass(frozen=True)
class Stationarity:
    """The predictor-space part of a certificate, for data scaled so that the largest entry is 1."""

    residual: float
    #: What rounding of the multipliers alone may add to the residual.
    resolution: float
    multipliers: np.ndarray
    worst_off_support: float | None
    name: str


def in_predictor_space(network, beta, signed, slack, regularizer, tolerance) -> Stationarity | None:
    """The predictor-space part of the certificate; None if no regulariser is given or known.

    - `network`: scaled to |Theta| = 1, or None. `beta` (d,) or (d, m): its coefficients.
    - `signed` (n, d) or (N, d, m): the rows y_i x_i over their largest modulus.
    - `slack` (N,): m_i / min m - 1 for the margins m_i.
    """
    if regularizer is None:
        if network is None:
            raise ValueError(
                "certify: regularizer must be given where network_or_coefficients holds only "
                "coefficients, got None; pass a norm object such as L1Norm(), or the network."
            )
        regularizer = _norm_of(network)
        if regularizer is None and _has_components(network):
            return _of_components(network, signed, slack, tolerance)
        if regularizer is None:
            regularizer = _smooth_regularizer(network, beta)
        if regularizer is None:
            return None
    if isinstance(regularizer, AbstractNorm):
        gauge, form = gauge_of(regularizer, beta.shape, "certify")
        rho = form.coordinates(beta.ravel())
        # A change of basis turns zeros into rounding errors, and a power below 1 enlarges these.
        rho = rho if form.basis is None else gauge.cleaned(rho)
        name = f"{type(regularizer).__name__}"
        rows = form.measurements(signed.reshape(len(signed), -1))
        return _of_gauge(gauge, rows, rho, slack, tolerance, name)
    gradient, prox = (getattr(regularizer, name, None) for name in ("gradient", "prox"))
    direction = beta / np.linalg.norm(beta)
    if gradient is not None:
        return _of_gradient(gradient, direction, signed, slack)
    if prox is not None:
        shape, direction = direction.shape, direction.ravel()
        signed = signed.reshape(len(signed), -1)

        def flat(v):
            return prox(v.reshape(shape)).ravel()

        moved, multipliers = proximal_step(flat, direction, signed, np.min(signed @ direction))
        residual, noise = float(np.linalg.norm(moved - direction)), resolution(signed, multipliers)
        return Stationarity(residual, noise, multipliers, None, "R (its prox)")
    raise ValueError(
        "certify: regularizer must be a norm object such as lintensor_jax.L1Norm(), or a "
        f"Regularizer with a gradient or a prox, got {in_words(regularizer)}."
    )


def _norm_of(network) -> AbstractNorm | None:
    """The norm such that the network's regulariser is an increasing function of it, if known."""
    order = closed_form(network, "induced_norm_order")
    if order is None:
        of_singular_values = closed_form(network, "induced_singular_norm_order")
        return NuclearNorm() if of_singular_values == 1 else None
    return {1: L1Norm(), 2: L2Norm()}.get(order) or LpNorm(order)


def _has_components(network):
    """Whether R is the l_{2/L} quasi-norm of rho.

    It is if the network has a decomposition and no parameter is shared between layers.
    """
    if hasattr(network, "singular_components"):
        return True
    if not (hasattr(network, "orthogonal_decomposition") and hasattr(network, "factors")):
        return False
    leaves = jax.tree.leaves(split(network)[0])
    return sum(v.size for v in network.factors) == sum(leaf.size for leaf in leaves)


def _smooth_regularizer(network, beta) -> Regularizer | None:
    """The network's `induced_regularizer`, by its gradient; None if it has a kink at beta.

    At a kink one gradient does not decide stationarity. A kink shows as a second difference along
    a random direction that is proportional to the step and not to its square.
    """
    direction = jnp.asarray(beta / np.linalg.norm(beta))
    if closed_form(network, "induced_regularizer", direction) is None:
        return None
    step = float(jnp.finfo(direction.dtype).eps) ** 0.25
    rng = np.random.default_rng(0)
    value = float(network.induced_regularizer(direction))
    for _ in range(_DIRECTIONS):
        move = rng.standard_normal(beta.shape)
        move = jnp.asarray(move / np.linalg.norm(move), direction.dtype)
        ends = [float(network.induced_regularizer(direction + h * move)) for h in (step, -step)]
        if not abs(ends[0] + ends[1] - 2 * value) <= 1e-3 * step * value:
            return None
    return Regularizer(gradient=lambda b: jax.grad(network.induced_regularizer)(b))


def _of_components(network, signed, slack, tolerance):
    """The l_{2/L} quasi-norm of rho = prod_l U_l^T v_l (Yun et al. 2021, Theorem 2)."""
    try:
        found = components_of(network)
    except AssumptionFails:
        return None
    values = np.asarray(found.values)
    # The change of basis turns zero weights into rounding errors. Setting them to zero changes
    # |Theta| by no more than their size.
    values = np.where(np.abs(values) > rounding(values) * np.abs(values).max(), values, 0.0)
    rho = np.prod(values, axis=0)
    rows = signed if found.S is None else signed @ np.asarray(found.S).T
    labels = np.arange(rho.size)
    if np.iscomplexobj(rho):
        # Re((S z)^T rho) for rho = a + i b, and |rho_j| is the length of the pair (a_j, b_j).
        rows = np.stack([np.real(rows), -np.imag(rows)], axis=-1).reshape(len(rows), -1)
        rho, labels = np.stack([rho.real, rho.imag], axis=-1).ravel(), np.repeat(labels, 2)
    depth = network.depth
    name = ("l1 norm" if depth == 2 else f"l_(2/{depth}) quasi-norm") + " of rho, beta = S^T rho"
    return _of_gauge(GroupGauge(labels, 2 / depth), rows, rho, slack, tolerance, name)


def _of_gauge(gauge: AbstractGauge, rows, rho, slack, tolerance, name) -> Stationarity:
    """Stationarity for min gauge(rho): the multipliers are those of the balanced network at rho.

    If the gauge has many subgradients at rho, the multipliers are those of an optimum of the
    convex problem. They belong to every optimum, hence to this point if it is an optimum.
    """
    w = rho / np.max(np.abs(rho))
    w = w / gauge.value(w)
    level = np.min(rows @ w)

    def measured(p):
        # NumPy keeps a NaN, which max() may lose.
        return float(np.maximum(gauge.stationarity(w, rows.T @ p / level), p @ slack))

    conditions = gauge.balanced(w, rows)
    if conditions is None:
        shares = _optimal_shares(gauge, rows, level)
        residual, noise = measured(shares), resolution(rows / level, shares)
    else:
        columns, target = conditions
        shares, residual, noise = approximate_multipliers(columns / level, target, slack)
        if gauge.is_convex:
            residual, noise = measured(shares), resolution(rows / level, shares)
            if residual > tolerance and _is_dependent(columns[slack <= tolerance], tolerance):
                # The nonzero coordinates do not determine the multipliers.
                other = _optimal_shares(gauge, rows, level)
                if measured(other) <= tolerance:
                    shares, residual = other, measured(other)
    worst = None
    if isinstance(gauge, GroupGauge):
        dual = gauge.group_norms(rows.T @ shares / level)
        norms = gauge.group_norms(w)
        worst = float(np.max(dual[norms <= tolerance * norms.max()], initial=0.0))
    return Stationarity(residual, noise, shares / level, worst, name)


def _is_dependent(rows, tolerance):
    """Whether the rows do not determine a combination of them to within the tolerance."""
    lengths = np.linalg.norm(rows, axis=1)
    if len(rows) > rows.shape[1] or not lengths.all():
        return True
    singular = np.linalg.svd(rows / lengths[:, None], compute_uv=False)
    return singular[-1] <= tolerance * singular[0]


def _optimal_shares(gauge, rows, level):
    lengths = np.linalg.norm(rows, axis=1)
    targets = lengths.min() / lengths
    found, _ = optimum(gauge, Constraints.of(rows / lengths[:, None], targets, equality=False))
    return found.multipliers * level / (found.level * lengths)


def _of_gradient(gradient, direction, signed, slack):
    slope = np.asarray(gradient(jnp.asarray(direction)), np.float64)
    shape = direction.shape
    if slope.shape != direction.shape or not np.isfinite(slope).all():
        raise ValueError(
            f"certify: regularizer.gradient must return finite values of shape {shape}, "
            f"got shape {slope.shape}; return a subgradient where R has a kink."
        )
    slope, direction = slope.ravel(), direction.ravel()
    signed = signed.reshape(len(signed), -1)
    growth, length = slope @ direction, np.linalg.norm(slope)
    # For an R of degree 0 the growth is zero, and its computed sign is rounding.
    if not growth > 16 * np.finfo(float).eps * (np.abs(slope) @ np.abs(direction)):
        raise ValueError(
            "certify: regularizer.gradient must be that of a positive, positively homogeneous R, "
            f"<gradient(beta), beta> > 0, got {growth:.3g}; check its sign."
        )
    level = np.min(signed @ direction)
    columns = signed * (growth / (level * length))
    shares, residual, noise = approximate_multipliers(columns, slope / length, slack)
    return Stationarity(residual, noise, shares * growth / level, None, "R (its gradient)")
