"""The sweep of Yun et al. 2021 by other libraries, and its exact limits.

Two-layer networks, x = [1, 2], y = 1. Parameters are vectors in the order of `System.initial`. This
file shares no code with the package: it has formulas for d = 2, in NumPy and in PyTorch.

Each peer gets the stop rule that is most favourable to it. SciPy and gradient descent stop at the
residual. torchode stops every lane at the time at which `batched_flow` met the residual.
torchdiffeq has one step size for a whole batch and stops at the last of these times.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

X, Y = np.array([1.0, 2.0]), 1.0
GD_STEP, GD_MOST = 1e-3, 200_000


def coefficients(name: str, theta: Any) -> Any:
    """beta of theta (..., p), shape (..., 2)."""
    first, last = theta[..., :-2], theta[..., -2:]
    if name == "diagonal":
        return first * last
    if name == "convolution":
        return _circular(first, last)
    return (first.reshape(*first.shape[:-1], 2, 2) * last[..., None, :]).sum(-1)


def _circular(a, b):
    return a[..., :1] * b + a[..., 1:] * b[..., [1, 0]]


def velocity(name: str, theta: Any, x: Any, join: Callable) -> Any:
    """-grad L at theta (..., p); `x` is X as an array of the same library, `join` concatenates."""
    first, last = theta[..., :-2], theta[..., -2:]
    pull = -((coefficients(name, theta) * x).sum(-1) - Y)[..., None] * x
    if name == "diagonal":
        return join([pull * last, pull * first], -1)
    if name == "convolution":
        return join([_circular(pull, last), _circular(pull, first)], -1)
    matrix = first.reshape(*first.shape[:-1], 2, 2)
    outer = (pull[..., :, None] * last[..., None, :]).reshape(first.shape)
    return join([outer, (pull[..., :, None] * matrix).sum(-2)], -1)


def residual(name: str, theta: np.ndarray) -> np.ndarray:
    """The residuals <x, beta> - y."""
    return coefficients(name, theta) @ X - Y


def exact_limit(name: str, theta: np.ndarray) -> np.ndarray:
    """The flow's limit, shape (N, 2), from parameters (N, p): one equation in one unknown.

    In the basis that diagonalises the network, da/dt = -r q b and db/dt = -r q a for the two
    layers' components a and b. So a + b = (a_0 + b_0) e^(q s) and a - b = (a_0 - b_0) e^(-q s) with
    s = -int r dt, and <x, beta> grows with s. (Yun et al. 2021, Theorem 6 and its proof.)
    """
    first, last = theta[:, :-2], theta[:, -2:]
    turn = np.array([[1.0, 1.0], [1.0, -1.0]])
    weight = 1.0
    if name == "diagonal":
        a, b, q = first, last, X
    elif name == "convolution":
        a, b, q = first @ turn, last @ turn, turn @ X
        weight = 0.5
    else:
        q = np.full(2, np.linalg.norm(X))
        matrix = first.reshape(-1, 2, 2)
        a, b = np.einsum("i,nij->nj", X / q[0], matrix), last

    def layers(s):
        plus, minus = (a + b) * np.exp(s[:, None] * q), (a - b) * np.exp(-s[:, None] * q)
        return (plus + minus) / 2, (plus - minus) / 2

    # e^(3 * 60) is the largest intermediate number; every lane of the sweep ends at |s| < 6.
    low, high = np.full(len(theta), -30.0), np.full(len(theta), 30.0)
    for _ in range(70):
        middle = (low + high) / 2
        left, right = layers(middle)
        below = weight * np.sum(q * left * right, axis=1) < Y
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    left, right = layers((low + high) / 2)
    if name == "diagonal":
        return left * right
    if name == "convolution":
        return (left * right) @ turn / 2
    along = np.sum(left * right, axis=1)[:, None] * (X / q[0])
    normal = np.array([-X[1], X[0]]) / q[0]
    across = np.sum(np.einsum("i,nij->nj", normal, matrix) * right, axis=1)
    return along + across[:, None] * normal


def scipy_dop853(name: str, thetas: np.ndarray, rtol: float, atol: float, stop: float):
    """Coefficients (N, 2) by SciPy's DOP853, one lane after the other."""

    def met(t, theta):
        return abs(residual(name, theta)) - stop

    setattr(met, "terminal", True)  # noqa: B010  (how SciPy wants it)
    join = np.concatenate
    ends = [
        solve_ivp(
            lambda t, theta: velocity(name, theta, X, join),
            (0.0, 1e9),
            theta,
            method="DOP853",
            rtol=rtol,
            atol=atol,
            events=met,
        ).y[:, -1]
        for theta in thetas
    ]
    return coefficients(name, np.stack(ends))


def descent(name: str, thetas: np.ndarray, stop: float):
    """Coefficients (N, 2) by the paper's gradient descent, one lane after the other."""
    ends = []
    for start in thetas:
        theta = start.copy()
        for _ in range(GD_MOST):
            if abs(residual(name, theta)) <= stop:
                break
            theta = theta + GD_STEP * velocity(name, theta, X, np.concatenate)
        ends.append(theta)
    return coefficients(name, np.stack(ends))


def torch_methods(
    name: str, thetas: np.ndarray, times: Callable[[], np.ndarray], rtol: float, atol: float
) -> Sequence[tuple[str, Callable[[], np.ndarray]]]:
    """The functions of torchdiffeq and torchode that can be imported, by name; they return (N, 2).

    `times` returns the lanes' end times, shape (N,); it is called when a function runs.
    """
    try:
        import torch
    except ModuleNotFoundError:
        return []
    # One lane is a few numbers: a second thread costs more core time than it saves.
    torch.set_num_threads(1)
    start, x = torch.from_numpy(thetas), torch.from_numpy(X)

    def slope(t, theta):
        return velocity(name, theta, x, torch.cat)

    methods = []
    try:
        from torchdiffeq import odeint

        def by_torchdiffeq():
            span = torch.tensor([0.0, times().max()], dtype=torch.float64)
            with torch.no_grad():
                path: Any = odeint(slope, start, span, rtol=rtol, atol=atol, method="dopri5")
            return coefficients(name, path[-1]).numpy()

        methods.append(("torchdiffeq", by_torchdiffeq))
    except ModuleNotFoundError:
        pass
    try:
        import torchode

        def by_torchode():
            term: Any = torchode.ODETerm(slope)
            control = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
            solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), control)
            ends = torch.from_numpy(times())
            given = torchode.InitialValueProblem(
                y0=start, t_start=torch.zeros_like(ends), t_end=ends
            )
            with torch.no_grad():
                solution = solver.solve(given)
            return coefficients(name, solution.ys[:, -1]).numpy()

        methods.append(("torchode", by_torchode))
    except ModuleNotFoundError:
        pass
    return methods
