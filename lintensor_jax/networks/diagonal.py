"""Diagonal networks: beta is the elementwise product of the layers."""

import functools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..arguments import as_numbers, as_shape
from ..eager_programs import eager_program
from . import contractions
from .base import (
    AbstractNetwork,
    Activation,
    as_parameter,
    require_depth,
    require_vanishing_activation,
)
from .conserved import gaps_of_squares
from .decomposition import AssumptionFails, OrthogonalDecomposition
from .effective_start import TwoLayers
from .starts import size_of_first_layers


class DiagonalNetwork(AbstractNetwork):
    """phi(... phi(phi(x . w_1) . w_2) ... . w_{L-1})^T w_L, with . elementwise.

    Source: Yun, Krishnan & Mobahi 2021, eq. (3) and (11). Linear coefficients w_1 . ... . w_L.

    **Arguments**

    - `weights`: shape (L, d), L >= 2; row l is layer l. For m outputs shape (L, d, m): a diagonal
      network for each output.
    """

    weights: Float[Array, "L d *m"]

    def __init__(self, weights):
        weights = as_numbers(weights, "weights", "DiagonalNetwork")
        ndim = 3 if weights.ndim == 3 else 2
        self.weights = as_parameter(weights, "weights", "DiagonalNetwork", ndim=ndim)
        require_depth(self.weights.shape[0], "DiagonalNetwork")

    @classmethod
    def zeros(cls, depth: int, dimension: int, outputs: int | None = None) -> "DiagonalNetwork":
        """The zero network of the given shape: a template for `lintensor_jax.initialization`.

        `outputs=None` is a scalar output, a number m a vector output of shape (m,).
        """
        owner = "DiagonalNetwork.zeros"
        return cls(jnp.zeros(as_shape(owner, outputs, depth=depth, dimension=dimension)))

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of layers, which is the degree of homogeneity."""
        return self.weights.shape[0]

    @property
    def has_scalar_output(self) -> bool:
        """Whether beta is a vector."""
        return self.weights.ndim == 2

    def linear_coefficients(self) -> Float[Array, "d *m"]:
        """beta = w_1 . ... . w_L, shape (d,), or (d, m) for m outputs."""
        return contractions.diagonal(self.weights)[0]

    def coefficients_and_pullback(self):
        """beta, and g -> the rows g . prod_{k != l} w_k as a DiagonalNetwork."""
        beta, leave_one_out = contractions.diagonal(self.weights)
        return beta, lambda g: eqx.tree_at(lambda n: n.weights, self, leave_one_out(g))

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, "*m"]:
        """The output for one input of shape (d,): a scalar, or (m,); eq. (3)."""
        if activation is None:
            return x @ self.linear_coefficients()
        require_vanishing_activation(activation, self.depth, "DiagonalNetwork")
        hidden = x.reshape(-1, *(1,) * (self.weights.ndim - 2))
        for weight in self.weights[:-1]:
            hidden = activation(hidden * weight)
        return jnp.sum(hidden * self.weights[-1], axis=0)

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
        """S = U_1 = ... = U_L = I (Yun et al. 2021, Appendix D.2).

        AssumptionFails for several outputs.
        """
        if not self.has_scalar_output:
            outputs = self.weights.shape[2]
            raise AssumptionFails(
                "a scalar output", outputs, "The data tensor of Assumption 1 has one output."
            )
        # By NumPy: `jnp.eye` is six programs outside of `jax.jit`.
        eye = jnp.asarray(np.eye(self.weights.shape[1], dtype=self.weights.dtype))
        return OrthogonalDecomposition(eye, (eye,) * self.depth)

    def singular_components(self):
        """(weights, None): S = U_l = I; None for several outputs."""
        return (self.weights, None) if self.has_scalar_output else None

    def two_layers(self) -> TwoLayers | None:
        """The two layers themselves; None for another depth, and for several outputs."""
        known = self.depth == 2 and self.has_scalar_output
        return TwoLayers(None, *self.weights) if known else None

    ties_are_exact: ClassVar[bool] = True

    def conserved_quantities(self) -> Float[Array, " q"]:
        """w_l^2 - w_{l+1}^2 in every coordinate, (L-1) d numbers."""
        return gaps_of_squares(jnp.abs(self.weights))

    def coupled_groups(self) -> "DiagonalNetwork":
        """A group for each entry of beta: its L weights."""
        shape = self.weights.shape[1:]
        groups = np.arange(np.prod(shape)).reshape(shape)
        return eqx.tree_at(lambda n: n.weights, self, np.broadcast_to(groups, self.weights.shape))

    def identity_start(self) -> "DiagonalNetwork":
        """Ones in all layers but the last, which is zero."""
        return DiagonalNetwork(jnp.ones_like(self.weights).at[-1].set(0))

    def balanced_start(self, coefficients: Float[Array, " d"]) -> "DiagonalNetwork":
        """|w_l| = |beta|^(1/L) in every coordinate; w_1 carries the signs."""
        size = jnp.abs(coefficients) ** (1 / self.depth)
        first = jnp.sign(coefficients) * size
        return DiagonalNetwork(jnp.stack([first] + [size] * (self.depth - 1)))

    def matching_start(self, coefficients: Float[Array, " d"], gap: Scalar) -> "DiagonalNetwork":
        """w_1 = ... = w_{L-1} > 0 and w_l^2 - w_L^2 = gap (Yun et al. 2021, Theorem 2)."""
        return DiagonalNetwork(_matching_layers(coefficients, self.depth, gap))

    def induced_regularizer(self, beta: Float[Array, " d"]) -> Scalar:
        """L sum_j |beta_j|^{2/L} over all entries (Gunasekar et al. 2018, Lemma 6)."""
        return self.depth * jnp.sum(jnp.abs(beta) ** (2 / self.depth))

    def induced_norm_order(self) -> float | None:
        """2/L for several outputs; None for one output, for which `singular_components` is used."""
        return None if self.has_scalar_output else 2.0 / self.depth

    def minimal_network(self, beta: Float[Array, " d"]) -> "DiagonalNetwork":
        """All layers of equal modulus; the last one carries the signs."""
        depth = self.depth
        size = jnp.abs(beta) ** (1 / depth)
        weights = jnp.stack([size] * (depth - 1) + [jnp.sign(beta) * size])
        return eqx.tree_at(lambda n: n.weights, self, weights)

    def largest_rank(self) -> int:
        """min(d, m) for m outputs, since beta can be any matrix; 1 for a scalar output."""
        return 1 if self.has_scalar_output else min(self.weights.shape[1:])


@eager_program()
def _matching_layers(coefficients, depth, gap):
    size = size_of_first_layers(jnp.abs(coefficients), depth, gap)
    last = coefficients / size ** (depth - 1)
    return jnp.stack([size] * (depth - 1) + [last])


@functools.partial(jax.jit, static_argnums=1)  # ten times as fast as one operation after the other
def superdiagonal(entries: Float[Array, " k"], order: int) -> Float[Array, "..."]:
    """The tensor of shape (k,) * order with `entries` on its diagonal and zero elsewhere."""
    index = (jnp.arange(entries.shape[0]),) * order
    return jnp.zeros((entries.shape[0],) * order, entries.dtype).at[index].set(entries)
