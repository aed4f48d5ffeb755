"""Fully-connected linear networks, with one output or several."""

import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import contractions
from .base import (
    AbstractNetwork,
    Activation,
    as_parameter,
    require_depth,
    require_vanishing_activation,
)
from .decomposition import OrthogonalDecomposition, decomposition_of


class FullyConnectedNetwork(AbstractNetwork):
    """phi(... phi(phi(x^T W_1) W_2) ... W_{L-1}) W_L.

    Source: Yun, Krishnan & Mobahi 2021, eq. (5) and (10). Linear coefficients W_1 W_2 ... W_L.

    **Arguments**

    - `weights`: L >= 2 arrays, W_1 of shape (d, d_2), W_l of shape (d_l, d_{l+1}); the last has
      shape (d_L,) for a scalar output, or (d_L, m) for m outputs.
    """

    weights: tuple[Array, ...]

    def __init__(self, weights):
        weights = tuple(weights)
        require_depth(len(weights), "FullyConnectedNetwork")
        hidden = [
            as_parameter(w, f"weights[{layer}]", "FullyConnectedNetwork", ndim=2)
            for layer, w in enumerate(weights[:-1])
        ]
        last_ndim = 2 if np.ndim(weights[-1]) == 2 else 1
        name = f"weights[{len(weights) - 1}]"
        hidden.append(as_parameter(weights[-1], name, "FullyConnectedNetwork", ndim=last_ndim))
        for layer, (before, after) in enumerate(itertools.pairwise(hidden)):
            if before.shape[1] != after.shape[0]:
                raise ValueError(
                    f"FullyConnectedNetwork: weights[{layer}] has {before.shape[1]} columns but "
                    f"weights[{layer + 1}] has {after.shape[0]} rows; the widths of neighbouring "
                    "layers must agree."
                )
        dtype = jnp.result_type(*hidden)
        self.weights = tuple(w.astype(dtype) for w in hidden)

    @classmethod
    def zeros(cls, widths: tuple[int, ...], outputs: int | None = None) -> "FullyConnectedNetwork":
        """The zero network with layer inputs `widths` = (d, d_2, ..., d_L).

        `outputs=None` is a scalar output, a number m a vector output of shape (m,).
        """
        hidden = [jnp.zeros(shape) for shape in itertools.pairwise(widths)]
        last = jnp.zeros(widths[-1] if outputs is None else (widths[-1], outputs))
        return cls((*hidden, last))

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of layers, which is the degree of homogeneity."""
        return len(self.weights)

    @property
    def has_scalar_output(self) -> bool:
        """Whether the last layer is a vector."""
        return self.weights[-1].ndim == 1

    def linear_coefficients(self) -> Float[Array, "..."]:
        """beta = W_1 ... W_L: shape (d,), or (d, m) for m outputs."""
        return contractions.matrix_chain(self.weights)[0]

    def coefficients_and_pullback(self):
        """beta, and G -> (W_1..W_{l-1})^T G (W_{l+1}..W_L)^T as a FullyConnectedNetwork."""
        beta, leave_one_out = contractions.matrix_chain(self.weights)
        return beta, lambda g: eqx.tree_at(lambda n: n.weights, self, leave_one_out(g))

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, "..."]:
        """The output for one input of shape (d,): a scalar, or (m,); eq. (5)."""
        if activation is None:
            return x @ self.linear_coefficients()
        outputs = 1 if self.has_scalar_output else self.weights[-1].shape[1]
        require_vanishing_activation(activation, self.depth, "FullyConnectedNetwork", outputs)
        hidden = x
        for w in self.weights[:-1]:
            hidden = activation(hidden @ w)
        return hidden @ self.weights[-1]

    @property
    def factors(self) -> tuple[Float[Array, " k"], ...]:
        """(vec W_1, ..., vec W_L), columns stacked as in the paper."""
        return tuple(w.T.ravel() for w in self.weights)

    def with_factors(self, factors) -> "FullyConnectedNetwork":
        """A network of the same shape with other factors: the inverse of `factors`."""
        return FullyConnectedNetwork(
            tuple(v.reshape(w.shape[::-1]).T for v, w in zip(factors, self.weights, strict=True))
        )

    def data_tensor(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """M(x) of Yun et al. 2021, Appendix B: shape (k_1, ..., k_L) with k_l the size of W_l.

        At L = 2 it is the Kronecker product of the identity and x. With m outputs a last axis of
        length m is added, so that the contraction with all factors has shape (m,).
        """
        # Entry [(a_1,b_1), (a_2,b_2), ...] = x[a_1] [b_1 = a_2] [b_2 = a_3] ...; a column-stacked
        # index (a, b) is the C-ordered pair (b, a).
        tensor = jnp.asarray(x)[None, :]
        for layer, w in enumerate(self.weights):
            rows = w.shape[0]
            columns = 1 if w.ndim == 1 else w.shape[1]
            eye_out = jnp.eye(columns, dtype=tensor.dtype)
            if layer == 0:
                # axes: (b_1, a_1, next = b_1)
                tensor = jnp.einsum("bc,ga->bac", eye_out, tensor).reshape(columns * rows, columns)
                continue
            leading = tensor.shape[:-1]
            tensor = jnp.einsum("...a,bc->...bac", tensor, eye_out)
            tensor = tensor.reshape((*leading, columns * rows, columns))
        return tensor[..., 0] if self.has_scalar_output else tensor

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """By the numerical test of `decompose_tensor`: AssumptionFails, but for d = 1."""
        return decomposition_of(self)
