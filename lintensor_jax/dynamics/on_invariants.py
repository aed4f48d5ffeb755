"""Implicit steps that end at states with the conserved quantities of the start."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..networks.conserved import conserved_quantities
from .clocks import AbstractClock, ClockState, FlowArgs, PhysicalTime, state_of, vector_of

# A step brings a parameter close to zero if less than this share of its size is left.
_NEAR = 1e-3


class OnInvariants(diffrax.AbstractAdaptiveSolver):
    """The steps of `solver`. Where |Theta| shrinks, each is corrected to what the flow conserves.

    From u = v, if the loss is lower for beta = u v < 0, a flow ends at the saddle 0. The relative
    difference of u and v grows like 1/u^2 there. Explicit steps of diagonal layers keep u = v to
    the bit, but linear algebra does not. The flow would leave the saddle because of a difference
    that is only rounding. u^2 - v^2 is conserved, and each step is corrected relative to u and v.
    The error of a step in what is conserved is added to its estimated error.

    Where |Theta| grows, only quantities that are zero are corrected, and only if their parameters
    have shrunk. At a large margin a correction does harm: the slope at a corrected state contains
    the rounding of that state times the stiffness.
    """

    solver: Any  # a diffrax.AbstractImplicitSolver with one estimate of its error
    clock: AbstractClock
    initial: ClockState  # the flow's start, whose quantities are conserved

    term_structure = diffrax.AbstractTerm

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The interpolation of `solver`."""
        return self.solver.interpolation_cls

    def order(self, terms):
        """The order of `solver`."""
        return self.solver.order(terms)

    def error_order(self, terms):
        """The order of the error estimate of `solver`."""
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        """The velocity at time `t0` and state `y0`."""
        return self.solver.func(terms, t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        """The first state of `solver`."""
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step of `solver`, and the correction."""
        shrinks = state_of(y0, self.clock).log_scale < self.initial.log_scale
        corrects = shrinks if args.origin is None else shrinks | jnp.any(args.origin < 0)
        # The correction is a jump: the slope at the end of the last step is not that of this state.
        y1, error, dense_info, state, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state, made_jump | corrects
        )
        before, correction = self._corrections(y0, y1, args)
        # `before` is not an error of this step: the explicit steps have left it, for example.
        made = jnp.abs(correction - before)
        y1 = y1 + correction
        error = jnp.abs(error) + made + over_the_corner(args, y0, y1)
        return y1, error, dense_info | {"y1": y1}, state, result

    def _corrections(self, y0, y1, args):
        """The corrections of two states; zero for a state that is not corrected."""
        tied = False if args.origin is None else jnp.any(args.origin < 0)

        def is_corrected(y):
            return (state_of(y, self.clock).log_scale < self.initial.log_scale) | tied

        here = jnp.stack([y0, y1])
        chosen = jax.vmap(is_corrected)(here)
        # Elsewhere nothing is corrected, and the correction costs a matrix of all quantities.
        found = jax.lax.cond(
            jnp.any(chosen),
            lambda: corrections_of(args, here, self.initial, self.clock),
            lambda: jnp.zeros_like(here),
        )
        return jnp.where(chosen[:, None], found, 0.0)


def corrections_of(
    args: FlowArgs, states: Float[Array, "k q"], initial: ClockState, clock: AbstractClock
) -> Float[Array, "k q"]:
    """`correction_of` several states, everywhere if |Theta| is smaller than at the start.

    All in one call of LAPACK, because two could wait for each other: see `lapack_calls`.
    """

    def correction(y):
        state = state_of(y, clock)
        shrinks = state.log_scale < initial.log_scale
        found = correction_of(args, state, initial, everywhere=shrinks)
        return vector_of(ClockState(found, *map(jnp.zeros_like, state[1:])), clock)

    return jax.vmap(correction)(states)


def correction_of(
    args: FlowArgs,
    state: ClockState,
    initial: ClockState,
    everywhere: bool | Bool[Array, ""] = True,
) -> Float[Array, " p"]:
    """The shortest change of theta after which its quantities are the initial ones, to first order.

    Every quantity counts relative to the length of its gradient, so that coordinates of size 1e-9
    beside others of size 1 are corrected to their own digits. Without `everywhere`, only quantities
    count that were zero at the start and whose gradients are now shorter than at the start.
    """
    system = args.system

    def quantities(theta):
        return conserved_quantities(system.network(theta))

    now, theta = quantities(state.theta), state.theta
    # The network's quantities are of degree 2. `where` avoids 0 * inf if |Theta| is tiny.
    before = quantities(initial.theta)
    growth = jnp.exp(2 * (initial.log_scale - state.log_scale))
    wrong = now - jnp.where(before == 0, 0.0, before * growth)
    rows = jax.jacfwd(quantities)(theta)
    lengths = jnp.linalg.norm(rows, axis=1)
    at_start = jnp.linalg.norm(jax.jacfwd(quantities)(initial.theta), axis=1)
    shrunk = lengths * jnp.exp(state.log_scale - initial.log_scale) < at_start
    counts = (
        (everywhere | (shrunk & (before == 0)))
        & (lengths > 0)
        & jnp.isfinite(lengths)
        & jnp.isfinite(wrong)
    )
    safe = jnp.where(counts, lengths, 1.0)
    rows = jnp.where(counts[:, None], rows / safe[:, None], 0.0)
    wrong = jnp.where(counts, wrong / safe, 0.0)
    # Rows have length 1. Directions below the ridge are not independent quantities: a Gram matrix,
    # for example, has each entry twice.
    ridge = float(jnp.finfo(theta.dtype).eps) ** (2 / 3)
    gram = rows @ rows.T + ridge * jnp.eye(now.size, dtype=theta.dtype)
    correction = -rows.T @ jax.scipy.linalg.solve(gram, wrong, assume_a="pos")
    return jnp.where(jnp.isfinite(correction).all(), correction, 0.0)


def over_the_corner(
    args: FlowArgs, y0: Float[Array, " q"], y1: Float[Array, " q"]
) -> Float[Array, " q"]:
    """|y0| for tied parameters whose step ends close to zero on the other side of it, else 0.

    It is added to the estimated error. If less of a parameter than the relative tolerance is left
    after one long step, its sign is arbitrary. A flow with the wrong sign leaves its corner.
    """
    if args.origin is None:
        return jnp.zeros_like(y0)
    size = args.origin.size
    steps_over = (y0[:size] * y1[:size] < 0) & (jnp.abs(y1[:size]) < _NEAR * jnp.abs(y0[:size]))
    wrong = jnp.where(steps_over & (args.origin < 0), jnp.abs(y0[:size]), 0.0)
    return jnp.concatenate([wrong, jnp.zeros_like(y0[size:])])


def on_invariants(solver: Any, system: Any, clock: AbstractClock, initial: ClockState) -> Any:
    """The solver with its steps corrected, or unchanged if no conserved quantity is known."""
    if not corrects_steps(system, clock):
        return solver
    known = jax.eval_shape(lambda: conserved_quantities(system.network(system.initial)))
    return OnInvariants(solver, clock, initial) if known.size > 0 else solver


def corrects_steps(system: Any, clock: AbstractClock) -> bool:
    """Whether implicit steps are corrected to what is conserved.

    In physical time they are corrected only if explicit steps, which are taken first, do not keep
    ties to the bit.
    """
    return not isinstance(clock, PhysicalTime) or not system.ties_are_exact
