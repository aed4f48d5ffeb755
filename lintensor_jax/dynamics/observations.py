"""What stop rules see of a flow at one time, and how long its steps may be there."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from ..eager_programs import eager_program
from ..penalized import velocity_with_decay, weight_decay_of
from .clocks import AbstractClock, ClockState, FlowArgs
from .corners import (
    corners_of,
    faint_sizes,
    falls_to_zero,
    followed,
    is_near_corner,
    step_at_corner,
    unbounded_step,
)
from .stopping import Observation


def observe_state(
    s: Scalar, state: ClockState, args: FlowArgs, clock: AbstractClock, may_rest: bool = True
) -> Observation:
    """What the stop rules see of `state` at the clock's time `s`.

    Without `may_rest` it is not tested whether the flow stands still: not at a flow's start, where
    no time has passed, nor for a record.
    """
    if args.system.problem.has_margins:
        return _observe_margins(s, state, args, clock, may_rest)
    return _observe_residuals(s, state, args, clock, may_rest, has_step=False)[0]


def observe_and_limit(
    s: Scalar, state: ClockState, args: FlowArgs, clock: AbstractClock, may_rest: bool = True
) -> tuple[Observation, Scalar]:
    """What the stop rules see, and `longest_step`: for explicit regression flows.

    Without `may_rest` (see `observe_state`) no parameter is near a corner either.
    """
    return _observe_residuals(s, state, args, clock, may_rest, has_step=True)


def _observe_residuals(s, state, args, clock, may_rest, has_step) -> tuple[Observation, Scalar]:
    """The observation, and the longest step if `has_step`; for losses of residuals."""
    system, problem = args.system, cast(Any, args.system.problem)
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
    rounding = args.reducible.norm(predictions) * size
    gradient = gradient * jnp.linalg.norm(state.theta)

    def near_rest():
        rest = _rest_of_flow(s, state, args, clock, velocity)
        still = _stands_still(rest, gradient, rounding, system, _LONG)
        longest = _longest_at_corner(state.theta, args, velocity.theta) if has_step else unbounded
        return still, longest

    # XLA does not know that a branch evaluates what the step has evaluated before.
    velocity = clock.velocity(s, state, args)
    # Most steps are far from rest. Where no parameter is near a corner, all of the gradient counts.
    unbounded = jnp.asarray(unbounded_step(size), size.dtype)
    is_possible = gradient <= max(4 * _root_eps(state), _noise(system)) * rounding
    is_possible = is_possible | is_near_corner(state, args)
    elsewhere = jnp.zeros((), bool), unbounded
    still, longest = elsewhere
    if may_rest:
        still, longest = jax.lax.cond(is_possible, near_rest, lambda: elsewhere)
    infinite = jnp.full_like(state.log_scale, jnp.inf)
    seen = Observation(
        log_loss=log_loss,
        residual=size,
        log_margin=-infinite,
        log_time=clock.log_time(s, state, args),
        gradient_step=gradient_step,
        largest_weight=0 * size,
        coefficient_gradient=infinite,
        relative_speed=infinite,
        balance=_balance(s, state, args, clock),
        still=still,
    )
    return seen, jnp.minimum(stable_step(state.theta, args), longest) if has_step else longest


def _stands_still(rest: "_Rest", gradient, rounding, system, times: float) -> Bool[Array, ""]:
    """Whether a flow is at rest, at a corner for `times` the elapsed time.

    `gradient`: |grad L| |Theta|. `rounding`: the size of the terms that cancel in it.
    """
    left = gradient * rest.share
    quiet = left <= _noise(system) * rounding
    # At a corner only the error limits explicit steps, and implicit steps leave errors of their
    # tolerances in the gradient. One of this size counts as zero if the parameters have settled.
    corner = left <= 4 * _root_eps(rest) * rounding
    corner = corner & (rest.is_corner | (quiet & rest.is_faint_corner))
    still = quiet & rest.is_settled(1 / _root_eps(rest))
    return still | (corner & rest.is_settled(times, quiet))


def _observe_margins(s, state, args, clock, may_rest) -> Observation:
    system, problem = args.system, cast(Any, args.system.problem)
    beta = system.coefficients(state.theta)
    on_sphere = problem.margins(beta)
    log_margin = system.depth * state.log_scale + log_or_minus_infinity(jnp.min(on_sphere))
    margins = jnp.exp(system.depth * state.log_scale) * on_sphere
    log_loss = jax.nn.logsumexp(problem.log_losses(margins))
    weights = jax.nn.softmax(problem.log_slopes(margins), axis=None)
    # Relative to the sum of the terms that cancel: the longest sample may have the weight 0.
    slope = problem.margins_adjoint(weights)
    pull = jnp.linalg.norm(slope)
    of_samples = jnp.sum(weights.reshape(weights.shape[0], -1), axis=1)
    # The loss of a zero sample is constant, and what the others add to the loss is soon below the
    # rounding of that constant. Therefore a zero sample counts as long as the shortest other one.
    lengths = jnp.linalg.norm(problem.X, axis=1)
    least = jnp.min(jnp.where(lengths > 0, lengths, jnp.inf))
    pull = pull / jnp.sum(of_samples * jnp.where(lengths > 0, lengths, least))
    gradient = jnp.linalg.norm(system.margin_gradient(state.theta, state.log_scale)[2])
    gradient = gradient * jnp.linalg.norm(state.theta)
    terms = jnp.sum(weights * jnp.abs(on_sphere))
    velocity = clock.velocity(s, state, args)

    def misclassified():
        # The pull on the parameters alone compiles in less time than the clock's velocity.
        def motion_at(theta):
            return system.pullback(theta)[1](slope)

        rest = _Rest.of(s, state, args, velocity, motion_at(state.theta), motion_at)
        return _stands_still(rest, gradient, terms, system, _SLOW)

    still = jnp.zeros((), bool)
    if may_rest:
        still = jax.lax.cond(log_margin == -jnp.inf, misclassified, lambda: still)
    infinite = jnp.full_like(state.log_scale, jnp.inf)
    return Observation(
        log_loss=log_loss,
        residual=infinite,
        log_margin=log_margin,
        log_time=clock.log_time(s, state, args),
        gradient_step=-infinite,
        largest_weight=jnp.max(weights),
        coefficient_gradient=pull,
        relative_speed=_relative_speed(s, state, velocity),
        balance=_balance(s, state, args, clock),
        still=still,
    )


def _balance(s, state, args, clock):
    """|grad L + lambda Theta| / (|grad L| + lambda |Theta|); infinite without weight decay.

    If |Theta| shrinks to zero, both terms do, and they need not cancel. Then the square root of
    penalty over loss is taken if it is smaller. This holds only while |grad L| <= lambda |Theta|:
    otherwise a flow from zero, or from a small start that first shrinks, can still grow.
    """
    decay = weight_decay_of(args.system.problem)
    if decay is None:
        return jnp.full_like(state.log_scale, jnp.inf)
    theta, velocity = state.theta, clock.velocity(s, state, args).theta
    of_decay = decay * jnp.linalg.norm(theta)
    of_loss = jnp.linalg.norm(velocity + decay * theta)
    terms = of_loss + of_decay
    balance = jnp.linalg.norm(velocity) / jnp.where(terms > 0, terms, 1.0)
    loss = args.system.problem.loss(args.system.coefficients(theta))
    share = jnp.sqrt(decay * jnp.sum(theta**2) / jnp.where(loss > 0, 2 * loss, jnp.inf))
    shrinks = (jnp.vdot(theta, velocity) <= 0) & (of_loss <= of_decay) & (decay > 0) & (loss > 0)
    return jnp.where(shrinks, jnp.minimum(balance, share), balance)


def _noise(system):
    """A relative size of gradients below which they are only rounding, times the depth."""
    return 100 * max(system.depth, 1) * jnp.finfo(system.problem.y.dtype).eps


def _root_eps(state):
    return float(jnp.finfo(state.theta.dtype).eps) ** 0.5


# A parameter has settled if it moves by less than its size in this many times the elapsed time. One
# that grows like log t has not, until log t = 500.
_SLOW = 1e3
# The same at a corner of a regression flow. It is larger, because there a parameter may still grow
# exponentially from almost zero.
_LONG = 1e6


@eager_program()
def decays_to_corner(
    s: Scalar, state: ClockState, args: FlowArgs, clock: AbstractClock
) -> Bool[Array, ""]:
    """Whether some parameter decays, and is so small that implicit steps cannot follow it."""
    if args.origin is None:
        return jnp.zeros((), bool)
    velocity = clock.velocity(s, state, args)
    return _rest_of_flow(s, state, followed(args), clock, velocity).is_corner


def _rest_of_flow(s, state, args, clock, velocity) -> "_Rest":
    """`_Rest` with the clock's velocity of Theta over exp(log_scale)."""

    def motion_at(theta):
        return motion_of(clock.velocity(s, state._replace(theta=theta), args), theta)

    def motion_of(velocity, theta):
        return velocity.theta + velocity.log_scale * theta

    return _Rest.of(s, state, args, velocity, motion_of(velocity, state.theta), motion_at)


