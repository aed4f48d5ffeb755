"""Where a flow ends, and its finish: the only place that accepts Gauss-Newton steps."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .clocks import ClockState, FlowArgs
from .gauss_newton import Finish, run_finish
from .options import FlowOptions
from .record import Record
from .statuses import FlowStatus, code_of
from .stopping import Observation, coded

#: A finish is accepted only after this status: the flow then has a limit and is near it.
_FINISHED = code_of(FlowStatus.residual)


def first_rule(seen: Observation, options: FlowOptions) -> Int[Array, ""]:
    """The code of the first rule that is met (see `statuses.code_of`), `max_steps` if none is.

    With a finish, the rule on the residual is met only if the finish is likely to be accepted.
    """
    code = jnp.asarray(code_of(FlowStatus.max_steps))
    for rule_code, rule in reversed(coded(options.stop)):
        met = rule.met(seen)
        if options.finish is not None and rule_code == _FINISHED:
            # The factor 10 is a reserve: the estimate is a lower bound. At an exact fit it is 0/0.
            near = 10 * seen.gradient_step <= options.finish.max_relative_step
            met = met & (near | (seen.residual == 0))
        code = jnp.where(met, rule_code, code)
    return code


class Finished(NamedTuple):
    """The end of one flow after its finish, and what the finish did."""

    network: Any
    unfinished_network: Any
    record: Record
    finish: Finish | None  # `accepted` says whether the network is the finished one


def finish_flow(
    state: ClockState, code: Int[Array, ""], end: Record, args: FlowArgs, options: FlowOptions
) -> Finished:
    """The flow's end, finished if the options say so and the finish is accepted.

    `end` is the record of `state`. `code` is that of the rule which ended the flow.
    """
    system = args.system
    theta = jnp.exp(state.log_scale) * state.theta
    unfinished = system.network(theta)
    if options.finish is None:
        return Finished(unfinished, unfinished, end, None)
    assert args.reducible is not None
    found = run_finish(options.finish, system, args.reducible, theta)
    accepted = found.accepted & (code == _FINISHED)
    network: Any = system.network(jnp.where(accepted, found.theta, theta))
    beta = network.linear_coefficients()
    end = dataclasses.replace(
        end,
        coefficients=beta,
        log_loss=system.problem.log_loss(beta),
        observed=None if options.observe is None else options.observe(network),
    )
    return Finished(network, unfinished, end, dataclasses.replace(found, accepted=accepted))
