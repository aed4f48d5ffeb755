"""Deep matrix factorization, and the matrix sensing problems that reduce to diagonal networks."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ..arguments import as_sequence, as_size, as_sizes
from ..completion import MatrixCompletion
from ..messages import in_words
from ..problems import MatrixSensing
from . import contractions
from .base import (
    AbstractNetwork,
    Activation,
    as_parameter,
    require_depth,
    require_vanishing_activation,
)
from .conserved import gaps_of_gram_matrices
from .decomposition import AssumptionFails, OrthogonalDecomposition
from .fully_connected import (
    FullyConnectedNetwork,
    groups_of_units,
    minimal_chain,
    schatten_regularizer,
)
from .mirror_coordinates import SLACK, AbstractMirrorCoordinates, coordinates_of_layers

_DRAWS = 4


class MatrixFactorizationNetwork(AbstractNetwork):
    """f(A) = <A, W_1 W_2 ... W_L>: deep matrix factorization.

    For `MatrixCompletion` and `MatrixSensing`; the latter needs a square product. Source: Arora et
    al. 2019; Yun, Krishnan & Mobahi 2021, eq. (13). Linear coefficients: the matrix W_1 ... W_L of
    shape (d, m).

    **Arguments**

    - `weights`: L >= 2 matrices, W_1 of shape (d, d_2), W_l of shape (d_l, d_{l+1}), W_L of shape
      (d_L, m). The smallest width bounds the rank of the product.
    """

    weights: tuple[Float[Array, "rows columns"], ...]

    def __init__(self, weights):
        owner = "MatrixFactorizationNetwork"
        matrices = [
            as_parameter(w, f"weights[{layer}]", owner, ndim=2)
            for layer, w in enumerate(as_sequence(weights, "weights", owner))
        ]
        require_depth(len(matrices), owner)
        for layer, (before, after) in enumerate(itertools.pairwise(matrices)):
            if before.shape[1] != after.shape[0]:
                raise ValueError(
                    f"{owner}: weights[{layer}] has {before.shape[1]} columns but "
                    f"weights[{layer + 1}] has {after.shape[0]} rows; the widths of neighbouring "
                    "layers must agree."
                )
        dtype = jnp.result_type(*matrices)
        self.weights = tuple(w.astype(dtype) for w in matrices)

    @classmethod
    def zeros(
        cls, depth: int, dimension: int | tuple[int, int], width: int | None = None
    ) -> "MatrixFactorizationNetwork":
        """The zero network of the given shape: a template for `lintensor_jax.initialization`.

        `dimension`: d for a product of shape (d, d), or the shape (d, m). `width`: the width of all
        hidden layers; by default the larger one of d and m, so that every rank is possible.
        """
        owner = "MatrixFactorizationNetwork.zeros"
        shape = dimension if np.iterable(dimension) else (dimension, dimension)
        shape, depth = as_sizes(shape, "dimension", owner), as_size(depth, "depth", owner)
        if len(shape) != 2:
            raise ValueError(
                f"{owner}: dimension must be d, or the shape (d, m) of the product, got "
                f"{shape}; pass one or two numbers."
            )
        rows, columns = shape
        width = max(shape) if width is None else as_size(width, "width", owner)
        hidden = (width,) * (depth - 1)
        return cls(tuple(map(jnp.zeros, itertools.pairwise((rows, *hidden, columns)))))

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of layers, which is the degree of homogeneity."""
        return len(self.weights)

    def linear_coefficients(self) -> Float[Array, "d m"]:
        """beta = W_1 ... W_L, shape (d, m)."""
        return contractions.matrix_chain(self.weights)[0]

    def coefficients_and_pullback(self):
        """beta, and G -> (W_1..W_{l-1})^T G (W_{l+1}..W_L)^T as a network."""
        beta, leave_one_out = contractions.matrix_chain(self.weights)
        return beta, lambda g: eqx.tree_at(lambda n: n.weights, self, leave_one_out(g))

    def __call__(
        self, x: Float[Array, "d m"], activation: Activation | None = None
    ) -> Float[Array, ""]:
        """<A, W_1 ... W_L> for one sensor A = x of shape (d, m).

        With an activation: the trace of phi(... phi(A^T W_1) ... W_{L-1}) W_L, which is eq. (2).
        """
        if activation is None:
            return jnp.sum(x * self.linear_coefficients())
        require_vanishing_activation(activation, self.depth, "MatrixFactorizationNetwork")
        hidden = x.T
        for w in self.weights[:-1]:
            hidden = activation(hidden @ w)
        return jnp.sum(hidden * self.weights[-1].T)

    @property
    def factors(self) -> tuple[Float[Array, " k"], ...]:
        """(vec W_1, ..., vec W_L), columns stacked as in the paper."""
        return FullyConnectedNetwork(self.weights).factors

    def with_factors(self, factors) -> "MatrixFactorizationNetwork":
        """A network of the same shape with other factors: the inverse of `factors`."""
        chain = FullyConnectedNetwork(self.weights).with_factors(factors)
        return MatrixFactorizationNetwork(chain.weights)

    def data_tensor(self, x: Float[Array, "d m"]) -> Float[Array, "..."]:
        """M(A) for a sensor A = x of shape (d, m), with one axis for each layer. For small cases.

        M(A) is a sum over the columns c of A. The term of column c is the data tensor of the
        fully-connected network with m outputs for the input A[:, c] and the output c.
        """
        chain = FullyConnectedNetwork(self.weights).data_tensor
        return jnp.trace(jax.vmap(chain, 1, -1)(jnp.asarray(x)), axis1=-2, axis2=-1)

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """AssumptionFails, unless all widths are 1: the singular vectors of M(A) depend on A.

        For a *problem* with commuting sensors use `sensing_decomposition`.
        """
        dtype, (rows, columns) = self.weights[0].dtype, _product_shape(self.weights)
        if all(w.size == 1 for w in self.weights):
            one = jnp.ones((1, 1), dtype)
            return OrthogonalDecomposition(one, (one,) * self.depth)
        if rows != columns or rows == 1:
            raise AssumptionFails(
                "singular vectors that do not depend on A",
                math.sqrt(0.5),
                "That is the relative asymmetry of A^T B, or of A B^T, for two of the possible "
                "sensors that differ in one row or column. Theorems on commuting sensors need "
                "square matrices; the flow itself is defined.",
            )
        pair = np.zeros((2, rows, rows))
        pair[0, 0, 0] = pair[1, 0, 1] = pair[1, 1, 0] = 1
        raise AssumptionFails(
            "singular vectors that do not depend on A",
            _worst_commutator(pair)[0],
            "That is the relative commutator of two of the possible sensors, E_11 and E_12 + E_21. "
            "With commuting symmetric sensors the flow stays in their common eigenbasis (Yun et al."
            " 2021, Corollary 7): use sensing_decomposition(problem).",
        )

    def conserved_quantities(self) -> Float[Array, " q"]:
        """All entries of W_l^T W_l - W_{l+1} W_{l+1}^T (Arora et al. 2018)."""
        return gaps_of_gram_matrices(self.weights)

    def coupled_groups(self) -> "MatrixFactorizationNetwork | None":
        """For two layers a group for each hidden unit; else None."""
        groups = groups_of_units(self.weights)
        return None if groups is None else eqx.tree_at(lambda n: n.weights, self, groups)

    def identity_start(self) -> "MatrixFactorizationNetwork":
        """Identity matrices, and zeros in the last layer (Yun et al. 2021, Corollary 7).

        Each hidden layer is the identity on its first d units; ValueError if it is narrower than d.
        """
        return self._of_chain(FullyConnectedNetwork(self.weights).identity_start())

    def balanced_start(self, coefficients: Float[Array, "d m"]) -> "MatrixFactorizationNetwork":
        """W_l^T W_l = W_{l+1} W_{l+1}^T, from the singular value decomposition of beta.

        Source: Arora et al. 2018. ValueError for hidden layers narrower than the rank of beta.
        """
        return self._of_chain(FullyConnectedNetwork(self.weights).balanced_start(coefficients))

    def matching_start(
        self, coefficients: Float[Array, "d m"], gap: Scalar
    ) -> "MatrixFactorizationNetwork | None":
        """As for `FullyConnectedNetwork`; None if a hidden layer is narrower than d."""
        if min(w.shape[0] for w in self.weights) < self.weights[0].shape[0]:
            return None
        chain = FullyConnectedNetwork(self.weights)
        return self._of_chain(chain.matching_start(coefficients, gap))

    def _of_chain(self, chain: FullyConnectedNetwork) -> "MatrixFactorizationNetwork":
        return eqx.tree_at(lambda n: n.weights, self, chain.weights)

    def induced_regularizer(self, beta: Float[Array, "d m"]) -> Scalar:
        """L sum_k sigma_k^{2/L} of the singular values of beta."""
        return schatten_regularizer(beta, self.depth)

    def minimal_network(self, beta: Float[Array, "d m"]) -> "MatrixFactorizationNetwork":
        """All layers have the singular values sigma_k^{1/L}, and are aligned."""
        return eqx.tree_at(lambda n: n.weights, self, minimal_chain(self.weights, beta))

    def largest_rank(self) -> int:
        """The smallest width, including the numbers of rows and columns of beta."""
        return min(min(w.shape) for w in self.weights)

    def mirror_coordinates(self, problem: Any) -> AbstractMirrorCoordinates:
        """For commuting sensors and layers diagonal in their common eigenbasis (Corollary 7)."""
        if not isinstance(problem, MatrixSensing | MatrixCompletion):
            raise ValueError(
                "problem: a matrix factorization network needs MatrixSensing or MatrixCompletion, "
                f"got {type(problem).__name__}."
            )
        if any(w.shape != problem.coefficient_shape for w in self.weights):
            raise AssumptionFails(
                "square layers",
                float(max(w.size for w in self.weights)),
                "That is the largest number of entries of a layer; Corollary 7 is about layers of "
                "the shape of beta. Use gradient_flow.",
            )
        basis = sensing_decomposition(problem).basis
        rotated = [basis.T @ w @ basis for w in self.weights]
        size = max(float(jnp.max(jnp.abs(w))) for w in rotated)
        mixing = max(float(jnp.max(jnp.abs(w - jnp.diag(jnp.diag(w))))) for w in rotated)
        if mixing > SLACK * 100 * max(size, 1e-300):
            raise AssumptionFails(
                "layers diagonal in the sensors' common eigenbasis",
                mixing / size,
                "That is the largest off-diagonal entry over the largest entry; take multiples of "
                "the identity (Corollary 7), or use gradient_flow.",
            )
        rows = jnp.stack([jnp.outer(u, u).ravel() for u in basis.T])
        return coordinates_of_layers(
            rows, tuple(jnp.diag(w) for w in rotated), _FromEigenvalues(self, basis)
        )


