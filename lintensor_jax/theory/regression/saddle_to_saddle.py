"""From saddle to saddle: the path of diagonal networks as their initial scale tends to zero."""

import math
from typing import NamedTuple

import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, Float

from ...messages import in_words, nonzero_entries, shown
from ...problems import AbstractProblem, named
from .activation_times import default_thresholds, thresholds

# A gradient counts as zero below this many roundings of its terms.
_ROUNDINGS = 64
# Arrivals at thresholds are simultaneous if their times differ by less, relative to the time.
_TIE = 1e-11


class SaddleToSaddle(NamedTuple):
    """The path that the flow of a diagonal network tends to as its initial scale alpha tends to 0.

    - `times` (K,): the times of the K jumps, in units of log(1/alpha) for two layers and of
      alpha^(2-L) for L >= 3 layers (`time_unit`).
    - `points` (K+1, d): beta; `points[0]` = 0, and `points[k]` is where the flow stays from
      `times[k-1]` to `times[k]`. All but the last are saddles of the loss.
    - `limit` (d,): the last point, which minimises `gauge` over the least-squares solutions.
    - `dual` (K+1, d): q = -int grad dt at time 0 and at each jump, in units of time.
    - `lower`, `upper` (d,): coordinate i is active where q_i is one of its two thresholds.
    - `depth`: the number of layers L.
    - `unique`: whether the active columns of X were independent at every jump. If they were not,
      a point is one of several with the same predictions. (Columns that are equal up to their
      sign do not count: the flow keeps their coefficients equal.)
    """

    times: Float[np.ndarray, " K"]
    points: Float[np.ndarray, "K+1 d"]
    dual: Float[np.ndarray, "K+1 d"]
    lower: Float[np.ndarray, " d"]
    upper: Float[np.ndarray, " d"]
    depth: int
    unique: bool

    @property
    def limit(self) -> Float[np.ndarray, " d"]:
        """The last of `points`, shape (d,)."""
        return self.points[-1]

    def at(self, time: Float[ArrayLike, "*shape"]) -> Float[np.ndarray, "*shape d"]:
        """beta at a time of any shape, in the units of `times`; at a jump the point after it."""
        return self.points[np.searchsorted(self.times, np.asarray(time), side="right")]

    def time_unit(self, alpha: float) -> float:
        """The physical time of one unit of `times` at the initial scale alpha < 1."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: must lie in (0, 1), got {alpha}; pass the initial scale.")
        return -math.log(alpha) if self.depth == 2 else float(alpha) ** (2 - self.depth)

    def gauge(self, beta: Float[ArrayLike, " d"]) -> float:
        """sum_i upper_i beta_i (lower_i beta_i if beta_i < 0): the l1 norm for thresholds +-1.

        Infinite if a coordinate has a sign that the flow cannot give it.
        """
        beta = np.asarray(beta, np.float64)
        active = beta != 0
        sides = np.where(beta > 0, self.upper, self.lower)[active]
        return float(np.sum(sides * beta[active]))

    def __str__(self) -> str:
        """The jumps, the change of the support at each, and the limit."""
        unit = "log(1/alpha)" if self.depth == 2 else f"alpha^{2 - self.depth}"
        lines = [
            f"Saddle to saddle, L = {self.depth} layers, d = {self.limit.size}: "
            f"{len(self.times)} jumps, times in units of {unit}"
        ]
        for k, time in enumerate(self.times):
            before, after = self.points[k] != 0, self.points[k + 1] != 0
            came, left = np.flatnonzero(after & ~before), np.flatnonzero(before & ~after)
            changes = [f"in {came.tolist()}"] if came.size else []
            changes += [f"out {left.tolist()}"] if left.size else []
            lines.append(
                f"  {time:12.6g}  {', '.join(changes) or 'no change of support'}, "
                f"{nonzero_entries(self.points[k + 1])} nonzero"
            )
        if not self.unique:
            lines.append("  not unique: active columns of X depend on each other")
        return "\n".join([*lines, f"  limit  {shown(self.limit)}"])


def saddle_to_saddle(
    problem: AbstractProblem, depth: int = 2, *, start: Float[ArrayLike, "L d"] | None = None
) -> SaddleToSaddle:
    """Jump times, visited saddles and limit of a diagonal network from a vanishing start.

    The flow of beta = w_1 . ... . w_L from layers alpha `start` on the loss 1/2 |X beta - y|^2.
    With time in the unit of `SaddleToSaddle.times`, its dual variable q = -int grad dt tends, as
    alpha -> 0, to the solution of

        q' = -grad loss(beta),   beta_i >= 0 if q_i = upper_i, <= 0 if q_i = lower_i, = 0 else,

    in which beta is piecewise constant. The path starts at q = beta = 0. beta is constant until the
    next coordinate reaches a threshold; then it jumps to the minimum of the loss under the sign
    conditions (signed non-negative least squares). Coordinates may leave the support and return.
    The path ends when the gradient is zero: at the minimum of sum_i upper_i |beta_i| (|lower_i| for
    negative entries) among the least-squares solutions. For two layers from the default `start`
    that is the minimum-l1 solution.

    Source: Pesme & Flammarion 2023, Algorithm 1 and Theorem 2, for two layers (thresholds +-1).
    For L >= 3 derived here in the same way: beta = alpha^L h(alpha^(L-2) zeta) with a mirror map h
    whose domain ends at the thresholds (`activation_times`). So beta is of size one only if
    alpha^(L-2) zeta is at a threshold, and the limit is the same inclusion. The thresholds of a
    coordinate depend on its column of `start`. The error of the jump times at a finite alpha is
    O(1/log(1/alpha)) for two layers, O(alpha^(L-2)) for L >= 3.

    **Arguments**

    - `problem`: `Regression` with the squared loss and y of shape (n,). X needs no full rank.
    - `depth`: the number of layers L >= 2.
    - `start`: shape (L, d), the layers at alpha = 1. Default: ones, and zeros in the last layer.

    ValueError for other arguments, for a start with a coordinate that never moves, and for traced
    arrays: this runs on the host, in NumPy.
    """
    X, y = _data(problem)
    depth = _depth(depth)
    lower, upper = _thresholds(start, depth, X.shape[1])
    first, signs, copy_of, counts = _duplicate_columns(X, lower, upper)
    times, points, dual, unique = _path(X[:, first], y, lower[first], upper[first])
    return SaddleToSaddle(
        times,
        points[:, copy_of] * (signs / counts[copy_of]),
        dual[:, copy_of] * signs,
        lower,
        upper,
        depth,
        unique,
    )


def _duplicate_columns(X, lower, upper):
    """Columns that are equal up to their sign, with equal thresholds: the flow keeps them equal.

    Returns the first of each group, and for every column its sign and group, and the group sizes.
    """
    leading = X[np.argmax(X != 0, axis=0), np.arange(X.shape[1])]
    signs = np.where(leading < 0, -1.0, 1.0)
    sides = np.where(signs > 0, (lower, upper), (-upper, -lower))
    keys = np.concatenate([X * signs, sides]) + 0.0  # -0.0 is 0.0
    _, first, copy_of, counts = np.unique(
        keys, axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    copy_of = np.ravel(copy_of)
    return first, signs * signs[first][copy_of], copy_of, counts


def _path(X, y, lower, upper):
    """Times, points, dual and uniqueness of `SaddleToSaddle`, for columns without duplicates."""
    beta, q, elapsed = np.zeros(X.shape[1]), np.zeros(X.shape[1]), 0.0
    times, points, dual, unique = [], [beta], [q], True
    while True:
        gradient = _gradient(X, y, beta)
        wait = _waiting_times(q, -gradient, lower, upper)
        if np.min(wait) == np.inf:
            break
        arrived = wait <= np.min(wait) + _TIE * (elapsed + np.min(wait))
        step = np.min(wait)
        elapsed += step
        q = q - step * gradient
        target = np.where(gradient < 0, upper, lower)
        q = np.where(arrived, target, q)
        beta, independent = _constrained_minimum(X, y, beta, q, lower, upper)
        unique &= independent
        times.append(elapsed)
        points.append(beta)
        dual.append(q)
    return np.asarray(times), np.stack(points), np.stack(dual), unique


def _gradient(X, y, beta):
    """X^T (X beta - y), with 0 for entries of the size of rounding."""
    gradient = X.T @ (X @ beta - y)
    cancels = np.abs(X).T @ (np.abs(X) @ np.abs(beta) + np.abs(y))
    slack = _ROUNDINGS * np.finfo(np.float64).eps * (np.sum(X.shape) ** 0.5)
    return np.where(np.abs(gradient) <= slack * cancels, 0.0, gradient)


def _waiting_times(q, velocity, lower, upper):
    """The time at which each coordinate of q reaches the threshold that it moves to."""
    distance = np.where(velocity > 0, upper - q, np.where(velocity < 0, lower - q, np.inf))
    moving = np.where(velocity == 0, 1.0, velocity)
    return np.where(velocity == 0, np.inf, distance / moving)


def _constrained_minimum(X, y, beta, q, lower, upper):
    """The minimum of the loss with sign conditions where q is at a threshold, and 0 elsewhere."""
    signs = np.where(q == upper, 1.0, np.where(q == lower, -1.0, 0.0))
    active = np.flatnonzero(signs)
    columns = X[:, active] * signs[active]
    sizes, independent = _nonnegative_least_squares(columns, y, signs[active] * beta[active] > 0)
    found = np.zeros_like(beta)
    found[active] = signs[active] * sizes
    return found, independent


def _nonnegative_least_squares(A, b, passive):
    """argmin |A x - b| with x >= 0, by active sets (Lawson & Hanson 1974).

    `passive` is a guess of the entries that are positive. Also returns whether the columns with
    zero gradient are independent: then x is the only minimum.
    """
    x, passive = _feasible(A, b, np.zeros(A.shape[1]), passive.copy(), is_guess=True)
    while True:
        gradient = _gradient(A, b, x)
        gains = np.where(passive, 0.0, -gradient)
        if not np.any(gains > 0):
            flat = A[:, passive | (gradient == 0)]
            return x, not flat.size or int(np.linalg.matrix_rank(flat)) == flat.shape[1]
        passive[np.argmax(gains)] = True
        x, passive = _feasible(A, b, x, passive)


def _feasible(A, b, x, passive, is_guess=False):
    """The least-squares solution on the passive set, reduced until the solution is positive."""
    while True:
        free = np.zeros_like(x)
        if passive.any():
            free[passive] = np.linalg.lstsq(A[:, passive], b)[0]
        wrong = passive & (free <= 0)
        if not wrong.any():
            return free, passive
        if is_guess:  # no feasible x is given yet: only drop the negative entries
            passive = passive & ~wrong
            continue
        reach = np.where(wrong, x / np.where(wrong, x - free, 1.0), np.inf)
        x = x + np.min(reach) * (free - x)
        passive = passive & ~(wrong & (reach <= np.min(reach) * (1 + 1e-14)))
        x = np.where(passive, x, 0.0)


def _data(problem):
    squared = isinstance(problem, AbstractProblem) and problem.has_squared_loss
    X, y = getattr(problem, "X", None), getattr(problem, "y", None)
    if not squared or X is None or y is None or np.ndim(y) != 1:
        what = named(problem) if isinstance(problem, AbstractProblem) else in_words(problem)
        targets = "" if y is None else f" with y of shape {np.shape(y)}"
        raise ValueError(
            "saddle_to_saddle: problem must be a Regression with the squared loss and y of shape "
            f"(n,), got {what}{targets}; another loss has the same limit for two layers, but other "
            "jumps."
        )
    if isinstance(X, Tracer) or isinstance(y, Tracer):
        raise ValueError(
            "saddle_to_saddle: problem must hold concrete arrays, got traced ones; call it outside "
            "jit, grad and vmap."
        )
    return np.asarray(X, np.float64), np.asarray(y, np.float64)


def _depth(depth):
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer) or depth < 2:
        raise ValueError(
            f"saddle_to_saddle: depth must be a whole number of layers >= 2, got {depth!r}; pass 2 "
            "for beta = u . v."
        )
    return int(depth)


def _thresholds(start, depth, dimension):
    if start is None:
        return default_thresholds(depth, dimension)
    layers = np.asarray(start, np.float64)
    if layers.shape != (depth, dimension) or not np.all(np.isfinite(layers)):
        raise ValueError(
            f"saddle_to_saddle: start must hold {depth} finite layers of {dimension} weights, got "
            f"shape {layers.shape}; pass DiagonalNetwork.weights at alpha = 1."
        )
    lower, upper = thresholds(layers)
    dead = np.flatnonzero(np.isinf(lower) & np.isinf(upper))
    if dead.size:
        raise ValueError(
            "saddle_to_saddle: start must let every coordinate move, got two zero layers in "
            f"coordinates {dead.tolist()}; remove these columns of X."
        )
    return lower, upper
