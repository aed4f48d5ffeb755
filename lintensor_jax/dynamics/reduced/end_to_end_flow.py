"""The end-to-end flow: how gradient flow of balanced layers moves their product.

If W_l^T W_l = W_{l+1} W_{l+1}^T, the flow of beta = W_1 ... W_L is an ordinary differential
equation in beta alone (Arora et al. 2018; Eftekhari 2020, eq. 17).
"""

import functools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Scalar

from ...arguments import as_numbers
from ...networks.base import as_parameter
from ...networks.pair import check_pair, same_dtype
from ...penalized import require_no_decay
from ...problems import AbstractProblem, AbstractRegressionProblem
from ..integrate import explicit_solver
from ..options import fill_options
from ..solution import FlowSolution, run


class EndToEndMatrix(eqx.Module):
    """The product of L balanced layers, as a point of the end-to-end flow.

    - `coefficients`: beta, shape (d, m), or (d,) for a scalar output.
    - `layers`: L >= 2, the number of layers; `depth`, the degree of homogeneity, is 1.
    - `rank`: of beta; the flow keeps it.
    """

    coefficients: Array
    layers: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)

    depth = 1

    def linear_coefficients(self) -> Array:
        """beta, shape (d, m) or (d,)."""
        return self.coefficients

    def truncated(self) -> "EndToEndMatrix":
        """The nearest matrix of rank `rank`."""
        nearest = _nearest(self.rank, self._matrix).reshape(self.coefficients.shape)
        return EndToEndMatrix(nearest, self.layers, self.rank)

    @property
    def _matrix(self):
        return self.coefficients.reshape(self.coefficients.shape[0], -1)

    def metric(self, gradient: Array) -> tuple[Array, Scalar]:
        """A(G) = sum_j (beta beta^T)^((j-1)/L) G (beta^T beta)^((L-j)/L), and sqrt(<G, A(G)>).

        The power 0 is the identity, also on the kernel of beta. The other powers p are s^(2p) on
        the singular vectors. They come from the thin SVD of beta, cut off at its known rank: an
        eigendecomposition of beta beta^T would leave (rounding)^(1/L) on the kernel.
        """
        G = gradient.reshape(self._matrix.shape)
        moved, norm = _metric(self.layers, self.rank, self._matrix, G)
        return moved.reshape(gradient.shape), norm


def _thin_svd(matrix, rank):
    left, sizes, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], sizes[:rank], right[:rank].T


# The derivatives of singular vectors are infinite where singular values are equal. The derivatives
# of the matrices below are finite, and are written out by hand.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _nearest(rank, matrix):
    left, sizes, right = _thin_svd(matrix, rank)
    return (left * sizes[None, :]) @ right.T


@_nearest.defjvp
def _(rank, primals, tangents):
    """For a matrix of rank `rank`: the tangent without its part between the two kernels."""
    (matrix,), (tangent,) = primals, tangents
    left, _, right = _thin_svd(matrix, rank)
    rest = tangent - left @ (left.T @ tangent)
    return _nearest(rank, matrix), tangent - (rest - (rest @ right) @ right.T)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _metric(layers, rank, matrix, G):
    left, sizes, right = _thin_svd(matrix, rank)
    # Row j is s^(j/L). The j-th term is S^(2(j-1)/L) (U^T G V) S^(2(L-j)/L).
    powers = sizes[None, :] ** (jnp.arange(layers)[:, None] / layers)
    top = powers[-1]
    after, before = G @ right * top[None, :], (left * top[None, :]).T @ G
    inner = left.T @ G @ right
    middle = powers[1:-1, :, None] * powers[-2:0:-1, None, :] * inner[None]
    squared = jnp.sum(after**2) + jnp.sum(before**2) + jnp.sum(middle**2)
    weights = jnp.sum(powers[1:-1, :, None] ** 2 * powers[-2:0:-1, None, :] ** 2, axis=0)
    moved = (after * top[None, :]) @ right.T + (left * top[None, :]) @ before
    return moved + left @ (weights * inner) @ right.T, jnp.sqrt(squared)


