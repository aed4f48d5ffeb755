"""Discrete algorithms: gradient descent and any other optax transformation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ...messages import in_words
from ...networks import coefficients_and_pullback, split
from ...networks.pair import check_pair, same_dtype
from ...problems import AbstractProblem
from ..observations import log_or_minus_infinity


class DescentSolution(eqx.Module):
    """Iterates of a discrete algorithm.

    The leading axes have one entry per saved step; the last entry is the end.

    - `network`: the network after the last step.
    - `optimizer_state`: the optimizer's state after the last step, to continue the run.
    - `step` (T,): the numbers of the saved steps; 0 is the start.
    - `coefficients` (T, d), `log_loss` (T,), `log_margin` (T,) (None for regression), `observed`.
    """

    network: Any  # of the type of the argument `network`
    optimizer_state: Any
    step: Int[Array, " T"]
    coefficients: Float[Array, "T ..."]
    log_loss: Float[Array, " T"]
    log_margin: Float[Array, " T"] | None
    observed: Any

    @property
    def direction(self) -> Float[Array, "T ..."]:
        """beta/|beta| at each saved step; 0 where beta = 0."""
        axes = tuple(range(self.log_loss.ndim - self.coefficients.ndim, 0))
        norm = jnp.sqrt(jnp.sum(self.coefficients**2, axis=axes, keepdims=True))
        return self.coefficients / jnp.where(norm > 0, norm, 1.0)


def gradient_descent(
    network: eqx.Module,
    problem: AbstractProblem,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 5_000,
    *,
    save_every: int | None = None,
    observe: Any = None,
    optimizer_state: Any = None,
) -> DescentSolution:
    """Run `num_steps` steps of a discrete algorithm on the (summed) loss.

    **Arguments**

    - `network`, `problem`: as in `gradient_flow`.
    - `optimizer`: any optax transformation. Default: the papers' constant-step gradient descent,
      `optax.sgd(1e-3)`.
    - `num_steps`: the number of steps. The papers use 5e3 in regression, 2e6 in classification.
    - `save_every`: the interval between saved steps, a divisor of `num_steps`. Step 0 is saved,
      too. Default: the start and the end.
    - `observe`: a function of the network, saved at the same steps.
    - `optimizer_state`: the state at the end of an earlier run, which this run continues.

    Saved losses are computed in the log domain. A step uses the plain gradient, which underflows as
    it does in any other implementation. No divergence is hidden: a step size that is too large
    ends in inf or NaN.

    Source: Yun, Krishnan & Mobahi 2021, section 6 (constant step).
    """
    check_pair(network, problem)
    optimizer = optax.sgd(1e-3) if optimizer is None else optimizer
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise ValueError(
            "optimizer: must be an optax transformation such as optax.sgd(1e-3), got "
            f"{in_words(optimizer)}."
        )
    save_every = num_steps if save_every is None else save_every
    for name, value in (("num_steps", num_steps), ("save_every", save_every)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: must be a positive int, got {value!r}; pass e.g. 1000.")
    if num_steps % save_every:
        raise ValueError(
            f"save_every: must divide num_steps = {num_steps}, got {save_every}; take "
            f"num_steps = {save_every * (num_steps // save_every + 1)}, or another save_every."
        )
    network, problem = same_dtype(network, problem)
    if optimizer_state is None:
        optimizer_state = optimizer.init(split(network)[0])  # pyright: ignore[reportArgumentType]
    return _descend(network, problem, optimizer, optimizer_state, num_steps, save_every, observe)


@eqx.filter_jit
def _descend(network, problem, optimizer, state, num_steps, save_every, observe):
    parameters, rest = split(network)

    def record(parameters):
        network = eqx.combine(parameters, rest)
        beta = network.linear_coefficients()
        margin = problem.margins(beta) if problem.has_margins else None
        log_margin = None if margin is None else log_or_minus_infinity(jnp.min(margin))
        seen = None if observe is None else observe(network)
        return beta, problem.log_loss(beta), log_margin, seen

    def step(carry, _):
        parameters, state = carry
        beta, pull = coefficients_and_pullback(eqx.combine(parameters, rest))
        gradient = pull(problem.adjoint(problem.residual(beta)))
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    def block(carry, _):
        carry, _ = jax.lax.scan(step, carry, length=save_every)
        return carry, record(carry[0])

    (end, state), saved = jax.lax.scan(block, (parameters, state), length=num_steps // save_every)
    saved = jax.tree.map(
        lambda first, later: jnp.concatenate([first[None], later]), record(parameters), saved
    )
    steps = jnp.arange(0, num_steps + 1, save_every)
    return DescentSolution(eqx.combine(end, rest), state, steps, *saved)
