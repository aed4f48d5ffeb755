"""What is kept of a flow's states: the record that all solutions of flows hold."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Scalar

from ..networks import scaled, split
from ..networks.conserved import conserved_quantities
from ..penalized import weight_decay_of
from .clocks import ClockState, FlowArgs
from .observations import log_or_minus_infinity, observe_state
from .options import FlowOptions
from .system import System


class Record(eqx.Module):
    """What is kept of the state of one flow at one time, or of many, with leading axes.

    `gradient_flow` has an axis of saved times (T), `batched_flow` one of lanes (N). A quantity that
    all flows keep is a field here, and is computed in `record_of`.

    - `coefficients`: beta, shape (..., d) or (..., d, m).
    - `log_loss`, `log_time`, `log_norm`: log L, log of the physical time, log |Theta|.
    - `log_margin`: log min_i m_i, -inf while a sample is misclassified; None without margins.
    - `invariant_drift`: see `invariant_drift` below.
    - `observed`: what the option `observe` returned; None without it.
    """

    coefficients: Float[Array, "..."]
    log_loss: Float[Array, "..."]
    log_time: Float[Array, "..."]
    log_norm: Float[Array, "..."]
    log_margin: Float[Array, "..."] | None
    invariant_drift: Float[Array, "..."]
    observed: Any

    def log_smoothed_margin(self, system: System) -> Float[Array, "..."]:
        """log of l^-1(L) / |Theta|^depth; -inf while L >= l(0). For problems with margins."""
        margin = system.problem.margin_loss.inverse(self.log_loss)  # pyright: ignore
        return log_or_minus_infinity(margin) - system.depth * self.log_norm


def record_of(
    s: Scalar, state: ClockState, args: FlowArgs, options: FlowOptions, initial: ClockState
) -> Record:
    """The record of one state at the clock's time `s`."""
    seen = observe_state(s, state, args, options.clock, may_rest=False)
    system, observe = args.system, options.observe
    with_scale = jnp.exp(state.log_scale) * state.theta
    return Record(
        coefficients=jnp.exp(system.depth * state.log_scale) * system.coefficients(state.theta),
        log_loss=seen.log_loss,
        log_time=seen.log_time,
        log_norm=state.log_scale + _log_norm(system.network(state.theta)),
        log_margin=seen.log_margin if system.problem.has_margins else None,
        invariant_drift=invariant_drift(system, state, initial, s),
        observed=None if observe is None else observe(system.network(with_scale)),
    )


def smoothed_margin_drop(
    args: FlowArgs, initial: ClockState, options: FlowOptions, record: Record
) -> Scalar | None:
    """The largest drop of `log_smoothed_margin` from one record to the next, from the start on."""
    system = args.system
    if not system.problem.has_margins or system.depth < 1:
        return None
    start = record_of(jnp.zeros_like(initial.elapsed), initial, args, options, initial)
    values = jnp.append(start.log_smoothed_margin(system), record.log_smoothed_margin(system))
    counts = values[:-1] > -jnp.inf
    return jnp.max(jnp.where(counts, values[:-1] - values[1:], 0.0), initial=0.0)


def invariant_drift(system: System, state: ClockState, initial: ClockState, time: Scalar) -> Scalar:
    """max |I(Theta) - I(Theta(0))| / max(|Theta|^2, |Theta(0)|^2), without overflow.

    With weight decay lambda the conserved quantities decay like exp(-2 lambda t), where t is the
    physical `time`. Then I(Theta(0)) exp(-2 lambda t) takes the place of I(Theta(0)).
    """
    networks = [system.network(end.theta) for end in (state, initial)]
    scales = [end.log_scale for end in (state, initial)]
    norms = [_log_norm(network) + scale for network, scale in zip(networks, scales, strict=True)]
    log_unit = jnp.maximum(*norms)
    log_unit = jnp.where(log_unit > -jnp.inf, log_unit, 0.0)  # the zero network conserves zeros
    now, before = (
        conserved_quantities(scaled(network, jnp.exp(scale - log_unit)))
        for network, scale in zip(networks, scales, strict=True)
    )
    if now.size == 0:
        return jnp.full_like(state.log_scale, jnp.nan)
    decay = weight_decay_of(system.problem)
    kept = 1.0 if decay is None else jnp.exp(-2 * decay * time)
    return jnp.max(jnp.abs(now - kept * before))


def _log_norm(network):
    vector = ravel_pytree(split(network)[0])[0]
    largest = jnp.max(jnp.abs(vector))
    safe = jnp.where(largest > 0, largest, 1.0)
    return jnp.log(safe) + jnp.log(jnp.linalg.norm(vector / safe))
