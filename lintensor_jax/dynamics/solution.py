"""`FlowSolution`, the result of a flow, and `FlowError`."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..messages import counted
from ..problems import AbstractProblem, named
from .clocks import AbstractClock, ClockState
from .dataset import arrays_of, dataset_of
from .ends import AbstractEnd
from .gauss_newton import GaussNewton
from .integrate import Origin, integrate
from .options import FlowOptions, fill_options
from .progress import metered
from .record import Record
from .shifted_systems import LARGEST_MATRIX, has_implicit_steps
from .statuses import ADVICE, FlowStatus, failed, status_name
from .stopping import AbstractStop
from .system import System


class FlowSolution(AbstractEnd):
    """The result of a gradient flow. `print` it to read a summary.

    Arrays with a leading axis have one entry per saved time, and the last entry is the flow's end
    (after the finish, if there was one; saved steps then include the end before the finish). Under
    `jax.vmap` or `jax.jit`, saved times beyond the end cannot be cut off: they repeat the end, and
    `reached` is False there.

    - `network`: the final network; `unfinished_network` the one before the finish.
    - `clock_time` (T,), `log_time` (T,): the clock's variable, and log of the physical time.
    - `coefficients` (T, d) or (T, d, m), `direction`: beta, and beta/|beta|.
    - `log_loss` (T,), `log_margin` (T,): natural logarithms; log_margin is None for regression and
      -inf while a sample is misclassified.
    - `log_norm` (T,): log |Theta|, over all parameters.
    - `smoothed_margin_drop`: the largest drop of `log_smoothed_margin` from one saved time to the
      next, the start included; along the exact flow it never falls. None for regression.
    - `invariant_drift` (T,): how far the flow's conserved quantities have moved, over the larger
      squared norm of the start and the state. Measured before the finish; NaN if none are known.
    - `rtol`, `atol`: the tolerances that were used.
    - `status`: a `FlowStatus`; `reason`: the same in words, for your own rule its `words()`.
    - `stats`: "num_steps", "num_rejected_steps", "num_implicit_steps",
      and for a finish "finish_step" (relative size), "finish_residual", "finish_accepted".
    """

    network: Any  # of the type that was given
    unfinished_network: Any  # of the type that was given
    clock_time: Float[Array, " T"]
    record: Record
    smoothed_margin_drop: Scalar | None
    reached: Bool[Array, " T"]
    code: Int[Array, ""]
    stats: dict[str, Array]
    problem: AbstractProblem
    system: System
    rtol: Scalar
    atol: Scalar
    # What `continued` needs: the state of the clock, which has no overflow where Theta would.
    state: ClockState
    initial: ClockState
    log_time_unit: Scalar
    clock: AbstractClock
    stop: AbstractStop
    solver: Any
    finish: GaussNewton | None
    max_steps: int = eqx.field(static=True)
    scales_atol: bool = eqx.field(static=True)  # whether atol is the default

    @property
    def observed(self) -> Any:
        """What the option `observe` returned at each saved time; None without it."""
        return self.record.observed

    @property
    def direction(self) -> Float[Array, "T ..."]:
        """beta/|beta| at each saved time; 0 where beta = 0."""
        # beta's own axes are the last ones, in a batch too.
        return _unit(self.coefficients, self.coefficients.ndim - self.log_loss.ndim)

    @property
    def log_normalized_margin(self) -> Float[Array, " T"] | None:
        """log of min_i m_i / |Theta|^depth; -inf while a sample is misclassified.

        None for regression, and for a network that states no depth.
        """
        if self.log_margin is None or self.system.depth < 1:
            return None
        return self.log_margin - self.system.depth * self.log_norm

    @property
    def log_smoothed_margin(self) -> Float[Array, " T"] | None:
        """log of l^-1(L) / |Theta|^depth, at most the normalised margin; -inf while L >= l(0).

        For the exponential loss l^-1(L) = log(1/L), for the logistic loss -log(e^L - 1), where L is
        the sum over the samples. It never decreases along the flow. None as for
        `log_normalized_margin`. Source: Lyu & Li 2020.
        """
        if self.log_margin is None or self.system.depth < 1:
            return None
        return self.record.log_smoothed_margin(self.system)

    def continued(self, **options: Any) -> "FlowSolution":
        """Continue the flow from its end before the finish; takes the options of `gradient_flow`.

        Clock, solver, tolerances, finish and max_steps are this solution's unless given. Times are
        counted from the start of the flow. The arrays hold the new part only.
        """
        settings = {
            "solver": self.solver,
            "clock": self.clock,
            "finish": self.finish,
            "rtol": self.rtol,
            "atol": None if self.scales_atol else self.atol,
            "max_steps": self.max_steps,
        }
        system = self.system
        throw = options.pop("throw", True)
        with metered(options.pop("progress", False), system) as meter:
            filled = fill_options(system, **{**settings, **options})._replace(meter=meter)
            return run(system, filled, throw=throw, previous=self)

    def to_xarray(self) -> Any:
        """The saved times as an `xarray.Dataset`; it needs xarray.

        Dimensions: `time`, with the clock's variable as coordinate, `coefficient` and for a matrix
        `output`. Variables: `coefficients`, `direction`, `log_loss`, `log_time`, `log_norm`,
        `invariant_drift`, with margins `log_margin` and `log_smoothed_margin`, and what `observe`
        returned. Each has units and a description. Attributes: why the flow ended, what was
        integrated, tolerances and numbers of steps. Many flows (under `jax.vmap`) have the
        dimensions `lane_0`, ... before `time`.
        """
        lanes = tuple(f"lane_{axis}" for axis in range(self.log_loss.ndim - 1))
        words = {"units": "", "description": f"variable of the clock {type(self.clock).__name__}"}
        more: dict[str, Any] = {
            "direction": self.direction,
            "log_smoothed_margin": self.log_smoothed_margin,
        }
        attributes = {
            "network": type(self.network).__name__,
            "problem": named(self.problem),
            "clock": type(self.clock).__name__,
        }
        if lanes:
            more["reached"] = self.reached
            coordinates = {"clock_time": ((*lanes, "time"), np.asarray(self.clock_time), words)}
        else:
            coordinates = {"time": ("time", np.asarray(self.clock_time), words)}
            attributes |= {
                "status": status_name(self.status),
                "reason": self.reason,
                "rtol": float(self.rtol),
                "atol": float(self.atol),
                **{name: np.asarray(value).item() for name, value in self.stats.items()},
            }
        return dataset_of(
            arrays_of(self.record) | more,
            self.record.observed,
            (*lanes, "time"),
            coordinates=coordinates,
            attributes=attributes,
        )

    def __str__(self) -> str:
        """A summary: what was integrated, why it stopped, and the state at the end."""
        if self.log_loss.ndim != 1:
            return self._batch_summary()
        last = -1
        solver = type(self.solver).__name__ if self.solver else "automatic solver"
        lines = [
            f"Gradient flow of {type(self.network).__name__} on {named(self.problem)} "
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
        times = counted(self.log_loss.shape[0], "time")
        lines.append(f"  saved            {times}, {size} bytes in all")
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


@functools.partial(jax.jit, static_argnums=1)
def _unit(vectors, ndim):
    """The arrays of the last `ndim` axes over their Euclidean norm; 0 where that is 0."""
    axes = tuple(range(-ndim, 0))
    largest = jnp.max(jnp.abs(vectors), axis=axes, keepdims=True)
    scaled = vectors / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(scaled**2, axis=axes, keepdims=True))
    return scaled / jnp.where(norm > 0, norm, 1.0)


def _power_of_ten(log_value):
    """A number given by its natural logarithm, as text; floats cannot hold exp(-1e8)."""
    exponent = float(log_value)
    if not np.isfinite(exponent):
        return "0" if exponent < 0 else str(exponent)
    if abs(exponent) < 300:
        return f"{np.exp(exponent):.6g}"
    return f"e^{exponent:.7g}"


class FlowError(RuntimeError):
    """A flow failed (`succeeded` is False). `solution` holds the flow up to its end."""

    def __init__(self, message: str, solution: FlowSolution):
        super().__init__(message)
        self.solution = solution


def run(
    system: System, options: FlowOptions, *, throw: bool, previous: FlowSolution | None = None
) -> FlowSolution:
    """Integrate, and raise a `FlowError` if `throw` and the flow fails.

    `previous` is the flow to continue, or None. Traced flows raise nothing.
    """
    origin = None
    if previous is not None:
        if type(options.clock) is not type(previous.clock):
            raise ValueError(
                f"clock: a flow goes on with its own clock, {type(previous.clock).__name__}, got "
                f"{type(options.clock).__name__}; start a new flow from .unfinished_network."
            )
        origin = Origin(
            previous.state, previous.initial, previous.clock_time[-1], previous.log_time_unit
        )
    trajectory, origin = integrate(system, options, origin)
    solution = FlowSolution(
        **trajectory._asdict(),
        problem=system.problem,
        system=system,
        rtol=options.rtol,
        atol=options.atol,
        initial=origin.initial,
        log_time_unit=origin.log_time_unit,
        clock=options.clock,
        stop=options.stop,
        solver=options.solver,
        finish=options.finish,
        max_steps=options.max_steps,
        scales_atol=options.scales_atol,
    )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((system, options, origin))):
        return solution
    solution = _without_unreached(solution)
    name = status_name(solution.status)
    if throw and failed(solution.code):
        raise FlowError(
            f"the flow did not end: {solution.reason} ({name}). Advice: "
            f"{_advice(solution, name)}; throw=False returns what there is.\n{solution}",
            solution,
        )
    return solution


def _advice(solution: FlowSolution, name: str) -> str:
    """What to try after a failure. There is more after `max_steps`: more steps seldom help."""
    if name != status_name(FlowStatus.max_steps):
        return ADVICE[name]
    advice = ADVICE[name]
    size = solution.state.theta.size
    if solution.solver is None and not has_implicit_steps(solution.system, solution.clock, size):
        advice = (
            "this is a stiff flow if its steps stay short, and more steps hardly help then: with "
            f"{size} parameters an implicit step would need a matrix of more than "
            f"{LARGEST_MATRIX} rows, so that there is none. If it is not stiff, {advice}"
        )
    if solution.problem.has_margins:
        return f"{advice}. limit_direction may have the limit without more steps"
    return (
        f"{advice}. A theorem may give the limit without a flow: see predict(network, problem). "
        "mirror_flow, where it exists, integrates one equation for each sample"
    )


def _without_unreached(solution):
    reached = np.asarray(solution.reached)
    if reached.all():
        return solution
    kept = np.flatnonzero(reached)

    def where(s):
        return s.clock_time, s.record, s.reached

    return eqx.tree_at(where, solution, jax.tree.map(lambda leaf: leaf[kept], where(solution)))
