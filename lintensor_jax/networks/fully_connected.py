"""Fully-connected linear networks, with one output or several."""

import functools
import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ..arguments import as_numbers, as_sequence, as_shape, as_sizes
from ..eager_programs import eager_program
from . import contractions
from .base import (
    AbstractNetwork,
    Activation,
    as_parameter,
    require_depth,
    require_vanishing_activation,
)
from .conserved import gaps_of_gram_matrices
from .decomposition import OrthogonalDecomposition, decomposition_of
from .starts import size_of_first_layers


class FullyConnectedNetwork(AbstractNetwork):
    """phi(... phi(phi(x^T W_1) W_2) ... W_{L-1}) W_L.

    Source: Yun, Krishnan & Mobahi 2021, eq. (5) and (10). Linear coefficients W_1 W_2 ... W_L.

    **Arguments**

    - `weights`: L >= 2 arrays, W_1 of shape (d, d_2), W_l of shape (d_l, d_{l+1}); the last has
      shape (d_L,) for a scalar output, or (d_L, m) for m outputs.
    """

    weights: tuple[Array, ...]

    def __init__(self, weights):
        weights = as_sequence(weights, "weights", "FullyConnectedNetwork")
        require_depth(len(weights), "FullyConnectedNetwork")
        hidden = [
            as_parameter(w, f"weights[{layer}]", "FullyConnectedNetwork", ndim=2)
            for layer, w in enumerate(weights[:-1])
        ]
        name = f"weights[{len(weights) - 1}]"
        last = as_numbers(weights[-1], name, "FullyConnectedNetwork")
        last_ndim = 2 if last.ndim == 2 else 1
        hidden.append(as_parameter(last, name, "FullyConnectedNetwork", ndim=last_ndim))
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
        owner = "FullyConnectedNetwork.zeros"
        widths = as_sizes(widths, "widths", owner)
        last = as_shape(owner, outputs, width=widths[-1])
        return cls(tuple(map(jnp.zeros, (*itertools.pairwise(widths), last))))

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
        shapes = tuple(w.shape for w in self.weights)
        return _data_tensor(jnp.asarray(x), shapes)

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """The result of `decompose_tensor`: AssumptionFails unless d = 1."""
        return decomposition_of(self)

    def conserved_quantities(self) -> Float[Array, " q"]:
        """All entries of W_l^T W_l - W_{l+1} W_{l+1}^T (Ji & Telgarsky 2019)."""
        return gaps_of_gram_matrices(self.weights)

    def identity_start(self) -> "FullyConnectedNetwork":
        """The identity on the first d units of each hidden layer; the last layer is zero.

        ValueError for a hidden layer narrower than d.
        """
        hidden = self._partial_identities("identity")
        return FullyConnectedNetwork((*hidden, jnp.zeros_like(self.weights[-1])))

    def balanced_start(self, coefficients: Float[Array, "..."]) -> "FullyConnectedNetwork":
        """W_l^T W_l = W_{l+1} W_{l+1}^T, from the singular value decomposition of beta.

        ValueError for hidden layers narrower than the rank of beta.
        """
        beta = coefficients
        left, sizes, right = _singular_values_and_vectors(beta)
        widths = [w.shape[0] for w in self.weights[1:]]
        rank = min(*widths, sizes.shape[0])
        if not isinstance(sizes, Tracer):
            known = np.asarray(sizes)
            needed = int((known > max(beta.shape) * np.finfo(beta.dtype).eps * known[0]).sum())
            if needed > rank:
                raise ValueError(
                    f"balanced: hidden layers must be at least as wide as the rank {needed} of the "
                    f"coefficients, got widths {widths}; widen them or lower the rank."
                )
        *hidden, last = _balanced_layers(left, sizes, right, rank, tuple(widths))
        return FullyConnectedNetwork((*hidden, last.reshape(self.weights[-1].shape)))

    def matching_start(
        self, coefficients: Float[Array, "..."], gap: Scalar
    ) -> "FullyConnectedNetwork":
        """W_l = sigma I (l < L) and sigma^2 - |W_L|^2 = gap in the spectral norm.

        Source: Yun et al. 2021, Theorem 7 with lambda = gap. ValueError for a hidden layer
        narrower than d.
        """
        identities = self._partial_identities("matching")
        hidden, last = _matching_layers(coefficients, identities, self.weights[-1].shape, gap)
        return FullyConnectedNetwork((*hidden, last))

    def _partial_identities(self, caller):
        """For each hidden layer: the identity on the first d units, zero elsewhere."""
        dimension = self.weights[0].shape[0]
        widths = [w.shape[0] for w in self.weights]
        if min(widths) < dimension:
            raise ValueError(
                f"{caller}: hidden layers must be at least as wide as the input dimension d = "
                f"{dimension}, got widths {widths[1:]}; a narrower layer annihilates some x. Widen "
                "it, or use gaussian or balanced."
            )
        # By NumPy: every operation of JAX would be a program.
        layers = [
            np.eye(*shape, dtype=self.weights[0].dtype) for shape in itertools.pairwise(widths)
        ]
        for layer in layers:
            layer[dimension:] = 0
        return [jnp.asarray(layer) for layer in layers]

    def coupled_groups(self) -> "FullyConnectedNetwork | None":
        """For two layers a group for each hidden unit: its weights in and out. Else None."""
        groups = groups_of_units(self.weights)
        return None if groups is None else eqx.tree_at(lambda n: n.weights, self, groups)

    def induced_regularizer(self, beta: Float[Array, "..."]) -> Scalar:
        """L sum_k sigma_k^{2/L} of the singular values of beta: L |beta|_2^{2/L} for one output.

        Source: Gunasekar et al. 2018, Lemma 5.
        """
        return schatten_regularizer(beta, self.depth)

    def induced_norm_order(self) -> float | None:
        """2 for one output; None for several, whose regulariser is a function of all sigma_k."""
        return 2.0 if self.has_scalar_output else None

    def induced_singular_norm_order(self) -> float | None:
        """2/L for several outputs, if the widths allow every rank of beta; otherwise None."""
        wide = not self.has_scalar_output and self.largest_rank() >= min(self._shape_of_beta)
        return 2.0 / self.depth if wide else None

    @property
    def _shape_of_beta(self):
        return self.weights[0].shape[0], self.weights[-1].shape[1]

    def minimal_network(self, beta: Float[Array, "..."]) -> "FullyConnectedNetwork":
        """All layers have the same nonzero singular values, and are aligned."""
        return eqx.tree_at(lambda n: n.weights, self, minimal_chain(self.weights, beta))

    def largest_rank(self) -> int:
        """The smallest width, inputs and outputs included (Eftekhari 2020, eq. 9)."""
        last = self.weights[-1]
        outputs = 1 if self.has_scalar_output else last.shape[1]
        return min(outputs, *(w.shape[0] for w in self.weights))


