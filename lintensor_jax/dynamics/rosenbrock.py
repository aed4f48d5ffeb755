"""One step of Rodas5P, a method for stiff flows: one Jacobian, and the same work in every step.

An implicit Runge-Kutta method solves its stages by Newton's method, and in a batch all lanes wait
for the slowest one. A Rosenbrock method solves one linear system for each stage, all of them with
one matrix. Source: Steinebach, "Construction of Rosenbrock-Wanner method Rodas5P and numerical
benchmarks within the Julia Differential Equations package", BIT 63 (2023), article 27: order 5,
stiffly accurate, the embedded method of order 4. Form: Hairer & Wanner II, IV.7, (7.25).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from .runge_kutta import weighted_sum

ORDER = 5
_GAMMA = 0.21193756319429014
_OF_SIXTH = (
    -7.502846399306121,
    2.561846144803919,
    -11.627539656261098,
    -0.18268767659942256,
    0.030198172008377946,
)
# a_ij: weights of the increments in the state at which the slope of a stage is evaluated.
_STATES: Any = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    _OF_SIXTH,
    (*_OF_SIXTH, 1.0),
    (*_OF_SIXTH, 1.0, 1.0),
)
# c_ij: weights of the increments on the right-hand side of a stage.
_SIDES: Any = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (
        24.854864614690072,
        -3.0009227002832186,
        47.4931110020768,
        5.5814197821558125,
        -0.6610691825249471,
    ),
    (
        30.91273214028599,
        -3.1208243349937974,
        77.79954646070892,
        34.28646028294783,
        -19.097331116725623,
        -28.087943162872662,
    ),
    (
        37.80277123390563,
        -3.2571969029072276,
        112.26918849496327,
        66.9347231244047,
        -40.06618937091002,
        -54.66780262877968,
        -9.48861652309627,
    ),
)


def rosenbrock_step(
    slope: Callable[[Array], Array],
    y: Float[Array, " q"],
    h: Scalar,
    solver: Callable[[Array, Scalar], Callable[[Array], Array]] | None = None,
    written_out: bool = False,
) -> tuple[Float[Array, " q"], Float[Array, " q"]]:
    """The state after a step of size h, and the estimate of its error.

    (I/(gamma h) - J) U_i = slope(y + sum_j a_ij U_j) + sum_j c_ij U_j / h for i = 1, ..., 8.
    `slope` must not depend on the time. `solver`: gives for y and 1/(gamma h) the map from a
    right-hand side to U_i; None: J is formed. `written_out`: the stages are no loop, because
    machine code does not read JAX's loops.
    """
    solve = (solver or functools.partial(_dense_solver, slope))(y, 1 / (_GAMMA * h))
    if written_out:
        return _written_out(slope, solve, y, h)
    states, sides = jnp.asarray(_table(_STATES), y.dtype), jnp.asarray(_table(_SIDES), y.dtype)

    # A loop: the program of a step is smaller than with eight stages written out.
    def stage(i, carry):
        increments, _ = carry
        end = y + states[i] @ increments
        increment = solve(slope(end) + sides[i] @ increments / h)
        return increments.at[i].set(increment), end

    none = jnp.zeros((len(_STATES), y.size), y.dtype)
    increments, end = jax.lax.fori_loop(0, len(_STATES), stage, (none, y))
    return end + increments[-1], increments[-1]


def _written_out(slope, solve, y, h):
    increments, end = [], y
    for state, side in zip(_STATES, _SIDES, strict=True):
        end = y + weighted_sum(state, increments) if increments else y
        right = slope(end)
        if increments:
            right = right + weighted_sum(side, increments) / h
        increments.append(solve(right))
    return end + increments[-1], increments[-1]


def _table(rows):
    """The rows of different lengths as one matrix, filled with zeros."""
    return np.stack([np.pad(row, (0, len(rows) - len(row))) for row in rows])


def _dense_solver(slope, y, shift):
    _, along = jax.linearize(slope, y)
    identity = jnp.eye(y.size, dtype=y.dtype)
    jacobian = jax.vmap(along, out_axes=1)(identity)
    # One inverse, then products: `jax.vmap` turns triangular solves into loops over the lanes.
    inverse = jnp.linalg.inv(shift * identity - jacobian)
    return lambda side: inverse @ side
