"""A classification flow with its margin held fixed: the direction moves, the norm does not grow.

On the log-arc-length clock the direction theta on the unit sphere obeys

    dtheta/ds = g - <theta, g> theta,   g the normalised sum_i p_i grad m_i(theta),

and the growing norm enters only through the softmax p: the larger the margin, the sharper is p.
Slow modes of the direction (a flow that leaves a saddle, for example) need an arc length s of 10
to 100. In that arc the margin grows like e^(depth s), beyond the range of floating point. If the
norm is held fixed, the stiffness of the equation is constant. The end of this flow differs from
that of the flow with the growing norm by at most 1/margin. The path in time is a different one;
only the limit is the same.
"""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from ..dynamics.quick_tracing import diffeqsolve
from ..dynamics.stage_newton import implicit_solver
from ..dynamics.system import System


class HeldMarginEnd(NamedTuple):
    """The end of a flow at a fixed margin: `theta` (p,), the speed |dtheta/ds|, the step count."""

    theta: Float[Array, " p"]
    speed: Scalar
    num_steps: Int[Array, ""]


def _velocity(s, theta, args):
    system, log_scale = args
    _, _, gradient = system.margin_gradient(theta, log_scale)
    unit = gradient / jnp.linalg.norm(gradient)
    return unit - jnp.vdot(theta, unit) * theta


@eqx.filter_jit
def direction_at_held_margin(
    system: System,
    theta: Float[Array, " p"],
    log_scale: Scalar,
    arc: Scalar,
    *,
    rtol: float | Scalar,
    atol: float | Scalar,
    max_steps: int = 2000,
) -> HeldMarginEnd:
    """Integrate the direction over the arc length `arc`, in at most `max_steps` steps."""
    args = (system, log_scale)
    solution = diffeqsolve(
        diffrax.ODETerm(_velocity),
        implicit_solver(jnp.asarray(rtol), jnp.asarray(atol)),
        jnp.zeros_like(arc),
        arc,
        None,
        theta,
        args,
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=0.3, icoeff=0.4),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ys is not None
    end = solution.ys[-1] / jnp.linalg.norm(solution.ys[-1])
    speed = jnp.linalg.norm(_velocity(0.0, end, args))
    return HeldMarginEnd(end, speed, solution.stats["num_steps"])
