"""Norms and quasi-norms of linear coefficients, which the limits of flows minimise.

A norm returns its gauge, which `max_margin` and `min_norm` use, and the coordinates of the gauge,
rho = scale * (Q beta) with Q orthogonal (`gauges.py`, `matrix_gauges.py`).
"""

import abc
import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ...arguments import as_concrete_number, as_numbers
from ...messages import in_words
from .gauges import AbstractGauge, GroupGauge, MaxGauge, PowerGauge
from .matrix_gauges import NuclearGauge, SpectralGauge


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """rho = scale * (basis @ vec(beta)), in which a norm is a gauge.

    NumPy data for the host-side programs: `basis` (D, D) orthogonal or None for the identity,
    `scale` (D,) positive.
    """

    basis: np.ndarray | None
    scale: np.ndarray

    @staticmethod
    def plain(shape: tuple[int, ...]) -> "Coordinates":
        """rho = vec(beta)."""
        return Coordinates(None, np.ones(_size(shape)))

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

    @abc.abstractmethod
    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """The gauge for coefficients of that shape, and the coordinates on which it acts.

        ValueError if the norm is not defined for the shape.
        """


def gauge_of(
    norm: AbstractNorm, shape: tuple[int, ...], owner: str
) -> tuple[AbstractGauge, Coordinates]:
    """The norm's gauge and coordinates; ValueError if `norm` is no norm object."""
    if isinstance(norm, AbstractNorm):
        # By the class: each `norm.gauge` of an Equinox module makes a module of the bound method.
        return type(norm).gauge(norm, shape)
    raise ValueError(
        f"{owner}: norm must be a norm object such as lintensor_jax.L1Norm(), got "
        f"{in_words(norm)}; "
        "the norms are in lintensor_jax.theory.least_norm.norms."
    )


class L2Norm(AbstractNorm):
    """sqrt(sum_j beta_j^2); the Frobenius norm of a matrix. Any shape.

    Limit of fully connected networks: Gunasekar et al. 2018, Theorem 1; Yun et al. 2021,
    Corollary 1 (classification) and Theorem 7 (regression).
    """

    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The l2 norm of all entries of beta."""
        return euclidean(jnp.ravel(beta))

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """One group of all coordinates."""
        return _one_group(np.ones(_size(shape)))


class WeightedL2Norm(AbstractNorm):
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
        return euclidean(jnp.ravel(self.weights * beta))

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """One group of all coordinates, scaled by the weights."""
        _require_shape(shape, self.weights.shape, "WeightedL2Norm")
        return _one_group(np.asarray(self.weights, np.float64).ravel())


class L1Norm(AbstractNorm):
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

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """Every coordinate is a group, scaled by its weight."""
        size = _size(shape)
        scale = np.ones(size)
        if self.weights is not None:
            _require_shape(shape, self.weights.shape, "L1Norm")
            scale = np.asarray(self.weights, np.float64).ravel()
        return GroupGauge(np.arange(size)), Coordinates(None, scale)


class FourierL1Norm(AbstractNorm):
    """sum_k |(F beta)_k| with the *unitary* DFT F, for vectors.

    Limit of two-layer full-length convolutional networks: Gunasekar et al. 2018, Theorem 2 (whose
    DFT is sqrt(d) times this one: same minimisers); Yun et al. 2021, Corollary 3 at L = 2.
    """

    def __call__(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum of the moduli of the unitary DFT of beta."""
        _require_axes(jnp.shape(beta), 1, "FourierL1Norm")
        return jnp.sum(jnp.abs(jnp.fft.fft(beta, norm="ortho")))

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """A group of two (cosine, sine) for each pair of conjugate frequencies."""
        _require_axes(shape, 1, "FourierL1Norm")
        return _fourier_form(shape[0], 1.0)


