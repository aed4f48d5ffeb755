"""A classification flow at a held margin: the direction goes on, the stiffness does not grow.

On the log-arc-length clock the direction theta on the unit sphere obeys

    dtheta/ds = g - <theta, g> theta,   g the normalised sum_i p_i grad m_i(theta),

and the growing norm enters only through the softmax p, whose sharpness is the margin. Slow modes of
the direction (leaving a saddle, for one) take an arc s of ten or a hundred, in which the margin
grows like e^(depth s), past the wall of floating point. With the norm held where it is the same
equation has the stiffness of today, and ends within 1/margin of where it would end with ever
sharper p: it follows the limit of the flow, and no longer its path in time.
"""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from ..dynamics.integrate import implicit_solver
from ..dynamics.system import System


class Settled(NamedTuple):
    """Where a flow at a held margin ended: `theta` (p,), its speed |dtheta/ds|, steps taken."""

    theta: Float[Array, " p"]
    speed: Scalar
    num_steps: Int[Array, ""]


def _velocity(s, theta, args):
    system, log_scale = args
    _, _, gradient = system.margin_gradient(theta, log_scale)
    unit = gradient / jnp.linalg.norm(gradient)
    return unit - jnp.vdot(theta, unit) * theta


@eqx.filter_jit
def settle(
    system: System,
    theta: Float[Array, " p"],
    log_scale: Scalar,
    arc: Scalar,
    *,
    rtol: float | Scalar,
    atol: float | Scalar,
    max_steps: int = 2000,
) -> Settled:
    """Follow the direction for an arc of that length, or until `max_steps` are spent."""
    args = (system, log_scale)
    solution = diffrax.diffeqsolve(
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
    return Settled(end, speed, solution.stats["num_steps"])
