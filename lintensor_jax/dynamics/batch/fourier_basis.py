"""Full-length convolutions in the real orthonormal DFT basis.

An orthogonal change of variables maps a gradient flow to a gradient flow. With w = R^T w' for every
filter and X' = X R^T, a convolution becomes one complex product for every frequency. This takes
little longer than a diagonal network. With three filters of length 32 it takes a third of the FFT's
time (`benchmarks/batched.py --uneven`).

Source: Yun, Krishnan & Mobahi 2021, Appendix D.3; Gunasekar et al. 2018, Lemma 3.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...networks import AbstractNetwork, ConvolutionalNetwork
from ...networks.contractions import products_of_others
from ...problems import Classification, Regression
from ..system import System

_PROBLEMS = (Regression, Classification)


class SpectralConvolution(AbstractNetwork):
    """A full-length convolution whose parameters are the spectra of its filters.

    - `edges`: shape (L, 1) or (L, 2), the real entries: frequency 0, and d/2 for even d.
    - `pairs`: shape (2, L, m), the real and imaginary parts at the frequencies 1, ..., m between
      them, times sqrt(2).

    Its linear coefficients are the same entries of the spectrum of beta, edges first.
    """

    edges: Float[Array, "L e"]
    pairs: Float[Array, "2 L m"]

    def __init__(self, edges, pairs):
        self.edges, self.pairs = edges, pairs

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of layers L."""
        return self.edges.shape[0]

    def linear_coefficients(self) -> Float[Array, " d"]:
        """beta in the basis, shape (d,)."""
        return self.coefficients_and_pullback()[0]

    def coefficients_and_pullback(self):
        """beta, and the map from g to (d beta/d parameters)^T g, as a SpectralConvolution."""
        depth, count = self.edges.shape[0], self.edges.shape[1] + 2 * self.pairs.shape[2]
        # F beta = d^((L-1)/2) prod_l F w_l; a pair holds sqrt(2) times its complex number.
        at_edges, at_pairs = count ** ((depth - 1) / 2), (count / 2) ** ((depth - 1) / 2)
        real, others = products_of_others(self.edges)
        (re, im), (others_re, others_im) = _complex_products(*self.pairs)
        beta = jnp.concatenate([at_edges * real, at_pairs * re, at_pairs * im])
        edge, pair = self.edges.shape[1], self.pairs.shape[2]

        def pull(g):
            g_re = at_pairs * g[None, edge : edge + pair]
            g_im = at_pairs * g[None, edge + pair :]
            pairs = jnp.stack(
                [others_re * g_re + others_im * g_im, others_re * g_im - others_im * g_re]
            )
            return SpectralConvolution(at_edges * g[None, :edge] * others, pairs)

        return beta, pull

    def coupled_groups(self) -> "SpectralConvolution":
        """A group for each frequency: its L real, or 2 L, numbers."""
        depth, edge = self.edges.shape
        edges = np.broadcast_to(-1 - np.arange(edge), (depth, edge))
        pairs = np.broadcast_to(np.arange(self.pairs.shape[2]), self.pairs.shape)
        return SpectralConvolution(edges, pairs)


def _complex_products(re, im):
    """The product of all rows of (L, m), and the products of all others, as (real, imaginary)."""
    depth = re.shape[0]

    def times(a: Any, b: Any) -> Any:
        if a is None or b is None:  # None is 1; XLA does not drop products with imaginary part 0
            return b if a is None else a
        return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]

    rows = [(re[layer], im[layer]) for layer in range(depth)]
    prefix: list[Any] = [None]
    suffix: list[Any] = [None]
    for layer in range(depth - 1):
        prefix.append(times(prefix[-1], rows[layer]))
        suffix.append(times(suffix[-1], rows[depth - 1 - layer]))
    others = [times(a, b) for a, b in zip(prefix, reversed(suffix), strict=True)]
    if depth == 1:
        others = [(jnp.ones_like(re[0]), jnp.zeros_like(im[0]))]
    parts = zip(*others, strict=True)
    return times(prefix[-1], rows[-1]), tuple(jnp.stack(part) for part in parts)


class Spectral(eqx.Module):
    """The change of basis and its inverse, for parameters of L filters of length d."""

    depth: int = eqx.field(static=True)
    dimension: int = eqx.field(static=True)

    @staticmethod
    def of(network: Any, problem: Any) -> "Spectral | None":
        """The basis for a full-length convolution with d > 2 and data in rows; None otherwise."""
        fits = isinstance(network, ConvolutionalNetwork) and network.is_full_length
        if not fits or network.dimension <= 2 or not isinstance(problem, _PROBLEMS):
            return None
        if problem.X.shape[-1] != network.dimension:
            return None  # `check_pair` raises the error
        return Spectral(network.depth, network.dimension)

    @property
    def _num_edges(self) -> int:
        return 2 - self.dimension % 2

    def _basis(self) -> Float[np.ndarray, "d d"]:
        """Orthonormal rows (d, d): frequency 0 (and d/2), cosines, sines."""
        d = self.dimension
        j = np.arange(d)
        inner = np.arange(1, (d + 1) // 2)[:, None]
        # Multiples of 2 pi are subtracted in integers, so that large angles have no rounding.
        angles = 2 * np.pi * (inner * j % d) / d
        edges = [np.ones(d), (-1.0) ** j][: self._num_edges]
        rows = [np.stack(edges), np.sqrt(2) * np.cos(angles), -np.sqrt(2) * np.sin(angles)]
        return np.concatenate(rows) / np.sqrt(d)

    def system(self, problem: Any) -> System:
        """The system in the basis, for a `problem` in the basis."""
        inner = (self.dimension - self._num_edges) // 2
        dtype = problem.X.dtype
        edges = np.zeros((self.depth, self._num_edges), dtype)
        pairs = np.zeros((2, self.depth, inner), dtype)
        return System.of(SpectralConvolution(edges, pairs), problem)

    @eqx.filter_jit
    def problem(self, problem: Any) -> Any:
        """The problem with its data in the basis."""
        rows = problem.X @ jnp.asarray(self._basis().T, problem.X.dtype)
        return eqx.tree_at(lambda p: p.X, problem, rows)

    @eqx.filter_jit
    def into(self, thetas: Float[Array, "N p"]) -> Float[Array, "N p"]:
        """Parameters of a ConvolutionalNetwork as those of a SpectralConvolution."""
        count, edge = thetas.shape[0], self._num_edges
        filters = thetas.reshape(count, self.depth, self.dimension)
        spectra = filters @ jnp.asarray(self._basis().T, thetas.dtype)
        pairs = spectra[..., edge:].reshape(count, self.depth, 2, -1).swapaxes(1, 2)
        parts = spectra[..., :edge].reshape(count, -1), pairs.reshape(count, -1)
        return jnp.concatenate(parts, axis=1)

    def back(self, thetas: Float[Any, "N p"]) -> Float[Any, "N p"]:
        """The inverse of `into`, computed by NumPy for arrays of NumPy."""
        np_or_jnp: Any = np if isinstance(thetas, np.ndarray) else jnp
        count, split = thetas.shape[0], self.depth * self._num_edges
        edges = thetas[:, :split].reshape(count, self.depth, -1)
        pairs = thetas[:, split:].reshape(count, 2, self.depth, -1).swapaxes(1, 2)
        spectra = np_or_jnp.concatenate([edges, pairs.reshape(count, self.depth, -1)], axis=2)
        return (spectra @ self._basis().astype(thetas.dtype)).reshape(count, -1)
