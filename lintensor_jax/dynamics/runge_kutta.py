"""Explicit Runge-Kutta methods of diffrax with their stages written out."""

import functools
from collections.abc import Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

# From so many numbers on a product with the matrix of slopes is quicker than a sum of vectors.
_LARGEST_SUM = 512


def has_shared_slopes(solver: Any) -> bool:
    """Whether `solver` is explicit, and its last stage is the next step's first."""
    return isinstance(solver, diffrax.AbstractERK) and bool(getattr(solver.tableau, "fsal", False))


def written_out(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """`solver`, with its stages written out if it is explicit and shares slopes between steps."""
    return WrittenOut(solver) if has_shared_slopes(solver) else solver


class WrittenOut(diffrax.AbstractAdaptiveSolver):
    """The method of `erk`, for velocities without jumps and a state of one vector.

    diffrax's own steps are loops over the stages, with a product of padded matrices in each: two
    to five times slower for small networks on a CPU, one flow at a time or under `jax.vmap`. The
    price is a velocity compiled once for every stage.
    """

    erk: Any  # a diffrax.AbstractERK; pyright takes the fields of an abstract one for its own

    term_structure = diffrax.AbstractTerm

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The method's."""
        return self.erk.interpolation_cls

    def order(self, terms):
        """The method's."""
        return self.erk.order(terms)

    def error_order(self, terms):
        """The method's."""
        return self.erk.error_order(terms)

    def func(self, terms, t0, y0, args):
        """The velocity."""
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        """The first slope."""
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; the state of the solver is the slope at its start."""
        tableau, h = self.erk.tableau, t1 - t0
        y, slopes = y0, [solver_state]
        for row, node in zip(tableau.a_lower, tableau.c, strict=True):
            y = y0 + h * _combined(row, slopes)
            slopes.append(terms.vf(t0 + float(node) * h, y, args))
        error = h * _combined(tableau.b_error, slopes)
        dense_info = {"y0": y0, "y1": y, "k": h * jnp.stack(slopes)}
        return y, error, dense_info, slopes[-1], diffrax.RESULTS.successful


def weighted_sum(row: Sequence[Scalar], slopes: Sequence[Array]) -> Array:
    """The sum of the slopes that have a weight."""
    return functools.reduce(jnp.add, [float(a) * slope for a, slope in _weighted(row, slopes)])


def _weighted(row, slopes):
    return [(a, slope) for a, slope in zip(row, slopes, strict=False) if a != 0]


def _product(row: Any, slopes: Sequence[Float[Array, " q"]]) -> Float[Array, " q"]:
    weights, slopes = zip(*_weighted(row, slopes), strict=True)
    return jnp.asarray(weights, slopes[0].dtype) @ jnp.stack(slopes)


def _combined(row, slopes):
    if slopes[0].size > _LARGEST_SUM:
        return _product(row, slopes)

    # XLA:CPU computes a sum of vectors again for whoever reads an entry of it. For one flow that is
    # cheaper than another loop. Under `jax.vmap` it may be dearer than all the rest.
    @jax.custom_batching.custom_vmap
    def combined(slopes):
        return weighted_sum(row, slopes)

    @combined.def_vmap
    def _(axis_size, batched, slopes):
        axes = [0 if is_batched else None for is_batched in batched[0]]
        return jax.vmap(functools.partial(_product, row), (axes,))(slopes), True

    return combined(slopes)
