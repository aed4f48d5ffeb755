"""Gradient flows by SciPy: layers of diagonal and fully-connected networks, losses written out."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import expit

# This many evaluations take a minute at most.
_MOST_SLOPES = 300_000
Slope = Callable[[np.ndarray], np.ndarray]  # beta -> gradient of the loss


def regression_slope(X: np.ndarray, y: np.ndarray, loss: str) -> Slope:
    """X^T l'(X beta - y)."""
    slopes = {
        "squared": lambda r: r,
        "huber": lambda r: np.clip(r, -0.5, 0.5),
        "logcosh": np.tanh,
    }
    return lambda beta: X.T @ slopes[loss](X @ beta - y)


def classification_slope(X: np.ndarray, y: np.ndarray, loss: str) -> Slope:
    """-X^T y exp(-m), or with the logistic loss -X^T y / (1 + exp(m))."""
    slopes = {"exponential": lambda m: np.exp(-m), "logistic": lambda m: expit(-m)}
    return lambda beta: -X.T @ (y * slopes[loss](y * (X @ beta)))


def _diagonal(weights):
    beta = np.prod(weights, axis=0)
    others = [np.prod(np.delete(weights, k, 0), axis=0) for k in range(len(weights))]
    return beta, lambda g: np.stack([g * o for o in others])


def _chain(first, last):
    return first @ last, lambda g: (np.outer(g, last), first.T @ g)


def flow(
    layers: Any, slope: Slope, times: Any, *, implicit: bool = False, rtol: float = 1e-11
) -> tuple[np.ndarray, np.ndarray]:
    """beta at the times and the layers there, flat; `layers` is (L, d), or a matrix and a vector.

    Raises RuntimeError if SciPy fails or needs too many evaluations.
    """
    diagonal = isinstance(layers, np.ndarray)
    shapes = [layers.shape] if diagonal else [w.shape for w in layers]
    start = np.concatenate([np.ravel(w) for w in ([layers] if diagonal else layers)])

    def parts(theta):
        if diagonal:
            return _diagonal(theta.reshape(shapes[0]))
        cut = shapes[0][0] * shapes[0][1]
        return _chain(theta[:cut].reshape(shapes[0]), theta[cut:])

    def velocity(_, theta):
        beta, pull = parts(theta)
        pulled = pull(slope(beta))
        return -np.concatenate([np.ravel(g) for g in ([pulled] if diagonal else pulled)])

    def budgeted(t, theta):
        budget[0] -= 1
        if budget[0] < 0:
            raise RuntimeError("the budget is spent")
        return velocity(t, theta)

    budget = [_MOST_SLOPES]
    times = np.atleast_1d(np.asarray(times, float))
    atol = 1e-14 * np.max(np.abs(start), initial=1e-300)
    found = solve_ivp(
        budgeted,
        (0.0, times[-1]),
        start,
        method="Radau" if implicit else "DOP853",
        t_eval=times,
        rtol=max(rtol, 1e-12),
        atol=atol,
    )
    if not found.success or found.y.shape[1] != len(times):
        raise RuntimeError(found.message)
    return np.stack([parts(theta)[0] for theta in found.y.T]), found.y.T
