"""Circular convolutional networks with filters of any length."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..arguments import as_sequence, as_sizes
from ..eager_programs import eager_program
from . import contractions
from .base import AbstractNetwork, Activation, as_parameter, require_depth
from .conserved import gaps, gaps_of_squared_norms
from .decomposition import AssumptionFails, OrthogonalDecomposition, decomposition_of
from .mirror_coordinates import SLACK, AbstractMirrorCoordinates, coordinates_of_factors
from .starts import size_of_first_layers

# Rounding error of a discrete Fourier transform, in ulp of its largest modulus.
_ROUNDINGS = 8


class ConvolutionalNetwork(AbstractNetwork):
    """phi(... phi(phi(x * w_1) * w_2) ... * w_{L-1})^T w_L, with * circular.

    Source: Yun, Krishnan & Mobahi 2021, eq. (4) and (12): (a * b)_i = sum_j a_{(i+j) mod d} b_j,
    which is cross-correlation. Linear coefficients: the circular convolution of all filters, so
    that with numpy's DFT, DFT(beta) = prod_l DFT(w_l) (Gunasekar et al. 2018, Lemma 3).

    **Arguments**

    - `filters`: L >= 2 vectors. Filter l has shape (k_l,) with k_l <= d. The last filter has shape
      (d,), which fixes d. With all filters of length d it is the *full-length* network of the
      papers.
    """

    filters: tuple[Float[Array, " k"], ...]

    def __init__(self, filters):
        filters = tuple(
            as_parameter(w, f"filters[{layer}]", "ConvolutionalNetwork", ndim=1)
            for layer, w in enumerate(as_sequence(filters, "filters", "ConvolutionalNetwork"))
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
        lengths = as_sizes(lengths, "lengths", "ConvolutionalNetwork.zeros")
        if lengths[-1] != dimension:
            raise ValueError(
                f"ConvolutionalNetwork.zeros: the last of lengths must be dimension = {dimension}, "
                f"got lengths {lengths}."
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

        Source: Yun et al. 2021, Appendix D.3. It is real only for d <= 2. AssumptionFails if a
        filter is shorter than d.
        """
        if not self.is_full_length:
            return decomposition_of(self)
        fourier = jnp.fft.fft(jnp.eye(self.dimension, dtype=self.filters[0].dtype), norm="ortho")
        fourier = fourier.real if self.dimension <= 2 else fourier
        scale = self.dimension ** ((self.depth - 1) / 2)
        return OrthogonalDecomposition(scale * fourier, (fourier.conj(),) * self.depth)

    @property
    def kind(self) -> str:
        """The name of the network in error messages."""
        return "ConvolutionalNetwork" + ("" if self.is_full_length else " with short filters")

    def singular_components(self):
        """(inverse unitary DFT of the filters, S); None for short filters."""
        if not self.is_full_length:
            return None
        spectra = jnp.fft.ifft(jnp.stack(self.filters), norm="ortho")
        return spectra, self.orthogonal_decomposition().S

    def conserved_quantities(self) -> Float[Array, " q"]:
        """|F w_l|^2 - |F w_{l+1}|^2 at the d // 2 + 1 frequencies of a real signal.

        For short filters: |w_l|^2 - |w_{l+1}|^2, L - 1 numbers.
        """
        if not self.is_full_length:
            return gaps_of_squared_norms(self.filters)
        return gaps(contractions.squared_moduli(jnp.stack(self.filters)) / self.dimension)

    def first_directions(self) -> tuple[Float[Array, " k"], ...]:
        """Unit impulses in all filters but the last one."""
        return tuple(jnp.zeros_like(w).at[0].set(1) for w in self.filters[:-1])

    def identity_start(self) -> "ConvolutionalNetwork":
        """Unit impulses in all filters but the last, which is zero."""
        return ConvolutionalNetwork((*self.first_directions(), jnp.zeros_like(self.filters[-1])))

    def balanced_start(self, coefficients: Float[Array, " d"]) -> "ConvolutionalNetwork | None":
        """|DFT w_l| = |DFT beta|^(1/L); w_1 carries the phases. None for short filters."""
        if not self.is_full_length:
            return None
        spectrum = jnp.fft.rfft(coefficients)
        size = jnp.abs(spectrum) ** (1 / self.depth)
        phase = jnp.exp(1j * jnp.angle(spectrum))
        filters = [jnp.fft.irfft(w, n=self.dimension) for w in (phase * size, size)]
        return ConvolutionalNetwork((filters[0], *filters[1:] * (self.depth - 1)))

    def matching_start(
        self, coefficients: Float[Array, " d"], gap: Scalar
    ) -> "ConvolutionalNetwork | None":
        """|F w_l|^2 - |F w_L|^2 = gap, unitary DFT, w_l even (l < L); None for short filters.

        Source: Yun et al. 2021, Theorem 2.
        """
        if not self.is_full_length:
            return None
        first, last = _matching_filters(coefficients, self.depth, gap)
        return ConvolutionalNetwork((*[first] * (self.depth - 1), last))

    def induced_regularizer(self, beta: Float[Array, " d"]) -> Scalar | None:
        """(L/d) sum_k |DFT(beta)_k|^{2/L}, unnormalised DFT; None for short filters.

        Source: Gunasekar et al. 2018, Lemma 7, with the factor corrected (see the errata).
        """
        if not self.is_full_length:
            return None
        return self.depth / beta.size * jnp.sum(jnp.abs(jnp.fft.fft(beta)) ** (2 / self.depth))

    def minimal_network(self, beta: Float[Array, " d"]) -> "ConvolutionalNetwork | None":
        """Spectra of equal modulus; the last filter carries the phases. None for short filters."""
        if not self.is_full_length:
            return None
        spectrum = jnp.fft.rfft(beta)
        moduli = jnp.abs(spectrum)
        # Frequencies below the rounding error of the transform are set to 0: the L-th root of a
        # rounding error would not be small.
        dust = _ROUNDINGS * jnp.finfo(beta.dtype).eps * jnp.max(moduli)
        moduli = jnp.where(moduli > dust, moduli, 0)
        size = moduli ** (1 / self.depth)
        last = jnp.where(moduli > 0, spectrum / jnp.where(moduli > 0, moduli, 1) * size, 0)
        first, final = (jnp.fft.irfft(s, n=beta.size) for s in (size, last))
        return eqx.tree_at(lambda n: n.filters, self, (*(first,) * (self.depth - 1), final))

    def mirror_coordinates(self, problem: Any) -> AbstractMirrorCoordinates | None:
        """For even filters and even data (Yun et al. 2021, Corollary 6); None for short filters."""
        if not self.is_full_length:
            return None
        return coordinates_of_factors(self, _even_decomposition(self, problem))

    def largest_rank(self) -> int | None:
        """1, since beta can be any vector; None for short filters, which do not reach all."""
        return 1 if self.is_full_length else None


