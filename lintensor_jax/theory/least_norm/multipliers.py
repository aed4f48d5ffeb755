"""Multipliers of inequality constraints: nonnegative least squares and a proximal step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_EPS = float(np.finfo(float).eps)
# Rounding of multipliers from a least-squares problem, in units of the last place of the largest.
_ROUNDINGS = 64


class Shares(NamedTuple):
    """Multipliers of sum 1 at a stationary point, and the residual of stationarity."""

    values: np.ndarray
    residual: float
    resolution: float


def resolution(columns: np.ndarray, weights: np.ndarray) -> float:
    """How much rounding of the weights can add to |sum_i weights_i columns_i|.

    Shapes (n, D), (n,). It is large if the data nearly contradict each other: then the columns
    have the size of one over the normalised margin, and cancel.
    """
    return _ROUNDINGS * _EPS * float(np.abs(weights) @ np.linalg.norm(columns, axis=1))


def approximate_multipliers(columns: np.ndarray, target: np.ndarray, slack: np.ndarray) -> Shares:
    """p >= 0 with target = sum_i p_i columns_i and sum_i p_i slack_i = 0 as nearly as possible.

    Shapes (n, D), (D,), (n,); |target|_2 = 1, slack_i >= 0. The residual is the l2 norm of both
    defects together. For the best length of p it is the sine of an angle, so that only the
    direction of p is unknown. Then the part of the columns along the target may have any weight.
    The weight used here keeps the problem well conditioned if the rest of the columns is huge
    (small margins) and cancels.
    """
    along = columns @ target
    across = columns - np.outer(along, target)
    lengths = np.maximum(np.linalg.norm(across, axis=1), np.abs(along))
    # Beside huge columns the squares of slacks would be lost to rounding: slacks get a weight.
    weights = max(1.0, lengths.max()) ** np.array([0.0, 0.5, 1.0])
    candidates = [_shares(along, across, slack, lengths, weight) for weight in weights]
    p = min(candidates, key=lambda p: _defect(p, along, across, slack))
    return Shares(p, _defect(p, along, across, slack), resolution(columns, p))


def _shares(along, across, slack, lengths, weight):
    lengths = np.maximum(lengths, weight * slack)
    lengths = np.where(lengths > 0, lengths, 1.0)
    balance = max(np.max(along / lengths), np.finfo(float).tiny)
    rows = np.column_stack([across, weight * slack, along / balance])
    q = nonnegative_least_squares(rows.T / lengths, np.eye(rows.shape[1])[-1], slack == 0)
    p = np.where(q > _ROUNDINGS * _EPS * q.max(), q, 0.0) / lengths
    total, rest = p @ along, np.append(p @ across, p @ slack)
    return p * (total / (total**2 + rest @ rest or 1.0))


def _defect(p, along, across, slack):
    return float(np.linalg.norm(np.concatenate([p @ across, [p @ slack, p @ along - 1.0]])))


def nonnegative_least_squares(
    matrix: np.ndarray, right: np.ndarray, guess: np.ndarray | None = None
) -> np.ndarray:
    """argmin |matrix @ x - right|_2 over x >= 0: shapes (m, n), (m,) -> (n,).

    `guess`, a mask (n,): entries that are assumed positive at first. If these are the positive
    entries of the solution, one least-squares problem is solved instead of one for each entry.

    Source: Lawson & Hanson 1974, chapter 23, on columns of length 1.
    """
    lengths = np.linalg.norm(matrix, axis=0)
    lengths = np.where(lengths > 0, lengths, 1.0)
    orthonormal, columns = np.linalg.qr(matrix / lengths)
    right = orthonormal.T @ right
    x, passive = _begun(columns, right, guess)
    refused = np.zeros(x.size, bool)
    left = np.linalg.norm(right - columns @ x)
    while not (passive | refused).all():
        slope = np.where(passive | refused, -np.inf, columns.T @ (right - columns @ x))
        entering = int(np.argmax(slope))
        # Slopes of this size are rounding errors of the terms of the residual.
        if slope[entering] <= _EPS * (np.linalg.norm(right) + np.sum(x)):
            break
        trial, allowed = _exchange(columns, right, x, passive, entering)
        reached = np.linalg.norm(columns @ trial - right)
        # An exchange decreases the residual, unless its slope is positive by rounding only.
        if trial[entering] > 0 and reached < left:
            x, passive, left = trial, allowed, reached
            refused[:] = False
        else:
            refused[entering] = True
    return x / lengths


def _begun(columns, right, guess):
    """The solution on the guessed entries, without those that are not positive; and its mask."""
    size = columns.shape[1]
    x, passive = np.zeros(size), np.zeros(size, bool) if guess is None else guess.copy()
    # With more entries than equations the solution is not determined.
    if passive.sum() > columns.shape[0]:
        passive[:] = False
    while passive.any():
        x = _restricted(columns, right, passive)
        if (x[passive] > 0).all():
            break
        passive = passive & (x > 0)
        x = np.zeros(size)
    return x, passive


def _exchange(columns, right, x, passive, entering):
    """Add one variable to the support, and remove those that would become negative."""
    passive = passive | (np.arange(x.size) == entering)
    solution = _restricted(columns, right, passive)
    while solution[entering] > 0 and (solution[passive] <= 0).any():
        blocking = passive & (solution <= 0)
        step = np.min(x[blocking] / (x[blocking] - solution[blocking]))
        x = x + step * (solution - x)
        passive = passive & (x > _EPS * np.max(x))
        x = np.where(passive, x, 0.0)
        solution = _restricted(columns, right, passive)
    return solution, passive


def _restricted(columns, right, passive):
    solution = np.zeros(passive.size)
    solution[passive] = np.linalg.lstsq(columns[:, passive], right, rcond=None)[0]
    return solution


def proximal_step(
    prox: Callable[[jax.Array], jax.Array], point: np.ndarray, rows: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """argmin_u R(u) + |u - point|_2^2 / 2 subject to rows @ u >= level, and its multipliers.

    `prox` is that of the convex R without constraints. If rows @ point >= level, the step is zero
    if and only if the point minimises R under the constraints (Rockafellar 1976). The dual problem
    is solved, u = prox(point + rows^T nu) with nu >= 0: a semismooth Newton step if it halves the
    defect, else accelerated projected gradient steps.
    """
    lengths = np.linalg.norm(rows, axis=1)
    unit, targets = rows / lengths[:, None], level / lengths
    smoothness = np.linalg.norm(unit, 2) ** 2
    apply = jax.jit(prox)
    differentiate = jax.jit(jax.jacfwd(prox))

    def moved(nu):
        return np.asarray(apply(jnp.asarray(point + nu @ unit)), np.float64)

    def gradient_step(nu):
        return np.maximum(nu - (unit @ moved(nu) - targets) / smoothness, 0.0)

    def defect(nu):
        return float(np.max(np.abs(nu - gradient_step(nu))))

    nu = np.zeros(len(rows))
    left = defect(nu)
    for _ in range(60):
        if left <= _EPS:
            break
        trial = _newton_step(nu, point, unit, targets, smoothness, moved, differentiate)
        if not defect(trial) <= 0.5 * left:
            trial = _accelerated(nu, gradient_step)
        new = defect(trial)
        # The defect no longer decreases, and is of the size of rounding.
        if new >= left and left <= 1e3 * _EPS:
            break
        nu, left = trial, new
    return moved(nu), nu / lengths


def _newton_step(nu, point, unit, targets, smoothness, moved, differentiate):
    slope = unit @ moved(nu) - targets
    free = nu - slope / smoothness > 0
    derivative = np.asarray(differentiate(jnp.asarray(point + nu @ unit)), np.float64)
    hessian = unit[free] @ derivative @ unit[free].T
    right = unit[free] @ moved(np.where(free, nu, 0.0)) - targets[free]
    trial = np.zeros_like(nu)
    trial[free] = nu[free] - np.linalg.lstsq(hessian, right, rcond=1e-13)[0]
    return np.maximum(trial, 0.0)


def _accelerated(nu, gradient_step, num_steps=100):
    """Nesterov's method, restarted if the step has a negative product with the momentum."""
    previous, at, momentum = nu, nu, 1.0
    for _ in range(num_steps):
        new = gradient_step(at)
        if (at - new) @ (new - previous) > 0:
            momentum = 1.0
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        at = new + (momentum - 1) / grown * (new - previous)
        previous, momentum = new, grown
    return previous
