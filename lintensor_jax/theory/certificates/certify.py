"""Certificates: how far a separator is from the stationary points that flows tend to.

In *parameter space* the problem is min |Theta|^2 subject to y_i <x_i, beta(Theta)> >= 1 (Gunasekar
et al. 2018, eq. 14; its stationary points: Theorem 4, eq. 16), in *predictor space* min R(beta)
subject to y_i <x_i, beta> >= 1 (eq. 11-13 and 15; Yun et al. 2021, Theorem 2). A coordinate that is
zero in all layers satisfies the parameter-space condition for any data. So some stationary points
in parameter space are saddles; only the predictor-space condition detects them. All computations
run on the host, in float64. The residuals do not depend on the scale of data or separator.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from ...arguments import as_number
from ...eager_programs import eager_program
from ...losses import ExponentialTail
from ...messages import as_html, in_words
from ...multiclass import MulticlassClassification
from ...networks import coefficients_and_pullback, split
from ...networks.pair import problem_of
from ...problems import Classification
from ..least_norm.multipliers import approximate_multipliers
from ..least_norm.norms import AbstractNorm
from .predictor_space import Regularizer, in_predictor_space

# Computed margins are off by this many roundings of sum_j |x_ij beta_j|.
_MARGIN_ULPS = 16
# The residual that a stationary point can still have by rounding, in roundings of the dtype.
_REACHED_ULPS = 1024


class Certificate(eqx.Module):
    """How far a separator is from stationarity; `print` it to see which conditions are violated.

    Each residual is a minimum over nu >= 0. What is minimised combines the error of stationarity
    with that of complementarity, sum_i p_i (m_i / min m - 1), where p_i = nu_i / sum_k nu_k. *All*
    samples enter, and no threshold selects the support. So next to a stationary point a residual
    is proportional to the distance from it.
    """

    #: |Theta - sum_i nu_i grad m_i(Theta)| / |Theta| where the smallest margin is 1 (eq. 16);
    #: None if only coefficients were given.
    parameter_residual: float | None = eqx.field(static=True)
    #: The same for the regulariser R of the linear coefficients; None if no R is known.
    #: L = 2 (l1, l2): |G - P(w + G)| in the dual norm, w of norm 1, G = sum_i nu_i y_i x_i and P
    #: the projection on the dual ball. L > 2: the parameter-space residual of the balanced
    #: diagonal network with that rho. R given by its gradient: relative to the gradient's length.
    #: R given by its prox: |beta - u|_2 at |beta|_2 = 1, u the proximal step of R and constraints.
    predictor_residual: float | None = eqx.field(static=True)
    #: True for margins that equal the smallest one up to the tolerance. Shape (n,); for m classes
    #: (n, m - 1).
    support: Bool[Array, "..."]
    #: nu >= 0 of eq. 16 where the smallest margin is 1; the shape is that of `support`. If only
    #: coefficients were given: nu with sum_i nu_i y_i x_i in the subdifferential of R (for a norm
    #: at margin 1, so that their sum is the norm; for a `Regularizer` at |beta|_2 = 1).
    multipliers: Float[Array, "..."]
    #: max |u_j| over the zero coordinates of rho, u = sum_i nu_i S^* y_i x_i, in units of the dual
    #: norm. At most 1 at a stationary point for L = 2; no condition for L > 2. A coordinate counts
    #: as zero below tolerance * max |rho|. None if R is no norm with coordinates.
    worst_off_support: float | None = eqx.field(static=True)
    #: The regulariser in words.
    regularizer: str | None = eqx.field(static=True)
    #: What rounding of the multipliers alone may add to a residual: about 1e-14 over the normalised
    #: margin. It exceeds the tolerance only if the data are nearly contradictory.
    resolution: float = eqx.field(static=True)
    #: Residuals up to this one, or up to the resolution, count as zero.
    tolerance: float = eqx.field(static=True)
    #: Why flows of this loss need not end at a stationary point. Empty for losses with an
    #: exponential tail: the certificate applies to their flows.
    remark: str = eqx.field(static=True, default="")

    @property
    def is_stationary(self) -> bool:
        """Whether all known residuals are within the tolerance (or what float64 resolves)."""
        known = (self.parameter_residual, self.predictor_residual)
        return all(r is None or self._holds(r) for r in known)

    @property
    def is_saddle(self) -> bool:
        """Stationary in parameter space, but not in predictor space: a flow can leave it."""
        parameter, predictor = self.parameter_residual, self.predictor_residual
        if parameter is None or predictor is None:
            return False
        return self._holds(parameter) and not self._holds(predictor)

    def _holds(self, residual):
        return residual <= max(self.tolerance, self.resolution)

    def __str__(self) -> str:
        """The verdict, then each condition with its measured violation."""
        verdict = "Stationary" if self.is_stationary else "Not stationary"
        if self.is_saddle:
            verdict = "A saddle: stationary in parameter space, but not in predictor space"
        lines = [f"{verdict} (tolerance {self.tolerance:.1e})."]
        for name, residual in (
            ("Parameter space (Gunasekar et al. 2018, eq. 16)", self.parameter_residual),
            (f"Predictor space (eq. 11-13, min {self.regularizer})", self.predictor_residual),
        ):
            if residual is not None:
                holds = "holds, " if self._holds(residual) else "VIOLATED, "
                lines.append(f"{name}: {holds}residual {residual:.3e}.")
        if self.remark:
            lines.append(self.remark)
        if self.parameter_residual is None:
            lines.append("Parameter space: only linear coefficients were given.")
        if self.predictor_residual is None:
            lines.append("Predictor space: no regulariser is known for this architecture.")
        if self.resolution > self.tolerance:
            lines.append(
                f"Nearly contradictory data: float64 resolves residuals to {self.resolution:.1e}."
            )
        if self.worst_off_support is not None:
            lines.append(f"Largest |u_j| over zero coordinates: {self.worst_off_support:.6g}.")
        tight = int(np.sum(self.support))
        positive = np.asarray(self.multipliers)[np.asarray(self.multipliers) > 0]
        sizes = f"from {positive.min():.3g} to {positive.max():.3g}" if positive.size else "none"
        lines.append(
            f"{tight} of {self.support.size} samples have the smallest margin; "
            f"{positive.size} positive multipliers, {sizes}."
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The text of `__str__` as HTML, for notebooks."""
        return as_html(self)


