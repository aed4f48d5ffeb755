"""Minima of convex losses with a penalty: ridge, lasso, group lasso, nuclear norm."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...problems import AbstractProblem
from ..least_norm.gauges import GroupGauge
from ..least_norm.matrix_gauges import NuclearGauge

# The most steps of the proximal gradient method, and of Newton's method.
_MOST_STEPS, _MOST_NEWTON_STEPS = 200_000, 100
# The proximal steps stop when the residual is below this many roundings of the initial gradient.
_ROUNDINGS = 512
# Uniqueness is not decided if the matrix for it would have more entries.
_MOST_ENTRIES = 2**24
# Ridge regression is not solved for more coefficients: Newton's method needs dense Hessians.
_MOST_RIDGE = 2000


class PenalizedMinimum(NamedTuple):
    """The minimum of a loss and a penalty.

    - `coefficients`: the minimiser.
    - `residual`: the sum of the gradients of loss and penalty, over the gradient at zero.
    - `unique`: whether it is the only minimum; None if that is not known.
    - `eps`: the relative rounding of the problem's numbers.
    """

    coefficients: Float[np.ndarray, "..."]
    residual: float
    unique: bool | None
    eps: float

    @property
    def converged(self) -> bool:
        """Whether the residual is at most 1e-2 sqrt(eps)."""
        return bool(self.residual <= 1e-2 * self.eps**0.5)


def ridge(problem: AbstractProblem, decay: float, num_free: int) -> PenalizedMinimum:
    """argmin loss(beta) + decay/2 |beta|^2, by Newton's method; the loss must be convex.

    `num_free`: the number of last rows of beta that are biases, without penalty. With more than
    2000 coefficients no minimum is computed: the residual is infinite.
    """
    shape = problem.coefficient_shape
    counted = np.ones(shape)
    counted[shape[0] - num_free :] = 0.0
    decays = decay * counted.ravel()
    if decays.size > _MOST_RIDGE:
        return PenalizedMinimum(np.zeros(shape), np.inf, None, 0.0)

    def slope(beta):
        return np.asarray(_pull(problem, beta.reshape(shape))).ravel() + decays * beta

    beta = np.zeros(decays.size)
    now = slope(beta)
    eps = float(jnp.finfo(problem.y.dtype).eps)  # pyright: ignore[reportAttributeAccessIssue]
    size = float(np.linalg.norm(now))
    for _ in range(_MOST_NEWTON_STEPS):
        if np.linalg.norm(now) <= eps * size:
            break
        curved = np.asarray(_hessian(problem, beta.reshape(shape))).reshape(beta.size, -1)
        step = np.linalg.lstsq(curved + np.diag(decays), -now)[0]
        # The gradient's length falls along the step, until rounding hides it.
        for share in 0.5 ** np.arange(30):
            new = slope(beta + share * step)
            if np.linalg.norm(new) < np.linalg.norm(now):
                break
        else:
            break
        beta, now = beta + share * step, new
    residual = float(np.linalg.norm(now)) / (size or 1.0)
    return PenalizedMinimum(beta.reshape(shape), residual, True, eps)


@eqx.filter_jit
def _pull(problem, beta):
    """The gradient of the loss; compiled once for all problems of a shape."""
    return problem.adjoint(problem.residual(beta))


@eqx.filter_jit
def _hessian(problem, beta):
    return jax.jacfwd(lambda b: problem.adjoint(problem.residual(b)))(beta)


def least_penalized(
    problem: AbstractProblem,
    weight: float,
    gauge: GroupGauge | NuclearGauge,
    to_beta: Callable[[np.ndarray], np.ndarray],
    to_rho: Callable[[np.ndarray], np.ndarray],
    size: int,
    signs: tuple[np.ndarray, np.ndarray] | None = None,
) -> PenalizedMinimum:
    """argmin loss(beta) + weight gauge(rho), by accelerated proximal gradient steps (FISTA).

    **Arguments**

    - `problem`: its loss must be convex. `weight`: positive.
    - `gauge`: of rho. `to_beta`: rho (D,) -> beta, linear; `to_rho`: its transpose.
    - `size`: D.
    - `signs`: two masks (D,): the coordinates of rho that may be negative, and those that may be
      positive; None for no restriction. For the l1 norm only.

    `coefficients` of the result is rho, shape (D,).
    """
    eps = float(jnp.finfo(problem.y.dtype).eps)  # pyright: ignore[reportAttributeAccessIssue]

    def slope(rho):
        return to_rho(np.asarray(_pull(problem, to_beta(rho)), np.float64))

    def shrunk(rho, by):
        rho = gauge.shrunk(rho, by)
        if signs is not None:
            rho = np.where(signs[0], rho, np.maximum(rho, 0.0))
            rho = np.where(signs[1], rho, np.minimum(rho, 0.0))
        return rho

    rho, residual = _proximal_gradient(slope, shrunk, weight, np.zeros(size), eps)
    pulled = -slope(rho) / weight
    if signs is not None:
        pulled = np.where(signs[0], pulled, np.maximum(pulled, 0.0))
        pulled = np.where(signs[1], pulled, np.minimum(pulled, 0.0))
    unique = _is_unique(problem, gauge, to_beta, to_rho, rho, pulled)
    return PenalizedMinimum(rho, residual, unique, eps)


def _proximal_gradient(slope, shrunk, weight, start, eps):
    """FISTA (Beck & Teboulle 2009) with restarts (O'Donoghue & Candes 2015) from rho = 0."""
    rho = ahead = start
    now = slope(ahead)
    scale = max(float(np.max(np.abs(now), initial=0.0)), weight)
    least = _ROUNDINGS * eps * scale
    curvature, inertia, residual = 1.0, 1.0, np.inf
    for _ in range(_MOST_STEPS):
        while True:
            new = shrunk(ahead - now / curvature, weight / curvature)
            move = new - ahead
            there = slope(new)
            squares = move @ move
            # For a relative move below 1e-6 the difference of two gradients is mostly rounding.
            seen = squares > 1e-12 * (new @ new)
            finite = np.isfinite(there).all()
            if finite and not (seen and move @ (there - now) > curvature * squares):
                break
            curvature *= 2
        residual = float(np.max(np.abs(curvature * move - (there - now)), initial=0.0))
        if residual <= least:
            return new, residual / scale
        if move @ (new - rho) < 0:
            inertia = 1.0
        following = (1 + (1 + 4 * inertia**2) ** 0.5) / 2
        ahead, rho = new + (inertia - 1) / following * (new - rho), new
        inertia, now = following, slope(ahead)
    return rho, residual / scale


def _is_unique(problem, gauge, to_beta, to_rho, rho, pulled):
    """Whether the minimum is the only one; None if that is not known.

    All minima have the same gradient, so that they lie in one face of the gauge's ball. The minimum
    is the only one if every direction of this face changes the predictions.
    """
    directions, _ = gauge.face(rho, pulled)
    if directions is None or directions.shape[1] == 0:
        return True
    if max(np.size(directions), problem.y.size * rho.size) > _MOST_ENTRIES:  # pyright: ignore
        return None
    beta = to_beta(rho)
    measured = problem.margins if problem.has_margins else problem.predictions  # pyright: ignore
    seen = np.stack([np.ravel(measured(to_beta(d))) for d in directions.T], axis=1)
    if problem.has_residuals:
        residual = problem.predictions(beta) - problem.y  # pyright: ignore
        seen = seen * np.ravel(problem.residual_loss.curvature(residual) > 0)[:, None]  # pyright: ignore
    return int(np.linalg.matrix_rank(seen)) == directions.shape[1] or None