@_metric.defjvp
def _(layers, rank, primals, tangents):
    """From the tangents of P = (beta beta^T)^(1/L), Q = (beta^T beta)^(1/L).

    A(G) = sum_{j=0}^{L-1} P^j G Q^(L-1-j).
    """
    (matrix, G), (tangent, dG) = primals, tangents
    left, sizes, right = _thin_svd(matrix, rank)
    roots = sizes ** (2 / layers)
    P, dP = _root_and_tangent(layers, left, right, sizes, roots, tangent)
    Q, dQ = _root_and_tangent(layers, right, left, sizes, roots, tangent.T)

    def applied(P, Q, G):
        term, total = G, G
        for _ in range(layers - 1):  # P (...) + G Q^k, k = 1, 2, ...
            term = term @ Q
            total = P @ total + term
        return total

    _, turned = jax.jvp(applied, (P, Q, G), (dP, dQ, dG))
    moved, norm = _metric(layers, rank, matrix, G)
    slope = jnp.vdot(dG, moved) + jnp.vdot(G, turned)
    return (moved, norm), (turned, jnp.where(norm > 0, slope / (2 * _positive(norm)), 0.0))


def _positive(norm):
    return jnp.where(norm > 0, norm, 1.0)


def _root_and_tangent(layers, left, right, sizes, roots, tangent):
    """(beta beta^T)^(1/L) and its derivative along matrices of the same rank (Daleckii & Krein).

    The divided differences of x^(1/L) are 1 / sum_k p_i^k p_j^(L-1-k) at p = x^(1/L). This form has
    no difference in a denominator, so that it also holds for equal singular values.
    """
    k = jnp.arange(layers)[:, None, None]
    sums = jnp.sum(roots[None, :, None] ** k * roots[None, None, :] ** (layers - 1 - k), axis=0)
    along = tangent @ right * sizes[None, :]
    inner = left.T @ along
    across = along - left @ inner
    # Towards the kernel the divided difference is p / x = s^(2/L - 2).
    mixed = (across * (roots / sizes**2)[None, :]) @ left.T
    moved = left @ ((inner + inner.T) / sums) @ left.T + mixed + mixed.T
    return (left * roots[None, :]) @ left.T, moved


class InducedSystem(eqx.Module):
    """A `System` whose parameter vector is beta itself."""

    start: EndToEndMatrix
    problem: AbstractRegressionProblem
    depth: int = eqx.field(static=True, default=1)
    ties_are_exact: ClassVar[bool] = True  # it has no layers

    @property
    def initial(self) -> Float[Array, " p"]:
        """beta(0), flat."""
        return jnp.ravel(self.start.coefficients)

    def network(self, theta: Float[Array, " p"]) -> EndToEndMatrix:
        """The end-to-end matrix at `theta`, of the flow's rank.

        The solver leaves the matrices of this rank by its tolerance. The flow is a function of the
        nearest matrix of this rank, which depends smoothly on theta.
        """
        beta = theta.reshape(self.start.coefficients.shape)
        return EndToEndMatrix(beta, self.start.layers, self.start.rank).truncated()

    def coefficients(self, theta: Float[Array, " p"]) -> Array:
        """beta at `theta`."""
        return self.network(theta).coefficients

    def counted(self, theta: Float[Array, " p"]) -> Float[Array, " p"]:
        """theta: there is no bias here, and no weight decay."""
        return theta

    def _move(self, theta):
        matrix = self.network(theta)
        residual = self.problem.residual(matrix.coefficients)
        return residual, *matrix.metric(self.problem.adjoint(residual))

    def velocity(self, theta: Float[Array, " p"]) -> Float[Array, " p"]:
        """d beta/dt = -A(grad L(beta))."""
        return -jnp.ravel(self._move(theta)[1])

    def gradient_norm(self, theta: Float[Array, " p"]) -> tuple[Array, Scalar]:
        """r, and |grad L| with respect to the layers, whose square is -dL/dt = <G, A(G)>."""
        residual, _, norm = self._move(theta)
        return residual, norm

    def finish_step(self, theta: Float[Array, " p"], size: Scalar, gradient: Scalar) -> Scalar:
        """Zero: this flow has no finish."""
        return jnp.zeros_like(size)