def certify(
    network_or_coefficients: Any,
    problem: Classification | MulticlassClassification,
    *,
    regularizer: AbstractNorm | Regularizer | None = None,
    tolerance: float | None = None,
) -> Certificate:
    """Whether a separator is stationary in parameter space and in predictor space.

    Sources: Gunasekar et al. 2018, Theorem 4 (eq. 16) and eq. 11-13; Yun et al. 2021, Theorem 2.

    **Arguments**

    - `network_or_coefficients`: a network (also a user's module with `linear_coefficients` and
      `depth`), or linear coefficients of shape (d,), for m classes (d, m). Only the direction
      counts.
    - `problem`: a `Classification` or `MulticlassClassification`, all margins positive.
    - `regularizer`: a norm object or a `Regularizer`. Default: that of the network. Fully
      connected: l2; two layers with several outputs, as wide as beta: the nuclear norm.
      `DiagonalNetwork`, `DifferentialDiagonalNetwork`: l_{2/L}. Full-length convolutions,
      `OrthogonalNetwork`, and a `TensorNetwork` with an orthogonal decomposition: l_{2/L} of
      rho = prod_l U_l^T v_l, beta = S^T rho, real or complex. A user's network states its norm
      by `induced_norm_order()`, or by `orthogonal_decomposition()` and `factors`; its
      `induced_regularizer(beta)` is used where it is smooth. None is known for other networks.
    - `tolerance`: residuals and relative differences of margins up to this one count as zero.
      Default: 1e-8, and 1e-4 where JAX is in float32.

    **Raises** ValueError for a sample that is misclassified, and for arguments that do not fit.
    """
    problem = problem_of(network_or_coefficients, problem)
    signed, scale = _signed_data(problem)
    if tolerance is None:
        # If JAX is in float32, the network is evaluated in float32, and 1e-8 is below its rounding.
        tolerance = max(1e-8, _REACHED_ULPS * float(jnp.finfo(jnp.result_type(float)).eps))
    _require_tolerance(tolerance)
    is_network = hasattr(network_or_coefficients, "linear_coefficients")
    if is_network:
        network = _unit_network(network_or_coefficients, tolerance)
        found = _margin_gradients(network, jnp.asarray(signed))
        beta, gradients = (np.asarray(a, np.float64) for a in found)
    else:
        network, beta, gradients = None, _coefficients(network_or_coefficients), None
    if beta.shape != problem.coefficient_shape:
        raise ValueError(
            "certify: the linear coefficients must have the shape of a sample, "
            f"{problem.coefficient_shape}, got {beta.shape}; certify the network on the problem "
            "that it was trained on."
        )
    margins_shape = problem.signed_data.shape[: problem.signed_data.ndim - beta.ndim]
    level, slack = _margins(signed.reshape(len(signed), -1), beta.ravel())
    found = in_predictor_space(network, beta, signed, slack, regularizer, tolerance)
    residual, multipliers, noise = None, np.zeros(0), 0.0 if found is None else found.resolution
    if network is not None and gradients is not None:
        depth, theta = network.depth, _flat(split(network)[0])
        shares = approximate_multipliers(gradients / (depth * level), theta, slack)
        residual, noise = shares.residual, max(noise, shares.resolution)
        multipliers = shares.values * (level * scale) ** (-2 / depth) / depth
    elif found is not None:
        multipliers = found.multipliers / scale
    return Certificate(
        parameter_residual=residual,
        predictor_residual=None if found is None else found.residual,
        support=jnp.asarray(slack <= tolerance).reshape(margins_shape),
        multipliers=jnp.asarray(multipliers).reshape(margins_shape),
        worst_off_support=None if found is None else found.worst_off_support,
        regularizer=None if found is None else found.name,
        resolution=noise,
        tolerance=float(tolerance),
        remark=_remark(problem.margin_loss),
    )


