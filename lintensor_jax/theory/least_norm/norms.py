"""Norms and quasi-norms of linear coefficients: the limits of the flows minimise them.

All but the nuclear norm are (sum_g |rho_g|_2^p)^(1/p) of disjoint groups of rho = scale * (Q beta)
with Q orthogonal. `group_form` returns that form. The conic programs of `max_margin` and
`min_norm` take it.
"""

import abc
import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class GroupForm:
    """The norm (sum_g |rho_g|^power)^(1/power), with rho = scale * (basis @ vec(beta)).

    NumPy data for the host-side programs: `basis` (D, D) orthogonal or None for the identity,
    `scale` (D,) positive, `labels` (D,) the group of each coordinate, numbered from 0.
    """

    basis: np.ndarray | None
    scale: np.ndarray
    labels: np.ndarray
    power: float = 1.0

    def measurements(self, rows: np.ndarray) -> np.ndarray:
        """The rows, shape (n, D), as functions of rho instead of vec(beta)."""
        rotated = rows if self.basis is None else rows @ self.basis.T
        return rotated / self.scale

    def coordinates(self, beta: np.ndarray) -> np.ndarray:
        """rho of vec(beta), shape (D,)."""
        return self.scale * (beta if self.basis is None else self.basis @ beta)

    def coefficients(self, rho: np.ndarray) -> np.ndarray:
        """vec(beta) of rho, shape (D,)."""
        unscaled = rho / self.scale
        return unscaled if self.basis is None else self.basis.T @ unscaled


class AbstractNorm(eqx.Module):
    """A positively homogeneous measure of linear coefficients: `norm(beta)` is a scalar."""

    @abc.abstractmethod
    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The norm of beta."""


class AbstractGroupNorm(AbstractNorm):
    """A norm that has a `GroupForm`."""

    @abc.abstractmethod
    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """The form for coefficients of that shape; ValueError where the norm is not defined."""


class L2Norm(AbstractGroupNorm):
    """sqrt(sum_j beta_j^2); the Frobenius norm of a matrix. Any shape.

    Limit of fully connected networks: Gunasekar et al. 2018, Theorem 1; Yun et al. 2021,
    Corollary 1 (classification) and Theorem 7 (regression).
    """

    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The l2 norm of all entries of beta."""
        return jnp.linalg.norm(jnp.ravel(beta))

    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """One group of all coordinates."""
        size = _size(shape)
        return GroupForm(None, np.ones(size), np.zeros(size, int))


class WeightedL2Norm(AbstractGroupNorm):
    """sqrt(sum_j (weights_j beta_j)^2): the weights multiply the entries, not their squares.

    Source: Yun et al. 2021, Remark 4 (large initial scale).

    **Arguments**

    - `weights`: the shape of beta; positive and finite, else ValueError.
    """

    weights: Float[Array, "..."]

    def __init__(self, weights):
        self.weights = _positive_weights(weights, "WeightedL2Norm")

    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The l2 norm of weights * beta."""
        _require_shape(jnp.shape(beta), self.weights.shape, "WeightedL2Norm")
        return jnp.linalg.norm(jnp.ravel(self.weights * beta))

    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """One group of all coordinates, scaled by the weights."""
        _require_shape(shape, self.weights.shape, "WeightedL2Norm")
        scale = np.asarray(self.weights, np.float64).ravel()
        return GroupForm(None, scale, np.zeros(scale.size, int))


class L1Norm(AbstractGroupNorm):
    """sum_j weights_j |beta_j|; the weights are 1 if not given. Any shape.

    Limit of two-layer diagonal networks: Gunasekar et al. 2018, Lemma 6 with Theorem 4; Yun et
    al. 2021, Corollary 2 at L = 2, and Remark 4 for the weights (regression, small initial scale).

    **Arguments**

    - `weights`: None, or the shape of beta; positive and finite, else ValueError.
    """

    weights: Float[Array, "..."] | None

    def __init__(self, weights=None):
        self.weights = None if weights is None else _positive_weights(weights, "L1Norm")

    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The (weighted) sum of moduli."""
        if self.weights is None:
            return jnp.sum(jnp.abs(beta))
        _require_shape(jnp.shape(beta), self.weights.shape, "L1Norm")
        return jnp.sum(self.weights * jnp.abs(beta))

    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """Every coordinate is a group, scaled by its weight."""
        size = _size(shape)
        scale = np.ones(size)
        if self.weights is not None:
            _require_shape(shape, self.weights.shape, "L1Norm")
            scale = np.asarray(self.weights, np.float64).ravel()
        return GroupForm(None, scale, np.arange(size))


