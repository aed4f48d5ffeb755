"""Circular convolutional networks with filters of any length."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import contractions
from .base import AbstractNetwork, Activation, as_parameter, require_depth
from .decomposition import OrthogonalDecomposition, decomposition_of


class ConvolutionalNetwork(AbstractNetwork):
    """phi(... phi(phi(x * w_1) * w_2) ... * w_{L-1})^T w_L, with * circular.

    Source: Yun, Krishnan & Mobahi 2021, eq. (4) and (12): (a * b)_i = sum_j a_{(i+j) mod d} b_j,
    which is cross-correlation. Linear coefficients: the circular convolution of all filters, so
    that with numpy's DFT, DFT(beta) = prod_l DFT(w_l) (Gunasekar et al. 2018, Lemma 3).

    **Arguments**

    - `filters`: L >= 2 vectors; filter l has shape (k_l,) with k_l <= d, and the last one has
      shape (d,), which fixes d. All of length d is the papers' *full-length* network.
    """

    filters: tuple[Float[Array, " k"], ...]

    def __init__(self, filters):
        filters = tuple(
            as_parameter(w, f"filters[{layer}]", "ConvolutionalNetwork", ndim=1)
            for layer, w in enumerate(filters)
        )
        require_depth(len(filters), "ConvolutionalNetwork")
        dimension = filters[-1].shape[0]
        for layer, w in enumerate(filters):
            if w.shape[0] > dimension:
                raise ValueError(
                    f"ConvolutionalNetwork: filters[{layer}] must be no longer than the input "
                    f"dimension d = {dimension} (the last filter's length), got length "
                    f"{w.shape[0]}; shorten it, or lengthen the last filter."
                )
        dtype = jnp.result_type(*filters)
        self.filters = tuple(w.astype(dtype) for w in filters)

    @classmethod
    def zeros(cls, dimension: int, lengths: tuple[int, ...]) -> "ConvolutionalNetwork":
        """The zero network whose filters have the given lengths; the last must be `dimension`."""
        if not lengths or lengths[-1] != dimension:
            raise ValueError(
                f"lengths: the last filter must have length d = {dimension}, got {lengths}."
            )
        return cls(tuple(jnp.zeros(k) for k in lengths))

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of layers, which is the degree of homogeneity."""
        return len(self.filters)

    @property
    def dimension(self) -> int:
        """d, the length of an input."""
        return self.filters[-1].shape[-1]

    @property
    def is_full_length(self) -> bool:
        """Whether every filter has length d."""
        return all(w.shape[-1] == self.dimension for w in self.filters)

    def linear_coefficients(self) -> Float[Array, " d"]:
        """beta, shape (d,): the circular convolution of the filters."""
        return contractions.convolution(self.filters, self.dimension)[0]

    def coefficients_and_pullback(self):
        """beta, and g -> the leave-one-out correlations as a ConvolutionalNetwork."""
        beta, leave_one_out = contractions.convolution(self.filters, self.dimension)
        return beta, lambda g: eqx.tree_at(lambda n: n.filters, self, leave_one_out(g))

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, ""]:
        """The output for one input of shape (d,); eq. (4)."""
        if activation is None:
            return x @ self.linear_coefficients()
        dimension = self.dimension
        hidden = x
        for w in self.filters[:-1]:
            windows = jnp.add.outer(jnp.arange(dimension), jnp.arange(w.shape[0])) % dimension
            hidden = activation(hidden[windows] @ w)
        return hidden @ self.filters[-1]

    @property
    def factors(self) -> tuple[Float[Array, " k"], ...]:
        """The filters: what the data tensor is contracted with."""
        return self.filters

    def with_factors(self, factors) -> "ConvolutionalNetwork":
        """A network of the same shape with other factors: the inverse of `factors`."""
        return ConvolutionalNetwork(tuple(factors))

    def data_tensor(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """M(x)_{j_1 ... j_L} = x_{(j_1 + ... + j_L) mod d}, shape (k_1, ..., k_L)."""
        x = jnp.asarray(x)
        index = sum(jnp.ix_(*(jnp.arange(w.shape[0]) for w in self.filters)))
        return x[index % self.dimension]

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """S = d^{(L-1)/2} F and U_l = F^* with the unitary DFT F, for filters of full length.

        Source: Yun et al. 2021, Appendix D.3. Real for d <= 2 only. AssumptionFails if a filter is
        shorter than d.
        """
        if not self.is_full_length:
            return decomposition_of(self)
        fourier = jnp.fft.fft(jnp.eye(self.dimension, dtype=self.filters[0].dtype), norm="ortho")
        fourier = fourier.real if self.dimension <= 2 else fourier
        scale = self.dimension ** ((self.depth - 1) / 2)
        return OrthogonalDecomposition(scale * fourier, (fourier.conj(),) * self.depth)
