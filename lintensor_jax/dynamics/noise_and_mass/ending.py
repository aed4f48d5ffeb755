"""What flows with noise or inertia have in common: how they stop, what is kept, and text."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar

from ...messages import in_words
from ...networks import split
from ...networks.decomposition import AssumptionFails
from ...networks.mirror_coordinates import TwoLayerCoordinates
from ...problems import AbstractProblem, named
from ..descent.descent_solution import balance_drift
from ..record import Record
from ..reduced.mirror_coordinates import coordinates_of
from ..solution import FlowError
from ..statuses import ADVICE, FlowStatus, code_of, status_name
from ..stopping import AbstractStop, Observation, StopAtResidual, coded
from ..system import prediction_range


class StopContext(NamedTuple):
    """What decides where a flow stops: its problem, the range of the predictions, and its rule."""

    problem: Any
    range_basis: Array
    stop: AbstractStop

    def at(self, beta: Array, time: Scalar, kinetic: Scalar | float = 0.0) -> Observation:
        """What stop rules see. A kinetic energy (m/2)|Theta'|^2 is added to the loss."""
        residual = self.problem.residual(beta)
        reduced = self.range_basis.T @ residual.reshape(self.range_basis.shape[0], -1)
        zero = jnp.zeros_like(time)
        kinetic = jnp.asarray(kinetic, residual.dtype)
        log_kinetic = jnp.where(kinetic > 0, jnp.log(jnp.where(kinetic > 0, kinetic, 1.0)), -np.inf)
        return Observation(
            log_loss=jnp.logaddexp(self.problem.log_loss(beta), log_kinetic),
            residual=jnp.sqrt(jnp.sum(reduced**2) + 2 * kinetic),
            log_margin=jnp.full_like(zero, -jnp.inf),
            log_time=jnp.log(time),
            gradient_step=zero,
            largest_weight=zero,
            coefficient_gradient=zero,
            relative_speed=jnp.full_like(zero, jnp.inf),
            balance=jnp.full_like(zero, jnp.inf),
            still=jnp.zeros((), bool),
        )

    def code(self, seen: Observation, finite: Array, otherwise: Any) -> Int[Array, ""]:
        """The code of a flow that ended at `seen`: `otherwise` if no rule is met."""
        code = jnp.asarray(otherwise)
        for own, rule in reversed(coded(self.stop)):
            code = jnp.where(rule.met(seen), own, code)
        return jnp.where(finite, code, code_of(FlowStatus.non_finite))


def stop_context_of(problem: AbstractProblem, stop: AbstractStop | None, owner: str) -> StopContext:
    """The `StopContext` of a flow, with the default rule if `stop` is None.

    ValueError for a problem without residuals.
    """
    if not problem.has_residuals:
        raise ValueError(
            f"{owner}: problem must have a loss of residuals, as Regression(X, y) has, got "
            f"{named(problem)}; use gradient_flow."
        )
    y: Any = problem.y  # pyright: ignore[reportAttributeAccessIssue]
    if stop is None:
        scale = float(jnp.max(jnp.abs(y)))
        smallest = 64 * float(jnp.finfo(y.dtype).eps)
        stop = StopAtResidual(max(1e-10, smallest) * (scale if scale > 0 else 1.0))
    if not isinstance(stop, AbstractStop):
        raise ValueError(
            "stop: must be an object such as lintensor_jax.StopAtResidual(1e-9), got "
            f"{in_words(stop)}."
        )
    stop.check(problem, y.dtype)
    return StopContext(problem, prediction_range(problem), stop)  # pyright: ignore[reportArgumentType]


def positive(value: Any, name: str, owner: str, zero: bool = False) -> float:
    """A positive finite float, or with `zero` also 0; ValueError otherwise."""
    number = float(value) if isinstance(value, int | float | np.number | jax.Array) else np.nan
    if not np.isfinite(number) or number < 0 or (number == 0 and not zero):
        rule = "a finite number >= 0" if zero else "a positive finite number"
        raise ValueError(f"{owner}: {name} must be {rule}, got {in_words(value)}; pass e.g. 0.1.")
    return number


def saved_times(saveat: Any, dtype: Any) -> Float[Array, " T"] | None:
    """The physical times to save at, or None; ValueError if they are not valid."""
    if saveat is None:
        return None
    times = np.asarray(saveat, dtype)
    if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all() or times[0] < 0:
        raise ValueError(
            "saveat: must be a non-empty vector of finite physical times >= 0, got "
            f"{in_words(saveat)}."
        )
    if not (np.diff(times) > 0).all():
        raise ValueError(f"saveat: times must be strictly increasing, got {times[:6].tolist()}.")
    return jnp.asarray(times)


def two_layer_coordinates(network: Any, problem: Any) -> TwoLayerCoordinates | None:
    """The mirror coordinates of two layers with a real decomposition; None for other networks."""
    if getattr(network, "depth", None) != 2:
        return None
    try:
        found = coordinates_of(network, problem)
    except (AssumptionFails, ValueError):
        return None
    return found if isinstance(found, TwoLayerCoordinates) else None


def positive_int(value: Any, name: str) -> int:
    """`value`, if it is a positive int; ValueError otherwise."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: must be a positive int, got {value!r}; pass e.g. 1000.")
    return value


def raise_unless_ended(solution: Any, advice: str) -> None:
    """Raise a `FlowError` if a single flow failed."""
    if not bool(solution.succeeded):
        name = status_name(solution.status)
        raise FlowError(
            f"the flow did not end: {solution.reason} ({name}). Advice: {ADVICE[name]}{advice}; "
            f"throw=False returns what there is.\n{solution}",
            solution,
        )


def record_at(network: Any, start: Any, problem: Any, time: Scalar) -> Record:
    """The record of a flow from `start` whose network at `time` is `network`."""
    beta = network.linear_coefficients()
    leaves = jax.tree.leaves(split(network)[0])
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves))
    return Record(
        coefficients=beta,
        log_loss=problem.log_loss(beta),
        log_time=jnp.log(time),
        log_norm=jnp.log(norm),
        log_margin=None,
        invariant_drift=balance_drift(network, start),
        observed=None,
    )


def with_end(saved: Any, end: Any, reached: Array) -> Any:
    """Saved values (T, ...) and the end after them; unreached entries repeat the end."""

    def join(along, last):
        kept = jnp.where(reached.reshape(-1, *(1,) * last.ndim), along, last[None])
        return jnp.concatenate([kept, last[None]])

    return jax.tree.map(join, saved, end)


def direction_of(coefficients: Array, num_leading: int) -> Array:
    """beta/|beta|; 0 where beta = 0."""
    axes = tuple(range(num_leading, coefficients.ndim))
    norm = jnp.sqrt(jnp.sum(coefficients**2, axis=axes, keepdims=True))
    return coefficients / jnp.where(norm > 0, norm, 1.0)


def ten_to(log_value: Any) -> str:
    """A number given by its natural logarithm, as text."""
    exponent = float(log_value)
    if np.isfinite(exponent) and abs(exponent) > 300:
        return f"e^{exponent:.6g}"
    return f"{np.exp(exponent):.4g}"
