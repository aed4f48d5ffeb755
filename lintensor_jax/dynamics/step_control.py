"""Step-size control of single flows: error, stability limit, and the end of the flow."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Scalar

from .clocks import FlowArgs
from .observations import longest_step
from .statuses import FlowStatus, code_of


class FlowControl(diffrax.AbstractAdaptiveStepSizeController):
    """An error control that also ends the flow, and can limit the length of every step.

    After every accepted step `rule` returns a status and whether the flow ends. The state of this
    control is the pair of the error control's state and the code of that status.

    A `diffrax.Event` would see the same accepted states, but it would evaluate one more gradient
    in every step. Here XLA reuses the velocity that the method has evaluated at the step's end
    (for explicit methods that are written out, see `runge_kutta`).

    An implicit step near a limit can be so long that it leaves the orbit of the flow along the
    other limits, though its estimated error is small. What the flow conserves then changes, and
    this detects the step. It is not taken, and the flow ends before it.

    With `clips` every step is at most 2/lambda, where lambda = |grad L|^2 / |P r|^2 is the Rayleigh
    quotient of the flow's kernel for the residual. Without this limit the steps of an explicit
    method stay at its stability limit, and the residual does not fall below about the tolerances.
    With it the residual decays to rounding.
    """

    #: No step begins with a jump of the velocity, and the result of a step is never a constant.
    never_jumps: ClassVar = True

    pid: diffrax.PIDController
    # A function of time, state and arguments: the code of the status, whether the flow ends, and
    # the longest next step (None without `clips`).
    rule: Callable[[Any, Any, FlowArgs], tuple[Int[Array, ""], Bool[Array, ""], Any]]
    clips: bool
    done: Bool[Array, ""]  # the flow is over before its first step, even if that is rejected
    longest: Scalar | None = None  # the longest first step, where it is known; for `clips`
    # Whether a state keeps what the flow conserves; None if this is not checked.
    keeps_invariants: Callable[[Any], Bool[Array, ""]] | None = None
    # Is called for every step: with whether it is accepted, time, state and arguments.
    report: Callable[[Any, Any, Any, FlowArgs], None] | None = None

    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The relative tolerance of the error control."""
        return self.pid.rtol

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The absolute tolerance of the error control."""
        return self.pid.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The norm in which the error control measures errors."""
        return self.pid.norm

    def wrap(self, direction):
        """This control itself: flows are integrated forward only."""
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The error control's first step, limited if `clips`."""
        t_next, state = self.pid.init(terms, t0, t1, y0, dt0, args, func, error_order)
        if self.clips:
            longest = longest_step(y0, args) if self.longest is None else self.longest
            t_next = jnp.minimum(t_next, t0 + longest)
        return t_next, (state, jnp.asarray(code_of(FlowStatus.max_steps)))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        """The error control's decision, with the next step limited, and whether the flow ends."""
        keep, next_t0, next_t1, _, state, result = self.pid.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state[0]
        )
        code, ends, longest = self.rule(t1, y1_candidate, args)
        if self.clips:
            # That of the candidate even if it is rejected: a rejection shortens the next step.
            next_t1 = jnp.minimum(next_t1, next_t0 + longest)
        ends = (keep & ends) | self.done
        if self.keeps_invariants is not None:
            lost = keep & ~self.keeps_invariants(y1_candidate)
            keep, ends = keep & ~lost, ends | lost
            next_t0 = jnp.where(lost, t0, next_t0)
        if self.report is not None:
            self.report(keep, t1, y1_candidate, args)
        result = diffrax.RESULTS.where(ends, diffrax.RESULTS.event_occurred, result)
        code = jnp.where(keep, code, controller_state[1])
        if self.keeps_invariants is not None:
            code = jnp.where(lost, code_of(FlowStatus.invariants_lost), code)
        return keep, next_t0, next_t1, False, (state, code), result
