"""What a flow returns."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..problems import AbstractProblem
from .clocks import AbstractClock, ClockState, FlowArgs, PhysicalTime, log_time_unit
from .ends import AbstractEnd
from .gauss_newton import GaussNewton, run_finish
from .integrate import integrate, joined
from .observations import log_or_minus_infinity, record
from .options import FlowOptions, fill_options
from .statuses import ADVICE, FlowStatus, code_of, status_name
from .stopping import AbstractStop
from .system import Reducible, System


class FlowSolution(AbstractEnd):
    """A gradient flow, driven to where it stopped. `print` it to read what happened.

    Arrays with a leading axis have one entry per saved time, and the last entry is the flow's end
    (after the finish, if there was one; saved steps then include the end before it). Under
    `jax.vmap` or `jax.jit`, saved times beyond the end cannot be cut off: they repeat the end, and
    `reached` marks the entries before it.

    - `network`: the final network; `unfinished_network` the one before the finish.
    - `clock_time` (T,), `log_time` (T,): the clock's variable, and log of the physical time.
    - `coefficients` (T, d) or (T, d, m), `direction`: beta, and beta/|beta|.
    - `log_loss` (T,), `log_margin` (T,): natural logarithms; log_margin is None for regression and
      -inf while a sample is misclassified.
    - `log_norm` (T,): log |Theta|, over all parameters.
    - `smoothed_margin_drop`: the most that `log_smoothed_margin` has fallen from one saved time to
      the next, the start included; along the exact flow it never falls. None for regression.
    - `invariant_drift` (T,): how far the flow's conserved quantities have moved, over the largest
      squared norm so far; measured before the finish; NaN where none are known.
    - `rtol`, `atol`: the tolerances that were used.
    - `status`: a `FlowStatus`; `reason`: the same in words, for a rule of your own its words.
    - `stats`: "num_steps", "num_rejected_steps", "num_implicit_steps",
      and for a finish "finish_step" (relative size), "finish_residual", "finish_accepted".
    """

    network: Any  # of the type that was given
    unfinished_network: Any  # of the type that was given
    clock_time: Float[Array, " T"]
    coefficients: Float[Array, "T ..."]
    log_loss: Float[Array, " T"]
    log_time: Float[Array, " T"]
    log_margin: Float[Array, " T"] | None
    log_norm: Float[Array, " T"]
    smoothed_margin_drop: Scalar | None
    invariant_drift: Float[Array, " T"]
    observed: Any
    reached: Bool[Array, " T"]
    code: Int[Array, ""]
    stats: dict[str, Array]
    problem: AbstractProblem
    system: System
    rtol: Scalar
    atol: Scalar
    # What `continued` needs: the clock's own state, which keeps Theta where it would overflow.
    state: ClockState
    initial: ClockState
    log_time_unit: Scalar
    clock: AbstractClock
    stop: AbstractStop
    solver: Any
    finish: GaussNewton | None
    max_steps: int = eqx.field(static=True)

    @property
    def direction(self) -> Float[Array, "T ..."]:
        """beta/|beta| at each saved time; 0 where beta = 0."""
        # beta's own axes are the last ones, in a batch too.
        axes = tuple(range(self.log_loss.ndim - self.coefficients.ndim, 0))
        largest = jnp.max(jnp.abs(self.coefficients), axis=axes, keepdims=True)
        scaled = self.coefficients / jnp.where(largest > 0, largest, 1.0)
        norm = jnp.sqrt(jnp.sum(scaled**2, axis=axes, keepdims=True))
        return scaled / jnp.where(norm > 0, norm, 1.0)

    @property
    def log_normalized_margin(self) -> Float[Array, " T"] | None:
        """log of min_i m_i / |Theta|^depth; -inf while a sample is misclassified.

        None for regression, and for a network that states no depth; as `log_smoothed_margin`.
        """
        if self.log_margin is None or self.system.depth < 1:
            return None
        return self.log_margin - self.system.depth * self.log_norm

    @property
    def log_smoothed_margin(self) -> Float[Array, " T"] | None:
        """log of l^-1(L) / |Theta|^depth, at most the normalised margin; -inf while L >= l(0).

        For the exponential loss l^-1(L) = log(1/L), for the logistic loss -log(e^L - 1), L being
        the sum over the samples. Source: Lyu & Li 2020 (it never decreases along the flow).
        """
        if self.log_margin is None or self.system.depth < 1:
            return None
        return _log_smoothed_margin(self.system, self.log_loss, self.log_norm)

    def continued(self, **options: Any) -> "FlowSolution":
        """Integrate on from the (unfinished) end; takes `gradient_flow`'s options.

        Clock, solver, tolerances and finish are this solution's unless given. Times go on
        counting; the arrays hold the new part only.
        """
        settings = {
            "solver": self.solver,
            "clock": self.clock,
            "finish": self.finish,
            "rtol": self.rtol,
            "atol": self.atol,
            "max_steps": self.max_steps,
        }
        system = self.system
        throw = options.pop("throw", True)
        filled = fill_options(system, **{**settings, **options})
        return run(system, filled, throw=throw, previous=self)

    def __str__(self) -> str:
        """In words: what was integrated, why it stopped, how far it got."""
        if self.log_loss.ndim != 1:
            return self._batch_summary()
        last = -1
        solver = type(self.solver).__name__ if self.solver else "automatic solver"
        lines = [
            f"Gradient flow of {type(self.network).__name__} on {type(self.problem).__name__} "
            f"({type(self.clock).__name__} clock, {solver})",
            f"  stopped because  {self.reason} [{status_name(self.status)}]",
            f"  physical time    {_power_of_ten(self.log_time[last])}",
            f"  loss             {_power_of_ten(self.log_loss[last])}",
        ]
        if self.problem.has_margins:
            assert self.log_margin is not None
            wrong = float(self.log_margin[last]) == -np.inf
            margin = "not positive" if wrong else _power_of_ten(self.log_margin[last])
            lines.append(f"  smallest margin  {margin}")
            if self.smoothed_margin_drop is not None and self.log_smoothed_margin is not None:
                lines.append(
                    f"  smoothed margin  {_power_of_ten(self.log_smoothed_margin[last])} "
                    f"(over |Theta|^{self.system.depth}; largest drop of its logarithm "
                    f"{float(self.smoothed_margin_drop):.1e})"
                )
        stats = {key: np.asarray(value) for key, value in self.stats.items()}
        lines.append(
            f"  steps            {stats['num_steps']} ({stats['num_rejected_steps']} rejected, "
            f"{stats['num_implicit_steps']} implicit), rtol {float(self.rtol):.1e}, "
            f"atol {float(self.atol):.1e}"
        )
        drift = float(self.invariant_drift[last])
        known = "no conserved quantity known" if np.isnan(drift) else f"{drift:.1e}"
        lines.append(f"  invariant drift  {known}")
        if "finish_step" in stats:
            verdict = "accepted" if stats["finish_accepted"] else "refused, the flow's end is kept"
            lines.append(
                f"  finish           Gauss-Newton, relative step {stats['finish_step']:.1e} "
                f"({verdict}), residual {stats['finish_residual']:.1e}"
            )
        size = sum(x.nbytes for x in jax.tree.leaves(self) if hasattr(x, "nbytes"))
        lines.append(f"  saved            {self.log_loss.shape[0]} times, {size} bytes in all")
        return "\n".join(lines)

    def _batch_summary(self):
        batch = self.log_loss.shape[:-1]
        steps = np.asarray(self.stats["num_steps"])
        return (
            f"Batch {batch} of gradient flows of {type(self.network).__name__} on "
            f"{type(self.problem).__name__} ({type(self.clock).__name__} clock)\n"
            f"  stopped by       {self.counted()}\n"
            f"  steps            {steps.min()} to {steps.max()}, median {int(np.median(steps))}\n"
            f"  worst drift      {float(np.max(np.asarray(self.invariant_drift))):.1e}"
        )


def _power_of_ten(log_value):
    """A number given by its natural logarithm, as text; floats cannot hold exp(-1e8)."""
    exponent = float(log_value)
    if not np.isfinite(exponent):
        return "0" if exponent < 0 else str(exponent)
    if abs(exponent) < 300:
        return f"{np.exp(exponent):.6g}"
    return f"e^{exponent:.7g}"


class FlowError(RuntimeError):
    """A flow that failed: not `succeeded`; `solution` holds how far it got."""

    def __init__(self, message: str, solution: FlowSolution):
        super().__init__(message)
        self.solution = solution


def run(
    system: System, options: FlowOptions, *, throw: bool, previous: FlowSolution | None = None
) -> FlowSolution:
    """Integrate, finish, and wrap up; `previous` is the flow to go on from."""
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((system, options, previous)))
    reducible = _reducible(system.problem)
    if previous is None:
        start, s0, unit = _start(system, options.clock)
        initial = start
    else:
        if type(options.clock) is not type(previous.clock):
            raise ValueError(
                f"clock: a flow goes on with its own clock, {type(previous.clock).__name__}, got "
                f"{type(options.clock).__name__}; start a new flow from .unfinished_network."
            )
        start, initial, s0 = previous.state, previous.initial, previous.clock_time[-1]
        unit = previous.log_time_unit
    args = FlowArgs(system, reducible, unit)
    segments = integrate(args, start, initial, s0, options, traced)
    solution = _solution(args, initial, options, segments)
    if not traced:
        solution = _without_unreached(solution)
        name = status_name(solution.status)
        if throw and not bool(solution.succeeded):
            raise FlowError(
                f"the flow did not end: {solution.reason} ({name}). Advice: "
                f"{ADVICE[name]}; throw=False returns what there is.\n{solution}",
                solution,
            )
    return solution


_reducible = eqx.filter_jit(Reducible.of)


@eqx.filter_jit
def _start(system, clock):
    """The state of a flow at its start, the clock's zero, and the unit of logarithmic time."""
    start = clock.start(system, system.initial)
    zero = jnp.zeros((), start.theta.dtype)
    return start, zero, zero if isinstance(clock, PhysicalTime) else log_time_unit(system, start)


