"""The reference of the flow tests: SciPy on dense data tensors, in NumPy and in physical time.

This file shares no code with the package: every architecture is given by its dense data tensor (Yun
et al. 2021, eq. 2) of shape (k_1, ..., k_L, *shape of beta), entry by entry. The gradient is the
contraction that leaves one factor out (eq. 7).
"""

import itertools

import numpy as np
from scipy.integrate import solve_ivp


def diagonal_tensor(depth, d):
    tensor = np.zeros((d,) * (depth + 1))
    for j in range(d):
        tensor[(j,) * (depth + 1)] = 1
    return tensor


def convolution_tensor(d, lengths):
    tensor = np.zeros((*lengths, d))
    for index in np.ndindex(*lengths):
        tensor[(*index, sum(index) % d)] = 1
    return tensor


def fully_connected_tensor(widths, outputs=None):
    """Factors are the raveled weights, W_l of shape (widths[l], widths[l + 1])."""
    ends = [*widths, 1 if outputs is None else outputs]
    tensor = np.zeros((*(a * b for a, b in itertools.pairwise(ends)), ends[0], ends[-1]))
    for path in np.ndindex(*ends):
        weights = [i * ends[k + 1] + j for k, (i, j) in enumerate(itertools.pairwise(path))]
        tensor[(*weights, path[0], path[-1])] = 1
    return tensor[..., 0] if outputs is None else tensor


class ReferenceFlow:
    """Gradient flow of a dense data tensor on a squared, exponential or logistic loss."""

    def __init__(self, tensor, depth, X, y, loss="squared"):
        self.tensor, self.depth, self.loss = np.asarray(tensor), depth, loss
        self.X, self.y = np.asarray(X), np.asarray(y)
        self.ends = np.cumsum(self.tensor.shape[:depth])[:-1]

    def contraction(self, factors, left_out=None):
        value = self.tensor
        for layer in reversed(range(self.depth)):
            if layer != left_out:
                value = np.tensordot(factors[layer], value, axes=(0, layer))
        return value

    def coefficients(self, theta):
        return self.contraction(np.split(theta, self.ends))

    def loss_slope(self, predictions):
        if self.loss == "squared":
            return predictions - self.y
        margins = self.y * predictions
        inverse = np.exp(margins) + (1 if self.loss == "logistic" else 0)
        return -self.y / inverse

    def velocity(self, t, theta):
        factors = np.split(theta, self.ends)
        slope = self.loss_slope(self.X @ self.contraction(factors))
        gradient = np.tensordot(self.X, slope, axes=(0, 0))
        leave_one_out = (self.contraction(factors, layer) for layer in range(self.depth))
        return -np.concatenate(
            [np.tensordot(one, gradient, axes=gradient.ndim) for one in leave_one_out]
        )

    def __call__(self, theta, times, method="DOP853", rtol=1e-11, atol=1e-13):
        """The parameters at `times`, shape (T, p)."""
        times = np.asarray(times)
        solution = solve_ivp(
            self.velocity, (0, times[-1]), theta, method, times, rtol=rtol, atol=atol
        )
        assert solution.success, solution.message
        return solution.y.T