class _FromEigenvalues(eqx.Module):
    """Weight matrices from their eigenvalues in one basis."""

    template: MatrixFactorizationNetwork
    basis: Float[Array, "d d"]

    def __call__(self, etas):
        weights = tuple((self.basis * eta[None, :]) @ self.basis.T for eta in etas)
        return eqx.tree_at(lambda n: n.weights, self.template, weights)


class SensingDecomposition(eqx.Module):
    """Commuting symmetric sensors in their common eigenbasis: A_i = U diag(x_i) U^T.

    Source: Yun, Krishnan & Mobahi 2021, Corollary 7 and Appendix F.5. From layers that are
    diagonal in this basis, matrix sensing is the regression (X, y) of a diagonal network.

    - `eigenvalues`: X, shape (n, d); row i holds the eigenvalues of A_i, in the order of `basis`.
    - `basis`: U, shape (d, d), orthogonal; column j belongs to column j of X.
    - `residual`: the largest |A_i - U diag(x_i) U^T| / |A_i|, Frobenius norms.
    """

    eigenvalues: Float[Array, "n d"]
    basis: Float[Array, "d d"]
    residual: float = eqx.field(static=True)

    def coefficients(self, rho: Float[Array, " d"]) -> Float[Array, "d d"]:
        """U diag(rho) U^T: the matrix whose eigenvalues are the diagonal network's beta."""
        return (self.basis * rho[None, :]) @ self.basis.T


