"""One hidden neuron: the limit of regression at any scale, for any number of samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ...lapack_calls import in_turn
from ...networks import FullyConnectedNetwork
from ...problems import Regression
from ..assumptions import Assumption, rounding
from ..least_norm.min_norm import require_consistent
from ..prediction import AbstractLossBound, Candidate, Conclusion, Kind
from ..row_space import RowSpace

AZULAY = "Azulay et al. 2021"
# Rounding of a start that was computed to be balanced, in units of the last place.
_ROUNDINGS = 16


class NeuronLimit(eqx.Module):
    """The limit of a flow of beta = a u, as `single_neuron_limit` predicts it.

    - `coefficients` (d,): beta at the limit, X^+ y + a u_perp.
    - `network`: the limit parameters.
    - `imbalance`: delta = a(0)^2 - |u(0)|^2, which the flow conserves. The limit is certain for
      delta + |u_perp|^2 > 0; see `single_neuron_limit` for the other cases.
    """

    coefficients: Float[Array, " d"]
    network: FullyConnectedNetwork
    imbalance: Scalar


def single_neuron_limit(network: FullyConnectedNetwork, problem: Regression) -> NeuronLimit:
    """The limit of gradient flow of a linear network with one hidden neuron, at any initial scale.

    beta = a u with u in R^d and a scalar a. u' = -a X^T r lies in the row space of X, so the part
    u_perp of u in the kernel of X is constant. delta = a^2 - |u|^2 is constant as well, and
    X u a = y at the end. With b = X^+ y it follows that a^2 = c + |b|^2 / a^2, c = delta +
    |u_perp|^2:

        beta = b + a u_perp,   a = sign(a(0)) sqrt((c + sqrt(c^2 + 4 |b|^2)) / 2).

    Source: Azulay et al. 2021 treat this setting by a warped mirror flow with the same conserved
    delta; its potential has gradient sign(a) u, and solving that statement gives the closed form.
    For c > 0 a stays away from 0 and the limit is unique. It is also unique if the loss is at most
    that of beta = 0: the loss decreases, so that a does not return to 0. If a(0) = 0, its first
    move, u^T X^T y, decides its sign. For delta = u_perp = 0 the flow may end at a = u = 0. With
    data along one direction it does so if a u points away from b: then the limit is 0. With more
    directions it does so from exceptional starts only. For c < 0 the flow may pass a = 0 or end
    there; the limit returned is the one without a change of sign. `predict` states what is certain.

    **Arguments**

    - `network`: two layers, one hidden unit: weights of shapes (d, 1) and (1,).
    - `problem`: `Regression` with consistent equations, y of shape (n,).

    Traceable by `jax.jit` and `jax.vmap`; differentiable in parameters, X (of full row rank) and y.
    ValueError for another architecture, or if a(0) = 0 and u^T X^T y = 0, where no flow moves;
    `InconsistentEquationsError` (a ValueError) if no beta satisfies X beta = y. Traced values are
    not checked.
    """
    shapes = [w.shape for w in getattr(network, "weights", ())]
    dimension = problem.X.shape[1]
    if not isinstance(network, FullyConnectedNetwork) or shapes != [(dimension, 1), (1,)]:
        raise ValueError(
            "network: single_neuron_limit needs a FullyConnectedNetwork with weights of shapes "
            f"({dimension}, 1) and (1,), got {type(network).__name__} with shapes {shapes}; use "
            "gradient_flow for wider networks."
        )
    u, a = network.weights[0][:, 0], network.weights[1][0]
    imbalance = a**2 - u @ u
    first_move = u @ (problem.X.T @ problem.y)
    sign = jnp.sign(jnp.where(a == 0, first_move, a))
    if not isinstance(sign, Tracer) and float(sign) == 0:
        raise ValueError(
            "network: single_neuron_limit needs a nonzero output weight a(0), or one that moves, "
            "got a(0) = 0 and u^T X^T y = 0, where no flow moves; start elsewhere."
        )
    pseudo_inverse = jnp.linalg.pinv(problem.X)
    b = pseudo_inverse @ problem.y
    if not isinstance(b, Tracer):
        misfit = np.asarray(problem.X @ b - problem.y)
        require_consistent(misfit, np.asarray(problem.y), problem.y.dtype, "single_neuron_limit")
    u_perp = u - pseudo_inverse @ (problem.X @ u)
    c = imbalance + u_perp @ u_perp
    root = jnp.sqrt(c**2 + 4 * (b @ b))
    # For c < 0 the sum c + root cancels, so a^2 is computed from its conjugate |c| + root.
    positive = 0.5 * (jnp.abs(c) + root)
    squared = jnp.where(c >= 0, positive, (b @ b) / jnp.where(positive > 0, positive, 1.0))
    ends_at_zero = _ends_at_zero(a, u, u_perp, b, imbalance, in_turn(problem.X, b))
    limit_a = jnp.where(ends_at_zero, 0.0, sign * jnp.sqrt(squared))
    limit_u = jnp.where(ends_at_zero, 0.0, u_perp + b / jnp.where(ends_at_zero, 1.0, limit_a))
    b = jnp.where(ends_at_zero, 0.0, b)
    limit = eqx.tree_at(
        lambda n: n.weights, network, (limit_u[:, None], jnp.reshape(limit_a, (1,)))
    )
    return NeuronLimit(b + limit_a * u_perp, jax.tree.map(jnp.asarray, limit), imbalance)


def _ends_at_zero(a, u, u_perp, b, imbalance, X):
    """Whether the limit is 0: data along one direction, balanced start that points away from b."""
    zero = _ROUNDINGS * jnp.finfo(u.dtype).eps
    size = a**2 + u @ u
    balanced = (jnp.abs(imbalance) <= zero * size) & (u_perp @ u_perp <= zero * size)
    sizes = jnp.linalg.svd(X, compute_uv=False)
    one_direction = jnp.sum(sizes > zero * max(X.shape) * sizes[0]) == 1
    return balanced & one_direction & (a * (u @ b) < 0)


def one_neuron_candidate(
    network: FullyConnectedNetwork,
    problem: Regression,
    data: RowSpace,
    converges: Assumption,
    rate: AbstractLossBound | None,
) -> tuple[Candidate, bool]:
    """The closed form as a theorem about this network, for any number of samples.

    - `data`: the problem's `row_space`.
    - `converges`: the assumption that the loss converges; `rate`: its bound.

    Also returns whether the sign of the output weight is known.
    """
    u, a = np.asarray(network.weights[0][:, 0]), float(network.weights[1][0])
    inside = data.basis @ u
    outside = u - data.basis.T @ inside
    zero = rounding(u) * (a**2 + u @ u)
    level = a**2 - float(inside @ inside)
    pull = float(inside @ (data.basis @ np.asarray(data.rows.T @ data.targets)))
    beta = network.linear_coefficients()
    moves = a != 0 or (problem.has_squared_loss and pull != 0)
    keeps = (
        level > zero
        or (a == 0 and pull == 0)  # nothing moves
        or (abs(level) <= zero and a != 0)
        or float(outside @ outside) <= zero
        or (moves and float(problem.loss(beta)) <= float(problem.loss(0 * beta)))
    )
    sign = Assumption(
        "the output weight a keeps its sign: a^2 - |u_1|^2, u_1 the part of u in the row space",
        level,
        True if keeps else None,
        AZULAY,
    )

    def conclude():
        if not keeps:
            note = (
                "The limit is X^+ y + a u_2 with u_2 the part of u outside the row space; a is one "
                "of two numbers of opposite sign, and which one is not decided here."
            )
            return Conclusion(Kind.STATIONARY, None, rate, (note,))
        if a == 0 and pull == 0:  # no flow moves: this is a global minimum, or it is refuted
            return Conclusion(Kind.EXACT, beta, rate)
        found = single_neuron_limit(network, Regression(data.rows, data.targets))
        return Conclusion(Kind.EXACT, found.coefficients, rate)

    assumptions = (*data.assumptions(problem.has_squared_loss, AZULAY), converges, sign)
    return Candidate(f"One hidden neuron ({AZULAY})", assumptions, conclude), bool(keeps)
