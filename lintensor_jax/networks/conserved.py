"""What gradient flow conserves, whatever the loss and the data.

In a multilinear network <v_l, dv_l/dt> = -<g, beta> is the same for every layer l, so that the
differences of squared norms never change (Yun et al. 2021, eq. 6-7; Du et al. 2018). A network with
more symmetry has more conserved quantities. A method of the network computes them.
"""

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import require_network
from .closed_forms import closed_form


def conserved_quantities(network: eqx.Module) -> Float[Array, " q"]:
    """The conserved quantities as one vector, in units of squared parameters.

    For neighbouring layers l and l + 1:

    * diagonal: w_l^2 - w_{l+1}^2 for every coordinate, (L-1) d numbers;
    * convolution, all filters of full length: |F w_l|^2 - |F w_{l+1}|^2 with the unitary DFT F, for
      the d // 2 + 1 frequencies of a real signal (Yun et al. 2021, proof of Theorem 2);
    * convolution with short filters, and tensor networks: |v_l|^2 - |v_{l+1}|^2, L-1 numbers;
    * fully-connected: all entries of W_l^T W_l - W_{l+1} W_{l+1}^T, the last vector as a column
      (Ji & Telgarsky 2019; Arora et al. 2018); matrix factorizations likewise;
    * orthogonally decomposable: |U_l^T v_l|^2 - |U_{l+1}^T v_{l+1}|^2 for every column, (L-1) m
      numbers (Yun et al. 2021, proof of Theorem 2);
    * any other network: what its method `conserved_quantities()` returns, if it has one. Without
      it nothing is known, and the result has shape (0,).

    Traceable by `jax.jit` and `jax.vmap`.
    """
    require_network(network, "network", "conserved_quantities")
    known = closed_form(network, "conserved_quantities")
    return jnp.zeros(0) if known is None else jnp.ravel(known)


def gaps(layers: Float[Array, "L ..."]) -> Float[Array, " q"]:
    """Rows l minus rows l + 1, as one vector."""
    return jnp.ravel(_difference(layers[:-1], layers[1:]))


def gaps_of_squares(layers: Float[Array, "L ..."]) -> Float[Array, " q"]:
    """Squares of rows l minus those of rows l + 1, as one vector; exactly zero for equal rows.

    a^2 - b^2 is not exactly zero for a = b: with a fused multiply-add, compiled code rounds only
    one of the two squares. So the product (a - b) (a + b) is used.
    """
    return jnp.ravel((layers[:-1] - layers[1:]) * (layers[:-1] + layers[1:]))


def gaps_of_squared_norms(factors: Sequence[Float[Array, " k"]]) -> Float[Array, " q"]:
    """|v_l|^2 - |v_{l+1}|^2, L - 1 numbers."""
    return gaps(jnp.stack([v @ v for v in factors]))


def gaps_of_gram_matrices(weights: Sequence[Array]) -> Float[Array, " q"]:
    """All entries of W_l^T W_l - W_{l+1} W_{l+1}^T, the last vector as a column."""
    *hidden, last = weights
    columns = [*hidden, last.reshape(last.shape[0], -1)]
    differences = [_difference(a.T @ a, b @ b.T) for a, b in itertools.pairwise(columns)]
    return jnp.concatenate([jnp.ravel(difference) for difference in differences])


def _difference(a: Array, b: Array) -> Array:
    """a - b, exactly zero where a = b, also for products a and b in compiled code.

    A fused multiply-add subtracts a rounded product from one that is not rounded: for a = b the
    difference would be a rounding error. The derivative is that of a - b, also where a = b.
    """
    found = a - b
    return found - jax.lax.stop_gradient(jnp.where(a == b, found, 0.0))
