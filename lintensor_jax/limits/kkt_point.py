"""The KKT point that a classification flow approaches: Levenberg-Marquardt, support repair.

In direction, a flow on separable data tends to a point of

    Theta = sum_i nu_i grad m_i(Theta),   nu_i >= 0,   m_i(Theta) >= 1,   nu_i (m_i(Theta) - 1) = 0

(Gunasekar et al. 2018, Theorem 4, eq. 16; Lyu & Li 2020). Which samples have nu_i > 0 is read off
the flow's end; the equations are then solved to rounding, and the guess is repaired where a
multiplier comes out negative or a margin below 1.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float

from ..dynamics.system import System

# Levenberg-Marquardt factorises a dense matrix of this many columns, at most.
LARGEST_SYSTEM = 3000
# The equations count as solved below this; what is reached is 1e-15 or so.
_SOLVED = 1e-10
# Multipliers and margins may be off by rounding where several sets of samples fit as well.
_SLACK = 1e-9
# A share of the softmax that makes a sample a candidate for the support. At large margins all
# others have none to speak of; at small ones the repair decides.
_SHARE = 1e-6


class KKTPoint(NamedTuple):
    """What Levenberg-Marquardt came to.

    - `theta` (p,): unit parameters; `multipliers` (n,), zero off the support, in units in which
      the smallest margin of `theta` is 1 (so that they sum to 1 / depth).
    - `residual`: the largest entry of both sets of equations, scale-free.
    - `problem_with`: None for a KKT point, else what is wrong with it in words.
    - `num_supports`: how many sets of support samples were tried.
    """

    theta: Float[Array, " p"]
    multipliers: Float[Array, " n"]
    residual: float
    problem_with: str | None
    num_supports: int


def kkt_point(
    system: System,
    theta: Float[Array, " p"],
    weights: Float[Array, " n"],
    *,
    max_supports: int = 40,
) -> KKTPoint:
    """The KKT point next to `theta`, whose margins must be positive (its norm does not matter).

    `weights`: non-negative, shape (n,): the flow's softmax weights, which are proportional to the
    multipliers in the limit.
    """
    problem: Any = system.problem
    theta = theta / jnp.linalg.norm(theta)
    rows = np.asarray(problem.signed_data, np.float64)
    # In units of the smallest margin everything is of order one, whatever the data's scale.
    rows = jnp.asarray(rows / np.min(rows @ np.asarray(system.coefficients(theta))))
    start = np.asarray(weights, np.float64)
    start = start / start.sum() / system.depth
    if theta.size + start.size > LARGEST_SYSTEM:
        reason = (
            f"{theta.size} parameters and {start.size} samples are more than the "
            f"{LARGEST_SYSTEM} unknowns that a dense solve is meant for"
        )
        return KKTPoint(theta, jnp.asarray(start), np.inf, reason, 0)
    active = start * system.depth > _SHARE
    tried: set[bytes] = set()
    best: tuple[float, KKTPoint] | None = None
    while len(tried) < max_supports and active.any() and active.tobytes() not in tried:
        tried.add(active.tobytes())
        x = jnp.concatenate([theta, jnp.asarray(np.where(active, start, 0.0))])
        x, defects, margins = _solve(system, rows, jnp.asarray(active), x)
        point, defects, margins = np.asarray(x), np.asarray(defects), np.asarray(margins)
        found, multipliers = point[: theta.size], point[theta.size :]
        residual = float(np.max(np.abs(defects)))
        negative = float(-multipliers.min() * system.depth)
        short = float(1 - margins.min())
        wrong = _what_is_wrong(residual, negative, short)
        candidate = KKTPoint(
            jnp.asarray(found / np.linalg.norm(found)),
            jnp.asarray(np.where(active, np.maximum(multipliers, 0.0), 0.0)),
            residual,
            wrong,
            len(tried),
        )
        if wrong is None:
            return candidate
        if best is None or residual + max(negative, short) < best[0]:
            best = residual + max(negative, short), candidate
        active = _repaired(active, multipliers * system.depth, margins, residual)
    assert best is not None
    return best[1]._replace(num_supports=len(tried))


def _what_is_wrong(residual, negative, short):
    if not residual <= _SOLVED:
        return f"the equations of the support were not solved (residual {residual:.1e})"
    if negative > _SLACK:
        return f"a multiplier is negative (-{negative:.1e} of their sum)"
    if short > _SLACK:
        return f"a sample off the support has a margin too small by {short:.1e}"
    return None


def _repaired(active, multipliers, margins, residual):
    """The support without its most negative multiplier, or with the smallest margin added."""
    active = active.copy()
    short = np.where(active, np.inf, margins)
    if not residual <= _SOLVED and np.min(short) > 1 - _SLACK:
        # No solution with all of these at margin 1: the one with the least share goes.
        active[np.argmin(np.where(active, multipliers, np.inf))] = False
    elif np.min(short) < 1 - _SLACK:
        active[np.argmin(short)] = True
    else:
        active[np.argmin(np.where(active, multipliers, np.inf))] = False
    return active


def _equations(x: Array, args: tuple[System, Array, Bool[Array, " n"]]) -> Array:
    system, rows, active = args
    size = system.initial.size
    theta, multipliers = x[:size], x[size:]
    margins, pull = jax.vjp(lambda theta: rows @ system.coefficients(theta), theta)
    force = pull(jnp.where(active, multipliers, 0.0))[0]
    return jnp.concatenate([theta - force, jnp.where(active, margins - 1, multipliers)])


@eqx.filter_jit
def _solve(system: Any, rows, active, x):
    args = (system, rows, active)
    solution = optx.least_squares(
        _equations,
        optx.LevenbergMarquardt(rtol=1e-14, atol=1e-14),
        x,
        args=args,
        max_steps=200,
        throw=False,
    )
    x = solution.value
    return x, _equations(x, args), rows @ system.coefficients(x[: system.initial.size])