def groups_of_units(weights: Sequence[Array]) -> tuple[np.ndarray, ...] | None:
    """The hidden unit of each weight of two layers, in arrays of their shapes; else None."""
    if len(weights) != 2:
        return None
    units, last = np.arange(weights[0].shape[1]), weights[1]
    columns = np.broadcast_to(units, weights[0].shape)
    return columns, np.broadcast_to(units.reshape(-1, *(1,) * (last.ndim - 1)), last.shape)


def schatten_regularizer(beta: Float[Array, "..."], depth: int) -> Scalar:
    """depth times the sum of the singular values of beta to the power 2 / depth."""
    sizes = jnp.linalg.svd(beta.reshape(beta.shape[0], -1), compute_uv=False)
    return depth * jnp.sum(sizes ** (2 / depth))


def minimal_chain(weights: Sequence[Array], beta: Float[Array, "..."]) -> tuple[Array, ...]:
    """Layers with the shapes of `weights`, W_1 ... W_L = beta and the least sum of |W_l|^2."""
    depth = len(weights)
    left, sizes, right = jnp.linalg.svd(beta.reshape(beta.shape[0], -1), full_matrices=False)
    root = sizes ** (1 / depth)
    shapes = [w.shape for w in weights]
    cores = [left * root[None, :], *(jnp.diag(root),) * (depth - 2), root[:, None] * right]
    return tuple(
        _fitted(core, (*shape, 1)[:2]).reshape(shape)
        for core, shape in zip(cores, shapes, strict=True)
    )


def _fitted(matrix, shape):
    """`matrix`, cut or padded with zeros to `shape`; parts that are cut are beyond the rank."""
    rows, columns = shape
    matrix = matrix[:rows, :columns]
    return jnp.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


@functools.partial(jax.jit, static_argnums=1)  # ten times as fast as one operation after the other
def _data_tensor(x, shapes):
    """`data_tensor` of layers of these shapes."""
    # Entry [(a_1,b_1), (a_2,b_2), ...] = x[a_1] [b_1 = a_2] [b_2 = a_3] ...; a column-stacked
    # index (a, b) is the C-ordered pair (b, a).
    tensor = x[None, :]
    for layer, (rows, *outputs) in enumerate(shapes):
        columns = outputs[0] if outputs else 1
        eye_out = jnp.eye(columns, dtype=tensor.dtype)
        if layer == 0:
            # axes: (b_1, a_1, next = b_1)
            tensor = jnp.einsum("bc,ga->bac", eye_out, tensor).reshape(columns * rows, columns)
            continue
        leading = tensor.shape[:-1]
        tensor = jnp.einsum("...a,bc->...bac", tensor, eye_out)
        tensor = tensor.reshape((*leading, columns * rows, columns))
    return tensor if outputs else tensor[..., 0]


@eager_program()
def _matching_layers(coefficients, identities, last_shape, gap):
    """The hidden layers, and the last one, of `FullyConnectedNetwork.matching_start`."""
    depth = len(identities) + 1
    size = size_of_first_layers(jnp.linalg.norm(coefficients, ord=2), depth, gap)
    last = jnp.zeros(last_shape, coefficients.dtype)
    last = last.at[: coefficients.shape[0]].set(coefficients / size ** (depth - 1))
    return [size * layer for layer in identities], last


@eager_program()
def _singular_values_and_vectors(beta):
    """The singular value decomposition of the coefficients, as a matrix."""
    return jnp.linalg.svd(beta.reshape(beta.shape[0], -1), full_matrices=False)


@eager_program()
def _balanced_layers(left, sizes, right, rank, widths):
    """The layers of `FullyConnectedNetwork.balanced_start`, the last one as a matrix."""
    root = sizes[:rank] ** (1 / (len(widths) + 1))
    frames = [jnp.eye(width, rank, dtype=left.dtype) for width in widths]
    ends = [left[:, :rank], *frames, right[:rank].T]
    return [(before * root[None, :]) @ after.T for before, after in itertools.pairwise(ends)]
