"""Multilinear contractions and all their leave-one-out forms, which take most of a flow's time.

Every network of the package is a data tensor M(x), linear in x, contracted with L factors
(Yun, Krishnan & Mobahi 2021, eq. 6). Every evaluation of the gradient needs two things:

* the linear coefficients beta, with  <x, beta> = M(x) o (v_1, ..., v_L);
* for a covector g of beta's shape, the L leave-one-out contractions
  M(g) o (v_1, ..., v_{l-1}, I, v_{l+1}, ..., v_L), which are d<g, beta>/dv_l (eq. 7).

Each function returns both: ``beta`` and a closure ``leave_one_out(g)``. With prefix and suffix
products the work is O(L) layers. For diagonal, convolutional and fully-connected networks no
k_1 x ... x k_L tensor is formed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

T = TypeVar("T")
LeaveOneOut = Callable[[Array], T]

# Up to this length circular correlations use an index table and spectra are sums; above it both use
# the FFT. On two CPU cores (benchmarks/contractions.py) one network with the table takes 0.2 to 0.5
# of the time with the FFT for d = 8 to 32. A batch of 64 takes 0.7 to 1.0 (d = 8) and 1.9 to 2.4
# (d = 16) of that time. The limit is chosen for batches.
DIRECT_CONVOLUTION_MAX_LENGTH = 12


def diagonal(
    weights: Float[Array, "L d"],
) -> tuple[Float[Array, " d"], LeaveOneOut[Float[Array, "L d"]]]:
    """The product of the rows, and the map from g to the rows ``g * prod_{k != l} w_k``."""
    beta, others = products_of_others(weights)
    return beta, lambda g: g[None, :] * others


def products_of_others(rows: Array) -> tuple[Array, Array]:
    """The product of all rows of (L, ...), and for each row the product of the others.

    It uses prefix and suffix products and no division, since a factor may be zero.
    """
    depth = rows.shape[0]
    prefix = [jnp.ones_like(rows[0])]
    for layer in range(depth - 1):
        prefix.append(prefix[-1] * rows[layer])
    suffix = [jnp.ones_like(rows[0])]
    for layer in range(depth - 1, 0, -1):
        suffix.append(suffix[-1] * rows[layer])
    suffix.reverse()
    others = jnp.stack([before * after for before, after in zip(prefix, suffix, strict=True)])
    return prefix[-1] * rows[-1], others


def convolution(
    filters: Sequence[Float[Array, " k"]], length: int
) -> tuple[Float[Array, " d"], LeaveOneOut[tuple[Float[Array, " k"], ...]]]:
    """Circular convolution of all filters on Z/length, and its leave-one-out correlations.

    beta_k sums w_1[j_1] ... w_L[j_L] over j_1 + ... + j_L = k (mod length); a filter shorter than
    ``length`` is padded with zeros.
    """
    if length > DIRECT_CONVOLUTION_MAX_LENGTH:
        return _convolution_by_fft(filters, length)
    return _convolution_direct(filters, length)


def squared_moduli(rows: Float[Array, "L d"]) -> Float[Array, "L k"]:
    """|DFT|^2 of real rows at the k = d // 2 + 1 frequencies of a real signal, unnormalised DFT."""
    length = rows.shape[1]
    if length > DIRECT_CONVOLUTION_MAX_LENGTH:
        spectra = jnp.fft.rfft(rows)
        return spectra.real**2 + spectra.imag**2
    turns = np.outer(np.arange(length), np.arange(length // 2 + 1)) % length
    angles = 2 * np.pi * turns / length
    sines = np.where(2 * turns % length == 0, 0.0, np.sin(angles))  # exact where they are zero
    # Sums of entries and not a product: equal rows must have equal results, to the bit.

    def weighted(weights):
        weights = jnp.asarray(weights, rows.dtype)
        terms = [rows[:, j, None] * weights[j : j + 1] for j in range(length)]
        return functools.reduce(jnp.add, terms)

    real, imaginary = weighted(np.cos(angles)), weighted(sines)
    return real**2 + imaginary**2


def _convolution_by_fft(filters, length):
    spectra = jnp.stack([jnp.fft.rfft(w, n=length) for w in filters])
    product, others = products_of_others(spectra)

    def leave_one_out(g):
        correlations = jnp.fft.irfft(jnp.fft.rfft(g)[None, :] * jnp.conj(others), n=length)
        return tuple(c[: w.shape[0]] for c, w in zip(correlations, filters, strict=True))

    return jnp.fft.irfft(product, n=length), leave_one_out


def _convolution_direct(filters, length):
    depth = len(filters)
    # suffix[l] = w_{l+1} * ... * w_L. The chain starts with the last filter, which has length d.
    suffix = [_padded(filters[-1], length)]
    for w in reversed(filters[:-1]):
        suffix.append(_convolve(suffix[-1], w))
    beta = suffix.pop()
    suffix.reverse()

    def leave_one_out(g):
        gradients = []
        remaining = g
        for layer, w in enumerate(filters):
            if layer < depth - 1:
                gradients.append(_correlate(remaining, suffix[layer], w.shape[0]))
                remaining = _correlate(remaining, w, length)
            else:
                gradients.append(remaining[: w.shape[0]])
        return tuple(gradients)

    return beta, leave_one_out


def _padded(filter_, length):
    return jnp.pad(filter_, (0, length - filter_.shape[0]))


def _convolve(signal, filter_):
    """sum_j signal[(i - j) mod d] filter_[j]."""
    return _gather(signal, _shifts(signal, filter_, -1)) @ filter_


def _correlate(signal, filter_, num_out):
    """sum_j signal[(i + j) mod d] filter_[j] for i < num_out: Yun et al.'s star product."""
    return _gather(signal, _shifts(signal, filter_, 1)[:num_out]) @ filter_


def _gather(signal, places):
    return jnp.asarray(signal).at[places].get(mode="promise_in_bounds")


def _shifts(signal, filter_, sign):
    length = signal.shape[0]
    return (
        np.arange(length, dtype=np.int32)[:, None]
        + sign * np.arange(filter_.shape[0], dtype=np.int32)[None, :]
    ) % length


def matrix_chain(
    weights: Sequence[Array],
) -> tuple[Array, LeaveOneOut[tuple[Array, ...]]]:
    """W_1 W_2 ... W_L and, for G, the products (W_1 ... W_{l-1})^T G (W_{l+1} ... W_L)^T.

    The chain is multiplied from the right. If the last factor is a vector (or a thin matrix), every
    product is a matrix times a vector.
    """
    suffix = [weights[-1]]
    for w in reversed(weights[:-1]):
        # For a vector, XLA:CPU copies the matrix and the vector before it computes w @ v. It does
        # not before v @ w.T: a flow with 32 x 32 matrices takes 0.7 of the time.
        suffix.append(w @ suffix[-1] if suffix[-1].ndim == 2 else suffix[-1] @ w.T)
    beta = suffix.pop()
    suffix.reverse()

    def leave_one_out(g):
        gradients = []
        pulled = g
        for w, after in zip(weights[:-1], suffix, strict=True):
            gradients.append(pulled @ after.T if pulled.ndim == 2 else jnp.outer(pulled, after))
            pulled = w.T @ pulled
        gradients.append(pulled)
        return tuple(gradients)

    return beta, leave_one_out


def data_tensor_network(
    tensor: Float[Array, "... d"], factors: Sequence[Float[Array, " k"]]
) -> tuple[Float[Array, " d"], LeaveOneOut[tuple[Float[Array, " k"], ...]]]:
    """Contraction of an arbitrary data tensor (k_1, ..., k_L, d) with L factors.

    The axes are split into two halves, so that the tensor is a matrix. This matrix is multiplied
    from each side by the outer product of the vectors of that half (g belongs to the second half).
    Each product is a small tensor, from which all results for the other half are computed. The
    tensor is read twice instead of L + 1 times. In a batch of networks, no intermediate array has
    a size close to that of the tensor.
    """
    half = (len(factors) + 1) // 2
    left, right = factors[:half], factors[half:]
    outer = _outer(left)
    matrix = tensor.reshape(outer.size, -1)
    beta, of_right = _sequential_contraction((outer @ matrix).reshape(tensor.shape[half:]), right)

    def leave_one_out(g):
        kept = (matrix @ _outer((*right, g))).reshape(tensor.shape[:half])
        _, of_left = _sequential_contraction(kept[..., None], left)
        return (*of_left(jnp.ones_like(g[:1])), *of_right(g))

    return beta, leave_one_out


def _sequential_contraction(tensor, factors):
    """The same contraction, one factor after the other; intermediate tensors are kept."""
    before = [tensor]
    for factor in factors:
        before.append(jnp.tensordot(factor, before[-1], axes=1))
    beta = before.pop()

    def leave_one_out(g):
        gradients, following = [], g
        for factor, partial in zip(reversed(factors), reversed(before), strict=True):
            gradients.append(partial.reshape(factor.size, -1) @ following)
            following = _outer((factor, following))
        return tuple(reversed(gradients))

    return beta, leave_one_out


def _outer(vectors):
    """All products of entries, as a vector; the index of the last vector changes fastest."""
    return functools.reduce(lambda a, b: jnp.outer(a, b).reshape(-1), vectors)


def contract(
    tensor: Float[Array, "..."],
    factors: Sequence[Float[Array, " k"]],
    activation: Callable[[Array], Array] | None = None,
) -> Float[Array, "..."]:
    """The tensor form of a network's forward pass, as in Yun et al. 2021, eq. (2).

    **Arguments**

    - `tensor`: a data tensor M(x), shape (k_1, ..., k_L) or (k_1, ..., k_L, m) for m outputs.
    - `factors`: v_1, ..., v_L with v_l of shape (k_l,).
    - `activation`: applied after every contraction but the last; `None` is the linear network.

    **Returns** a scalar, or shape (m,) for m outputs. Tests compare the forward pass of each
    architecture with it.
    """
    hidden = tensor
    for layer, factor in enumerate(factors):
        hidden = jnp.tensordot(factor, hidden, axes=1)
        if activation is not None and layer < len(factors) - 1:
            hidden = activation(hidden)
    return hidden
