"""Orthogonally decomposable data tensors: Assumption 1, its data and its numerical test."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Inexact

from ..arguments import as_numbers
from .base import as_parameter
from .pair import coefficients_like

_DRAWS = 4
_MAX_ENTRIES = 2**24


class AssumptionFails(ValueError):
    """A theorem's assumption does not hold; the message says which property fails, by how much.

    - `violated`: the property in words.
    - `value`: what was measured: a number, or the tuple of the numbers that should agree.
    """

    def __init__(self, violated: str, value: float | tuple[int, ...], explanation: str):
        super().__init__(f"{violated}: fails, measured {_shown(value)}. {explanation}")
        self.violated = violated
        self.value = value


def _shown(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class OrthogonalDecomposition(eqx.Module):
    """M(x) = sum_j [S x]_j U_1[:, j] (x) ... (x) U_L[:, j] with U_l^H U_l = I, for every x.

    Source: Yun, Krishnan & Mobahi 2021, Assumption 1 and eq. (9).

    - `S`: shape (m, d), d <= m <= min_l k_l, of full column rank. For L = 2, |S x| are the
      singular values of M(x).
    - `bases`: L matrices U_l of shape (k_l, m).
    - `residual`: relative error of the reconstructed tensor in the Frobenius norm if the
      decomposition was found numerically; 0 if it is known in closed form.

    S and U_l are real or complex; M(x) is real in both cases. They are unique up to the order of
    the indices j, up to phases whose product over S and all U_l is 1, and for L = 2 also up to a
    unitary mixing of those j for which the rows of S are equal up to a phase.
    """

    S: Inexact[Array, "m d"]
    bases: tuple[Inexact[Array, "k m"], ...]
    residual: float = eqx.field(static=True, default=0.0)

    @property
    def is_real(self) -> bool:
        """Whether S and all bases are real, as Theorem 5 needs."""
        return not any(jnp.iscomplexobj(matrix) for matrix in (self.S, *self.bases))

    def data_tensor(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """M(x), shape (k_1, ..., k_L): the right-hand side of eq. (9)."""
        x = jnp.asarray(x)
        modes = range(1, len(self.bases) + 1)
        operands = [op for mode, u in zip(modes, self.bases, strict=True) for op in (u, [mode, 0])]
        return jnp.einsum(self.S @ x, [0], *operands, list(modes)).real


def dense_tensor(network: eqx.Module) -> Float[Array, "... d"]:
    """The data tensor of any network with a `data_tensor`, as one array (k_1, ..., k_L, d).

    ValueError if it has more than 2^24 entries, AssumptionFails if the output is not a scalar.
    """
    dimension = _input_dimension(network)
    entries = dimension * math.prod(v.shape[0] for v in network.factors)  # pyright: ignore
    if entries > _MAX_ENTRIES:
        raise ValueError(
            f"dense_tensor: network must have a data tensor of at most {_MAX_ENTRIES} entries, got "
            f"{entries}; test a smaller network of the same architecture."
        )
    basis = jnp.eye(dimension, dtype=network.factors[0].dtype)  # pyright: ignore
    return jax.vmap(network.data_tensor, out_axes=-1)(basis)  # pyright: ignore


def _input_dimension(network):
    shape = coefficients_like(network).shape
    if len(shape) != 1:
        raise AssumptionFails(
            "a scalar output for vector inputs",
            shape,
            "Assumption 1 (Yun et al. 2021) is about linear coefficients of shape (d,); test one "
            "output at a time.",
        )
    return shape[0]


def decomposition_of(network: eqx.Module) -> OrthogonalDecomposition:
    """`decompose_tensor` of the network's data tensor.

    A network with a factor shorter than d fails before its data tensor is formed.
    """
    _require_wide_modes([v.shape[0] for v in network.factors], _input_dimension(network))  # pyright: ignore
    return decompose_tensor(dense_tensor(network))


def decompose_tensor(
    tensor: Float[ArrayLike, "... d"], tolerance: float | None = None
) -> OrthogonalDecomposition:
    """Find S and U_1, ..., U_L of Assumption 1 for a data tensor, or say why they do not exist.

    Source: Yun, Krishnan & Mobahi 2021, Assumption 1. Contract M(z) with random vectors along all
    modes but two. If the assumption holds, the left singular vectors of this matrix are the columns
    of U_1: for a generic *complex* z two singular values |S z| are equal only if they are equal for
    every z. A real z is tried first; it finds the real decomposition if there is one. Then every
    slice sum_i conj(U_1[i, j]) M(.)_i is the rank-one tensor of the other bases and row j of S.
    The result is verified on the whole tensor.

    **Arguments**

    - `tensor`: shape (k_1, ..., k_L, d), L >= 2: M(x) = tensor @ x.
    - `tolerance`: what counts as zero relative to the tensor; by default the square root of the
      dtype's precision (1.5e-8 in float64).

    **Raises** `AssumptionFails` for the first property that fails, in this order: d <= min_l k_l;
    full column rank of S; the same rank of all modes; singular vectors that do not depend on x.
    The last is a test with random z, which a decomposable tensor fails with probability zero.

    Runs on the host, in float64: it cannot be traced.
    """
    if isinstance(tensor, Tracer):
        raise ValueError(
            "decompose_tensor: tensor must be a concrete array, got a traced one; call it outside "
            "jit, grad and vmap."
        )
    given = as_numbers(tensor, "tensor", "decompose_tensor")
    array = as_parameter(given, "tensor", "decompose_tensor", ndim=max(given.ndim, 3))
    eps = float(jnp.finfo(array.dtype).eps)
    tolerance = math.sqrt(eps) if tolerance is None else tolerance
    if not 0 < tolerance < 1:
        raise ValueError(
            f"decompose_tensor: tolerance must be between 0 and 1, got {tolerance!r}; leave it out "
            "for the square root of the dtype's precision."
        )
    data = np.asarray(array, np.float64)
    unit = np.abs(data).max() or 1.0  # squares of the entries must not underflow
    data = data / unit
    rank = _common_rank(data, tolerance)
    rng = np.random.default_rng(0)
    best = (math.inf, None, None)
    for is_complex in (False, True):
        for _ in range(_DRAWS):
            bases = _candidate(data, rank, lambda size: _normal(rng, size, is_complex))  # noqa: B023
            S = _project(data, bases)
            residual = _distance(data, S, bases)
            if residual < best[0]:
                best = (residual, S, bases)
            # Another draw helps only if two singular values of this draw were close by chance.
            if not 1e3 * eps < residual < 1e4 * tolerance:
                break
        if best[0] <= tolerance:
            break
    residual, S, bases = best
    if S is None or bases is None or residual > tolerance:
        raise AssumptionFails(
            "singular vectors that do not depend on x",
            residual,
            "That is the relative error of the best sum_j [S x]_j U_1[:, j] (x) ... (x) U_L[:, j] "
            "with orthonormal U_l that was found for the data tensor (Yun et al. 2021, Assumption "
            "1); an OrthogonalNetwork satisfies the assumption by construction.",
        )
    dtype = jnp.result_type(array.dtype, complex if np.iscomplexobj(S) else array.dtype)
    return OrthogonalDecomposition(
        jnp.asarray(unit * S, dtype), tuple(jnp.asarray(u, dtype) for u in bases), float(residual)
    )


def _require_wide_modes(lengths: Sequence[int], dimension: int):
    if min(lengths) < dimension:
        raise AssumptionFails(
            "d <= m <= min_l k_l",
            (dimension, min(lengths)),
            f"The shortest factor has {min(lengths)} entries for an input of dimension "
            f"d = {dimension}: S (m, d) cannot have full column rank (Yun et al. 2021, Assumption "
            f"1). Make every factor at least {dimension} long.",
        )


def _common_rank(data, tolerance):
    *lengths, dimension = data.shape
    _require_wide_modes(lengths, dimension)
    sizes = _unfolding_sizes(data, -1)
    if sizes[-1] <= tolerance * sizes[0]:
        raise AssumptionFails(
            "S has full column rank",
            float(sizes[-1] / sizes[0]) if sizes[0] > 0 else 0.0,
            "That is the ratio of the smallest to the largest singular value of x -> M(x): some "
            "input direction never reaches the network (Yun et al. 2021, Assumption 1). Remove it "
            "from the inputs.",
        )
    unfolded = [_unfolding_sizes(data, mode) for mode in range(len(lengths))]
    ranks = tuple(int(np.sum(sizes > tolerance * sizes[0])) for sizes in unfolded)
    if len(set(ranks)) > 1:
        raise AssumptionFails(
            "the same rank m of every mode of the data tensor",
            ranks,
            "Those are the ranks of its unfoldings along modes 1, ..., L. With orthonormal U_l "
            "each is the number of nonzero rows of S (Yun et al. 2021, Assumption 1).",
        )
    if ranks[0] < dimension:
        raise AssumptionFails(
            "d <= m <= min_l k_l",
            (dimension, ranks[0]),
            f"All modes have rank m = {ranks[0]} for an input of dimension d = {dimension}: S "
            "(m, d) cannot have full column rank (Yun et al. 2021, Assumption 1).",
        )
    return ranks[0]


def _unfolding_sizes(data, mode):
    unfolding = np.moveaxis(data, mode, 0).reshape(data.shape[mode], -1)
    return np.linalg.svd(unfolding, compute_uv=False)


def _normal(rng, size, is_complex):
    real = rng.standard_normal(size)
    return real + 1j * rng.standard_normal(size) if is_complex else real


def _candidate(data, rank, draw):
    matrix = data
    while matrix.ndim > 2:
        matrix = matrix @ draw(matrix.shape[-1])
    first = np.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    slices = np.tensordot(first.conj().T, data, 1)
    bases = [first]
    for mode in range(1, data.ndim - 1):
        unfolded = np.moveaxis(slices, mode, 1).reshape(rank, data.shape[mode], -1)
        # The matrix has rank one, so that any column gives the singular vector. The largest column
        # and one power iteration reduce rounding errors.
        largest = np.linalg.norm(unfolded, axis=1).argmax(axis=1)
        column = np.take_along_axis(unfolded, largest[:, None, None], axis=2)
        leading = (unfolded @ (unfolded.conj().transpose(0, 2, 1) @ column))[:, :, 0].T
        leading = leading / np.linalg.norm(leading, axis=0)
        # The nearest orthonormal columns. For a decomposable tensor this changes nothing.
        left, _, right = np.linalg.svd(leading, full_matrices=False)
        bases.append(left @ right)
    return bases


def _project(data, bases):
    """The S that fits best with given orthonormal bases."""
    S = np.tensordot(bases[0].conj().T, data, 1)
    for u in bases[1:]:
        S = np.einsum("jk...,kj->j...", S, u.conj())
    return S


def _distance(data, S, bases):
    products = bases[0]
    for u in bases[1:]:
        products = products[..., None, :] * u
    return float(np.linalg.norm(data - products @ S) / np.linalg.norm(data))
