"""Induced regularisers: the least |Theta|^2 for given linear coefficients, and its minimiser.

Source: Gunasekar et al. 2018, eq. 15 and Lemmas 5 to 7.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ...arguments import as_numbers
from ...networks.base import Network
from ...networks.closed_forms import architectures_with, closed_form, described
from ...networks.pair import coefficients_like


def induced_regularizer(like: Any, beta: Float[ArrayLike, "..."]) -> Float[Array, ""]:
    """R(beta) = min |Theta|^2 subject to beta(Theta) = beta, for the architecture of `like`.

    Source: Gunasekar et al. 2018, Lemmas 5 to 7. With L layers it is

    - fully connected, one output: L |beta|_2^{2/L} (Lemma 5); several outputs, and matrix
      factorizations: L sum_k sigma_k^{2/L} of the singular values;
    - diagonal: L sum_j |beta_j|^{2/L} (Lemma 6); differential diagonal: sum_j |beta_j|^{2/L};
    - full-length convolution: (L/d) sum_k |DFT(beta)_k|^{2/L} with the unnormalised DFT (numpy's),
      which is L d^{1/L - 1} sum_k |(F beta)_k|^{2/L} with the unitary F. Erratum: Lemma 7 prints
      the factor L, which is correct for neither DFT.

    `minimal_network` attains the minimum.

    **Arguments**

    - `like`: a network of that architecture; the values of its parameters do not matter.
    - `beta`: has the shape of the linear coefficients of `like`.

    A network class of the user must have a method `induced_regularizer(beta)`.

    **Raises** ValueError for architectures without a known R, for coefficients of another shape,
    and for coefficients whose rank is larger than the narrowest hidden layer.
    """
    return _value_of_method(like, "induced_regularizer", beta)


def minimal_network(like: Network, beta: Float[ArrayLike, "..."]) -> Network:
    """The network of `like`'s architecture with these coefficients and the least |Theta|^2.

    Source: the proofs of Gunasekar et al. 2018, Lemmas 5 to 7: all layers are of equal modulus,
    and aligned. It is one of several minimisers (signs, rotations of the hidden units); this one
    has nonnegative components in all layers but the last (of a fully connected network: all but
    the first and the last).

    Arguments and errors are those of `induced_regularizer`; the method is `minimal_network(beta)`.
    """
    return _value_of_method(like, "minimal_network", beta)


def _value_of_method(like, owner, beta):
    """The value of the network's method that has the caller's name, `owner`."""
    checked = _coefficients(like, beta, owner) if hasattr(like, owner) else None
    value = closed_form(like, owner, checked)
    if value is None:
        raise ValueError(
            f"{owner}: like must have a method {owner}(beta) ({architectures_with(owner)} have "
            f"it), got {described(like)}; no closed form is known for others."
        )
    return value


def _coefficients(like, beta, owner):
    array = as_numbers(beta, "beta", owner)
    if jnp.iscomplexobj(array):
        raise ValueError(f"{owner}: beta must be real, got dtype {array.dtype}; pass its parts.")
    array = array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    shape = coefficients_like(like).shape
    if array.shape != shape:
        raise ValueError(
            f"{owner}: beta must have the shape {shape} of like's linear coefficients, got "
            f"{array.shape}; build `like` with that input dimension."
        )
    if isinstance(array, Tracer):
        return array
    if not np.isfinite(np.asarray(array)).all():
        raise ValueError(f"{owner}: beta must be finite; check the values it was built from.")
    width = closed_form(like, "largest_rank")
    if array.ndim == 2 and width is not None and width < min(shape):
        sizes = np.linalg.svd(np.asarray(array), compute_uv=False)
        rank = int(np.sum(sizes > max(shape) * np.finfo(array.dtype).eps * sizes[0]))
        if rank > width:
            raise ValueError(
                f"{owner}: beta must have a rank of at most {width}, the narrowest hidden layer of "
                f"like, got {rank}; widen the layers."
            )
    return array
