"""The options of `gradient_flow`: defaults that fit the problem, checks before any compilation."""

from collections.abc import Callable
from types import EllipsisType
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ..arguments import as_number, as_numbers
from ..losses import PolynomialTail
from ..messages import in_words
from ..networks import AbstractNetwork, scaled
from ..networks.closed_forms import closed_form
from ..penalized import weight_decay_of
from .clocks import AbstractClock, LogArcLength, LossTime, PhysicalTime
from .gauss_newton import GaussNewton
from .shifted_systems import coupling_between_groups
from .sizes import size_of_start
from .stopping import (
    AbstractStop,
    FloatWall,
    NotSeparable,
    Observation,
    StandsStill,
    StopAtBalance,
    StopAtMargin,
    StopAtResidual,
    members_of,
    status_of_rule,
)
from .system import System

# The Gauss-Newton finish makes the Jacobian of the predictions. If it has more entries than this
# (256 MiB), the finish is not the default: linear algebra would take longer than the flow.
LARGEST_JACOBIAN = 2**25
# Defaults are made once: an equinox module takes longer to make than to use.
_PHYSICAL_TIME, _STANDS_STILL, _GAUSS_NEWTON = PhysicalTime(), StandsStill(), GaussNewton()


class FlowOptions(NamedTuple):
    """`gradient_flow`'s options with every default filled in; numbers are arrays."""

    clock: AbstractClock
    stop: AbstractStop
    finish: GaussNewton | None
    solver: diffrax.AbstractSolver | None
    rtol: Scalar
    atol: Scalar
    save_at: Float[Array, " T"] | None
    save_steps: bool
    observe: Callable[[Any], Any] | None
    max_steps: int
    # Whether atol is the default. It then also follows the sizes of single parameters.
    scales_atol: bool
    # The number of the meter that counts the flow's steps (`progress`), or None.
    meter: Any = None


def fill_options(
    system: System,
    *,
    solver: diffrax.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    stop: AbstractStop | None = None,
    finish: GaussNewton | EllipsisType | None = ...,
    rtol: float | Scalar | None = None,
    atol: float | Scalar | None = None,
    saveat: Any = None,
    observe: Callable[[Any], Any] | None = None,
    max_steps: int = 20_000,
) -> FlowOptions:
    """The options with defaults, checked. An error names the argument, rule, value and fix."""
    problem = system.problem
    has_residuals = problem.has_residuals
    theta = system.initial
    dtype = theta.dtype
    clock = _clock(clock, system, has_residuals)
    _require_coupled_groups(system)
    _instance(solver, diffrax.AbstractSolver, "solver", "diffrax.Tsit5()")

    stop = _stop(stop, problem, dtype)
    finish = _finish(finish, system, has_residuals)
    relative, absolute = _tolerances(rtol, atol, system, theta, clock)
    if type(max_steps) is not int or max_steps < 1:
        raise ValueError(
            f"max_steps: must be a positive int, got {max_steps!r}; leave it out for the default."
        )
    saving = _saving(saveat, dtype)

    def as_array(x: Any) -> Any:
        return np.asarray(x, dtype) if isinstance(x, float) else x

    # Numbers become arrays, so that two sweeps with different thresholds share one compilation.
    # NumPy makes arrays in a tenth of the time that JAX needs.
    numbers: Any = jax.tree.map(as_array, (stop, finish, relative, absolute))
    filled: Any = (clock, *numbers[:2], solver, *numbers[2:], *saving, observe, max_steps)
    filled = (*filled, atol is None)
    return FlowOptions(*filled)


def _clock(clock, system, has_residuals):
    decays = weight_decay_of(system.problem) is not None
    clock = _instance(clock, AbstractClock, "clock", "lintensor_jax.PhysicalTime()") or (
        _PHYSICAL_TIME if has_residuals or decays else _clock_of_margins(system)
    )
    if decays and not isinstance(clock, PhysicalTime):
        raise ValueError(
            f"clock: {type(clock).__name__} is for flows without weight decay, which go on for "
            "ever; use PhysicalTime(): with weight decay a flow has a limit."
        )
    if has_residuals and not isinstance(clock, PhysicalTime):
        kind = type(system.problem).__name__
        raise ValueError(
            f"clock: {type(clock).__name__} is for Classification, got {kind}; "
            "use PhysicalTime(): a regression flow ends after a finite arc."
        )
    if isinstance(clock, LogArcLength):
        if system.depth < 1:
            raise ValueError(
                "network: the log-arc-length clock needs a homogeneous network, and "
                f"{type(system.parameters).__name__} states no depth; add a class attribute "
                "`depth`, its degree of homogeneity, or pass clock=PhysicalTime()."
            )
        _require_homogeneity(system)
    return clock


def _clock_of_margins(system):
    # The log-arc-length clock needs a homogeneous network. A deep one with a bias is not.
    return LossTime() if system.problem.has_bias and system.depth < 1 else LogArcLength()