def sensing_decomposition(
    problem: MatrixSensing | MatrixCompletion, tolerance: float | None = None
) -> SensingDecomposition:
    """Diagonalise commuting symmetric sensors jointly, or measure how far they are from it.

    Source: Yun, Krishnan & Mobahi 2021, Corollary 7. Runs on the host. The eigenvectors of a random
    combination of the sensors are eigenvectors of all sensors. If an eigenvalue of the combination
    repeats, it repeats in all sensors, and any basis of its eigenspace will do.

    **Arguments**

    - `problem`: `MatrixSensing` with concrete sensors, or `MatrixCompletion` (entries on the
      diagonal only: these sensors commute).
    - `tolerance`: what counts as zero relative to a sensor's norm; by default the square root of
      the dtype's precision (1.5e-8 in float64).

    **Raises** `AssumptionFails` with the relative asymmetry |A - A^T| / (2 |A|), or the relative
    commutator |A B - B A| / (2 |A| |B|) of the worst pair, both between 0 and 1.
    """
    if isinstance(problem, MatrixCompletion):
        return _decomposition_of_entries(problem)
    if not hasattr(problem, "A"):
        raise ValueError(
            "sensing_decomposition: problem must be a MatrixSensing, got "
            f"{in_words(problem)}; other problems have no sensors."
        )
    if isinstance(problem.A, Tracer):
        raise ValueError(
            "sensing_decomposition: problem must hold concrete sensors, got traced ones; call it "
            "outside jit, grad and vmap."
        )
    dtype = problem.A.dtype
    tolerance = math.sqrt(float(jnp.finfo(dtype).eps)) if tolerance is None else tolerance
    sensors = np.asarray(problem.A, np.float64)
    sizes = np.linalg.norm(sensors, axis=(1, 2))
    units = sensors / np.where(sizes > 0, sizes, 1)[:, None, None]
    asymmetry = np.linalg.norm(units - np.swapaxes(units, 1, 2), axis=(1, 2)) / 2
    worst = int(asymmetry.argmax())
    if asymmetry[worst] > tolerance:
        raise AssumptionFails(
            "symmetric sensors",
            float(asymmetry[worst]),
            f"That is |A - A^T| / (2 |A|) of A[{worst}]. Corollary 7 of Yun et al. 2021 needs "
            "symmetric sensors; only for a symmetric beta may they be replaced by (A + A^T) / 2.",
        )
    rng = np.random.default_rng(0)
    tries = [_joint_basis(units, rng.standard_normal(len(units))) for _ in range(_DRAWS)]
    residual, basis = min(tries, key=lambda pair: pair[0])
    if residual > tolerance:
        commutator, i, j = _worst_commutator(units)
        raise AssumptionFails(
            "commuting sensors",
            commutator,
            f"That is |A B - B A| / (2 |A| |B|) of A[{i}] and A[{j}], the worst pair; in the best "
            f"basis found, the largest relative off-diagonal part of a sensor is {residual:.3g}. "
            "Corollary 7 of Yun et al. 2021 does not apply; gradient_flow does.",
        )
    eigenvalues = np.einsum("ka,nkl,la->na", basis, sensors, basis, optimize=True)
    return SensingDecomposition(
        jnp.asarray(eigenvalues, dtype), jnp.asarray(basis, dtype), float(residual)
    )


