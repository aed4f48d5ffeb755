"""The data of a maximum-margin problem as NumPy arrays: the rows, with the bias columns apart."""

import dataclasses
from typing import Any

import numpy as np
from jax.core import Tracer

from ...problems import Classification

_EPS = float(np.finfo(float).eps)


@dataclasses.dataclass(frozen=True)
class SignedRows:
    """Margins are counted @ w + free @ c, w the coefficients that norms count, c the bias.

    - `counted` (N, D), `free` (N, k): k = 0 without a bias. The columns of `free` are independent.
      With several outputs k is smaller than their number, because a bias that is the same for all
      outputs changes no margin.
    - `directions` (K, k): the K entries of the bias are directions @ c.
    - `shape`: that of the counted coefficients. `margins_shape`: (n,), or (n, m - 1) for m classes.
    """

    counted: np.ndarray
    free: np.ndarray
    directions: np.ndarray
    shape: tuple[int, ...]
    margins_shape: tuple[int, ...]
    dtype: Any

    @staticmethod
    def of(problem: Any, owner: str) -> "SignedRows":
        """The rows of `problem.signed_data`, in float64."""
        signed = _signed_data(problem)
        if signed is None:
            raise ValueError(
                f"{owner}: problem must be a Classification (have signed_data), got "
                f"{type(problem).__name__}; for regression and matrix sensing use min_norm."
            )
        if isinstance(signed, Tracer):
            raise ValueError(
                f"{owner}: problem must hold concrete arrays, got traced ones; call it outside "
                "jit, grad and vmap."
            )
        array = np.asarray(signed, np.float64)
        if array.ndim not in (2, 3, 4) or not np.isfinite(array).all():
            raise ValueError(
                f"{owner}: signed_data must be finite with 2 axes (vectors) or 3 (matrices), got "
                f"shape {array.shape}; samples come first."
            )
        # Several classes: samples, other classes, then the axes of the coefficients.
        lead = 2 if array.ndim == 4 else 1
        margins, shape = array.shape[:lead], array.shape[lead:]
        rows = array.reshape(-1, *shape)
        if not getattr(problem, "has_bias", False):
            nothing = np.zeros((len(rows), 0))
            counted = rows.reshape(len(rows), -1)
            return SignedRows(counted, nothing, np.zeros((0, 0)), shape, margins, signed.dtype)
        counted, last = rows[:, :-1], rows[:, -1].reshape(len(rows), -1)
        left, sizes, right = np.linalg.svd(last, full_matrices=False)
        kept = sizes > max(last.shape) * _EPS * sizes.max()
        found = SignedRows(
            counted.reshape(len(rows), -1),
            left[:, kept] * sizes[kept],
            right[kept].T,
            (shape[0] - 1, *shape[1:]),
            margins,
            signed.dtype,
        )
        found._require_several_classes(problem, owner)
        return found

    def margins(self, w: np.ndarray, c: np.ndarray) -> np.ndarray:
        """counted @ w + free @ c, shape (N,)."""
        return self.counted @ w + self.free @ c if c.size else self.counted @ w

    @property
    def all(self) -> np.ndarray:
        """Counted and free columns, shape (N, D + k)."""
        return np.hstack([self.counted, self.free])

    def coefficients(self, w: np.ndarray, c: np.ndarray) -> np.ndarray:
        """All coefficients in the shape `coefficient_shape`, the bias last."""
        if not self.directions.size:
            return w.reshape(self.shape)
        bias = (self.directions @ c).reshape(1, *self.shape[1:])
        return np.concatenate([w.reshape(self.shape), bias])

    def parts(self, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """w and c of coefficients; the inverse of `coefficients`."""
        if not self.directions.size:
            return beta.ravel(), np.zeros(0)
        return beta[:-1].ravel(), self.directions.T @ beta[-1:].ravel()

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """The shape of all coefficients."""
        return (self.shape[0] + bool(self.directions.size), *self.shape[1:])

    def _require_several_classes(self, problem, owner):
        if len(np.unique(np.asarray(problem.labels))) < 2:
            raise ValueError(
                f"{owner}: a problem with a free bias must have samples of at least two classes, "
                "got one: a bias alone separates them, and the least norm is 0. Add samples of "
                "another class, or leave the bias out."
            )


def _signed_data(problem: Any) -> Any:
    """`problem.signed_data`, or None if there is none."""
    if type(problem) is Classification:
        X, y = problem.X, problem.y
        if not isinstance(X, Tracer) and not isinstance(y, Tracer):
            # The same product by NumPy: for small data a call of a compiled program takes longer.
            return np.asarray(y)[:, None] * np.asarray(X)
    return getattr(problem, "signed_data", None)
