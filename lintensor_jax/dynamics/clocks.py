"""Clocks: the variable in which a flow is integrated. The trajectory does not depend on it.

Gradient flow dTheta/dt = -grad L is integrated in a new variable s with ds = (dt/ds)^-1 dt:

============== ============================= ============================================
clock          ds                            for
============== ============================= ============================================
`PhysicalTime` dt                            regression; classification at moderate loss
`LossTime`     L dt                          classification: no log-slow tail
`LogArcLength` |dTheta| / |Theta|            classification to any margin (Theta never overflows)
============== ============================= ============================================

On separable data the physical time that a flow needs grows like exp(margin). The other two clocks
carry log t instead. While L > exp(-LOG_LOSS_OF_ASYMPTOTICS) they integrate w = log(1 + t/T), T
being the initial time scale. Beyond that the stiffness of dw/ds grows with the margin, and t has
a closed form. Its relative error is 1e-3 at this loss and falls as 1/log(1/L)^2: with
Lambda = log(1/L) and F = L^2/|grad L|^2, dt = exp(Lambda) F dLambda, so
t = exp(Lambda) F / (1 + dlogF/dLambda) (one step of integration by parts, in the form that is
exact for exponential F).
"""

import abc
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ..penalized import velocity_with_decay
from .system import Reducible, System

LOG_LOSS_OF_ASYMPTOTICS = 40.0
# The elapsed time is integrated with a weight: 1 - 1e-12 at the loss above, 1/2 at this one.
LOG_LOSS_OF_FADE, _FADE = 43.5, 8
# `LogArcLength` slows down where the gradient on the unit sphere is below this number times the
# largest sample. Elsewhere its clock differs from the log arc length by about 1e-6.
SMOOTHING = 1e-4


class ClockState(NamedTuple):
    """Theta = exp(log_scale) * theta, and elapsed = log(1 + t/T) (0 for `PhysicalTime`)."""

    theta: Float[Array, " p"]
    log_scale: Scalar
    elapsed: Scalar


class AbstractClock(eqx.Module):
    """The variable s in which a flow is integrated."""

    @abc.abstractmethod
    def start(self, system: System, theta: Float[Array, " p"]) -> ClockState:
        """The state of the flow at time 0."""

    @abc.abstractmethod
    def velocity(self, s: Scalar, state: ClockState, args: "FlowArgs") -> ClockState:
        """The derivative of the state by s."""

    @abc.abstractmethod
    def log_time(self, s: Scalar, state: ClockState, args: "FlowArgs") -> Scalar:
        """Natural logarithm of the physical time t; -inf at the start."""


class FlowArgs(NamedTuple):
    """Arguments of the vector field besides the state."""

    system: System
    reducible: Reducible | None  # None for classification
    log_time_unit: Scalar  # log T, T = |Theta| / |grad L| at the start; 0 for `PhysicalTime`
    # `corners.marked_start` (p,), which is needed to recognise corners. None with weight decay,
    # which makes all parameters decay.
    origin: Array | None = None
    followed_share: float = 0.0  # the share of its start down to which steps follow a parameter


class _ArcNumbers(NamedTuple):
    """What couples all parameters in the velocity of `LogArcLength`."""

    weights: Array  # of the margins' shape: the softmax of log(-l')
    inverse_norm: Scalar  # 1 / |G|
    radial: Scalar  # du/ds
    elapsed: Scalar  # dw/ds


class PhysicalTime(AbstractClock):
    """s = t, the time of the gradient flow itself."""

    def start(self, system: System, theta: Float[Array, " p"]) -> ClockState:
        """The state with Theta = theta and log_scale = 0."""
        return ClockState(theta, jnp.zeros((), theta.dtype), jnp.zeros((), theta.dtype))

    def velocity(self, s: Scalar, state: ClockState, args: FlowArgs) -> ClockState:
        """dTheta/dt = -grad L, with weight decay - lambda Theta."""
        return self._with_decay(args.system.velocity(state.theta), state, args)

    def _with_decay(self, velocity, state, args):
        zero = jnp.zeros_like(state.log_scale)
        counted = functools.partial(args.system.counted, state.theta)
        return ClockState(velocity_with_decay(args.system.problem, velocity, counted), zero, zero)

    def numbers(self, state: ClockState, args: FlowArgs) -> Array:
        """The residual, through which all parameters act on the velocity of one."""
        return args.system.problem.residual(args.system.coefficients(state.theta))

    def velocity_by(self, numbers: Array, state: ClockState, args: FlowArgs) -> ClockState:
        """The velocity as a function of `numbers` and of the state."""
        pull = args.system.pullback(state.theta)[1]
        return self._with_decay(pull(args.system.problem.adjoint(-numbers)), state, args)

    def log_time(self, s: Scalar, state: ClockState, args: FlowArgs) -> Scalar:
        """log t = log s."""
        return jnp.log(s)


