"""Explicit Runge-Kutta methods of diffrax with stages that XLA compiles well."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Scalar

# For states of up to this many numbers, storing a single flow's slopes saves time: see `_kept`.
_SMALL = 128


def has_shared_slopes(solver: Any) -> bool:
    """Whether `solver` is explicit, and its last stage is the next step's first."""
    return isinstance(solver, diffrax.AbstractERK) and bool(getattr(solver.tableau, "fsal", False))


def with_quick_stages(
    solver: diffrax.AbstractSolver, in_loop: bool = False
) -> diffrax.AbstractSolver:
    """`solver` with the stages of `QuickStages`, if it is explicit and its steps share slopes."""
    return QuickStages(solver, in_loop) if has_shared_slopes(solver) else solver


def prefers_loop(velocity_is_large: bool, size: int) -> bool:
    """Whether stages in a loop take about as long as stages that are written out."""
    return velocity_is_large and size <= _SMALL


class QuickStages(diffrax.AbstractAdaptiveSolver):
    """The method of `erk`, for velocities without jumps and a state of one vector.

    diffrax's own steps are loops over the stages, with a product of padded matrices in each: two
    to five times slower for small networks on a CPU, one flow at a time or under `jax.vmap`. Here
    the stages are written out. The price is that the velocity is compiled once for every stage.

    - `in_loop`: the stages are a loop over rows of one array, so that the velocity is compiled
      once. For a velocity of many operations and a small state this takes as long (classification,
      20 parameters: 0.95 to 0.99). Otherwise it is slower: 1.1 times for regression with 4
      parameters, and 2.8 times with 3,000, because XLA:CPU copies the array in every stage.
    """

    erk: Any  # a diffrax.AbstractERK; pyright would take that class's fields for this one's
    in_loop: bool = False

    term_structure = diffrax.AbstractTerm

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The interpolation of `erk`."""
        return self.erk.interpolation_cls

    def order(self, terms):
        """The order of `erk`."""
        return self.erk.order(terms)

    def error_order(self, terms):
        """The order of the error estimate of `erk`."""
        return self.erk.error_order(terms)

    def func(self, terms, t0, y0, args):
        """The velocity at time `t0` and state `y0`."""
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        """The solver's first state: the slope at `t0`."""
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; the state of the solver is the slope at its start."""
        stages = self._stages_in_loop if self.in_loop else self._stages_written_out
        h = t1 - t0
        y, slopes = stages(terms, t0, h, y0, args, solver_state)
        error = h * weighted_sum(self.erk.tableau.b_error, slopes)
        dense_info = {"y0": y0, "y1": y, "k": h * jnp.stack(slopes)}
        return y, error, dense_info, slopes[-1], diffrax.RESULTS.successful

    def _stages_written_out(self, terms, t0, h, y0, args, slope):
        """The state after the step, and the slopes of all stages."""
        tableau = self.erk.tableau
        one = h / h  # XLA does not simplify this to 1: see `_kept`
        y, slopes = y0, [slope]
        for row, node in zip(tableau.a_lower, tableau.c, strict=True):
            if len(slopes) > 1 and y0.size <= _SMALL:
                slopes[-1] = _kept(slopes[-1], one)
            y = _moved(y0, h, one, row, slopes)
            slopes.append(terms.vf(t0 + float(node) * h, y, args))
        return y, slopes

    def _stages_in_loop(self, terms, t0, h, y0, args, slope):
        """As `_stages_written_out`."""
        tableau = self.erk.tableau
        number = len(tableau.c)
        rows = np.zeros((number, number + 1))  # stage i uses the slopes up to i
        for row, weights in zip(rows, tableau.a_lower, strict=True):
            row[: len(weights)] = weights
        rows, nodes = (jnp.asarray(x, y0.dtype) for x in (rows, tableau.c))

        def stage(i, carry):
            slopes, _ = carry
            y = y0 + h * jnp.sum(rows[i][:, None] * slopes, axis=0)
            return slopes.at[i + 1].set(terms.vf(t0 + nodes[i] * h, y, args)), y

        slopes = jnp.zeros((number + 1, *y0.shape), y0.dtype).at[0].set(slope)
        slopes, y = jax.lax.fori_loop(0, number, stage, (slopes, y0))
        return y, list(slopes)


def weighted_sum(row: Sequence[Scalar], slopes: Sequence[Array]) -> Array:
    """The sum of the slopes that have a weight."""
    return functools.reduce(jnp.add, [float(a) * slope for a, slope in _weighted(row, slopes)])


def _weighted(row, slopes):
    return [(a, slope) for a, slope in zip(row, slopes, strict=False) if a != 0]


def _product(row, slopes):
    weights, slopes = zip(*_weighted(row, slopes), strict=True)
    return jnp.asarray(weights, slopes[0].dtype) @ jnp.stack(slopes)


def _moved(y0, h, one, row, slopes):
    """y0 + h * (the weighted sum of the slopes), shape (q,)."""

    def alone(y0, h, one, slopes):
        steps = [(h * float(a)) * slope for a, slope in _weighted(row, slopes)]
        return functools.reduce(jnp.add, steps, y0) / one

    def together(y0, h, one, slopes):
        return y0 + h * _product(row, slopes)

    return _by_batching(alone, together)(y0, h, one, slopes)


def _kept(vector, one):
    """`vector`, in a form that XLA:CPU stores in memory.

    XLA:CPU evaluates sums and products of vectors again at every use, up to ten times a stage.
    It never repeats a division. Therefore `vector` is divided by a number that is 1.
    """
    return _by_batching(lambda vector, one: vector / one, lambda vector, one: vector)(vector, one)


def _by_batching(alone: Callable, together: Callable) -> Callable:
    """The function `alone` for one flow, and `together` under `jax.vmap`.

    For many flows the divisions take longer than the evaluations that they save. For these XLA:CPU
    stores a product with the matrix of slopes. Derivatives are those of `together`:
    `jax.linearize` does not differentiate a function that has a rule for batches.
    """
    function = jax.custom_batching.custom_vmap(alone)

    @function.def_vmap
    def _(axis_size, is_batched, *operands):
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, is_batched)
        return jax.vmap(together, axes, axis_size=axis_size)(*operands), True

    differentiable = jax.custom_jvp(function)

    @differentiable.defjvp
    def _(operands, tangents):
        return differentiable(*operands), jax.jvp(together, operands, tangents)[1]

    return differentiable