def _decomposition_of_entries(problem: MatrixCompletion) -> SensingDecomposition:
    """For sensors E_ij, which are symmetric only if i = j; then they are diagonal already."""
    rows, columns = problem.shape
    off = np.flatnonzero(problem.rows != problem.columns)
    if rows != columns or off.size:
        where = "a rectangular shape"
        if off.size:
            where = f"row {problem.rows[off[0]]}, column {problem.columns[off[0]]}"
        raise AssumptionFails(
            "symmetric sensors",
            math.sqrt(0.5),
            f"That is |A - A^T| / (2 |A|) of an entry off the diagonal ({where}). Corollary 7 of "
            "Yun et al. 2021 needs symmetric sensors: entries on the diagonal of a square matrix.",
        )
    dtype = problem.y.dtype
    eigenvalues = np.zeros((problem.rows.size, rows))
    eigenvalues[np.arange(problem.rows.size), problem.rows] = 1
    return SensingDecomposition(jnp.asarray(eigenvalues, dtype), jnp.eye(rows, dtype=dtype), 0.0)


def _joint_basis(units, weights):
    combination = np.tensordot(weights, units, 1)
    basis = np.linalg.eigh((combination + combination.T) / 2)[1]
    rotated = basis.T @ units @ basis
    off = rotated - np.einsum("naa->na", rotated)[:, :, None] * np.eye(len(basis))
    return float(np.linalg.norm(off, axis=(1, 2)).max()), basis


def _product_shape(weights):
    return weights[0].shape[0], weights[-1].shape[1]


def _worst_commutator(sensors):
    """The largest |A B - B A| / (2 |A| |B|) and its pair; n^2 / 2 products of d x d matrices."""
    sizes = np.linalg.norm(sensors, axis=(1, 2))
    sizes = np.where(sizes > 0, sizes, 1)
    worst = (0.0, 0, 0)
    for i, a in enumerate(sensors):
        values = np.linalg.norm(a @ sensors - sensors @ a, axis=(1, 2)) / (2 * sizes[i] * sizes)
        j = int(values.argmax())
        worst = max(worst, (float(values[j]), i, j), key=lambda found: found[0])
    return worst
