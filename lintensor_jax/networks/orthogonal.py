"""Networks that satisfy Assumption 1 of Yun et al. 2021 by construction."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from ..arguments import as_numbers, as_sequence
from . import contractions
from .base import AbstractNetwork, Activation, as_parameter, constant, require_depth
from .conserved import gaps_of_squares
from .decomposition import OrthogonalDecomposition


class OrthogonalNetwork(AbstractNetwork):
    """f(x) = M(x) o (v_1, ..., v_L) with M(x) = sum_j [S x]_j U_1[:, j] (x) ... (x) U_L[:, j].

    Source: Yun, Krishnan & Mobahi 2021, Assumption 1. Linear coefficients S^T prod_l (U_l^T v_l).

    Remark 3 of the paper: gradient flow on separable data finds a beta = S^T rho with small
    ||rho||_{2/L}. Regression from a small scale does the same. So design S by its rows: beta will
    be a combination of few rows of S. For a beta of few spikes and steps::

        spikes = jnp.eye(d)
        steps = jnp.tril(jnp.ones((d, d)))[1:]
        S = jnp.concatenate([spikes, steps])             # (2d - 1, d)
        template = lt.OrthogonalNetwork.zeros(S, (jnp.eye(2 * d - 1),) * L)

    **Arguments**

    - `S`: shape (m, d), of full column rank. Not a parameter: flows do not change it.
    - `bases`: L >= 2 matrices U_l of shape (k_l, m), k_l >= m, with orthonormal columns. They are
      not parameters.
    - `factors`: the parameters v_l, real, of shape (k_l,).

    S and the bases may be complex if the data tensor M(x) is real, as for the discrete Fourier
    transform of a full-length convolution. **Raises** ValueError if M(x) is not real, or if a
    condition above does not hold.
    """

    factors: tuple[Float[Array, " k"], ...]
    S: Inexact[Array, "m d"] = constant()
    bases: tuple[Inexact[Array, "k m"], ...] = constant()

    def __init__(self, S, bases, factors):
        S = _as_matrix(S, "S")
        bases = as_sequence(bases, "bases", "OrthogonalNetwork")
        matrices = [_as_matrix(u, f"bases[{layer}]") for layer, u in enumerate(bases)]
        require_depth(len(matrices), "OrthogonalNetwork")
        vectors = _as_factors(factors, [u.shape[0] for u in matrices])
        dtype = jnp.result_type(S, *matrices, *vectors)
        self.S = S.astype(dtype)
        self.bases = tuple(u.astype(dtype) for u in matrices)
        self.factors = tuple(v.astype(jnp.finfo(dtype).dtype) for v in vectors)
        _require_assumption(self.S, self.bases)

    @classmethod
    def zeros(cls, S, bases) -> "OrthogonalNetwork":
        """The zero network with this S and these bases: a template for initializations."""
        bases = tuple(bases)
        return cls(S, bases, [jnp.zeros(len(u)) for u in bases])

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of factors, which is the degree of homogeneity."""
        return len(self.factors)

    @property
    def components(self) -> Inexact[Array, "L m"]:
        """Rows U_l^T v_l: the weights of the equivalent diagonal network."""
        return jnp.stack([v @ u for u, v in zip(self.bases, self.factors, strict=True)])

    def linear_coefficients(self) -> Float[Array, " d"]:
        """beta = S^T prod_l (U_l^T v_l), shape (d,)."""
        return self.coefficients_and_pullback()[0]

    def coefficients_and_pullback(self):
        """beta, and g -> U_l (S g . prod_{k != l} U_k^T v_k); the constants' entries are None."""
        product, others = contractions.products_of_others(self.components)

        def pullback(g):
            pulled = (self.S @ g)[None, :] * others
            gradients = tuple((u @ p).real for u, p in zip(self.bases, pulled, strict=True))
            return eqx.tree_at(
                lambda n: (n.S, n.bases, n.factors), self, (None, (None,) * self.depth, gradients)
            )

        return (product @ self.S).real, pullback

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, ""]:
        """The output for one input of shape (d,); eq. (2)."""
        if activation is None:
            return x @ self.linear_coefficients()
        return contractions.contract(self.data_tensor(x), self.factors, activation)

    def with_factors(self, factors) -> "OrthogonalNetwork":
        """A network with the same S and bases and other factors: the inverse of `factors`."""
        vectors = _as_factors(factors, [u.shape[0] for u in self.bases])
        return eqx.tree_at(lambda n: n.factors, self, tuple(vectors))

    def data_tensor(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """M(x), shape (k_1, ..., k_L); eq. (9)."""
        return self.orthogonal_decomposition().data_tensor(x)

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """`S` and `bases`."""
        return OrthogonalDecomposition(self.S, self.bases)

    def conserved_quantities(self) -> Float[Array, " q"]:
        """|U_l^T v_l|^2 - |U_{l+1}^T v_{l+1}|^2 for every column, (L-1) m numbers."""
        return gaps_of_squares(jnp.abs(self.components))


def _as_matrix(value, name):
    array = as_numbers(value, name, "OrthogonalNetwork")
    if not jnp.iscomplexobj(array):
        return as_parameter(array, name, "OrthogonalNetwork", ndim=2)
    parts = (as_parameter(p, name, "OrthogonalNetwork", ndim=2) for p in (array.real, array.imag))
    return jax.lax.complex(*parts)


def _as_factors(factors, lengths: Sequence[int]):
    vectors = [
        as_parameter(v, f"factors[{layer}]", "OrthogonalNetwork", ndim=1)
        for layer, v in enumerate(as_sequence(factors, "factors", "OrthogonalNetwork"))
    ]
    if [len(v) for v in vectors] != list(lengths):
        raise ValueError(
            f"OrthogonalNetwork: factors must have the lengths {list(lengths)} of the bases' "
            f"columns, got {[len(v) for v in vectors]}; resize the factors, or pass other bases."
        )
    return vectors


def _require_assumption(S, bases):
    m, dimension = S.shape
    if m < dimension:
        raise ValueError(
            f"OrthogonalNetwork: S must have at least as many rows as columns (m >= d), got shape "
            f"{S.shape}; add rows, or transpose it."
        )
    for layer, u in enumerate(bases):
        if u.shape[1] != m or u.shape[0] < m:
            raise ValueError(
                f"OrthogonalNetwork: bases[{layer}] must have shape (k, m) with k >= m = {m} (the "
                f"rows of S), got {u.shape}; its columns are the singular vectors."
            )
    if any(isinstance(matrix, Tracer) for matrix in (S, *bases)):
        return
    tolerance = float(jnp.finfo(S.dtype).eps) ** 0.5
    for layer, u in enumerate(np.asarray(u) for u in bases):
        defect = np.abs(u.conj().T @ u - np.eye(m)).max()
        if defect > tolerance:
            raise ValueError(
                f"OrthogonalNetwork: bases[{layer}] must have orthonormal columns, got "
                f"max |U^H U - I| = {defect:.3g}; orthonormalise them with jnp.linalg.qr, or use "
                "TensorNetwork."
            )
    sizes = np.linalg.svd(np.asarray(S), compute_uv=False)
    if sizes[-1] <= tolerance * sizes[0]:
        raise ValueError(
            "OrthogonalNetwork: S must have full column rank, got smallest / largest singular "
            f"value {sizes[-1]:.3g} / {sizes[0]:.3g}; remove dependent columns (inputs)."
        )
    if np.iscomplexobj(S):
        _require_real_tensor(np.asarray(S), [np.asarray(u) for u in bases], tolerance)


def _require_real_tensor(S, bases, tolerance):
    # beta is a polynomial in the factors. If its imaginary part is zero at random real factors, it
    # is zero everywhere, and the data tensor is real. No k_1 x ... x k_L array is formed.
    rng = np.random.default_rng(0)
    betas = [
        np.prod([rng.standard_normal(len(u)) @ u for u in bases], axis=0) @ S for _ in range(4)
    ]
    defect = np.linalg.norm(np.imag(betas)) / np.linalg.norm(betas)
    if defect > tolerance:
        raise ValueError(
            "OrthogonalNetwork: complex S and bases must give a real data tensor, got a relative "
            f"imaginary part {defect:.3g} of beta at random real factors; rows of S and columns of "
            "the bases must come in conjugate pairs."
        )
