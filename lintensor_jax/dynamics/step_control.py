"""The control of single flows: steps by their errors and by stability, and the end of the flow."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .clocks import FlowArgs
from .observations import longest_step
from .statuses import FlowStatus, code_of


class FlowControl(diffrax.AbstractAdaptiveStepSizeController):
    """An error control that ends the flow, and may clip every step.

    The flow ends with the step at whose end `rule` names a status, or says that it is to end for
    another reason. The state of the control is the error control's and the code of that status.

    A `diffrax.Event` would see the same states, but only after rejected ones have been sorted out:
    it would evaluate another gradient in every step. Here it is the velocity that the method itself
    has evaluated at the step's end (explicit methods written out, see `runge_kutta`).

    With `clips` every step is at most 2/lambda, lambda = |grad L|^2 / |P r|^2 being the Rayleigh
    quotient of the flow's kernel at its own residual. Without, an explicit method ends up hovering
    at its stability limit, with a residual that never falls below about its tolerances; with it the
    residual decays to rounding.
    """

    pid: diffrax.PIDController
    # Of the time and the state: the status's code, and whether to end.
    rule: Callable[[Any, Any, FlowArgs], tuple[Int[Array, ""], Bool[Array, ""]]]
    clips: bool
    done: Bool[Array, ""]  # the flow is over before its first step, which may never be accepted

    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The error control's."""
        return self.pid.rtol

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The error control's."""
        return self.pid.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The error control's."""
        return self.pid.norm

    def wrap(self, direction):
        """Flows go forward only."""
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The error control's first step, clipped."""
        t_next, state = self.pid.init(terms, t0, t1, y0, dt0, args, func, error_order)
        if self.clips:
            t_next = jnp.minimum(t_next, t0 + longest_step(y0, args))
        return t_next, (state, jnp.asarray(code_of(FlowStatus.max_steps)))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        """The error control's decision, with the next step clipped, and the end."""
        keep, next_t0, next_t1, made_jump, state, result = self.pid.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state[0]
        )
        if self.clips:
            # At the candidate although it may be rejected: a rejected step shrinks anyway.
            next_t1 = jnp.minimum(next_t1, next_t0 + longest_step(y1_candidate, args))
        code, ends = self.rule(t1, y1_candidate, args)
        ends = (keep & ends) | self.done
        result = diffrax.RESULTS.where(ends, diffrax.RESULTS.event_occurred, result)
        code = jnp.where(keep, code, controller_state[1])
        return keep, next_t0, next_t1, made_jump, (state, code), result