class FourierL1Norm(AbstractGroupNorm):
    """sum_k |(F beta)_k| with the *unitary* DFT F, for vectors.

    Limit of two-layer full-length convolutional networks: Gunasekar et al. 2018, Theorem 2 (whose
    DFT is sqrt(d) times this one: same minimisers); Yun et al. 2021, Corollary 3 at L = 2.
    """

    def __call__(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum of the moduli of the unitary DFT of beta."""
        _require_axes(jnp.shape(beta), 1, "FourierL1Norm")
        return jnp.sum(jnp.abs(jnp.fft.fft(beta, norm="ortho")))

    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """A group of two (cosine, sine) for each pair of conjugate frequencies."""
        _require_axes(shape, 1, "FourierL1Norm")
        return _fourier_form(shape[0], 1.0)


class L21Norm(AbstractGroupNorm):
    """sum_j |B_j|_2 over the rows of a matrix B, shape (d, m)."""

    def __call__(self, beta: Float[Array, "d m"]) -> Float[Array, ""]:
        """The sum of the l2 norms of the rows."""
        _require_axes(jnp.shape(beta), 2, "L21Norm")
        return jnp.sum(jnp.linalg.norm(beta, axis=1))

    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """Every row is a group."""
        _require_axes(shape, 2, "L21Norm")
        return GroupForm(None, np.ones(_size(shape)), np.repeat(np.arange(shape[0]), shape[1]))


class NuclearNorm(AbstractNorm):
    """The sum of the singular values of a matrix, shape (d, m).

    Source: Gunasekar et al. 2017, matrix sensing.
    """

    def __call__(self, beta: Float[Array, "d m"]) -> Float[Array, ""]:
        """The sum of the singular values."""
        _require_axes(jnp.shape(beta), 2, "NuclearNorm")
        return jnp.sum(jnp.linalg.svd(beta, compute_uv=False))


class LpNorm(AbstractGroupNorm):
    """The quasi-norm (sum_j |beta_j|^p)^(1/p), 0 < p < 1. Any shape. Not convex.

    Diagonal networks of depth L > 2 have p = 2/L: Gunasekar et al. 2018, Lemma 6; Yun et al.
    2021, Corollary 2.

    **Arguments**

    - `p`: a number strictly between 0 and 1, else ValueError (p = 1 is `L1Norm`).
    """

    p: float = eqx.field(static=True)

    def __init__(self, p: float):
        self.p = _exponent(p, "LpNorm", "L1Norm")

    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The quasi-norm of all entries of beta."""
        return _quasi_norm(jnp.abs(beta), self.p)

    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """Every coordinate is a group."""
        size = _size(shape)
        return GroupForm(None, np.ones(size), np.arange(size), self.p)


class FourierLpNorm(AbstractGroupNorm):
    """The quasi-norm (sum_k |(F beta)_k|^p)^(1/p), 0 < p < 1, F the unitary DFT. Not convex.

    Full-length convolutional networks of depth L > 2 have p = 2/L: Gunasekar et al. 2018, Theorem
    2a, eq. 11-13; Yun et al. 2021, Corollary 3.

    **Arguments**

    - `p`: a number strictly between 0 and 1, else ValueError (p = 1 is `FourierL1Norm`).
    """

    p: float = eqx.field(static=True)

    def __init__(self, p: float):
        self.p = _exponent(p, "FourierLpNorm", "FourierL1Norm")

    def __call__(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """The quasi-norm of the unitary DFT of beta."""
        _require_axes(jnp.shape(beta), 1, "FourierLpNorm")
        return _quasi_norm(jnp.abs(jnp.fft.fft(beta, norm="ortho")), self.p)

    def group_form(self, shape: tuple[int, ...]) -> GroupForm:
        """A group of two (cosine, sine) for each pair of conjugate frequencies."""
        _require_axes(shape, 1, "FourierLpNorm")
        return _fourier_form(shape[0], self.p)


def _fourier_form(size: int, power: float) -> GroupForm:
    """The real orthonormal DFT basis, with each conjugate pair of frequencies as one group.

    The pair counts twice, at modulus |rho_g| / sqrt(2): 2 (|rho_g| / sqrt 2)^p is the p-th power
    of 2^(1/p - 1/2) |rho_g|.
    """
    labels = np.array([(k + 1) // 2 for k in range(size)])
    paired = (labels > 0) & (2 * labels != size)
    angles = 2 * np.pi * np.outer(labels, np.arange(size)) / size
    is_sine = paired & (np.arange(size) % 2 == 0)
    basis = np.where(is_sine[:, None], np.sin(angles), np.cos(angles))
    basis *= np.where(paired, np.sqrt(2 / size), np.sqrt(1 / size))[:, None]
    return GroupForm(basis, np.where(paired, 2 ** (1 / power - 0.5), 1.0), labels, power)


def _quasi_norm(moduli, p):
    # Divided by the largest entry: for small p the sum of p-th powers overflows after ^(1/p).
    largest = jnp.max(moduli)
    safe = jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sum((moduli / safe) ** p) ** (1 / p)


def _size(shape):
    return int(np.prod(shape, dtype=int))


def _exponent(p, owner, convex):
    value = float(p)
    if not 0 < value < 1:
        raise ValueError(
            f"{owner}: p must lie strictly between 0 and 1, got {p}; use {convex}() for p = 1 and "
            "L2Norm() for p = 2."
        )
    return value


def _positive_weights(weights, owner):
    array = jnp.asarray(weights)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    if not isinstance(array, Tracer):
        bad = np.asarray(~((array > 0) & jnp.isfinite(array)))
        if bad.any():
            raise ValueError(
                f"{owner}: weights must be positive and finite, got {np.asarray(array)[bad][0]} at "
                f"index {np.argwhere(bad)[0].tolist()}; remove coordinates "
                "that must not count in the norm from the data."
            )
    return array


def _require_shape(shape, expected, owner):
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{owner}: weights must have the shape of the coefficients, got {tuple(expected)} for "
            f"coefficients of shape {tuple(shape)}; pass one weight per coefficient."
        )


def _require_axes(shape, ndim, owner):
    if len(shape) != ndim:
        kind = {1: "vectors, shape (d,)", 2: "matrices, shape (d, m)"}[ndim]
        raise ValueError(
            f"{owner}: the coefficients must be {kind}, got shape {tuple(shape)}; choose a norm "
            "for that shape (L2Norm and L1Norm take any)."
        )