def induced_flow(
    coefficients: Float[ArrayLike, "d ..."],
    problem: AbstractProblem,
    depth: int,
    *,
    rank: int | None = None,
    **options: Any,
) -> FlowSolution:
    """Integrate the end-to-end flow of a fully-connected network with balanced layers.

        d beta/dt = -sum_{j=1}^L (beta beta^T)^((j-1)/L) grad L(beta) (beta^T beta)^((L-j)/L)

    in the physical time of the layers' gradient flow. Both flows agree if the layers start
    balanced: `initialization.balanced(FullyConnectedNetwork.zeros(...), beta)`. With samples as
    columns and W = beta^T it is eq. (17) of Eftekhari 2020.

    **Arguments**

    - `coefficients`: beta(0), shape (d, m), or (d,) for a scalar output.
    - `problem`: a loss of residuals: `Regression` or `MatrixSensing`.
    - `depth`: L >= 2, the number of layers.
    - `rank`: of beta(0), between 1 and min(d, m); by default its numerical rank. The flow keeps it
      (Lemma 11). Singular values beyond it are dropped.
    - the other options are those of `gradient_flow`, with rtol = 1e-10 by default. There is no
      finish. If the rank is below that of the targets, a residual is left: such a flow ends by
      `StopAtTime`, or when beta no longer moves.

    **Returns** a `FlowSolution` whose `network` is an `EndToEndMatrix`.

    Singular values s have the absolute error eps |beta|: one of size 1e-10 |beta| has six correct
    digits, and so have its powers s^(2/L).

    **Raises** ValueError for bad input, before anything is compiled.

    Source: Eftekhari 2020, eq. (16) and (17); Arora et al. 2018, Theorem 1.
    """
    require_no_decay(problem, "induced_flow")
    if not problem.has_residuals:
        raise ValueError(
            f"problem: induced_flow needs a loss of residuals, got {type(problem).__name__}; use "
            "gradient_flow from balanced layers."
        )
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
        raise ValueError(
            f"depth: must be an int >= 2, got {depth!r}; one layer is linear regression."
        )
    if "finish" in options and options["finish"] is not None:
        raise ValueError(
            f"finish: induced_flow has none, got {options['finish']!r}; leave it out, or use "
            "gradient_flow from balanced layers."
        )
    given = as_numbers(coefficients, "coefficients", "induced_flow")
    beta = as_parameter(given, "coefficients", "induced_flow", ndim=given.ndim)
    matrix = EndToEndMatrix(beta, depth, _rank(beta, rank))
    check_pair(matrix, problem)
    matrix, problem = same_dtype(matrix, problem)
    system: Any = InducedSystem(matrix.truncated(), problem)  # pyright: ignore[reportArgumentType]
    eps = float(jnp.finfo(system.initial.dtype).eps)
    filled = {"rtol": max(1e-10, 64 * eps), "solver": explicit_solver(), **options}
    throw = filled.pop("throw", True)
    return run(system, fill_options(system, **{**filled, "finish": None}), throw=throw)


def _rank(beta, rank):
    most = min(beta.shape[0], int(np.prod(beta.shape[1:])))
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
            raise ValueError(
                f"rank: must be an int from 1 to min(d, m) = {most}, got {rank!r}; leave it out "
                "for the numerical rank of the coefficients."
            )
        return rank
    if isinstance(beta, Tracer):
        raise ValueError(
            "rank: must be given under jax.jit or jax.vmap, where the coefficients' rank is not "
            f"known, got None; pass rank={most} for coefficients of full rank."
        )
    sizes = np.linalg.svd(np.asarray(beta).reshape(beta.shape[0], -1), compute_uv=False)
    # In products of a few matrices, singular values that should be zero have this much rounding.
    found = int((sizes > 16 * max(beta.shape) * np.finfo(sizes.dtype).eps * sizes[0]).sum())
    if found == 0:
        raise ValueError(
            "coefficients: must not be zero, got zeros, which the flow never leaves for depth >= 2;"
            " start elsewhere."
        )
    return found