class LossTime(AbstractClock):
    """ds = L dt: dTheta/ds = -grad log L. For classification."""

    def start(self, system: System, theta: Float[Array, " p"]) -> ClockState:
        """The state with Theta = theta and log_scale = 0."""
        return PhysicalTime().start(system, theta)

    def velocity(self, s: Scalar, state: ClockState, args: FlowArgs) -> ClockState:
        """dTheta/ds = sum_i (-l'(m_i)/L) grad m_i."""
        loss, slope, gradient = args.system.margin_gradient(state.theta, state.log_scale)
        return ClockState(
            jnp.exp(slope.top - loss.top) * (slope.total / loss.total) * gradient,
            jnp.zeros_like(state.log_scale),
            _elapsed_velocity(loss, -loss.top, 1 / loss.total, state, args),
        )

    def log_time(self, s: Scalar, state: ClockState, args: FlowArgs) -> Scalar:
        """log t: integrated at moderate loss, the closed form of this module at small loss."""
        return _log_time_of_log_clock(self, s, state, args)


class LogArcLength(AbstractClock):
    """ds = |dTheta| / |Theta|, where Theta = e^u theta and theta is on the unit sphere.

    The default for classification with a homogeneous network: dtheta/ds = g - <theta, g> theta and
    du/ds = <theta, g>, where g is the normalised negative gradient. The loss and Theta are never
    computed, so that a loss of exp(-1e10) does not underflow.

    At a stationary point (a saddle; or the minimum, if the data are not separable) a normalised
    gradient would jump. Therefore the clock slows down smoothly where the length |G| of the
    gradient on the unit sphere is tiny: ds = |dTheta|/|Theta| sqrt(1 + (1e-4 max|x_i| / |G|)^2).
    """

    def start(self, system: System, theta: Float[Array, " p"]) -> ClockState:
        """theta = Theta/|Theta|, u = log |Theta|."""
        # Scaled by the largest entry first: the squares of parameters of size 1e-200 underflow.
        largest = jnp.max(jnp.abs(theta))
        largest = jnp.where(largest > 0, largest, 1.0)  # the zero network does not move
        unit = theta / largest
        norm = jnp.linalg.norm(unit)
        norm = jnp.where(norm > 0, norm, 1.0)
        return ClockState(unit / norm, jnp.log(largest) + jnp.log(norm), jnp.zeros((), theta.dtype))

    def velocity(self, s: Scalar, state: ClockState, args: FlowArgs) -> ClockState:
        """(g - <theta, g> theta, <theta, g>)."""
        unit, numbers = self._unit_and_numbers(state, args)
        return ClockState(unit - numbers.radial * state.theta, numbers.radial, numbers.elapsed)

    def numbers(self, state: ClockState, args: FlowArgs) -> _ArcNumbers:
        """n + 3 numbers, through which all parameters act on the velocity of one."""
        return self._unit_and_numbers(state, args)[1]

    def velocity_by(self, numbers: _ArcNumbers, state: ClockState, args: FlowArgs) -> ClockState:
        """The velocity as a function of `numbers` and of the state."""
        pull = args.system.pullback(state.theta)[1]
        problem: Any = args.system.problem
        unit = pull(problem.margins_adjoint(numbers.weights)) * numbers.inverse_norm
        return ClockState(unit - numbers.radial * state.theta, numbers.radial, numbers.elapsed)

    def _unit_and_numbers(self, state, args):
        """g, and the numbers of the velocity."""
        loss, slope, gradient, weights = args.system.weighted_margin_gradient(
            state.theta, state.log_scale
        )
        norm = _smoothed_norm(args.system, gradient)
        inverse_norm = 1 / jnp.where(norm > 0, norm, 1.0)
        unit = gradient * inverse_norm
        radial = jnp.vdot(state.theta, unit)
        # A multiple of theta can be moved from dtheta to du without a change of Theta. With this
        # multiple |theta| returns to 1 also where |Theta| shrinks. With <theta, g> alone the error
        # of |theta| would grow like 1/|Theta|^2.
        length = jnp.vdot(state.theta, state.theta)
        radial = jnp.where(radial < 0, radial * (3 - 2 * length), radial)
        rate = _time_per_arc(args.system, state, slope, norm)
        elapsed = _elapsed_velocity(loss, *rate, state, args)
        return unit, _ArcNumbers(weights, inverse_norm, radial, elapsed)

    def log_time(self, s: Scalar, state: ClockState, args: FlowArgs) -> Scalar:
        """log t: integrated at moderate loss, the closed form of this module at small loss."""
        return _log_time_of_log_clock(self, s, state, args)