def _relative_speed(s, state, velocity):
    """|dTheta/ds| s / |Theta|."""
    size = jnp.linalg.norm(state.theta)
    turn = jnp.linalg.norm(velocity.theta) / jnp.where(size > 0, size, 1.0)
    return s * (turn + jnp.abs(velocity.log_scale))


class _Rest(NamedTuple):
    """How parameters move: this distinguishes rest from slow motion.

    A flow can end at a corner (`corners`). The relative speed of the parameters that decay there
    never falls. They count as at rest once they are below `corners_of` and still decay. A parameter
    that crosses zero is not meant: see `falls_to_zero`.
    """

    s: Scalar
    theta: Float[Array, " p"]
    velocity: Float[Array, " p"]
    at_corner: Bool[Array, " p"]
    faint: Bool[Array, " p"]  # they decay, and change the gradient by less than its rounding
    share: Scalar  # of the gradient's norm that is left without the parameters at a corner

    @staticmethod
    def of(s, state, args, velocity, motion, motion_at) -> "_Rest":
        """`velocity`: the clock's; `motion_at`: -dL/dTheta of theta, times any positive number.

        `motion`: its value at the state's theta.
        """
        theta, moved, one = state.theta, velocity.theta, jnp.ones_like(s)
        if args.origin is None:
            none = jnp.zeros_like(theta, bool)
            return _Rest(s, theta, moved, none, none, one)

        sizes = jnp.abs(theta) * jnp.exp(state.log_scale)
        small, faint = sizes <= corners_of(args), sizes <= faint_sizes(args)
        # With three layers the decay is so slow that the last steps end at exactly zero.
        gone = (theta == 0) & (motion == 0) & (args.origin != 0)
        decays = falls_to_zero(small | faint, theta, motion, motion_at)
        at_corner = small & (decays | gone)
        whole = jnp.linalg.norm(motion)
        left = jnp.linalg.norm(jnp.where(at_corner, 0.0, motion))
        share = jnp.where(whole > 0, left / jnp.where(whole > 0, whole, 1.0), one)
        return _Rest(s, theta, moved, at_corner, faint & decays, share)

    def is_settled(self, times: float, quiet: bool | Bool[Array, ""] = False) -> Bool[Array, ""]:
        """Whether every parameter moves by less than its size in `times` the elapsed time.

        It is relative to each parameter, because a gradient of 1e-50 can make a parameter of 1e-50
        grow again, and then the flow leaves a saddle. `quiet`: the gradient is only rounding. Then
        large and faint parameters count as settled: four layers need a time of 1e16 to reach a
        corner, and in this time the rounding alone would move large parameters.
        """
        size = jnp.abs(self.theta)
        settled = jnp.abs(self.velocity) * (self.s * times) <= size
        large = size >= _root_eps(self) * jnp.linalg.norm(self.theta)
        return (self.s > 0) & jnp.all(settled | self.at_corner | (quiet & (large | self.faint)))

    @property
    def is_corner(self) -> Bool[Array, ""]:
        """Whether some parameter is at a corner."""
        return jnp.any(self.at_corner)

    @property
    def is_faint_corner(self) -> Bool[Array, ""]:
        """Whether some parameter is faint."""
        return jnp.any(self.faint)


