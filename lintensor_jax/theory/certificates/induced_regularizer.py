"""Induced regularisers: the least |Theta|^2 that gives linear coefficients, and who attains it.

Source: Gunasekar et al. 2018, eq. 15 and Lemmas 5 to 7.
"""

from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ...networks import (
    ConvolutionalNetwork,
    DiagonalNetwork,
    DifferentialDiagonalNetwork,
    FullyConnectedNetwork,
    MatrixFactorizationNetwork,
)

# Of a discrete Fourier transform, in units of the largest modulus's last place.
_ROUNDINGS = 8

Network = TypeVar("Network", bound=eqx.Module)


def induced_regularizer(like: Any, beta: Float[ArrayLike, "..."]) -> Float[Array, ""]:
    """R(beta) = min |Theta|^2 subject to beta(Theta) = beta, for the architecture of `like`.

    Source: Gunasekar et al. 2018, Lemmas 5 to 7. With L layers it is

    - fully connected, one output: L |beta|_2^{2/L} (Lemma 5); several outputs, and matrix
      factorizations: L sum_k sigma_k^{2/L} of the singular values;
    - diagonal: L sum_j |beta_j|^{2/L} (Lemma 6); differential diagonal: sum_j |beta_j|^{2/L};
    - full-length convolution: (L/d) sum_k |DFT(beta)_k|^{2/L} with the unnormalised DFT (numpy's),
      which is L d^{1/L - 1} sum_k |(F beta)_k|^{2/L} with the unitary F. Erratum: Lemma 7 prints
      the factor L, which is right for neither.

    `minimal_network` attains it.

    **Arguments**

    - `like`: a network of that architecture; its parameters' values do not matter.
    - `beta`: of the shape of its linear coefficients.

    **Raises** ValueError for other architectures, for coefficients of another shape, and for those
    whose rank is larger than the narrowest hidden layer.
    """
    beta = _coefficients(like, beta, "induced_regularizer")
    depth = like.depth
    match like:
        case DiagonalNetwork():
            return depth * jnp.sum(jnp.abs(beta) ** (2 / depth))
        case DifferentialDiagonalNetwork():
            return jnp.sum(jnp.abs(beta) ** (2 / depth))
        case ConvolutionalNetwork():
            return depth / beta.size * jnp.sum(jnp.abs(jnp.fft.fft(beta)) ** (2 / depth))
    sizes = jnp.linalg.svd(beta.reshape(beta.shape[0], -1), compute_uv=False)
    return depth * jnp.sum(sizes ** (2 / depth))


def minimal_network(like: Network, beta: Float[ArrayLike, "..."]) -> Network:
    """The network of `like`'s architecture with these coefficients and the least |Theta|^2.

    Source: the proofs of Gunasekar et al. 2018, Lemmas 5 to 7: all layers are of equal modulus,
    and aligned. It is one of several minimisers (signs, rotations of the hidden units); this one
    has nonnegative components in all layers but the last (of a fully connected network: all but
    the first and the last).

    Arguments and errors are those of `induced_regularizer`.
    """
    beta = _coefficients(like, beta, "minimal_network")
    depth = like.depth  # pyright: ignore[reportAttributeAccessIssue]
    match like:
        case DiagonalNetwork():
            size = jnp.abs(beta) ** (1 / depth)
            weights = jnp.concatenate(
                [jnp.tile(size, (depth - 1, 1)), (jnp.sign(beta) * size)[None]]
            )
            return _with(like, lambda n: n.weights, weights)
        case DifferentialDiagonalNetwork():
            parts = (jnp.maximum(sign * beta, 0) ** (1 / depth) for sign in (1, -1))
            return _with(like, lambda n: (n.positive, n.negative), tuple(parts))
        case ConvolutionalNetwork():
            spectrum = jnp.fft.rfft(beta)
            moduli = jnp.abs(spectrum)
            # Dust of the transform is no frequency, and its root would be far from dust.
            dust = _ROUNDINGS * jnp.finfo(beta.dtype).eps * jnp.max(moduli)
            moduli = jnp.where(moduli > dust, moduli, 0)
            size = moduli ** (1 / depth)
            last = jnp.where(moduli > 0, spectrum / jnp.where(moduli > 0, moduli, 1) * size, 0)
            first, final = (jnp.fft.irfft(s, n=beta.size) for s in (size, last))
            return _with(like, lambda n: n.filters, (*(first,) * (depth - 1), final))
    left, sizes, right = jnp.linalg.svd(beta.reshape(beta.shape[0], -1), full_matrices=False)
    root = sizes ** (1 / depth)
    shapes = [w.shape for w in like.weights]  # pyright: ignore[reportAttributeAccessIssue]
    cores = [left * root[None, :], *(jnp.diag(root),) * (depth - 2), root[:, None] * right]
    layers = tuple(
        _fitted(core, (*shape, 1)[:2]).reshape(shape)
        for core, shape in zip(cores, shapes, strict=True)
    )
    return _with(like, lambda n: n.weights, layers)


def _with(like, where, value):
    return eqx.tree_at(where, like, value)


def _fitted(matrix, shape):
    """Cut or padded with zeros to the shape: what is cut is beyond the rank."""
    rows, columns = shape
    matrix = matrix[:rows, :columns]
    return jnp.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def _coefficients(like, beta, owner):
    is_short = isinstance(like, ConvolutionalNetwork) and not like.is_full_length
    known = (
        DiagonalNetwork,
        DifferentialDiagonalNetwork,
        ConvolutionalNetwork,
        FullyConnectedNetwork,
        MatrixFactorizationNetwork,
    )
    if is_short or not isinstance(like, known):
        kind = type(like).__name__ + (" with short filters" if is_short else "")
        raise ValueError(
            f"{owner}: like must be a fully connected, diagonal, differential or full-length "
            f"convolutional network or a matrix factorization, got {kind}; no closed form is known "
            "for others."
        )
    array = jnp.asarray(beta)
    array = array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    shape = eqx.filter_eval_shape(type(like).linear_coefficients, like).shape
    if array.shape != shape:
        raise ValueError(
            f"{owner}: beta must have the shape {shape} of like's linear coefficients, got "
            f"{array.shape}; build `like` with that input dimension."
        )
    if isinstance(array, Tracer):
        return array
    if not np.isfinite(np.asarray(array)).all():
        raise ValueError(f"{owner}: beta must be finite; check the values it was built from.")
    if array.ndim == 2 and isinstance(like, FullyConnectedNetwork):
        width = min(w.shape[0] for w in like.weights[1:])
        sizes = np.linalg.svd(np.asarray(array), compute_uv=False)
        rank = int(np.sum(sizes > max(shape) * np.finfo(array.dtype).eps * sizes[0]))
        if rank > width:
            raise ValueError(
                f"{owner}: beta must have a rank of at most {width}, the narrowest hidden layer of "
                f"like, got {rank}; widen the layers."
            )
    return array