def _even_decomposition(network, problem):
    """The decomposition of Corollary 6 in an orthonormal basis of the even vectors; it is real.

    AssumptionFails if the samples or the filters are not even.
    """
    dimension = network.dimension
    reflected = (-np.arange(dimension)) % dimension
    X = np.asarray(problem.X)
    oddness = {"X": np.max(np.abs(X - X[:, reflected])) / max(np.max(np.abs(X)), 1e-300)}
    size = max(float(jnp.max(jnp.abs(w))) for w in network.filters)
    for layer, w in enumerate(network.filters):
        oddness[f"filters[{layer}]"] = float(jnp.max(jnp.abs(w - w[reflected]))) / max(size, 1e-300)
    name = max(oddness, key=lambda key: oddness[key])
    if oddness[name] > SLACK:
        raise AssumptionFails(
            f"evenness x_j = x_(d-j) of {name}",
            float(oddness[name]),
            "That is the odd part over the largest entry; a convolution has a real decomposition "
            "on even vectors only (Corollary 6). Use gradient_flow.",
        )
    frequencies = np.arange(dimension // 2 + 1)
    angles = 2 * np.pi * np.outer(np.arange(dimension), frequencies) / dimension
    basis = np.cos(angles)
    basis /= np.linalg.norm(basis, axis=0)
    # The DFT of a basis vector c_k at frequency k, sum_j c_k[j] cos(...), is 1 / (its largest
    # entry).
    gains = 1 / basis[0]
    dtype = network.filters[0].dtype
    E = jnp.asarray(basis, dtype)
    S = jnp.asarray(gains ** (network.depth - 1), dtype)[:, None] * E.T
    return OrthogonalDecomposition(S, (E,) * network.depth)


@eager_program()
def _matching_filters(coefficients, depth, gap):
    """The first filter, and the last one, of `ConvolutionalNetwork.matching_start`."""
    spectrum, dimension = jnp.fft.rfft(coefficients), coefficients.shape[0]
    # numpy's DFT is sqrt(d) times the unitary one, in which the gap is measured.
    size = size_of_first_layers(jnp.abs(spectrum), depth, dimension * gap)
    spectra = size, spectrum / size ** (depth - 1)
    return tuple(jnp.fft.irfft(w, n=dimension) for w in spectra)