@eqx.filter_jit
def _solution(args, initial, options, segments):
    system = args.system
    end = joined(args, initial, options, segments)
    theta = jnp.exp(end.state.log_scale) * end.state.theta
    saved, stats = dict(end.saved), dict(end.stats)
    unfinished = network = system.network(theta)
    if options.finish is not None:
        finish = run_finish(options.finish, system, args.reducible, theta)
        # Only a flow that ended near its limit has a limit to be finished to.
        accepted = finish.accepted & (end.code == code_of(FlowStatus.residual))
        stats["finish_step"] = finish.relative_step
        stats["finish_residual"] = finish.residual
        stats["finish_accepted"] = accepted
        network = system.network(jnp.where(accepted, finish.theta, theta))
        beta = network.linear_coefficients()
        finished: dict[str, Any] = {
            "coefficients": beta,
            "log_loss": system.problem.log_loss(beta),
        }
        if options.observe is not None:
            finished["observed"] = options.observe(network)
        before = end.reached.at[-1].set(False)

        def with_end(along, last):
            return jnp.where(before.reshape(-1, *(1,) * (along.ndim - 1)), along, last)

        for name, last in finished.items():
            saved[name] = jax.tree.map(with_end, saved[name], last)
    return FlowSolution(
        network=network,
        unfinished_network=unfinished,
        clock_time=end.saved_s,
        coefficients=saved["coefficients"],
        log_loss=saved["log_loss"],
        log_time=saved["log_time"],
        log_margin=saved.get("log_margin"),
        log_norm=saved["log_norm"],
        smoothed_margin_drop=_smoothed_margin_drop(args, initial, options, saved),
        invariant_drift=saved["invariant_drift"],
        observed=saved.get("observed"),
        reached=end.reached,
        code=end.code,
        stats=stats,
        problem=system.problem,
        system=system,
        rtol=options.rtol,
        atol=options.atol,
        state=end.state,
        initial=initial,
        log_time_unit=args.log_time_unit,
        clock=options.clock,
        stop=options.stop,
        solver=options.solver,
        finish=options.finish,
        max_steps=options.max_steps,
    )


def _log_smoothed_margin(system, log_loss, log_norm):
    margin = system.problem.margin_loss.inverse(log_loss)
    return log_or_minus_infinity(margin) - system.depth * log_norm


def _smoothed_margin_drop(args, initial, options, saved):
    if not args.system.problem.has_margins or args.system.depth < 1:
        return None
    start = record(jnp.zeros_like(initial.elapsed), initial, args, options, initial)
    along = (jnp.append(start[name], saved[name]) for name in ("log_loss", "log_norm"))
    values = _log_smoothed_margin(args.system, *along)
    counts = values[:-1] > -jnp.inf
    return jnp.max(jnp.where(counts, values[:-1] - values[1:], 0.0), initial=0.0)


def _without_unreached(solution):
    reached = np.asarray(solution.reached)
    if reached.all():
        return solution
    kept = np.flatnonzero(reached)

    def where(s):
        return (
            s.clock_time,
            s.coefficients,
            s.log_loss,
            s.log_time,
            s.log_margin,
            s.log_norm,
            s.invariant_drift,
            s.observed,
            s.reached,
        )

    trimmed = jax.tree.map(lambda leaf: leaf[kept], where(solution))
    return eqx.tree_at(where, solution, trimmed, is_leaf=lambda x: x is None)
