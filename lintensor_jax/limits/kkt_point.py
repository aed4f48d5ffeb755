"""The KKT point that a classification flow approaches: Levenberg-Marquardt, support repair.

In direction, a flow on separable data tends to a point of

    Theta = sum_i nu_i grad m_i(Theta),   nu_i >= 0,   m_i(Theta) >= 1,   nu_i (m_i(Theta) - 1) = 0

(Gunasekar et al. 2018, Theorem 4, eq. 16; Lyu & Li 2020). The end of the flow gives a first guess
of the support, the samples with nu_i > 0. The equations are then solved to rounding. If a
multiplier is negative or a margin is below 1, the support is changed and the equations are solved
again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float

from ..dynamics.system import System
from ..eager_programs import eager_program

# Levenberg-Marquardt factorises a dense matrix of this many columns, at most.
LARGEST_SYSTEM = 3000
# The equations count as solved below this residual. Levenberg-Marquardt reaches about 1e-15.
_SOLVED = 1e-10
# The allowed violation of multipliers and margins. They have rounding errors if several supports
# are solutions.
_SLACK = 1e-9
# A sample with a larger share of the softmax is in the first guess of the support. At large margins
# the shares of all other samples are negligible. At small margins the repair corrects the guess.
_SHARE = 1e-6


class KKTPoint(NamedTuple):
    """The result of Levenberg-Marquardt.

    - `theta` (p,): unit parameters; `multipliers` (n,), zero off the support. They are in the unit
      in which the smallest margin of `theta` is 1, so that their sum is 1 / depth.
    - `residual`: the largest entry of both sets of equations, scale-free.
    - `problem_with`: None for a KKT point, else a sentence that names the violated condition.
    - `num_supports`: the number of supports that were tried.
    """

    theta: Float[Array, " p"]
    multipliers: Float[Array, " n"]
    residual: float
    problem_with: str | None
    num_supports: int


def kkt_point(
    system: System,
    theta: Float[Array, " p"],
    weights: Float[Array, "..."],
    *,
    max_supports: int = 40,
) -> KKTPoint:
    """The KKT point near `theta`. All margins of `theta` must be positive; its norm is not used.

    `weights`: non-negative, of the margins' shape: the flow's softmax weights, which are
    proportional to the multipliers in the limit.
    """
    problem: Any = system.problem
    theta, beta = _unit_and_coefficients(system, theta)
    beta = np.asarray(beta).ravel()
    rows = np.asarray(problem.signed_data, np.float64).reshape(-1, beta.size)
    # In units of the smallest margin all numbers are of order one, for data of any scale.
    rows = jnp.asarray(rows / np.min(rows @ beta))
    start = np.asarray(weights, np.float64).ravel()
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
        violated = _violated_condition(residual, negative, short)
        candidate = KKTPoint(
            jnp.asarray(found / np.linalg.norm(found)),
            jnp.asarray(np.where(active, np.maximum(multipliers, 0.0), 0.0)),
            residual,
            violated,
            len(tried),
        )
        if violated is None:
            return candidate
        if best is None or residual + max(negative, short) < best[0]:
            best = residual + max(negative, short), candidate
        active = _repaired(active, multipliers * system.depth, margins, residual)
    assert best is not None
    return best[1]._replace(num_supports=len(tried))


@eager_program()
def _unit_and_coefficients(system, theta):
    unit = theta / jnp.linalg.norm(theta)
    return unit, system.coefficients(unit)


def _violated_condition(residual, negative, short):
    if not residual <= _SOLVED:
        return f"the equations of the support were not solved (residual {residual:.1e})"
    if not negative <= _SLACK:
        return f"a multiplier is negative (-{negative:.1e} of their sum)"
    if not short <= _SLACK:
        return f"a sample off the support has a margin too small by {short:.1e}"
    return None


def _repaired(active, multipliers, margins, residual):
    """The support without its most negative multiplier, or with the smallest margin added."""
    active = active.copy()
    short = np.where(active, np.inf, margins)
    if not residual <= _SOLVED and np.min(short) > 1 - _SLACK:
        # These samples cannot all have margin 1: remove the one with the smallest multiplier.
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
    margins, pull = jax.vjp(lambda theta: rows @ system.coefficients(theta).ravel(), theta)
    force = pull(jnp.where(active, multipliers, 0.0))[0]
    return jnp.concatenate([theta - force, jnp.where(active, margins - 1, multipliers)])


@eager_program(lambda system, rows, active, x: rows.size + x.size**2)
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
    return x, _equations(x, args), rows @ system.coefficients(x[: system.initial.size]).ravel()