def log_time_unit(system: System, state: ClockState) -> Scalar:
    """log(|Theta| / |grad L|): the time scale at the start of the flow."""
    _, slope, gradient = system.margin_gradient(state.theta, state.log_scale)
    log_rate, factor = _time_per_arc(system, state, slope, jnp.linalg.norm(gradient))
    size = jnp.linalg.norm(state.theta)
    # From zero only a network of depth 1 moves. Its unit is the time in which |Theta| becomes 1.
    return log_rate + jnp.log(factor * jnp.where(size > 0, size, 1.0))


def _smoothed_norm(system, gradient):
    largest = jnp.sqrt(jnp.max(jnp.sum(system.problem.X**2, axis=1)))
    scaled = gradient * (1 / jnp.where(largest > 0, largest, 1.0))
    return largest * jnp.sqrt(jnp.sum(scaled**2) + SMOOTHING**2)


def _time_per_arc(system, state, slope, gradient_norm):
    """dt/ds of the log-arc-length clock: the logarithm of one factor, and another factor."""
    safe = jnp.where(gradient_norm > 0, gradient_norm, 1.0)
    factor = 1 / (safe * slope.total)
    return (2 - system.depth) * state.log_scale - slope.top, factor


def _elapsed_velocity(loss, log_rate, factor, state, args):
    """dw/ds for w = log(1 + t/T), with a weight that vanishes where `log_time` does not use w.

    dt/ds = exp(log_rate) * factor.
    """
    # 1 / (1 + (L_fade/L)^8). Smooth, because at a jump the solver needs twenty more steps.
    log_ratio = -loss.top - LOG_LOSS_OF_FADE
    power = loss.total**_FADE
    weight = power / (power + jnp.exp(_FADE * log_ratio))
    exponent = log_rate - args.log_time_unit - state.elapsed
    rate = jnp.exp(jnp.where(log_ratio < 100 / _FADE, exponent, -jnp.inf))
    return weight * rate * factor


def _log_time_of_log_clock(clock, s, state, args):
    def inverse_loss_and_f(theta, log_scale):
        system = args.system
        loss, slope, gradient = system.margin_gradient(theta, log_scale)
        log_gradient = (
            slope.log + (system.depth - 1) * log_scale + jnp.log(jnp.linalg.norm(gradient))
        )
        return -loss.log, 2 * (loss.log - log_gradient)

    velocity = clock.velocity(s, state, args)
    (inverse_loss, log_f), (inverse_loss_rate, log_f_rate) = jax.jvp(
        inverse_loss_and_f,
        (state.theta, state.log_scale),
        (velocity.theta, velocity.log_scale),
    )
    asymptotic = inverse_loss + log_f - jnp.log1p(log_f_rate / inverse_loss_rate)
    integrated = args.log_time_unit + _log_expm1(state.elapsed)
    return jnp.where(inverse_loss < LOG_LOSS_OF_ASYMPTOTICS, integrated, asymptotic)


def _log_expm1(w):
    """log(e^w - 1) for w >= 0, without overflow."""
    return jnp.where(w > 1, w + jnp.log1p(-jnp.exp(-w)), jnp.log(jnp.expm1(jnp.minimum(w, 1.0))))


def vector_of(state: ClockState, clock: Any) -> Float[Array, " q"]:
    """A clock's state as one vector."""
    if isinstance(clock, PhysicalTime):
        return state.theta
    return jnp.concatenate([state.theta, state.log_scale[None], state.elapsed[None]])


def state_of(y: Float[Array, " q"], clock: Any) -> ClockState:
    """The inverse of `vector_of`."""
    if isinstance(clock, PhysicalTime):
        zero = jnp.zeros_like(y[0])
        return ClockState(y, zero, zero)
    return ClockState(y[:-2], y[-2], y[-1])
