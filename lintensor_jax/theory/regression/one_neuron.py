"""One hidden neuron: the limit of regression at any scale, for any number of samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ...networks import FullyConnectedNetwork
from ...problems import Regression
from ..least_norm.min_norm import require_consistent

# Rounding of a start that was computed to be balanced, in units of the last place.
_ROUNDINGS = 16


class NeuronLimit(eqx.Module):
    """The limit of a flow of beta = a u, as `single_neuron_limit` predicts it.

    - `coefficients` (d,): beta at the limit, X^+ y + a u_perp.
    - `network`: the limit parameters.
    - `imbalance`: a(0)^2 - |u(0)|^2, which the flow conserves. The limit is certain
      for > 0, and for 0 if the data have one direction or u has a part in the kernel of X.
    """

    coefficients: Float[Array, " d"]
    network: FullyConnectedNetwork
    imbalance: Scalar


def single_neuron_limit(network: FullyConnectedNetwork, problem: Regression) -> NeuronLimit:
    """Where gradient flow of a linear network with one hidden neuron ends, at any initial scale.

    beta = a u with u in R^d and a scalar. u' = -a X^T r moves in the row space of X only, so its
    part u_perp in the kernel of X stays; a^2 - |u|^2 = delta stays as well, and X u a = y at the
    end. With b = X^+ y that leaves a^2 = c + |b|^2 / a^2, c = delta + |u_perp|^2:

        beta = b + a u_perp,   a = sign(a(0)) sqrt((c + sqrt(c^2 + 4 |b|^2)) / 2).

    Source: Azulay et al. 2021 treat this setting by a warped mirror flow with the same conserved
    delta; its potential has gradient sign(a) u, and solving that statement gives the closed form.
    For delta > 0, and for delta = 0 with u_perp != 0, a keeps away from 0 and the limit is unique.
    For delta = u_perp = 0 the flow may end at a = u = 0. With data of one direction it does so
    where a u points away from b: the limit is then 0. With more directions it does so from some
    exceptional starts, and for delta < 0 the flow may pass a = 0 or end there: the branch given is
    the one on which it does not.

    **Arguments**

    - `network`: two layers, one hidden unit: weights of shapes (d, 1) and (1,).
    - `problem`: `Regression` with consistent equations, y of shape (n,).

    Traceable by `jax.jit` and `jax.vmap`; differentiable in parameters, X (of full row rank) and y.
    ValueError for another architecture, or if a(0) = 0 with delta <= 0;
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
    if not isinstance(imbalance, Tracer) and float(a) == 0 and float(imbalance) <= 0:
        raise ValueError(
            "network: single_neuron_limit needs a nonzero output weight a(0), whose sign chooses "
            "the limit, got 0; nudge it, or use gradient_flow."
        )
    pseudo_inverse = jnp.linalg.pinv(problem.X)
    b = pseudo_inverse @ problem.y
    if not isinstance(b, Tracer):
        misfit = np.asarray(problem.X @ b - problem.y)
        require_consistent(misfit, np.asarray(problem.y), problem.y.dtype, "single_neuron_limit")
    u_perp = u - pseudo_inverse @ (problem.X @ u)
    c = imbalance + u_perp @ u_perp
    root = jnp.sqrt(c**2 + 4 * (b @ b))
    # For c < 0 the sum below cancels; its conjugate does not.
    positive = 0.5 * (jnp.abs(c) + root)
    squared = jnp.where(c >= 0, positive, (b @ b) / jnp.where(positive > 0, positive, 1.0))
    ends_at_zero = _ends_at_zero(a, u, u_perp, b, imbalance, problem.X)
    limit_a = jnp.where(ends_at_zero, 0.0, jnp.sign(a) * jnp.sqrt(squared))
    limit_u = jnp.where(ends_at_zero, 0.0, u_perp + b / jnp.where(ends_at_zero, 1.0, limit_a))
    b = jnp.where(ends_at_zero, 0.0, b)
    limit = eqx.tree_at(
        lambda n: n.weights, network, (limit_u[:, None], jnp.reshape(limit_a, (1,)))
    )
    return NeuronLimit(b + limit_a * u_perp, jax.tree.map(jnp.asarray, limit), imbalance)


def _ends_at_zero(a, u, u_perp, b, imbalance, X):
    """Whether data of one direction and a balanced start that points away from b lead to 0."""
    zero = _ROUNDINGS * jnp.finfo(u.dtype).eps
    size = a**2 + u @ u
    balanced = (jnp.abs(imbalance) <= zero * size) & (u_perp @ u_perp <= zero * size)
    sizes = jnp.linalg.svd(X, compute_uv=False)
    one_direction = jnp.sum(sizes > zero * max(X.shape) * sizes[0]) == 1
    return balanced & one_direction & (a * (u @ b) < 0)
