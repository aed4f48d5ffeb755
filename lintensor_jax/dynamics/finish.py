"""The last digits of a regression flow: minimum-norm Gauss-Newton steps onto the solutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from .system import Reducible, System


class GaussNewton(eqx.Module):
    """Ends a regression flow by minimum-norm Gauss-Newton steps Theta <- Theta - J^+ r.

    Near its end, the flow moves in the row space of the Jacobian J of the predictions, and so does
    the minimum-norm step: both meet the set of solutions at the same point up to the square of the
    distance that is left. The finish is accepted only if the whole step is small against the
    parameters; the flow integrates on until its estimate is.

    **Arguments**

    - `max_relative_step`: the largest accepted |step| / |Theta|.
    - `max_iterations`: Gauss-Newton iterations; convergence is quadratic, two or three are used.
    """

    max_relative_step: float = 1e-6
    max_iterations: int = eqx.field(static=True, default=6)

    def __check_init__(self):
        if not isinstance(self.max_relative_step, jax.Array) and not self.max_relative_step > 0:
            raise ValueError(
                "GaussNewton: max_relative_step must be positive, got "
                f"{self.max_relative_step!r}; the default is 1e-6."
            )


class Finish(eqx.Module):
    """What a finish did: the parameters it leads to, its relative size, whether it is accepted."""

    theta: Float[Array, " p"]
    relative_step: Scalar
    residual: Scalar
    accepted: Bool[Array, ""]


def run_finish(
    method: GaussNewton, system: System, reducible: Reducible, theta: Float[Array, " p"]
) -> Finish:
    """Iterate until the reducible residual no longer shrinks; keep the best point."""

    def predictions(theta):
        return system.problem.residual(system.coefficients(theta)).ravel()

    def residual_norm(theta):
        return reducible.norm(system.problem.residual(system.coefficients(theta)))

    def step(carry, _):
        theta, best, best_norm = carry
        jacobian = jax.jacrev(predictions)(theta)
        theta = theta - jnp.linalg.lstsq(jacobian, predictions(theta))[0]
        norm = residual_norm(theta)
        better = norm < best_norm
        return (theta, jnp.where(better, theta, best), jnp.minimum(norm, best_norm)), None

    start = (theta, theta, residual_norm(theta))
    (_, best, norm), _ = jax.lax.scan(step, start, length=method.max_iterations)
    largest = jnp.max(jnp.abs(theta))
    scale = jnp.where(largest > 0, largest, 1.0)
    moved = jnp.linalg.norm((best - theta) / scale)
    relative_step = jnp.where(moved > 0, moved / jnp.linalg.norm(theta / scale), 0.0)
    accepted = (relative_step <= method.max_relative_step) & jnp.isfinite(best).all()
    return Finish(jnp.where(accepted, best, theta), relative_step, norm, accepted)