class L21Norm(AbstractNorm):
    """sum_j |B_j|_2 over the rows of a matrix B, shape (d, m)."""

    def __call__(self, beta: Float[Array, "d m"]) -> Float[Array, ""]:
        """The sum of the l2 norms of the rows."""
        _require_axes(jnp.shape(beta), 2, "L21Norm")
        return jnp.sum(euclidean(beta))

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """Every row is a group."""
        _require_axes(shape, 2, "L21Norm")
        return GroupGauge(np.repeat(np.arange(shape[0]), shape[1])), Coordinates.plain(shape)


class NuclearNorm(AbstractNorm):
    """The sum of the singular values of a matrix, shape (d, m).

    Source: Gunasekar et al. 2017, matrix sensing.
    """

    def __call__(self, beta: Float[Array, "d m"]) -> Float[Array, ""]:
        """The sum of the singular values."""
        _require_axes(jnp.shape(beta), 2, "NuclearNorm")
        return jnp.sum(jnp.linalg.svd(beta, compute_uv=False))

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """The sum of the singular values."""
        return NuclearGauge(_matrix_shape(shape, "NuclearNorm")), Coordinates.plain(shape)


class SpectralNorm(AbstractNorm):
    """The largest singular value of a matrix, shape (d, m).

    Limit direction of normalised spectral descent (Muon) on separable data: Fan et al. 2025.
    """

    def __call__(self, beta: Float[Array, "d m"]) -> Float[Array, ""]:
        """The largest singular value."""
        _require_axes(jnp.shape(beta), 2, "SpectralNorm")
        return jnp.linalg.norm(beta, ord=2)

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """The largest singular value."""
        return SpectralGauge(_matrix_shape(shape, "SpectralNorm")), Coordinates.plain(shape)


class LInfNorm(AbstractNorm):
    """max_j |beta_j|. Any shape.

    Limit direction of sign descent and of Adam without its stability constant on separable data:
    Zhang et al. 2024.
    """

    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The largest modulus."""
        return jnp.max(jnp.abs(beta))

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """The largest modulus."""
        return MaxGauge(), Coordinates.plain(shape)


class LpNorm(AbstractNorm):
    """(sum_j |beta_j|^p)^(1/p), p > 0. Any shape. Not convex for p < 1.

    Diagonal networks of depth L > 2 have p = 2/L: Gunasekar et al. 2018, Lemma 6; Yun et al.
    2021, Corollary 2. `LpNorm(1)`, `LpNorm(2)` and `LpNorm(inf)` are `L1Norm()`, `L2Norm()` and
    `LInfNorm()`.

    **Arguments**

    - `p`: a positive number, or infinity; else ValueError.
    """

    p: float = eqx.field(static=True)

    def __init__(self, p: float):
        self.p = as_concrete_number(p, "p", "LpNorm")
        if not self.p > 0:
            raise ValueError(
                f"LpNorm: p must be positive, got {p}; p = 2/L is the quasi-norm of diagonal "
                "networks of depth L."
            )

    def __call__(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The (quasi-)norm of all entries of beta."""
        moduli = jnp.abs(beta)
        return jnp.max(moduli) if self.p == np.inf else _quasi_norm(moduli, self.p)

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """p <= 1: one group for each coordinate. p = 2: one group of all. Else a power or max."""
        if self.p == 2:
            return L2Norm().gauge(shape)
        if self.p <= 1:
            return GroupGauge(np.arange(_size(shape)), self.p), Coordinates.plain(shape)
        return (MaxGauge() if self.p == np.inf else PowerGauge(self.p)), Coordinates.plain(shape)


