"""The finish of a regression flow: minimum-norm Gauss-Newton steps to the set of solutions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..arguments import as_threshold
from ..messages import in_words
from .system import Reducible, System

# Steps with one Jacobian. If the first step is 1e-6, the largest that is accepted, each step gains
# six digits.
_STEPS = 3


class GaussNewton(eqx.Module):
    """Ends a regression flow by minimum-norm Gauss-Newton steps Theta <- Theta - J^+ r.

    Near its end, the flow moves in the row space of the Jacobian J of the predictions, and so does
    the minimum-norm step. Both reach the set of solutions at the same point, up to the square of
    the remaining distance. The finish is accepted only if the whole step is small relative to the
    parameters. The flow is integrated until the estimate of this step is small.

    **Arguments**

    - `max_relative_step`: the largest accepted |step| / |Theta|.
    - `max_iterations`: the largest number of Jacobians, each for three steps. If the steps are
      small, the first Jacobian is enough.
    """

    max_relative_step: float = 1e-6
    max_iterations: int = eqx.field(static=True, default=6)

    def __check_init__(self):
        as_threshold(
            self.max_relative_step, "max_relative_step", "GaussNewton", "the default is 1e-6."
        )
        count = self.max_iterations
        if type(count) is not int or count < 1:
            raise ValueError(
                f"GaussNewton: max_iterations must be a positive int, got {in_words(count)}; the "
                "default is 6."
            )


class Finish(eqx.Module):
    """The result of a finish: its parameters, its relative size, and whether it is accepted."""

    theta: Float[Array, " p"]
    relative_step: Scalar
    residual: Scalar
    accepted: Bool[Array, ""]


class _Best(NamedTuple):
    """The best point so far, and whether another Jacobian may improve it."""

    theta: Float[Array, " p"]
    norm: Scalar
    goes_on: Bool[Array, ""]
    iterations: Int[Array, ""]


def run_finish(
    method: GaussNewton, system: System, reducible: Reducible, theta: Float[Array, " p"]
) -> Finish:
    """Iterate until the reducible residual no longer shrinks; keep the best point."""
    problem: Any = system.problem
    # The rounding of a residual.
    floor = 4 * jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(problem.y))

    def equations(theta):
        residual = problem.residual(system.coefficients(theta))
        # For the squared loss the least-squares solutions of r = 0 are those of P r = 0.
        return (residual if problem.has_squared_loss else reducible.coordinates(residual)).ravel()

    def residual_norm(theta):
        return reducible.norm(problem.residual(system.coefficients(theta)))

    def iterate(before: _Best) -> _Best:
        inverse = _pseudo_inverse(jax.jacrev(equations)(before.theta))

        def step(carry, _):
            theta, best, least = carry
            theta = theta - inverse(equations(theta))
            norm = residual_norm(theta)
            better = norm < least
            return (theta, jnp.where(better, theta, best), jnp.minimum(norm, least)), None

        start = (before.theta, before.theta, before.norm)
        (_, best, least), _ = jax.lax.scan(step, start, length=_STEPS)
        goes_on = (least > floor) & (least < 0.1 * before.norm)
        return _Best(best, least, goes_on, before.iterations + 1)

    def goes_on(best: _Best) -> Bool[Array, ""]:
        return best.goes_on & (best.iterations < method.max_iterations)

    start = _Best(theta, residual_norm(theta), jnp.array(True), jnp.zeros((), jnp.int32))
    best, norm, *_ = jax.lax.while_loop(goes_on, iterate, start)
    largest = jnp.max(jnp.abs(theta))
    scale = jnp.where(largest > 0, largest, 1.0)
    moved = jnp.linalg.norm((best - theta) / scale)
    # Not `moved > 0`, which is false for NaN as well.
    relative_step = jnp.where(moved == 0, 0.0, moved / jnp.linalg.norm(theta / scale))
    accepted = (relative_step <= method.max_relative_step) & jnp.isfinite(best).all()
    return Finish(jnp.where(accepted, best, theta), relative_step, norm, accepted)


def _pseudo_inverse(matrix: Float[Array, "n p"]) -> Callable[[Array], Array]:
    """The map x -> M^+ x = M^T (M M^T)^+ x. Singular values below rounding count as zero."""
    rows, columns = matrix.shape
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    scale = jnp.where(largest > 0, largest, 1.0)
    matrix = matrix / scale
    # (M M^T)^+ is treated as a constant. The next step corrects what this neglects, and the
    # derivative of singular vectors is infinite where two singular values are equal.
    fixed = jax.lax.stop_gradient(matrix)
    if rows == 1:  # LAPACK would take longer than the flow
        sigma, ut = jnp.linalg.norm(fixed)[None], jnp.ones((1, 1), matrix.dtype)
    else:
        # LAPACK needs the entries in column-major order. XLA demands this order from the operation
        # that made the matrix, and aborts if that is an FFT. The transpose avoids this: its
        # column-major order is the row-major order of the matrix, which an FFT returns.
        _, sigma, ut = jnp.linalg.svd(fixed.T, full_matrices=False)
    kept = sigma > jnp.finfo(matrix.dtype).eps * max(rows, columns) * sigma[0]
    weights = jnp.where(kept, 1 / jnp.where(kept, sigma, 1.0) ** 2, 0.0)
    return lambda x: matrix.T @ (ut.T @ (weights * (ut @ x))) / scale