def _stop(stop, problem, dtype):
    """The rule given or the default one, and the rules that are part of every flow."""
    given = stop
    if stop is None:
        stop = _default_stop(problem, dtype)
    else:
        _instance(stop, AbstractStop, "stop", "lintensor_jax.StopAtResidual(1e-9)")
        stop.check(problem, dtype)
        _check_own_rules(stop, dtype)
    if not problem.has_residuals and weight_decay_of(problem) is None:
        stop = stop if _is_polynomial(problem) else stop | FloatWall.of(dtype)
        stop = stop | NotSeparable.of(dtype, given)
    return stop | _STANDS_STILL


def _finish(finish, system, has_residuals):
    problem = system.problem
    decays = weight_decay_of(problem) is not None
    if isinstance(finish, EllipsisType):
        fits = has_residuals and not decays
        fits = fits and problem.y.size * system.num_parameters <= LARGEST_JACOBIAN
        finish = _GAUSS_NEWTON if fits else None
    _instance(finish, GaussNewton, "finish", "lintensor_jax.GaussNewton() or None")
    if finish is not None and decays:
        raise ValueError(
            "finish: GaussNewton solves for a residual of 0, which flows with weight decay do not "
            "have; pass finish=None."
        )
    if finish is not None and not has_residuals:
        raise ValueError(
            f"finish: GaussNewton is for losses of residuals, got {type(problem).__name__}; pass "
            "finish=None, and limit_direction for the limit of a classification flow."
        )
    return finish


def _tolerances(rtol, atol, system, theta, clock):
    """rtol and atol, with their defaults."""
    dtype, eps = theta.dtype, float(jnp.finfo(theta.dtype).eps)
    default_rtol = 1e-8 if eps < 1e-12 else 1e-5
    relative = _tolerance(default_rtol if rtol is None else rtol, "rtol", 32 * eps, dtype)
    if atol is None:
        # Saddles amplify absolute errors: with parameters of size alpha, atol is rtol * alpha. So
        # it is on the unit sphere: parameters that stay at size alpha must stay above atol.
        absolute = relative * size_of_start(theta, system.problem, system.depth)
        if isinstance(clock, LogArcLength):
            absolute = (jnp if isinstance(absolute, Tracer) else np).minimum(absolute, relative)
    else:
        absolute = _tolerance(atol, "atol", 0.0, dtype)
    return relative, absolute


def _check_own_rules(stop, dtype):
    """A user's rule must return one boolean. An error that the rule raises is not caught."""
    own = [rule for rule in members_of(stop) if status_of_rule(rule) is None]
    if not own:
        return
    number: Any = jax.ShapeDtypeStruct((), dtype)
    truth: Any = jax.ShapeDtypeStruct((), bool)
    seen = Observation(*[number] * (len(Observation._fields) - 1), still=truth)
    for rule in own:
        met = eqx.filter_eval_shape(lambda seen, rule=rule: rule.met(seen), seen)
        shape, kind = np.shape(met), getattr(met, "dtype", type(met).__name__)
        if shape != () or str(kind) != "bool":
            raise ValueError(
                f"stop: {type(rule).__name__}.met must return one truth value of JAX, got shape "
                f"{shape} of {kind}; compare a field of what is seen with a number."
            )


def _is_polynomial(problem):
    """Whether the softmax of the slopes depends on ratios of margins, which keep their digits."""
    return isinstance(problem.margin_loss.tail, PolynomialTail)


def _default_stop(problem, dtype):
    eps = float(jnp.finfo(dtype).eps)
    if weight_decay_of(problem) is not None:
        balance = StopAtBalance(max(1e-10, 1e3 * eps))
        if not problem.has_residuals:
            return balance
        # For flows whose weight decay is 0, which may be one lane of many.
        return balance | StopAtResidual(_smallest_residual(problem, eps))
    if problem.has_margins:
        return StopAtMargin(min(1e8, 1e-2 / eps))
    if problem.has_residuals:
        return StopAtResidual(_smallest_residual(problem, eps))
    raise ValueError(
        f"stop: no default for {type(problem).__name__}; pass one, such as StopAtLoss(1e-10)."
    )


def _smallest_residual(problem, eps):
    # NumPy if possible: JAX compiles a program for each of these operations.
    xp = jnp if isinstance(problem.y, Tracer) else np
    scale = xp.max(xp.abs(problem.y))
    # The residual of y = 0 becomes exactly zero or stays large: any positive number will do.
    return default_residual(problem, xp.where(scale > 0, scale, 1.0), eps)


def default_residual(problem: Any, scale: Any, eps: float) -> Any:
    """The residual at which a flow ends by default; `scale`: the size of the targets.

    It is 1e-9 times the scale. The slopes of another loss take the place of the residual. If they
    are bounded, such as those of `HuberLoss(1e-10)`, all can be below this already at the start.
    Then the bound takes the place of the scale.
    """
    if problem.has_squared_loss:
        return max(1e-9, 64 * eps) * scale
    slope = problem.residual_loss.slope(scale)
    xp = jnp if any(isinstance(x, Tracer) for x in (scale, slope)) else np
    slope = xp.abs(xp.asarray(slope))
    bound = xp.minimum(scale, xp.where(slope > 0, slope, scale))
    return xp.minimum(xp.maximum(1e-9 * bound, 64 * eps * scale), 1e-3 * bound)