class FourierLpNorm(AbstractNorm):
    """The quasi-norm (sum_k |(F beta)_k|^p)^(1/p), 0 < p < 1, F the unitary DFT. Not convex.

    Full-length convolutional networks of depth L > 2 have p = 2/L: Gunasekar et al. 2018, Theorem
    2a, eq. 11-13; Yun et al. 2021, Corollary 3.

    **Arguments**

    - `p`: a number strictly between 0 and 1, else ValueError (p = 1 is `FourierL1Norm`).
    """

    p: float = eqx.field(static=True)

    def __init__(self, p: float):
        self.p = _exponent(p)

    def __call__(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """The quasi-norm of the unitary DFT of beta."""
        _require_axes(jnp.shape(beta), 1, "FourierLpNorm")
        return _quasi_norm(jnp.abs(jnp.fft.fft(beta, norm="ortho")), self.p)

    def gauge(self, shape: tuple[int, ...]) -> tuple[AbstractGauge, Coordinates]:
        """A group of two (cosine, sine) for each pair of conjugate frequencies."""
        _require_axes(shape, 1, "FourierLpNorm")
        return _fourier_form(shape[0], self.p)


def _fourier_form(size: int, power: float) -> tuple[AbstractGauge, Coordinates]:
    """The real orthonormal DFT basis, with each conjugate pair of frequencies as one group.

    A pair contributes two terms of modulus |rho_g| / sqrt(2): 2 (|rho_g| / sqrt 2)^p is the p-th
    power of 2^(1/p - 1/2) |rho_g|.
    """
    labels = np.array([(k + 1) // 2 for k in range(size)])
    paired = (labels > 0) & (2 * labels != size)
    angles = 2 * np.pi * np.outer(labels, np.arange(size)) / size
    is_sine = paired & (np.arange(size) % 2 == 0)
    basis = np.where(is_sine[:, None], np.sin(angles), np.cos(angles))
    basis *= np.where(paired, np.sqrt(2 / size), np.sqrt(1 / size))[:, None]
    scale = np.where(paired, 2 ** (1 / power - 0.5), 1.0)
    return GroupGauge(labels, power), Coordinates(basis, scale)


def _one_group(scale) -> tuple[AbstractGauge, Coordinates]:
    return GroupGauge(np.zeros(scale.size, int)), Coordinates(None, scale)


def euclidean(values: Float[Array, "... k"]) -> Float[Array, "..."]:
    """The l2 norm over the last axis, without overflow or underflow of the squares."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(values), axis=-1))
    # Rows that are zero, or have infinite or NaN entries, are not scaled.
    safe = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    return safe * jnp.linalg.norm(values / safe[..., None], axis=-1)


def _quasi_norm(moduli, p):
    # Without the division by the largest entry ^(1/p) can overflow or underflow for small p.
    largest = jnp.max(moduli)
    safe = jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sum((moduli / safe) ** p) ** (1 / p)


def _size(shape):
    return math.prod(shape)


def _exponent(p):
    value = as_concrete_number(p, "p", "FourierLpNorm")
    if not 0 < value < 1:
        raise ValueError(
            f"FourierLpNorm: p must lie strictly between 0 and 1, got {p}; use FourierL1Norm() for "
            "p = 1 and L2Norm() for p = 2."
        )
    return value


def _matrix_shape(shape, owner) -> tuple[int, int]:
    _require_axes(shape, 2, owner)
    return shape[0], shape[1]


def _positive_weights(weights, owner):
    array = as_numbers(weights, "weights", owner)
    if jnp.iscomplexobj(array) or array.dtype == bool or array.size == 0:
        raise ValueError(
            f"{owner}: weights must be real, got dtype {array.dtype} and shape {array.shape}; "
            "pass one positive float for each coefficient."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    if not isinstance(array, Tracer):
        bad = np.asarray(~((array > 0) & jnp.isfinite(array)))
        if bad.any():
            raise ValueError(
                f"{owner}: weights must be positive and finite, got {np.asarray(array)[bad][0]} at "
                f"index {np.argwhere(bad)[0].tolist()}; for a bias that must not count "
                "pass bias=True to the problem; give another such coordinate a small weight: 1e-6 "
                "of the others changes the optimum by 1e-12."
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
