"""Diagonal networks: beta is the elementwise product of the layers."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from . import contractions
from .base import (
    AbstractNetwork,
    Activation,
    as_parameter,
    require_depth,
    require_vanishing_activation,
)
from .conserved import gaps
from .decomposition import OrthogonalDecomposition
from .effective_start import TwoLayers
from .starts import size_of_first_layers


class DiagonalNetwork(AbstractNetwork):
    """phi(... phi(phi(x . w_1) . w_2) ... . w_{L-1})^T w_L, with . elementwise.

    Source: Yun, Krishnan & Mobahi 2021, eq. (3) and (11). Linear coefficients w_1 . ... . w_L.

    **Arguments**

    - `weights`: shape (L, d), L >= 2; row l is layer l.
    """

    weights: Float[Array, "L d"]

    def __init__(self, weights):
        self.weights = as_parameter(weights, "weights", "DiagonalNetwork", ndim=2)
        require_depth(self.weights.shape[0], "DiagonalNetwork")

    @classmethod
    def zeros(cls, depth: int, dimension: int) -> "DiagonalNetwork":
        """The zero network of the given shape: a template for `lintensor_jax.initialization`."""
        return cls(jnp.zeros((depth, dimension)))

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of layers, which is the degree of homogeneity."""
        return self.weights.shape[0]

    def linear_coefficients(self) -> Float[Array, " d"]:
        """beta = w_1 . ... . w_L, shape (d,)."""
        return contractions.diagonal(self.weights)[0]

    def coefficients_and_pullback(self):
        """beta, and g -> the rows g . prod_{k != l} w_k as a DiagonalNetwork."""
        beta, leave_one_out = contractions.diagonal(self.weights)
        return beta, lambda g: eqx.tree_at(lambda n: n.weights, self, leave_one_out(g))

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, ""]:
        """The output for one input of shape (d,); eq. (3)."""
        if activation is None:
            return x @ self.linear_coefficients()
        require_vanishing_activation(activation, self.depth, "DiagonalNetwork")
        hidden = x
        for weight in self.weights[:-1]:
            hidden = activation(hidden * weight)
        return hidden @ self.weights[-1]

    @property
    def factors(self) -> tuple[Float[Array, " d"], ...]:
        """(w_1, ..., w_L): what the data tensor is contracted with."""
        return tuple(self.weights)

    def with_factors(self, factors) -> "DiagonalNetwork":
        """A network of the same shape with other factors: the inverse of `factors`."""
        return DiagonalNetwork(jnp.stack(tuple(factors)))

    def data_tensor(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """M(x), shape (d,) * L: x on the diagonal, zero elsewhere. d^L numbers: for small cases."""
        return superdiagonal(jnp.asarray(x), self.depth)

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """S = U_1 = ... = U_L = I (Yun et al. 2021, Appendix D.2)."""
        eye = jnp.eye(self.weights.shape[1], dtype=self.weights.dtype)
        return OrthogonalDecomposition(eye, (eye,) * self.depth)

    def singular_components(self):
        """(weights, None): S = U_l = I."""
        return self.weights, None

    def two_layers(self) -> TwoLayers | None:
        """The two layers themselves; None for another depth."""
        return TwoLayers(None, *self.weights) if self.depth == 2 else None

    def conserved_quantities(self) -> Float[Array, " q"]:
        """w_l^2 - w_{l+1}^2 in every coordinate, (L-1) d numbers."""
        return gaps(self.weights**2)

    def identity_start(self) -> "DiagonalNetwork":
        """Ones, and zeros in the last layer."""
        return DiagonalNetwork(jnp.ones_like(self.weights).at[-1].set(0))

    def balanced_start(self, coefficients: Float[Array, " d"]) -> "DiagonalNetwork":
        """|w_l| = |beta|^(1/L) in every coordinate; w_1 carries the signs."""
        size = jnp.abs(coefficients) ** (1 / self.depth)
        first = jnp.sign(coefficients) * size
        return DiagonalNetwork(jnp.stack([first] + [size] * (self.depth - 1)))

    def matching_start(self, coefficients: Float[Array, " d"], gap: Scalar) -> "DiagonalNetwork":
        """w_1 = ... = w_{L-1} > 0 and w_l^2 - w_L^2 = gap (Yun et al. 2021, Theorem 2)."""
        size = size_of_first_layers(jnp.abs(coefficients), self.depth, gap)
        last = coefficients / size ** (self.depth - 1)
        return DiagonalNetwork(jnp.stack([size] * (self.depth - 1) + [last]))

    def induced_regularizer(self, beta: Float[Array, " d"]) -> Scalar:
        """L sum_j |beta_j|^{2/L} (Gunasekar et al. 2018, Lemma 6)."""
        return self.depth * jnp.sum(jnp.abs(beta) ** (2 / self.depth))

    def minimal_network(self, beta: Float[Array, " d"]) -> "DiagonalNetwork":
        """All layers of equal modulus; the last one carries the signs."""
        depth = self.depth
        size = jnp.abs(beta) ** (1 / depth)
        weights = jnp.concatenate([jnp.tile(size, (depth - 1, 1)), (jnp.sign(beta) * size)[None]])
        return eqx.tree_at(lambda n: n.weights, self, weights)

    def largest_rank(self) -> int:
        """1: beta is one column, and any."""
        return 1


def superdiagonal(entries: Float[Array, " k"], order: int) -> Float[Array, "..."]:
    """The tensor of shape (k,) * order with `entries` on its diagonal and zero elsewhere."""
    index = (jnp.arange(entries.shape[0]),) * order
    return jnp.zeros((entries.shape[0],) * order, entries.dtype).at[index].set(entries)
