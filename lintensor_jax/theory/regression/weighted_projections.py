"""The weighted projections of a Newton step of `dual_newton`, for weights of any range."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .mirror import AbstractMirror

# Residuals below this many roundings of the sum of their terms' moduli are taken as 0.
_ROUNDINGS = 1
# New pivots are chosen if an entry of `Factors.E` exceeds this.
_LARGEST_ENTRY = 4.0


class Factors(NamedTuple):
    """The weighted projections of one Newton step, W = diag(drho/dslope) = e^log_unit diag(d^2).

    E = basis @ rows @ diag(d) has a unit matrix in the columns `pivots`; `cholesky` is that of
    E E^T. The pivot at each stage of an elimination is the largest remaining entry, so that E's
    entries are of order one. So E E^T is well conditioned for weights of any range. A normal matrix
    of the rows themselves, or an unpivoted QR of them, is not.
    """

    d: Array
    log_unit: Array
    E: Array
    basis: Array
    pivots: Array
    present: Array  # (k,) whether the row has a pivot
    cholesky: Array


def factorize(
    mirror: AbstractMirror,
    rows: Float[Array, "k m"],
    z: Float[Array, " m"],
    guess: Factors | None = None,
) -> Factors:
    """The factors at z; the pivots of `guess` are kept unless they make E's entries too large."""
    log_weight = mirror.log_drho_dz(z) - mirror.log_dslope_dz(z)
    log_unit = jnp.max(log_weight)
    d = jnp.exp((log_weight - log_unit) / 2)
    if guess is None:
        found = _eliminate(rows, d)
    else:
        kept = _with_pivots(rows, d, guess.pivots, guess.present)
        serves = jnp.max(jnp.abs(kept[0])) <= _LARGEST_ENTRY
        found = jax.lax.cond(serves, lambda: kept, lambda: _eliminate(rows, d))
    E, basis, pivots, present = found
    gram = E @ E.T + jnp.diag(jnp.where(present, 0, 1).astype(E.dtype))
    return Factors(d, log_unit, E, basis, pivots, present, jnp.linalg.cholesky(gram))


def _with_pivots(rows, d, pivots, present):
    unit = jnp.eye(*(2 * rows.shape[:1]), dtype=rows.dtype)
    both = present[:, None] & present[None, :]
    inverse = jnp.linalg.inv(jnp.where(both, rows[:, pivots], unit))
    basis = jnp.where(both, inverse, 0) / jnp.where(present, d[pivots], 1)[:, None]
    columns = jnp.where(present, pivots, rows.shape[1])
    E = (basis @ rows) * d[None, :]
    # Rounding errors in these columns would be of order one in a row of very small weights.
    return E.at[:, columns].set(jnp.where(both, unit, 0), mode="drop"), basis, pivots, present


def _eliminate(rows, d):
    k, m = rows.shape

    def step(_, state):
        table, pivots, done = state
        # The largest entry, row by row: a maximum is much faster than an argmax over all.
        i = jnp.argmax(jnp.where(done, -1, jnp.max(jnp.abs(table[:, :m]), axis=1)))
        j = jnp.argmax(jnp.abs(table[i, :m]))
        usable = ~done[i] & (table[i, j] != 0)
        row = table[i] / jnp.where(usable, table[i, j], 1)
        column = jnp.where(usable, table[:, j], 0).at[i].set(0)
        table = (table - column[:, None] * row[None, :]).at[i].set(row)
        unit = jnp.zeros_like(column).at[i].set(1)
        table = table.at[:, j].set(jnp.where(usable, unit, table[:, j]))
        return table, pivots.at[i].set(jnp.where(usable, j, pivots[i])), done.at[i].set(True)

    table = jnp.concatenate([rows * d[None, :], jnp.eye(k, dtype=rows.dtype)], axis=1)
    state = (table, jnp.zeros(k, int), jnp.zeros(k, bool))
    table, pivots, _ = jax.lax.fori_loop(0, k, step, state)
    # A row without a pivot is zero.
    present = jnp.any(table[:, :m] != 0, axis=1)
    table = jnp.where(present[:, None], table, 0)
    return table[:, :m], table[:, m:], pivots, present


def parts_of(
    factors: Factors, rests: Sequence[Float[Array, " m"]], imbalance: Float[Array, " k"]
) -> tuple[Float[Array, " m"], ...]:
    """The kernel parts of several vectors, given by `rest_of`, and the range part of `imbalance`.

    The kernel part is (I - P) vector, with P the projection on the range of E^T. The range part is
    E^T (E E^T)^-1 imbalance. Times d it is the change of least weighted norm that has the effect
    `imbalance` on `basis @ rows @ rho`.

    All in one call of LAPACK, because two could wait for each other: see `lapack_calls`.
    """
    right = jnp.stack([*(factors.E @ rest for rest in rests), imbalance], axis=1)
    solved = jax.scipy.linalg.cho_solve((factors.cholesky, True), right)
    in_range = factors.E.T @ solved
    kernel = [rest - in_range[:, i] for i, rest in enumerate(rests)]
    return *kernel, in_range[:, -1]


def range_part(factors: Factors, imbalance: Float[Array, " k"]) -> Float[Array, " m"]:
    """See `parts_of`."""
    return parts_of(factors, [], imbalance)[0]


def rest_of(
    factors: Factors, vector: Float[Array, " m"], rounding: Float[Array, " m"] | None = None
) -> Float[Array, " m"]:
    """`vector` minus E^T vector[pivots], which has the same kernel part.

    Its entries at the pivots, where the weights are the largest, are exactly zero and do not
    cancel. Entries that are within the given `rounding` of `vector` are taken as zero.
    """

    def remainder(vector, E):
        at_pivots = jnp.where(factors.present, vector[factors.pivots], 0)
        return vector + E.T @ at_pivots

    rest = remainder(vector, -factors.E)
    rest = rest.at[factors.pivots].multiply(jnp.where(factors.present, 0, 1))
    if rounding is not None:
        rest = unless_rounding(rest, remainder(rounding, jnp.abs(factors.E)))
    return rest


def unless_rounding(value: Float[Array, " k"], rounding: Float[Array, " k"]) -> Float[Array, " k"]:
    """`value`, with zero for entries that are rounding of terms whose moduli sum to `rounding`.

    Otherwise such a residual would cause a large move of a very small entry of rho, or of one whose
    slope is at the end of its range.
    """
    return jnp.where(jnp.abs(value) > _ROUNDINGS * jnp.finfo(value.dtype).eps * rounding, value, 0)


def multipliers(factors: Factors, slope: Float[Array, " m"]) -> Float[Array, " k"]:
    """The nu with [rows^T nu] = slope at the pivots."""
    d = factors.d[factors.pivots]
    return factors.basis.T @ jnp.where(factors.present, d * slope[factors.pivots], 0)