def _remark(loss):
    """Why a flow need not end at a stationary point; empty for exponential tails."""
    if isinstance(loss.tail, ExponentialTail):
        return ""
    tail = "states no tail" if loss.tail is None else f"has a tail that is {loss.tail}"
    return (
        "These are the conditions of the margin problem, where flows of losses with an exponential "
        f"tail end; {type(loss).__name__} {tail}, and its flows need not end there."
    )


def _margins(signed, beta):
    """min m, and the excesses m_i / min m - 1, reduced by what rounding may have added."""
    margins = signed @ beta
    sizes = np.linalg.norm(signed, axis=1) * np.linalg.norm(beta)
    normalised = margins / np.where(sizes > 0, sizes, 1.0)
    noise = _MARGIN_ULPS * np.finfo(float).eps * (np.abs(signed) @ np.abs(beta))
    if not np.min(margins - noise) > 0:
        worst = int(np.argmin((margins - noise) / np.where(sizes > 0, sizes, 1.0)))
        raise ValueError(
            "certify: network_or_coefficients must classify every sample correctly, beyond "
            "rounding, got a smallest normalised margin y_i <x_i, beta> / (|x_i| |beta|) of "
            f"{normalised[worst]:.3g} at sample {worst}; let the flow run on, or see "
            "is_separable(problem)."
        )
    level = np.min(margins + noise)
    return float(level), np.maximum(margins - noise - level, 0.0) / level


@eager_program()
def _margin_gradients(network: Any, signed: Float[Array, "n ..."]):
    beta, pullback = coefficients_and_pullback(network)
    if beta.shape != signed.shape[1:]:
        return beta, signed
    return beta, jax.vmap(lambda z: _flat(pullback(z), jnp))(signed)


def _flat(tree, array_module: Any = np):
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return array_module.concatenate([array_module.ravel(leaf) for leaf in leaves])


def _unit_network(network: Any, tolerance):
    """The network at |Theta| = 1, in float64 if JAX has it enabled."""
    if not hasattr(network, "depth"):
        raise ValueError(
            f"certify: network_or_coefficients must state its depth, got {type(network).__name__} "
            "without one; set depth = L where beta(c Theta) = c^L beta(Theta)."
        )
    dtype = jnp.result_type(float)
    if tolerance < 16 * float(jnp.finfo(dtype).eps):
        raise ValueError(
            f"certify: tolerance must be at least 16 roundings of {dtype}, got {tolerance:.1e}; "
            'raise it, or work in float64: jax.config.update("jax_enable_x64", True).'
        )
    _require_concrete(network, "network_or_coefficients")
    parameters, rest = split(network)
    theta = np.asarray(_flat(parameters), np.float64)
    largest = np.max(np.abs(theta), initial=0.0)
    if not (largest > 0 and np.isfinite(largest)):
        raise ValueError(
            "certify: network_or_coefficients must have finite parameters that are not all zero, "
            f"got a largest modulus of {largest}; a zero network has no direction."
        )
    length = np.linalg.norm(theta / largest)
    unit = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf, np.float64) / largest / length, dtype), parameters
    )
    return eqx.combine(unit, rest)


def _coefficients(value: ArrayLike):
    _require_concrete(value, "network_or_coefficients")
    try:
        beta = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        beta = np.zeros(0)
    largest = np.max(np.abs(beta), initial=0.0)
    if not (largest > 0 and np.isfinite(largest)):
        raise ValueError(
            "certify: network_or_coefficients must be a network (with linear_coefficients) or "
            f"finite, nonzero coefficients of shape (d,), got {_given(value)}."
        )
    return beta / largest


def _given(value):
    """The given value in words; for the result of a flow, which of its fields to pass instead."""
    if not hasattr(value, "network"):
        return in_words(value)
    last = ".direction" if np.ndim(getattr(value, "direction", ())) == 1 else ".direction[-1]"
    return f"a {type(value).__name__}; pass its .network, or with a regularizer its {last}"


def _signed_data(problem):
    """The rows y_i x_i divided by their largest modulus, and this modulus."""
    if not getattr(problem, "has_margins", False):
        raise ValueError(
            f"certify: problem must be a Classification, got {type(problem).__name__}; the limits "
            "of regression flows are points, not directions: see predict and min_norm."
        )
    _require_concrete(problem, "problem")
    with jax.ensure_compile_time_eval():  # jax.jit is refused later, with a message about it
        signed = np.asarray(problem.signed_data, np.float64)
    signed = signed.reshape(-1, *problem.coefficient_shape)
    scale = np.max(np.abs(signed)) or 1.0
    return signed / scale, scale


def _require_tolerance(tolerance):
    if not 0 < as_number(tolerance, "tolerance", "certify") < 1:
        raise ValueError(
            f"certify: tolerance must lie strictly between 0 and 1, got {tolerance!r}; leave it "
            "out for 1e-8."
        )


def _require_concrete(tree, name):
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"certify: {name} must hold concrete arrays, got traced ones; call it outside jit, "
            "grad and vmap."
        )
