"""Newton's method for the stages of an implicit solver. The size of its step ends it."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Scalar

from .shifted_systems import shifted_solver

# Shares of a Newton step that are tried. The softmax of large margins curves the slope, so that a
# whole Newton step is too long. With whole steps only, the solver reduced its time step to a fifth
# many times (up to 660 steps to margin 1e5 instead of 430). An additional residual takes little
# time compared with the factorisation of the Jacobian.
_SHARES = (1.0, 0.5, 0.25, 0.1)
# Newton steps below this many ulp of a stage's largest entry are noise.
_ROUNDING = 4.0


def implicit_solver(rtol: Scalar, atol: Scalar, clock: Any = None) -> diffrax.AbstractSolver:
    """Kvaerno's 5(4) method with full Newton: its default chord iteration stalls near a limit.

    `clock`: of a flow whose linear systems are solved by `shifted_systems`; else None.
    """
    newton = StageNewton(0.1 * rtol, 0.1 * atol, clock)
    return diffrax.Kvaerno5(root_finder=newton, root_find_max_steps=20)


class NewtonState(NamedTuple):
    """The last Newton step divided by its tolerance, and whether its linear system was solved."""

    size: Scalar
    solved: Bool[Array, ""]


class StageNewton(optimistix.AbstractRootFinder):
    """Newton's method with a new Jacobian in every iteration, for a stage of an implicit solver.

    The stage is y = start + gamma h f with unknown slope f. optimistix's own Newton measures f and
    the residual f - v(y) against its tolerances, which fails for two reasons. `atol` has the
    scale of y and not of f. In a stiff stage the residual contains the rounding of y times the
    stiffness, which no iteration removes. Steps are then rejected without end. Here the change of
    y by the Newton step is measured, against the tolerances of y and its rounding.
    """

    rtol: Any
    atol: Any
    clock: Any = None  # of a flow whose linear systems are solved by `shifted_systems`
    norm: Any = optimistix.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> NewtonState:
        """The state before the first Newton step."""
        return NewtonState(jnp.asarray(jnp.inf, ravel_pytree(y)[0].dtype), jnp.asarray(True))

    def step(self, fn, y, args, options, state, tags):
        """f - t J^-1 residual(f), where t is the share in `_SHARES` with the smallest residual."""
        # diffrax passes these arguments for stages in slope form (stiffly accurate FSAL methods).
        _, gamma, _, times_h, _, start, flow_args, h = args
        flat, unravel = ravel_pytree(y)

        def residual(flat):
            value, aux = fn(unravel(flat), args)
            return ravel_pytree(value)[0], aux

        def change_of_stage(flat):
            return gamma * ravel_pytree(times_h(unravel(flat), h))[0]

        if self.clock is None:
            value, linearised, aux = jax.linearize(residual, flat, has_aux=True)
            operator = lineax.FunctionLinearOperator(linearised, jax.eval_shape(lambda: flat))
            solution = lineax.linear_solve(operator, value, lineax.LU(), throw=False)
            change, solved = solution.value, solution.result == lineax.RESULTS.successful
        else:  # the Jacobian of f - v(start + gamma h f) is I - gamma h J
            value, aux = residual(flat)
            implicit = gamma * h != 0  # the first stage is explicit
            shift = 1 / jnp.where(implicit, gamma * h, 1.0)
            stage = ravel_pytree(start)[0] + change_of_stage(flat)
            solve = shifted_solver(self.clock, flow_args, stage, shift)
            change = jnp.where(implicit, solve(shift * value), value)
            solved = jnp.isfinite(change).all()
        shares = jnp.asarray(_SHARES, flat.dtype)[:, None]
        ends = flat[None] - shares * change[None]
        left = jnp.max(jnp.abs(jax.vmap(lambda end: residual(end)[0])(ends)), axis=1)
        end = ends[jnp.argmin(jnp.where(jnp.isfinite(left), left, jnp.inf))]
        stage = jnp.abs(ravel_pytree(start)[0] + change_of_stage(end))
        rounding = _ROUNDING * jnp.finfo(flat.dtype).eps * jnp.max(stage)
        allowed = self.atol + self.rtol * stage + rounding
        size = jnp.max(jnp.abs(change_of_stage(change)) / allowed)
        return unravel(end), NewtonState(size, solved), aux

    def terminate(self, fn, y, args, options, state, tags):
        """True if the step is within the tolerances; with a singular Jacobian the stage fails."""
        results: Any = optimistix.RESULTS
        result = results.where(state.solved, results.successful, results.nonlinear_divergence)
        return (state.size < 1) | ~state.solved, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        """Returns `y` unchanged."""
        return y, aux, {}
