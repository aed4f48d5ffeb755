"""Step sizes of gradient descent under which the risk of a deep linear network never increases."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Scalar

from ...networks import FullyConnectedNetwork
from ...networks.pair import check_pair
from ...problems import Classification


class SmoothnessStepsState(NamedTuple):
    """State of `smoothness_steps`: the radius R_t and the step size eta_t that were used last."""

    radius: Scalar
    step_size: Scalar


def smoothness_steps(
    network: FullyConnectedNetwork, problem: Classification, *, growth: float = 1.1
) -> optax.GradientTransformation:
    """Gradient descent with eta_t = min(1/beta(R_t), 1), as an optax transformation.

    All layers obey |W_k(t)|_F <= R_t - 1. R_t is kept while the next iterate obeys this as well,
    and is replaced by 1 + growth * max_k |W_k|_F otherwise. On the ball of radius R the *mean*
    logistic loss is beta(R)-smooth with

        beta(R) = 2 L^2 R^(2L-2) (B^2/4 + B),   B = max(1, largest |x_i|)

    (for other losses with curvature * B^2 + slope * B in the bracket, from their `smoothness`).

    Therefore every step lowers it by eta_t |grad|^2 / 2 or more, and Lemma C.7 and Theorems 3.6 and
    3.7 hold. `gradient_descent` differentiates the *sum* over n samples; this transformation
    divides it by n. The paper's beta(R) has B = 1, for samples no longer than 1.

    Source: Ji & Telgarsky 2019, Assumption 3.5 and Lemma 3.2.

    **Arguments**

    - `network`: fully connected with a scalar output; gives the depth L.
    - `problem`: a `Classification` with a loss that states its `smoothness`, as `LogisticLoss()`
      does (the exponential loss is not smooth).
    - `growth`: at least 1; a new R_t is 1 + growth times the largest |W_k|_F.

    **Returns** a transformation for `gradient_descent(network, problem, ...)`; its state, a
    `SmoothnessStepsState`, is the solution's `optimizer_state`. ValueError for anything else.
    """
    check_pair(network, problem)
    if not isinstance(network, FullyConnectedNetwork) or not network.has_scalar_output:
        raise ValueError(
            "smoothness_steps: network must be a FullyConnectedNetwork with a scalar output, got "
            f"{type(network).__name__}; the smoothness constant is that of a product of matrices."
        )
    loss = getattr(problem, "margin_loss", None)
    facts = getattr(loss, "smoothness", None)
    if facts is None:
        raise ValueError(
            "smoothness_steps: problem must be a Classification with a loss that states its "
            "`smoothness` (Assumption 3.1), as loss=LogisticLoss() does, got "
            f"{type(loss).__name__}."
        )
    if not float(growth) >= 1:
        raise ValueError(
            f"smoothness_steps: growth must be at least 1, got {growth}; 1 takes the smallest "
            "radius that the rule allows."
        )
    samples = problem.y.shape[0]
    longest = max(1.0, float(np.max(np.linalg.norm(np.asarray(problem.X), axis=1))))
    power = 2 * network.depth - 2
    # beta(R) at R = 1; a Python float, so that no dtype is forced on the parameters.
    unit = 2.0 * network.depth**2 * (facts.curvature * longest**2 + facts.slope * longest)

    def reach(params):
        return jnp.max(jnp.stack([jnp.linalg.norm(w) for w in jax.tree.leaves(params)]))

    def init(params):
        largest = reach(params)
        return SmoothnessStepsState(1 + growth * largest, jnp.zeros_like(largest))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("smoothness_steps: update needs params, the current network; pass it.")
        largest = reach(params)
        radius = jnp.where(largest <= state.radius - 1, state.radius, 1 + growth * largest)
        step = jnp.minimum(1 / (unit * radius**power), 1.0)
        moved = jax.tree.map(lambda gradient: -step / samples * gradient, updates)
        return moved, SmoothnessStepsState(radius, step)

    return optax.GradientTransformation(init, update)