def _instance(value, kind, name, example):
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name}: must be an object such as {example}, got {in_words(value)}.")
    return value


def _tolerance(value, name, smallest, dtype) -> Any:
    if isinstance(value, Tracer):
        return value.astype(dtype)
    number = as_number(value, name, "options")
    if not 0 < number < 1:
        raise ValueError(f"{name}: must lie in (0, 1), got {number!r}; try 1e-8.")
    if number < smallest:
        fix = "raise it"
        if dtype == np.float32:
            fix += ', or work in float64: jax.config.update("jax_enable_x64", True)'
        raise ValueError(
            f"{name}: {dtype} keeps relative errors of {smallest:.1e} at best, got {number:.3g}; "
            f"{fix}."
        )
    return np.asarray(number, dtype)


def _saving(saveat, dtype):
    if saveat is None:
        return None, False
    if isinstance(saveat, diffrax.SaveAt):
        sub = saveat.subs
        supported = isinstance(sub, diffrax.SubSaveAt) and not saveat.dense
        if not supported or sub.steps not in (0, 1) or (sub.ts is None) == (sub.steps == 0):
            raise ValueError(
                "saveat: use diffrax.SaveAt(ts=...) or diffrax.SaveAt(steps=True), got "
                f"{in_words(saveat)}; pass your own observables as `observe`."
            )
        if sub.steps == 1:
            return None, True
        saveat = sub.ts
    times = as_numbers(saveat, "saveat", "options")
    if times.ndim != 1 or times.shape[0] == 0 or jnp.iscomplexobj(times):
        raise ValueError(
            "saveat: must be a non-empty vector of clock times, got shape "
            f"{times.shape} and dtype {times.dtype}."
        )
    times = times.astype(dtype)
    if isinstance(times, Tracer):
        # Values cannot be refused here. A flow reaches no time of infinity.
        ordered = jnp.isfinite(times).all() & (times[0] >= 0) & (jnp.diff(times) > 0).all()
        times = jnp.where(ordered, times, jnp.inf)
    else:
        concrete = np.asarray(times)
        if not (np.isfinite(concrete).all() and concrete[0] >= 0 and (np.diff(concrete) > 0).all()):
            raise ValueError(
                "saveat: clock times must be finite, not negative and strictly increasing, got "
                f"{concrete[:6].tolist()}...; sort them and remove duplicates."
            )
    return times, False


def _is_of_package(network):
    """Whether the class of the network, and of one inside it, is a class of this package."""
    package = __name__.partition(".")[0] + "."
    inner = getattr(network, "network", None)
    return type(network).__module__.startswith(package) and (inner is None or _is_of_package(inner))


def _at_random_values(network):
    """The network with random numbers in all floating-point arrays."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not eqx.is_inexact_array(leaf):
            return leaf
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, network)


def _require_coupled_groups(system):
    """That second derivatives of beta are 0 between groups, tried for a user's own network."""
    parameters = getattr(system, "parameters", None)  # of the network's class
    if parameters is None or _is_of_package(parameters):
        return
    if closed_form(system, "coupled_groups") is None:
        return
    network = eqx.combine(parameters, system.rest)
    with jax.ensure_compile_time_eval():
        error = coupling_between_groups(System.of(_at_random_values(network), system.problem))
    if not error < float(jnp.finfo(system.initial.dtype).eps) ** 0.5:
        raise ValueError(
            f"network: coupled_groups() of {type(network).__name__} must put parameters that share "
            "second derivatives of beta into one group, got second derivatives between groups "
            f"(relative size {error:.1e} at a random point); correct the groups, or remove the "
            "method."
        )


def _require_homogeneity(system):
    """Check beta(2 Theta) = 2^depth beta(Theta) at a random point, for a user's own network."""
    network = eqx.combine(system.parameters, system.rest)
    if isinstance(network, AbstractNetwork) and _is_of_package(network):
        return
    probe = _at_random_values(network)
    with jax.ensure_compile_time_eval():
        once = np.asarray(probe.linear_coefficients())
        twice = np.asarray(scaled(probe, 2.0).linear_coefficients())
    expected = 2.0**system.depth * once
    error = np.max(np.abs(twice - expected)) / max(np.max(np.abs(expected)), 1e-300)
    if not error < 1e3 * float(jnp.finfo(probe.linear_coefficients().dtype).eps):
        raise ValueError(
            f"network: {type(network).__name__} states depth = {system.depth}, but "
            f"beta(2 Theta) differs from 2^{system.depth} beta(Theta) by {error:.1e} (relative) at "
            "a random Theta; correct `depth`, declare arrays that are not parameters with "
            "lintensor_jax.constant(), or pass clock=PhysicalTime()."
        )