def log_or_minus_infinity(value: Array) -> Array:
    """log(value), and -inf where value <= 0."""
    return jnp.where(value > 0, jnp.log(jnp.where(value > 0, value, 1.0)), -jnp.inf)


def longest_step(theta: Float[Array, " p"], args: FlowArgs) -> Scalar:
    """The longest explicit step at `theta`: 2/lambda, near a corner at most `step_at_corner`."""
    at_corner = _longest_at_corner(theta, args, args.system.velocity(theta))
    return jnp.minimum(stable_step(theta, args), at_corner)


def _longest_at_corner(theta, args, velocity):
    """`step_at_corner`; unbounded with weight decay, where no corner is recognised."""
    if args.origin is None:
        return jnp.asarray(unbounded_step(theta), theta.dtype)
    return step_at_corner(theta, args, velocity)


def stable_step(theta: Float[Array, " p"], args: FlowArgs) -> Scalar:
    """2/lambda at `theta`, lambda = |grad L|^2 / |P r|^2; unbounded if one of them is zero."""
    decay = weight_decay_of(args.system.problem)
    if decay is not None:
        return _longest_decaying_step(theta, args.system, decay)
    residual, gradient = args.system.gradient_norm(theta)
    assert args.reducible is not None
    # Divided before squaring: the squares of gradients at alpha = 1e-100 underflow.
    ratio = args.reducible.norm(residual) / gradient
    return jnp.where(jnp.isfinite(ratio), 2 * ratio**2, unbounded_step(ratio))


def _longest_decaying_step(theta, system, decay):
    """2/lambda of the Gauss-Newton matrix along the velocity, where residuals do not vanish.

    The weight decay adds `decay`. The curvature of beta adds at most `decay` once more, because
    J^T r = -decay Theta at the limit.
    """
    counted = functools.partial(system.counted, theta)
    velocity = velocity_with_decay(system.problem, system.velocity(theta), counted)
    size = jnp.linalg.norm(velocity)
    along = velocity / jnp.where(size > 0, size, 1.0)
    _, change = jax.jvp(system.coefficients, (theta,), (along,))
    curvature = jnp.sum(system.problem.predictions(change) ** 2) + 2 * decay
    return jnp.where(curvature > 0, 2 / curvature, unbounded_step(curvature))
