"""Lanes of regression that a Gauss-Newton finish ends earlier than one flow."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ...networks import split
from ..gauss_newton import GaussNewton
from ..options import FlowOptions
from ..statuses import FlowStatus, code_of
from .program_chunk import BatchedFlow

# The default residual of one flow, times this: 1e-5 max|y|. The largest step of the finish gives
# errors of about its square, 1e-9. Measured (`benchmarks/early_finish.py`): the limits of all lanes
# keep their errors, and lanes of 96 numbers take two thirds of the steps.
_EARLIER = 1e4
_STEP: Any = np.asarray(3e-5)
_FINISH = GaussNewton(_STEP)
_OF_LANES = (
    *("record", "code", "finish_accepted"),
    *("num_steps", "num_rejected_steps", "num_implicit_steps"),
)


def with_early_finish(
    options: FlowOptions, problem: Any, given: dict[str, Any], shared: bool
) -> FlowOptions:
    """The options with a larger default residual and a larger step of the finish.

    `given`: the user's options. `shared`: whether all lanes share the problem. Otherwise the
    residual, which is derived from one lane's data, would be large for smaller targets. The same
    options are returned if the user gave a `stop` or a `finish`, if there is no finish, if lanes
    have problems of their own, for losses that are not squared, or in single precision, whose
    default residual is 1e-5 already. The slopes of other losses take the place of the residual, and
    can all be below 1e-5: that of `HuberLoss(1e-6)` is at most 1e-6.
    """
    is_default = given.get("stop") is None and given.get("finish", ...) is ...
    is_default = is_default and shared and options.finish is not None and problem.has_squared_loss
    if not is_default or options.rtol.dtype != np.float64:
        return options
    # The residual is the only number of the default rules. New modules would take 0.1 ms.
    early = jax.tree.map(lambda value: _EARLIER * value, options.stop)
    return options._replace(stop=early, finish=_FINISH)


def rejected_lanes(flow: BatchedFlow) -> Int[np.ndarray, " K"]:
    """The lanes that reached the residual, and whose finish was not accepted there."""
    if flow.finish_accepted is None:
        return np.zeros(0, int)
    accepted = np.asarray(flow.finish_accepted)
    if accepted.all():  # the usual case
        return np.zeros(0, int)
    at_residual = np.asarray(flow.code) == code_of(FlowStatus.residual)
    return np.flatnonzero(at_residual & ~accepted)


def with_lanes(flow: BatchedFlow, lanes: Int[np.ndarray, " K"], again: BatchedFlow) -> BatchedFlow:
    """The flow with its `lanes` replaced by those of `again`; the steps of both were executed."""

    def put(whole, part):
        return jnp.asarray(whole).at[lanes].set(part)

    networks = {}
    for name in ("network", "unfinished_network"):
        parameters, rest = split(getattr(flow, name))
        own = split(getattr(again, name))[0]
        networks[name] = eqx.combine(jax.tree.map(put, parameters, own), rest)
    pairs = {name: (getattr(flow, name), getattr(again, name)) for name in _OF_LANES}
    new = {name: jax.tree.map(put, *pair) for name, pair in pairs.items()}
    executed = flow.executed_steps + again.executed_steps
    return dataclasses.replace(flow, **networks, **new, executed_steps=executed)
