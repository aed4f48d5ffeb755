"""Measures of implicit bias, for figures: effective rank, sparsity, the tangent kernel."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from ..messages import in_words
from .base import split


def effective_rank(network_or_coefficients: Any) -> Scalar:
    """exp of the entropy of the normalised singular values of beta, between 1 and the rank.

    p_k = sigma_k / sum_j sigma_j, and the result is exp(-sum_k p_k log p_k); 0 for beta = 0. It
    changes continuously when the rank jumps. Source: Roy & Vetterli 2007; used by Arora et al.
    2019.

    **Arguments**

    - `network_or_coefficients`: a network, or beta of shape (d, m); a vector has one column.

    Traceable by `jax.jit` and `jax.vmap`.
    """
    beta = _coefficients(network_or_coefficients, "effective_rank")
    sizes = jnp.linalg.svd(beta.reshape(beta.shape[0], -1), compute_uv=False)
    total = jnp.sum(sizes)
    shares = sizes / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)


def num_nonzero(network_or_coefficients: Any, tolerance: float = 1e-3) -> Int[Array, ""]:
    """The number of entries of beta that are larger in size than `tolerance` times the largest.

    After a flow from a positive scale no coefficient is exactly zero: the tolerance decides which
    coefficients count as zero.

    **Arguments**

    - `network_or_coefficients`: a network, or beta of any shape.
    - `tolerance`: relative to the largest entry, in [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(
            f"num_nonzero: tolerance must lie in [0, 1), got {in_words(tolerance)}; it is relative "
            "to the largest coefficient, try 1e-3."
        )
    size = jnp.abs(_coefficients(network_or_coefficients, "num_nonzero"))
    return jnp.sum(size > tolerance * jnp.max(size))


def tangent_kernel(network: Any, problem: Any) -> Float[Array, "n n"]:
    """K = J J^T, J the derivative of the predictions by the parameters. For small cases.

    For m outputs the n m predictions are one vector, sample by sample: K has shape (n m, n m).
    Source: Jacot et al. 2018.
    """
    parameters, rest = split(network)

    def predictions(parameters):
        return jnp.ravel(problem.predictions(eqx.combine(parameters, rest).linear_coefficients()))

    jacobian = jax.jacrev(predictions)(parameters)
    rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jacobian)]
    matrix = jnp.concatenate(rows, axis=1)
    return matrix @ matrix.T


def kernel_alignment(first: Float[Array, "n n"], second: Float[Array, "n n"]) -> Scalar:
    """<A, B> / (|A| |B|) of two kernels, with Frobenius norms; 0 if one of the kernels is zero.

    Source: Cristianini et al. 2001. With B = y y^T it is the alignment with the targets.
    """

    def unit(kernel):
        largest = jnp.max(jnp.abs(kernel))
        scaled = kernel / jnp.where(largest > 0, largest, 1.0)
        return scaled / jnp.where(largest > 0, jnp.linalg.norm(scaled), 1.0)

    return jnp.sum(unit(first) * unit(second))


def _coefficients(value: Any, owner: str) -> Array:
    beta = value.linear_coefficients() if hasattr(value, "linear_coefficients") else value
    beta = jnp.asarray(beta)
    if beta.ndim == 0 or beta.size == 0:
        raise ValueError(
            f"{owner}: network_or_coefficients must be a network or an array of coefficients, got "
            f"{in_words(value)}."
        )
    return beta
