"""The step-size control of explicit regression flows: an error control that sees stability."""

import jax.numpy as jnp
from diffrax import AbstractAdaptiveStepSizeController, PIDController
from jaxtyping import Array, Float

from .clocks import FlowArgs


class RayleighClip(AbstractAdaptiveStepSizeController):
    """An error control with every step clipped to h <= 2/lambda.

    lambda = |grad L|^2 / |P r|^2 is the Rayleigh quotient of the flow's kernel at its own residual.
    Without the clip an explicit method ends up hovering at its stability limit, with a residual
    that never falls below about its tolerances; with it the residual decays to rounding.
    """

    pid: PIDController

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
        return jnp.minimum(t_next, t0 + longest_step(y0, args)), state

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        """The error control's decision, with the next step clipped."""
        keep, next_t0, next_t1, made_jump, state, result = self.pid.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
        )
        # Evaluated at the candidate although it may be rejected: a rejected step shrinks anyway.
        next_t1 = jnp.minimum(next_t1, next_t0 + longest_step(y1_candidate, args))
        return keep, next_t0, next_t1, made_jump, state, result


def longest_step(theta: Float[Array, " p"], args: FlowArgs):
    """2/lambda at `theta`; unbounded where the residual or the gradient is zero."""
    residual, gradient = args.system.gradient_norm(theta)
    assert args.reducible is not None
    # Divided before squaring: gradients at alpha = 1e-100 have no square.
    ratio = args.reducible.norm(residual) / gradient
    return jnp.where(jnp.isfinite(ratio), 2 * ratio**2, _unbounded(ratio))


def _unbounded(like):
    """A step that never binds, finite so that sums stay finite."""
    return jnp.finfo(like.dtype).max / 4
