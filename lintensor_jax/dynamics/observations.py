"""What stop rules see of a flow at one time."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ..penalized import decayed, weight_decay_of
from .clocks import AbstractClock, ClockState, FlowArgs
from .stopping import Observation


def observe_state(
    s: Scalar, state: ClockState, args: FlowArgs, clock: AbstractClock
) -> Observation:
    """What the stop rules look at."""
    system, problem = args.system, cast(Any, args.system.problem)
    log_time = clock.log_time(s, state, args)
    infinite = jnp.full_like(state.log_scale, jnp.inf)
    balance = _balance(s, state, args, clock)
    if problem.has_margins:
        beta = system.coefficients(state.theta)
        margins = problem.margins(beta)
        log_margin = system.depth * state.log_scale + log_or_minus_infinity(jnp.min(margins))
        margins = jnp.exp(system.depth * state.log_scale) * margins
        log_loss = jax.nn.logsumexp(problem.log_losses(margins))
        weights = jax.nn.softmax(problem.log_slopes(margins), axis=None)
        pull = jnp.linalg.norm(problem.margins_adjoint(weights))
        pull = pull / jnp.sqrt(jnp.max(jnp.sum(problem.X**2, axis=1)))
        gradient = jnp.linalg.norm(system.margin_gradient(state.theta, state.log_scale)[2])
        size = jnp.linalg.norm(state.theta)
        still = gradient * size <= _noise(system) * jnp.max(jnp.abs(margins))
        still = still & (log_margin == -jnp.inf) & _is_settled(s, state, args, clock)
        return Observation(
            log_loss,
            infinite,
            log_margin,
            log_time,
            -infinite,
            jnp.max(weights),
            pull,
            balance,
            still,
        )
    residual, gradient = system.gradient_norm(state.theta)
    assert args.reducible is not None
    size = args.reducible.norm(residual)
    gradient_step = system.finish_step(state.theta, size, gradient)
    log_loss = problem.log_loss(system.coefficients(state.theta))
    # By Euler's theorem J Theta = L * predictions: the right-hand side bounds |J| |P r| from below.
    if problem.has_squared_loss:
        predictions = residual + problem.y
    else:
        predictions = problem.predictions(system.coefficients(state.theta))
    predicted = args.reducible.norm(predictions)
    still = gradient * jnp.linalg.norm(state.theta) <= _noise(system) * predicted * size
    still = still & _is_settled(s, state, args, clock)
    return Observation(
        log_loss, size, -infinite, log_time, gradient_step, 0 * size, infinite, balance, still
    )


def _balance(s, state, args, clock):
    """|grad L + lambda Theta| / (|grad L| + lambda |Theta|); infinite without weight decay.

    Where |Theta| shrinks to zero, both terms do, and need not cancel. There the root of penalty
    over loss is taken.
    """
    decay = weight_decay_of(args.system.problem)
    if decay is None:
        return jnp.full_like(state.log_scale, jnp.inf)
    theta, velocity = state.theta, clock.velocity(s, state, args).theta
    of_decay = decay * jnp.linalg.norm(theta)
    terms = jnp.linalg.norm(velocity + decay * theta) + of_decay
    balance = jnp.linalg.norm(velocity) / jnp.where(terms > 0, terms, 1.0)
    loss = args.system.problem.loss(args.system.coefficients(theta))
    share = jnp.sqrt(decay * jnp.sum(theta**2) / jnp.where(loss > 0, 2 * loss, jnp.inf))
    shrinks = (jnp.vdot(theta, velocity) <= 0) & (decay > 0) & (loss > 0)
    return jnp.where(shrinks, jnp.minimum(balance, share), balance)


def _noise(system):
    """The depth, times a relative size of gradients that is all rounding."""
    return 100 * max(system.depth, 1) * jnp.finfo(system.problem.y.dtype).eps


def _is_settled(s, state, args, clock):
    """Whether no parameter would notice as much time again as has passed.

    Relative to each parameter: a gradient of 1e-50 still revives a parameter of 1e-50, and the flow
    then leaves a saddle.
    """
    velocity = clock.velocity(s, state, args).theta
    large = s / float(jnp.finfo(state.theta.dtype).eps) ** 0.5
    return (s > 0) & jnp.all(jnp.abs(velocity) * large <= jnp.abs(state.theta))


def log_or_minus_infinity(value: Array) -> Array:
    """log(value), and -inf where value <= 0."""
    return jnp.where(value > 0, jnp.log(jnp.where(value > 0, value, 1.0)), -jnp.inf)


def longest_step(theta: Float[Array, " p"], args: FlowArgs):
    """2/lambda at `theta`; unbounded where the residual or the gradient is zero."""
    decay = weight_decay_of(args.system.problem)
    if decay is not None:
        return _longest_decaying_step(theta, args.system, decay)
    residual, gradient = args.system.gradient_norm(theta)
    assert args.reducible is not None
    # Divided before squaring: gradients at alpha = 1e-100 have no square.
    ratio = args.reducible.norm(residual) / gradient
    return jnp.where(jnp.isfinite(ratio), 2 * ratio**2, _unbounded(ratio))


def _longest_decaying_step(theta, system, decay):
    """2/lambda of the Gauss-Newton matrix along the velocity, where residuals do not vanish.

    The weight decay adds itself, and at most once more by the curvature of beta: at the limit
    J^T r = -decay Theta.
    """
    counted = functools.partial(system.counted, theta)
    velocity = decayed(system.problem, system.velocity(theta), counted)
    size = jnp.linalg.norm(velocity)
    along = velocity / jnp.where(size > 0, size, 1.0)
    _, change = jax.jvp(system.coefficients, (theta,), (along,))
    curvature = jnp.sum(system.problem.predictions(change) ** 2) + 2 * decay
    return jnp.where(curvature > 0, 2 / curvature, _unbounded(curvature))


def _unbounded(like):
    """A step that never binds, finite so that sums stay finite."""
    return jnp.finfo(like.dtype).max / 4
